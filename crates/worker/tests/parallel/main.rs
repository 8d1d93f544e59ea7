//! Tensor parallel, pipeline, chunks, prefix cache, preemption and company in the batch: none of them changes a token.

mod rig;

use std::collections::HashSet;
use std::sync::Arc;

use phalanx_scheduler::step::{
    BlockId, Chunk, ChunkTokens, Executor, SamplingParams, SequenceId, Started, Step,
};
use phalanx_worker::LocalExecutor;

use crate::rig::{Ask, VOCAB, alone, cramped, executor, mesh, prompt, rank, roomy, run, weights};

/// Greedy and sampled answers to prompts of 1 to 60 tokens, some of which begin alike.
fn asks() -> Vec<Ask> {
    let mut random = fastrand::Rng::with_seed(7);
    let beginning = prompt(&mut random, 24);
    let mut asks: Vec<Ask> = [1, 5, 60, 33]
        .map(|len| Ask::greedy(&prompt(&mut random, len), 12))
        .into_iter()
        .chain(
            [3, 10, 20].map(|len| Ask::greedy(&[beginning.clone(), prompt(&mut random, len)].concat(), 20)),
        )
        .collect();
    let sampled = |seed: u64| SamplingParams { seed, top_p: 0.95, ..SamplingParams::default() };
    let penalised = SamplingParams { repetition_penalty: 1.3, frequency_penalty: 0.5, ..sampled(9) };
    let several = vec![sampled(1), sampled(2), penalised];
    asks.insert(1, Ask { sampling: several, ..Ask::greedy(&prompt(&mut random, 30), 20) });
    asks.push(asks[5].clone());
    asks
}

#[test]
fn every_layout_gives_the_same_text() {
    let weights = weights();
    let asks = asks();
    let expected = alone(&weights, &asks);
    let distinct: HashSet<_> = expected.iter().flatten().flatten().collect();
    assert!(20 < distinct.len(), "the model says more than one thing: {distinct:?}");
    let layouts = [(1, 1), (2, 1), (3, 1), (4, 1), (7, 1), (8, 1), (1, 2), (1, 4), (2, 2)];
    for (tensor_size, num_stages) in layouts {
        let config = cramped(num_stages);
        let mut executor = executor(&weights, mesh(tensor_size, num_stages), &config).unwrap();
        assert_eq!(executor.depth(), num_stages);
        let (answers, stats) = run(&mut executor, config, &asks);
        assert_eq!(answers, expected, "tensor parallel {tensor_size}, {num_stages} stages");
        assert!(0 < stats.preemptions, "the pool was too small for all: {stats:?}");
        assert!(0 < stats.prefix_hits, "prompts began alike: {stats:?}");
        assert!(0 < stats.copied_blocks, "answers to one prompt shared a block: {stats:?}");
    }
}

#[test]
fn a_seed_gives_the_same_text_alone_and_in_company() {
    let weights = weights();
    let mut random = fastrand::Rng::with_seed(16);
    let sampling = |seed| SamplingParams { seed, top_k: 50, min_p: 0.01, ..SamplingParams::default() };
    let ask = |seed: u64| {
        let len = 8 + 2 * seed as usize;
        Ask { sampling: vec![sampling(seed)], ..Ask::greedy(&prompt(&mut random, len), 24) }
    };
    let asks: Vec<Ask> = (0..16).map(ask).collect();
    let mut executor = executor(&weights, mesh(1, 1), &roomy(1)).unwrap();
    let (answers, stats) = run(&mut executor, roomy(1), &asks);
    assert_eq!(stats.preemptions, 0);
    assert_eq!(answers, alone(&weights, &asks));
    let texts: HashSet<_> = answers.iter().flatten().collect();
    assert_eq!(texts.len(), 16, "different seeds and prompts, different texts");
    assert!(
        answers.iter().flatten().flatten().all(|token| (*token as usize) < VOCAB),
        "padding is never sampled"
    );
}

/// A step of one chunk, which samples.
fn step(number: u64, start: usize, tokens: ChunkTokens) -> Arc<Step> {
    let sequence = SequenceId(0);
    let started =
        Started { sequence, prompt: [1, 2, 3].into(), sampling: Arc::new(SamplingParams::default()) };
    let started = if number == 0 { vec![started] } else { Vec::new() };
    let chunk = Chunk { sequence, start, tokens, blocks: vec![BlockId(5), BlockId(2)], sample: true };
    Arc::new(Step { number, started, chunks: vec![chunk], ..Step::default() })
}

fn carry_out(executor: &mut LocalExecutor, step: Arc<Step>) -> u32 {
    executor.submit(step);
    let output = executor.wait().expect("no rank is lost");
    output.sampled[0].outcome.clone().expect("logits are finite").token
}

#[test]
fn a_rank_alone_knows_the_token_it_sampled() {
    let weights = weights();
    let executor = || executor(&weights, mesh(1, 1), &roomy(1)).unwrap();
    let prompt = || step(0, 0, ChunkTokens::Given(vec![1, 2, 3]));
    let (mut told, mut knowing) = (executor(), executor());
    let first = carry_out(&mut told, prompt());
    assert_eq!(carry_out(&mut knowing, prompt()), first);
    let second = carry_out(&mut told, step(1, 3, ChunkTokens::Given(vec![first])));
    assert_eq!(carry_out(&mut knowing, step(1, 3, ChunkTokens::LastSampled)), second);
}

#[test]
fn a_rank_that_panics_is_named_and_the_others_are_released() {
    let weights = weights();
    // Of two stages the first cannot know what the second sampled; the second waits for it.
    let mut lost = executor(&weights, mesh(1, 2), &roomy(2)).unwrap();
    let _first = carry_out(&mut lost, step(0, 0, ChunkTokens::Given(vec![1, 2, 3])));
    lost.submit(step(1, 3, ChunkTokens::LastSampled));
    let error = lost.wait().unwrap_err();
    let text =
        "rank (stage 0, tensor rank 0): panicked: a first stage that is not the last is given its tokens";
    assert_eq!(error.0, text);
    lost.submit(step(2, 4, ChunkTokens::LastSampled));
    assert_eq!(lost.wait(), Err(error), "nothing more will come");
}

#[test]
fn a_rank_that_cannot_be_built_is_named() {
    let weights = weights();
    let build_but = |fault: fn()| {
        let weights = Arc::clone(&weights);
        LocalExecutor::start(mesh(2, 2), move |seat| {
            let place = seat.place;
            if (place.stage, place.tensor_rank) == (1, 0) {
                fault();
                return Err("no memory left".to_owned());
            }
            rank(&weights, seat, 16, 4)
        })
    };
    let named = "rank (stage 1, tensor rank 0): ";
    let error = build_but(|| {}).unwrap_err();
    assert_eq!(error.0, format!("{named}no memory left"));
    let error = build_but(|| panic!("out of luck")).unwrap_err();
    assert_eq!(error.0, format!("{named}panicked: out of luck"));
}

#[test]
fn a_bias_and_a_suppressed_token_reach_the_logits() {
    let weights = weights();
    let sampling = SamplingParams {
        temperature: 0.0,
        logit_bias: vec![(5, 100.0)],
        suppressed_until_min: vec![5],
        min_tokens: 3,
        ..SamplingParams::default()
    };
    let ask = Ask { sampling: vec![sampling], ..Ask::greedy(&[1, 2, 3], 6) };
    let mut executor = executor(&weights, mesh(2, 1), &roomy(1)).unwrap();
    let (answers, _) = run(&mut executor, roomy(1), &[ask]);
    let chosen: Vec<bool> = answers[0][0].iter().map(|token| *token == 5).collect();
    assert_eq!(chosen, [false, false, false, true, true, true]);
}
