//! What a device does at most, measured in a fraction of a second: bytes read and operations done a second.
//!
//! A step of few tokens is held by the reading of weights, one of many by multiplying them, so both limits are measured
//! on what does that: the product of a large matrix with one row, and with many.

use std::time::Instant;

use crate::DeviceError;
use crate::device::Device;
use crate::dtype::DType;
use crate::matrix::{Format, Matrix};
use crate::noise::Noise;
use crate::tensor::{Arena, Tensor};

/// What a device does a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Bytes read.
    pub bandwidth: f64,
    /// Floating-point operations of a large product; a multiplication and an addition are two.
    pub arithmetic: f64,
}

/// The sizes that are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Rows of each matrix.
    pub rows: usize,
    /// Its columns.
    pub columns: usize,
    /// Matrices read in turns, so that no cache holds the next one.
    pub matrices: usize,
    /// Rows of activations of the large product.
    pub tokens: usize,
    /// Products started one after the other and awaited together.
    pub calls: usize,
}

impl Extent {
    /// A gigabyte of weights, 1.5 in all: several times any GPU's level-2 cache.
    pub const GPU: Self = Self { rows: 32_768, columns: 8192, matrices: 2, tokens: 4096, calls: 4 };
    /// An eighth of a gigabyte, which few processors have a cache for.
    pub const CPU: Self = Self { rows: 8192, columns: 8192, matrices: 1, tokens: 64, calls: 1 };
}

/// The best of so many runs counts: whatever else the machine does can only make one slower.
const RUNS: usize = 4;

/// Measures `device`, with weights of `format` (16 bits an element).
///
/// # Errors
/// There is not that much memory, or the device faults.
pub fn measure(device: &Device, format: Format, extent: Extent) -> Result<Limits, DeviceError> {
    let Extent { rows, columns, matrices, tokens, calls } = extent;
    let make = |key| {
        let noise = Noise {
            key,
            spread: 1.0,
            stored: format,
            tensor_columns: columns,
            rows: 0..rows,
            columns: 0..columns,
        };
        device.make_matrix(format, &[noise])
    };
    let weights: Vec<Matrix> = (0..matrices as u64).map(make).collect::<Result<_, _>>()?;
    let seconds_of = |tokens: usize| -> Result<f64, DeviceError> {
        let x = activations(device, &weights[0], tokens)?;
        let mut out = tensor(device, device.activation_dtype(), tokens, rows)?;
        let mut best = f64::INFINITY;
        // The first run may look for the best algorithm.
        for run in 0..=RUNS {
            let start = Instant::now();
            for call in 0..calls {
                device.matmul(out.view_mut(), x.view(), &weights[call % matrices], None);
            }
            device.collect()?;
            if 0 < run {
                best = best.min(start.elapsed().as_secs_f64() / calls as f64);
            }
        }
        Ok(best)
    };
    let elements = (rows * columns) as f64;
    Ok(Limits {
        bandwidth: (rows * format.row_bytes(columns)) as f64 / seconds_of(1)?,
        arithmetic: 2.0 * tokens as f64 * elements / seconds_of(tokens)?,
    })
}

fn tensor(device: &Device, dtype: DType, rows: usize, width: usize) -> Result<Tensor, DeviceError> {
    Ok(device.arena(Arena::tensor_bytes(dtype, rows, width))?.tensor(dtype, rows, width))
}

/// `[tokens, columns]` of numbers that are not zero: multiplying zeros takes a GPU less power, and so less time.
fn activations(device: &Device, weights: &Matrix, tokens: usize) -> Result<Tensor, DeviceError> {
    let mut ids = tensor(device, DType::I32, tokens, 1)?;
    device.write_i32(ids.view_mut(), &(0..tokens as i32).collect::<Vec<_>>());
    let mut x = tensor(device, device.activation_dtype(), tokens, weights.columns)?;
    device.embed(x.view_mut(), ids.view(), weights, 0);
    Ok(x)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collective::alone::Alone;
    use crate::cpu::Cpu;

    #[test]
    fn a_device_reads_and_multiplies() {
        let device = Device::new(Box::new(Cpu::new(1).expect("a thread")), Box::new(Alone), Box::new(Alone));
        let extent = Extent { rows: 64, columns: 256, matrices: 2, tokens: 3, calls: 2 };
        for format in [Format::BF16, Format::F16] {
            let limits = measure(&device, format, extent).expect("there is memory");
            assert!(0.0 < limits.bandwidth && limits.bandwidth.is_finite(), "{limits:?}");
            assert!(0.0 < limits.arithmetic && limits.arithmetic.is_finite(), "{limits:?}");
        }
    }
}
