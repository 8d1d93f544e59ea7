//! RMSNorm, alone and after the addition to the residual stream.
//!
//! Measured (`examples/operation_speed`, one core of an AMD Zen 4): addition and norm of one row of 896 take 0.2 us.

use super::Cpu;
use super::lanes::{self, Kernel, LANES, Lanes};
use super::parallel;
use super::views::{Rows, RowsMut};
use crate::tensor::{View, ViewMut};

/// See [`crate::Backend::rms_norm`].
pub(super) fn rms_norm(cpu: &Cpu, out: ViewMut<'_>, x: View<'_>, weight: View<'_>, eps: f32) {
    let (out, x) = (RowsMut::<f32>::new(out), Rows::<f32>::new(x));
    let weight = Rows::<f32>::new(weight).row(0);
    let features = cpu.features;
    parallel::bands(&cpu.pool, out, x.width(), |first, mut out| {
        for row in 0..out.rows() {
            lanes::run(features, Normalize { out: out.row(row), x: x.row(first + row), weight, eps });
        }
    });
}

/// See [`crate::Backend::add_rms_norm`].
pub(super) fn add_rms_norm(
    cpu: &Cpu,
    out: ViewMut<'_>,
    residual: ViewMut<'_>,
    x: View<'_>,
    weight: View<'_>,
    eps: f32,
) {
    let (out, residual) = (RowsMut::<f32>::new(out), RowsMut::<f32>::new(residual));
    let x = Rows::<f32>::new(x);
    let weight = Rows::<f32>::new(weight).row(0);
    let features = cpu.features;
    let normalize = |first: usize, mut out: RowsMut<'_, f32>, mut residual: RowsMut<'_, f32>| {
        for row in 0..out.rows() {
            lanes::run(features, Add { to: residual.row(row), x: x.row(first + row) });
            lanes::run(features, Normalize { out: out.row(row), x: residual.row(row), weight, eps });
        }
    };
    let rows = x.rows();
    if !parallel::worth_sharing(&cpu.pool, rows * x.width()) {
        return normalize(0, out, residual);
    }
    let count = parallel::band(&cpu.pool, rows);
    let bands = out.bands(count).zip(residual.bands(count)).enumerate();
    parallel::each(&cpu.pool, bands, |_, (band, (out, residual))| normalize(band * count, out, residual));
}

/// `to += x`.
struct Add<'a> {
    to: &'a mut [f32],
    x: &'a [f32],
}

impl Kernel for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, _: L) {
        for (to, x) in self.to.iter_mut().zip(self.x) {
            *to += x;
        }
    }
}

/// One row: `out = x / sqrt(mean(x^2) + eps) * weight`, each `[width]`.
struct Normalize<'a> {
    out: &'a mut [f32],
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
}

impl Kernel for Normalize<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let Self { out, x, weight, eps } = self;
        let width = x.len();
        assert!(out.len() == width && weight.len() == width, "one width");
        let (chunks, rest) = x.as_chunks::<LANES>();
        // Four sums hide the latency of adding.
        let mut sums = [lanes.splat(0.0); 4];
        for (index, chunk) in chunks.iter().enumerate() {
            let v = lanes.load(chunk);
            sums[index % 4] = lanes.mul_add(v, v, sums[index % 4]);
        }
        let v = lanes.load(&lanes::padded(rest, 0.0));
        sums[0] = lanes.mul_add(v, v, sums[0]);
        let total = lanes.add(lanes.add(sums[0], sums[1]), lanes.add(sums[2], sums[3]));
        let mean = lanes::sum(lanes, total) / width as f32;
        let scale = 1.0 / (mean + eps).sqrt();
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = x * scale * weight;
        }
    }
}
