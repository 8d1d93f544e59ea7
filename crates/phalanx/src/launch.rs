//! Puts a model, a mesh of ranks and an engine together, sized before anything is loaded.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use phalanx_device::cpu::Cpu;
use phalanx_device::cpu::features::Features;
use phalanx_device::{DType, Device};
use phalanx_engine::{Engine, EngineOptions, Router};
use phalanx_model::memory::{self, MemoryPlan};
use phalanx_model::{
    Limits, LoadOptions, MemoryRequest, Model, ModelConfig, WeightFormats, WeightType, Weights,
};
use phalanx_scheduler::SchedulerConfig;
use phalanx_worker::{KvCacheSpec, LocalExecutor, Mesh, Rank, Seat};

use crate::args::{DtypeArg, EngineArgs, KvDtypeArg, ModelArgs};
use crate::files::{ModelFiles, NoModel, weight_type};
use crate::machine;
use crate::plan::gib;
use crate::progress::Bar;

/// Tokens a step computes on the CPU unless told otherwise: a running answer waits for no longer than these take.
const CPU_BATCHED_TOKENS: usize = 512;
/// Sequences a step computes unless told otherwise.
const SEQUENCES: usize = 256;
/// A step of a large model on few cores may take this long: ranks wait for each other, and health for a step, no longer.
pub(crate) const LONGEST_STEP: Duration = Duration::from_secs(600);
/// The share of free memory that the KV cache takes unless told otherwise, and the most it takes to hold one sequence.
const KV_SHARE: f64 = 0.25;
const MOST_KV_SHARE: f64 = 0.75;

/// A running engine, or several replicas of it.
pub(crate) struct Launched {
    pub(crate) router: Router,
    /// For people: what computes.
    pub(crate) device: String,
}

/// Everything that one rank is built from, decided once for all of them.
struct Blueprint {
    weights: Arc<Weights>,
    config: ModelConfig,
    weight_type: WeightType,
    limits: Limits,
    kv_cache: KvCacheSpec,
    vocab_size: usize,
    threads_per_rank: usize,
    mesh: Mesh,
}

/// Sizes, loads and starts.
pub(crate) fn start(files: &ModelFiles, model: &ModelArgs, args: &EngineArgs) -> Result<Launched> {
    let blueprint = Arc::new(draw(files, model, args)?);
    describe(&blueprint, args);
    let bar = Arc::new(Bar::new());
    let loaded = Arc::new(AtomicU64::new(0));
    bar.begin("loading weights", (blueprint.weights.bytes() * args.data_parallel_size) as u64);
    let mut engines = Vec::new();
    for replica in 0..args.data_parallel_size {
        let (blueprint_of_rank, bar, loaded) =
            (Arc::clone(&blueprint), Arc::clone(&bar), Arc::clone(&loaded));
        let executor = LocalExecutor::start(blueprint.mesh, move |seat| {
            build(&blueprint_of_rank, seat, &|bytes| {
                bar.reach(loaded.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64);
            })
            // The whole chain of causes on one line: a rank's thread reports plain text.
            .map_err(|error| format!("{error:#}"))
        })
        .context(NoModel)?;
        let options = engine_options(&blueprint, files, args, replica)?;
        engines.push(Engine::start(options, Arc::clone(&files.tokenizer), Box::new(executor))?);
    }
    bar.end();
    let ranks = blueprint.mesh.tensor_size * blueprint.mesh.num_stages * args.data_parallel_size;
    let (threads, instructions) = (blueprint.threads_per_rank, Features::detect().describe());
    let device = format!("CPU, {ranks} x {threads} threads, {instructions}");
    Ok(Launched { router: Router::new(engines), device })
}

/// Decides sizes; nothing is loaded yet.
fn draw(files: &ModelFiles, model: &ModelArgs, args: &EngineArgs) -> Result<Blueprint> {
    let (mut config, notice) = files.weights.config().clone().with_context(args.max_model_len)?;
    if let Some(notice) = notice {
        tracing::warn!("{notice}");
    }
    let (max_tokens, max_samples) = step_limits(args)?;
    let kv_dtype = kv_dtype(args.kv_cache_dtype, model.dtype);
    let ranks = args.tensor_parallel_size * args.pipeline_parallel_size * args.data_parallel_size;
    let threads = args.threads.unwrap_or_else(machine::cores);
    let mesh = Mesh {
        tensor_size: args.tensor_parallel_size,
        num_stages: args.pipeline_parallel_size,
        deadline: LONGEST_STEP,
    };
    let limits =
        |config: &ModelConfig| Limits { max_tokens, max_samples, max_model_len: config.max_model_len };
    let weight_type = weight_type(model.dtype);
    let request = MemoryRequest {
        formats: WeightFormats::Of(&files.weights, weight_type),
        activation_dtype: DType::F32,
        kv_dtype,
        block_size: args.block_size,
        limits: limits(&config),
    };
    let plans = memory::plan_layout(&config, mesh.tensor_size, mesh.num_stages, &request)?;
    let num_blocks = kv_blocks(&mut config, &plans, args, max_samples)?;
    Ok(Blueprint {
        weights: Arc::clone(&files.weights),
        weight_type,
        limits: limits(&config),
        kv_cache: KvCacheSpec { dtype: kv_dtype, num_blocks, block_size: args.block_size },
        vocab_size: files.tokenizer.vocab_size().min(config.vocab_size),
        threads_per_rank: (threads / ranks).max(1),
        config,
        mesh,
    })
}

/// Tokens and sequences a step computes at most.
fn step_limits(args: &EngineArgs) -> Result<(usize, usize)> {
    match (args.max_num_batched_tokens, args.max_num_seqs) {
        (None, sequences) => {
            let sequences = sequences.unwrap_or(SEQUENCES);
            Ok((CPU_BATCHED_TOKENS.max(sequences), sequences))
        }
        (Some(tokens), None) => Ok((tokens, SEQUENCES.min(tokens))),
        (Some(tokens), Some(sequences)) if tokens < sequences => bail!(
            "--max-num-seqs {sequences} needs a token for each running sequence and --max-num-batched-tokens allows {tokens}: \
             raise the latter or lower the former"
        ),
        (Some(tokens), Some(sequences)) => Ok((tokens, sequences)),
    }
}

/// How many KV blocks a replica gets; shortens the context when nobody asked for a certain one and memory is scarce.
fn kv_blocks(
    config: &mut ModelConfig,
    plans: &[MemoryPlan],
    args: &EngineArgs,
    max_sequences: usize,
) -> Result<usize> {
    let replicas = args.data_parallel_size;
    let fixed: usize = plans.iter().map(MemoryPlan::fixed_bytes).sum::<usize>() * replicas;
    let block_bytes: usize = plans.iter().map(|plan| plan.kv_bytes_per_block).sum();
    let available = machine::available_memory();
    if available < fixed {
        bail!(
            "the model needs {} and {} of memory are free: take a smaller or quantised model, or another --dtype",
            gib(fixed),
            gib(available)
        );
    }
    if let Some(asked) = args.kv_cache_memory.filter(|asked| available - fixed < *asked) {
        bail!(
            "--kv-cache-memory asks for {} and {} are free beside the model",
            gib(asked),
            gib(available - fixed)
        );
    }
    let left = (available - fixed) / replicas;
    let budget = args.kv_cache_memory.map_or((left as f64 * KV_SHARE) as usize, |bytes| bytes / replicas);
    let blocks = |tokens: usize| tokens.div_ceil(args.block_size);
    let wanted = blocks(config.max_model_len).saturating_mul(max_sequences);
    let mut num_blocks = (budget / block_bytes).min(wanted);
    if args.kv_cache_memory.is_none() {
        // One sequence of full length is worth more than the usual share.
        let most = (left as f64 * MOST_KV_SHARE) as usize / block_bytes;
        num_blocks = num_blocks.max(blocks(config.max_model_len).min(most));
    }
    let held = num_blocks * args.block_size;
    if held < config.max_model_len {
        if args.max_model_len.is_some() || held == 0 {
            bail!(
                "the KV cache holds {held} tokens but a sequence may have {}: lower --max-model-len to {held}, or raise \
                 --kv-cache-memory",
                config.max_model_len
            );
        }
        tracing::warn!(
            "the KV cache holds {held} tokens, so a sequence may have {held} rather than {}: raise --kv-cache-memory for more",
            config.max_model_len
        );
        config.max_model_len = held;
    }
    Ok(num_blocks)
}

fn kv_dtype(kv: KvDtypeArg, weights: DtypeArg) -> DType {
    match (kv, weights) {
        (KvDtypeArg::Float32, _) | (KvDtypeArg::Auto, DtypeArg::Float32) => DType::F32,
        (KvDtypeArg::Bfloat16, _) => DType::BF16,
        (KvDtypeArg::Half | KvDtypeArg::Auto, _) => DType::F16,
    }
}

/// One rank, on its own thread: a device, its slices of the weights, its KV cache.
fn build(blueprint: &Blueprint, seat: Seat, progress: &dyn Fn(usize)) -> Result<Rank> {
    let Seat { place, tensor_group, stage_group } = seat;
    let device = Device::new(Box::new(Cpu::new(blueprint.threads_per_rank)?), tensor_group, stage_group);
    let options = LoadOptions { place, limits: blueprint.limits, weight_type: blueprint.weight_type };
    let model = Model::load(&device, &blueprint.weights, &blueprint.config, &options, progress)?;
    Rank::new(device, model, blueprint.kv_cache, blueprint.limits, blueprint.vocab_size)
        .context("the KV cache does not fit")
}

fn engine_options(
    blueprint: &Blueprint,
    files: &ModelFiles,
    args: &EngineArgs,
    replica: usize,
) -> Result<EngineOptions> {
    let mut hash_key = [0; 32];
    getrandom::fill(&mut hash_key).map_err(|error| anyhow::anyhow!("no random bytes: {error}"))?;
    let scheduler = SchedulerConfig {
        num_blocks: blueprint.kv_cache.num_blocks,
        block_size: blueprint.kv_cache.block_size,
        max_batched_tokens: blueprint.limits.max_tokens,
        max_sequences: blueprint.limits.max_samples,
        max_model_len: blueprint.config.max_model_len,
        prefix_cache: !args.no_enable_prefix_caching,
        overlap: false,
        stages: blueprint.mesh.num_stages,
        hash_key,
    };
    Ok(EngineOptions {
        name: format!("engine {replica}"),
        scheduler,
        vocab_size: blueprint.vocab_size,
        eos_token_ids: files.eos_token_ids.clone(),
        max_queue: args.max_queue,
    })
}

fn describe(blueprint: &Blueprint, args: &EngineArgs) {
    let Blueprint { config, kv_cache, mesh, .. } = blueprint;
    tracing::info!(
        "{} layers, {} wide, {}; context {} tokens; {} x {} x {} ranks (dp x pp x tp), {} threads each; KV cache {} tokens",
        config.num_layers,
        config.hidden_size,
        blueprint.weights.describe(),
        config.max_model_len,
        args.data_parallel_size,
        mesh.num_stages,
        mesh.tensor_size,
        blueprint.threads_per_rank,
        kv_cache.num_blocks * kv_cache.block_size
    );
}
