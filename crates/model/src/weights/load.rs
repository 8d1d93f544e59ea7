//! From stored tensors to a rank's memory: the only place that takes them.

use phalanx_device::{Device, Format, Matrix, Tensor};

use crate::error::LoadError;
use crate::weights::convert::WeightType;
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
    /// Told how many bytes, as stored, were taken since it was last told.
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
    /// There is not that much memory, or a file cannot be read.
    pub fn matrix(&self, pieces: &[Piece], format: Format) -> Result<Matrix, LoadError> {
        let matrix = self.weights.load(self.device, pieces, format)?;
        let stored = |piece: &Piece| {
            piece.rows.len() * self.weights.format(&piece.tensor).row_bytes(piece.columns.len())
        };
        (self.progress)(pieces.iter().map(stored).sum());
        Ok(matrix)
    }

    /// A vector as F32 `[1, sum of lengths]`: the given ranges of norms or biases, one after the other.
    ///
    /// # Errors
    /// There is not that much memory, or a file cannot be read.
    pub fn vector<'n>(
        &self,
        parts: impl IntoIterator<Item = (&'n str, std::ops::Range<usize>)>,
    ) -> Result<Tensor, LoadError> {
        let mut values = Vec::new();
        for (tensor, range) in parts {
            (self.progress)(self.weights.format(tensor).row_bytes(range.len()));
            values.extend(self.weights.vector(tensor, range)?);
        }
        Ok(self.device.tensor_f32(1, values.len(), &values)?)
    }
}
