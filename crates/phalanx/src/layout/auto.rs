//! The layout of this machine's GPUs when nobody gives one: the cards are looked at, their links probed or remembered,
//! every candidate predicted, and one of them taken and told why.

use std::path::Path;

use anyhow::{Result, bail};
use phalanx_model::layout::Subject;
use phalanx_model::layout::cards::{Card, Hardware};
use phalanx_model::layout::choose::Objective;
use phalanx_model::layout::links::{AllReduceTimes, Links, Wiring};
use phalanx_model::layout::table::Comparison;
use phalanx_model::layout::{Layout, Machine};
use phalanx_model::{MemoryRequest, ModelConfig, WeightFormats};
use phalanx_worker::SCRATCH_BLOCKS;

use crate::args::{DeviceArg, EngineArgs, GpuArgs, ModelArgs};
use crate::files::ModelFiles;
use crate::launch::{GPU_BLOCK_SIZE, gpu_budget, gpu_types_of, measurements};
use crate::layout::{compared, objective, remembered};
use crate::steps::GpuSteps;
use crate::{cards, gpu};

/// One GPU of this machine.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Gpu {
    /// The same for ever.
    pub(crate) uuid: String,
    /// What its driver says of it.
    pub(crate) hardware: Hardware,
    /// What of its memory is nobody's now.
    pub(crate) free_bytes: usize,
}

/// What was found out about the links between some GPUs.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Probed {
    /// Each reaches the memory of each other one.
    pub(crate) reaches: bool,
    /// Bytes a second that kernels of one wrote to the memory of another, of the two farthest apart.
    pub(crate) write_bandwidth: Option<f64>,
    /// How long sums took, in groups of some sizes.
    pub(crate) all_reduce: Vec<AllReduceTimes>,
}

/// The share of a link's bandwidth, as data sheets have it, that a kernel's writes reach (315 of an H200's 450 GB/s).
const WRITE_SHARE: f64 = 0.7;

/// The best so many layouts are logged with the choice; all of them for those who debug.
const TOLD: usize = 3;

/// `args` with the three parallel sizes set: as given, or chosen for what is at hand when none is.
///
/// # Errors
/// No layout fits.
pub(crate) fn decide(
    files: &ModelFiles,
    model: &ModelArgs,
    args: &EngineArgs,
    usual: Objective,
) -> Result<EngineArgs> {
    decide_for(files, model, args, (usual, usize::MAX))
}

/// The same where one asks, one thing at a time: a second replica would never have anything to do.
///
/// # Errors
/// No layout fits.
pub(crate) fn decide_for_one(files: &ModelFiles, model: &ModelArgs, args: &EngineArgs) -> Result<EngineArgs> {
    decide_for(files, model, args, (Objective::Latency, 1))
}

fn decide_for(
    files: &ModelFiles,
    model: &ModelArgs,
    args: &EngineArgs,
    (usual, most_replicas): (Objective, usize),
) -> Result<EngineArgs> {
    if args.layout_is_given() {
        if args.objective.is_some() {
            tracing::warn!("--objective chooses nothing: the layout is given");
        }
        return Ok(args.clone());
    }
    let there = if args.device == DeviceArg::Cpu { 0 } else { gpu::count() };
    let named = &args.gpus.gpus;
    if 0 < there && named.iter().enumerate().any(|(place, gpu)| named[..place].contains(gpu)) {
        // Ranks that share a GPU try a layout out: nothing is to be won, but all of them are meant.
        if args.objective.is_some() {
            tracing::warn!(
                "--objective chooses nothing: --gpus names a GPU more than once, so these are {} tensor ranks",
                named.len()
            );
        }
        return Ok(EngineArgs { tensor_parallel_size: Some(named.len()), ..args.clone() });
    }
    let ordinals = ordinals(named, there)?;
    if ordinals.len() < 2 {
        return Ok(args.clone());
    }
    let at_hand = AtHand::look(&ordinals, files, model, args)?;
    let comparison = at_hand.compared(args.objective.map_or(usual, objective), most_replicas);
    files.timeline.end("layout");
    comparison.to_string().lines().for_each(|line| tracing::debug!("{line}"));
    comparison.leading(TOLD).iter().for_each(|line| tracing::info!("{line}"));
    match comparison.choice {
        Ok(choice) => Ok(with_layout(args, choice.layout)),
        Err(reason) => bail!(
            "{reason}: raise --gpu-memory-utilization, end what else holds the GPUs' memory, lower --max-model-len or \
             --max-num-batched-tokens, or take a smaller or quantised model"
        ),
    }
}

/// This machine's GPUs, and a model to lay out over them.
pub(crate) struct AtHand<'a> {
    pub(crate) machine: Machine,
    config: ModelConfig,
    request: MemoryRequest<'a>,
    staged_tokens: usize,
    budget_bytes: usize,
}

impl<'a> AtHand<'a> {
    /// Looks at these GPUs, each of them once, and at what lies between them.
    ///
    /// # Errors
    /// One cannot be opened, or the model cannot be computed on GPUs.
    pub(crate) fn look(
        ordinals: &[usize],
        files: &'a ModelFiles,
        model: &ModelArgs,
        args: &EngineArgs,
    ) -> Result<Self> {
        let gpus = cards::at_hand(ordinals)?;
        let file = measurements(model, args).join("links.json");
        let (asked, folders) = (args.gpus.all_reduce, args.gpus.libraries.folders());
        let found = match ordinals {
            [_] => Probed { reaches: false, write_bandwidth: None, all_reduce: Vec::new() },
            _ => {
                let probe = || cards::probe(ordinals, asked, &folders);
                probed(&gpus, cards::ways(asked, &folders), &file, probe)?
            }
        };
        let (config, _) = files.weights.config().with_context(args.max_model_len)?;
        let (dtype, weight_type) = gpu_types_of(files.weights.config().dtype, model.dtype)?;
        let steps = GpuSteps::new((args.max_num_batched_tokens, args.max_num_seqs))?;
        let request = MemoryRequest {
            formats: WeightFormats::Of(&files.weights, weight_type),
            activation_dtype: dtype,
            kv_dtype: dtype,
            block_size: args.block_size.unwrap_or(GPU_BLOCK_SIZE),
            limits: steps.limits(config.max_model_len),
        };
        let budget_bytes = budget(&gpus, args.gpu_memory_utilization);
        Ok(Self {
            machine: machine(&gpus, &found),
            config,
            request,
            staged_tokens: steps.staged_tokens,
            budget_bytes,
        })
    }

    /// What predictions are made from.
    pub(crate) fn subject(&self) -> Subject<'_> {
        Subject {
            config: &self.config,
            request: &self.request,
            staged_tokens: self.staged_tokens,
            budget_bytes: self.budget_bytes,
            scratch_blocks: SCRATCH_BLOCKS,
        }
    }

    /// Predicts every layout of up to `most_replicas` replicas and takes one.
    pub(crate) fn compared(&self, objective: Objective, most_replicas: usize) -> Comparison {
        compared(&self.machine, &self.subject(), objective, most_replicas)
    }
}

/// `args` with this layout, on as many of the named GPUs as it has ranks.
pub(crate) fn with_layout(args: &EngineArgs, layout: Layout) -> EngineArgs {
    EngineArgs {
        data_parallel_size: Some(layout.replicas),
        pipeline_parallel_size: Some(layout.num_stages),
        tensor_parallel_size: Some(layout.tensor_size),
        gpus: GpuArgs {
            // One is named for each rank.
            gpus: args.gpus.gpus.iter().copied().take(layout.num_gpus()).collect(),
            ..args.gpus.clone()
        },
        ..args.clone()
    }
}

/// The GPUs to lay out: those that were named, or all.
pub(crate) fn ordinals(named: &[usize], there: usize) -> Result<Vec<usize>> {
    if named.is_empty() || there == 0 {
        return Ok((0..there).collect());
    }
    if let Some(absent) = named.iter().find(|ordinal| there <= **ordinal) {
        bail!("--gpus names GPU {absent} and there are {there}, numbered from 0: see nvidia-smi");
    }
    Ok(named.to_vec())
}

/// Bytes that a rank may use of the fullest GPU, less what launching keeps free.
fn budget(gpus: &[Gpu], share: f64) -> usize {
    let of_each = gpus.iter().map(|gpu| {
        let total = gpu.hardware.memory_bytes;
        gpu_budget(total, total.saturating_sub(gpu.free_bytes), share)
    });
    of_each.min().unwrap_or(0)
}

/// The links as an earlier start found them in the same `ways`, or as they are found now.
fn probed(gpus: &[Gpu], ways: String, file: &Path, probe: impl FnOnce() -> Result<Probed>) -> Result<Probed> {
    let of: Vec<String> = gpus.iter().map(|gpu| gpu.uuid.clone()).chain([ways]).collect();
    if let Some(probed) = remembered::load(file, &of) {
        return Ok(probed);
    }
    let probed = probe()?;
    if let Err(error) = remembered::store(file, &of, &probed) {
        tracing::debug!("the links are probed again at the next start: {}: {error}", file.display());
    }
    Ok(probed)
}

/// The machine, as fast as its slowest card and its slowest link.
fn machine(gpus: &[Gpu], probed: &Probed) -> Machine {
    let cards = gpus.iter().map(|gpu| Card::at_hand(&gpu.hardware, probed.reaches));
    let slowest = cards
        .clone()
        .min_by(|a, b| a.memory_bandwidth.total_cmp(&b.memory_bandwidth))
        .expect("the caller saw a GPU");
    let memory_bytes = cards.map(|card| card.memory_bytes).min().expect("the caller saw a GPU");
    if gpus.iter().any(|gpu| gpu.hardware.name != gpus[0].hardware.name) {
        tracing::warn!("the GPUs differ: layouts are predicted as if all were like {}", slowest.name);
    }
    let measured = probed.write_bandwidth.map(|bandwidth| bandwidth / WRITE_SHARE);
    let listed = slowest.link_bandwidth;
    let bandwidth = match slowest.wiring {
        // Pairs differ where cards are bridged, and nothing is written directly where all goes through the host.
        Wiring::Bridge | Wiring::Host => listed,
        Wiring::NvLink | Wiring::Pcie => measured.unwrap_or(listed),
    };
    let links = Links { wiring: slowest.wiring, bandwidth, measured: probed.all_reduce.clone() };
    Machine { card: Card { memory_bytes, ..slowest }, num_gpus: gpus.len(), links }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::GPU_RESERVE_BYTES;

    fn h200(free_gib: usize) -> Gpu {
        let hardware = Hardware {
            name: "NVIDIA H200".to_owned(),
            memory_bytes: 140 << 30,
            memory_bandwidth: 4.9e12,
            capability: (9, 0),
            multiprocessors: 132,
            clock: 1.98e9,
        };
        Gpu { uuid: "GPU-1".to_owned(), hardware, free_bytes: free_gib << 30 }
    }

    #[test]
    fn what_others_hold_of_the_fullest_gpu_is_not_planned_with() {
        assert_eq!(budget(&[h200(140), h200(140)], 0.5), (70 << 30) - GPU_RESERVE_BYTES);
        assert_eq!(budget(&[h200(140), h200(100)], 0.5), (30 << 30) - GPU_RESERVE_BYTES);
        assert_eq!(budget(&[h200(0), h200(140)], 0.5), 0);
    }

    #[test]
    fn the_gpus_that_are_named_are_laid_out() {
        assert_eq!(ordinals(&[], 3).unwrap(), [0, 1, 2]);
        assert_eq!(ordinals(&[2, 0], 3).unwrap(), [2, 0]);
        let refused = |named: &[usize]| ordinals(named, 3).unwrap_err().to_string();
        assert!(refused(&[0, 3]).contains("--gpus names GPU 3 and there are 3"));
    }

    #[test]
    fn links_are_probed_once() {
        let folder = std::env::temp_dir().join(format!("phalanx-links-{}", std::process::id()));
        let file = folder.join("links.json");
        let found = Probed { reaches: true, write_bandwidth: Some(3e11), all_reduce: Vec::new() };
        let gpus = [h200(140), h200(140)];
        let look = |ways: &str, probe: fn() -> Result<Probed>| probed(&gpus, ways.to_owned(), &file, probe);
        let find = || Ok(Probed { reaches: true, write_bandwidth: Some(3e11), all_reduce: Vec::new() });
        for _ in 0..2 {
            assert_eq!(look("auto", find).unwrap(), found);
        }
        let again = look("auto", || bail!("probed twice"));
        assert_eq!(again.unwrap(), found);
        assert!(look("host", || bail!("another way is another time")).is_err());
        std::fs::write(&file, "torn").unwrap();
        assert!(look("auto", || bail!("probed again")).is_err());
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_machine_is_as_fast_as_its_slowest_part() {
        let probed = Probed { reaches: true, write_bandwidth: Some(140e9), all_reduce: Vec::new() };
        let found = machine(&[h200(140), h200(140)], &probed);
        assert_eq!((found.num_gpus, found.links.wiring), (2, Wiring::NvLink));
        assert!((found.links.bandwidth - 200e9).abs() < 1.0, "slower than its data sheet");
        let mut other = h200(140);
        other.hardware.name = "NVIDIA A100-SXM4-40GB".to_owned();
        other.hardware.memory_bytes = 40 << 30;
        let apart = Probed { reaches: false, write_bandwidth: None, all_reduce: Vec::new() };
        let found = machine(&[h200(140), other], &apart);
        assert_eq!((found.card.name.as_str(), found.card.memory_bytes), ("A100-40G", 40 << 30));
        assert_eq!(found.links.wiring, Wiring::Host);
    }
}
