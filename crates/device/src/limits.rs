//! What a device does at most, measured in a fraction of a second: bytes read and operations done a second.
//!
//! A step of few tokens is held by the reading of weights, one of many by multiplying them, so both limits are measured
//! on what does that: the product of a large matrix with one row, and with many.

use std::time::Instant;

use crate::DeviceError;
use crate::device::Device;
use crate::dtype::DType;
use crate::matrix::{Format, Matrix};
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
}

impl Extent {
    /// A gigabyte of weights, 1.5 in all: several times any GPU's level-2 cache.
    pub const GPU: Self = Self { rows: 32_768, columns: 8192, matrices: 2, tokens: 4096 };
    /// A quarter of a gigabyte, which no core reads from its own cache.
    pub const CPU: Self = Self { rows: 16_384, columns: 8192, matrices: 1, tokens: 64 };
}

/// The best of so many runs counts: whatever else the machine does can only make one slower.
const RUNS: usize = 4;
/// Products of a run, started one after the other and awaited together.
const CALLS: usize = 4;

/// Measures `device`, with weights of `format` (16 bits an element).
///
/// # Errors
/// There is not that much memory, or the device faults.
pub fn measure(device: &Device, format: Format, extent: Extent) -> Result<Limits, DeviceError> {
    let Extent { rows, columns, matrices, tokens } = extent;
    let bytes = noise(rows * format.row_bytes(columns));
    let load = |_| device.load_matrix(format, rows, columns, &bytes);
    let weights: Vec<Matrix> = (0..matrices).map(load).collect::<Result<_, _>>()?;
    drop(bytes);
    let seconds_of = |tokens: usize| -> Result<f64, DeviceError> {
        let x = activations(device, &weights[0], tokens)?;
        let mut out = tensor(device, device.activation_dtype(), tokens, rows)?;
        let mut best = f64::INFINITY;
        // The first run may look for the best algorithm.
        for run in 0..=RUNS {
            let start = Instant::now();
            for call in 0..CALLS {
                device.matmul(out.view_mut(), x.view(), &weights[call % matrices], None);
            }
            device.collect()?;
            if 0 < run {
                best = best.min(start.elapsed().as_secs_f64() / CALLS as f64);
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

/// Bytes that are numbers of about 1 in either 16-bit type, of both signs. They repeat, which no product notices.
fn noise(bytes: usize) -> Vec<u8> {
    const PERIOD: usize = 1 << 16;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut words = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Sign and mantissa are random; the exponent says 0.5 to 2.
        state & 0x80ff_80ff_80ff_80ff | 0x3f00_3f00_3f00_3f00
    };
    let period: Vec<u8> = (0..PERIOD / 8).flat_map(|_| words().to_le_bytes()).collect();
    let mut noise = period.repeat(bytes.div_ceil(PERIOD));
    noise.truncate(bytes);
    noise
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collective::alone::Alone;
    use crate::cpu::Cpu;

    #[test]
    fn a_device_reads_and_multiplies() {
        let device = Device::new(Box::new(Cpu::new(1).expect("a thread")), Box::new(Alone), Box::new(Alone));
        let extent = Extent { rows: 64, columns: 256, matrices: 2, tokens: 3 };
        for format in [Format::BF16, Format::F16] {
            let limits = measure(&device, format, extent).expect("there is memory");
            assert!(0.0 < limits.bandwidth && limits.bandwidth.is_finite(), "{limits:?}");
            assert!(0.0 < limits.arithmetic && limits.arithmetic.is_finite(), "{limits:?}");
        }
    }
}
