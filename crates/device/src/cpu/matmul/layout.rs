//! How the CPU keeps weights: sixteen rows side by side, so that a vector holds the same columns of sixteen rows.
//!
//! A matrix is a sequence of groups of [`LANES`] rows (the last one padded with zeros). Dense formats keep
//! `[column][lane]` (BF16: pairs of columns, `[column / 2][lane][2]`). Block formats keep, for each 32 columns, a
//! tile of eight planes: byte `4 * lane + c` of plane `i` is the code of column `4 * i + c`. So a plane is one
//! 512-bit register whose 32-bit lanes are rows, and a product with four columns of `x` is one multiply-add with
//! `x` broadcast: no sum across lanes, ever. A tile is stored with as many bits as the file has:
//!
//! | codes | bytes | what they hold |
//! |---|---|---|
//! | 8 bits | 512 | the planes |
//! | 4, 5 or 6 bits | 256 | four vectors: low nibbles are planes 0 to 3, high nibbles planes 4 to 7 |
//! | 5 bits | + 64 | bit `i` is the fifth bit of plane `i` |
//! | 6 bits | + 128 | pair `i % 4` of vector `i / 4` is the upper two bits of plane `i` |
//!
//! All tiles of a group come first, then its scales, `[block][lane]`, with the 6-bit scales of Q4_K and Q5_K
//! unpacked to bytes. A packed matrix is as large as the file's, plus 2.8 % for Q4_K and 2.3 % for Q5_K.

use crate::matrix::{Format, Matrix};

/// Rows of a group.
pub(crate) const LANES: usize = 16;
/// Columns of a tile.
pub(crate) const TILE: usize = 32;
/// Bytes of a tile with 8-bit codes.
pub(crate) const TILE_CODES: usize = LANES * TILE;
/// [`Matrix::layout`] of what this module describes.
pub(crate) const INTERLEAVED: u32 = 1;

/// Where the parts of a packed matrix lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) format: Format,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// Bytes of a tile of codes; of one column of a group for dense formats (BF16: of two columns).
    pub(crate) tile_bytes: usize,
    /// Bytes of the scales of one block of the format, for all lanes.
    pub(crate) scale_bytes: usize,
    /// Where a group's scales begin.
    pub(crate) scales_at: usize,
    /// Bytes of a group.
    pub(crate) group_bytes: usize,
}

impl Layout {
    pub(crate) fn new(format: Format, rows: usize, columns: usize) -> Self {
        let (tile_bytes, scale_bytes) = match format {
            Format::F32 | Format::BF16 => (4 * LANES, 0),
            Format::F16 => (2 * LANES, 0),
            Format::Q8_0 => (512, 2 * LANES),
            Format::Q4_0 => (256, 2 * LANES),
            Format::Q4_1 => (256, 4 * LANES),
            Format::Q5_0 => (320, 2 * LANES),
            Format::Q5_1 => (320, 4 * LANES),
            Format::Q4K => (256, 20 * LANES),
            Format::Q5K => (320, 20 * LANES),
            Format::Q6K => (384, 18 * LANES),
        };
        let tiles = match format {
            Format::F32 | Format::F16 => columns,
            Format::BF16 => columns.div_ceil(2),
            _ => columns / TILE,
        };
        let scales_at = tiles * tile_bytes;
        let group_bytes = (scales_at + columns / format.block_len() * scale_bytes).next_multiple_of(64);
        Self { format, rows, columns, tile_bytes, scale_bytes, scales_at, group_bytes }
    }

    pub(crate) fn of(matrix: &Matrix) -> Self {
        assert!(matrix.layout == INTERLEAVED, "a matrix the CPU back end has loaded");
        Self::new(matrix.format, matrix.rows, matrix.columns)
    }

    pub(crate) fn groups(&self) -> usize {
        self.rows.div_ceil(LANES)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.groups() * self.group_bytes
    }

    /// The code of one element of a tile; the slow way, for single rows.
    pub(crate) fn code(&self, tile: &[u8], lane: usize, column: usize) -> u8 {
        let (plane, byte) = (column / 4, 4 * lane + column % 4);
        if self.tile_bytes == TILE_CODES {
            return tile[64 * plane + byte];
        }
        let nibble = tile[64 * (plane % 4) + byte] >> (plane / 4 * 4) & 15;
        let high = match self.tile_bytes {
            320 => tile[256 + byte] >> plane & 1,
            384 => tile[256 + 64 * (plane / 4) + byte] >> (plane % 4 * 2) & 3,
            _ => 0,
        };
        nibble | high << 4
    }

    /// Scale and minimum (0 where the format has none) of sixteen columns of one lane; `part` counts them.
    pub(crate) fn scale_and_minimum(&self, group: &[u8], lane: usize, part: usize) -> (f32, f32) {
        let block = part * 16 / self.format.block_len();
        let scales = &group[self.scales_at + block * self.scale_bytes..][..self.scale_bytes];
        let half = |index: usize| crate::cpu::quant::half_at(scales, 2 * (index * LANES + lane));
        match self.format {
            Format::Q4_1 | Format::Q5_1 => (half(0), half(1)),
            Format::Q4K | Format::Q5K => {
                let at = 4 * LANES + (part / 2 % 8) * 2 * LANES + lane;
                (half(0) * f32::from(scales[at]), -(half(1) * f32::from(scales[at + LANES])))
            }
            Format::Q6K => {
                let at = 2 * LANES + part % 16 * LANES + lane;
                (half(0) * f32::from(scales[at].cast_signed()), 0.0)
            }
            _ => (half(0), 0.0),
        }
    }
}
