//! Activations as block formats multiply them: two planes of 32 signed bytes and a scale.
//!
//! The coarse plane follows ggml's `Q8_0` (largest magnitude to 127, ties to even) with an f32 scale, for every weight
//! format: also for K-quants, whose activations ggml scales by 256. What its rounding leaves goes into the fine plane,
//! whose scale is 254 times smaller, so that `x` is kept to 16 bits. To a kernel a plane is a row of `x` like any other;
//! the two rows of results are added at the end.
//!
//! Why 16 bits: with the coarse plane alone the greedy text of a 0.5B model left the float32 reference's within 40
//! tokens on 4 of 12 prompts, each time where two tokens were a near tie. What it costs: nothing in memory traffic of
//! weights, so 5 to 10 % of decoding one sequence, and up to half the speed where arithmetic is the limit.
//!
//! The same arithmetic on every path, so that paths and batch sizes agree to the bit. A NaN or infinity makes its
//! block's scale NaN or infinite, and so every product.

use super::layout::TILE;
use crate::cpu::quant::{Kind, kind, zero_point};
use crate::matrix::Format;

/// Thirty-two quantised columns of one row of `x`: 48 bytes, everything a kernel broadcasts.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(16))]
pub(crate) struct Block {
    pub(crate) codes: [i8; TILE],
    /// `x = scale * code`.
    pub(crate) scale: f32,
    /// Minus the weight format's zero point times the sum of the codes: of all in `[0]`, or of each half.
    pub(crate) corrections: [i32; 2],
    /// `scale` times the sum of the codes: what a minimum is multiplied with.
    pub(crate) weighted_sum: f32,
}

/// A block of zeros.
pub(crate) const ZERO: Block = Block { codes: [0; TILE], scale: 0.0, corrections: [0; 2], weighted_sum: 0.0 };

/// Adding this to a number below 2^22 leaves, in the sum's low bits, the number rounded to the nearest integer
/// (ties to even) in two's complement.
const ROUNDING: f32 = 12_582_912.0;

/// Planes of a row of `x`.
pub(crate) const PLANES: usize = 2;

/// The coarse plane's scale over the fine one's: the coarse plane leaves at most half its scale, which is 127 here.
const FINENESS: f32 = 254.0;

/// Quantises a row for weights of `format`: first all coarse blocks, then all fine ones.
#[inline(always)]
pub(crate) fn quantize_row(format: Format, x: &[f32], out: &mut [Block]) {
    let (blocks, _) = x.as_chunks::<TILE>();
    let (coarse, fine) = out.split_at_mut(blocks.len());
    for ((x, coarse), fine) in blocks.iter().zip(coarse).zip(fine) {
        let scale = largest_magnitude(x) / 127.0;
        quantize_block(format, x, scale, coarse);
        // Not `array::map`: its closure would be compiled without this function's vector instructions.
        let mut left = [0.0; TILE];
        for ((left, x), code) in left.iter_mut().zip(x).zip(&coarse.codes) {
            *left = x - scale * f32::from(*code);
        }
        quantize_block(format, &left, scale / FINENESS, fine);
    }
}

#[inline(always)]
fn quantize_block(format: Format, x: &[f32; TILE], scale: f32, out: &mut Block) {
    let zero = zero_point(format);
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let mut rounded = [0; TILE];
    for (rounded, x) in rounded.iter_mut().zip(x) {
        *rounded = i32::from((x * inverse + ROUNDING).to_bits() as i8);
    }
    for (code, rounded) in out.codes.iter_mut().zip(&rounded) {
        *code = *rounded as i8;
    }
    let low: i32 = rounded[..TILE / 2].iter().sum();
    let high: i32 = rounded[TILE / 2..].iter().sum();
    let halves = kind(format) == Kind::Halves;
    out.scale = scale;
    out.corrections = if halves { [-zero * low, -zero * high] } else { [-zero * (low + high), 0] };
    out.weighted_sum = scale * (low + high) as f32;
}

/// The bits of magnitudes order as the magnitudes do, with NaN above all.
#[inline(always)]
fn largest_magnitude(x: &[f32; TILE]) -> f32 {
    let mut largest = [0; TILE / 2];
    for half in x.as_chunks::<{ TILE / 2 }>().0 {
        for (largest, x) in largest.iter_mut().zip(half) {
            *largest = (x.to_bits() & 0x7fff_ffff).max(*largest);
        }
    }
    f32::from_bits(largest.into_iter().fold(0, u32::max))
}
