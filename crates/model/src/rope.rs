//! Rotary position embedding and YaRN (arXiv 2309.00071): one table of cosines and sines, made at load.
//!
//! Every step is taken in the precision transformers takes it in. At position 100,000 an angle in single precision is
//! off by up to 0.004, and a model answers best with the rounding it is usually run with.

use std::f64::consts::PI;
use std::thread::available_parallelism;

/// Threads that make a table, and positions that are worth one.
const MOST_THREADS: usize = 8;
const LEAST_POSITIONS: usize = 4096;

/// How positions become angles.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// The base: dimension pair `i` turns by `theta^(-2i / head_dim)` a token.
    pub theta: f64,
    /// The stretch beyond the trained length.
    pub yarn: Option<Yarn>,
}

/// YaRN: slow dimensions are interpolated by `factor`, fast ones left alone, with a ramp between.
#[derive(Clone, Debug, PartialEq)]
pub struct Yarn {
    /// How many times the original length is reached.
    pub factor: f64,
    /// Tokens the model was trained on before.
    pub original_len: usize,
    /// Multiplies cosines and sines; `0.1 * ln(factor) + 1` when absent.
    pub attention_factor: Option<f64>,
    /// Dimensions with more rotations than this over the original length are left alone.
    pub beta_fast: f64,
    /// Dimensions with fewer rotations than this are interpolated fully.
    pub beta_slow: f64,
    /// Round the ends of the ramp outwards to whole dimensions.
    pub truncate: bool,
}

impl Yarn {
    /// YaRN with the paper's other values.
    #[must_use]
    pub fn new(factor: f64, original_len: usize) -> Self {
        Self { factor, original_len, attention_factor: None, beta_fast: 32.0, beta_slow: 1.0, truncate: true }
    }

    /// Tokens this reaches.
    #[must_use]
    pub fn stretched_len(&self) -> usize {
        (self.original_len as f64 * self.factor) as usize
    }

    /// The weight of interpolation for each of `half` dimension pairs: 0 leaves alone, 1 interpolates.
    fn ramp(&self, theta: f64, half: usize) -> Vec<f32> {
        let dim = (2 * half) as f64;
        let correction = |rotations: f64| {
            dim * (self.original_len as f64 / (rotations * 2.0 * PI)).ln() / (2.0 * theta.ln())
        };
        let (mut low, mut high) = (correction(self.beta_fast), correction(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        low = low.max(0.0);
        high = high.min(dim - 1.0);
        if low == high {
            high += 0.001;
        }
        (0..half).map(|i| ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0)).collect()
    }
}

impl RopeConfig {
    /// Radians a token turns each of the `head_dim / 2` dimension pairs by.
    #[must_use]
    pub fn inverse_frequencies(&self, head_dim: usize) -> Vec<f32> {
        let half = head_dim / 2;
        // A power in double precision, rounded, is the single precision power almost always, on every machine.
        let power = |i: usize| {
            let exponent = (2 * i) as f32 / head_dim as f32;
            f64::from(self.theta as f32).powf(f64::from(exponent)) as f32
        };
        let Some(yarn) = &self.yarn else { return (0..half).map(|i| 1.0 / power(i)).collect() };
        let ramp = yarn.ramp(self.theta, half);
        let blend = |i: usize| {
            let (alone, interpolated) = (1.0 / power(i), 1.0 / (yarn.factor as f32 * power(i)));
            let share = 1.0 - ramp[i];
            interpolated * (1.0 - share) + alone * share
        };
        (0..half).map(blend).collect()
    }

    /// What cosines and sines are multiplied by.
    #[must_use]
    pub fn attention_factor(&self) -> f32 {
        let Some(yarn) = &self.yarn else { return 1.0 };
        match yarn.attention_factor {
            Some(factor) => factor as f32,
            None if yarn.factor <= 1.0 => 1.0,
            None => (0.1 * yarn.factor.ln() + 1.0) as f32,
        }
    }

    /// `[positions, head_dim]`: the cosines of a position's `head_dim / 2` angles, then their sines.
    #[must_use]
    pub fn table(&self, positions: usize, head_dim: usize) -> Vec<f32> {
        let (frequencies, scale) = (&self.inverse_frequencies(head_dim), self.attention_factor());
        let mut table = vec![0.0; positions * head_dim];
        let fill = |first: usize, rows: &mut [f32]| {
            for (position, row) in (first..).zip(rows.chunks_exact_mut(head_dim)) {
                let (cosines, sines) = row.split_at_mut(head_dim / 2);
                for ((cosine, sine), frequency) in cosines.iter_mut().zip(sines).zip(frequencies) {
                    let angle = position as f32 * frequency;
                    (*cosine, *sine) = (angle.cos() * scale, angle.sin() * scale);
                }
            }
        };
        // Millions of sines for a long context, and every rank wants them before it is ready.
        let threads = available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
        let positions_each = positions.div_ceil(threads).max(LEAST_POSITIONS);
        std::thread::scope(|scope| {
            for (index, rows) in table.chunks_mut(positions_each * head_dim).enumerate() {
                scope.spawn(move || fill(index * positions_each, rows));
            }
        });
        table
    }
}
