//! The embedding: each rank holds some of the vocabulary's rows.

use std::sync::Arc;

use phalanx_device::{Matrix, ViewMut};

use crate::error::LoadError;
use crate::layers::Forward;
use crate::weights::load::Loader;
use crate::weights::shard::Piece;

/// This rank's rows of the embedding; shared with the output matrix when they are tied.
#[derive(Debug)]
pub struct Embedding {
    pub(crate) table: Arc<Matrix>,
    first_id: usize,
}

impl Embedding {
    /// Takes the rows of `piece`.
    ///
    /// # Errors
    /// There is not that much memory.
    pub fn load(loader: &Loader<'_>, piece: &Piece) -> Result<Self, LoadError> {
        let format = loader.formats().of(&piece.tensor, piece.tensor_columns);
        let table = Arc::new(loader.matrix(std::slice::from_ref(piece), format)?);
        Ok(Self { table, first_id: piece.rows.start })
    }

    /// `out[t] = embedding[ids[t]]`, `[tokens, hidden]`: zeros for another rank's ids, then a sum over the ranks.
    pub fn forward(&self, cx: &Forward<'_>, mut out: ViewMut<'_>) {
        cx.device.embed(out.reborrow(), cx.ids, &self.table, self.first_id);
        cx.device.all_reduce(out);
    }

    /// Bytes held in the device's memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.table.bytes()
    }
}
