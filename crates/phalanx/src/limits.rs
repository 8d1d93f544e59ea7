//! Measures the devices that a bench will run on, before the engine takes their memory.

use std::thread::available_parallelism;

use anyhow::{Context, Result, anyhow};
use phalanx_bench::DeviceLimits;
use phalanx_device::collective::alone::Alone;
use phalanx_device::cpu::Cpu;
use phalanx_device::limits::{Extent, Limits, measure as measure_device};
use phalanx_device::{DType, Device, Format};

use crate::args::{EngineArgs, ModelArgs};
use crate::{gpu, launch};

/// The devices of a layout.
pub(crate) struct Measured {
    pub(crate) devices: Vec<DeviceLimits>,
    /// How many ranks the device with the most of them holds.
    pub(crate) ranks_of_fullest: usize,
}

/// Every device of the layout, at the same time: that is how they will compute. `stored` is the files' type.
pub(crate) fn measure(stored: Format, model: &ModelArgs, args: &EngineArgs) -> Result<Measured> {
    let ranks = args.tensor_size() * args.num_stages() * args.replicas();
    if !launch::on_gpus(args) {
        let threads = args.threads.unwrap_or_else(|| available_parallelism().map_or(1, usize::from));
        let device = Device::new(Box::new(Cpu::new(threads)?), Box::new(Alone), Box::new(Alone));
        let limits = measure_device(&device, Format::BF16, Extent::CPU)?;
        let devices = vec![named(format!("CPU, {threads} threads"), limits)];
        return Ok(Measured { devices, ranks_of_fullest: ranks });
    }
    let (dtype, _) = launch::gpu_types_of(stored, model.dtype)?;
    let format = if dtype == DType::F16 { Format::F16 } else { Format::BF16 };
    let of_ranks = gpu::of_ranks(ranks, &args.gpus)?;
    let holds = |gpu: usize| of_ranks.iter().filter(|of_rank| **of_rank == gpu).count();
    let mut gpus = of_ranks.clone();
    gpus.sort_unstable();
    gpus.dedup();
    let devices = std::thread::scope(|scope| {
        let one = |ordinal: usize| -> Result<DeviceLimits> {
            let limits = measure_device(&gpu::alone(ordinal, dtype, &args.gpus)?, format, Extent::GPU)
                .with_context(|| format!("the limits of GPU {ordinal} cannot be measured"))?;
            Ok(named(name_of_gpu(ordinal), limits))
        };
        let measuring: Vec<_> = gpus.iter().map(|gpu| scope.spawn(move || one(*gpu))).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<DeviceLimits>>| {
            thread.join().unwrap_or_else(|_| Err(anyhow!("a GPU's measurement ended early")))
        };
        measuring.into_iter().map(join).collect::<Result<Vec<_>>>()
    })?;
    let ranks_of_fullest = gpus.iter().map(|gpu| holds(*gpu)).max().unwrap_or(1);
    Ok(Measured { devices, ranks_of_fullest })
}

/// What a GPU is called beside its figures.
pub(crate) fn name_of_gpu(ordinal: usize) -> String {
    format!("GPU {ordinal}")
}

fn named(name: String, Limits { bandwidth, arithmetic }: Limits) -> DeviceLimits {
    DeviceLimits { name, bandwidth, arithmetic }
}
