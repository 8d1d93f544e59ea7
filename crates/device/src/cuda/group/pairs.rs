//! Shows with data whether two GPUs reach each other's memory, and how fast.

use crate::DeviceError;
use crate::cuda::code::Code;
use crate::cuda::group::kernels::{self, PatternParams};
use crate::cuda::kernels::Launch;
use crate::cuda::runtime::{self, Event, Pinned, Stream};
use crate::tensor::Allocation;

/// What is written and read back.
const BYTES: usize = 16 << 20;
/// Reads one behind the other.
const READS: u64 = 200;

/// What was found out about writing from one GPU to another's memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// The GPU whose kernels write, and read.
    pub from: usize,
    /// The GPU whose memory it is.
    pub to: usize,
    /// The machine says that it can be reached.
    pub access: bool,
    /// What was written there was there, and what was there was read.
    pub verified: bool,
    /// Reads are as fast as writes (NVLink): kernels may read over this link.
    pub close: bool,
    /// Bytes written a second, in GB; 0 without access.
    pub gb_per_s: f32,
    /// Microseconds of one read, there and back; 0 without access or when reads are not used.
    pub latency_us: f32,
}

impl Pair {
    /// Ranks may use each other's memory.
    #[must_use]
    pub fn is_trusted(&self) -> bool {
        self.access && self.verified
    }
}

/// One GPU's memory and stream for the tests.
struct End {
    ordinal: usize,
    memory: Allocation,
    launch: Launch,
    stream: Stream,
    wrong: Pinned,
}

impl End {
    fn new(ordinal: usize) -> Result<Self, DeviceError> {
        // Links are tried before anything else runs: a GPU that has no code at all shall say so.
        Code::of(ordinal)?;
        let memory = runtime::allocate(ordinal, BYTES)?;
        let multiprocessors = runtime::facts(ordinal)?.multiprocessors;
        let stream = Stream::new()?;
        let launch = Launch { stream: stream.handle(), overlaps: 0, multiprocessors };
        Ok(Self { ordinal, memory, launch, stream, wrong: Pinned::new(256)? })
    }

    fn params(&self, at: &Self, seed: u32) -> PatternParams {
        let words = (BYTES / 4) as u64;
        PatternParams { at: at.memory.address(), words, wrong: self.wrong.address(), seed, padding: 0 }
    }

    /// Writes the pattern into the memory of `at`, on this GPU.
    fn fill(&self, at: &Self, seed: u32) -> Result<(), DeviceError> {
        runtime::use_device(self.ordinal)?;
        // SAFETY: the memory spans the words, and is of a device that this one reaches.
        let code = unsafe { kernels::launch_fill_pattern(self.params(at, seed), self.launch) };
        runtime::check(code, "to write a peer's memory")
    }

    /// Whether the memory of `at` holds the pattern, seen from this GPU.
    fn finds(&self, at: &Self, seed: u32) -> Result<bool, DeviceError> {
        runtime::use_device(self.ordinal)?;
        self.wrong.set(0, 0);
        // SAFETY: as above.
        let code = unsafe { kernels::launch_compare_pattern(self.params(at, seed), self.launch) };
        runtime::check(code, "to read a peer's memory")?;
        self.stream.synchronize()?;
        Ok(self.wrong.get(0) == 0)
    }

    /// Microseconds of `work` in this GPU's stream; the second time, when its code is loaded.
    fn time(&self, work: impl Fn() -> Result<(), DeviceError>) -> Result<f32, DeviceError> {
        runtime::use_device(self.ordinal)?;
        let (start, end) = (Event::new(true)?, Event::new(true)?);
        for _ in 0..2 {
            start.record(&self.stream)?;
            work()?;
            end.record(&self.stream)?;
            end.wait()?;
        }
        end.us_since(&start)
    }
}

/// Tries every pair of different GPUs, both ways.
///
/// # Errors
/// A GPU is lost, or has not 16 MiB left.
pub fn check(ordinals: &[usize]) -> Result<Vec<Pair>, DeviceError> {
    let mut gpus = ordinals.to_vec();
    gpus.sort_unstable();
    gpus.dedup();
    if gpus.len() < 2 {
        return Ok(Vec::new());
    }
    let ends = gpus.iter().map(|gpu| End::new(*gpu)).collect::<Result<Vec<_>, _>>()?;
    let mut pairs = Vec::new();
    for from in &ends {
        for to in ends.iter().filter(|to| to.ordinal != from.ordinal) {
            pairs.push(check_pair(from, to, pairs.len() as u32)?);
        }
    }
    Ok(pairs)
}

fn check_pair(from: &End, to: &End, number: u32) -> Result<Pair, DeviceError> {
    let mut pair = Pair {
        from: from.ordinal,
        to: to.ordinal,
        access: runtime::reach(from.ordinal, to.ordinal)?,
        verified: false,
        close: false,
        gb_per_s: 0.0,
        latency_us: 0.0,
    };
    if !pair.access {
        return Ok(pair);
    }
    pair.close = runtime::is_close(from.ordinal, to.ordinal)?;
    // Patterns of other pairs, and what was in the memory before, are no proof.
    let (pushed, read) = (0x5eed_0000 + 2 * number, 0x5eed_0001 + 2 * number);
    let us = from.time(|| from.fill(to, pushed))?;
    pair.gb_per_s = BYTES as f32 / us / 1e3;
    pair.verified = to.finds(to, pushed)?;
    if pair.close {
        to.fill(to, read)?;
        to.stream.synchronize()?;
        pair.verified &= from.finds(to, read)?;
        let chase = || {
            let params = PatternParams { words: READS, ..from.params(to, 0) };
            // SAFETY: it reads the first 8 KiB of memory that this device reaches.
            runtime::check(unsafe { kernels::launch_chase(params, from.launch) }, "to read a peer's memory")
        };
        pair.latency_us = from.time(chase)? / READS as f32;
    }
    Ok(pair)
}
