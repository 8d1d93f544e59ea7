//! Tensor parallel, pipeline, overlap, chunks, prefix cache, preemption and company in the batch: none of them changes a
//! token.

mod late;
mod rig;

use std::collections::HashSet;
use std::sync::Arc;

use phalanx_scheduler::SchedulerConfig;
use phalanx_scheduler::step::{
    BlockId, Chunk, ChunkTokens, Executor, SamplingParams, SequenceId, Started, Step,
};
use phalanx_worker::LocalExecutor;

use crate::rig::{
    Ask, Pace, VOCAB, alone, cramped, executor, executor_of, mesh, prompt, rank, roomy, run, weights,
};

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

/// [`asks`], and answers that end in the middle: at a token, by an abort, by a fault. With overlap their next token is
/// under way by then.
fn asks_that_end_early(weights: &Arc<phalanx_model::Weights>) -> Vec<Ask> {
    let mut asks = asks();
    let whole = alone(weights, &asks);
    asks[4].stop_token_ids = vec![whole[4][0][7]];
    asks[1].stop_token_ids = vec![whole[1][1][3], whole[1][2][11]];
    asks[5].aborted_at = Some(3);
    asks[2].aborted_at = Some(1);
    let nothing_allowed: Vec<u32> = (0..VOCAB as u32).collect();
    let sampling =
        SamplingParams { suppressed_until_min: nothing_allowed, min_tokens: 2, ..SamplingParams::default() };
    asks.push(Ask { sampling: vec![sampling], ..asks[6].clone() });
    asks
}

#[test]
fn overlap_changes_no_text() {
    let weights = weights();
    let asks = asks_that_end_early(&weights);
    let expected = alone(&weights, &asks);
    assert!(expected.last().unwrap()[0].is_empty(), "no token may be chosen, which is a fault");
    for (tensor_size, pace) in
        [(1, Pace::AtOnce), (1, Pace::Late), (2, Pace::Late), (3, Pace::AtOnce), (3, Pace::Late)]
    {
        for config in [cramped(1), roomy(1)] {
            let config = SchedulerConfig { overlap: true, ..config };
            let mut executor = executor_of(&weights, mesh(tensor_size, 1), &config, pace).unwrap();
            assert_eq!(executor.depth(), 2);
            let (answers, stats) = run(&mut executor, config.clone(), &asks);
            assert_eq!(answers, expected, "tensor parallel {tensor_size}, {pace:?}, {config:?}");
            assert_eq!(0 < stats.preemptions, config.prefix_cache, "the small pool was too small: {stats:?}");
        }
    }
}

#[test]
fn stages_that_compute_late_give_the_same_text() {
    let weights = weights();
    let asks = asks_that_end_early(&weights);
    let expected = alone(&weights, &asks);
    for (tensor_size, num_stages) in [(1, 2), (2, 2)] {
        let config = cramped(num_stages);
        let mut executor = executor_of(&weights, mesh(tensor_size, num_stages), &config, Pace::Late).unwrap();
        let (answers, _) = run(&mut executor, config, &asks);
        assert_eq!(answers, expected, "tensor parallel {tensor_size}, {num_stages} stages");
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
fn a_step_starts_before_the_ids_of_the_one_before_are_known() {
    let weights = weights();
    let config = SchedulerConfig { overlap: true, ..roomy(1) };
    let executor = |pace| executor_of(&weights, mesh(2, 1), &config, pace).unwrap();
    let prompt = || step(0, 0, ChunkTokens::Given(vec![1, 2, 3]));
    let (mut told, mut knowing) = (executor(Pace::AtOnce), executor(Pace::Late));
    let mut expected = vec![carry_out(&mut told, prompt())];
    for number in 1..5 {
        let given = ChunkTokens::Given(vec![*expected.last().unwrap()]);
        expected.push(carry_out(&mut told, step(number, 2 + number as usize, given)));
    }
    knowing.submit(prompt());
    let mut tokens = Vec::new();
    for number in 1..5 {
        knowing.submit(step(number, 2 + number as usize, ChunkTokens::LastSampled));
        tokens.push(knowing.wait().unwrap().sampled[0].outcome.clone().unwrap().token);
    }
    tokens.push(knowing.wait().unwrap().sampled[0].outcome.clone().unwrap().token);
    assert_eq!(tokens, expected);
}

#[test]
fn a_rank_that_panics_is_named_and_the_others_are_released() {
    let weights = weights();
    // Of two stages the first cannot know what the second sampled; the second waits for it.
    let mut lost = executor(&weights, mesh(1, 2), &roomy(2)).unwrap();
    let _first = carry_out(&mut lost, step(0, 0, ChunkTokens::Given(vec![1, 2, 3])));
    lost.submit(step(1, 3, ChunkTokens::LastSampled));
    let error = lost.wait().unwrap_err();
    let text = "rank (stage 0, tensor rank 0): panicked: a rank that does not sample is given its tokens";
    assert_eq!(error.0, text);
    lost.submit(step(2, 4, ChunkTokens::LastSampled));
    assert_eq!(lost.wait(), Err(error), "nothing more will come");
}

#[test]
fn a_rank_that_cannot_be_built_is_named() {
    let weights = weights();
    let build_but = |fault: fn()| {
        let weights = Arc::clone(&weights);
        LocalExecutor::start(mesh(2, 2), 2, move |seat| {
            let place = seat.place;
            if (place.stage, place.tensor_rank) == (1, 0) {
                fault();
                return Err("no memory left".to_owned());
            }
            rank(&weights, seat, &roomy(2), Pace::AtOnce)
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
