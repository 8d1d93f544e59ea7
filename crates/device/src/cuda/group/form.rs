//! Forms a group: tries its links with data, connects NCCL where it is wanted, and measures which sum is fastest.

use std::path::PathBuf;
use std::sync::{Arc, Barrier};
use std::time::Duration;

use crate::DeviceError;
use crate::collective::floor::Floor;
use crate::cuda::code::Code;
use crate::cuda::group::kernels::MAX_RANKS;
use crate::cuda::group::links::LinkReport;
use crate::cuda::group::mail::{Route, Shared, Traffic};
use crate::cuda::group::nccl::{Communicator, Nccl, Watch};
use crate::cuda::group::pairs::{self, Pair};
use crate::cuda::group::table::{Algorithm, SumTiming, Table, fastest};
use crate::cuda::group::{Group, Seat};
use crate::cuda::kernels::Launch;
use crate::cuda::runtime::{self, Event, Graph, Stream};
use crate::dtype::DType;

/// Sizes that are measured: a row of hidden states, a batch, a long prompt, and between.
const SIZES: [usize; 7] = [8 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20];
/// How long a rank waits for another while it is measured.
const MEASURED_WITHIN: Duration = Duration::from_secs(10);
/// Sums of one measurement, for small and for large arrays, and measurements of which the median counts.
const SUMS: usize = 20;
const LARGE_SUMS: usize = 2;
const LARGE_BYTES: usize = 4 << 20;
const REPEATS: usize = 3;

/// How arrays are summed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AllReduce {
    /// Whatever was measured to be fastest for the size.
    #[default]
    Auto,
    /// Our own kernels over peers' memory only.
    Peer,
    /// NCCL for all sizes.
    Nccl,
    /// Our own kernels over pinned host memory.
    Host,
}

/// What a group needs to know.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long a rank waits for another before it calls it lost.
    pub deadline: Duration,
    /// How arrays are summed.
    pub all_reduce: AllReduce,
    /// Where NVIDIA's libraries are looked for first.
    pub folders: Vec<PathBuf>,
    /// Time every algorithm there is, also those that this machine can do without.
    pub compare: bool,
    /// For groups of a process in which ranks share GPUs, whether or not they do within a group: the same for all of them.
    pub floor: Option<Arc<Floor>>,
}

/// A group that was formed.
pub struct Formed {
    /// One a rank, in order.
    pub seats: Vec<Seat>,
    /// The ways to sum that this group can take.
    pub algorithms: Vec<Algorithm>,
    /// What was found out about its GPUs.
    pub links: LinkReport,
}

/// Makes a group of the GPUs `ordinals`, one rank each, in this order. A GPU may have several ranks.
///
/// # Errors
/// There are more than eight, one has no room, or what [`AllReduce`] asks for is not there.
pub fn form(ordinals: &[usize], traffic: Traffic, options: &Options) -> Result<Formed, DeviceError> {
    if MAX_RANKS < ordinals.len() {
        return Err(DeviceError(format!("{} ranks in a group: at most {MAX_RANKS}", ordinals.len())));
    }
    let pairs = pairs::check(ordinals)?;
    let (route, warnings) = route(&pairs, options.all_reduce)?;
    let mut shared = Shared::new(ordinals, traffic, route, options)?;
    let mut links = LinkReport { pairs, route, nccl: None, sums: Vec::new(), warnings };
    let sums = traffic == Traffic::Sums && 1 < ordinals.len();
    let needs_library = needs_library(&links.pairs, route, options.all_reduce);
    if sums && (needs_library || options.compare) {
        links.nccl = Some(connect(&mut shared, &links.pairs, options));
        if let Some(Err(error)) = &links.nccl {
            if options.all_reduce == AllReduce::Nccl {
                return Err(DeviceError(format!("--all-reduce nccl: {error}")));
            }
            if needs_library && shared.signals.turns.is_none() {
                links.warnings.push(format!("sums go without NCCL: {error}"));
            }
        }
    }
    let algorithms = candidates(&shared, &links.pairs);
    shared.table = Table::untimed(algorithms.contains(&Algorithm::TwoShot));
    if options.all_reduce == AllReduce::Nccl && sums {
        shared.table = Table::always(Algorithm::Nccl);
    } else if sums && shared.signals.turns.is_none() {
        let deadline = std::mem::replace(&mut shared.deadline, MEASURED_WITHIN);
        let measured = Arc::new(shared);
        links.sums = measure(&measured, &algorithms)?;
        shared = Arc::into_inner(measured).expect("the threads that measured have ended");
        shared.deadline = deadline;
        shared.table = Table::measured(&links.sums);
    }
    shared.watch = watch(&shared)?;
    let shared = Arc::new(shared);
    let seats = (0..ordinals.len()).map(|rank| Seat { rank, shared: Arc::clone(&shared) }).collect();
    Ok(Formed { seats, algorithms, links })
}

/// Where mailboxes lie, and what to say about it.
fn route(pairs: &[Pair], asked: AllReduce) -> Result<(Route, Vec<String>), DeviceError> {
    let mut warnings = Vec::new();
    for Pair { from, to, .. } in pairs.iter().filter(|pair| pair.access && !pair.verified) {
        warnings.push(format!(
            "GPU {from} says that it reaches the memory of GPU {to}, but what it wrote or read there was wrong: peer access \
             is not used. Turning off the IOMMU or ACS in the machine's firmware often helps"
        ));
    }
    let trusted = pairs.iter().all(Pair::is_trusted);
    match asked {
        AllReduce::Host => Ok((Route::Host, warnings)),
        AllReduce::Peer if !trusted => Err(DeviceError(format!(
            "--all-reduce peer: {}",
            warnings.pop().unwrap_or_else(|| "the GPUs do not reach each other's memory".to_owned())
        ))),
        _ if trusted => Ok((Route::Peer, warnings)),
        _ => Ok((Route::Host, warnings)),
    }
}

/// Where GPUs are close, our own sums were faster than the library's at every size.
fn needs_library(pairs: &[Pair], route: Route, asked: AllReduce) -> bool {
    match asked {
        AllReduce::Nccl => true,
        AllReduce::Peer | AllReduce::Host => false,
        AllReduce::Auto => route == Route::Host || !pairs.iter().all(|pair| pair.close),
    }
}

/// Connects every rank's communicator, each on a thread of its own.
fn connect(shared: &mut Shared, pairs: &[Pair], options: &Options) -> Result<String, DeviceError> {
    if shared.signals.turns.is_some() {
        return Err(DeviceError("NCCL wants a GPU for each rank".to_owned()));
    }
    let nccl =
        Arc::new(Nccl::open(&options.folders, pairs.iter().all(|pair| pair.verified || !pair.access))?);
    let id = nccl.unique_id()?;
    let deadline = shared.deadline;
    let joined: Vec<Result<Communicator, DeviceError>> = std::thread::scope(|scope| {
        let join = |(rank, ordinal): (usize, &usize)| {
            let (nccl, signals, ordinal) = (Arc::clone(&nccl), Arc::clone(&shared.signals), *ordinal);
            scope.spawn(move || {
                runtime::use_device(ordinal)?;
                Communicator::join(nccl, id, rank, deadline, signals)
            })
        };
        let threads: Vec<_> = shared.ordinals.iter().enumerate().map(join).collect();
        threads.into_iter().map(|thread| thread.join().expect("joining does not panic")).collect()
    });
    shared.communicators = joined.into_iter().collect::<Result<_, _>>()?;
    Ok(nccl.describe())
}

/// What ends the library's calls, which have no deadline.
fn watch(shared: &Shared) -> Result<Option<Watch>, DeviceError> {
    let communicators = Arc::clone(&shared.communicators);
    let watched = !communicators.is_empty();
    watched.then(|| Watch::start(Arc::clone(&shared.signals), communicators, shared.deadline)).transpose()
}

/// The algorithms that this group can use.
fn candidates(shared: &Shared, pairs: &[Pair]) -> Vec<Algorithm> {
    let close = shared.route == Route::Peer && pairs.iter().all(|pair| pair.close);
    Algorithm::ALL
        .into_iter()
        .filter(|algorithm| match algorithm {
            Algorithm::Flagged | Algorithm::OneShot => true,
            Algorithm::TwoShot => close,
            Algorithm::Nccl => !shared.communicators.is_empty(),
        })
        .collect()
}

/// Times the algorithms on all ranks at once. A sum takes as long as its slowest rank.
fn measure(shared: &Arc<Shared>, candidates: &[Algorithm]) -> Result<Vec<SumTiming>, DeviceError> {
    let barrier = Barrier::new(shared.size());
    // The library's first sum is what hangs where links are not what they seem.
    let watched = watch(shared)?;
    let ranks: Vec<Result<Vec<f32>, DeviceError>> = std::thread::scope(|scope| {
        let start = |rank: usize| {
            let (shared, barrier) = (Arc::clone(shared), &barrier);
            scope.spawn(move || measure_rank(&shared, rank, candidates, barrier))
        };
        let threads: Vec<_> = (0..shared.size()).map(start).collect();
        threads.into_iter().map(|thread| thread.join().expect("measuring does not panic")).collect()
    });
    drop(watched);
    let ranks = ranks.into_iter().collect::<Result<Vec<_>, _>>()?;
    let slowest = |i: usize| ranks.iter().map(|us| us[i]).fold(0.0, f32::max);
    let mut cases = cases(candidates).enumerate().peekable();
    let mut timings = Vec::new();
    while let Some((_, (bytes, _))) = cases.peek().copied() {
        let mut us = Vec::new();
        while let Some((i, (_, algorithm))) = cases.next_if(|(_, (same, _))| *same == bytes) {
            us.push((algorithm, slowest(i)));
        }
        timings.push(SumTiming { bytes, chosen: fastest(&us), us });
    }
    Ok(timings)
}

/// Every size with every algorithm that takes it.
fn cases(candidates: &[Algorithm]) -> impl Iterator<Item = (usize, Algorithm)> {
    SIZES.into_iter().flat_map(move |bytes| {
        let takes = move |algorithm: &&Algorithm| bytes <= algorithm.most_bytes();
        candidates.iter().filter(takes).map(move |algorithm| (bytes, *algorithm))
    })
}

/// One rank's microseconds of each case.
fn measure_rank(
    shared: &Arc<Shared>,
    rank: usize,
    candidates: &[Algorithm],
    barrier: &Barrier,
) -> Result<Vec<f32>, DeviceError> {
    let prepared = prepare(shared, rank);
    // A rank that cannot take part ends the others' waits before they begin.
    let stopped = |error: &DeviceError| shared.signals.stop(&error.to_string());
    let prepared = prepared.inspect_err(stopped);
    barrier.wait();
    let measured = match &prepared {
        Ok((group, memory)) => time_all(group, candidates, memory.address()).inspect_err(stopped),
        Err(error) => Err(error.clone()),
    };
    // Peers may still write to this rank's memory: nobody gives it back before all are done.
    if let Ok((group, _)) = &prepared {
        group.finish();
    }
    barrier.wait();
    measured
}

fn time_all(group: &Group, candidates: &[Algorithm], memory: usize) -> Result<Vec<f32>, DeviceError> {
    let times = cases(candidates).map(|(bytes, algorithm)| time(group, algorithm, (memory, bytes)));
    let times = times.collect::<Result<Vec<_>, _>>()?;
    match crate::collective::Collective::fault(group) {
        Some(fault) => Err(fault),
        None => Ok(times),
    }
}

fn prepare(shared: &Arc<Shared>, rank: usize) -> Result<(Group, crate::tensor::Allocation), DeviceError> {
    let ordinal = shared.ordinals[rank];
    let memory = runtime::allocate(ordinal, SIZES[SIZES.len() - 1])?;
    let facts = runtime::facts(ordinal)?;
    let stream = Arc::new(Stream::new()?);
    stream.fill(memory.address(), 0, memory.bytes())?;
    stream.synchronize()?;
    let launch = Launch {
        stream: stream.handle(),
        overlaps: u32::from(Code::of(ordinal)?.overlaps()),
        multiprocessors: facts.multiprocessors,
    };
    Ok((Group::new(Arc::clone(shared), rank, launch, stream), memory))
}

/// Median microseconds of a sum of the array `(address, bytes)`, in a graph of several, as a step's sums are.
pub(crate) fn time(
    group: &Group,
    algorithm: Algorithm,
    (x, bytes): (usize, usize),
) -> Result<f32, DeviceError> {
    let sums = if bytes < LARGE_BYTES { SUMS } else { LARGE_SUMS };
    let sum = || group.sum(algorithm, x, bytes / 2, DType::BF16);
    // Loads code and connects; nothing may do so while a graph is recorded.
    sum();
    group.stream.synchronize()?;
    let graph = Graph::capture(&group.stream, || (0..sums).for_each(|_| sum()))?;
    group.check_recorded()?;
    let (start, end) = (Event::new(true)?, Event::new(true)?);
    let mut times = Vec::new();
    for _ in 0..=REPEATS {
        // The ranks start together, as far as a short sum brings them together.
        group.sum(Algorithm::Flagged, x, 8, DType::BF16);
        start.record(&group.stream)?;
        graph.start(&group.stream)?;
        end.record(&group.stream)?;
        end.wait()?;
        times.push(end.us_since(&start)? / sums as f32);
    }
    let times = &mut times[1..];
    times.sort_by(f32::total_cmp);
    Ok(times[REPEATS / 2])
}
