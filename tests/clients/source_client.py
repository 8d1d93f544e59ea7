#!/usr/bin/env python3
"""The client of the guide that Phalanx follows, unchanged but for the address: it must work as it is.

    python3 tests/clients/source_client.py http://localhost:8000

Needs the package `requests`. Ends with 1 and a line for each miss.
"""

import json
import sys

import requests

QUESTION = "请解释量子纠缠的基本原理，并用中文输出。"


def main(base):
    misses = []

    def expect(what, right):
        print(("ok    " if right else "MISS  ") + what)
        if not right:
            misses.append(what)

    # The guide's own lines.
    response = requests.post(
        f"{base}/generate",
        json={"prompt": QUESTION, "max_new_tokens": 64, "temperature": 0.7, "top_p": 0.9},
        timeout=600,
    )
    answer = response.json()
    print(answer["text"])

    expect("the status is 200", response.status_code == 200)
    expect("`text` is a string", isinstance(answer["text"], str))
    expect("`text` is the completion alone", not answer["text"].startswith(QUESTION))
    expect("nothing of the request was ignored", answer["warnings"] == [])
    expect("the length was honoured", 0 < answer["usage"]["completion_tokens"] <= 64)

    greedy = {"prompt": QUESTION, "max_new_tokens": 24, "temperature": 0}
    whole = requests.post(f"{base}/generate", json=greedy, timeout=600).json()["text"]
    pieces = []
    with requests.post(f"{base}/generate", json={**greedy, "stream": True}, stream=True, timeout=600) as stream:
        for line in stream.iter_lines():
            if line.startswith(b"data: ") and line != b"data: [DONE]":
                pieces.append(json.loads(line[6:])["text"])
    expect("the streamed pieces are the whole answer", "".join(pieces) == whole)

    asked = requests.post(f"{base}/generate", json={**greedy, "chat": True}, timeout=600).json()["text"]
    expect("`chat` answers too", isinstance(asked, str) and asked != "")

    nested = {"text": QUESTION, "sampling_params": {"max_new_tokens": 24, "temperature": 0}}
    expect("SGLang's fields mean the same", requests.post(f"{base}/generate", json=nested, timeout=600).json()["text"] == whole)

    refused = requests.post(f"{base}/generate", json={"prompt": QUESTION, "temperature": "hot"}, timeout=60)
    expect("a bad field is named", refused.status_code == 400 and refused.json()["error"]["param"] == "temperature")

    odd = requests.post(f"{base}/generate", json={**greedy, "max_new_tokens": 1, "colour": 1}, timeout=600).json()
    expect("an unknown field is told of", len(odd["warnings"]) == 1 and "colour" in odd["warnings"][0])
    return misses


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(1 if main(sys.argv[1].rstrip("/")) else 0)
