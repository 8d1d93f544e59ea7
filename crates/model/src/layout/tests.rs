//! The predictor against everything measured, and what must hold of any prediction.

use phalanx_device::{DType, Format};

use super::choose::{Objective, choose};
use super::*;
use crate::catalogue;
use crate::memory::Limits;
use crate::weights::WeightFormats;

fn config(context: usize) -> ModelConfig {
    let models = catalogue::qwen2_5();
    let (_, config) = models.iter().find(|(name, _)| name.contains("-7B")).unwrap();
    config.with_context(Some(context)).unwrap().0
}

fn request(context: usize) -> MemoryRequest<'static> {
    MemoryRequest {
        formats: WeightFormats::Uniform(Format::BF16),
        activation_dtype: DType::BF16,
        kv_dtype: DType::BF16,
        block_size: 64,
        limits: Limits { max_tokens: 8192, max_samples: 256, max_model_len: context },
    }
}

fn machine(gpus: &str) -> Machine {
    let (count, card) = cards::parse_gpus(gpus).unwrap();
    Machine::listed(count, card)
}

/// 92 % of a card, less a gigabyte.
fn budget(machine: &Machine) -> usize {
    machine.card.memory_bytes / 100 * 92 - (1 << 30)
}

fn compared(gpus: &str, context: usize) -> Vec<Prediction> {
    let (machine, config, request) = (machine(gpus), config(context), request(context));
    let budget_bytes = budget(&machine);
    compare(&machine, &Subject { config: &config, request: &request, budget_bytes, scratch_blocks: 1 })
}

fn replica(tensor_size: usize, num_stages: usize) -> ReplicaCost {
    let (config, request) = (config(131_072), request(131_072));
    let plans = memory::plan_layout(&config, tensor_size, num_stages, &request).unwrap();
    let rank = |plan: &MemoryPlan| {
        let shards = Shards::new(&config, plan.place, &request.formats).unwrap();
        RankCost::new(&config, &shards, plan)
    };
    ReplicaCost::new(&config, &plans.iter().map(rank).collect::<Vec<_>>(), tensor_size)
}

/// Tensor ranks, sequences at once, tokens a second: two H200 on 2026-11-23, contexts of 32 to 96 tokens.
const MEASURED_DECODING: [(usize, usize, f64); 8] = [
    (1, 1, 257.0),
    (1, 8, 1875.0),
    (1, 64, 13_112.0),
    (1, 256, 32_228.0),
    (2, 1, 388.0),
    (2, 8, 2763.0),
    (2, 64, 18_713.0),
    (2, 256, 44_954.0),
];

/// Tensor ranks, tokens of the prompt, milliseconds to the first token: the same day, `bench matrix`.
const MEASURED_FIRST_TOKENS: [(usize, usize, f64); 9] = [
    (1, 512, 10.8),
    (1, 4096, 85.4),
    (1, 16_384, 437.1),
    (1, 65_536, 2973.6),
    (1, 130_560, 9101.5),
    (2, 4096, 52.2),
    (2, 16_384, 246.0),
    (2, 65_536, 1631.0),
    (2, 130_560, 4890.0),
];

/// Tokens a second of 512 requests of 1,024 tokens in and 256 out on one H200: the same day, `bench throughput`.
const MEASURED_CROWD: f64 = 38_264.0;

#[test]
fn every_measured_row_is_predicted_within_a_fifth() {
    let machine = machine("2xH200");
    let mut wrong = Vec::new();
    let mut check = |what: String, predicted: f64, measured: f64| {
        if !(0.8..1.25).contains(&(predicted / measured)) {
            wrong.push(format!("{what}: {predicted:.2} ms predicted, {measured:.2} measured"));
        }
    };
    for (tensor_size, batch, rate) in MEASURED_DECODING {
        let predicted = replica(tensor_size, 1).decode_seconds(&machine, batch as f64, 64.0);
        check(format!("TP {tensor_size}, {batch} at once"), predicted * 1e3, batch as f64 / rate * 1e3);
    }
    for (tensor_size, prompt_len, ms) in MEASURED_FIRST_TOKENS {
        let predicted = replica(tensor_size, 1).first_token_seconds(&machine, prompt_len, 8192);
        check(format!("TP {tensor_size}, first token after {prompt_len}"), predicted * 1e3, ms);
    }
    let crowd = replica(1, 1).traffic(&machine, 256.0, (1024.0, 256.0), 8192.0);
    check("TP 1, a crowd".to_owned(), 1e9 / crowd, 1e9 / MEASURED_CROWD);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn candidates_are_all_products_up_to_the_gpus() {
    for (num_gpus, count) in [(1, 1), (2, 4), (3, 7), (4, 13), (8, 38)] {
        let layouts = Layout::candidates(num_gpus);
        assert_eq!(layouts.len(), count, "{num_gpus}");
        assert!(layouts.iter().all(|layout| layout.num_gpus() <= num_gpus));
    }
    let uneven = Layout { replicas: 1, num_stages: 1, tensor_size: 3 };
    assert!(Layout::candidates(4).contains(&uneven));
}

fn figures(predictions: &[Prediction], layout: (usize, usize, usize)) -> Figures {
    let (replicas, num_stages, tensor_size) = layout;
    let layout = Layout { replicas, num_stages, tensor_size };
    predictions.iter().find(|prediction| prediction.layout == layout).unwrap().outcome.clone().unwrap()
}

#[test]
fn parallel_sizes_do_what_they_are_for() {
    let all = compared("4xH200", 131_072);
    let one = figures(&all, (1, 1, 1));
    let (dp, pp, tp) = (figures(&all, (4, 1, 1)), figures(&all, (1, 4, 1)), figures(&all, (1, 1, 4)));
    // Replicas: four times the tokens, no request sooner.
    assert!((dp.tokens_per_second / one.tokens_per_second - 4.0).abs() < 1e-9);
    assert_eq!(dp.first_token_seconds, one.first_token_seconds);
    assert_eq!(dp.cached_tokens, one.cached_tokens);
    // Ranks of a layer: each request sooner, all of them together at less than replicas.
    assert!(tp.single_seconds < one.single_seconds / 1.5);
    assert!(tp.tokens_per_second < dp.tokens_per_second);
    // Stages: a short prompt is no sooner, a long one is; a single answer is no faster.
    let first = |figures: &Figures, index: usize| figures.first_token_seconds[index].unwrap();
    assert!(first(&one, 0) <= first(&pp, 0));
    assert!(first(&pp, 3) < first(&one, 3) / 2.0);
    assert!(one.step_seconds[0] <= pp.step_seconds[0]);
    assert!(pp.step_seconds[3].unwrap() < one.step_seconds[3].unwrap());
    // Both share the weights out and cache more.
    assert!(pp.weights_bytes < one.weights_bytes / 2 && tp.weights_bytes < one.weights_bytes / 3);
    assert!(one.cached_tokens * 4 < tp.cached_tokens);
}

#[test]
fn uneven_ranks_lie_between_even_ones() {
    let all = compared("4xH200", 32_768);
    let single = |tensor_size| figures(&all, (1, 1, tensor_size)).single_seconds;
    assert!(single(4) < single(3) && single(3) < single(2));
}

#[test]
fn what_cannot_be_says_why() {
    let all = compared("1x3090", 32_768);
    assert!(all[0].outcome.is_ok(), "7B in 16 bits just fits into 24 GiB");
    let small =
        Machine { card: Card { memory_bytes: 12 << 30, ..machine("1x3090").card }, ..machine("2x3090") };
    let (config, request) = (config(32_768), request(32_768));
    let subject =
        Subject { config: &config, request: &request, budget_bytes: budget(&small), scratch_blocks: 1 };
    let all = compare(&small, &subject);
    let reason = all[0].outcome.clone().unwrap_err().to_string();
    assert!(reason.contains("a GPU needs 1") && reason.contains("may use 10.0"), "{reason}");
    assert!(figures(&all, (1, 1, 2)).weights_bytes < 9 << 30);
    let choice = choose(&all, Objective::Throughput, 32_768).unwrap();
    assert!(choice.layout.replicas == 1 && choice.layout.num_gpus() == 2, "{}", choice.reason);
    let many = Layout { replicas: 1, num_stages: 1, tensor_size: 9 };
    let reason = predict(&machine("9xH200"), &subject, many).unwrap_err().to_string();
    assert!(reason.contains("more than 8"), "{reason}");
    let of_few_heads = ModelConfig { num_heads: 4, num_kv_heads: 4, ..config.clone() };
    let few = Layout { replicas: 1, num_stages: 1, tensor_size: 5 };
    let reason = predict(&small, &Subject { config: &of_few_heads, ..subject }, few).unwrap_err();
    assert!(matches!(reason, Misfit::Impossible(_)), "{reason}");
    let reason = reason.to_string();
    assert!(reason.contains("--tensor-parallel-size 5"), "{reason}");
    let tiny = Subject { budget_bytes: 1 << 30, ..subject };
    let reason = choose(&compare(&small, &tiny), Objective::Latency, 32_768).unwrap_err();
    // Two ranks need half of what two replicas do: that is how near it came.
    assert!(reason.contains("no layout fits") && reason.contains("even as 1 x 1 x 2"), "{reason}");
}

#[test]
fn nothing_is_told_of_contexts_that_are_not_allowed() {
    let all = compared("1xH200", 256);
    assert_eq!(figures(&all, (1, 1, 1)).step_seconds, [None; BATCH_SIZES.len()]);
    assert!(figures(&compared("1xH200", 512), (1, 1, 1)).step_seconds[0].is_some());
}

/// From 20 replicas on one more is less than a prediction can tell: it is taken all the same.
#[test]
fn no_gpu_is_left_idle_where_replicas_are_wanted() {
    let choice = choose(&compared("24xH200", 32_768), Objective::Throughput, 32_768).unwrap();
    assert_eq!(choice.layout.to_string(), "24 x 1 x 1", "{}", choice.reason);
}

#[test]
fn the_objective_decides_and_the_reason_says_what_the_other_would_give() {
    let all = compared("2xH200", 32_768);
    let layout = |objective| {
        let choice = choose(&all, objective, 32_768).unwrap();
        assert_eq!(all[choice.index].layout, choice.layout);
        (choice.layout.to_string(), choice.reason)
    };
    let (throughput, reason) = layout(Objective::Throughput);
    assert_eq!(throughput, "2 x 1 x 1");
    assert!(reason.contains("1 x 1 x 2 answers one request") && reason.contains("--objective latency"));
    let (latency, reason) = layout(Objective::Latency);
    assert_eq!(latency, "1 x 1 x 2");
    assert!(reason.contains("--objective throughput"), "{reason}");
}

/// A 24 GiB card holds a 7B model or 128K of context, not both: whatever is wanted, ranks must share.
#[test]
fn the_context_comes_before_the_objective() {
    let all = compared("4x4090D", 131_072);
    for objective in [Objective::Latency, Objective::Throughput] {
        let choice = choose(&all, objective, 131_072).unwrap();
        let chosen = all[choice.index].outcome.clone().unwrap();
        assert!(131_072 <= chosen.cached_tokens, "{}", choice.reason);
        assert!(choice.layout.tensor_size * choice.layout.num_stages > 1);
    }
    // None of one GPU's layouts does: then the one that holds the most, and the reason says so.
    let choice = choose(&compared("1x4090D", 131_072), Objective::Latency, 131_072).unwrap();
    assert!(choice.reason.starts_with("none holds a sequence of 131072 tokens"), "{}", choice.reason);
}

#[test]
fn the_table_has_a_line_for_each_candidate_and_marks_one() {
    let predictions = compared("2x4090D", 32_768);
    let choice = choose(&predictions, Objective::Throughput, 32_768);
    let lines = predictions.len();
    let comparison = table::Comparison { predictions, objective: Objective::Throughput, choice };
    // The best first, even where one about as good was taken.
    let leading = comparison.leading(2);
    assert_eq!((leading.len(), &leading[0]), (3, &comparison.choice.as_ref().unwrap().reason));
    assert!(leading[1].starts_with("1 x 2 x 1 (dp x pp x tp)"), "{leading:?}");
    let table = comparison.to_string();
    assert_eq!(table.lines().count(), lines + 3, "{table}");
    assert_eq!(table.lines().filter(|line| line.starts_with("> ")).count(), 1, "{table}");
    assert!(table.lines().all(|line| line.chars().count() <= 200), "{table}");
}
