//! Made-up weights: each value is a function of its place in the whole tensor, so that every kind of device and every
//! rank that holds a part of it makes the same numbers.

use std::ops::Range;

use crate::DeviceError;
use crate::cpu::quant;
use crate::matrix::Format;
use crate::source::RowSource;

/// A rectangle of a tensor of made-up numbers, uniform in `-spread .. spread`.
#[derive(Clone, Debug, PartialEq)]
pub struct Noise {
    /// Tells tensors apart.
    pub key: u64,
    /// No value is further from zero.
    pub spread: f32,
    /// What the tensor would be stored in, dense: values are rounded to it before anything else becomes of them.
    pub stored: Format,
    /// Elements of a row of the whole tensor.
    pub tensor_columns: usize,
    /// Rows of the tensor.
    pub rows: Range<usize>,
    /// Columns of the tensor.
    pub columns: Range<usize>,
}

impl Noise {
    /// Where the rectangle's first element stands in the tensor, counted row after row.
    #[must_use]
    pub const fn first(&self) -> u64 {
        (self.rows.start * self.tensor_columns + self.columns.start) as u64
    }
}

/// Element `index` of the tensor `key`: uniform in -1 .. 1, and exactly the same on every machine.
#[must_use]
pub fn uniform(key: u64, index: u64) -> f32 {
    // The upper 24 bits fill a float's mantissa.
    (mix(key.wrapping_add(index)) >> 40) as f32 / (1 << 23) as f32 - 1.0
}

/// SplitMix64's step (Steele, Lea and Flood 2014): a bijection that scatters counters.
#[must_use]
pub fn mix(counter: u64) -> u64 {
    let z = counter.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Rectangles of one width, one below the other, as the rows of a matrix.
pub(crate) struct NoiseRows<'a> {
    /// Dense.
    pub(crate) format: Format,
    pub(crate) pieces: &'a [Noise],
}

impl NoiseRows<'_> {
    /// The rectangle that row `row` of the matrix comes from, and the row's place in the tensor.
    fn place(&self, row: usize) -> (&Noise, u64) {
        let mut row = row;
        for piece in self.pieces {
            if row < piece.rows.len() {
                return (piece, piece.first() + (row * piece.tensor_columns) as u64);
            }
            row -= piece.rows.len();
        }
        panic!("a row of the matrix")
    }
}

impl RowSource for NoiseRows<'_> {
    fn read(&self, rows: Range<usize>, out: &mut [u8]) -> Result<(), DeviceError> {
        let columns = self.pieces[0].columns.len();
        let mut values = vec![0.0; columns];
        let mut stored = vec![0; 4 * columns];
        for (row, out) in rows.zip(out.chunks_exact_mut(self.format.row_bytes(columns))) {
            let (piece, first) = self.place(row);
            for (index, value) in (first..).zip(&mut values) {
                *value = piece.spread * uniform(piece.key, index);
            }
            if piece.stored != self.format {
                let stored = &mut stored[..piece.stored.row_bytes(columns)];
                quant::encode(piece.stored, &values, stored);
                quant::dequantize(piece.stored, stored, &mut values);
            }
            quant::encode(self.format, &values, out);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(format: Format, pieces: &[Noise], rows: Range<usize>) -> Vec<u8> {
        let mut out = vec![0; rows.len() * format.row_bytes(pieces[0].columns.len())];
        NoiseRows { format, pieces }.read(rows, &mut out).expect("nothing is read from a file");
        out
    }

    fn piece(key: u64, rows: Range<usize>, columns: Range<usize>) -> Noise {
        Noise { key, spread: 0.5, stored: Format::BF16, tensor_columns: 24, rows, columns }
    }

    #[test]
    fn a_rectangle_has_the_values_of_the_whole() {
        let whole = read(Format::BF16, &[piece(1, 0..9, 0..24), piece(2, 0..5, 0..24)], 0..14);
        let part = read(Format::BF16, &[piece(1, 4..9, 8..16), piece(2, 1..3, 8..16)], 0..7);
        let rows = (4..9).chain(10..12);
        let expected: Vec<u8> =
            rows.flat_map(|row: usize| whole[row * 48 + 16..row * 48 + 32].to_vec()).collect();
        assert_eq!(part, expected);
        assert_eq!(read(Format::BF16, &[piece(1, 4..9, 8..16), piece(2, 1..3, 8..16)], 4..6), part[64..96]);
    }

    #[test]
    fn values_are_rounded_as_stored_first() {
        let mut half = [0; 48];
        let mut values = [0.0; 24];
        quant::dequantize(Format::BF16, &read(Format::BF16, &[piece(1, 2..3, 0..24)], 0..1), &mut values);
        quant::encode(Format::F16, &values, &mut half);
        assert_eq!(read(Format::F16, &[piece(1, 2..3, 0..24)], 0..1), half);
        assert!(values.iter().all(|value| value.abs() <= 0.5));
        assert!(values.iter().any(|value| *value < -0.1) && values.iter().any(|value| 0.1 < *value));
    }
}
