//! What the tests of operations share: random numbers, devices, poisoned rectangles.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]

use std::time::{SystemTime, UNIX_EPOCH};

use phalanx_device::collective::alone::Alone;
use phalanx_device::cpu::Cpu;
use phalanx_device::cpu::features::Features;
use phalanx_device::{DType, Device, Tensor, View, ViewMut};

/// SplitMix64 (Steele, Lea, Flood 2014).
pub struct Random {
    pub seed: u64,
    state: u64,
}

impl Random {
    pub fn new(seed: u64) -> Self {
        Self { seed, state: seed }
    }

    /// Other numbers each time; tests print the seed when they fail.
    pub fn fresh() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        Self::new(now.as_nanos() as u64)
    }

    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.bits() % end as u64) as usize
    }

    /// About normal, variance 1.
    pub fn normal(&mut self) -> f32 {
        let sum: f64 = (0..12).map(|_| self.bits() as f64 / u64::MAX as f64).sum();
        (sum - 6.0) as f32
    }

    pub fn normals(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.normal()).collect()
    }

    /// Numbers 0 to `count - 1` in any order.
    pub fn order(&mut self, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..count).collect();
        for i in (1..count).rev() {
            order.swap(i, self.below(i + 1));
        }
        order
    }
}

/// A CPU rank on its own.
pub fn device(features: Features, threads: usize) -> Device {
    let cpu = Cpu::with_features(threads, features).expect("a thread");
    Device::new(Box::new(cpu), Box::new(Alone), Box::new(Alone))
}

/// A rectangle in the middle of a larger tensor whose other elements are NaN.
pub struct Island {
    tensor: Tensor,
    rows: usize,
    width: usize,
}

const MARGIN: usize = 3;

impl Island {
    /// `[rows, width]` of `values`, or of NaN.
    pub fn new(device: &Device, rows: usize, width: usize, values: Option<&[f32]>) -> Self {
        let stride = width + 2 * MARGIN;
        let mut all = vec![f32::NAN; (rows + 2) * stride];
        for (row, values) in values.unwrap_or(&[]).chunks_exact(width.max(1)).enumerate() {
            all[(row + 1) * stride + MARGIN..][..width].copy_from_slice(values);
        }
        Self { tensor: device.tensor_f32(rows + 2, stride, &all).expect("memory"), rows, width }
    }

    pub fn view(&self) -> View<'_> {
        self.tensor.view().slice_rows(1..self.rows + 1).slice_columns(MARGIN..MARGIN + self.width)
    }

    pub fn view_mut(&mut self) -> ViewMut<'_> {
        let (rows, width) = (self.rows, self.width);
        self.tensor.view_mut().slice_rows(1..rows + 1).slice_columns(MARGIN..MARGIN + width)
    }

    /// The rectangle's values; everything around it must still be NaN.
    pub fn values(&self, device: &Device) -> Vec<f32> {
        let stride = self.width + 2 * MARGIN;
        let mut values = Vec::new();
        for (row, all) in device.read_f32(self.tensor.view()).chunks_exact(stride).enumerate() {
            let inside = (1..=self.rows).contains(&row);
            for (column, &value) in all.iter().enumerate() {
                if inside && (MARGIN..MARGIN + self.width).contains(&column) {
                    values.push(value);
                } else {
                    assert!(value.is_nan(), "row {row}, column {column} lies outside and holds {value}");
                }
            }
        }
        values
    }
}

/// A tensor `[rows, width]` of `dtype` and its own.
pub fn tensor(device: &Device, dtype: DType, rows: usize, width: usize) -> Tensor {
    let bytes = phalanx_device::Arena::tensor_bytes(dtype, rows, width);
    device.arena(bytes).expect("memory").tensor(dtype, rows, width)
}

/// Fails where `found` and `expected` differ by more than `tolerance` times (1 + |expected|), or one is NaN.
pub fn assert_close(found: &[f32], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (index, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        let near = (f64::from(found) - expected).abs() <= tolerance * (1.0 + expected.abs());
        assert!(near, "{what}: element {index} is {found}, not {expected}");
    }
}
