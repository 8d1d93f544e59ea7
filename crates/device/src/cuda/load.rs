//! Takes weights in: dense ones are copied, converted on the device when they are in another type, block formats are
//! dequantised on the host first.

use crate::DeviceError;
use crate::backend::Backend;
use crate::cpu::quant;
use crate::cuda::Cuda;
use crate::cuda::kernels::{self, ConvertParams, Element, Source};
use crate::cuda::runtime;
use crate::matrix::{Format, Matrix};

/// What passes through the staging memory at once.
const STAGING_BYTES: usize = 64 << 20;

/// See [`Backend::load_matrix`].
pub(super) fn matrix(
    cuda: &Cuda,
    format: Format,
    rows: usize,
    columns: usize,
    bytes: &[u8],
) -> Result<Matrix, DeviceError> {
    assert!(columns.is_multiple_of(8), "a weight's columns ({columns}) are read eight at a time");
    let data = cuda.allocate(rows * columns * 2)?;
    let source = match format {
        Format::F32 => Some(Source::F32),
        Format::F16 => Some(Source::F16),
        Format::BF16 => Some(Source::BF16),
        _ => None,
    };
    let same = match cuda.element {
        Element::BF16 => format == Format::BF16,
        Element::F16 => format == Format::F16,
    };
    match source {
        _ if same => cuda.stream.copy_to_device(data.address(), bytes.as_ptr(), bytes.len())?,
        Some(source) => convert(cuda, data.address(), source, bytes, format.block_bytes())?,
        None => {
            let row_bytes = format.row_bytes(columns);
            let rows_at_once = (STAGING_BYTES / (columns * 4)).max(1);
            let mut values = vec![0.0; rows_at_once.min(rows) * columns];
            for (i, part) in bytes.chunks(rows_at_once * row_bytes).enumerate() {
                let values = &mut values[..part.len() / row_bytes * columns];
                quant::dequantize(format, part, values);
                // SAFETY: floats are plain bytes.
                let raw =
                    unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), values.len() * 4) };
                let to = data.address() + i * rows_at_once * columns * 2;
                convert(cuda, to, Source::F32, raw, 4)?;
            }
        }
    }
    cuda.stream.synchronize()?;
    let format = match cuda.element {
        Element::BF16 => Format::BF16,
        Element::F16 => Format::F16,
    };
    Ok(Matrix { format, rows, columns, data, layout: 0 })
}

/// Copies `bytes` of elements of `size` bytes piece by piece and converts them into the compute type at `to`.
fn convert(cuda: &Cuda, to: usize, source: Source, bytes: &[u8], size: usize) -> Result<(), DeviceError> {
    let staging = runtime::allocate(cuda.ordinal, bytes.len().min(STAGING_BYTES))?;
    for (i, part) in bytes.chunks(STAGING_BYTES).enumerate() {
        cuda.stream.copy_to_device(staging.address(), part.as_ptr(), part.len())?;
        let params = ConvertParams {
            out: to + i * STAGING_BYTES / size * 2,
            from: staging.address(),
            count: (part.len() / size) as u64,
        };
        // SAFETY: see `kernels`: `to` spans the matrix, `staging` the part.
        let code = unsafe { kernels::launch_convert(params, source, cuda.element, cuda.launch()) };
        runtime::check(code, "to convert a weight")?;
    }
    // The staging memory is freed on return.
    cuda.stream.synchronize()
}
