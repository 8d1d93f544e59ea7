//! Cases of what joins one step to the next: ids that never came to the host, and graphs of steps before.

use super::paged::{HEADS, paged, pool};
use super::{Bench, Outcome};
use crate::backend::Backend;
use crate::batch::BatchLayout;

pub(super) fn run(bench: &mut Bench<'_>) {
    for tokens in [1, 5, 300] {
        token_ids(bench, tokens);
    }
    replay(bench, [&[(63, 1), (5, 1), (700, 1)], &[(9000, 1), (64, 1), (0, 1)]]);
    replay(bench, [&[(0, 1)], &[(30_000, 1)]]);
    replay(bench, [&[(20_000, 1); 24], &[(100, 1); 24]]);
}

/// Some ids are given, and some are those of the step before.
fn token_ids(bench: &mut Bench<'_>, tokens: usize) {
    let sampled: Vec<i32> = (0..tokens as i32).map(|place| 1000 + place * 7).collect();
    let ids: Vec<i32> = (0..tokens)
        .map(|token| if token % 3 == 0 { token as i32 } else { -1 - bench.random.below(tokens) as i32 })
        .collect();
    let mut told = ids.clone();
    told[tokens - 1] -= bench.missing() as i32;
    let layout = |ids| BatchLayout { ids, block_size: 16, ..BatchLayout::default() };
    let (ours, theirs) =
        (bench.cuda.plan(layout(told), HEADS[0]), bench.reference.plan(layout(ids), HEADS[0]));
    let sampled = bench.integers(&[sampled, vec![-9]].concat());
    let mut out = bench.integers(&vec![-7; tokens]);
    bench.cuda.token_ids(out.cuda.view_mut(), &ours, sampled.cuda.view());
    bench.reference.token_ids(out.reference.view_mut(), &theirs, sampled.reference.view());
    let found = Bench::integers_of(bench.cuda, &out.cuda);
    let expected = Bench::integers_of(bench.reference, &out.reference);
    let wrong = found.iter().zip(&expected).filter(|(found, expected)| found != expected).count();
    let error = wrong as f32 / tokens as f32;
    bench.outcomes.push(Outcome {
        operation: "token_ids",
        case: format!("{tokens} tokens"),
        error,
        limit: 0.0,
    });
}

/// Attention and a gathering, recorded with the first step and started with the second.
fn replay(bench: &mut Bench<'_>, steps: [&[(usize, usize)]; 2]) {
    let (heads, block_size, rows) = (HEADS[0], 64, steps[0].len());
    let [first, mut second] = steps.map(|sequences| paged(bench, sequences, block_size));
    second.layout.sample_rows = (0..rows as i32).rev().collect();
    let first = BatchLayout { sample_rows: (0..rows as i32).collect(), ..first.layout };
    let ends: Vec<usize> = second.layout.slots.iter().map(|slot| *slot as usize).collect();
    let pool = pool(bench, heads, second.num_blocks, block_size, &ends);
    let qkv = bench.activations(rows, heads.qkv_width());
    let width = heads.num_heads * heads.head_dim;
    let dtype = bench.cuda.activation_dtype();
    let (mut attended, mut out) = (bench.poisoned(dtype, rows, width), bench.poisoned(dtype, rows, width));
    let mut told = second.layout.clone();
    if bench.missing() == 1 {
        told.block_tables[0] = (told.block_tables[0] + 1) % second.num_blocks as i32;
    }
    let cuda = bench.cuda;
    let mut work = |plan: &_| {
        cuda.attention(attended.cuda.view_mut(), qkv.cuda.view(), &pool.cuda, plan, heads);
        cuda.gather_sample_rows(out.cuda.view_mut(), attended.cuda.view(), plan);
    };
    // Its contexts are those of the second step's blocks, or zeros: it is only recorded, never carried out.
    let plan = cuda.plan(first, heads);
    let graph = cuda.record(&plan, &mut || work(&plan));
    let plan = cuda.plan(told, heads);
    let replayed = graph.is_ok_and(|graph| graph.is_some_and(|graph| cuda.replay(&graph, &plan)));
    let plan = bench.reference.plan(second.layout, heads);
    bench.reference.attention(
        attended.reference.view_mut(),
        qkv.reference.view(),
        &pool.reference,
        &plan,
        heads,
    );
    bench.reference.gather_sample_rows(out.reference.view_mut(), attended.reference.view(), &plan);
    let longest = steps[1].iter().map(|(computed, _)| computed + 1).max().unwrap_or(0);
    let case = format!("{rows} sequences, ctx {longest}, replayed: {replayed}");
    bench.compare("graph", case, &out, bench.rounding());
}
