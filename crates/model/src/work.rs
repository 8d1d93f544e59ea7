//! What any machine must read and multiply to run a model: the sizes that limits are computed from.

use phalanx_device::DType;

use crate::architectures::spec::rank_spec;
use crate::config::ModelConfig;
use crate::error::LoadError;
use crate::layers::linear::LinearSpec;
use crate::memory::{self, MemoryRequest};
use crate::place::Place;
use crate::weights::shard::{Piece, Shards};

/// The work of one replica, all its ranks together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// Bytes of weights that every step reads: all but an embedding of its own, of which a step reads a few rows.
    pub weights_bytes: usize,
    /// Elements of the layers' matrices: a token multiplies and adds each of them once.
    pub layer_elements: usize,
    /// The same of the output matrix, for each row of logits.
    pub head_elements: usize,
    /// The width of all layers' queries together: a token multiplies and adds each element twice, for scores and for
    /// values, with every token it sees.
    pub query_width: usize,
    /// Keys and values of one token.
    pub kv_bytes_per_token: usize,
}

/// The work of a model whose weights and keys are kept as `request` says.
///
/// # Errors
/// As [`memory::plan`].
pub fn work(config: &ModelConfig, request: &MemoryRequest<'_>) -> Result<Work, LoadError> {
    let plan = memory::plan(config, Place::ALONE, request)?;
    let spec = rank_spec(config, &Shards::new(config, Place::ALONE, &request.formats)?);
    let elements = |piece: &Piece| piece.rows.len() * piece.columns.len();
    let layer_elements = spec.layers.iter().map(|layer| {
        let linear = [&layer.qkv, &layer.attention_output, &layer.gate_up, &layer.down];
        linear.iter().flat_map(|linear| &linear.0).map(elements).sum::<usize>()
    });
    let gathered = spec.embedding.filter(|_| !config.tie_word_embeddings);
    let matrix_bytes = memory::matrix_bytes(request.activation_dtype == DType::F32);
    let gathered_bytes =
        gathered.map_or(0, |piece| LinearSpec(vec![piece]).bytes(&request.formats, matrix_bytes));
    Ok(Work {
        weights_bytes: plan.weights_bytes - gathered_bytes,
        layer_elements: layer_elements.sum(),
        head_elements: spec.head.as_ref().map_or(0, |head| elements(&head.matrix)),
        query_width: config.num_layers * config.q_width(),
        kv_bytes_per_token: plan.kv_bytes_per_token,
    })
}
