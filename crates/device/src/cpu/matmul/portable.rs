//! Block formats in plain Rust: what every vector path must equal to the bit, and what other processors run.

use super::Sums;
use super::activations::Block;
use super::chunk::{Chunk, Span};
use super::layout::{LANES, Layout, TILE_CODES};
use crate::cpu::quant::{Kind, kind};

/// Unpacks the tiles and scales of `span` of a group.
pub(super) fn fill(layout: &Layout, group: &[u8], span: Span, chunk: &mut Chunk) {
    let tiles = group[span.first * layout.tile_bytes..].chunks_exact(layout.tile_bytes);
    for (planes, tile) in chunk.codes[..span.blocks].iter_mut().zip(tiles) {
        unpack(tile, planes);
    }
    for index in 0..2 * span.blocks {
        for lane in 0..LANES {
            let (scale, minimum) = layout.scale_and_minimum(group, lane, 2 * span.first + index);
            chunk.scales[index][lane] = scale;
            chunk.minimums[index / 2][lane] = minimum;
        }
    }
}

fn unpack(tile: &[u8], planes: &mut [u8; TILE_CODES]) {
    if tile.len() == TILE_CODES {
        return planes.copy_from_slice(tile);
    }
    for (plane, out) in planes.chunks_exact_mut(64).enumerate() {
        let nibbles = &tile[64 * (plane % 4)..][..64];
        for (index, (out, byte)) in out.iter_mut().zip(nibbles).enumerate() {
            let high = match tile.len() {
                320 => tile[256 + index] >> plane & 1,
                384 => tile[256 + 64 * (plane / 4) + index] >> (plane % 4 * 2) & 3,
                _ => 0,
            };
            *out = byte >> (plane / 4 * 4) & 15 | high << 4;
        }
    }
}

/// Sums of products of a chunk with some rows of `x`, of which `rows` holds `stride` blocks each, from the chunk's
/// first.
pub(super) fn dot(
    layout: &Layout,
    chunk: &Chunk,
    span: Span,
    rows: &[Block],
    stride: usize,
    sums: &mut Sums,
) {
    let kind = kind(layout.format);
    for (sums, row) in sums.iter_mut().zip(rows.chunks(stride)) {
        *sums = [0.0; LANES];
        for (index, x) in row[..span.blocks].iter().enumerate() {
            dot_tile(kind, chunk, index, x, sums);
        }
    }
}

fn dot_tile(kind: Kind, chunk: &Chunk, index: usize, x: &Block, sums: &mut [f32; LANES]) {
    let planes = &chunk.codes[index];
    for (lane, sum) in sums.iter_mut().enumerate() {
        let dot = |planes_of: std::ops::Range<usize>, start: i32| {
            planes_of.fold(start, |sum, plane| {
                let codes = &planes[64 * plane + 4 * lane..][..4];
                let x = &x.codes[4 * plane..][..4];
                codes.iter().zip(x).fold(sum, |sum, (&code, &x)| sum + i32::from(code) * i32::from(x))
            })
        };
        let scale = |part: usize| chunk.scales[2 * index + part][lane] * x.scale;
        match kind {
            Kind::Halves => {
                *sum = (dot(0..4, x.corrections[0]) as f32).mul_add(scale(0), *sum);
                *sum = (dot(4..8, x.corrections[1]) as f32).mul_add(scale(1), *sum);
            }
            _ => *sum = (dot(0..8, x.corrections[0]) as f32).mul_add(scale(0), *sum),
        }
        if kind == Kind::Minimum {
            *sum = chunk.minimums[index][lane].mul_add(x.weighted_sum, *sum);
        }
    }
}
