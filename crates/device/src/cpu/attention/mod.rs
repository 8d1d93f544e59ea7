//! Causal attention over paged keys and values, with the online softmax of FlashAttention (arXiv 2205.14135).
//!
//! A row of the batch and a query head make a *query*. Queries that read the same KV head of the same sequence are
//! computed together, `TILE_QUERIES` or so at a time: each tile of keys and values is brought into f32 once for all.
//!
//! **What a query's bits depend on.** Keys are taken in tiles of `TILE_KEYS` counted from the sequence's start, and the
//! context is cut into spans of `SPAN` keys, each with a softmax of its own; spans are merged first to last. That order
//! is the same for every query whatever is computed beside it: chunking a prompt differently, other sequences, the
//! number of threads change nothing. Spans are also what threads share when a step has few tiles.
//!
//! Measured (`examples/operation_speed`, one core of an AMD Zen 4 at work on other things, 14:2 heads of 64, F16 cache,
//! best runs): AVX-512 76 GFLOP/s for 64 rows at a context of 512, two thirds of what the core can multiply and add; 59
//! for one row, at 512 and at 16,384 (1.0 ms) alike. AVX2 34 and 32. Portable 4.5.

mod product;
mod span;

use std::sync::PoisonError;

use half::{bf16, f16};

use self::span::{Scratch, Softmax, Span};
use super::views::{Rows, RowsMut};
use super::{Cpu, lanes, parallel};
use crate::backend::{Heads, KvLayer};
use crate::batch::BatchLayout;
use crate::dtype::DType;
use crate::tensor::{View, ViewMut};

/// Keys of a span: merging costs under a hundredth of computing it, and a lone sequence of 4,096 keeps 8 threads busy.
const SPAN: usize = 512;

/// Queries computed together, unless one row alone has more of one KV head.
const TILE_QUERIES: usize = 64;

/// What attention reads, for one element type of the cache.
struct Inputs<'a, T> {
    qkv: Rows<'a, f32>,
    keys: Rows<'a, T>,
    values: Rows<'a, T>,
    block_size: usize,
    layout: &'a BatchLayout,
    heads: Heads,
}

/// Rows of one sequence, with the query heads of one KV head.
#[derive(Clone, Copy)]
struct Tile {
    sequence: usize,
    first_row: usize,
    rows: usize,
    kv_head: usize,
    first_head: usize,
    heads: usize,
    /// Spans of the last row's context.
    spans: usize,
}

impl Tile {
    fn queries(&self) -> usize {
        self.rows * self.heads
    }
}

/// See [`crate::Backend::attention`].
pub(super) fn attention(
    cpu: &Cpu,
    out: ViewMut<'_>,
    qkv: View<'_>,
    kv: &KvLayer,
    layout: &BatchLayout,
    heads: Heads,
) {
    match kv.keys.dtype() {
        DType::F32 => typed::<f32>(cpu, out, qkv, kv, layout, heads),
        DType::F16 => typed::<f16>(cpu, out, qkv, kv, layout, heads),
        DType::BF16 => typed::<bf16>(cpu, out, qkv, kv, layout, heads),
        DType::I32 => panic!("keys are numbers with fractions"),
    }
}

fn typed<T: lanes::Stored>(
    cpu: &Cpu,
    out: ViewMut<'_>,
    qkv: View<'_>,
    kv: &KvLayer,
    layout: &BatchLayout,
    heads: Heads,
) {
    let inputs = Inputs {
        qkv: Rows::new(qkv),
        keys: Rows::<T>::new(kv.keys.view()),
        values: Rows::<T>::new(kv.values.view()),
        block_size: kv.block_size,
        layout,
        heads,
    };
    let tiles = Tiles::new(layout, heads);
    let (count, spans) = tiles.fold((0, 0), |(count, spans), tile| (count + 1, spans + tile.spans));
    let out = RowsMut::new(out);
    let threads = cpu.pool.threads();
    if 1 < threads && count < threads * 4 && count < spans {
        spread(cpu, &inputs, out, spans);
    } else {
        whole(cpu, &inputs, out);
    }
}

/// Each tile by one thread, span after span.
fn whole<T: lanes::Stored>(cpu: &Cpu, inputs: &Inputs<'_, T>, out: RowsMut<'_, f32>) {
    let Cpu { features, scratch, .. } = cpu;
    let queries = most_queries(inputs.heads);
    let tiles = WithOut::new(Tiles::new(inputs.layout, inputs.heads), out, inputs.heads.head_dim);
    parallel::each(&cpu.pool, tiles, |part, (tile, out)| {
        let mut scratch = scratch[part].lock().unwrap_or_else(PoisonError::into_inner);
        let mut scratch = Scratch::new(&mut scratch, queries, inputs.heads.head_dim);
        for span in 0..tile.spans {
            lanes::run(*features, Span { inputs, tile, span, scratch: &mut scratch, features: *features });
            let (total, partial) = scratch.softmaxes(tile.queries());
            lanes::run(*features, span::Merge { total, partial, first: span == 0 });
        }
        scratch.softmaxes(tile.queries()).0.write(out, tile.heads);
    });
}

/// Each span of each tile by one thread, then the merging.
fn spread<T: lanes::Stored>(cpu: &Cpu, inputs: &Inputs<'_, T>, out: RowsMut<'_, f32>, spans: usize) {
    let Cpu { features, scratch, partials, .. } = cpu;
    let Heads { head_dim, .. } = inputs.heads;
    // What this step's tiles need and no more: a partial a span is held, and while decoding a tile is one group.
    let queries = Tiles::new(inputs.layout, inputs.heads).map(|tile| tile.queries()).max().unwrap_or(1);
    let size = Softmax::len(queries, head_dim);
    let mut partials = partials.lock().unwrap_or_else(PoisonError::into_inner);
    if partials.len() < spans * size {
        partials.resize(spans * size, 0.0);
    }
    let items = Tiles::new(inputs.layout, inputs.heads)
        .flat_map(|tile| (0..tile.spans).map(move |span| (tile, span)))
        .zip(partials.chunks_exact_mut(size));
    parallel::each(&cpu.pool, items, |part, ((tile, span), partial)| {
        let mut scratch = scratch[part].lock().unwrap_or_else(PoisonError::into_inner);
        let mut scratch = Scratch::new(&mut scratch, queries, head_dim);
        lanes::run(*features, Span { inputs, tile, span, scratch: &mut scratch, features: *features });
        let (_, from) = scratch.softmaxes(tile.queries());
        Softmax::new(partial, tile.queries(), head_dim).copy(&from);
    });
    let tiles = WithOut::new(Tiles::new(inputs.layout, inputs.heads), out, head_dim);
    let mut rest = partials.as_mut_slice();
    for (tile, out) in tiles {
        let (own, others) = std::mem::take(&mut rest).split_at_mut(tile.spans * size);
        rest = others;
        let (first, own) = own.split_at_mut(size);
        let mut total = Softmax::new(first, tile.queries(), head_dim);
        for partial in own.chunks_exact_mut(size) {
            let partial = Softmax::new(partial, tile.queries(), head_dim);
            lanes::run(*features, span::Merge { total: total.reborrow(), partial, first: false });
        }
        total.write(out, tile.heads);
    }
}

/// Queries of the largest tile there can be.
fn most_queries(heads: Heads) -> usize {
    TILE_QUERIES.max(heads.group_size)
}

/// The tiles of a batch: sequence after sequence, rows first to last, KV heads innermost.
struct Tiles<'a> {
    layout: &'a BatchLayout,
    heads: Heads,
    sequence: usize,
    row: usize,
    kv_head: usize,
}

impl<'a> Tiles<'a> {
    fn new(layout: &'a BatchLayout, heads: Heads) -> Self {
        Self { layout, heads, sequence: 0, row: 0, kv_head: 0 }
    }
}

impl Iterator for Tiles<'_> {
    type Item = Tile;

    fn next(&mut self) -> Option<Tile> {
        let Heads { num_heads, group_size, group_offset, .. } = self.heads;
        let end = loop {
            if self.layout.sequences() <= self.sequence {
                return None;
            }
            let end = super::index(self.layout.query_starts[self.sequence + 1]);
            if self.row < end {
                break end;
            }
            self.sequence += 1;
        };
        // A rank's run of heads may begin or end inside a group.
        let first_head = (self.kv_head * group_size).saturating_sub(group_offset);
        let end_head = ((self.kv_head + 1) * group_size - group_offset).min(num_heads);
        // By the whole group, so that a band of rows is the same for each KV head.
        let rows = (TILE_QUERIES / group_size.min(num_heads)).clamp(1, end - self.row);
        let last_position = super::index(self.layout.positions[self.row + rows - 1]);
        let tile = Tile {
            sequence: self.sequence,
            first_row: self.row,
            rows,
            kv_head: self.kv_head,
            first_head,
            heads: end_head - first_head,
            spans: last_position / SPAN + 1,
        };
        self.kv_head += 1;
        if end_head == num_heads {
            (self.kv_head, self.row) = (0, self.row + rows);
        }
        Some(tile)
    }
}

/// Each tile with its rectangle of the output, `[rows, heads * head_dim]`.
struct WithOut<'a> {
    tiles: Tiles<'a>,
    /// Rows of tiles to come.
    rest: Option<RowsMut<'a, f32>>,
    /// Columns of this band's tiles to come.
    band: Option<RowsMut<'a, f32>>,
    head_dim: usize,
}

impl<'a> WithOut<'a> {
    fn new(tiles: Tiles<'a>, out: RowsMut<'a, f32>, head_dim: usize) -> Self {
        Self { tiles, rest: Some(out), band: None, head_dim }
    }
}

impl<'a> Iterator for WithOut<'a> {
    type Item = (Tile, RowsMut<'a, f32>);

    fn next(&mut self) -> Option<Self::Item> {
        let tile = self.tiles.next()?;
        if tile.first_head == 0 {
            let (band, rest) = self.rest.take()?.split_rows(tile.rows);
            (self.band, self.rest) = (Some(band), Some(rest));
        }
        let (out, band) = self.band.take()?.split_columns(tile.heads * self.head_dim);
        self.band = Some(band);
        Some((tile, out))
    }
}
