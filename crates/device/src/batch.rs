//! What an attention operation must know of a step: which rows belong to which sequence, and where its KV lies.

use crate::backend::Heads;
use crate::tensor::Tensor;

/// The arrays of one step, built on the host once and used by every layer.
///
/// `tokens` rows are computed, those of sequence `s` being `query_starts[s] .. query_starts[s + 1]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BatchLayout {
    /// `[tokens]`: each row's token, or below zero `-(k + 1)`: the one in place `k` of those sampled before, which only
    /// the device knows yet. Empty where nobody embeds: on the later stages of a pipeline.
    pub ids: Vec<i32>,
    /// `[tokens]`: each row's position in its sequence.
    pub positions: Vec<i32>,
    /// `[tokens]`: where each row's key and value go: `block * block_size + offset`.
    pub slots: Vec<i32>,
    /// `[sequences + 1]`: each sequence's first row; the last entry is `tokens`.
    pub query_starts: Vec<i32>,
    /// `[sequences]`: each sequence's tokens with KV once this step is done (computed before + in this step).
    pub context_lens: Vec<i32>,
    /// `[sequences, blocks_per_row]`: block tables, padded with 0.
    pub block_tables: Vec<i32>,
    /// Width of a row of `block_tables`.
    pub blocks_per_row: usize,
    /// Tokens a block holds.
    pub block_size: usize,
    /// `[samples]`: the rows whose logits are wanted, ascending.
    pub sample_rows: Vec<i32>,
}

impl BatchLayout {
    /// Rows computed in this step.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.positions.len()
    }

    /// Sequences with a share in this step.
    #[must_use]
    pub fn sequences(&self) -> usize {
        self.context_lens.len()
    }
}

/// A step's layout where the back end wants it: made once per step, used by every layer.
#[derive(Debug)]
pub struct Plan {
    /// The arrays, on the host.
    pub layout: BatchLayout,
    /// The same in the device's memory, for back ends that do not read the host's.
    #[allow(dead_code, reason = "the CPU reads the host's arrays")]
    pub(crate) device: Option<DevicePlan>,
}

/// A layout's arrays in the device's memory, and the work items of its attention.
#[derive(Debug)]
#[allow(dead_code, reason = "the CPU reads the host's arrays")]
pub(crate) struct DevicePlan {
    pub(crate) arrays: Tensor,
    /// What the items were made for.
    pub(crate) heads: Heads,
    /// Items of many rows: these come first.
    pub(crate) many: usize,
    /// Items of few rows.
    pub(crate) few: usize,
}
