//! What links GPUs, found out with data, and how fast their ranks add up over it: for a choice of layout, and for people.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::DeviceError;
use crate::cuda::group::form::{AllReduce, Options, form};
use crate::cuda::group::kernels::MAX_RANKS;
use crate::cuda::group::mail::{Route, Traffic};
use crate::cuda::group::pairs::{self, Pair};
use crate::cuda::group::table::SumTiming;

/// How long a rank waits for another while links are measured.
const DEADLINE: Duration = Duration::from_secs(10);

/// What was found out about a group of GPUs.
#[derive(Clone, Debug, PartialEq)]
pub struct LinkReport {
    /// Every pair of different GPUs, both ways.
    pub pairs: Vec<Pair>,
    /// Where the ranks' mailboxes lie.
    pub route: Route,
    /// NCCL's version, or why it is not there; nothing when it was not wanted.
    pub nccl: Option<Result<String, DeviceError>>,
    /// How long each way to add up takes, by size, and which one is taken; empty where nothing was measured.
    pub sums: Vec<SumTiming>,
    /// For people: what is not as it should be.
    pub warnings: Vec<String>,
}

/// Measures the links between `gpus` and every way to add up over them, NCCL too when it is found in `folders` or where
/// libraries lie. Takes about a second; the sums are of the first eight GPUs.
///
/// # Errors
/// A GPU is lost, or has not 200 MiB left.
pub fn measure(gpus: &[usize], folders: &[PathBuf]) -> Result<LinkReport, DeviceError> {
    let options = Options {
        deadline: DEADLINE,
        all_reduce: AllReduce::Auto,
        folders: folders.to_vec(),
        compare: true,
        floor: None,
    };
    let group = &gpus[..gpus.len().min(MAX_RANKS)];
    let mut links = form(group, Traffic::Sums, &options)?.links;
    if group.len() < gpus.len() {
        links.pairs = pairs::check(gpus)?;
    }
    Ok(links)
}

impl LinkReport {
    /// On one line, for a log.
    #[must_use]
    pub fn summary(&self) -> String {
        let through = match self.route {
            Route::Peer => "over each other's memory",
            Route::Host => "over host memory",
        };
        let mut parts = vec![through.to_owned()];
        if let Some(Ok(version)) = &self.nccl {
            parts.push(format!("with {version}"));
        }
        for run in self.sums.chunk_by(|a, b| a.chosen == b.chosen) {
            let to = run.last().map_or(0, |timing| timing.bytes >> 10);
            parts.push(format!("{} to {to} KiB", run[0].chosen));
        }
        parts.join(", ")
    }
}

impl fmt::Display for LinkReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for pair in &self.pairs {
            let Pair { from, to, gb_per_s, latency_us, .. } = pair;
            match (pair.access, pair.verified) {
                (false, _) => writeln!(f, "GPU {from} -> GPU {to}: no access to its memory")?,
                (true, false) => writeln!(f, "GPU {from} -> GPU {to}: access, but WRONG DATA")?,
                (true, true) if pair.close => writeln!(
                    f,
                    "GPU {from} -> GPU {to}: data right, {gb_per_s:.0} GB/s, {latency_us:.2} us there and back"
                )?,
                (true, true) => {
                    writeln!(f, "GPU {from} -> GPU {to}: data right, {gb_per_s:.0} GB/s, writes only")?;
                }
            }
        }
        match &self.nccl {
            None => {}
            Some(Ok(version)) => writeln!(f, "{version}")?,
            Some(Err(error)) => writeln!(f, "no NCCL: {error}")?,
        }
        if self.sums.is_empty() {
            return Ok(());
        }
        writeln!(f, "all_reduce, microseconds (* is taken), {}", self.summary())?;
        for SumTiming { bytes, us, chosen } in &self.sums {
            write!(f, "{:>8} KiB", bytes >> 10)?;
            for (algorithm, us) in us {
                let mark = if algorithm == chosen { '*' } else { ' ' };
                write!(f, "  {algorithm} {us:.2}{mark}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
