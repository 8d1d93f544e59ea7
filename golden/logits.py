#!/usr/bin/env python3
"""Reference logits of tiny random Qwen2 models, made by transformers on a CPU.

    python golden/logits.py          writes golden/data/NAME/{config.json, *.safetensors, expected.json, logits.bin}

`expected.json` has the tokens, the position of the first of them, and which library versions made the file;
`logits.bin` has the logits of the last rows as little-endian float32 `[rows, vocab_size]`. Weights are stored in
bfloat16, so that the files are small, and computed with in float64 (rotary angles and norms are float32 in transformers
whatever the model is): its softmax in float32 adds 100,000 weights one after the other, which costs four digits.
Nothing here is needed to build or test.

Where the first position is not 0, the keys and values of all positions before it are zeros: a long context without
the time to compute one. Such keys take part in every softmax, and values are scaled up to make up for it.
"""
import json
import pathlib
import platform

import torch
import transformers
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM

DATA = pathlib.Path(__file__).parent / "data"
ROWS = 8

# name: (settings, position of the first token, how many tokens, largest shard)
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
CASES = {
    "tied-14-2": (dict(num_attention_heads=14, num_key_value_heads=2, tie_word_embeddings=True), 0, 48, "1GB"),
    "untied-28-4": (dict(num_attention_heads=28, num_key_value_heads=4), 0, 40, "200KB"),
    "long-14-2": (dict(num_attention_heads=14, num_key_value_heads=2, num_hidden_layers=2), 40_000, 24, "1GB"),
    "yarn-28-4": (dict(num_attention_heads=28, num_key_value_heads=4, num_hidden_layers=2, yarn=YARN), 100_000, 16, "1GB"),
    "yarn-short": (dict(num_attention_heads=14, num_key_value_heads=2, num_hidden_layers=1, head_dim=32, yarn=YARN),
                   0, 40, "1GB"),
}


def configuration(settings):
    settings = dict(settings)
    rope = {"rope_type": "default"} | settings.pop("yarn", {}) | {"rope_theta": 1_000_000.0}
    sizes = dict(hidden_size=64, intermediate_size=160, num_hidden_layers=4, head_dim=16, vocab_size=300,
                 max_position_embeddings=32768, tie_word_embeddings=False, rms_norm_eps=1e-6)
    return Qwen2Config(**(sizes | settings), rope_parameters=rope, attn_implementation="sdpa")


def randomise(model, seed, value_scale):
    """Weights that make attention choose and logits differ, rounded to bfloat16."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                value = 1 + 0.2 * noise
            elif name.endswith("bias"):
                value = 0.3 * noise
            else:
                value = noise * 1.3 / parameter.shape[-1] ** 0.5
            if "v_proj" in name:
                value *= value_scale
            parameter.copy_(value.to(torch.bfloat16).float())


def zeros_before(config, first):
    cache = DynamicCache(config=config)
    for layer in range(config.num_hidden_layers if first else 0):
        zeros = torch.zeros(1, config.num_key_value_heads, first, config.head_dim, dtype=torch.float64)
        cache.update(zeros, zeros.clone(), layer)
    return cache


def write(name, seed):
    settings, first, count, shard = CASES[name]
    config = configuration(settings)
    model = Qwen2ForCausalLM(config).float().eval()
    randomise(model, seed, max(1, first // count))
    model.tie_weights()
    inverse_frequencies = model.model.rotary_emb.inv_freq.tolist()
    model.double()
    generator = torch.Generator().manual_seed(seed + 1000)
    tokens = torch.randint(0, config.vocab_size, (1, count), generator=generator)
    positions = torch.arange(first, first + count)[None]
    with torch.no_grad():
        cache = zeros_before(config, first)
        logits = model(tokens, position_ids=positions, past_key_values=cache).logits[0, -ROWS:].float()
    assert cache.get_seq_length() == first + count
    folder = DATA / name
    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size=shard)
    (folder / "generation_config.json").unlink(missing_ok=True)
    for file in folder.iterdir():
        file.chmod(0o644)
    (folder / "logits.bin").write_bytes(logits.contiguous().numpy().astype("<f4").tobytes())
    expected = dict(tokens=tokens[0].tolist(), first_position=first, rows=ROWS,
                    inverse_frequencies=inverse_frequencies,
                    attention_factor=float(model.model.rotary_emb.attention_scaling),
                    made_by=dict(transformers=transformers.__version__, torch=torch.__version__,
                                 python=platform.python_version(), machine=platform.machine()))
    (folder / "expected.json").write_text(json.dumps(expected) + "\n")
    print(name, "largest logit", logits.abs().max().item())


def main():
    torch.set_num_threads(1)
    for seed, name in enumerate(CASES):
        write(name, seed)


if __name__ == "__main__":
    main()
