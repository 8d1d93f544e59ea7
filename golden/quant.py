#!/usr/bin/env python3
"""Writes golden/quant/<FORMAT>.bin: random blocks of each GGUF format and the f32 values gguf-py decodes them to.

A file is the blocks, then the values (little-endian). `crates/device/tests/quant.rs` decodes the one and compares with
the other. Needs: pip install gguf numpy
"""

from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

# Format: where in a block half-precision numbers lie (random bits there could be NaN or infinite).
HALVES = {
    "Q8_0": [0],
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
}
ELEMENTS = 1024


def main():
    random = np.random.default_rng(2025)
    folder = Path(__file__).parent / "quant"
    folder.mkdir(exist_ok=True)
    for name, halves in HALVES.items():
        kind = GGMLQuantizationType[name]
        length, size = GGML_QUANT_SIZES[kind]
        blocks = random.integers(0, 256, (ELEMENTS // length, size), dtype=np.uint8)
        for at in halves:
            numbers = random.normal(0, 0.05, len(blocks)).astype("<f2")
            blocks[:, at : at + 2] = numbers.view(np.uint8).reshape(-1, 2)
        values = dequantize(blocks, kind).astype("<f4")
        (folder / f"{name}.bin").write_bytes(blocks.tobytes() + values.tobytes())


main()
