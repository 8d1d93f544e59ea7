//! From stored tensors to a rank's memory: the only place where weights are copied.

use std::borrow::Cow;

use phalanx_device::cpu::quant;
use phalanx_device::{Device, Format, Matrix, Tensor};

use crate::error::LoadError;
use crate::weights::convert::{WeightType, convert};
use crate::weights::shard::Piece;
use crate::weights::{WeightFormats, Weights};

/// Takes slices of weights into a device.
pub struct Loader<'a> {
    /// The rank's machine.
    pub device: &'a Device,
    /// What to take them from.
    pub weights: &'a Weights,
    /// What to keep them in.
    pub weight_type: WeightType,
    /// Told how many bytes were taken since it was last told.
    pub progress: &'a dyn Fn(usize),
}

impl Loader<'_> {
    /// What each matrix is kept in.
    #[must_use]
    pub fn formats(&self) -> WeightFormats<'_> {
        WeightFormats::Of(self.weights, self.weight_type)
    }

    /// One matrix `[sum of rows, columns]` of pieces with the same columns and format.
    ///
    /// # Errors
    /// There is not that much memory.
    pub fn matrix(&self, pieces: &[Piece], format: Format) -> Result<Matrix, LoadError> {
        let columns = pieces[0].columns.len();
        let rows = pieces.iter().map(|piece| piece.rows.len()).sum();
        let read = |piece: &Piece| {
            let bytes = self.weights.read(&piece.tensor, piece.rows.clone(), piece.columns.clone());
            convert(self.weights.format(&piece.tensor), format, bytes)
        };
        let bytes = match pieces {
            [only] => read(only),
            several => {
                let mut bytes = Vec::with_capacity(rows * format.row_bytes(columns));
                several.iter().for_each(|piece| bytes.extend_from_slice(&read(piece)));
                Cow::Owned(bytes)
            }
        };
        let matrix = self.device.load_matrix(format, rows, columns, &bytes)?;
        (self.progress)(bytes.len());
        Ok(matrix)
    }

    /// A vector as F32 `[1, sum of lengths]`: the given ranges of norms or biases, one after the other.
    ///
    /// # Errors
    /// There is not that much memory.
    pub fn vector<'n>(
        &self,
        parts: impl IntoIterator<Item = (&'n str, std::ops::Range<usize>)>,
    ) -> Result<Tensor, LoadError> {
        let mut values = Vec::new();
        for (tensor, range) in parts {
            let bytes = self.weights.read(tensor, 0..1, range.clone());
            let start = values.len();
            values.resize(start + range.len(), 0.0);
            quant::dequantize(self.weights.format(tensor), &bytes, &mut values[start..]);
        }
        (self.progress)(values.len() * 4);
        Ok(self.device.tensor_f32(1, values.len(), &values)?)
    }
}
