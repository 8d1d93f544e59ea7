//! Cases of what joins one step to the next: ids that never came to the host.

use super::paged::HEADS;
use super::{Bench, Outcome};
use crate::backend::Backend;
use crate::batch::BatchLayout;

pub(super) fn run(bench: &mut Bench<'_>) {
    for tokens in [1, 5, 300] {
        token_ids(bench, tokens);
    }
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
