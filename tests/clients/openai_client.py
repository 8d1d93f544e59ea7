#!/usr/bin/env python3
"""The official OpenAI client against a running server.

    python3 tests/clients/openai_client.py http://localhost:8000 [API-KEY]

Needs the package `openai`. Ends with 1 and a line for each miss.
"""

import sys
import urllib.parse

import openai

MESSAGES = [
    {"role": "system", "content": "You answer in one short sentence."},
    {"role": "user", "content": "What is the capital of France?"},
]


class Checks:
    def __init__(self, client):
        self.client = client
        self.model = client.models.list().data[0].id
        self.misses = []

    def expect(self, what, right):
        print(("ok    " if right else "MISS  ") + what)
        if not right:
            self.misses.append(what)

    def refused(self, what, kind, code, call):
        """The call must raise this class of error, with this code."""
        try:
            call()
        except kind as error:
            self.expect(what, error.code == code)
        except openai.OpenAIError as error:
            self.expect(f"{what} (raised {error!r})", False)
        else:
            self.expect(f"{what} (was accepted)", False)

    def chat(self, **more):
        fields = {"model": self.model, "messages": MESSAGES, "max_completion_tokens": 32, "temperature": 0}
        return self.client.chat.completions.create(**{**fields, **more})

    def models(self):
        self.expect("the model is listed", self.model != "")
        self.expect("the model can be asked for by name", self.client.models.retrieve(self.model).id == self.model)
        encoded = urllib.parse.quote(self.model, safe="")
        page = self.client.get(f"/models/{encoded}", cast_to=object)
        self.expect("also with its slashes encoded", page["id"] == self.model)
        self.refused("another model is not found", openai.NotFoundError, "model_not_found",
                     lambda: self.chat(model="no-such-model"))

    def chat_answers(self):
        answer = self.chat()
        choice = answer.choices[0]
        print("      " + repr(choice.message.content))
        self.expect("an answer of text", bool(choice.message.content) and choice.message.role == "assistant")
        self.expect("a reason to end", choice.finish_reason in ("stop", "length"))
        usage = answer.usage
        self.expect("usage adds up", usage.total_tokens == usage.prompt_tokens + usage.completion_tokens)
        self.expect("cached tokens are told", usage.prompt_tokens_details.cached_tokens is not None)
        self.expect("`max_completion_tokens` is honoured", self.chat(max_completion_tokens=3).usage.completion_tokens == 3)
        self.expect("`n` gives as many", len(self.chat(n=3, temperature=1).choices) == 3)
        same = [self.chat(temperature=1.5, seed=-9007199254740991).choices[0].message.content for _ in range(2)]
        self.expect("same seed, same text", same[0] == same[1])
        parts = [{"role": "user", "content": [{"type": "text", "text": "Say yes."}]}]
        self.expect("content parts are read", bool(self.chat(messages=parts).choices[0].message.content))
        scored = self.chat(logprobs=True, top_logprobs=3, max_completion_tokens=2).choices[0].logprobs.content
        self.expect("log probabilities with alternatives", len(scored) == 2 and len(scored[0].top_logprobs) == 3)
        self.expect("the greedy token is the likeliest", scored[0].token == scored[0].top_logprobs[0].token)

    def chat_streams(self):
        whole = self.chat().choices[0].message.content
        chunks = list(self.chat(stream=True, stream_options={"include_usage": True}))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        self.expect("the stream is the whole answer", text == whole)
        self.expect("the first delta has the role", chunks[0].choices[0].delta.role == "assistant")
        self.expect("the last chunk has usage and no choices", chunks[-1].choices == [] and chunks[-1].usage.total_tokens > 0)
        self.expect("the others have none", all(chunk.usage is None for chunk in chunks[:-1]))
        with self.chat(stream=True, max_completion_tokens=512) as stream:
            next(iter(stream))
        self.expect("a stream can be left", True)

    def completions(self):
        def complete(**more):
            fields = {"model": self.model, "prompt": "1, 2, 3, 4,", "max_tokens": 12, "temperature": 0}
            return self.client.completions.create(**{**fields, **more})

        whole = complete().choices[0].text
        self.expect("a completion", whole != "")
        streamed = "".join(chunk.choices[0].text for chunk in complete(stream=True))
        self.expect("streamed, the same", streamed == whole)
        self.expect("`echo` repeats the prompt", complete(echo=True).choices[0].text == "1, 2, 3, 4," + whole)
        self.expect("several prompts, several answers", len(complete(prompt=["a", "b"]).choices) == 2)
        stopped = complete(prompt="1, 2, 3, 4,", stop=["6"])
        self.expect("`stop` cuts", "6" not in stopped.choices[0].text)
        scores = complete(logprobs=2, max_tokens=3).choices[0].logprobs
        self.expect("log probabilities as lists", len(scores.tokens) == len(scores.token_logprobs) == 3)

    def refusals(self):
        self.refused("a temperature below 0", openai.BadRequestError, "invalid_value", lambda: self.chat(temperature=-1))
        self.refused("an answer longer than the context", openai.BadRequestError, "context_length_exceeded",
                     lambda: self.chat(max_completion_tokens=100_000_000))
        self.refused("tools, for now", openai.BadRequestError, "unsupported_parameter",
                     lambda: self.chat(tools=[{"type": "function", "function": {"name": "f"}}]))


def main(base, key):
    checks = Checks(openai.OpenAI(base_url=f"{base}/v1", api_key=key, max_retries=0, timeout=600))
    for group in (checks.models, checks.chat_answers, checks.chat_streams, checks.completions, checks.refusals):
        group()
    return checks.misses


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    sys.exit(1 if main(sys.argv[1].rstrip("/"), sys.argv[2] if len(sys.argv) == 3 else "none") else 0)
