//! Weights from one encoding to another, at load: `--dtype`.

use std::borrow::Cow;

use half::{bf16, f16};
use phalanx_device::Format;
use phalanx_device::cpu::quant;

/// What matrices are kept in, in the device's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightType {
    /// As the file has them: quantised ones stay quantised.
    #[default]
    AsStored,
    /// Single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    BF16,
}

impl WeightType {
    /// What becomes of a matrix stored as `stored`.
    #[must_use]
    pub const fn applied_to(self, stored: Format) -> Format {
        match self {
            Self::AsStored => stored,
            Self::F32 => Format::F32,
            Self::F16 => Format::F16,
            Self::BF16 => Format::BF16,
        }
    }
}

/// A format as people write it.
pub(crate) const fn label(format: Format) -> &'static str {
    match format {
        Format::F32 => "F32",
        Format::F16 => "F16",
        Format::BF16 => "BF16",
        Format::Q8_0 => "Q8_0",
        Format::Q4_0 => "Q4_0",
        Format::Q4_1 => "Q4_1",
        Format::Q5_0 => "Q5_0",
        Format::Q5_1 => "Q5_1",
        Format::Q4K => "Q4_K",
        Format::Q5K => "Q5_K",
        Format::Q6K => "Q6_K",
    }
}

/// `bytes` re-encoded; `to` is dense or equal to `from`.
pub(crate) fn convert(from: Format, to: Format, bytes: Cow<'_, [u8]>) -> Cow<'_, [u8]> {
    if from == to {
        return bytes;
    }
    // In pieces, so that no more than the result is held beside the source.
    let piece = 4096 * from.block_bytes();
    let mut values = vec![0.0; 4096 * from.block_len()];
    let mut out = Vec::with_capacity(bytes.len() / from.block_bytes() * from.block_len() * to.block_bytes());
    for bytes in bytes.chunks(piece) {
        let values = &mut values[..bytes.len() / from.block_bytes() * from.block_len()];
        quant::dequantize(from, bytes, values);
        encode(to, values, &mut out);
    }
    Cow::Owned(out)
}

/// Appends `values` in a dense format.
pub(crate) fn encode(format: Format, values: &[f32], out: &mut Vec<u8>) {
    match format {
        Format::F32 => out.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Format::F16 => out.extend(values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes())),
        Format::BF16 => out.extend(values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes())),
        _ => unreachable!("weights are never quantised here, only taken as they are"),
    }
}
