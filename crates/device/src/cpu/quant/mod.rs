//! GGUF's block formats, one block at a time: the scalar reference that every kernel is tested against.
//!
//! Every format is unsigned codes of 4 to 8 bits, and for each sub-block a scale and either a fixed zero point
//! (`value = scale * (code - zero)`) or a minimum (`value = scale * code + minimum`). Arithmetic is in f32 in the
//! order of ggml's `dequantize_row_*`, so values equal ggml's to the bit.

mod blocks256;
mod blocks32;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::matrix::Format;

/// How a format's values come from its codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One element after the other, no codes.
    Dense,
    /// A scale for 32 elements and the format's zero point.
    Symmetric,
    /// A scale and a minimum for 32 elements.
    Minimum,
    /// A scale for 16 elements and the format's zero point.
    Halves,
}

/// What [`Kind`] a format is of.
pub(crate) const fn kind(format: Format) -> Kind {
    match format {
        Format::F32 | Format::F16 | Format::BF16 => Kind::Dense,
        Format::Q8_0 | Format::Q4_0 | Format::Q5_0 => Kind::Symmetric,
        Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => Kind::Minimum,
        Format::Q6K => Kind::Halves,
    }
}

/// The code that stands for zero in the formats that have no minimum.
pub(crate) const fn zero_point(format: Format) -> i32 {
    match format {
        Format::Q8_0 => 128,
        Format::Q4_0 => 8,
        Format::Q5_0 => 16,
        Format::Q6K => 32,
        _ => 0,
    }
}

/// The codes of one block, in the elements' order: `codes` is as long as the block has elements.
pub(crate) fn codes(format: Format, block: &[u8], codes: &mut [u8]) {
    match format {
        Format::Q8_0 => blocks32::codes_q8_0(block, codes),
        Format::Q4_0 => blocks32::codes_4(&block[2..], codes),
        Format::Q4_1 => blocks32::codes_4(&block[4..], codes),
        Format::Q5_0 => blocks32::codes_5(&block[2..], codes),
        Format::Q5_1 => blocks32::codes_5(&block[4..], codes),
        Format::Q4K => blocks256::codes_q4(block, codes),
        Format::Q5K => blocks256::codes_q5(block, codes),
        Format::Q6K => blocks256::codes_q6(block, codes),
        Format::F32 | Format::F16 | Format::BF16 => unreachable!("dense formats have no codes"),
    }
}

/// The 6-bit scale and minimum of sub-block `index` of a `Q4K` or `Q5K` block.
pub(crate) fn scale_and_minimum(block: &[u8], index: usize) -> (u8, u8) {
    blocks256::scale_and_minimum(block, index)
}

/// The half-precision number at byte `at`.
pub(crate) fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Decodes `out.len()` elements, encoded as whole blocks, to f32.
///
/// # Panics
/// The elements are no whole number of blocks, or `bytes` is not exactly those blocks.
pub fn dequantize(format: Format, bytes: &[u8], out: &mut [f32]) {
    assert!(bytes.len() == format.row_bytes(out.len()), "{} bytes for {} elements", bytes.len(), out.len());
    match format {
        Format::F32 => {
            decode(bytes, out, |b: [u8; 4]| f32::from_le_bytes(b));
        }
        Format::F16 => decode(bytes, out, |b: [u8; 2]| f16::from_le_bytes(b).to_f32()),
        Format::BF16 => decode(bytes, out, |b: [u8; 2]| bf16::from_le_bytes(b).to_f32()),
        _ => {
            let blocks = bytes.chunks_exact(format.block_bytes());
            for (block, out) in blocks.zip(out.chunks_exact_mut(format.block_len())) {
                dequantize_block(format, block, out);
            }
        }
    }
}

/// Encodes `values` in a dense format, rounding to the nearest, ties to even.
///
/// # Panics
/// The format is not dense, or `out` is not exactly as long as the values are in it.
pub fn encode(format: Format, values: &[f32], out: &mut [u8]) {
    assert!(out.len() == format.row_bytes(values.len()), "{} bytes for {} elements", out.len(), values.len());
    match format {
        Format::F32 => encode_each(values, out, |value| value.to_le_bytes()),
        Format::BF16 => encode_each(values, out, |value| bf16::from_f32(value).to_le_bytes()),
        Format::F16 => {
            // A slice at a time: which instructions the machine has is asked once for all of it.
            let mut halves = [f16::ZERO; 256];
            for (values, out) in values.chunks(halves.len()).zip(out.chunks_mut(2 * halves.len())) {
                let halves = &mut halves[..values.len()];
                halves.convert_from_f32_slice(values);
                for (half, out) in halves.iter().zip(out.chunks_exact_mut(2)) {
                    out.copy_from_slice(&half.to_le_bytes());
                }
            }
        }
        _ => unreachable!("weights are never quantised here, only taken as they are"),
    }
}

fn encode_each<const N: usize>(values: &[f32], out: &mut [u8], bytes: impl Fn(f32) -> [u8; N]) {
    let (elements, _) = out.as_chunks_mut();
    for (element, value) in elements.iter_mut().zip(values) {
        *element = bytes(*value);
    }
}

fn decode<const N: usize>(bytes: &[u8], out: &mut [f32], value: impl Fn([u8; N]) -> f32) {
    let (elements, _) = bytes.as_chunks();
    for (out, element) in out.iter_mut().zip(elements) {
        *out = value(*element);
    }
}

fn dequantize_block(format: Format, block: &[u8], out: &mut [f32]) {
    let mut buffer = [0; 256];
    let codes_of_block = &mut buffer[..out.len()];
    codes(format, block, codes_of_block);
    let zero = zero_point(format);
    match format {
        Format::Q4K | Format::Q5K => {
            let (d, minimum) = (half_at(block, 0), half_at(block, 2));
            for (index, (out, codes)) in out.chunks_exact_mut(32).zip(buffer.chunks_exact(32)).enumerate() {
                let (scale, m) = scale_and_minimum(block, index);
                affine(out, codes, d * f32::from(scale), -(minimum * f32::from(m)));
            }
        }
        Format::Q6K => {
            let d = half_at(block, 208);
            for (index, (out, codes)) in out.chunks_exact_mut(16).zip(buffer.chunks_exact(16)).enumerate() {
                symmetric(out, codes, d * f32::from(block[192 + index].cast_signed()), zero);
            }
        }
        Format::Q4_1 | Format::Q5_1 => affine(out, codes_of_block, half_at(block, 0), half_at(block, 2)),
        _ => symmetric(out, codes_of_block, half_at(block, 0), zero),
    }
}

fn affine(out: &mut [f32], codes: &[u8], scale: f32, minimum: f32) {
    for (out, &code) in out.iter_mut().zip(codes) {
        *out = scale * f32::from(code) + minimum;
    }
}

fn symmetric(out: &mut [f32], codes: &[u8], scale: f32, zero: i32) {
    for (out, &code) in out.iter_mut().zip(codes) {
        *out = scale * (i32::from(code) - zero) as f32;
    }
}
