//! Which way of summing is taken for which size: measured once per group, the same on all its ranks.

use std::fmt;

use crate::cuda::group::mail::FLAGGED_BYTES;

/// A way to sum an array over the ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// Words that carry their own flags.
    Flagged,
    /// Every rank pushes everything to every other.
    OneShot,
    /// Every rank sums a share and hands it out.
    TwoShot,
    /// NVIDIA's library.
    Nccl,
}

impl Algorithm {
    /// All of them, the simplest first.
    pub const ALL: [Self; 4] = [Self::Flagged, Self::OneShot, Self::TwoShot, Self::Nccl];

    /// The longest array it takes in one go, in bytes.
    pub(crate) fn most_bytes(self) -> usize {
        match self {
            Self::Flagged => FLAGGED_BYTES,
            Self::OneShot | Self::TwoShot | Self::Nccl => usize::MAX,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Flagged => "flagged",
            Self::OneShot => "one-shot",
            Self::TwoShot => "two-shot",
            Self::Nccl => "NCCL",
        })
    }
}

/// One size's times.
#[derive(Clone, Debug, PartialEq)]
pub struct SumTiming {
    /// The array's.
    pub bytes: usize,
    /// Microseconds of each algorithm that was tried.
    pub us: Vec<(Algorithm, f32)>,
    /// The one that is taken.
    pub chosen: Algorithm,
}

/// The choice by size.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Table {
    /// Arrays up to so many bytes take this; the last one takes the rest.
    steps: Vec<(usize, Algorithm)>,
}

impl Table {
    /// What is taken before anything was measured, or where it cannot be. `close`: ranks read each other's memory.
    pub(crate) fn untimed(close: bool) -> Self {
        let long = if close { Algorithm::TwoShot } else { Algorithm::OneShot };
        Self { steps: vec![(FLAGGED_BYTES / 2, Algorithm::Flagged), (usize::MAX, long)] }
    }

    /// One algorithm for all sizes, where it can.
    pub(crate) fn always(algorithm: Algorithm) -> Self {
        Self { steps: vec![(usize::MAX, algorithm)] }
    }

    /// From measured sizes, ascending: between two of them the middle of their logarithms parts them.
    pub(crate) fn measured(timings: &[SumTiming]) -> Self {
        let mut steps: Vec<(usize, Algorithm)> = Vec::new();
        for (i, timing) in timings.iter().enumerate() {
            let next = timings.get(i + 1);
            let up_to =
                next.map_or(usize::MAX, |next| (timing.bytes as f64 * next.bytes as f64).sqrt() as usize);
            match steps.last_mut() {
                Some(last) if last.1 == timing.chosen => last.0 = up_to,
                _ => steps.push((up_to, timing.chosen)),
            }
        }
        Self { steps }
    }

    /// What sums an array of `bytes`.
    pub(crate) fn choose(&self, bytes: usize) -> Algorithm {
        let fits = |step: &&(usize, Algorithm)| bytes <= step.0 && bytes <= step.1.most_bytes();
        self.steps.iter().find(fits).map_or(Algorithm::OneShot, |step| step.1)
    }
}

/// The fastest; a simpler one that is within 3 % of it is taken before it.
pub(crate) fn fastest(us: &[(Algorithm, f32)]) -> Algorithm {
    let least = us.iter().map(|(_, us)| *us).fold(f32::INFINITY, f32::min);
    let good = us.iter().find(|(_, us)| *us <= least * 1.03);
    good.map_or(Algorithm::OneShot, |(algorithm, _)| *algorithm)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timing(bytes: usize, flagged: f32, two_shot: f32, nccl: f32) -> SumTiming {
        let us = vec![(Algorithm::Flagged, flagged), (Algorithm::TwoShot, two_shot), (Algorithm::Nccl, nccl)];
        SumTiming { bytes, chosen: fastest(&us), us }
    }

    #[test]
    fn each_size_takes_what_was_fastest_near_it() {
        let table = Table::measured(&[
            timing(1 << 10, 2.0, 5.0, 9.0),
            timing(1 << 16, 4.0, 5.0, 9.0),
            timing(1 << 20, 9.0, 8.0, 12.0),
            timing(1 << 26, f32::INFINITY, 200.0, 100.0),
        ]);
        let chosen = |bytes| table.choose(bytes);
        assert_eq!([chosen(1), chosen(1 << 17)], [Algorithm::Flagged; 2]);
        assert_eq!([chosen(1 << 19), chosen(1 << 22)], [Algorithm::TwoShot; 2]);
        assert_eq!([chosen(1 << 24), chosen(usize::MAX)], [Algorithm::Nccl; 2]);
    }

    #[test]
    fn the_simpler_of_two_equals_is_taken_and_no_size_is_too_long() {
        assert_eq!(fastest(&[(Algorithm::Flagged, 3.05), (Algorithm::OneShot, 3.0)]), Algorithm::Flagged);
        assert_eq!(Table::always(Algorithm::Flagged).choose(FLAGGED_BYTES + 1), Algorithm::OneShot);
    }
}
