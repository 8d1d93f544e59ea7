//! Weights from one encoding to another, at load: `--dtype`.

use phalanx_device::Format;

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
