//! Which functions a processor runs.

use super::activations::{self, Block};
use super::chunk::{Chunk, Span};
use super::layout::Layout;
use super::{Sums, dense, portable};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512, dense256, dense512};
use crate::cpu::features::{Features, Level};
use crate::matrix::Format;

/// `dot_packed(layout, group, span, rows of x from the span's first block on, blocks from row to row, sums)`.
pub(super) type PackedDot = unsafe fn(&Layout, &[u8], Span, &[Block], usize, &mut Sums);
/// `bf16(weights, pairs of columns, rows of x, pairs from row to row, sums)`.
pub(super) type PairsDot = unsafe fn(&[u8], usize, &[u32], usize, &mut Sums);

/// One processor's functions. Safe to call on a processor that has the [`Features`] they were chosen for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernels {
    /// Quantises a row of `x`.
    pub(super) quantize: unsafe fn(Format, &[f32], &mut [Block]),
    /// Unpacks a span of a group.
    pub(super) fill: unsafe fn(&Layout, &[u8], Span, &mut Chunk),
    /// A chunk times 1, 2, 4 or 8 rows of `x`.
    pub(super) dot: unsafe fn(&Layout, &Chunk, Span, &[Block], usize, &mut Sums),
    /// The same straight from a group, without a chunk.
    pub(super) dot_packed: Option<PackedDot>,
    /// Columns of a group of dense weights times rows of `x`.
    pub(super) dense: unsafe fn(Format, &[u8], &[&[f32]], &mut Sums),
    /// The same for BF16 weights and rows of pairs of bfloat16.
    pub(super) bf16: Option<PairsDot>,
}

impl Kernels {
    pub(super) fn new(features: Features) -> Self {
        match features.level() {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => Self {
                quantize: avx512::quantize_row,
                fill: avx512::fill,
                dot: avx512::dot,
                dot_packed: Some(avx512::dot_packed),
                dense: dense512::dot,
                bf16: match features.bf16() {
                    true => Some(dense512::dot_bf16),
                    false => None,
                },
            },
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => Self {
                quantize: avx2::quantize_row,
                fill: avx2::fill,
                dot: avx2::dot,
                dot_packed: None,
                dense: dense256::dot,
                bf16: None,
            },
            _ => Self {
                quantize: activations::quantize_row,
                fill: portable::fill,
                dot: portable::dot,
                dot_packed: None,
                dense: dense::dot,
                bf16: None,
            },
        }
    }
}
