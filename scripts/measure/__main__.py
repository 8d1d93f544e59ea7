#!/usr/bin/env python3
"""Everything a machine of N GPUs has to show, in one command: a folder of logs, and tables for docs/benchmarks.md.

    python scripts/measure --binary target/release/phalanx --model 7b/config.json --tokenizer 7b/tokenizer.json --folder out
    python scripts/measure ... --budget 540                     for 540 seconds: what is worth most and fits
    python scripts/measure ... --budget 540 --resume            goes on where that ended
    python scripts/measure ... --only 'matrix-pp*,crowd-*'      these parts, in this order
    python scripts/measure --list --count 4                     what the parts are called
    python scripts/measure --binary target/debug/phalanx --device cpu --folder out     small sizes, four ranks by threads

Needs no Rust: a binary, this folder, scripts/parity, tests/clients, and a Python with torch, transformers and requests.
Parts are independent: each has its own time limit, and one that fails leaves the others alone. Results and tables are
written as soon as a part ends. A model that is a config.json gets random weights.

Ends with 1 when a part failed, 2 when the arguments are wrong; parts that no longer fit into the budget fail nothing.
"""
import argparse
import datetime
import os
import pathlib
import shutil
import signal
import sys
import time

import execute
import machine as machines
import parts
import schedule
import tables

CPU_RANKS = 4


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    patterns = lambda text: [pattern.strip() for pattern in text.split(",") if pattern.strip()]
    parser.add_argument("--binary")
    parser.add_argument("--folder", type=pathlib.Path, help="results, logs and report.md go there")
    parser.add_argument("--model", help="as behind `serve --model` [on a CPU: a small one]")
    parser.add_argument("--tokenizer", help="where the model is only a config.json [default: that of the tests]")
    parser.add_argument("--device", choices=["gpu", "cpu"], default="gpu")
    parser.add_argument("--count", type=int, help="GPUs to measure with [default: all], or ranks on a CPU [default: 4]")
    parser.add_argument("--only", type=patterns, default=[], metavar="PARTS", help="patterns, in the order wanted")
    parser.add_argument("--skip", type=patterns, default=[], metavar="PARTS", help="patterns")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="start nothing that is not expected to fit")
    parser.add_argument("--pace", type=float, default=1, metavar="FACTOR", help="expect so many times the seconds of H200s")
    parser.add_argument("--resume", action="store_true", help="skip the parts that have a result in the folder; those that failed come last")
    parser.add_argument("--list", action="store_true", help="name the parts and their seconds, and end; needs no other flag")
    return parser, parser.parse_args()


def look(parser, options):
    """The machine, or an error about the arguments."""
    on_cpu = options.device == "cpu"
    memories = [] if on_cpu else machines.gpu_memories()
    count = options.count or (CPU_RANKS if on_cpu else len(memories))
    if count < 1:
        parser.error("nvidia-smi tells of no GPUs: give --count (1 or more), or --device cpu")
    if options.list:
        # Names and seconds depend on the devices alone.
        return machines.Machine("phalanx", sys.executable, count, on_cpu, "model", "", pathlib.Path())
    if not options.binary or not options.folder:
        parser.error("--binary and --folder are needed")
    if not shutil.which(options.binary):
        parser.error(f"--binary {options.binary} is no program")
    if not options.model and not on_cpu:
        parser.error("--model is needed: a folder with a model, or a config.json for random weights")
    options.folder.mkdir(parents=True, exist_ok=True)
    model = options.model or machines.small_model(options.folder)
    tokenizer = options.tokenizer or (str(machines.TOKENIZER) if model.endswith(".json") else "")
    binary = os.path.abspath(shutil.which(options.binary))
    return machines.Machine(binary, sys.executable, count, on_cpu, model, tokenizer, options.folder.resolve(),
                            machines.smallest(memories[:count]))


class Run:
    """One call of this program."""

    def __init__(self, machine, wanted, results, options):
        self.machine, self.wanted, self.results, self.options = machine, wanted, results, options
        self.started = time.monotonic()
        self.command = " ".join(["python", *sys.argv])

    def left(self):
        """Seconds of the budget; none without one."""
        return self.options.budget and self.options.budget - (time.monotonic() - self.started)

    def tell(self, text):
        print(f"{time.monotonic() - self.started:6.1f} s  {text}", flush=True)

    def all(self):
        """Runs every part that is wanted, fits and has no result; returns those that failed."""
        failed = []
        for part in self.wanted:
            if self.options.resume and self.results.is_done(part):
                self.tell(f"{part.name}: has a result")
                continue
            limit = schedule.time_for(part, self.left(), self.options.pace)
            if limit <= 0:
                needed = part.seconds * self.options.pace
                self.tell(f"{part.name}: skipped, expected to take {needed:.0f} s and {self.left():.0f} are left")
                continue
            if not self.one(part, limit):
                failed.append(part.name)
        self.report()
        return failed

    def one(self, part, limit):
        """Runs one part and writes down how it went."""
        began = time.monotonic()
        result = dict(part=part.name, kind=part.kind, state="failed", about=part.about, server=list(part.server),
                      started=datetime.datetime.now().astimezone().isoformat(timespec="seconds"), commands=part.commands)
        try:
            execute.execute(part, limit, self.machine.folder, self.machine.environment())
            result["state"] = "ok"
        except (execute.PartFailed, OSError) as error:
            result["reason"] = str(error)
        except BaseException:
            result["reason"] = "this program was ended"
            raise
        finally:
            result["seconds"] = round(time.monotonic() - began, 1)
            self.results.add(result)
            self.report()
            self.tell(f"{part.name}: {result['state']} in {result['seconds']} s  {result.get('reason', '')}".rstrip())
        return result["state"] == "ok"

    def report(self):
        text = tables.report(self.machine, self.results.known, self.command)
        (self.machine.folder / "report.md").write_text(text)


def main():
    parser, options = parse()
    machine = look(parser, options)
    everything = parts.all_parts(machine)
    try:
        wanted = schedule.chosen(everything, options.only, options.skip)
    except ValueError as error:
        parser.error(f"--only and --skip: {error}")
    if options.list:
        print("\n".join(f"{part.name:26} {part.seconds * options.pace:5.0f} s" for part in wanted))
        return 0
    results = schedule.Results(machine.folder / "results.jsonl")
    if results.known and not options.resume:
        parser.error(f"--folder {options.folder} has results: give --resume, or another folder")
    # So that whatever runs is ended, too, and what was found out is written.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    run = Run(machine, results.failed_last(wanted), results, options)
    failed = run.all()
    print(f"{machine.folder / 'report.md'} has the tables" + f"; failed: {', '.join(failed)}" * bool(failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
