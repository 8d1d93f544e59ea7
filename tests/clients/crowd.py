#!/usr/bin/env python3
"""A crowd of HTTP requests at once: nothing may be lost, and nothing may be left behind.

    python3 tests/clients/crowd.py http://localhost:8000
    python3 tests/clients/crowd.py http://localhost:8000 --requests 256 --vocabulary 1000 --most-input 2000

Prompts are random token ids. A quarter is greedy and was asked alone before: the answers have to be the same, but for
where the lone answer's best two tokens were nearly tied. The others are sampled, several at a time, streamed or not,
over both APIs; one in eight hangs up at some moment, one in eight asks for what cannot be. At the end /metrics has to
show that nothing runs, nothing waits and no block is held. Needs the package `requests`. Ends with 1 on any miss.
"""

import argparse
import collections
import json
import random
import socket
import sys
import threading
import time
import urllib.parse

import requests

PATIENCE = 300
GAUGES = ("vllm:num_requests_running", "vllm:num_requests_waiting", "phalanx:live_requests", "phalanx:kv_blocks_used")
# Values that cannot be; the error has to name their field. Too long an answer is told of the prompt, as OpenAI does.
WRONG = [
    ("temperature", "hot"), ("temperature", -1), ("top_p", 0), ("max_tokens", 0), ("max_tokens", 10**9), ("n", 0),
    ("prompt", [0, 2**31]), ("prompt", []), ("logprobs", 99), ("stop", 7), ("seed", "x"),
]


class Miss(Exception):
    """An answer is not what it has to be."""


def ids_of(length, vocabulary, seed):
    draw = random.Random(seed)
    return [draw.randrange(vocabulary) for _ in range(length)]


class Crowd:
    """The requests, what they are to bring, and what they brought."""

    def __init__(self, options):
        self.options = options
        self.url = options.url.rstrip("/")
        self.draw = random.Random(options.seed)
        self.alone = {}
        self.forks = []
        self.peak = 0
        self.tokens = 0
        self.lock = threading.Lock()

    def lengths(self, i):
        """Prompt and answer: from 1 to the most, spread evenly whatever the number of requests."""
        share = (i * 0.6180339887) % 1.0
        other = (i * 0.7548776662) % 1.0
        return 1 + int(share * (self.options.most_input - 1)), 1 + int(other * (self.options.most_output - 1))

    def body(self, i):
        input_len, output_len = self.lengths(i)
        return dict(prompt=ids_of(input_len, self.options.vocabulary, i), max_tokens=output_len, ignore_eos=True)

    def jobs(self):
        """A function and a name for each request, shuffled: kinds come mixed."""
        jobs = []
        for i in range(self.options.requests):
            kind = i % 8
            if kind in (0, 4):
                jobs.append(("greedy", lambda i=i: self.greedy(i)))
            elif kind in (1, 2, 5, 6):
                jobs.append(("sampled", lambda i=i: self.sampled(i)))
            elif kind == 3:
                jobs.append(("hung up", lambda i=i: self.leave(i)))
            else:
                jobs.append(("impossible", lambda i=i: self.impossible(i)))
        self.draw.shuffle(jobs)
        return jobs

    def greedy_body(self, i):
        body = self.body(i)
        return body | dict(temperature=0, max_tokens=min(body["max_tokens"], self.options.most_greedy), logprobs=2)

    def ask_alone(self):
        """Each greedy request by itself: its tokens' text, and how far the second best was at each."""
        for i in range(0, self.options.requests, 4):
            told = self.whole("/v1/completions", self.greedy_body(i))["choices"][0]["logprobs"]
            gaps = [self.gap(top) for top in told["top_logprobs"]]
            self.alone[i] = told["tokens"], gaps

    @staticmethod
    def gap(top):
        best = sorted(top.values(), reverse=True)
        return best[0] - best[1]

    def greedy(self, i):
        body = self.greedy_body(i)
        if i % 8:
            tokens = self.streamed("/v1/completions", body)[1]
        else:
            tokens = self.whole("/v1/completions", body)["choices"][0]["logprobs"]["tokens"]
        self.expect(len(tokens), body["max_tokens"])
        expected, gaps = self.alone[i]
        for ours, theirs, gap in zip(tokens, expected, gaps):
            if ours != theirs:
                with self.lock:
                    self.forks.append(gap)
                if self.options.tie < gap:
                    raise Miss(f"request {i} leaves its lone answer where the gap is {gap:.3f}")
                return

    def sampled(self, i):
        body = self.body(i) | dict(temperature=0.8, top_p=0.9, seed=i, n=1 + (i % 16 == 1))
        if i % 3 == 0:
            text, _, usage = self.streamed("/v1/completions", body | dict(stream_options=dict(include_usage=True)))
            self.expect(usage["completion_tokens"], body["max_tokens"] * body["n"])
        elif i % 3 == 1:
            answer = self.whole("/v1/completions", body)
            self.expect(answer["usage"]["completion_tokens"], body["max_tokens"] * body["n"])
            self.expect([choice["finish_reason"] for choice in answer["choices"]], ["length"] * body["n"])
        else:
            body = dict(input_ids=body.pop("prompt"), max_new_tokens=body.pop("max_tokens")) | body | dict(n=1)
            self.expect(len(self.whole("/generate", body)["output_ids"]), body["max_new_tokens"])

    def impossible(self, i):
        """A bad field among good ones: refused, by its name, whatever else goes on."""
        field, value = WRONG[i // 8 % len(WRONG)]
        response = requests.post(f"{self.url}/v1/completions", json=self.body(i) | {field: value}, timeout=PATIENCE)
        named = response.json()["error"]["param"] if response.status_code == 400 else None
        if named != ("prompt" if value == 10**9 else field):
            raise Miss(f"{field} = {value!r} was answered {response.status_code} {response.text[:200]}")

    def leave(self, i):
        """Hangs up: with half of the request sent, before the answer, or within a stream."""
        manner = i // 8 % 3
        body = json.dumps(self.body(i) | dict(stream=manner == 2, max_tokens=self.options.most_output)).encode()
        address = urllib.parse.urlsplit(self.url)
        head = (f"POST /v1/completions HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n").encode()
        with socket.create_connection((address.hostname, address.port or 80), timeout=PATIENCE) as connection:
            connection.sendall(head + (body[: len(body) // 2] if manner == 0 else body))
            if manner == 2 and not connection.recv(64):
                raise Miss("a stream ended before its first byte")

    def whole(self, path, body):
        response = requests.post(self.url + path, json=body, timeout=PATIENCE)
        if response.status_code != 200:
            raise Miss(f"{path}: {response.status_code} {response.text[:200]}")
        answer = response.json()
        self.count(answer["usage"]["completion_tokens"])
        return answer

    def streamed(self, path, body):
        """A stream's text, its tokens (where log probabilities tell them) and its usage (where asked for)."""
        text, tokens, usage, last = [], [], None, None
        with requests.post(self.url + path, json=body | dict(stream=True), stream=True, timeout=PATIENCE) as response:
            if response.status_code != 200:
                raise Miss(f"{path}: {response.status_code} {response.text[:200]}")
            for line in response.iter_lines():
                if not line.startswith(b"data: "):
                    continue
                last = line[6:]
                if last == b"[DONE]":
                    break
                chunk = json.loads(last)
                if "error" in chunk:
                    raise Miss(f"a stream told {chunk['error']}")
                usage = chunk.get("usage") or usage
                for choice in chunk["choices"]:
                    text.append(choice["text"])
                    tokens += (choice["logprobs"] or {}).get("tokens", [])
        if last != b"[DONE]":
            raise Miss("a stream ended without its end")
        self.count(usage["completion_tokens"] if usage else len(tokens))
        return "".join(text), tokens, usage

    def count(self, tokens):
        with self.lock:
            self.tokens += tokens

    @staticmethod
    def expect(came, asked):
        if came != asked:
            raise Miss(f"{came} came where {asked} was asked for")

    def gauges(self):
        """The sum of each gauge over all replicas."""
        lines = requests.get(f"{self.url}/metrics", timeout=PATIENCE).text.splitlines()
        values = {name: [float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + "{")] for name in GAUGES}
        for name, found in values.items():
            if not found:
                raise Miss(f"/metrics has no {name}")
        return {name: sum(found) for name, found in values.items()}

    def run(self):
        """All at once; returns the misses and what each kind brought."""
        jobs = self.jobs()
        results, misses = collections.Counter(), []
        together = threading.Barrier(len(jobs) + 1)
        over = threading.Event()

        def one(kind, job):
            together.wait()
            try:
                job()
                outcome = (kind, "right")
            except (Miss, requests.RequestException, OSError, KeyError, ValueError) as error:
                outcome = (kind, "missed")
                with self.lock:
                    misses.append(f"{kind}: {type(error).__name__} {error}")
            with self.lock:
                results[outcome] += 1

        def watch():
            while not over.wait(0.05):
                self.peak = max(self.peak, self.gauges()["phalanx:live_requests"])

        threads = [threading.Thread(target=one, args=job) for job in jobs]
        for thread in [*threads, watcher := threading.Thread(target=watch)]:
            thread.start()
        together.wait()
        start = time.monotonic()
        for thread in threads:
            thread.join()
        self.seconds = time.monotonic() - start
        over.set()
        watcher.join()
        return results, misses

    def returns_to_zero(self):
        """Whether nothing runs, waits or is held, within some seconds of the last answer."""
        until = time.monotonic() + 30
        while any(values := self.gauges().values()) and time.monotonic() < until:
            time.sleep(0.1)
        return not any(values)


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=1000, help="token ids below this are drawn")
    parser.add_argument("--most-input", type=int, default=2000)
    parser.add_argument("--most-output", type=int, default=200)
    parser.add_argument("--most-greedy", type=int, default=64, help="tokens of greedy answers, which are made twice")
    parser.add_argument("--tie", type=float, default=0.1, help="a gap of log probabilities that 16 bits may turn over")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def main():
    crowd = Crowd(parse())
    start = time.monotonic()
    crowd.ask_alone()
    print(f"{len(crowd.alone)} greedy requests asked alone in {time.monotonic() - start:.1f} s")
    results, misses = crowd.run()
    for kind in ("greedy", "sampled", "hung up", "impossible"):
        print(f"{kind:11} {results[kind, 'right']:4} right {results[kind, 'missed']:4} missed")
    for miss in misses[:20]:
        print("MISS ", miss)
    print(f"{sum(results.values())} requests at once ({crowd.peak:.0f} seen by the engine at one moment), "
          f"{crowd.tokens} tokens in {crowd.seconds:.1f} s; "
          f"{len(crowd.forks)} greedy answers forked, at gaps up to {max(crowd.forks, default=0):.4f}")
    zero = crowd.returns_to_zero()
    print("ok    " if zero else "MISS  ", "at the end:", ", ".join(f"{name} {value:g}" for name, value in crowd.gauges().items()))
    return 1 if misses or not zero else 0


if __name__ == "__main__":
    sys.exit(main())
