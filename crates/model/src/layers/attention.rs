//! Grouped-query attention on this rank's run of heads.

use std::ops::Range;

use phalanx_device::View;
use phalanx_device::backend::{Heads, KvLayer};

use crate::error::LoadError;
use crate::layers::Forward;
use crate::layers::linear::{Linear, LinearSpec};
use crate::layers::workspace::Rows;
use crate::weights::load::Loader;
use crate::weights::shard::Shards;

/// Projections to q, k and v, attention over the KV cache, and the projection back.
#[derive(Debug)]
pub struct Attention {
    qkv: Linear,
    output: Linear,
    heads: Heads,
    /// This rank's columns inside the blocks of the output matrix that cover them.
    own: Range<usize>,
}

impl Attention {
    /// Takes this rank's heads.
    ///
    /// # Errors
    /// There is not that much memory.
    pub fn load(
        loader: &Loader<'_>,
        shards: &Shards,
        qkv: &LinearSpec,
        output: &LinearSpec,
    ) -> Result<Self, LoadError> {
        Ok(Self {
            qkv: Linear::load(loader, qkv)?,
            output: Linear::load(loader, output)?,
            heads: shards.heads,
            own: shards.attention_columns.own_in_cover(),
        })
    }

    /// `rows.hidden = attention(rows.normed)`, this rank's part of the sum over the ranks; keys and values of the step's
    /// tokens go to `kv`.
    pub fn forward(&self, cx: &Forward<'_>, rope: View<'_>, rows: &mut Rows<'_>, kv: &mut KvLayer) {
        let device = cx.device;
        self.qkv.forward(device, rows.qkv.reborrow(), rows.normed.view());
        device.rope_and_store(rows.qkv.reborrow(), rope, kv, cx.plan, self.heads);
        let attended = rows.attended.reborrow().slice_columns(self.own.clone());
        device.attention(attended, rows.qkv.view(), kv, cx.plan, self.heads);
        self.output.forward(device, rows.hidden.reborrow(), rows.attended.view());
    }

    /// Bytes held in the device's memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.qkv.bytes() + self.output.bytes()
    }
}
