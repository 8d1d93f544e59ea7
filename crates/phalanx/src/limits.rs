//! Measures the devices that a bench will run on, before the engine takes their memory.

use std::thread::available_parallelism;

use anyhow::{Context, Result, anyhow};
use phalanx_bench::DeviceLimits;
use phalanx_device::collective::alone::Alone;
use phalanx_device::cpu::Cpu;
use phalanx_device::limits::{Extent, Limits, measure as measure_device};
use phalanx_device::{DType, Device, Format};

use crate::args::{DtypeArg, EngineArgs, ModelArgs};
use crate::{gpu, launch};

/// Every device of the layout, at the same time: that is how they will compute.
pub(crate) fn measure(model: &ModelArgs, args: &EngineArgs) -> Result<Vec<DeviceLimits>> {
    if !launch::on_gpus(args) {
        let threads = args.threads.unwrap_or_else(|| available_parallelism().map_or(1, usize::from));
        let device = Device::new(Box::new(Cpu::new(threads)?), Box::new(Alone), Box::new(Alone));
        let limits = measure_device(&device, Format::BF16, Extent::CPU)?;
        return Ok(vec![named(format!("CPU, {threads} threads"), limits)]);
    }
    let (dtype, format) = match model.dtype {
        DtypeArg::Half => (DType::F16, Format::F16),
        _ => (DType::BF16, Format::BF16),
    };
    let ranks = args.tensor_size() * args.num_stages() * args.replicas();
    std::thread::scope(|scope| {
        let one = |ordinal: usize| -> Result<DeviceLimits> {
            let limits = measure_device(&gpu::alone(ordinal, dtype)?, format, Extent::GPU)
                .with_context(|| format!("the limits of GPU {ordinal} cannot be measured"))?;
            Ok(named(format!("GPU {ordinal}"), limits))
        };
        let measuring: Vec<_> =
            (0..ranks.min(gpu::count())).map(|ordinal| scope.spawn(move || one(ordinal))).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<DeviceLimits>>| {
            thread.join().unwrap_or_else(|_| Err(anyhow!("a GPU's measurement ended early")))
        };
        measuring.into_iter().map(join).collect()
    })
}

fn named(name: String, Limits { bandwidth, arithmetic }: Limits) -> DeviceLimits {
    DeviceLimits { name, bandwidth, arithmetic }
}
