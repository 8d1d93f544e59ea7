//! GPUs looked at rather than computed with: for `doctor` and for gauges. Without the feature `cuda` its place is taken
//! by `no_cards.rs`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use phalanx_device::cpu::Cpu;
use phalanx_device::cuda::group::form::{AllReduce, Options, form};
use phalanx_device::cuda::group::links::LinkReport;
use phalanx_device::cuda::group::mail::Traffic;
use phalanx_device::cuda::group::pairs::Pair;
use phalanx_device::cuda::group::table::{Algorithm, SumTiming};
use phalanx_device::cuda::nvml::Nvml;
use phalanx_device::cuda::parity::{self, Planted, Report};
use phalanx_device::cuda::{Cuda, card, code, device_count, group, libraries, links, speed};
use phalanx_device::facts::{GpuFacts, Holder};
use phalanx_device::{Backend, DType, DeviceError};
use phalanx_model::layout::cards::Hardware;
use phalanx_model::layout::links::AllReduceTimes;

use crate::args::AllReduceArg;
use crate::doctor::gpus::Survey;
use crate::doctor::kernels::{Case, Checked};
use crate::doctor::sums::{Sum, Sums};
use crate::layout::auto::{Gpu, Probed};
use crate::no_room::CardRoom;

/// What `phalanx --version` says: the kernels, too.
pub(crate) const VERSION: &str = code::VERSION;

/// Ranks of the groups that are tried.
const MOST_RANKS: usize = 8;
const GROUP_DEADLINE: Duration = Duration::from_secs(10);

/// Everything there is to know about this machine's GPUs.
pub(crate) fn survey(folders: &[PathBuf]) -> Option<Survey> {
    let usable = device_count().map_err(|error| error.to_string());
    let nvml = Nvml::open().map_err(|error| error.to_string());
    let ordinals: Vec<usize> = (0..usable.clone().unwrap_or(0)).collect();
    Some(Survey {
        built: code::built(),
        driver: nvml.as_ref().map(Nvml::driver).map_err(Clone::clone),
        gpus: nvml.and_then(|nvml| nvml.gpus().map_err(|error| error.to_string())),
        libraries: libraries::found(folders),
        links: links::measure(&ordinals),
        sums: sums(&ordinals, folders).map_err(|error| error.to_string()),
        usable,
    })
}

/// The memory of the GPUs that ranks have, `of_ranks`, and who other than this process holds it; nothing where nobody can
/// tell.
pub(crate) fn room(of_ranks: &[usize]) -> Vec<CardRoom> {
    let gpus = Nvml::open().and_then(|nvml| nvml.gpus()).unwrap_or_default();
    let room = |gpu: GpuFacts| {
        let memory = gpu.memory.ok()?;
        let others = |holders: Vec<Holder>| -> Vec<Holder> {
            holders.into_iter().filter(|holder| holder.pid != std::process::id()).collect()
        };
        let ordinal = gpu.ordinal?;
        let ranks = of_ranks.iter().filter(|of_rank| **of_rank == ordinal).count();
        (0 < ranks).then(|| CardRoom {
            ordinal,
            ranks,
            total: memory.total as usize,
            free: memory.free as usize,
            holders: gpu.holders.map(others),
        })
    };
    gpus.into_iter().filter_map(room).collect()
}

/// These GPUs as a layout is chosen for.
pub(crate) fn at_hand(ordinals: &[usize]) -> Result<Vec<Gpu>> {
    let look = |ordinal: &usize| {
        let card = card::look_at(*ordinal)?;
        let hardware = Hardware {
            name: card.name,
            memory_bytes: card.total_bytes,
            memory_bandwidth: card.memory_bandwidth,
            capability: card.capability,
            multiprocessors: card.multiprocessors,
            clock: card.clock,
        };
        Ok(Gpu { uuid: card.uuid, hardware, free_bytes: card.free_bytes })
    };
    ordinals.iter().map(look).collect()
}

/// What decides how these GPUs add up, beside themselves: what was asked for, and NCCL's version.
pub(crate) fn ways(asked: AllReduceArg, folders: &[PathBuf]) -> String {
    let nccl = libraries::nccl(folders).map_or("none".to_owned(), |(_, version)| version);
    format!("all-reduce {asked:?}, NCCL {nccl}")
}

/// What lies between these GPUs, found out with data; sums are timed in groups of two, four and eight of them, and of all,
/// in the way that was asked for.
pub(crate) fn probe(ordinals: &[usize], asked: AllReduceArg, folders: &[PathBuf]) -> Result<Probed> {
    let most = ordinals.len().min(MOST_RANKS);
    let mut sizes: Vec<usize> = [2, 4, 8].into_iter().filter(|size| *size < most).collect();
    sizes.push(most);
    let mut all_reduce = Vec::new();
    let mut pairs = Vec::new();
    for ranks in sizes {
        // The last group is of the most GPUs, and with it all pairs are tried.
        let of = if ranks == most { ordinals } else { &ordinals[..ranks] };
        let found = match asked {
            AllReduceArg::Host => by_host(&of[..ranks], folders)?,
            _ => group::links::measure(of, folders)?,
        };
        let taken = |timing: &SumTiming| Some((timing.bytes, taken_us(timing, asked)?));
        let times: Vec<(usize, f64)> = found.sums.iter().filter_map(taken).collect();
        if !times.is_empty() {
            all_reduce.push(AllReduceTimes { ranks, times });
        }
        pairs = found.pairs;
    }
    let reaches = asked != AllReduceArg::Host && pairs.iter().all(Pair::is_trusted);
    let slowest = pairs.iter().map(|pair| f64::from(pair.gb_per_s) * 1e9).min_by(f64::total_cmp);
    Ok(Probed { reaches, write_bandwidth: slowest.filter(|_| reaches), all_reduce })
}

/// How these GPUs add up through the host's memory, whether or not they reach each other's.
fn by_host(ordinals: &[usize], folders: &[PathBuf]) -> Result<LinkReport, DeviceError> {
    let folders = folders.to_vec();
    let options = Options {
        deadline: GROUP_DEADLINE,
        all_reduce: AllReduce::Host,
        folders,
        compare: false,
        floor: None,
    };
    Ok(form(ordinals, Traffic::Sums, &options)?.links)
}

/// Microseconds of the way that is taken when `asked` is asked for; none where that way was not timed.
fn taken_us(timing: &SumTiming, asked: AllReduceArg) -> Option<f64> {
    let is_allowed = |way: Algorithm| match asked {
        AllReduceArg::Auto => way == timing.chosen,
        AllReduceArg::Nccl => way == Algorithm::Nccl,
        AllReduceArg::Peer | AllReduceArg::Host => way != Algorithm::Nccl,
    };
    let allowed = timing.us.iter().filter(|(way, _)| is_allowed(*way)).map(|(_, us)| f64::from(*us));
    allowed.min_by(f64::total_cmp)
}

/// Reads how the GPUs stand, again and again; none where the driver's library is not there.
pub(crate) fn watch() -> Option<Box<dyn Fn() -> Vec<GpuFacts> + Send + Sync>> {
    match Nvml::watch() {
        Ok(nvml) => Some(Box::new(move || nvml.gpus().unwrap_or_default())),
        Err(error) => {
            tracing::warn!("/metrics has no figures of GPUs: {error}");
            None
        }
    }
}

/// How these GPUs add up.
fn sums(ordinals: &[usize], folders: &[PathBuf]) -> Result<Sums, DeviceError> {
    if ordinals.is_empty() {
        return Ok(Sums { summary: String::new(), warnings: Vec::new(), table: Vec::new() });
    }
    let report = group::links::measure(ordinals, folders)?;
    let sum = |timing: &SumTiming| Sum {
        bytes: timing.bytes,
        us: timing.us.iter().map(|(way, us)| (way.to_string(), *us)).collect(),
        chosen: timing.chosen.to_string(),
    };
    let table = report.sums.iter().map(sum).collect();
    Ok(Sums { summary: report.summary(), warnings: report.warnings, table })
}

/// Every operation against the CPU's; `planted` tells the device of one row too few, which must be found.
pub(crate) fn check(dtypes: &[DType], planted: bool, folders: &[PathBuf]) -> Result<Checked> {
    let count = device_count()?;
    let planted = if planted { Planted::OffByOne } else { Planted::Nothing };
    let reference = Cpu::new(std::thread::available_parallelism().map_or(1, usize::from))?;
    let mut checked = Checked { device: String::new(), cases: Vec::new(), sums: Vec::new() };
    for dtype in dtypes {
        let cuda = Cuda::with_libraries(0, *dtype, folders)?;
        checked.device = cuda.describe();
        checked.cases.extend(cases(dtype_name(*dtype), parity::run(&cuda, &reference, planted)));
    }
    // What ranks do together has no mistake planted.
    if planted != Planted::Nothing {
        return Ok(checked);
    }
    let options = Options {
        deadline: GROUP_DEADLINE,
        all_reduce: AllReduce::Auto,
        folders: folders.to_vec(),
        compare: false,
        floor: None,
    };
    let each: Vec<usize> = (0..count.min(MOST_RANKS)).collect();
    // More ranks than GPUs: slower, but as right.
    let shared = [0, 0, count.min(2) - 1, count.min(2) - 1];
    for ordinals in [each.as_slice(), shared.as_slice()].into_iter().filter(|ordinals| 1 < ordinals.len()) {
        checked.cases.extend(cases("all", parity::group::run(ordinals, &options)?));
    }
    if 1 < count {
        checked.sums = sums(&each, folders)?.table;
    }
    Ok(checked)
}

fn cases(dtype: &'static str, report: Report) -> impl Iterator<Item = Case> {
    report.outcomes.into_iter().map(move |outcome| Case {
        dtype,
        operation: outcome.operation,
        case: outcome.case,
        error: outcome.error,
        limit: outcome.limit,
    })
}

fn dtype_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F16 => "fp16",
        _ => "bf16",
    }
}

/// How long each operation takes, and how near that is to the machine's limits.
pub(crate) fn speed(dtype: DType, folders: &[PathBuf]) -> Result<String> {
    Ok(speed::run(&Cuda::with_libraries(0, dtype, folders)?)?.to_string())
}
