//! From a row of logits to a token: edits, penalties, temperature, cuts, one draw.
//!
//! The order in which tokens are "likeliest" is total: larger logit first, of equals the lower id. So each cut keeps
//! one well-defined set, and a draw walks it in the order of ids with one number from (seed, position): what comes out
//! depends on the row and its parameters, not on batch, threads or the way the cut was found.
//!
//! Measured (`examples/operation_speed`, one core of an AMD Zen 4, AVX-512, one row of 151,936): greedy 11 us; with 5
//! logprobs 87; temperature 74; temperature and top-p 0.9 80; top-k 20 and top-p 0.8 28; min-p 22. The worst row for
//! top-p is a flat one, of which nearly all is kept: 3 ms.

mod cut;
mod scan;

use std::collections::VecDeque;
use std::sync::{OnceLock, PoisonError};

use self::cut::Candidate;
use self::scan::{Mass, Peak, Scale, Walk};
use super::features::Features;
use super::views::RowsMut;
use super::{Cpu, lanes, parallel, philox};
use crate::sampling::{SampleRow, SampledRow};
use crate::tensor::ViewMut;

/// What was chosen, step by step.
#[derive(Debug, Default)]
pub(super) struct Results {
    /// In the step at hand.
    now: Vec<SampledRow>,
    /// In the steps that have ended, oldest first.
    ended: VecDeque<Vec<SampledRow>>,
}

impl Results {
    /// See [`crate::Backend::end_step`].
    pub(super) fn end_step(&mut self) {
        self.ended.push_back(std::mem::take(&mut self.now));
    }

    /// See [`crate::Backend::is_done`]: operations are done when they return.
    pub(super) fn is_done(&self) -> bool {
        !self.ended.is_empty()
    }

    /// See [`crate::Backend::collect`].
    pub(super) fn collect(&mut self) -> Vec<SampledRow> {
        self.ended.pop_front().unwrap_or_else(|| std::mem::take(&mut self.now))
    }
}

/// See [`crate::Backend::sample`].
pub(super) fn sample(cpu: &Cpu, logits: ViewMut<'_>, vocab: usize, rows: &[SampleRow], tokens: ViewMut<'_>) {
    let logits = RowsMut::<f32>::new(logits);
    let sampled: Vec<OnceLock<SampledRow>> = rows.iter().map(|_| OnceLock::new()).collect();
    let features = cpu.features;
    parallel::each(
        &cpu.pool,
        logits.bands(1).zip(rows.iter().zip(&sampled)),
        |_, (mut band, (row, place))| {
            let chosen = choose(features, &mut band.row(0)[..vocab], row);
            place.set(chosen).expect("a row is sampled once");
        },
    );
    let sampled: Vec<SampledRow> =
        sampled.into_iter().map(|row| row.into_inner().expect("every row was sampled")).collect();
    let mut tokens = RowsMut::<i32>::new(tokens);
    for (index, row) in sampled.iter().enumerate() {
        tokens.row(index)[0] = row.token.cast_signed();
    }
    cpu.sampled.lock().unwrap_or_else(PoisonError::into_inner).now = sampled;
}

/// Samples one row of logits, which is scratch afterwards.
fn choose(features: Features, logits: &mut [f32], row: &SampleRow) -> SampledRow {
    let mut peak = lanes::run(features, Peak { x: logits });
    if !peak.finite {
        return fault();
    }
    // The model's own distribution: before edits, penalties and temperature.
    let (normalizer, top) = match row.logprobs {
        None => (0.0, Vec::new()),
        Some(count) => {
            let scale = Scale { largest: peak.value, temperature: 1.0 };
            let mass: f64 = lanes::run(features, Mass { x: logits, scale }).iter().sum();
            (f64::from(peak.value) + mass.ln(), cut::largest(features, logits, count as usize))
        }
    };
    let originals = edit(logits, row);
    if !originals.is_empty() {
        peak = lanes::run(features, Peak { x: logits });
        // Edits may forbid tokens (minus infinity), but not all of them.
        if !peak.value.is_finite() {
            return fault();
        }
    }
    let token = if row.temperature == 0.0 { peak.token } else { draw(features, logits, peak.value, row) };
    let original = originals.iter().find(|(id, _)| *id == token).map_or(logits[token], |(_, logit)| *logit);
    let logprob = |logit: f32| (f64::from(logit) - normalizer) as f32;
    SampledRow {
        token: token as u32,
        finite: true,
        logprob: row.logprobs.map_or(0.0, |_| logprob(original)),
        top: top.into_iter().map(|Candidate { id, logit }| (id, logprob(logit))).collect(),
    }
}

/// No token can be chosen.
fn fault() -> SampledRow {
    SampledRow { token: 0, finite: false, logprob: 0.0, top: Vec::new() }
}

/// Applies edits, then penalties. Returns what each touched logit was before; the first entry of a token is the oldest.
///
/// Ids at or above the vocabulary's size, which a prompt may contain, have no logit to change.
fn edit(logits: &mut [f32], row: &SampleRow) -> Vec<(usize, f32)> {
    let mut originals = Vec::with_capacity(row.edits.len() + row.seen.len());
    for &(token, added) in &row.edits {
        if let Some(logit) = logits.get_mut(token as usize) {
            originals.push((token as usize, *logit));
            *logit += added;
        }
    }
    for seen in &row.seen {
        if let Some(logit) = logits.get_mut(seen.token as usize) {
            originals.push((seen.token as usize, *logit));
            // CTRL (arXiv 1909.05858): towards less likely on either side of zero.
            *logit =
                if 0.0 < *logit { *logit / row.repetition_penalty } else { *logit * row.repetition_penalty };
            if 0 < seen.output_count {
                *logit -= row.presence_penalty + row.frequency_penalty * seen.output_count as f32;
            }
        }
    }
    originals
}

/// Draws from the row's distribution after temperature and cuts.
fn draw(features: Features, logits: &[f32], largest: f32, row: &SampleRow) -> usize {
    let uniform = philox::uniform(row.seed, row.position);
    let scale = Scale { largest, temperature: row.temperature };
    let share = f64::from(row.top_p);
    let (top_k, top_p, min_p) =
        (0 < row.top_k && (row.top_k as usize) < logits.len(), row.top_p < 1.0, 0.0 < row.min_p);
    let mut kept = match (top_k, top_p, min_p) {
        (false, false, false) => return draw_from_all(features, logits, scale, uniform),
        // Everything that can pass the exact comparison below, with some room for rounding.
        (false, false, true) => {
            cut::near(features, logits, largest + row.temperature * (row.min_p.ln() - 1e-3))
        }
        (false, true, _) => cut::heavy(features, logits, scale, share),
        (true, false, _) => cut::largest(features, logits, row.top_k as usize),
        (true, true, _) => {
            let mut kept = cut::largest(features, logits, row.top_k as usize);
            let weights = cut::weights(features, &kept, scale);
            cut::keep_weight(&mut kept, &weights, share * weights.iter().sum::<f64>());
            kept
        }
    };
    kept.sort_unstable_by_key(|candidate| candidate.id);
    let mut weights = cut::weights(features, &kept, scale);
    // The likeliest token's weight is 1, so `min_p` compares with weights as they are.
    for weight in &mut weights {
        *weight = if *weight < f64::from(row.min_p) { 0.0 } else { *weight };
    }
    let total: f64 = weights.iter().sum();
    let walk = kept.iter().map(|candidate| candidate.id).zip(weights);
    scan::walk(walk, uniform * total).0 as usize
}

/// Draws without any cut.
fn draw_from_all(features: Features, logits: &[f32], scale: Scale, uniform: f64) -> usize {
    let blocks = lanes::run(features, Mass { x: logits, scale });
    let target = uniform * blocks.iter().sum::<f64>();
    lanes::run(features, Walk { x: logits, scale, blocks: &blocks, target })
}
