#!/usr/bin/env python3
"""Measures Phalanx and llama.cpp side by side on the same file, machine and threads, and prints ratios.

    cargo build --release
    CMAKE_ARGS=-DGGML_NATIVE=ON pip install llama-cpp-python --no-binary llama-cpp-python
    python scripts/compare_llama_cpp.py "$(target/release/phalanx pull)" --threads 2

Each round runs one, then the other, so that a machine that changes its pace changes it for both. Each engine loads the
model anew each round, in a process of its own.
"""

import argparse
import json
import statistics
import subprocess
import sys

INPUT, OUTPUT = 512, 64

LLAMA_CPP = """
import json, sys, time
from llama_cpp import Llama
path, threads = sys.argv[1], int(sys.argv[2])
llama = Llama(path, n_ctx=1024, n_batch=512, n_ubatch=512, n_threads=threads, n_threads_batch=threads, verbose=False)
ids = [(i * 7919 + 13) %% 100_000 for i in range(%(input)d)]
best = {}
for _ in range(3):
    llama.reset(); start = time.perf_counter(); llama.eval(ids); prefill = len(ids) / (time.perf_counter() - start)
    llama.reset(); llama.eval(ids[:32]); start = time.perf_counter()
    for i in range(%(output)d): llama.eval([ids[64 + i]])
    decode = %(output)d / (time.perf_counter() - start)
    best = dict(prefill=max(prefill, best.get("prefill", 0)), decode=max(decode, best.get("decode", 0)))
print(json.dumps(best))
""" % dict(input=INPUT, output=OUTPUT)


def phalanx(binary, model, threads):
    """Tokens a second: the best of three runs of each figure."""
    common = ["--model", model, "--threads", str(threads), "--max-model-len", "1024", "--repeats", "3", "--json", "--log", "error"]
    latency = [binary, "bench", "latency", "--batch-size", "1,8", "--input-len", "32", "--output-len", str(OUTPUT)]
    prefill = [binary, "bench", "prefill", "--input-len", str(INPUT)]
    figures = []
    for command in (latency, prefill):
        figures += json.loads(subprocess.run(command + common, check=True, stdout=subprocess.PIPE).stdout)["figures"]
    best = {figure["name"]: figure["highest"] for figure in figures}
    return {"decode": best["decode, 1 at once"], "decode8": best["decode, 8 at once"], "prefill": best[f"prefill of {INPUT}"]}


def llama_cpp(model, threads):
    """The same for llama.cpp."""
    command = [sys.executable, "-c", LLAMA_CPP, model, str(threads)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--binary", default="target/release/phalanx")
    arguments = parser.parse_args()
    ours, theirs = [], []
    for _ in range(arguments.rounds):
        ours.append(phalanx(arguments.binary, arguments.model, arguments.threads))
        theirs.append(llama_cpp(arguments.model, arguments.threads))
        print(f"round: phalanx {ours[-1]}, llama.cpp {theirs[-1]}", file=sys.stderr)
    middle = lambda runs, key: statistics.median(run[key] for run in runs)
    print(f"{'tokens/s, median of rounds':32} {'phalanx':>9} {'llama.cpp':>10} {'ratio':>6}")
    for key, name in (("decode", "decode, one sequence"), ("prefill", f"prefill of {INPUT} tokens")):
        us, them = middle(ours, key), middle(theirs, key)
        print(f"{name:32} {us:9.1f} {them:10.1f} {us / them:6.2f}")
    one, eight = middle(ours, "decode"), middle(ours, "decode8")
    print(f"{'decode, eight sequences at once':32} {eight:9.1f} {'':10} {eight / one:6.2f} x our one")


main()
