//! The activations of a step: allocated once, the first rows of each tensor used by every step.

use phalanx_device::{Arena, DType, Device, Plan, Tensor, ViewMut};

use crate::config::ModelConfig;
use crate::error::LoadError;
use crate::memory::Limits;
use crate::weights::shard::Shards;

/// The tensors' shapes: what the memory plan counts is what is allocated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkspaceShapes {
    /// In the order of [`Workspace`]'s fields.
    shapes: [(DType, usize, usize); 12],
}

impl WorkspaceShapes {
    /// What a rank needs to compute `limits.max_tokens` tokens and `limits.max_samples` rows of logits in a step.
    #[must_use]
    pub fn new(config: &ModelConfig, shards: &Shards, limits: Limits, dtype: DType) -> Self {
        let tokens = limits.max_tokens;
        let samples = if shards.place.is_last_stage() { limits.max_samples } else { 0 };
        let gathered = if shards.place.tensor_size == 1 { 0 } else { config.vocab_size };
        let hidden = config.hidden_size;
        Self {
            shapes: [
                (dtype, tokens, hidden),
                (dtype, tokens, hidden),
                (dtype, tokens, hidden),
                (dtype, tokens, shards.heads.qkv_width()),
                (dtype, tokens, shards.attention_columns.cover.len()),
                (dtype, tokens, 2 * shards.mlp_columns.own.len()),
                (dtype, tokens, shards.mlp_columns.cover.len()),
                (dtype, samples, hidden),
                (dtype, samples, hidden),
                (dtype, samples, hidden),
                (DType::F32, samples, shards.vocab.len()),
                (DType::F32, samples, gathered),
            ],
        }
    }

    /// Bytes of all of them together.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.shapes.iter().map(|(dtype, rows, width)| Arena::tensor_bytes(*dtype, *rows, *width)).sum()
    }
}

/// A rank's activations.
#[derive(Debug)]
pub struct Workspace {
    residual: Tensor,
    hidden: Tensor,
    normed: Tensor,
    qkv: Tensor,
    attended: Tensor,
    gate_up: Tensor,
    activated: Tensor,
    sample_residual: Tensor,
    sample_hidden: Tensor,
    sample_normed: Tensor,
    own_logits: Tensor,
    logits: Tensor,
    bytes: usize,
}

/// The rows of one step, each `[tokens, …]`.
#[derive(Debug)]
pub struct Rows<'a> {
    /// The residual stream.
    pub residual: ViewMut<'a>,
    /// What an attention or MLP layer adds to it.
    pub hidden: ViewMut<'a>,
    /// The normed residual stream, which those layers read.
    pub normed: ViewMut<'a>,
    /// q, k and v side by side.
    pub qkv: ViewMut<'a>,
    /// The heads' outputs, zero outside this rank's columns.
    pub attended: ViewMut<'a>,
    /// Gate and up side by side.
    pub gate_up: ViewMut<'a>,
    /// `silu(gate) * up`, zero outside this rank's columns.
    pub activated: ViewMut<'a>,
}

/// The sampled rows of one step, each `[samples, …]`.
#[derive(Debug)]
pub struct SampleRows<'a> {
    /// The residual stream.
    pub residual: ViewMut<'a>,
    /// What the last layer adds to it.
    pub hidden: ViewMut<'a>,
    /// The normed sum.
    pub normed: ViewMut<'a>,
    /// Logits of this rank's rows of the vocabulary.
    pub own_logits: ViewMut<'a>,
    /// Logits of all of it, when there are several ranks.
    pub logits: Option<ViewMut<'a>>,
}

impl Workspace {
    /// Allocates `shapes`, zeroed; the columns that must stay zero are never written.
    ///
    /// # Errors
    /// There is not that much memory.
    pub fn allocate(device: &Device, shapes: &WorkspaceShapes) -> Result<Self, LoadError> {
        let mut arena = device.arena(shapes.bytes())?;
        let [
            residual,
            hidden,
            normed,
            qkv,
            attended,
            gate_up,
            activated,
            sample_residual,
            sample_hidden,
            rest @ ..,
        ] = shapes.shapes.map(|(dtype, rows, width)| arena.tensor(dtype, rows, width));
        let [sample_normed, own_logits, logits] = rest;
        Ok(Self {
            residual,
            hidden,
            normed,
            qkv,
            attended,
            gate_up,
            activated,
            sample_residual,
            sample_hidden,
            sample_normed,
            own_logits,
            logits,
            bytes: shapes.bytes(),
        })
    }

    /// Bytes held in the device's memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The rows that a step of `plan` uses.
    pub fn rows(&mut self, plan: &Plan) -> (Rows<'_>, SampleRows<'_>) {
        let (tokens, samples) = (plan.layout.tokens(), plan.layout.sample_rows.len());
        let rows = Rows {
            residual: first(&mut self.residual, tokens),
            hidden: first(&mut self.hidden, tokens),
            normed: first(&mut self.normed, tokens),
            qkv: first(&mut self.qkv, tokens),
            attended: first(&mut self.attended, tokens),
            gate_up: first(&mut self.gate_up, tokens),
            activated: first(&mut self.activated, tokens),
        };
        // A stage before the last has no room for samples and no use for them.
        let samples = samples.min(self.sample_residual.rows());
        let several = self.logits.width() != 0;
        let sample_rows = SampleRows {
            residual: first(&mut self.sample_residual, samples),
            hidden: first(&mut self.sample_hidden, samples),
            normed: first(&mut self.sample_normed, samples),
            own_logits: first(&mut self.own_logits, samples),
            logits: several.then(|| first(&mut self.logits, samples)),
        };
        (rows, sample_rows)
    }

    /// Where the logits of so many sampled rows lie, whole.
    pub fn logits(&mut self, samples: usize) -> ViewMut<'_> {
        let whole = if self.logits.width() == 0 { &mut self.own_logits } else { &mut self.logits };
        first(whole, samples)
    }
}

fn first(tensor: &mut Tensor, rows: usize) -> ViewMut<'_> {
    tensor.view_mut().slice_rows(0..rows)
}
