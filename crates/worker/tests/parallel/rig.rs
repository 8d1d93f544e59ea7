//! A tiny Qwen2 with 28 query and 4 KV heads, on as many ranks as wanted, driven by a real scheduler.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use phalanx_device::cpu::Cpu;
use phalanx_device::{Backend, DType, Device};
use phalanx_model::{Limits, LoadOptions, Model, ModelConfig, WeightType, Weights};
use phalanx_scheduler::step::{ChunkTokens, Executor, SamplingParams, SequenceId, TokenId};
use phalanx_scheduler::{Scheduler, SchedulerConfig, Stats, Submission};
use phalanx_worker::{KvCacheSpec, LocalExecutor, Mesh, Rank, RankOptions, Seat, StartError};

use crate::late::Late;

/// Tokens that exist; the model's matrices have twenty rows more.
pub(crate) const VOCAB: usize = 300;
const MAX_MODEL_LEN: usize = 96;

const CONFIG: &str = r#"{
    "architectures": ["Qwen2ForCausalLM"], "torch_dtype": "float32", "hidden_act": "silu",
    "num_hidden_layers": 4, "hidden_size": 64, "num_attention_heads": 28, "num_key_value_heads": 4, "head_dim": 16,
    "intermediate_size": 256, "vocab_size": 320, "tie_word_embeddings": true, "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0, "max_position_embeddings": 96
}"#;

pub(crate) fn mesh(tensor_size: usize, num_stages: usize) -> Mesh {
    // Far longer than any test: whoever waits for it hangs, and is noticed.
    Mesh { tensor_size, num_stages, deadline: Duration::from_secs(3600) }
}

pub(crate) fn weights() -> Arc<Weights> {
    let config =
        ModelConfig::from_json(Path::new("config.json"), CONFIG).expect("the configuration is sound");
    Arc::new(Weights::dummy(config, 28))
}

/// How a rank computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// Operations are done when they return.
    AtOnce,
    /// As a GPU: steps are under way until they are waited for, and filled up to some size.
    Late,
}

/// Builds one rank with the pool and the overlap of `config`.
pub(crate) fn rank(
    weights: &Weights,
    seat: Seat,
    config: &SchedulerConfig,
    pace: Pace,
) -> Result<Rank, String> {
    let cpu = Cpu::new(1).map_err(|error| error.to_string())?;
    let backend: Box<dyn Backend> = match pace {
        Pace::AtOnce => Box::new(cpu),
        Pace::Late => Box::new(Late(cpu)),
    };
    let device = Device::new(backend, seat.tensor_group, seat.stage_group);
    let limits = Limits { max_tokens: 128, max_samples: 32, max_model_len: MAX_MODEL_LEN };
    let options = LoadOptions { place: seat.place, limits, weight_type: WeightType::AsStored };
    let model = Model::load(&device, weights, weights.config(), &options, &|_| {});
    let model = model.map_err(|error| error.to_string())?;
    let &SchedulerConfig { num_blocks, block_size, overlap, .. } = config;
    let kv_cache = KvCacheSpec { dtype: DType::F32, num_blocks, block_size };
    let graphs = pace == Pace::Late;
    let options = RankOptions { kv_cache, limits, vocab_size: VOCAB, overlap, graphs };
    Rank::new(device, model, options).map_err(|error| error.to_string())
}

pub(crate) fn executor(
    weights: &Arc<Weights>,
    mesh: Mesh,
    config: &SchedulerConfig,
) -> Result<LocalExecutor, StartError> {
    executor_of(weights, mesh, config, Pace::AtOnce)
}

pub(crate) fn executor_of(
    weights: &Arc<Weights>,
    mesh: Mesh,
    config: &SchedulerConfig,
    pace: Pace,
) -> Result<LocalExecutor, StartError> {
    let (weights, config) = (Arc::clone(weights), config.clone());
    let depth = if config.overlap { 2 } else { mesh.num_stages };
    let mut executor = LocalExecutor::start(mesh, depth, move |seat| rank(&weights, seat, &config, pace))?;
    executor.start_recording();
    Ok(executor)
}

/// Room for everybody, nothing shared.
pub(crate) fn roomy(num_stages: usize) -> SchedulerConfig {
    SchedulerConfig {
        num_blocks: 512,
        block_size: 4,
        max_batched_tokens: 128,
        max_sequences: 32,
        max_model_len: MAX_MODEL_LEN,
        prefix_cache: false,
        overlap: false,
        stages: num_stages,
        hash_key: [1; 32],
    }
}

/// Prompts in chunks of at most 20 tokens, a pool of one longest sequence, shared prefixes.
pub(crate) fn cramped(num_stages: usize) -> SchedulerConfig {
    SchedulerConfig {
        num_blocks: 24,
        max_batched_tokens: 20,
        max_sequences: 10,
        prefix_cache: true,
        ..roomy(num_stages)
    }
}

/// A prompt and how each of its answers is sampled.
#[derive(Clone)]
pub(crate) struct Ask {
    pub(crate) prompt: Vec<TokenId>,
    pub(crate) sampling: Vec<SamplingParams>,
    pub(crate) max_new_tokens: usize,
    pub(crate) stop_token_ids: Vec<TokenId>,
    /// Each of its sequences is aborted when it has so many tokens.
    pub(crate) aborted_at: Option<usize>,
}

impl Ask {
    pub(crate) fn greedy(prompt: &[TokenId], max_new_tokens: usize) -> Self {
        let sampling = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
        Self {
            prompt: prompt.to_vec(),
            sampling: vec![sampling],
            max_new_tokens,
            stop_token_ids: Vec::new(),
            aborted_at: None,
        }
    }
}

pub(crate) fn prompt(random: &mut fastrand::Rng, len: usize) -> Vec<TokenId> {
    (0..len).map(|_| random.u32(..VOCAB as u32)).collect()
}

/// Every answer of every ask, in order, and what the scheduler did; a fault ends an answer. The later half of the asks comes when the first
/// answer of the earlier half is complete.
pub(crate) fn run(
    executor: &mut LocalExecutor,
    config: SchedulerConfig,
    asks: &[Ask],
) -> (Vec<Vec<Vec<TokenId>>>, Stats) {
    let overlap = config.overlap;
    let mut scheduler = Scheduler::new(config).expect("the configuration is sound");
    let mut ids = Vec::new();
    let aborted_at: Vec<Option<usize>> =
        asks.iter().flat_map(|ask| vec![ask.aborted_at; ask.sampling.len()]).collect();
    let mut next = 0;
    let mut submit = |scheduler: &mut Scheduler, ask: &Ask| {
        let sequences: Vec<SequenceId> = (next..).take(ask.sampling.len()).map(SequenceId).collect();
        next += ask.sampling.len() as u64;
        let submission = Submission {
            sequences: sequences.clone(),
            prompt: ask.prompt.as_slice().into(),
            sampling: ask.sampling.iter().cloned().map(Arc::new).collect(),
            max_new_tokens: ask.max_new_tokens,
            stop_token_ids: ask.stop_token_ids.clone(),
            priority: 0,
            cache_salt: None,
        };
        scheduler.submit(submission).expect("the prompt fits");
        ids.push(sequences);
    };
    let (early, late) = asks.split_at(asks.len().div_ceil(2));
    early.iter().for_each(|ask| submit(&mut scheduler, ask));
    let mut late = Some(late);
    let mut tokens: HashMap<SequenceId, Vec<TokenId>> = HashMap::new();
    let mut fed_back = 0;
    while scheduler.has_work() {
        while scheduler.steps_in_flight() < executor.depth() {
            let Some(step) = scheduler.schedule() else { break };
            fed_back += step.chunks.iter().filter(|chunk| chunk.tokens == ChunkTokens::LastSampled).count();
            executor.submit(Arc::new(step));
        }
        for update in scheduler.complete(&executor.wait().expect("no rank is lost")) {
            let answer = tokens.entry(update.sequence).or_default();
            answer.extend(update.token);
            if aborted_at[update.sequence.0 as usize] == Some(answer.len()) {
                scheduler.abort(update.sequence);
            }
            if let (Some(_), Some(late)) = (update.finish, update.finish.and_then(|_| late.take())) {
                late.iter().for_each(|ask| submit(&mut scheduler, ask));
            }
        }
    }
    let stats = scheduler.stats();
    assert_eq!((stats.used_blocks, stats.running, stats.waiting), (0, 0, 0));
    assert_eq!(0 < fed_back, overlap, "tokens that are not known are computed with overlap alone");
    let answers = ids.iter().map(|ids| ids.iter().map(|id| tokens[id].clone()).collect()).collect();
    (answers, stats)
}

/// Each ask alone on one rank: what all other ways to compute it must give as well.
pub(crate) fn alone(weights: &Arc<Weights>, asks: &[Ask]) -> Vec<Vec<Vec<TokenId>>> {
    let mut executor = executor(weights, mesh(1, 1), &roomy(1)).expect("one rank");
    let one = |sampling: &SamplingParams, ask: &Ask| Ask { sampling: vec![sampling.clone()], ..ask.clone() };
    let mut text = |ask: Ask| run(&mut executor, roomy(1), &[ask]).0.remove(0).remove(0);
    asks.iter().map(|ask| ask.sampling.iter().map(|sampling| text(one(sampling, ask))).collect()).collect()
}
