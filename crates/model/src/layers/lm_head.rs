//! From the last hidden state to logits: only for the rows that are sampled.

use std::sync::Arc;

use phalanx_device::{Matrix, ViewMut};

use crate::error::LoadError;
use crate::layers::Forward;
use crate::layers::norm::RmsNorm;
use crate::layers::workspace::{Rows, SampleRows};
use crate::weights::load::Loader;
use crate::weights::shard::Piece;

/// The final norm and this rank's rows of the output matrix.
#[derive(Debug)]
pub struct LmHead {
    norm: RmsNorm,
    matrix: Arc<Matrix>,
    /// The matrix is the embedding's, and counted there.
    tied: bool,
}

impl LmHead {
    /// Takes the rows of `piece`, or shares `tied`, the embedding's.
    ///
    /// # Errors
    /// There is not that much memory.
    pub fn load(
        loader: &Loader<'_>,
        norm: RmsNorm,
        piece: &Piece,
        tied: Option<Arc<Matrix>>,
    ) -> Result<Self, LoadError> {
        let is_tied = tied.is_some();
        let matrix = match tied {
            Some(matrix) => matrix,
            None => {
                let format = loader.formats().of(&piece.tensor, piece.tensor_columns);
                Arc::new(loader.matrix(std::slice::from_ref(piece), format)?)
            }
        };
        Ok(Self { norm, matrix, tied: is_tied })
    }

    /// `logits = norm(residual + sum of hidden) W^T` of the sampled rows, `[samples, vocab]`, whole on every rank.
    pub fn forward<'w>(&self, cx: &Forward<'_>, rows: &Rows<'_>, mut samples: SampleRows<'w>) -> ViewMut<'w> {
        let device = cx.device;
        device.gather_sample_rows(samples.residual.reborrow(), rows.residual.view(), cx.plan);
        device.gather_sample_rows(samples.hidden.reborrow(), rows.hidden.view(), cx.plan);
        // The last sum over the ranks is of these rows alone.
        let (residual, hidden) = (samples.residual.reborrow(), samples.hidden.reborrow());
        self.norm.reduce_add_forward(device, samples.normed.reborrow(), residual, hidden);
        device.matmul(samples.own_logits.reborrow(), samples.normed.view(), &self.matrix, None);
        match samples.logits {
            None => samples.own_logits,
            Some(mut logits) => {
                device.gather_columns(logits.reborrow(), samples.own_logits.view());
                logits
            }
        }
    }

    /// Bytes held in the device's memory; the embedding's matrix is not counted again.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.norm.bytes() + if self.tied { 0 } else { self.matrix.bytes() }
    }
}
