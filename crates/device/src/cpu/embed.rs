//! Rows of the embedding table, decoded from the matrix layout.

#![allow(unsafe_code)]

use super::matmul::dense::weight;
use super::matmul::layout::{LANES, Layout, TILE};
use super::matmul::matrix_bytes;
use super::pool::Pool;
use super::quant::{Kind, kind, zero_point};
use super::views::{Output, Rows};
use crate::matrix::Matrix;
use crate::tensor::{View, ViewMut};

/// `out[t] = table[ids[t] - first_id]`, or zeros when that row is another rank's; `out` is F32, `ids` I32
/// `[tokens, 1]`. Equal to [`crate::cpu::quant::dequantize`] of the row, to the bit.
pub fn embed(pool: &Pool, mut out: ViewMut<'_>, ids: View<'_>, table: &Matrix, first_id: usize) {
    let layout = Layout::of(table);
    let bytes = matrix_bytes(table, &layout);
    let (output, ids) = (Output::new(&mut out), Rows::<i32>::new(ids));
    pool.run(ids.rows(), &|token| {
        // SAFETY: each token has one task, and `out` is borrowed until all are done.
        let out = unsafe { output.row(token, 0, layout.columns) };
        let row = usize::try_from(ids.row(token)[0]).ok().and_then(|id| id.checked_sub(first_id));
        match row.filter(|&row| row < layout.rows) {
            Some(row) => decode_row(&layout, &bytes[row / LANES * layout.group_bytes..], row % LANES, out),
            None => out.fill(0.0),
        }
    });
}

fn decode_row(layout: &Layout, group: &[u8], lane: usize, out: &mut [f32]) {
    if kind(layout.format) == Kind::Dense {
        for (column, out) in out.iter_mut().enumerate() {
            *out = weight(layout.format, group, column, lane);
        }
        return;
    }
    let zero = zero_point(layout.format);
    for (part, out) in out.chunks_exact_mut(16).enumerate() {
        let tile = &group[part / 2 * layout.tile_bytes..][..layout.tile_bytes];
        let (scale, minimum) = layout.scale_and_minimum(group, lane, part);
        for (index, out) in out.iter_mut().enumerate() {
            let code = i32::from(layout.code(tile, lane, part * 16 % TILE + index));
            *out = scale * (code - zero) as f32;
            if kind(layout.format) == Kind::Minimum {
                *out += minimum;
            }
        }
    }
}
