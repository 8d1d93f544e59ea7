//! The likeliest tokens of a row, found without sorting it.

use std::cmp::Ordering;

use super::scan::{Mass, Scale, Weigh};
use crate::cpu::features::Features;
use crate::cpu::lanes::{self, Kernel, LANES, Lanes};

/// Logits looked at together: most hold no candidate.
const BLOCK: usize = 4 * LANES;

/// A token that may be kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub(super) id: u32,
    pub(super) logit: f32,
}

/// Likelier first; of equals, the lower id.
fn order(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
}

/// The `count` likeliest tokens, likeliest first.
pub(super) fn largest(features: Features, logits: &[f32], count: usize) -> Vec<Candidate> {
    let count = count.min(logits.len());
    let mut found = lanes::run(features, Largest { logits, count });
    keep(&mut found, count);
    found.sort_unstable_by(order);
    found
}

/// The shortest run of likeliest tokens that weigh `share` of all together, at least one, in the order of ids.
pub(super) fn heavy(features: Features, logits: &[f32], scale: Scale, share: f64) -> Vec<Candidate> {
    let total: f64 = lanes::run(features, Mass { x: logits, scale }).iter().sum();
    // Most rows end the search at once; a flat one widens it until it holds the whole row.
    for reach in [4.0, 8.0, 16.0] {
        let mut found = near(features, logits, scale.largest - reach * scale.temperature);
        let weights = weights(features, &found, scale);
        if share * total <= weights.iter().sum() {
            keep_weight(&mut found, &weights, share * total);
            return found;
        }
    }
    let mut found = near(features, logits, f32::NEG_INFINITY);
    let weights = weights(features, &found, scale);
    keep_weight(&mut found, &weights, share * total);
    found
}

/// All tokens whose logit is at or above `least`, in the order of ids.
pub(super) fn near(features: Features, logits: &[f32], least: f32) -> Vec<Candidate> {
    lanes::run(features, Near { logits, least })
}

/// What the candidates weigh.
pub(super) fn weights(features: Features, candidates: &[Candidate], scale: Scale) -> Vec<f64> {
    let mut weights: Vec<f32> = candidates.iter().map(|candidate| candidate.logit).collect();
    lanes::run(features, Weigh { x: &mut weights, scale });
    weights.into_iter().map(f64::from).collect()
}

/// Keeps the shortest run of likeliest candidates that weigh `target` together, at least one.
///
/// Its last one is found by halving, as a median is: each half is set apart and weighed, never sorted.
pub(super) fn keep_weight(candidates: &mut Vec<Candidate>, weights: &[f64], target: f64) {
    let mut pairs: Vec<(Candidate, f64)> = candidates.iter().copied().zip(weights.iter().copied()).collect();
    // The run ends behind `low` and not behind `high`; what lies before `low` weighs `before`.
    let (mut low, mut high, mut before) = (0, pairs.len(), 0.0);
    while 32 < high - low {
        let half = (high - low) / 2;
        pairs[low..high].select_nth_unstable_by(half, |a, b| order(&a.0, &b.0));
        let weight: f64 = pairs[low..low + half].iter().map(|(_, weight)| weight).sum();
        if target <= before + weight {
            high = low + half;
        } else {
            (low, before) = (low + half, before + weight);
        }
    }
    pairs[low..high].sort_unstable_by(|a, b| order(&a.0, &b.0));
    let passes = |(_, weight): &(Candidate, f64)| {
        before += weight;
        target <= before
    };
    // Rounding may leave the sum of all short of the target.
    let last = pairs[low..high].iter().position(passes).map_or(high - 1, |index| low + index);
    let last = pairs[last].0;
    candidates.retain(|candidate| order(candidate, &last) != Ordering::Greater);
}

/// Keeps the `count` likeliest.
fn keep(found: &mut Vec<Candidate>, count: usize) {
    if 0 < count && count < found.len() {
        found.select_nth_unstable_by(count - 1, order);
    }
    found.truncate(count);
}

/// Collects tokens at or above a threshold.
struct Near<'a> {
    logits: &'a [f32],
    least: f32,
}

impl Kernel for Near<'_> {
    type Output = Vec<Candidate>;

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> Vec<Candidate> {
        let mut found = Vec::new();
        for (index, block) in self.logits.chunks(BLOCK).enumerate() {
            if !reaches(lanes, block, self.least) {
                continue;
            }
            for (offset, &logit) in block.iter().enumerate() {
                if self.least <= logit {
                    found.push(Candidate { id: (index * BLOCK + offset) as u32, logit });
                }
            }
        }
        found
    }
}

/// Collects the `count` likeliest tokens, and some more.
struct Largest<'a> {
    logits: &'a [f32],
    count: usize,
}

impl Kernel for Largest<'_> {
    type Output = Vec<Candidate>;

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> Vec<Candidate> {
        let Self { logits, count } = self;
        if count == 0 {
            return Vec::new();
        }
        let mut found: Vec<Candidate> = Vec::with_capacity(2 * count + BLOCK);
        let mut least = f32::NEG_INFINITY;
        for (index, block) in logits.chunks(BLOCK).enumerate() {
            if !reaches(lanes, block, least) {
                continue;
            }
            for (offset, &logit) in block.iter().enumerate() {
                // Ids ascend: once `count` are found, an equal of the last of them comes too late.
                if least < logit || found.len() < count {
                    found.push(Candidate { id: (index * BLOCK + offset) as u32, logit });
                }
            }
            if 2 * count <= found.len() {
                keep(&mut found, count);
                least = found[count - 1].logit;
            }
        }
        found
    }
}

/// Whether any of up to `BLOCK` logits is at or above `least`.
#[inline(always)]
fn reaches<L: Lanes>(lanes: L, block: &[f32], least: f32) -> bool {
    let (vectors, rest) = block.as_chunks::<LANES>();
    let mut largest = lanes.splat(f32::NEG_INFINITY);
    for v in vectors {
        largest = lanes.max(lanes.load(v), largest);
    }
    if !rest.is_empty() {
        largest = lanes.max(lanes.load(&lanes::padded(rest, rest[0])), largest);
    }
    lanes.any_reaches(largest, lanes.splat(least))
}
