//! Cases of the operations on paged keys and values: rotating and storing, attention, copying blocks.

use super::{Bench, Twin, rounded};
use crate::backend::{Backend, Heads, KvLayer};
use crate::batch::BatchLayout;
use crate::dtype::DType;
use crate::tensor::Tensor;

/// Qwen2.5-7B on one rank, and what its ranks see at other splits; then other groups and the small head.
pub(super) const HEADS: [Heads; 8] = [
    Heads { num_heads: 28, num_kv_heads: 4, head_dim: 128, group_size: 7, group_offset: 0 },
    Heads { num_heads: 14, num_kv_heads: 2, head_dim: 128, group_size: 7, group_offset: 0 },
    Heads { num_heads: 9, num_kv_heads: 2, head_dim: 128, group_size: 7, group_offset: 3 },
    Heads { num_heads: 3, num_kv_heads: 1, head_dim: 128, group_size: 7, group_offset: 4 },
    Heads { num_heads: 14, num_kv_heads: 2, head_dim: 64, group_size: 7, group_offset: 0 },
    Heads { num_heads: 16, num_kv_heads: 2, head_dim: 64, group_size: 8, group_offset: 0 },
    Heads { num_heads: 5, num_kv_heads: 5, head_dim: 128, group_size: 1, group_offset: 0 },
    Heads { num_heads: 40, num_kv_heads: 2, head_dim: 128, group_size: 20, group_offset: 0 },
];

pub(super) fn run(bench: &mut Bench<'_>) {
    for (index, heads) in HEADS.into_iter().enumerate() {
        let block_size = [16, 32, 64, 128][index % 4];
        rope_and_store(bench, heads, &[(0, 1), (37, 5), (200, 64)], block_size);
        attention(bench, heads, &[(0, 1)], block_size);
        attention(bench, heads, &[(0, 33)], block_size);
        attention(bench, heads, &[(63, 1), (64, 1), (1000, 1), (16, 3), (5, 17), (130, 200)], block_size);
    }
    for block_size in [16, 64, 128] {
        // One long context, split over the whole device.
        attention(bench, HEADS[0], &[(20_000, 1)], block_size);
        attention(bench, HEADS[0], &[(9_999, 8)], block_size);
        // A chunk of a prompt with context before it, beside decoding sequences.
        attention(bench, HEADS[0], &[(1, 1), (3000, 301), (777, 1), (2, 2), (5000, 1)], block_size);
    }
    attention(bench, HEADS[0], &[(0, 1025)], 64);
    let decode: Vec<(usize, usize)> = (0..70).map(|i| (i * 53 % 900, 1)).collect();
    attention(bench, HEADS[0], &decode, 64);
    attention(bench, HEADS[1], &decode, 16);
    copy_blocks(bench);
}

/// Sequences of (computed before, tokens in this step), in blocks dealt out in random order.
pub(super) struct Paged {
    pub(super) layout: BatchLayout,
    pub(super) num_blocks: usize,
}

pub(super) fn paged(bench: &mut Bench<'_>, sequences: &[(usize, usize)], block_size: usize) -> Paged {
    let lengths: Vec<usize> = sequences.iter().map(|(computed, tokens)| computed + tokens).collect();
    let blocks_per_row = lengths.iter().map(|length| length.div_ceil(block_size)).max().unwrap_or(0) + 1;
    let mut layout =
        BatchLayout { query_starts: vec![0], block_size, blocks_per_row, ..BatchLayout::default() };
    let needed: usize = lengths.iter().map(|length| length.div_ceil(block_size)).sum();
    let num_blocks = needed + 3;
    let mut free: Vec<i32> = (0..num_blocks as i32).collect();
    for i in (1..free.len()).rev() {
        free.swap(i, bench.random.below(i + 1));
    }
    for (computed, tokens) in sequences {
        let length = computed + tokens;
        let mut table = vec![0; blocks_per_row];
        for block in &mut table[..length.div_ceil(block_size)] {
            *block = free.pop().expect("blocks were counted");
        }
        for position in *computed..length {
            layout.positions.push(position as i32);
            layout
                .slots
                .push(table[position / block_size] * block_size as i32 + (position % block_size) as i32);
        }
        layout.query_starts.push(layout.positions.len() as i32);
        layout.context_lens.push(length as i32);
        layout.block_tables.extend(table);
    }
    Paged { layout, num_blocks }
}

/// A pool of random keys and values on both devices.
pub(super) struct Pool {
    pub(super) cuda: KvLayer,
    pub(super) reference: KvLayer,
}

pub(super) fn pool(
    bench: &mut Bench<'_>,
    heads: Heads,
    num_blocks: usize,
    block_size: usize,
    loud: &[usize],
) -> Pool {
    let dtype = bench.cuda.activation_dtype();
    let rows = num_blocks * heads.num_kv_heads * block_size;
    let keys = bench.activations(rows, heads.head_dim);
    let mut values: Vec<f32> =
        (0..rows * heads.head_dim).map(|_| rounded(dtype, bench.random.normal())).collect();
    // So large that a context that ends one key early shows, however long it is.
    for slot in loud {
        let (block, offset) = (slot / block_size, slot % block_size);
        for head in 0..heads.num_kv_heads {
            let row = (block * heads.num_kv_heads + head) * block_size + offset;
            values[row * heads.head_dim..][..heads.head_dim].fill(32.0);
        }
    }
    let values = bench.twin(dtype, rows, heads.head_dim, &values);
    let layer = |keys: Tensor, values: Tensor| KvLayer { keys, values, num_blocks, block_size };
    Pool { cuda: layer(keys.cuda, values.cuda), reference: layer(keys.reference, values.reference) }
}

fn describe(heads: Heads, sequences: &[(usize, usize)], block_size: usize) -> String {
    let tokens: usize = sequences.iter().map(|(_, tokens)| tokens).sum();
    let longest = sequences.iter().map(|(computed, tokens)| computed + tokens).max().unwrap_or(0);
    format!(
        "{}:{}+{} x {}, {} seqs, {tokens} tokens, ctx {longest}, block {block_size}",
        heads.num_heads,
        heads.num_kv_heads,
        heads.group_offset,
        heads.head_dim,
        sequences.len()
    )
}

fn rope_and_store(bench: &mut Bench<'_>, heads: Heads, sequences: &[(usize, usize)], block_size: usize) {
    let Paged { layout, num_blocks } = paged(bench, sequences, block_size);
    let mut pool = pool(bench, heads, num_blocks, block_size, &[]);
    let half = heads.head_dim / 2;
    let angle = |position: usize, i: usize| position as f64 / 1e6_f64.powf(i as f64 / half as f64);
    let rope: Vec<f32> = (0..300)
        .flat_map(|position| {
            let cosines = (0..half).map(move |i| angle(position, i).cos() as f32);
            cosines.chain((0..half).map(move |i| angle(position, i).sin() as f32))
        })
        .collect();
    let rope = bench.twin(DType::F32, 300, heads.head_dim, &rope);
    let mut qkv = bench.activations(layout.tokens(), heads.qkv_width());
    let mut told = layout.clone();
    for slot in &mut told.slots[..bench.missing()] {
        *slot += 1;
    }
    for position in &mut told.positions[..bench.missing()] {
        *position += 1;
    }
    let (ours, theirs) = (bench.cuda.plan(told, heads), bench.reference.plan(layout, heads));
    bench.cuda.rope_and_store(qkv.cuda.view_mut(), rope.cuda.view(), &mut pool.cuda, &ours, heads);
    let qkv_there = qkv.reference.view_mut();
    bench.reference.rope_and_store(qkv_there, rope.reference.view(), &mut pool.reference, &theirs, heads);
    let case = describe(heads, sequences, block_size);
    bench.compare("rope_and_store", format!("{case}: q, k"), &qkv, bench.rounding());
    compare_pool(bench, "rope_and_store", &case, pool);
}

fn compare_pool(bench: &mut Bench<'_>, operation: &'static str, case: &str, pool: Pool) {
    let keys = Twin { cuda: pool.cuda.keys, reference: pool.reference.keys };
    bench.compare(operation, format!("{case}: keys"), &keys, bench.rounding());
    let values = Twin { cuda: pool.cuda.values, reference: pool.reference.values };
    bench.compare(operation, format!("{case}: values"), &values, bench.rounding());
}

fn attention(bench: &mut Bench<'_>, heads: Heads, sequences: &[(usize, usize)], block_size: usize) {
    let Paged { layout, num_blocks } = paged(bench, sequences, block_size);
    let ends = layout.query_starts[1..].iter().map(|end| layout.slots[*end as usize - 1] as usize);
    let pool = pool(bench, heads, num_blocks, block_size, &ends.collect::<Vec<_>>());
    let tokens = layout.tokens();
    let qkv = bench.activations(tokens, heads.qkv_width());
    let mut out = bench.poisoned(bench.cuda.activation_dtype(), tokens, heads.num_heads * heads.head_dim);
    let mut told = layout.clone();
    if bench.missing() == 1 {
        // A context cannot be shorter than the step's tokens: where there is nothing before them, a block is off.
        told.context_lens.iter_mut().zip(sequences).for_each(|(length, (computed, _))| {
            *length -= (*computed != 0) as i32;
        });
        told.block_tables[0] = (told.block_tables[0] + 1) % num_blocks as i32;
    }
    let (ours, theirs) = (bench.cuda.plan(told, heads), bench.reference.plan(layout, heads));
    bench.cuda.attention(out.cuda.view_mut(), qkv.cuda.view(), &pool.cuda, &ours, heads);
    bench.reference.attention(
        out.reference.view_mut(),
        qkv.reference.view(),
        &pool.reference,
        &theirs,
        heads,
    );
    bench.compare("attention", describe(heads, sequences, block_size), &out, bench.rounding());
}

fn copy_blocks(bench: &mut Bench<'_>) {
    let mut pool = pool(bench, HEADS[0], 9, 16, &[]);
    let copies = [(0, 5), (3, 8), (5, 1)];
    let told = copies.len() - bench.missing();
    bench.cuda.copy_blocks(&mut pool.cuda, &copies[..told]);
    bench.reference.copy_blocks(&mut pool.reference, &copies);
    compare_pool(bench, "copy_blocks", "3 of 9", pool);
}
