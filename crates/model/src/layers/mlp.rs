//! The gated MLP (SwiGLU, arXiv 2002.05202) on this rank's columns.

use std::ops::Range;

use crate::error::LoadError;
use crate::layers::Forward;
use crate::layers::linear::{Linear, LinearSpec};
use crate::layers::workspace::Rows;
use crate::weights::load::Loader;
use crate::weights::shard::Shards;

/// `down(silu(gate(x)) * up(x))`.
#[derive(Debug)]
pub struct Mlp {
    gate_up: Linear,
    down: Linear,
    /// This rank's columns inside the blocks of `down` that cover them.
    own: Range<usize>,
}

impl Mlp {
    /// Takes this rank's columns.
    ///
    /// # Errors
    /// There is not that much memory.
    pub fn load(
        loader: &Loader<'_>,
        shards: &Shards,
        gate_up: &LinearSpec,
        down: &LinearSpec,
    ) -> Result<Self, LoadError> {
        Ok(Self {
            gate_up: Linear::load(loader, gate_up)?,
            down: Linear::load(loader, down)?,
            own: shards.mlp_columns.own_in_cover(),
        })
    }

    /// `rows.hidden = mlp(rows.normed)`, this rank's part of the sum over the ranks.
    pub fn forward(&self, cx: &Forward<'_>, rows: &mut Rows<'_>) {
        let device = cx.device;
        let activated = rows.activated.reborrow().slice_columns(self.own.clone());
        self.gate_up.gated_forward(device, activated, rows.gate_up.reborrow(), rows.normed.view());
        self.down.forward(device, rows.hidden.reborrow(), rows.activated.view());
    }

    /// Bytes held in the device's memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.gate_up.bytes() + self.down.bytes()
    }
}
