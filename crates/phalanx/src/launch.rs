//! Puts a model, a mesh of ranks and an engine together, sized before anything is loaded.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::available_parallelism;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use phalanx_device::cpu::Cpu;
use phalanx_device::cpu::features::Features;
use phalanx_device::{DType, Device, Format, Growth};
use phalanx_engine::{Engine, EngineOptions, Router};
use phalanx_model::memory::{self, MemoryPlan};
use phalanx_model::work::{Work, work};
use phalanx_model::{
    Limits, LoadOptions, MemoryRequest, Model, ModelConfig, WeightFormats, WeightType, Weights,
};
use phalanx_scheduler::SchedulerConfig;
use phalanx_worker::{KvCacheSpec, LocalExecutor, Mesh, Rank, RankOptions, SCRATCH_BLOCKS, Seat};

use crate::args::{AllReduceArg, DeviceArg, DtypeArg, EngineArgs, ModelArgs};
use crate::files::{ModelFiles, NoModel, weight_type};
use crate::gpu::{self, Gpus};
use crate::no_room::Attempt;
use crate::plan::gib;
use crate::progress::Bar;
use crate::rehearsal;
use crate::steps::{CPU_BATCHED_TOKENS, gpu_batched_tokens, step_limits};
use crate::timeline::Timeline;

/// Tokens of a KV block unless told otherwise.
const CPU_BLOCK_SIZE: usize = 16;
pub(crate) const GPU_BLOCK_SIZE: usize = 64;
/// Left free on a GPU for what is not in the plan and comes after it: kernels that are loaded when they are first used,
/// graphs, the rounding of allocations.
const GPU_MARGIN_BYTES: usize = 512 << 20;
/// What a GPU holds as soon as it is opened: the driver's context, a library's and our kernels' rooms, a group's places.
/// Measured on an H200: 649 MiB alone, 715 MiB as one of two.
const GPU_OPENED_BYTES: usize = 768 << 20;
/// Both, for plans that are made before a GPU is opened.
pub(crate) const GPU_RESERVE_BYTES: usize = GPU_OPENED_BYTES + GPU_MARGIN_BYTES;
/// The share of a GPU's memory that is used unless told otherwise.
pub(crate) const GPU_SHARE: f64 = 0.92;
/// A step of a large model on few cores may take this long: ranks wait for each other, and health for a step, no longer.
pub(crate) const LONGEST_STEP: Duration = Duration::from_secs(600);
/// What is taken for free memory where the system does not say.
const UNKNOWN_MEMORY_BYTES: usize = 4 << 30;
/// The share of free memory that the KV cache takes unless told otherwise, and the most it takes to hold one sequence.
const KV_SHARE: f64 = 0.25;
const MOST_KV_SHARE: f64 = 0.75;

/// The phase of a start in which weights are taken in.
const WEIGHTS: &str = "weights";

/// A running engine, or several replicas of it.
pub(crate) struct Launched {
    pub(crate) router: Router,
    /// For people: what computes.
    pub(crate) device: String,
    /// Ranks compute on GPUs.
    pub(crate) on_gpus: bool,
    /// The GPU of each rank, and what the rank has allocated since it was ready; empty on the CPU.
    pub(crate) growth: Vec<(usize, Arc<Growth>)>,
    pub(crate) sizes: Sizes,
    /// Of each GPU; nothing on the CPU.
    pub(crate) held: Vec<Held>,
}

/// What one GPU holds when all is ready, whoever holds it, in bytes.
pub(crate) struct Held {
    pub(crate) gpu: usize,
    pub(crate) planned: usize,
    pub(crate) used: usize,
}

/// What was decided before anything was loaded.
#[derive(Clone)]
pub(crate) struct Sizes {
    /// One for each rank of a replica.
    pub(crate) plans: Vec<MemoryPlan>,
    pub(crate) work: Work,
    /// Of a replica's KV cache.
    pub(crate) num_blocks: usize,
    /// Sequences a replica computes in one step.
    pub(crate) max_sequences: usize,
}

impl Drop for Launched {
    /// Waits until ranks have let go of their devices: a driver's library does not outlive `main`.
    fn drop(&mut self) {
        self.router.shutdown(Duration::ZERO);
    }
}

/// What the kind of device decides.
struct Kind {
    /// None: the CPU.
    gpus: Option<Gpus>,
    activation_dtype: DType,
    kv_dtype: DType,
    weight_type: WeightType,
    block_size: usize,
    batched_tokens: usize,
}

/// Everything that one rank is built from, decided once for all of them.
struct Blueprint {
    gpus: Option<Gpus>,
    weights: Arc<Weights>,
    config: ModelConfig,
    weight_type: WeightType,
    limits: Limits,
    kv_cache: KvCacheSpec,
    vocab_size: usize,
    threads_per_rank: usize,
    mesh: Mesh,
    sizes: Sizes,
    /// A step starts before the ids of the one before are known.
    overlap: bool,
    /// Bytes of each rank of a replica, stage after stage.
    planned: Vec<usize>,
    /// Steps that decode are started from graphs.
    graphs: bool,
}

impl Blueprint {
    /// How many steps the engine keeps in flight.
    fn steps_in_flight(&self) -> usize {
        if self.overlap { 2 } else { self.mesh.num_stages }
    }
}

/// Sizes, loads and starts.
pub(crate) fn start(files: &ModelFiles, model: &ModelArgs, args: &EngineArgs) -> Result<Launched> {
    let blueprint = Arc::new(draw(files, model, args)?);
    describe(&blueprint, args);
    let bar = Arc::new(Bar::new());
    let timeline = &files.timeline;
    let loaded = Arc::new(AtomicU64::new(0));
    bar.begin("loading weights", (blueprint.weights.bytes() * args.replicas()) as u64);
    let executors = std::thread::scope(|scope| {
        let (blueprint, bar, loaded) = (&blueprint, &bar, &loaded);
        let replicas: Vec<_> = (0..args.replicas())
            .map(|replica| scope.spawn(move || executor(blueprint, replica, timeline, bar, loaded)))
            .collect();
        let started =
            replicas.into_iter().map(|replica| replica.join().unwrap_or_else(|panic| resume_unwind(panic)));
        started.collect::<Result<Vec<_>>>()
    })?;
    let mut engines = Vec::new();
    for (replica, mut executor) in executors.into_iter().enumerate() {
        if let Some(gpus) = &blueprint.gpus {
            rehearsal::run(&mut executor, gpus.tunings(), blueprint.limits, blueprint.kv_cache)?;
            timeline.end("kernels");
        }
        let options = engine_options(&blueprint, files, args, replica)?;
        engines.push(Engine::start(options, Arc::clone(&files.tokenizer), Box::new(executor))?);
    }
    bar.end();
    timeline.end("ready");
    let (gigabytes, seconds) = (loaded.load(Ordering::Relaxed) as f64 / 1e9, timeline.seconds(WEIGHTS));
    tracing::info!("{gigabytes:.2} GB of weights in {seconds:.2} s, {:.1} GB/s", gigabytes / seconds);
    tracing::info!("{timeline}");
    let held = compare_with_plan(&blueprint)?;
    let ranks = blueprint.mesh.tensor_size * blueprint.mesh.num_stages * args.replicas();
    let (threads, instructions) = (blueprint.threads_per_rank, Features::detect().describe());
    let device = match &blueprint.gpus {
        Some(gpus) => gpus_of_ranks(&gpus.used()?.iter().map(|(gpu, ..)| *gpu).collect::<Vec<_>>()),
        None => format!("CPU, {ranks} x {threads} threads, {instructions}"),
    };
    let (sizes, on_gpus) = (blueprint.sizes.clone(), blueprint.gpus.is_some());
    let growth = blueprint.gpus.as_ref().map_or_else(Vec::new, Gpus::growth);
    growth.iter().for_each(|(_, growth)| growth.start_counting());
    Ok(Launched { router: Router::new(engines), device, on_gpus, growth, sizes, held })
}

/// `1 GPU`, `2 GPUs`, `1 GPU, 4 ranks`.
fn gpus_of_ranks(of_ranks: &[usize]) -> String {
    let gpus = of_ranks.iter().collect::<BTreeSet<_>>().len();
    let mut text = format!("{gpus} GPU{}", if gpus == 1 { "" } else { "s" });
    if gpus != of_ranks.len() {
        text.push_str(&format!(", {} ranks", of_ranks.len()));
    }
    text
}

/// The ranks of one replica, loaded.
fn executor(
    blueprint: &Arc<Blueprint>,
    replica: usize,
    timeline: &Arc<Timeline>,
    bar: &Arc<Bar>,
    loaded: &Arc<AtomicU64>,
) -> Result<LocalExecutor> {
    let (blueprint_of_rank, timeline) = (Arc::clone(blueprint), Arc::clone(timeline));
    let (bar, loaded) = (Arc::clone(bar), Arc::clone(loaded));
    LocalExecutor::start(blueprint.mesh, blueprint.steps_in_flight(), move |seat| {
        build(&blueprint_of_rank, replica, seat, &timeline, &|bytes| {
            bar.reach(loaded.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64);
        })
        // The whole chain of causes on one line: a rank's thread reports plain text.
        .map_err(|error| format!("{error:#}"))
    })
    .context(NoModel)
}

/// Decides sizes; nothing is loaded yet.
fn draw(files: &ModelFiles, model: &ModelArgs, args: &EngineArgs) -> Result<Blueprint> {
    let (mut config, notice) = files.weights.config().clone().with_context(args.max_model_len)?;
    if let Some(notice) = notice {
        tracing::warn!("{notice}");
    }
    let ranks = args.tensor_size() * args.num_stages() * args.replicas();
    let threads = args.threads.unwrap_or_else(|| available_parallelism().map_or(1, usize::from));
    let mesh =
        Mesh { tensor_size: args.tensor_size(), num_stages: args.num_stages(), deadline: LONGEST_STEP };
    let kind = kind(files, model, args, mesh)?;
    files.timeline.end("driver");
    let (max_tokens, max_samples) =
        step_limits((args.max_num_batched_tokens, args.max_num_seqs), kind.batched_tokens)?;
    let limits =
        |config: &ModelConfig| Limits { max_tokens, max_samples, max_model_len: config.max_model_len };
    let request = MemoryRequest {
        formats: WeightFormats::Of(&files.weights, kind.weight_type),
        activation_dtype: kind.activation_dtype,
        kv_dtype: kind.kv_dtype,
        block_size: kind.block_size,
        limits: limits(&config),
    };
    let plans = memory::plan_layout(&config, mesh.tensor_size, mesh.num_stages, &request)?;
    let num_blocks = match &kind.gpus {
        Some(gpus) => {
            let attempt = Attempt {
                config: &config,
                mesh,
                request: &request,
                plans: &plans,
                budget: gpus.budget(args.gpu_memory_utilization)?,
                margin: GPU_MARGIN_BYTES,
                scratch_blocks: SCRATCH_BLOCKS,
            };
            gpu_blocks(&attempt, args)?
        }
        None => cpu_blocks(&config, &plans, args, max_samples)?,
    };
    fit_context(&mut config, num_blocks * kind.block_size, args)?;
    Ok(Blueprint {
        planned: plans.iter().map(|plan| plan.fixed_bytes() + plan.kv_bytes(num_blocks)).collect(),
        overlap: overlaps(args, &kind),
        graphs: kind.gpus.is_some() && !args.enforce_eager,
        gpus: kind.gpus,
        weights: Arc::clone(&files.weights),
        weight_type: kind.weight_type,
        limits: limits(&config),
        kv_cache: KvCacheSpec { dtype: kind.kv_dtype, num_blocks, block_size: kind.block_size },
        vocab_size: files.tokenizer.vocab_size().min(config.vocab_size),
        threads_per_rank: (threads / ranks).max(1),
        sizes: Sizes { work: work(&config, &request)?, plans, num_blocks, max_sequences: max_samples },
        config,
        mesh,
    })
}

/// Whether GPUs compute.
pub(crate) fn on_gpus(args: &EngineArgs) -> bool {
    match args.device {
        DeviceArg::Cpu => false,
        DeviceArg::Gpu => true,
        DeviceArg::Auto => 0 < gpu::count(),
    }
}

/// Chooses GPUs or the CPU, and what follows from that.
fn kind(files: &ModelFiles, model: &ModelArgs, args: &EngineArgs, mesh: Mesh) -> Result<Kind> {
    if !on_gpus(args) {
        if !args.gpus.gpus.is_empty() || args.gpus.all_reduce != AllReduceArg::Auto {
            bail!("--gpus and --all-reduce are for GPUs, and this would run on the CPU: leave them out");
        }
        return Ok(Kind {
            gpus: None,
            activation_dtype: DType::F32,
            kv_dtype: kv_dtype(args.kv_cache_dtype, model.dtype),
            weight_type: weight_type(model.dtype),
            block_size: args.block_size.unwrap_or(CPU_BLOCK_SIZE),
            batched_tokens: CPU_BATCHED_TOKENS,
        });
    }
    let (dtype, weight_type) = gpu_types_of(files.weights.config().dtype, model.dtype)?;
    refuse_cpus_flags(args, dtype)?;
    let measurements = measurements(model, args);
    Ok(Kind {
        gpus: Some(Gpus::claim(mesh, args.replicas(), dtype, &args.gpus, &measurements)?),
        activation_dtype: dtype,
        kv_dtype: dtype,
        weight_type,
        block_size: args.block_size.unwrap_or(GPU_BLOCK_SIZE),
        batched_tokens: gpu_batched_tokens(mesh.num_stages),
    })
}

/// Refuses what only the CPU does: left alone, it would be thought to work.
fn refuse_cpus_flags(args: &EngineArgs, computed: DType) -> Result<()> {
    match (args.kv_cache_dtype, computed) {
        (DtypeArg::Auto, _) | (DtypeArg::Half, DType::F16) | (DtypeArg::Bfloat16, DType::BF16) => {}
        (asked, _) => bail!(
            "--kv-cache-dtype {}: GPUs keep keys and values in what they compute in, {}; leave it out, or change --dtype",
            name_of(asked),
            name_of(if computed == DType::F16 { DtypeArg::Half } else { DtypeArg::Bfloat16 })
        ),
    }
    match args.kv_cache_memory {
        None => Ok(()),
        Some(_) => bail!(
            "--kv-cache-memory is for the CPU: on GPUs the KV cache takes what --gpu-memory-utilization leaves, so give that"
        ),
    }
}

/// As it is written on the command line.
fn name_of(dtype: DtypeArg) -> &'static str {
    match dtype {
        DtypeArg::Auto => "auto",
        DtypeArg::Half => "half",
        DtypeArg::Bfloat16 => "bfloat16",
        DtypeArg::Float32 => "float32",
    }
}

/// Whether a step starts before the ids of the one before are known.
///
/// The CPU has nothing to hide: scheduling takes a thousandth of its steps, and shares its cores. A sequence that has
/// stopped would cost it a row of the next step, and a request that comes would wait for two steps in place of one.
fn overlaps(args: &EngineArgs, kind: &Kind) -> bool {
    !args.no_async_scheduling && kind.gpus.is_some() && args.num_stages() == 1
}

/// The folder in which what was measured on this machine is remembered.
pub(crate) fn measurements(model: &ModelArgs, args: &EngineArgs) -> PathBuf {
    args.measurements.clone().unwrap_or_else(|| model.hub.user_cache().join("phalanx"))
}

/// What GPUs compute in, and what they keep the weights of a model in that was trained, or is stored, in `stored`.
///
/// # Errors
/// Single precision was asked for.
pub(crate) fn gpu_types_of(stored: Format, asked: DtypeArg) -> Result<(DType, WeightType)> {
    Ok(match asked {
        DtypeArg::Float32 => bail!("GPUs compute in 16 bits: take --dtype bfloat16 or half, or --device cpu"),
        DtypeArg::Half => (DType::F16, WeightType::F16),
        DtypeArg::Auto if stored == Format::F16 => (DType::F16, WeightType::F16),
        DtypeArg::Auto | DtypeArg::Bfloat16 => (DType::BF16, WeightType::BF16),
    })
}

/// Bytes that a rank may plan with on a GPU of `total` bytes, of which others hold `held`, before it is opened.
pub(crate) fn gpu_budget(total: usize, held: usize, share: f64) -> usize {
    ((total as f64 * share) as usize).saturating_sub(held).saturating_sub(GPU_RESERVE_BYTES)
}

/// How many KV blocks the fullest GPU has room for: at least one, and the context when a certain one was asked for.
fn gpu_blocks(attempt: &Attempt<'_>, args: &EngineArgs) -> Result<usize> {
    let blocks = attempt.blocks();
    let wanted = args.max_model_len.map_or(1, |_| attempt.config.max_model_len);
    match wanted <= blocks * attempt.request.block_size {
        true => Ok(blocks),
        false => bail!(attempt.explain(args)),
    }
}

/// How many KV blocks a replica on the CPU gets.
fn cpu_blocks(
    config: &ModelConfig,
    plans: &[MemoryPlan],
    args: &EngineArgs,
    max_sequences: usize,
) -> Result<usize> {
    let replicas = args.replicas();
    let fixed: usize = plans.iter().map(MemoryPlan::fixed_bytes).sum::<usize>() * replicas;
    let block_bytes: usize = plans.iter().map(|plan| plan.kv_bytes_per_block).sum();
    let available = phalanx_device::cpu::memory::available().unwrap_or(UNKNOWN_MEMORY_BYTES);
    if available < fixed {
        bail!(
            "the model needs {}, {} of them for weights, and {} of memory are free: take a smaller or quantised model or \
             another --dtype, or lower --max-num-batched-tokens or --max-num-seqs",
            gib(fixed),
            gib(plans.iter().map(|plan| plan.weights_bytes).sum::<usize>() * replicas),
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
    let blocks = |tokens: usize| tokens.div_ceil(plans[0].block_size);
    let wanted = blocks(config.max_model_len).saturating_mul(max_sequences);
    let mut num_blocks = (budget / block_bytes).min(wanted);
    if args.kv_cache_memory.is_none() {
        // One sequence of full length is worth more than the usual share.
        let most = (left as f64 * MOST_KV_SHARE) as usize / block_bytes;
        num_blocks = num_blocks.max(blocks(config.max_model_len).min(most));
    }
    Ok(num_blocks)
}

/// Shortens the context to what the KV cache holds, unless a certain one was asked for.
fn fit_context(config: &mut ModelConfig, held: usize, args: &EngineArgs) -> Result<()> {
    if config.max_model_len <= held {
        return Ok(());
    }
    let asked = config.max_model_len;
    if held == 0 {
        bail!(
            "the KV cache has no room for one block of tokens: raise --kv-cache-memory (CPU) or --gpu-memory-utilization"
        );
    }
    if args.max_model_len.is_some() {
        bail!(
            "the KV cache holds {held} tokens but a sequence may have {asked}: lower --max-model-len to {held}, or raise \
             --kv-cache-memory (CPU) or --gpu-memory-utilization"
        );
    }
    tracing::warn!("the KV cache holds {held} tokens, so a sequence may have {held} rather than {asked}");
    config.max_model_len = held;
    Ok(())
}

fn kv_dtype(kv: DtypeArg, weights: DtypeArg) -> DType {
    match (kv, weights) {
        (DtypeArg::Float32, _) | (DtypeArg::Auto, DtypeArg::Float32) => DType::F32,
        (DtypeArg::Bfloat16, _) => DType::BF16,
        (DtypeArg::Half | DtypeArg::Auto, _) => DType::F16,
    }
}

/// One rank, on its own thread: a device, its slices of the weights, its KV cache.
fn build(
    blueprint: &Blueprint,
    replica: usize,
    seat: Seat,
    timeline: &Timeline,
    progress: &dyn Fn(usize),
) -> Result<Rank> {
    let Seat { place, tensor_group, stage_group } = seat;
    let device = match &blueprint.gpus {
        // GPUs have groups of their own, over peer memory.
        Some(gpus) => gpus.device(replica, place)?,
        None => Device::new(Box::new(Cpu::new(blueprint.threads_per_rank)?), tensor_group, stage_group),
    };
    timeline.end("collectives");
    let options = LoadOptions { place, limits: blueprint.limits, weight_type: blueprint.weight_type };
    let model = Model::load(&device, &blueprint.weights, &blueprint.config, &options, progress)?;
    timeline.end(WEIGHTS);
    let options = RankOptions {
        kv_cache: blueprint.kv_cache,
        limits: blueprint.limits,
        vocab_size: blueprint.vocab_size,
        overlap: blueprint.overlap,
        graphs: blueprint.graphs,
    };
    let rank = Rank::new(device, model, options).context("the KV cache does not fit")?;
    timeline.end("KV cache");
    Ok(rank)
}

/// Tells what the GPUs hold beside what was planned.
fn compare_with_plan(blueprint: &Blueprint) -> Result<Vec<Held>> {
    let Some(gpus) = &blueprint.gpus else { return Ok(Vec::new()) };
    // A GPU's ranks together: usually it has one.
    let mut by_gpu: BTreeMap<usize, (usize, usize, usize)> = BTreeMap::new();
    for ((gpu, before, now), planned) in gpus.used()?.into_iter().zip(blueprint.planned.iter().cycle()) {
        let of_gpu = by_gpu.entry(gpu).or_insert((before, before, now));
        of_gpu.1 += planned;
    }
    let held = by_gpu.into_iter().map(|(gpu, (before, planned, used))| {
        let percent = (used as f64 / planned as f64 - 1.0) * 100.0;
        tracing::info!(
            "GPU {gpu}: {} planned, {} used ({percent:+.2} %; {} before weights)",
            gib(planned),
            gib(used),
            gib(before)
        );
        Held { gpu, planned, used }
    });
    Ok(held.collect())
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
        overlap: blueprint.overlap,
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
        args.replicas(),
        mesh.num_stages,
        mesh.tensor_size,
        blueprint.threads_per_rank,
        kv_cache.num_blocks * kv_cache.block_size
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Command, parsed};

    #[test]
    fn gpus_are_counted_once_however_many_ranks_share_them() {
        assert_eq!(gpus_of_ranks(&[0]), "1 GPU");
        assert_eq!(gpus_of_ranks(&[0, 1]), "2 GPUs");
        assert_eq!(gpus_of_ranks(&[0, 0, 1, 1]), "2 GPUs, 4 ranks");
    }

    #[test]
    fn what_gpus_do_not_do_is_refused() {
        let check = |arguments: &str, computed| {
            let Command::Serve(serve) = parsed(&format!("serve {arguments}")) else { panic!("serve") };
            refuse_cpus_flags(&serve.engine, computed).map_err(|error| error.to_string())
        };
        assert_eq!(check("", DType::BF16), Ok(()));
        assert_eq!(check("--kv-cache-dtype half", DType::F16), Ok(()));
        assert_eq!(check("--kv-cache-dtype bfloat16", DType::BF16), Ok(()));
        let refused = check("--kv-cache-dtype float32", DType::BF16).unwrap_err();
        assert!(refused.starts_with("--kv-cache-dtype float32: GPUs keep") && refused.contains("bfloat16"));
        assert!(check("--kv-cache-dtype half", DType::BF16).is_err());
        assert!(
            check("--kv-cache-memory 4GiB", DType::F16).unwrap_err().contains("--gpu-memory-utilization")
        );
    }
}
