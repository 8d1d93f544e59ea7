#!/usr/bin/env python3
"""Holds a GPU server's numbers against PyTorch's: log probabilities and greedy text of random Qwen2 models.

    cargo build --release --features cuda
    python scripts/parity --binary target/release/phalanx
    python scripts/parity --binary target/debug/phalanx --device cpu           small sizes: a test of this script
    python scripts/parity --binary target/release/phalanx --only 7b,tp2        rows whose name has both
    python scripts/parity --binary target/release/phalanx --plant weight       must end with 1

Needs torch, transformers and requests. Each row is one question to one server. Its answer's tokens are given to the same
weights in PyTorch, and the log probabilities of the twenty likeliest tokens at each of its positions are compared. The
truth is PyTorch in float32, attention written out; the yardstick is what PyTorch's own 16-bit pass is off by over the
same positions. We may be off by 2.5 times its worst and 1.5 times its root mean square. A token that is not the truth's
likeliest is a fork: allowed where the truth puts it no further below its likeliest than that same worst error.

Ends with 1 when a row misses, 2 when the arguments are wrong.
"""
import argparse
import concurrent.futures
import dataclasses
import json
import math
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time

import torch
import transformers

import models
import real
from reference import TOP, Reference
from server import Server, ServerError

WORST_FACTOR, SQUARE_FACTOR = 2.5, 1.5 ** 2
NEW_TOKENS = 24
BATCH, BATCH_NEW_TOKENS = 64, 12
KEPT_REFERENCES = 3
# A prompt this long fills whole KV blocks, and must not be found in the prefix cache when it is asked first.
CACHEABLE = 100


@dataclasses.dataclass(frozen=True)
class Setup:
    """One server. `lens` are prompts asked one after the other."""

    model: str
    dtype: str
    tp: int = 1
    pp: int = 1
    chunk: bool = False
    # Start the model without YaRN with a context that turns it on.
    stretched: bool = False
    long: bool = False

    @property
    def ranks(self):
        return self.tp * self.pp

    @property
    def name(self):
        layout = f"tp{self.tp}" if self.pp == 1 else f"pp{self.pp}" if self.tp == 1 else f"pp{self.pp}xtp{self.tp}"
        return " ".join([self.model, self.dtype, layout] + ["stretched"] * self.stretched + ["chunks"] * self.chunk)


# Layers of the model "7b", and ranks that exchange data with each other at most.
MOST_STAGES, MOST_RANKS = 4, 8

SETUPS = [
    Setup("7b", "bf16"), Setup("7b", "bf16", chunk=True), Setup("7b", "fp16"),
    Setup("0.5b", "bf16"), Setup("0.5b", "fp16", chunk=True),
    Setup("1.5b", "bf16", chunk=True), Setup("1.5b", "fp16"),
    Setup("7b-yarn", "bf16", long=True), Setup("7b-yarn", "fp16", long=True, chunk=True, stretched=True),
    Setup("7b", "bf16", tp=2), Setup("7b", "fp16", tp=2, chunk=True), Setup("7b", "bf16", pp=2),
    Setup("0.5b", "fp16", tp=2), Setup("0.5b", "bf16", pp=2, chunk=True),
    Setup("1.5b", "bf16", tp=2), Setup("1.5b", "fp16", pp=2),
    Setup("7b-yarn", "bf16", tp=2, long=True), Setup("7b-yarn", "bf16", pp=2, long=True, chunk=True),
    Setup("7b", "bf16", tp=3), Setup("7b", "bf16", tp=4), Setup("7b", "fp16", pp=4), Setup("7b", "bf16", tp=2, pp=2),
]


def of_all(count):
    """What a machine of more than four GPUs adds: all of them in one layer, and in stages of two as far as layers reach."""
    if count <= 4:
        return []
    stages = count // 2
    setups = [Setup("7b", "bf16", tp=min(count, MOST_RANKS))]
    if stages <= MOST_STAGES:
        setups.append(Setup("7b", "bf16", tp=2, pp=stages))
    return setups


@dataclasses.dataclass(frozen=True)
class Scale:
    """The lengths asked: those of the issue on GPUs, short ones on a CPU."""

    lens: tuple
    long: int
    batched_lens: int
    chunk: int
    again: int


GPU_SCALE = Scale((1, 17, 1000, 16_385), 40_001, 400, 512, 1000)
CPU_SCALE = Scale((1, 17, 130, 700), 1500, 60, 64, 130)


@dataclasses.dataclass
class Answer:
    """One prompt's answer: its tokens, and for each position the log probabilities the server told, if it was asked."""

    prompt: list
    tokens: list
    tops: list


@dataclasses.dataclass
class Row:
    """One line of the table: a question, and how its answers compare."""

    name: str
    answers: list = dataclasses.field(default_factory=list)
    miss: str = ""
    worst: float = 0.0
    allowed: float = 0.0
    square: float = 0.0
    allowed_square: float = 0.0
    positions: int = 0
    forks: int = 0
    widest_fork: float = 0.0
    note: str = ""

    def judge(self, reference):
        """Compares with the truth and drops the answers."""
        squares, ours, theirs, yard = 0, [], [], 0.0
        for answer in self.answers:
            truth = reference.of(answer.prompt, answer.tokens)
            yard = larger(yard, truth.worst)
            theirs.append(truth.square)
            best = truth.logprobs.max(-1).values
            for position, token in enumerate(answer.tokens):
                margin = (best[position] - truth.logprobs[position, token]).item()
                # Negated, as below: a NaN is a fork, and `max` would lose it.
                self.forks += not margin <= 0
                self.widest_fork = larger(self.widest_fork, margin)
            for position, top in enumerate(answer.tops):
                told = torch.tensor(list(top.values()), device=truth.logprobs.device)
                error = (told - truth.logprobs[position, list(top)]).abs()
                self.worst = larger(self.worst, error.max().item())
                squares += error.square().sum().item()
                ours.append(len(top))
            self.positions += len(answer.tokens)
        self.square = squares / max(1, sum(ours))
        self.allowed, self.allowed_square = WORST_FACTOR * yard, SQUARE_FACTOR * sum(theirs) / max(1, len(theirs))
        self.answers = []
        # Negated, so that a NaN misses.
        if not self.worst <= self.allowed or not self.square <= self.allowed_square:
            self.miss = self.miss or "off by more than 16 bits explain"
        if not self.widest_fork <= self.allowed:
            self.miss = self.miss or f"a token is {self.widest_fork:.3f} less likely than the best"

    def line(self, width):
        verdict = f"MISS: {self.miss}" if self.miss else "ok"
        figures = " " * 43
        if self.positions:
            root = lambda square: square ** 0.5
            figures = (f"{self.worst:8.4f} {self.allowed:8.4f} {root(self.square):8.5f} {root(self.allowed_square):8.5f} "
                       f"{self.positions:6} {self.forks:5} {self.widest_fork:7.4f}")
        return f"{self.name:{width}} {figures}  {verdict}{' (' + self.note + ')' if self.note else ''}"


def larger(one, other):
    """As `max`, but a NaN stays."""
    return one if math.isnan(one) or other <= one else other


def prompt_of(length, tokens, seed):
    """Random tokens; the same for the same arguments."""
    draw = random.Random(f"{seed} {length}")
    return [draw.randrange(256, tokens) for _ in range(length)]


def ask_logprobs(server, prompt, new_tokens):
    """Through the OpenAI route: tokens with the log probabilities of the likeliest; and how much came from the cache."""
    body = dict(prompt=prompt, max_tokens=new_tokens, temperature=0, ignore_eos=True, logprobs=TOP)
    answer = server.post("/v1/completions", body)
    told = answer["choices"][0]["logprobs"]
    tokens = [models.token_of_text(text) for text in told["tokens"]]
    tops = [{models.token_of_text(text): value for text, value in top.items()} for top in told["top_logprobs"]]
    if len(tokens) != new_tokens:
        raise ServerError(f"{len(tokens)} of {new_tokens} tokens came")
    return Answer(prompt, tokens, tops), answer["usage"]["prompt_tokens_details"]["cached_tokens"]


def ask_text(server, prompt, new_tokens):
    """Through /generate, without log probabilities: the path of ordinary requests."""
    body = dict(input_ids=prompt, max_new_tokens=new_tokens, temperature=0, ignore_eos=True, repetition_penalty=1.0)
    tokens = server.post("/generate", body)["output_ids"]
    if len(tokens) != new_tokens:
        raise ServerError(f"{len(tokens)} of {new_tokens} tokens came")
    return Answer(prompt, tokens, [])


def questions(setup, shape, scale):
    """The rows of one server: names, and what to call for them."""
    prompt = lambda length, seed=1: prompt_of(length, shape.tokens, seed)
    crowd = [prompt(1 + i * scale.batched_lens // BATCH, i + 10) for i in range(BATCH)]

    def one(length, expect_cached=None):
        def ask(server):
            answer, cached = ask_logprobs(server, prompt(length), NEW_TOKENS)
            if expect_cached is not None and expect_cached != (0 < cached):
                raise ServerError(f"{cached} tokens came from the prefix cache")
            return [answer]
        return ask

    def at_once(ask, prompts, new_tokens):
        def all_of_them(server):
            with concurrent.futures.ThreadPoolExecutor(len(prompts)) as threads:
                return list(threads.map(lambda prompt: ask(server, prompt, new_tokens), prompts))
        return all_of_them

    rows = [(f"{length} tokens", one(length, expect_cached=False if CACHEABLE <= length else None))
            for length in ((scale.long,) if setup.long else scale.lens)]
    rows.append((f"{scale.long if setup.long else scale.again} again, from the prefix cache",
                 one(scale.long if setup.long else scale.again, expect_cached=True)))
    if not setup.long:
        with_logprobs = lambda *arguments: ask_logprobs(*arguments)[0]
        rows.append((f"{BATCH} at once", at_once(with_logprobs, crowd, BATCH_NEW_TOKENS)))
        rows.append((f"{BATCH} at once, text", at_once(ask_text, crowd, BATCH_NEW_TOKENS)))
        rows.append(("all lengths at once, text", at_once(ask_text, [prompt(length) for length in scale.lens], NEW_TOKENS)))
    return [(f"{setup.name}, {name}", ask) for name, ask in rows]


class Parity:
    """The run: folders of models, lanes of servers, the table."""

    def __init__(self, options, folder):
        self.options, self.folder = options, folder
        self.on_cpu = options.device == "cpu"
        self.shapes = models.SMALL if self.on_cpu else models.SHAPES
        self.scale = CPU_SCALE if self.on_cpu else GPU_SCALE
        self.torch_device = "cpu" if self.on_cpu else f"cuda:{torch.cuda.device_count() - 1}"
        self.until = time.monotonic() + options.limit
        # Several ranks may share a GPU where the binary can deal them.
        self.deal = options.gpus_flag and not self.on_cpu
        self.logs = pathlib.Path(options.logs or folder)
        self.logs.mkdir(parents=True, exist_ok=True)
        self.made = {}

    def tell(self, text):
        print(f"{time.monotonic() - self.until + self.options.limit:6.1f} s  {text}", file=sys.stderr, flush=True)

    def make_models(self, setups):
        """Writes each model once in each type."""
        wanted = [(model, setup.dtype) for setup in setups for model in (setup.model, self.served(setup))]
        for model, dtype in dict.fromkeys(wanted):
            plain = model.removesuffix("-yarn")
            folder, twin = self.folder / f"{model}-{dtype}", self.made.get((plain, dtype))
            shape, kind = self.shapes[model], models.DTYPES[dtype]
            if twin:
                models.link(folder, twin, shape, kind)
            else:
                models.make(folder, shape, kind, seed=len(plain) + self.shapes[plain].hidden, device=self.torch_device)
            self.made[model, dtype] = folder
            self.tell(f"made {folder.name}")

    @staticmethod
    def served(setup):
        """The model a server is given: a stretched one finds out about YaRN by its context alone."""
        return setup.model.removesuffix("-yarn") if setup.stretched else setup.model

    def command(self, setup):
        model = self.served(setup)
        command = [self.options.binary, "serve", "--model", str(self.made[model, setup.dtype]), "--port", "0", "--tp",
                   str(setup.tp), "--pp", str(setup.pp), "--device", "cpu" if self.on_cpu else "gpu"]
        if self.on_cpu:
            command += ["--threads", str(setup.ranks)]
        else:
            command += ["--gpu-memory-utilization", "0.6"]
        if setup.chunk:
            command += ["--max-num-batched-tokens", str(self.scale.chunk)]
        if setup.stretched:
            command += ["--max-model-len", str(self.shapes[model].trained * models.YARN_FACTOR)]
        return command

    def serve(self, setup, gpus):
        """All rows of one server, asked but not judged."""
        asked = [(name, ask) for name, ask in questions(setup, self.shapes[setup.model], self.scale)]
        rows = [Row(name) for name, _ in asked]
        if self.until < time.monotonic():
            for row in rows:
                row.miss = "no time was left"
            return rows
        command = self.command(setup)
        if self.deal and len(gpus) < setup.ranks:
            command += ["--gpus", ",".join(str(i * len(gpus) // setup.ranks) for i in range(setup.ranks))]
        try:
            with Server(command, self.logs / f"{setup.name.replace(' ', '-')}.log", None if self.on_cpu else gpus) as server:
                self.tell(f"{setup.name}: ready after {server.start_seconds:.1f} s")
                for row, (_, ask) in zip(rows, asked):
                    try:
                        row.answers = ask(server)
                    except ServerError as error:
                        row.miss = str(error)
        except ServerError as error:
            for row in rows:
                row.miss = row.miss or str(error)
        self.tell(f"{setup.name}: asked")
        return rows

    def lanes(self, setups):
        """Starts servers, one at a time on each GPU; yields each setup's rows when its server is done."""
        count = 1 if self.on_cpu else torch.cuda.device_count()
        alone = [setup for setup in setups if setup.ranks == 1 or self.on_cpu]
        wide = [setup for setup in setups if setup not in alone]
        free = threading.Semaphore(count)
        gpus = list(range(count))

        def one(setup):
            with free:
                gpu = gpus.pop()
                rows = self.serve(setup, [gpu])
                gpus.append(gpu)
                return setup, rows

        with concurrent.futures.ThreadPoolExecutor(count) as threads:
            for done in concurrent.futures.as_completed([threads.submit(one, setup) for setup in alone]):
                yield done.result()
        with concurrent.futures.ThreadPoolExecutor(1) as threads:
            shared = [threads.submit(lambda setup=setup: (setup, self.serve(setup, list(range(count))))) for setup in wide]
            for done in concurrent.futures.as_completed(shared):
                yield done.result()

    def run(self, setups):
        """Every row, judged."""
        self.make_models(setups)
        results, references = {}, {}
        for setup, rows in self.lanes(setups):
            key = setup.model, setup.dtype
            results[setup] = rows
            answered = any(row.answers for row in rows)
            if answered and key not in references:
                # Servers need the memory too.
                while KEPT_REFERENCES <= len(references):
                    references.pop(next(iter(references)))
                shape = self.shapes[setup.model]
                references[key] = Reference(
                    self.made[key], models.DTYPES[setup.dtype], shape.tokens, self.torch_device, self.options.plant)
            for row in rows:
                if row.answers:
                    row.judge(references[key])
            # Told at once: a table that comes last is lost with whoever is stopped.
            missed = [row for row in rows if row.miss]
            self.tell(f"{setup.name}: judged, {len(rows) - len(missed)} of {len(rows)} rows agree")
            for row in missed:
                self.tell(row.line(1))
        return [row for setup in setups for row in results[setup]]


def chosen(options):
    """The setups that this machine has GPUs for and that were asked for."""
    count = 4 if options.device == "cpu" or options.gpus_flag else torch.cuda.device_count()
    wanted = [[word.strip() for word in words.split(",")] for words in options.only or [""]]
    fits = [setup for setup in SETUPS + of_all(count) if setup.ranks <= count]
    return [setup for setup in fits if any(all(word in setup.name for word in words) for words in wanted)]


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--device", choices=["gpu", "cpu"], default="gpu")
    parser.add_argument("--only", action="append", metavar="WORDS",
                        help="servers whose name has all of these, comma-separated; given again, those as well")
    parser.add_argument("--plant", choices=["weight", "tokens"], help="change one weight, or 16 tokens, of the truth")
    parser.add_argument("--limit", type=float, default=600, metavar="SECONDS", help="start no server after this")
    parser.add_argument("--json", metavar="FILE", help="write the rows there")
    parser.add_argument("--folder", help="keep models and logs there")
    parser.add_argument("--logs", metavar="FOLDER", help="keep the servers' logs there [default: beside the models]")
    parser.add_argument("--real-model", metavar="GGUF", help="also the twelve prompts of golden/data/greedy.json")
    parser.add_argument("--list", action="store_true", help="name the servers and end")
    options = parser.parse_args()
    if not shutil.which(options.binary):
        parser.error(f"--binary {options.binary} is no program")
    told = subprocess.run([options.binary, "serve", "--help"], capture_output=True, text=True).stdout
    options.gpus_flag = "--gpus" in told
    return parser, options


def main():
    parser, options = parse()
    setups = chosen(options)
    if options.list:
        print("\n".join(setup.name for setup in setups))
        return 0
    if not setups and not options.real_model:
        parser.error(f"no server's name has all of {options.only!r}; --list names them")
    torch.backends.cuda.matmul.allow_tf32 = False
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(options.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        parity = Parity(options, folder)
        rows = parity.run(setups)
        if options.real_model:
            rows += real.rows(options, folder, Row)
    width = max(len(row.name) for row in rows)
    print(f"{'':{width}} {'worst':>8} {'allowed':>8} {'rms':>8} {'allowed':>8} {'tokens':>6} {'forks':>5} {'widest':>7}")
    for row in rows:
        print(row.line(width))
    missed = sum(bool(row.miss) for row in rows)
    print(f"{len(rows) - missed} of {len(rows)} rows agree with PyTorch {torch.__version__} on {device_name(options)}")
    if options.json:
        fields = [{key: value for key, value in vars(row).items() if key != "answers"} for row in rows]
        pathlib.Path(options.json).write_text(json.dumps(fields, indent=1) + "\n")
    return 1 if missed else 0


def device_name(options):
    if options.device == "cpu":
        return "the CPU"
    return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"


if __name__ == "__main__":
    sys.exit(main())
