//! Weight matrices as a device keeps them: dense, or in GGUF's block formats.

use crate::tensor::Allocation;

/// How the rows of a weight matrix are encoded. Block formats are GGUF's (ggml-common.h): blocks along a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// 4 bytes an element.
    F32,
    /// 2 bytes an element, IEEE half.
    F16,
    /// 2 bytes an element, bfloat16.
    BF16,
    /// 32 elements: f16 scale, 32 i8.
    Q8_0,
    /// 32 elements: f16 scale, 16 bytes of nibbles, value = d * (q - 8).
    Q4_0,
    /// 32 elements: f16 scale and minimum, 16 bytes of nibbles, value = d * q + m.
    Q4_1,
    /// 32 elements: f16 scale, 32 high bits, 16 bytes of nibbles, value = d * (q - 16).
    Q5_0,
    /// 32 elements: f16 scale and minimum, 32 high bits, nibbles, value = d * q + m.
    Q5_1,
    /// 256 elements in 8 sub-blocks: two f16 super-scales, 12 bytes of 6-bit scales and minimums, nibbles.
    Q4K,
    /// As `Q4K` with a fifth bit.
    Q5K,
    /// 256 elements in 16 sub-blocks: low nibbles, high pairs of bits, i8 scales, one f16 super-scale.
    Q6K,
}

impl Format {
    /// One element after the other, no blocks.
    #[must_use]
    pub const fn is_dense(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::BF16)
    }

    /// Elements of one block.
    #[must_use]
    pub const fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 => 32,
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes of one block.
    #[must_use]
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Bytes of a row of `columns` elements.
    ///
    /// # Panics
    /// `columns` is not a multiple of the block length; loaders check this first.
    #[must_use]
    pub const fn row_bytes(self, columns: usize) -> usize {
        assert!(columns.is_multiple_of(self.block_len()), "a row is whole blocks");
        columns / self.block_len() * self.block_bytes()
    }
}

/// A weight `[rows, columns]` = `[out features, in features]`, in the memory and layout its back end chose.
#[derive(Debug)]
pub struct Matrix {
    /// How the elements are encoded.
    pub format: Format,
    /// Out features.
    pub rows: usize,
    /// In features.
    pub columns: usize,
    /// The bytes, in the layout `layout` names.
    pub(crate) data: Allocation,
    /// 0: as in the file, row after row; other values belong to the back end.
    pub(crate) layout: u32,
}

impl Matrix {
    /// Bytes held in the device's memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.data.bytes()
    }
}
