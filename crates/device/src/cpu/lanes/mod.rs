//! Sixteen f32 lanes on any processor: operations are written once and compiled for each set of instructions.
//!
//! A [`Lanes`] value is a token: it can only be had where the processor has the instructions its methods use, which is
//! what makes those methods safe to call. [`run`] enters a function compiled for these instructions; everything a
//! [`Kernel`] calls on the way must be `#[inline(always)]` to be compiled for them, too.
//!
//! Sixteen lanes everywhere means that AVX2 and AVX-512 add in the same order and give the same bits. The portable set
//! multiplies and adds with two roundings, for fused ones would be calls to the C library.

#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use std::array;

use half::{bf16, f16};

use super::features::{Features, Level};

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;

/// How large a piece of a product fits the registers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Registers {
    /// 32 registers of 16 lanes.
    Many,
    /// 16 registers of 8 lanes, or fewer.
    Few,
}

/// The operations on sixteen lanes.
pub(crate) trait Lanes: Copy {
    /// Sixteen f32.
    type V: Copy;
    /// How many vectors there is room for.
    const REGISTERS: Registers;

    fn splat(self, x: f32) -> Self::V;
    fn load(self, from: &[f32; LANES]) -> Self::V;
    fn store(self, to: &mut [f32; LANES], v: Self::V);
    fn load_f16(self, from: &[f16; LANES]) -> Self::V;
    fn store_f16(self, to: &mut [f16; LANES], v: Self::V);
    fn load_bf16(self, from: &[bf16; LANES]) -> Self::V;
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `a` where it is above `b`, otherwise `b`: a NaN in `b` stays, one in `a` does not.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a` where it is below `b`, otherwise `b`: a NaN in `b` stays, one in `a` does not.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// 2 to the power of the integers that `MAGIC + n` holds in its low bits, `n` in -126 ..= 127.
    fn power_of_two(self, magic_plus_n: Self::V) -> Self::V;
    /// Whether any lane of `a` is at or above that of `b`.
    fn any_reaches(self, a: Self::V, b: Self::V) -> bool;
    /// Row `i`, lane `j` becomes row `j`, lane `i`.
    fn transpose(self, rows: [Self::V; LANES]) -> [Self::V; LANES];
}

/// An operation to be compiled for each set of instructions.
pub(crate) trait Kernel {
    /// What it returns.
    type Output;

    /// Does it. Implementations are `#[inline(always)]`, and so is all they call in loops.
    fn run<L: Lanes>(self, lanes: L) -> Self::Output;
}

/// Runs `kernel` with the instructions of `features`.
#[cfg(target_arch = "x86_64")]
pub(crate) fn run<K: Kernel>(features: Features, kernel: K) -> K::Output {
    match features.level() {
        Level::Avx512 => avx512::run(features, kernel),
        Level::Avx2 => avx2::run(features, kernel),
        Level::Portable => kernel.run(portable::Portable),
    }
}

/// Runs `kernel` with the instructions of `features`.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn run<K: Kernel>(features: Features, kernel: K) -> K::Output {
    match features.level() {
        Level::Avx512 | Level::Avx2 | Level::Portable => kernel.run(portable::Portable),
    }
}

/// 1.5 * 2^23: adding it rounds to an integer, which then stands in the low bits.
const MAGIC: f32 = 12_582_912.0;

/// e to the power of `x`, relative error below 2e-7. Below -87.3 it stays at e^-87.3, above 88.3 at e^88.3; NaN stays NaN.
///
/// `x = n ln 2 + r` with |r| <= ln 2 / 2; e^r by its Taylor polynomial of degree 7, whose remainder is below 6e-9.
#[inline(always)]
pub(crate) fn exp<L: Lanes>(lanes: L, x: L::V) -> L::V {
    let x = lanes.max(lanes.splat(-87.3), x);
    let x = lanes.min(lanes.splat(88.3), x);
    let shifted = lanes.mul_add(x, lanes.splat(std::f32::consts::LOG2_E), lanes.splat(MAGIC));
    let n = lanes.sub(shifted, lanes.splat(MAGIC));
    // ln 2 in two parts, the first of nine bits, so that n * part is exact.
    let r = lanes.mul_add(n, lanes.splat(-355.0 / 512.0), x);
    let r = lanes.mul_add(n, lanes.splat(2.121_944_4e-4), r);
    let mut sum = lanes.splat(1.0 / 5040.0);
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = lanes.mul_add(sum, r, lanes.splat(coefficient));
    }
    lanes.mul(sum, lanes.power_of_two(shifted))
}

/// [`exp`] of one number, the same bits as in a lane.
#[inline(always)]
pub(crate) fn exp_one<L: Lanes>(lanes: L, x: f32) -> f32 {
    to_array(lanes, exp(lanes, lanes.splat(x)))[0]
}

/// The lanes as an array.
#[inline(always)]
pub(crate) fn to_array<L: Lanes>(lanes: L, v: L::V) -> [f32; LANES] {
    let mut array = [0.0; LANES];
    lanes.store(&mut array, v);
    array
}

/// The sum of the lanes, by halves.
#[inline(always)]
pub(crate) fn sum<L: Lanes>(lanes: L, v: L::V) -> f32 {
    let mut x = to_array(lanes, v);
    let mut half = LANES / 2;
    while 0 < half {
        for lane in 0..half {
            x[lane] += x[lane + half];
        }
        half /= 2;
    }
    x[0]
}

/// The largest lane; any if there is a NaN.
#[inline(always)]
pub(crate) fn largest<L: Lanes>(lanes: L, v: L::V) -> f32 {
    let mut x = to_array(lanes, v);
    let mut half = LANES / 2;
    while 0 < half {
        for lane in 0..half {
            x[lane] = if x[lane] > x[lane + half] { x[lane] } else { x[lane + half] };
        }
        half /= 2;
    }
    x[0]
}

/// Sixteen elements at the start of `from`, padded with `fill` when there are fewer.
#[inline(always)]
pub(crate) fn padded(from: &[f32], fill: f32) -> [f32; LANES] {
    let mut array = [fill; LANES];
    array[..from.len()].copy_from_slice(from);
    array
}

/// An element of the KV cache: kept in memory as it is, computed with as f32.
pub(crate) trait Stored: super::views::Element + Default {
    /// Sixteen of them.
    fn load<L: Lanes>(lanes: L, from: &[Self; LANES]) -> L::V;
    /// Sixteen f32 rounded to this type.
    fn store<L: Lanes>(lanes: L, to: &mut [Self; LANES], v: L::V);
}

impl Stored for f32 {
    #[inline(always)]
    fn load<L: Lanes>(lanes: L, from: &[Self; LANES]) -> L::V {
        lanes.load(from)
    }

    #[inline(always)]
    fn store<L: Lanes>(lanes: L, to: &mut [Self; LANES], v: L::V) {
        lanes.store(to, v);
    }
}

impl Stored for f16 {
    #[inline(always)]
    fn load<L: Lanes>(lanes: L, from: &[Self; LANES]) -> L::V {
        lanes.load_f16(from)
    }

    #[inline(always)]
    fn store<L: Lanes>(lanes: L, to: &mut [Self; LANES], v: L::V) {
        lanes.store_f16(to, v);
    }
}

impl Stored for bf16 {
    #[inline(always)]
    fn load<L: Lanes>(lanes: L, from: &[Self; LANES]) -> L::V {
        lanes.load_bf16(from)
    }

    #[inline(always)]
    fn store<L: Lanes>(lanes: L, to: &mut [Self; LANES], v: L::V) {
        // One row a token is stored but all rows before it are read: storing may take its time.
        *to = to_array(lanes, v).map(bf16::from_f32);
    }
}

/// The transpose of arrays, for sets of instructions without a better one.
#[inline(always)]
fn transpose_arrays(rows: [[f32; LANES]; LANES]) -> [[f32; LANES]; LANES] {
    array::from_fn(|i| array::from_fn(|j| rows[j][i]))
}
