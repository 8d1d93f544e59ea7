//! How much memory a rank needs, to the byte, before anything is loaded: one function for `plan`, `serve` and tests.

use phalanx_device::cpu::matmul;
use phalanx_device::{Arena, DType};

use crate::architectures::spec::{RankSpec, rank_spec};
use crate::config::ModelConfig;
use crate::error::LoadError;
use crate::layers::linear::{LinearSpec, MatrixBytes};
use crate::layers::workspace::WorkspaceShapes;
use crate::place::Place;
use crate::weights::WeightFormats;
use crate::weights::shard::{Piece, Shards};

/// The largest step and the longest sequence: what workspace and rope table are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Tokens computed in one step.
    pub max_tokens: usize,
    /// Rows of logits in one step.
    pub max_samples: usize,
    /// Tokens of one sequence.
    pub max_model_len: usize,
}

/// More rows than any step computes, few enough that no tensor's size overflows.
const MOST_ROWS: usize = 1 << 24;

impl Limits {
    /// Refuses steps whose tensors would have sizes that do not fit a number.
    pub(crate) fn check(&self) -> Result<(), LoadError> {
        let rows = self.max_tokens.max(self.max_samples);
        match rows <= MOST_ROWS {
            true => Ok(()),
            false => Err(LoadError::Layout(format!(
                "a step of {rows} rows is more than any machine computes: lower --max-num-batched-tokens and \
                 --max-num-seqs to {MOST_ROWS} or less"
            ))),
        }
    }
}

/// What a plan is for.
#[derive(Clone, Copy, Debug)]
pub struct MemoryRequest<'a> {
    /// What matrices are kept in.
    pub formats: WeightFormats<'a>,
    /// The device's type of activations.
    pub activation_dtype: DType,
    /// What keys and values are kept in.
    pub kv_dtype: DType,
    /// Tokens of a KV block.
    pub block_size: usize,
    /// The largest step and the longest sequence.
    pub limits: Limits,
}

/// What one rank needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Whose plan.
    pub place: Place,
    /// This rank's slices of the weights.
    pub weights_bytes: usize,
    /// The table of cosines and sines.
    pub rope_bytes: usize,
    /// Activations of the largest step.
    pub workspace_bytes: usize,
    /// The same as the CPU's kernels want them; on a GPU, which makes its own room when it is opened, nothing.
    pub scratch_bytes: usize,
    /// Keys and values of one token in this rank's layers and heads.
    pub kv_bytes_per_token: usize,
    /// The same for a block.
    pub kv_bytes_per_block: usize,
    /// Tokens of a block.
    pub block_size: usize,
    /// Layers of this rank's stage: each has a tensor of keys and one of values.
    pub num_layers: usize,
}

impl MemoryPlan {
    /// Everything but the KV cache.
    #[must_use]
    pub fn fixed_bytes(&self) -> usize {
        self.weights_bytes + self.rope_bytes + self.workspace_bytes + self.scratch_bytes
    }

    /// The KV cache of `num_blocks` blocks, each tensor rounded up as an arena does.
    #[must_use]
    pub fn kv_bytes(&self, num_blocks: usize) -> usize {
        let tensor = num_blocks * (self.kv_bytes_per_block / (2 * self.num_layers));
        2 * self.num_layers * tensor.next_multiple_of(256)
    }

    /// How many blocks of KV cache fit into `available` bytes beside everything else; 0 when not even that fits.
    #[must_use]
    pub fn blocks_that_fit(&self, available: usize) -> usize {
        let rounding = 2 * self.num_layers * 255;
        let left = available.saturating_sub(self.fixed_bytes());
        let least = left.saturating_sub(rounding) / self.kv_bytes_per_block;
        // Rounding to 256 bytes costs at most a few blocks: begin at the safe number and look whether more fit.
        (least..=left / self.kv_bytes_per_block)
            .take_while(|blocks| self.kv_bytes(*blocks) <= left)
            .last()
            .unwrap_or(0)
    }
}

/// Which of `plans` has room for the fewest KV blocks within `available` bytes, and for how many; none of no plans.
#[must_use]
pub fn fullest(plans: &[MemoryPlan], available: usize) -> Option<(&MemoryPlan, usize)> {
    let with_blocks = plans.iter().map(|plan| (plan, plan.blocks_that_fit(available)));
    with_blocks.min_by_key(|(_, blocks)| *blocks)
}

/// What the rank at `place` needs.
///
/// # Errors
/// The layout does not fit the model.
pub fn plan(
    config: &ModelConfig,
    place: Place,
    request: &MemoryRequest<'_>,
) -> Result<MemoryPlan, LoadError> {
    let limits = request.limits;
    limits.check()?;
    let shards = Shards::new(config, place, &request.formats)?;
    let (num_layers, num_kv_heads, head_dim) = kv_shape(&shards);
    let spec = rank_spec(config, &shards);
    let on_cpu = request.activation_dtype == DType::F32;
    let kv_bytes_per_token = 2 * num_layers * num_kv_heads * head_dim * request.kv_dtype.bytes();
    Ok(MemoryPlan {
        place,
        weights_bytes: weights_bytes(config, &spec, &request.formats, matrix_bytes(on_cpu)),
        rope_bytes: Arena::tensor_bytes(DType::F32, limits.max_model_len, config.head_dim),
        workspace_bytes: WorkspaceShapes::new(config, &shards, limits, request.activation_dtype).bytes(),
        scratch_bytes: if on_cpu { scratch_bytes(config, &shards, limits) } else { 0 },
        kv_bytes_per_token,
        kv_bytes_per_block: kv_bytes_per_token * request.block_size,
        block_size: request.block_size,
        num_layers,
    })
}

/// The plans of every rank of a layout, stage after stage. The tightest of them decides what fits.
///
/// # Errors
/// The layout does not fit the model.
pub fn plan_layout(
    config: &ModelConfig,
    tensor_size: usize,
    num_stages: usize,
    request: &MemoryRequest<'_>,
) -> Result<Vec<MemoryPlan>, LoadError> {
    Place::all(tensor_size, num_stages).map(|place| plan(config, place, request)).collect()
}

/// What a rank's KV cache is made of: layers, KV heads and elements of a head.
#[must_use]
pub fn kv_shape(shards: &Shards) -> (usize, usize, usize) {
    (shards.layers.len(), shards.heads.num_kv_heads, shards.heads.head_dim)
}

/// How a device lays matrices out: row after row, but for the CPU, the one device that computes in F32.
pub(crate) fn matrix_bytes(on_cpu: bool) -> MatrixBytes {
    match on_cpu {
        true => matmul::packed_bytes,
        false => |format, rows, columns| rows * format.row_bytes(columns),
    }
}

/// The widest rows that the CPU multiplies, as its kernels want them.
fn scratch_bytes(config: &ModelConfig, shards: &Shards, limits: Limits) -> usize {
    let widths = [config.hidden_size, shards.attention_columns.cover.len(), shards.mlp_columns.cover.len()];
    matmul::workspace_bytes(limits.max_tokens, widths.into_iter().max().unwrap_or(0))
}

fn weights_bytes(
    config: &ModelConfig,
    spec: &RankSpec,
    formats: &WeightFormats<'_>,
    matrix_bytes: MatrixBytes,
) -> usize {
    let piece = |piece: &Piece| LinearSpec(vec![piece.clone()]).bytes(formats, matrix_bytes);
    let norm = Arena::tensor_bytes(DType::F32, 1, config.hidden_size);
    let embedding = spec.embedding.as_ref().map_or(0, piece);
    let layers = spec.layers.iter().map(|layer| {
        let linear = [&layer.qkv, &layer.attention_output, &layer.gate_up, &layer.down];
        2 * norm + linear.map(|linear| linear.bytes(formats, matrix_bytes)).iter().sum::<usize>()
    });
    let head = spec.head.as_ref().map_or(0, |head| {
        let matrix = if head.shared { 0 } else { piece(&head.matrix) };
        norm + matrix
    });
    embedding + layers.sum::<usize>() + head
}
