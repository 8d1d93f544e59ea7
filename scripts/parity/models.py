"""Random Qwen2 models as Hugging Face folders: real widths, few layers, weights that make attention choose.

With the usual small initial weights attention averages over everything before it, and an error in it hides behind 16
bits. Here a head's scores have a deviation of about 2.5, so that it reads a handful of tokens however long the prompt.
"""
import dataclasses
import json
import pathlib

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Wider than usual, so that a head chooses: scores get a deviation of the product of the two.
ATTENTION_SCALE = 1.6
MATRIX_SCALE = 1.0


@dataclasses.dataclass(frozen=True)
class Shape:
    """A model's sizes. `tokens` is the tokenizer's vocabulary: rows of the embedding beyond it are never sampled."""

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    layers: int
    rows: int
    tokens: int
    tied: bool = False
    head_dim: int = 128
    yarn: bool = False
    trained: int = 32768


SHAPES = {
    # 28 query heads over 4: groups of 7. Four layers, so that there can be four stages.
    "7b": Shape(3584, 18944, 28, 4, layers=4, rows=152_064, tokens=151_665),
    "7b-yarn": Shape(3584, 18944, 28, 4, layers=4, rows=152_064, tokens=151_665, yarn=True),
    "0.5b": Shape(896, 4864, 14, 2, layers=4, rows=151_936, tokens=151_665, tied=True, head_dim=64),
    "1.5b": Shape(1536, 8960, 12, 2, layers=3, rows=151_936, tokens=151_936),
}

# The same proportions in sizes for a CPU and a test of the script itself.
SMALL = {
    "7b": Shape(448, 640, 28, 4, layers=4, rows=2064, tokens=2001, head_dim=16, trained=1024),
    "7b-yarn": Shape(448, 640, 28, 4, layers=4, rows=2064, tokens=2001, head_dim=16, trained=1024, yarn=True),
    "0.5b": Shape(224, 608, 14, 2, layers=4, rows=2000, tokens=1900, tied=True, head_dim=16, trained=1024),
    "1.5b": Shape(192, 512, 12, 2, layers=3, rows=2000, tokens=2000, head_dim=16, trained=1024),
}

YARN_FACTOR = 4


def configuration(shape, dtype):
    rope = {"rope_type": "default", "rope_theta": 1_000_000.0}
    longest = shape.trained
    if shape.yarn:
        rope |= {"rope_type": "yarn", "factor": float(YARN_FACTOR), "original_max_position_embeddings": shape.trained}
    return Qwen2Config(
        hidden_size=shape.hidden, intermediate_size=shape.intermediate, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, head_dim=shape.head_dim,
        vocab_size=shape.rows, tie_word_embeddings=shape.tied, max_position_embeddings=longest, rms_norm_eps=1e-6,
        rope_parameters=rope, dtype=dtype, bos_token_id=None, eos_token_id=None, architectures=["Qwen2ForCausalLM"])


def randomise(model, seed):
    """Values that depend on the seed and the order of the weights alone, on one kind of device."""
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, device=device)
            if "norm" in name:
                value = 1 + 0.2 * noise
            elif name.endswith("bias"):
                value = 0.3 * noise
            else:
                choosing = "q_proj" in name or "k_proj" in name
                value = noise * (ATTENTION_SCALE if choosing else MATRIX_SCALE) / parameter.shape[-1] ** 0.5
                if "embed_tokens" in name and model.config.tie_word_embeddings is False:
                    # Nothing else gives the residual stream its size; a tied one has to serve as the output too.
                    value *= parameter.shape[-1] ** 0.5
            parameter.copy_(value)


def write_tokenizer(folder, tokens):
    """Byte-level BPE without merges whose token `i` is spelt `w<i>`: a text that comes back names its token."""
    vocabulary = {character: token for token, character in enumerate(byte_alphabet())}
    vocabulary |= {f"w{token}": token for token in range(len(vocabulary), tokens)}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    bpe = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
           "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
           "vocab": vocabulary, "merges": []}
    description = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
                   "pre_tokenizer": level, "post_processor": level, "decoder": level, "model": bpe}
    (folder / "tokenizer.json").write_text(json.dumps(description))


def byte_alphabet():
    """The letters by which byte-level BPE spells the bytes 0 to 255."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    stand_ins = iter(range(256, 512))
    return [chr(byte if byte in plain else next(stand_ins)) for byte in range(256)]


def token_of_text(text):
    """The token that the server spells so; see `write_tokenizer`."""
    if text.startswith("w") and 1 < len(text):
        return int(text[1:])
    if text.startswith("bytes:\\x"):
        return int(text[8:], 16)
    return ord(text)


def make(folder, shape, dtype, seed, device):
    """Writes `folder`. Models of one seed and size have the same weights, whatever their YaRN."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.device(device):
        torch.set_default_dtype(torch.float32)
        model = Qwen2ForCausalLM(configuration(shape, dtype))
    randomise(model, seed)
    model.tie_weights()
    model.to(dtype).save_pretrained(folder, max_shard_size="2GB")
    # Without it servers sample with Qwen's own settings, which requests here override anyway.
    (folder / "generation_config.json").unlink(missing_ok=True)
    write_tokenizer(folder, shape.tokens)


def link(folder, twin, shape, dtype):
    """The same weights as in the folder `twin`, under a configuration of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in twin.iterdir():
        target = folder / file.name
        target.unlink(missing_ok=True)
        target.symlink_to(file.resolve())
    (folder / "config.json").unlink()
    configuration(shape, dtype).save_pretrained(folder)
