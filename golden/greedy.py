"""Writes what the reference says: greedy answers of a real Qwen2.5 to twelve prompts.

    pip install torch transformers gguf accelerate
    python golden/greedy.py path/to/qwen2.5-coder-0.5b-instruct-q4_k_m.gguf

transformers reads the GGUF file, dequantises its weights to float32 and generates 64 tokens for each prompt. The file
it writes, golden/data/greedy.json, holds prompts, their token ids, the answers' token ids, the gap between the two
largest logits at each step (a small gap is where a quantised path may rightly differ), and the versions used.
"""

import json
import pathlib
import platform
import sys

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

NEW_TOKENS = 64
PROMPTS = [
    "请解释量子纠缠的基本原理，并用中文输出。",
    "中国有哪些著名的古代发明？请列出四个。",
    "What is tensor parallelism? Answer in two sentences.",
    "Write a short poem about the sea.",
    "List the planets of the solar system in order.",
    "ما هي عاصمة مصر؟ أجب بجملة واحدة.",
    "اكتب جملة عن أهمية القراءة.",
    "Write a Python function that returns the n-th Fibonacci number.",
    "Write a Rust function that reverses a string.",
    "SQL: select the three customers with the largest total of orders.",
    'Return a JSON object with the keys "name", "age" and "city" for a fictional person.',
    'Turn this into JSON: Anna is 31 and lives in Oslo, Ben is 27 and lives in Rome.',
]


def answer(model, ids):
    """Greedy tokens, one at a time over the KV cache, with the gap between the best two logits at each step."""
    tokens, gaps, cache = [], [], None
    step = torch.tensor([ids])
    with torch.inference_mode():
        for _ in range(NEW_TOKENS):
            output = model(step, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            best = output.logits[0, -1].float().topk(2)
            tokens.append(int(best.indices[0]))
            gaps.append(round(float(best.values[0] - best.values[1]), 4))
            step = best.indices[:1].view(1, 1)
    return tokens, gaps


def main():
    path = pathlib.Path(sys.argv[1])
    names = dict(gguf_file=path.name)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, **names)
    model = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **names).eval()
    cases = []
    for prompt in PROMPTS:
        messages = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        tokens, gaps = answer(model, ids)
        cases.append(dict(prompt=prompt, rendered=text, ids=ids, tokens=tokens, gaps=gaps, text=tokenizer.decode(tokens)))
        print(prompt, "->", cases[-1]["text"][:60].replace("\n", " "), flush=True)
    golden = dict(
        model=path.name,
        made_with=dict(python=platform.python_version(), torch=torch.__version__, transformers=transformers.__version__),
        cases=cases,
    )
    target = pathlib.Path(__file__).parent / "data" / "greedy.json"
    target.write_text(json.dumps(golden, ensure_ascii=False, indent=1) + "\n")


main()
