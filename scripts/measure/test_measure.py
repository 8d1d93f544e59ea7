"""Tests of what decides and what is told: `python -m unittest discover scripts/measure`."""
import dataclasses
import json
import pathlib
import signal
import sys
import tempfile
import unittest

import execute
import machine
import parts
import schedule
import tables


def gpus(count, folder=pathlib.Path("out")):
    return machine.Machine("/bin/sh", sys.executable, count, False, "7b.json", "tokenizer.json", folder)


def part(name, seconds=10, commands=None, kind="plan"):
    return parts.Part(name, kind, seconds, commands or {})


class Parts(unittest.TestCase):
    def test_a_machine_of_four_shows_every_layout_of_the_issue_in_both_types(self):
        names = [each.name for each in parts.all_parts(gpus(4))]
        for layout in ("tp4", "pp4", "tp2pp2", "tp3"):
            for dtype in ("bf16", "fp16"):
                self.assertIn(f"matrix-{layout}-{dtype}", names)
                self.assertIn(f"latency-{layout}-{dtype}", names)
        for name in ("doctor", "kernels", "parity", "layouts-bf16", "crowd-tp4", "crowd-dp4", "crowd-tp4-nccl", "plan"):
            self.assertIn(name, names)
        self.assertEqual(len(names), len(set(names)))

    def test_layouts_follow_the_number_of_devices(self):
        of = lambda count: gpus(count).layouts()
        self.assertEqual([of(1), of(2), of(3)], [["tp1"], ["tp2", "pp2"], ["tp3", "pp3"]])
        self.assertEqual(of(8), ["tp8", "pp8", "tp2pp4", "tp3"])
        self.assertEqual(machine.layout_flags("tp2pp4"), ["--pp", "4", "--tp", "2"])
        self.assertEqual(machine.layout_flags("dp16"), ["--dp", "16"])
        self.assertTrue(all(each.commands for each in parts.all_parts(gpus(1))))

    def test_parity_is_asked_for_the_servers_that_it_has(self):
        command = parts.parity(gpus(4)).commands["text"]
        asked = [command[place + 1] for place, word in enumerate(command) if word == "--only"]
        self.assertIn("7b bf16 pp2xtp2", asked)
        self.assertIn("7b fp16 pp4", asked)


    def test_memory_is_planned_for_the_cards_that_are_there(self):
        here = dataclasses.replace(gpus(2), device_memory="143771MiB")
        self.assertEqual(parts.plan(here).commands["json"][-2:], ["--device-memory", "143771MiB"])
        self.assertNotIn("--device-memory", parts.plan(gpus(2)).commands["json"])
        self.assertEqual(machine.smallest(["143771", " 81559"]), "81559MiB")
        self.assertEqual([machine.smallest([]), machine.smallest(["[N/A]"])], ["", ""])


class Schedule(unittest.TestCase):
    ALL = [part("doctor"), part("matrix-tp2"), part("matrix-pp2"), part("crowd-tp2")]

    def names(self, only=(), skip=()):
        return [each.name for each in schedule.chosen(self.ALL, only, skip)]

    def test_worth_orders_unless_the_caller_does(self):
        self.assertEqual(self.names(), ["doctor", "matrix-tp2", "matrix-pp2", "crowd-tp2"])
        self.assertEqual(self.names(["crowd-*", "matrix-pp2", "matrix-*"]), ["crowd-tp2", "matrix-pp2", "matrix-tp2"])
        self.assertEqual(self.names(["matrix-*"], ["*-pp2"]), ["matrix-tp2"])
        with self.assertRaisesRegex(ValueError, "matrix-tp4.*doctor, matrix-tp2"):
            self.names(["matrix-tp4"])

    def test_what_no_longer_fits_gives_way_to_what_does(self):
        long, short = part("long", 100), part("short", 10)
        self.assertEqual(schedule.time_for(long, None, 1), 300)
        self.assertEqual(schedule.time_for(long, 90, 1), 0)
        self.assertEqual(schedule.time_for(short, 90, 1), 60, "its own limit")
        self.assertEqual(schedule.time_for(short, 20, 1), 20, "no more than is left")
        self.assertEqual(schedule.time_for(short, 20, 3), 0, "a slower machine")
        self.assertEqual(schedule.time_for(short, -5, 1), 0)

    def test_results_outlive_whoever_writes_them(self):
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "results.jsonl"
            results = schedule.Results(file)
            results.add(dict(part="a", state="failed"))
            results.add(dict(part="b", state="ok"))
            results.add(dict(part="a", state="ok"))
            with file.open("a") as torn:
                torn.write('{"part": "c", "sta')
            again = schedule.Results(file)
            done = [again.is_done(part(name)) for name in "abc"]
            self.assertEqual(done, [True, True, False])
            again.add(dict(part="e", state="failed"))
            order = [each.name for each in again.failed_last([part(name) for name in "ebca"])]
            self.assertEqual(order, ["b", "c", "a", "e"])
            again.add(dict(part="d", state="ok"))
            self.assertTrue(schedule.Results(file).is_done(part("d")), "a torn line swallows no other")


class Execute(unittest.TestCase):
    def run_part(self, commands, limit=20):
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            try:
                execute.execute(part("p", commands=commands), limit, folder, {})
                reason = ""
            except execute.PartFailed as failure:
                reason = str(failure)
            return reason, {file.name: file.read_text() for file in folder.iterdir()}

    def test_a_program_that_fails_says_why_and_the_next_one_runs(self):
        reason, files = self.run_part({"a": ["/bin/sh", "-c", "echo an error >&2; exit 3"], "b": ["/bin/sh", "-c", "echo y"]})
        self.assertEqual(reason, "sh ended with 3: an error")
        self.assertEqual(files["p.b"], "y\n")
        reason, _ = self.run_part({"a": ["/bin/sh", "-c", "echo 3 of 4 agree; echo progress >&2; exit 1"]})
        self.assertEqual(reason, "sh ended with 1: 3 of 4 agree")

    def test_a_program_and_what_it_started_end_when_the_time_is_over(self):
        script = "trap 'echo asked; exit' TERM; echo began; while :; do read -t 1 nothing < /dev/zero; done"
        reason, files = self.run_part({"a": ["/bin/bash", "-c", script]}, limit=1)
        self.assertIn("its time was over", reason)
        self.assertIn("asked", files["p.a"])
        self.assertEqual(signal.getsignal(signal.SIGTERM), signal.SIG_DFL)


class Tables(unittest.TestCase):
    def report(self, results, files):
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            for name, text in files.items():
                (folder / name).write_text(text)
            known = {result["part"]: dict(state="ok", seconds=1.0, started="2026-11-23T10:00:00", server=[],
                                          commands={"json": "/a/phalanx bench latency --model m --device gpu --pp 2 --tp "
                                                            "2 --batch-size 1".split()}) | result for result in results}
            return tables.report(gpus(2, folder), known, "python scripts/measure")

    def test_figures_stand_beside_each_other_by_layout(self):
        figure = dict(name="decode, 1 at once", unit="tok/s", median=261.4, of_limit=0.85)
        told = dict(figures=[figure], matrix=[], left_out=["256: no room"],
                    limits=[dict(name="GPU 0", bytes_per_second=4.35e12, operations_per_second=8.1e14)])
        about = lambda layout: dict(layout=layout, dtype="bf16", all_reduce="")
        text = self.report(
            [dict(part="latency-tp2-bf16", kind="latency", about=about("tp2")),
             dict(part="latency-pp2-bf16", kind="latency", about=about("pp2")),
             dict(part="latency-tp4-bf16", kind="latency", about=about("tp4"), state="failed", reason="a | b")],
            {"latency-tp2-bf16.json": json.dumps(told),
             "latency-pp2-bf16.json": json.dumps(told | dict(figures=[figure | dict(median=240.0)], left_out=[])),
             "latency-tp4-bf16.json": '{"figures": ['})
        self.assertIn("|  | tp2 bf16 | pp2 bf16 |", text)
        self.assertIn("| decode, 1 at once, tok/s | 261 (85 %) | 240 (85 %) |", text)
        self.assertIn("- tp2 bf16, left out: 256: no room", text)
        self.assertEqual(text.count("`phalanx bench latency MODEL LAYOUT --batch-size 1`"), 1)
        self.assertIn("| latency-tp4-bf16 | failed | 1.0 | a / b |", text)
        self.assertIn("- GPU 0: reads 4,350 to 4,350 GB/s, multiplies at 810 to 810 TFLOP/s (2 runs)", text)

    def test_layouts_that_were_measured_before_the_end_are_told(self):
        figure = lambda predicted: dict(name="f", unit="ms", median=100.0, predicted=predicted,
                                        ratio=predicted and predicted / 100)
        memory = [dict(device="GPU 0", planned_bytes=10**10, used_bytes=10**10 + 10**8)]
        row = dict(layout="tp2", start_seconds=3.0, first_tokens=[figure(90.0)], decode=[None], crowd=figure(None),
                   memory=memory, left_out=["x"])
        absent = dict(layout="tp4", start_seconds=None, first_tokens=[None], decode=[None], crowd=None, memory=[],
                      left_out=["there are 2 GPUs"])
        lines = "\n".join([json.dumps(absent), json.dumps(row), '{"layout": "pp2", "sta'])
        text = self.report([dict(part="layouts-bf16", kind="layouts", about=dict(dtype="bf16"))],
                           {"layouts-bf16.json": lines})
        self.assertIn("| tp2 | 3.0 | 90.0 / 100 (0.90) |  | 100 | 10.0 / 10.1 |", text)
        self.assertIn("| tp4 | there are 2 GPUs |", text)
        self.assertIn("| tp2 | GPU 0 | 10.0 | 10.1 | +1.00 % |", text)

    def test_parity_is_told_server_by_server(self):
        progress = ("  12.7 s  7b bf16 tp2: judged, 7 of 8 rows agree\n  12.8 s  7b bf16 tp2, 17 tokens   MISS: off\n"
                    "  13.0 s  7b fp16 tp2: asked\n")
        text = self.report([dict(part="parity", kind="parity", about={})], {"parity.text.err": progress})
        self.assertIn("| 7b bf16 tp2 | 7 of 8 |", text)
        self.assertIn("- 12.8 s 7b bf16 tp2, 17 tokens MISS: off", text)


if __name__ == "__main__":
    unittest.main()
