//! What one rank holds of a decoder, by the names its tensors have in a Hugging Face folder.
//!
//! The memory plan counts this list and the loader loads it, so that the two cannot differ.

use std::ops::Range;

use crate::config::ModelConfig;
use crate::layers::linear::LinearSpec;
use crate::weights::shard::{Piece, Shards};

/// The embedding.
pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";
/// The norm before the output matrix.
pub(crate) const FINAL_NORM: &str = "model.norm.weight";
/// The output matrix; a tied model has none.
pub(crate) const OUTPUT_MATRIX: &str = "lm_head.weight";

/// What one rank holds of a decoder, by the names of the stored tensors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankSpec {
    /// Rows of the embedding, on the first stage.
    pub embedding: Option<Piece>,
    /// The stage's layers.
    pub layers: Vec<LayerSpec>,
    /// The end, on the last stage.
    pub head: Option<HeadSpec>,
}

/// One layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerSpec {
    /// The norm before attention.
    pub attention_norm: String,
    /// Projections to q, k and v.
    pub qkv: LinearSpec,
    /// The projection back.
    pub attention_output: LinearSpec,
    /// The norm before the MLP.
    pub mlp_norm: String,
    /// Gate and up.
    pub gate_up: LinearSpec,
    /// Down.
    pub down: LinearSpec,
}

/// The end of a decoder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadSpec {
    /// The final norm.
    pub norm: String,
    /// Rows of the output matrix.
    pub matrix: Piece,
    /// It is the embedding, which this rank holds already.
    pub shared: bool,
}

/// The slices of one rank.
#[must_use]
pub fn rank_spec(config: &ModelConfig, shards: &Shards) -> RankSpec {
    let hidden = config.hidden_size;
    let vocab = |tensor: &str| piece(tensor.to_string(), None, shards.vocab.clone(), 0..hidden, hidden);
    let matrix = if config.tie_word_embeddings { EMBEDDING } else { OUTPUT_MATRIX };
    let place = shards.place;
    RankSpec {
        embedding: place.is_first_stage().then(|| vocab(EMBEDDING)),
        layers: shards.layers.clone().map(|layer| layer_spec(config, shards, layer)).collect(),
        head: place.is_last_stage().then(|| HeadSpec {
            norm: FINAL_NORM.to_string(),
            matrix: vocab(matrix),
            shared: config.tie_word_embeddings && place.is_first_stage(),
        }),
    }
}

fn layer_spec(config: &ModelConfig, shards: &Shards, layer: usize) -> LayerSpec {
    let (hidden, mlp, dim) = (config.hidden_size, &shards.mlp_columns, config.head_dim);
    let name = |suffix: &str| in_layer(layer, suffix);
    let heads = |projection: &str, heads: &Range<usize>| {
        let bias = Some(name(&format!("self_attn.{projection}.bias")));
        let rows = heads.start * dim..heads.end * dim;
        piece(name(&format!("self_attn.{projection}.weight")), bias, rows, 0..hidden, hidden)
    };
    let by_rows = |suffix: &str| piece(name(suffix), None, mlp.own.clone(), 0..hidden, hidden);
    let by_columns = |suffix: &str, cover: &Range<usize>, all| {
        LinearSpec(vec![piece(name(suffix), None, 0..hidden, cover.clone(), all)])
    };
    let (queries, keys) = (&shards.query_heads, &shards.kv_heads);
    LayerSpec {
        attention_norm: name("input_layernorm.weight"),
        qkv: LinearSpec(vec![heads("q_proj", queries), heads("k_proj", keys), heads("v_proj", keys)]),
        attention_output: by_columns(
            "self_attn.o_proj.weight",
            &shards.attention_columns.cover,
            config.q_width(),
        ),
        mlp_norm: name("post_attention_layernorm.weight"),
        gate_up: LinearSpec(vec![by_rows("mlp.gate_proj.weight"), by_rows("mlp.up_proj.weight")]),
        down: by_columns("mlp.down_proj.weight", &mlp.cover, config.intermediate_size),
    }
}

/// The full name of a layer's tensor.
pub(crate) fn in_layer(layer: usize, name: &str) -> String {
    format!("model.layers.{layer}.{name}")
}

fn piece(
    tensor: String,
    bias: Option<String>,
    rows: Range<usize>,
    columns: Range<usize>,
    all: usize,
) -> Piece {
    Piece { tensor, bias, rows, columns, tensor_columns: all }
}
