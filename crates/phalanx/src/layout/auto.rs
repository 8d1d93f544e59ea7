//! The layout of this machine's GPUs when nobody gives one: the cards are looked at, their links probed or remembered,
//! every candidate predicted, and one of them taken and told why.

use anyhow::{Result, bail};
use phalanx_model::layout::Subject;
use phalanx_model::layout::cards::{Card, Hardware};
use phalanx_model::layout::choose::Objective;
use phalanx_model::layout::links::{AllReduceTimes, Links, Wiring};
use phalanx_model::layout::{Layout, Machine};
use phalanx_model::{Limits, MemoryRequest, WeightFormats};

use crate::args::{DeviceArg, EngineArgs, ModelArgs};
use crate::files::ModelFiles;
use crate::launch::{
    GPU_BATCHED_TOKENS, GPU_BLOCK_SIZE, GPU_RESERVE_BYTES, gpu_types, measurements, step_limits,
};
use crate::layout::{compared, objective, remembered};
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
    /// Bytes a second that a copy between the two farthest apart reached.
    pub(crate) copy_bandwidth: Option<f64>,
    /// How long sums took.
    pub(crate) all_reduce: Vec<AllReduceTimes>,
}

/// The share of a link's bandwidth, as data sheets have it, that a large copy reaches (372 of an H200's 450 GB/s).
const COPY_SHARE: f64 = 0.83;

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
    if args.layout_is_given() {
        if args.objective.is_some() {
            tracing::warn!("--objective chooses nothing: the layout is given");
        }
        return Ok(args.clone());
    }
    if let named @ 1.. = args.gpus.gpus.len() {
        // Nothing is known of what named GPUs are to be, but that all of them are meant.
        return Ok(EngineArgs { tensor_parallel_size: Some(named), ..args.clone() });
    }
    let count = if args.device == DeviceArg::Cpu { 0 } else { gpu::count() };
    if count < 2 {
        return Ok(args.clone());
    }
    let gpus = cards::at_hand(count)?;
    let machine = machine(&gpus, &probed(&gpus, &measurements(model, args)));
    let (config, _) = files.weights.config().with_context(args.max_model_len)?;
    let (dtype, weight_type) = gpu_types(files, model)?;
    let (max_tokens, max_samples) = step_limits(args, GPU_BATCHED_TOKENS)?;
    let request = MemoryRequest {
        formats: WeightFormats::Of(&files.weights, weight_type),
        activation_dtype: dtype,
        kv_dtype: dtype,
        block_size: args.block_size.unwrap_or(GPU_BLOCK_SIZE),
        limits: Limits { max_tokens, max_samples, max_model_len: config.max_model_len },
    };
    let budget_bytes = budget(&gpus, args.gpu_memory_utilization);
    let subject = Subject { config: &config, request: &request, budget_bytes };
    let comparison = compared(&machine, &subject, args.objective.map_or(usual, objective));
    files.timeline.end("layout");
    for line in comparison.to_string().lines() {
        tracing::info!("{line}");
    }
    match comparison.choice {
        Ok(choice) => Ok(with_layout(args, choice.layout)),
        Err(reason) => bail!(
            "{reason}: raise --gpu-memory-utilization, end what else holds the GPUs' memory, lower --max-model-len or \
             --max-num-batched-tokens, or take a smaller or quantised model"
        ),
    }
}

fn with_layout(args: &EngineArgs, layout: Layout) -> EngineArgs {
    EngineArgs {
        data_parallel_size: Some(layout.replicas),
        pipeline_parallel_size: Some(layout.num_stages),
        tensor_parallel_size: Some(layout.tensor_size),
        ..args.clone()
    }
}

/// Bytes that a rank may use of the fullest GPU, less what launching keeps free.
fn budget(gpus: &[Gpu], share: f64) -> usize {
    let of_each = gpus.iter().map(|gpu| {
        let total = gpu.hardware.memory_bytes;
        ((total as f64 * share) as usize).saturating_sub(total.saturating_sub(gpu.free_bytes))
    });
    of_each.min().unwrap_or(0).saturating_sub(GPU_RESERVE_BYTES)
}

/// The links as an earlier start found them, or as they are found now.
fn probed(gpus: &[Gpu], folder: &std::path::Path) -> Probed {
    let uuids: Vec<String> = gpus.iter().map(|gpu| gpu.uuid.clone()).collect();
    let file = folder.join("links.json");
    if let Some(probed) = remembered::load(&file, &uuids) {
        return probed;
    }
    let probed = cards::probe(gpus.len());
    if let Err(error) = remembered::store(&file, &uuids, &probed) {
        tracing::debug!("the links are probed again at the next start: {}: {error}", file.display());
    }
    probed
}

/// The machine, as fast as its slowest card and its slowest link.
fn machine(gpus: &[Gpu], probed: &Probed) -> Machine {
    let cards = gpus.iter().map(|gpu| Card::at_hand(&gpu.hardware, probed.reaches));
    let slowest = cards
        .clone()
        .min_by(|a, b| a.memory_bandwidth.total_cmp(&b.memory_bandwidth))
        .expect("the caller saw several GPUs");
    let memory_bytes = cards.map(|card| card.memory_bytes).min().expect("the caller saw several GPUs");
    if gpus.iter().any(|gpu| gpu.hardware.name != gpus[0].hardware.name) {
        tracing::warn!("the GPUs differ: layouts are predicted as if all were like {}", slowest.name);
    }
    let copied = probed.copy_bandwidth.map(|bandwidth| bandwidth / COPY_SHARE);
    let listed = slowest.link_bandwidth;
    let bandwidth = match slowest.wiring {
        // Pairs differ where cards are bridged, and a copy through the host says little about sums through it.
        Wiring::Bridge | Wiring::Host => listed,
        Wiring::NvLink | Wiring::Pcie => copied.unwrap_or(listed),
    };
    let links = Links { wiring: slowest.wiring, bandwidth, measured: probed.all_reduce.clone() };
    Machine { card: Card { memory_bytes, ..slowest }, num_gpus: gpus.len(), links }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_machine_is_as_fast_as_its_slowest_part() {
        let probed = Probed { reaches: true, copy_bandwidth: Some(166e9), all_reduce: Vec::new() };
        let found = machine(&[h200(140), h200(140)], &probed);
        assert_eq!((found.num_gpus, found.links.wiring), (2, Wiring::NvLink));
        assert!((found.links.bandwidth - 200e9).abs() < 1.0, "slower than its data sheet");
        let mut other = h200(140);
        other.hardware.name = "NVIDIA A100-SXM4-40GB".to_owned();
        other.hardware.memory_bytes = 40 << 30;
        let apart = Probed { reaches: false, copy_bandwidth: None, all_reduce: Vec::new() };
        let found = machine(&[h200(140), other], &apart);
        assert_eq!((found.card.name.as_str(), found.card.memory_bytes), ("A100-40G", 40 << 30));
        assert_eq!(found.links.wiring, Wiring::Host);
    }
}
