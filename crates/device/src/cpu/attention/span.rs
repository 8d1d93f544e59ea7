//! One span of keys for one tile of queries, and the merging of spans.

use super::product::{Operand, Product};
use super::{Inputs, SPAN, Tile};
use crate::cpu::features::Features;
use crate::cpu::lanes::{self, Kernel, LANES, Lanes, Stored};
use crate::cpu::views::{Rows, RowsMut};

/// Keys whose scores are computed before their values are read: four vectors.
const TILE_KEYS: usize = 64;

/// Where one thread computes.
pub(super) struct Scratch<'a> {
    /// `[queries, head_dim]`, scaled by 1 / sqrt(head_dim).
    query: &'a mut [f32],
    /// `[head_dim, TILE_KEYS]`: keys across.
    keys: &'a mut [f32],
    /// `[TILE_KEYS, head_dim]`.
    values: &'a mut [f32],
    /// `[queries, TILE_KEYS]`: scores, then weights.
    scores: &'a mut [f32],
    /// A [`Softmax`] of the span at hand.
    partial: &'a mut [f32],
    /// A [`Softmax`] of all spans so far.
    total: &'a mut [f32],
    head_dim: usize,
}

impl<'a> Scratch<'a> {
    /// Cuts `memory`, grown if need be, for up to `queries` queries.
    pub(super) fn new(memory: &'a mut Vec<f32>, queries: usize, head_dim: usize) -> Self {
        let tile = TILE_KEYS * head_dim;
        let softmax = Softmax::len(queries, head_dim);
        let len = queries * (head_dim + TILE_KEYS) + 2 * tile + 2 * softmax;
        if memory.len() < len {
            memory.resize(len, 0.0);
        }
        let (query, rest) = memory.split_at_mut(queries * head_dim);
        let (keys, rest) = rest.split_at_mut(tile);
        let (values, rest) = rest.split_at_mut(tile);
        let (scores, rest) = rest.split_at_mut(queries * TILE_KEYS);
        let (partial, rest) = rest.split_at_mut(softmax);
        Self { query, keys, values, scores, partial, total: &mut rest[..softmax], head_dim }
    }

    /// The total, and the part of the span computed last.
    pub(super) fn softmaxes(&mut self, queries: usize) -> (Softmax<'_>, Softmax<'_>) {
        (Softmax::new(self.total, queries, self.head_dim), Softmax::new(self.partial, queries, self.head_dim))
    }
}

/// The state of some queries' online softmax: weights are `exp(score - largest)`.
pub(super) struct Softmax<'a> {
    /// `[queries]`: the largest score.
    largest: &'a mut [f32],
    /// `[queries]`: the sum of weights.
    sum: &'a mut [f32],
    /// `[queries, head_dim]`: the sum of weighted values.
    values: &'a mut [f32],
}

impl<'a> Softmax<'a> {
    /// Numbers that the state of so many queries takes.
    pub(super) fn len(queries: usize, head_dim: usize) -> usize {
        queries * (head_dim + 2)
    }

    /// Cuts `memory`.
    pub(super) fn new(memory: &'a mut [f32], queries: usize, head_dim: usize) -> Self {
        let (largest, rest) = memory.split_at_mut(queries);
        let (sum, rest) = rest.split_at_mut(queries);
        Self { largest, sum, values: &mut rest[..queries * head_dim] }
    }

    pub(super) fn reborrow(&mut self) -> Softmax<'_> {
        Softmax { largest: self.largest, sum: self.sum, values: self.values }
    }

    pub(super) fn copy(&mut self, from: &Softmax<'_>) {
        self.largest.copy_from_slice(from.largest);
        self.sum.copy_from_slice(from.sum);
        self.values.copy_from_slice(from.values);
    }

    fn clear(&mut self) {
        self.largest.fill(f32::NEG_INFINITY);
        self.sum.fill(0.0);
        self.values.fill(0.0);
    }

    /// Writes the weighted means to `out` `[rows, heads * head_dim]`.
    pub(super) fn write(&self, mut out: RowsMut<'_, f32>, heads: usize) {
        let head_dim = out.width() / heads;
        for row in 0..out.rows() {
            for (head, to) in out.row(row).chunks_exact_mut(head_dim).enumerate() {
                let query = row * heads + head;
                let scale = 1.0 / self.sum[query];
                for (to, value) in to.iter_mut().zip(&self.values[query * head_dim..]) {
                    *to = value * scale;
                }
            }
        }
    }
}

/// Adds a span's softmax to that of the spans before it.
pub(super) struct Merge<'a> {
    pub(super) total: Softmax<'a>,
    pub(super) partial: Softmax<'a>,
    /// Nothing came before.
    pub(super) first: bool,
}

impl Kernel for Merge<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let Self { mut total, partial, first } = self;
        if first {
            return total.copy(&partial);
        }
        let head_dim = total.values.len() / total.sum.len();
        for query in 0..total.sum.len() {
            // A query whose context ends before this span keeps its bits.
            if partial.sum[query] == 0.0 {
                continue;
            }
            let (a, b) = (total.largest[query], partial.largest[query]);
            let largest = if a < b { b } else { a };
            let old = lanes::exp_one(lanes, a - largest);
            let new = lanes::exp_one(lanes, b - largest);
            total.largest[query] = largest;
            total.sum[query] = total.sum[query] * old + partial.sum[query] * new;
            let own = query * head_dim..(query + 1) * head_dim;
            for (to, from) in total.values[own.clone()].iter_mut().zip(&partial.values[own]) {
                *to = *to * old + from * new;
            }
        }
    }
}

/// Attention of one tile over one span, into the scratch's partial softmax.
pub(super) struct Span<'a, 'b, T> {
    pub(super) inputs: &'a Inputs<'a, T>,
    pub(super) tile: Tile,
    pub(super) span: usize,
    pub(super) scratch: &'a mut Scratch<'b>,
    /// For the products, which are kernels of their own: one compilation serves every type of cache.
    pub(super) features: Features,
}

impl<T: Stored> Kernel for Span<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let Self { inputs, tile, span, scratch, features } = self;
        let head_dim = inputs.heads.head_dim;
        let queries = tile.queries();
        pack_queries(inputs, &tile, scratch.query);
        let mut softmax = Softmax::new(scratch.partial, queries, head_dim);
        softmax.clear();
        let positions = &inputs.layout.positions[tile.first_row..tile.first_row + tile.rows];
        let position = |row: usize| positions[row] as usize;
        let end = (position(tile.rows - 1) + 1).min((span + 1) * SPAN);
        let mut start = span * SPAN;
        while start < end {
            let keys = (end - start).min(TILE_KEYS);
            let slots = slots(inputs, &tile, start, keys);
            load_keys(lanes, &inputs.keys, &slots[..keys], scratch.keys);
            load_values(lanes, &inputs.values, &slots[..keys], scratch.values);
            // Rows before these keys see none of them.
            let mut first_row = 0;
            while position(first_row) < start {
                first_row += 1;
            }
            let first = first_row * tile.heads;
            let scores = &mut scratch.scores[first * TILE_KEYS..queries * TILE_KEYS];
            let a = Operand { elements: &scratch.query[first * head_dim..], stride: head_dim };
            let b = Operand { elements: scratch.keys, stride: TILE_KEYS };
            let rows = queries - first;
            let (depth, columns) = (head_dim, TILE_KEYS);
            lanes::run(features, Product { a, b, rows, depth, columns, accumulate: false, out: scores });
            let visible = |row: usize| (position(row) + 1 - start).min(keys);
            for query in first..queries {
                let scores = &mut scores[(query - first) * TILE_KEYS..][..TILE_KEYS];
                weigh(lanes, scores, visible(query / tile.heads), &mut softmax, query);
            }
            // Each row only with values it sees: what lies behind it may be NaN, and no weight of zero makes that
            // nothing. The last rows, and while decoding all, see every key.
            let mut row = first_row;
            while row < tile.rows {
                let depth = visible(row);
                let row_count = if depth == keys { tile.rows - row } else { 1 };
                let query = row * tile.heads;
                let a = Operand { elements: &scores[(query - first) * TILE_KEYS..], stride: TILE_KEYS };
                let b = Operand { elements: scratch.values, stride: head_dim };
                let out = &mut softmax.values[query * head_dim..];
                let (rows, columns) = (row_count * tile.heads, head_dim);
                lanes::run(features, Product { a, b, rows, depth, columns, accumulate: true, out });
                row += row_count;
            }
            start += keys;
        }
    }
}

/// Scaled queries, rows first, then heads.
#[inline(always)]
fn pack_queries<T>(inputs: &Inputs<'_, T>, tile: &Tile, to: &mut [f32]) {
    let head_dim = inputs.heads.head_dim;
    let scale = 1.0 / (head_dim as f32).sqrt();
    let width = tile.heads * head_dim;
    for (row, to) in to.chunks_exact_mut(width).take(tile.rows).enumerate() {
        let from = &inputs.qkv.row(tile.first_row + row)[tile.first_head * head_dim..][..width];
        for (to, from) in to.iter_mut().zip(from) {
            *to = from * scale;
        }
    }
}

/// The cache rows of `keys` tokens from `start` on.
#[inline(always)]
fn slots<T>(inputs: &Inputs<'_, T>, tile: &Tile, start: usize, keys: usize) -> [usize; TILE_KEYS] {
    let Inputs { block_size, layout, heads, .. } = *inputs;
    let table = &layout.block_tables[tile.sequence * layout.blocks_per_row..][..layout.blocks_per_row];
    let mut slots = [0; TILE_KEYS];
    let (mut block, mut offset) = (start / block_size, start % block_size);
    for slot in &mut slots[..keys] {
        *slot = (table[block] as usize * heads.num_kv_heads + tile.kv_head) * block_size + offset;
        offset += 1;
        if offset == block_size {
            (block, offset) = (block + 1, 0);
        }
    }
    slots
}

/// Brings keys into f32, each into a column of `to` `[head_dim, TILE_KEYS]`.
#[inline(always)]
fn load_keys<L: Lanes, T: Stored>(lanes: L, keys: &Rows<'_, T>, slots: &[usize], to: &mut [f32]) {
    for (group, slots) in slots.chunks(LANES).enumerate() {
        // Columns without a key repeat one: their scores are dropped.
        let mut rows = [keys.row(slots[0]).as_chunks::<LANES>().0; LANES];
        for (row, &slot) in rows.iter_mut().zip(slots) {
            *row = keys.row(slot).as_chunks().0;
        }
        for part in 0..rows[0].len() {
            let mut square = [lanes.splat(0.0); LANES];
            for (v, row) in square.iter_mut().zip(&rows) {
                *v = T::load(lanes, &row[part]);
            }
            let square = lanes.transpose(square);
            for (index, &v) in square.iter().enumerate() {
                let to = &mut to[(part * LANES + index) * TILE_KEYS + group * LANES..];
                lanes.store(to.first_chunk_mut().expect("a group of a row"), v);
            }
        }
    }
}

/// Brings values into f32, one row of `to` `[TILE_KEYS, head_dim]` each.
#[inline(always)]
fn load_values<L: Lanes, T: Stored>(lanes: L, values: &Rows<'_, T>, slots: &[usize], to: &mut [f32]) {
    for (&slot, to) in slots.iter().zip(to.chunks_exact_mut(values.width())) {
        let from = values.row(slot).as_chunks::<LANES>().0;
        for (to, from) in to.as_chunks_mut::<LANES>().0.iter_mut().zip(from) {
            lanes.store(to, T::load(lanes, from));
        }
    }
}

/// Turns the first `visible` of a query's scores into weights, the others into zeros, and makes its sums fit them.
#[inline(always)]
fn weigh<L: Lanes>(lanes: L, scores: &mut [f32], visible: usize, softmax: &mut Softmax<'_>, query: usize) {
    scores[visible..].fill(f32::NEG_INFINITY);
    let vectors = scores.as_chunks_mut::<LANES>().0;
    let mut largest = lanes.load(&vectors[0]);
    for v in &vectors[1..] {
        largest = lanes.max(lanes.load(v), largest);
    }
    let before = softmax.largest[query];
    let found = lanes::largest(lanes, largest);
    let largest = if before < found { found } else { before };
    let mut sum = lanes.splat(0.0);
    for (index, to) in vectors.iter_mut().enumerate() {
        let weights = lanes::exp(lanes, lanes.sub(lanes.load(to), lanes.splat(largest)));
        lanes.store(to, weights);
        // Never a weight, however small, for a key behind the query: what lies in its slot may be anything.
        if visible < (index + 1) * LANES {
            to[visible.saturating_sub(index * LANES)..].fill(0.0);
        }
        sum = lanes.add(sum, lanes.load(to));
    }
    let sum = lanes::sum(lanes, sum);
    softmax.sum[query] = if largest == before {
        softmax.sum[query] + sum
    } else {
        // Before the first tile `before` is minus infinity, and there is nothing to scale.
        let scale = lanes::exp_one(lanes, before - largest);
        let head_dim = softmax.values.len() / softmax.sum.len();
        for value in &mut softmax.values[query * head_dim..(query + 1) * head_dim] {
            *value *= scale;
        }
        softmax.largest[query] = largest;
        softmax.sum[query] * scale + sum
    };
}
