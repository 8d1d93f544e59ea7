//! Decoders of GGUF's block formats against what the reference (gguf-py) decodes; `golden/quant.py` made the files.

use std::path::Path;

use half::{bf16, f16};
use phalanx_device::Format;
use phalanx_device::quant::dequantize;

/// `golden/quant/NAME.bin` is blocks, then the f32 values they decode to.
fn check(format: Format, name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../golden/quant/{name}.bin"));
    let file = std::fs::read(path).expect("a committed file");
    let elements = file.len() * format.block_len() / (format.block_bytes() + 4 * format.block_len());
    let (blocks, values) = file.split_at(format.row_bytes(elements));
    let expected: Vec<f32> =
        values.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    let mut out = vec![f32::NAN; elements];
    dequantize(format, blocks, &mut out);
    assert_eq!(out, expected, "{name}");
}

#[test]
fn block_formats_decode_to_the_references_bits() {
    check(Format::Q8_0, "Q8_0");
    check(Format::Q4_0, "Q4_0");
    check(Format::Q4_1, "Q4_1");
    check(Format::Q5_0, "Q5_0");
    check(Format::Q5_1, "Q5_1");
    check(Format::Q4K, "Q4_K");
    check(Format::Q5K, "Q5_K");
    check(Format::Q6K, "Q6_K");
}

#[test]
fn dense_formats_decode() {
    let values = [0.0, -1.5, 3.25, 1024.0];
    let mut out = [f32::NAN; 4];
    dequantize(Format::F32, &values.map(f32::to_le_bytes).concat(), &mut out);
    assert_eq!(out, values);
    dequantize(Format::F16, &values.map(|v| f16::from_f32(v).to_le_bytes()).concat(), &mut out);
    assert_eq!(out, values);
    dequantize(Format::BF16, &values.map(|v| bf16::from_f32(v).to_le_bytes()).concat(), &mut out);
    assert_eq!(out, values);
}

#[test]
#[should_panic(expected = "33 bytes for 32 elements")]
fn a_block_cut_short_is_a_programmers_error() {
    dequantize(Format::Q8_0, &[0; 33], &mut [0.0; 32]);
}
