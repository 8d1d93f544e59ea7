//! Dense weights (F32, F16, BF16) times f32 activations in plain Rust.

use half::{bf16, f16};

use super::Sums;
use super::layout::LANES;
use crate::matrix::Format;

/// Columns whose products are summed before they are added to the output: sums of sums lose less than one long
/// sum.
pub(super) const CHUNK_COLUMNS: usize = 256;

/// Sums of products of `columns` columns of a group, from `weights` on, with rows of `x`.
pub(super) fn dot(format: Format, weights: &[u8], x: &[&[f32]], sums: &mut Sums) {
    for (sums, x) in sums.iter_mut().zip(x) {
        *sums = [0.0; LANES];
        for (column, &x) in x.iter().enumerate() {
            for (lane, sum) in sums.iter_mut().enumerate() {
                *sum = weight(format, weights, column, lane).mul_add(x, *sum);
            }
        }
    }
}

/// One element of a group.
#[inline(always)]
pub(crate) fn weight(format: Format, group: &[u8], column: usize, lane: usize) -> f32 {
    let at = column * LANES + lane;
    match format {
        Format::F32 => f32::from_le_bytes(group.as_chunks().0[at]),
        Format::F16 => f16::from_le_bytes(group.as_chunks().0[at]).to_f32(),
        _ => {
            let at = column / 2 * 2 * LANES + 2 * lane + column % 2;
            bf16::from_le_bytes(group.as_chunks().0[at]).to_f32()
        }
    }
}

/// Rounds a row of `x` to pairs of bfloat16, the first of a pair in the low half; an odd last one is paired with
/// zero.
pub(super) fn round_row(x: &[f32], pairs: &mut [u32]) {
    let round = |x: f32| u32::from(bf16::from_f32(x).to_bits());
    let (twos, rest) = x.as_chunks::<2>();
    for (pair, two) in pairs.iter_mut().zip(twos) {
        *pair = round(two[0]) | round(two[1]) << 16;
    }
    if let ([x], Some(pair)) = (rest, pairs.last_mut()) {
        *pair = round(*x);
    }
}
