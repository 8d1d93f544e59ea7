//! Qwen2 and Qwen2.5, dense (arXiv 2412.15115): pre-norm decoder, biases on q, k and v, grouped queries, SwiGLU.

use phalanx_device::backend::KvLayer;
use phalanx_device::{Device, Tensor, ViewMut};

use super::spec::{EMBEDDING, FINAL_NORM, OUTPUT_MATRIX, in_layer, rank_spec};
use super::{TensorKind, TensorShape};
use crate::config::ModelConfig;
use crate::error::LoadError;
use crate::layers::attention::Attention;
use crate::layers::embedding::Embedding;
use crate::layers::lm_head::LmHead;
use crate::layers::mlp::Mlp;
use crate::layers::norm::RmsNorm;
use crate::layers::workspace::{Rows, Workspace, WorkspaceShapes};
use crate::layers::{Forward, held_bytes};
use crate::memory::Limits;
use crate::weights::load::Loader;
use crate::weights::shard::Shards;

/// One rank's part of a Qwen2 model.
#[derive(Debug)]
pub struct Qwen2 {
    pub(crate) shards: Shards,
    embedding: Option<Embedding>,
    layers: Vec<Layer>,
    head: Option<LmHead>,
    rope: Tensor,
    workspace: Workspace,
}

#[derive(Debug)]
struct Layer {
    attention_norm: RmsNorm,
    attention: Attention,
    mlp_norm: RmsNorm,
    mlp: Mlp,
}

impl Qwen2 {
    /// Carries out one step on this rank's stage; see [`super::Model::forward`].
    pub fn forward(&mut self, cx: &Forward<'_>, kv: &mut [KvLayer]) -> Option<ViewMut<'_>> {
        assert!(kv.len() == self.layers.len(), "a KV layer for each layer of this stage");
        let (device, stage) = (cx.device, self.shards.place.stage);
        let (mut x, samples) = self.workspace.rows(cx.plan);
        match &self.embedding {
            Some(embedding) => embedding.forward(cx, x.residual.reborrow()),
            None => device.stage_group().receive(stage - 1, x.residual.reborrow()),
        }
        for (index, (layer, kv)) in self.layers.iter().zip(kv).enumerate() {
            match index {
                0 => layer.attention_norm.forward(device, x.normed.reborrow(), x.residual.view()),
                _ => add_hidden(&layer.attention_norm, device, &mut x),
            }
            layer.attention.forward(cx, self.rope.view(), &mut x, kv);
            add_hidden(&layer.mlp_norm, device, &mut x);
            layer.mlp.forward(cx, &mut x);
        }
        match &self.head {
            Some(_) if cx.plan.layout.sample_rows.is_empty() => None,
            Some(head) => Some(head.forward(cx, &x, samples)),
            None => {
                // Only the sum goes on; the norm that comes with the addition is for nobody.
                let norm = &self.layers.last().expect("a stage has layers").mlp_norm;
                add_hidden(norm, device, &mut x);
                device.stage_group().send(stage + 1, x.residual.view());
                None
            }
        }
    }

    /// Where [`super::Model::forward`] leaves the logits of so many rows.
    pub(crate) fn logits(&mut self, samples: usize) -> ViewMut<'_> {
        self.workspace.logits(samples)
    }

    /// Takes this rank's slices.
    pub(crate) fn load(
        loader: &Loader<'_>,
        config: &ModelConfig,
        shards: Shards,
        limits: Limits,
    ) -> Result<Self, LoadError> {
        let spec = rank_spec(config, &shards);
        let norm = |tensor: &str| RmsNorm::load(loader, tensor, config.hidden_size, config.norm_eps);
        let embedding = spec.embedding.as_ref().map(|piece| Embedding::load(loader, piece)).transpose()?;
        let mut layers = Vec::with_capacity(spec.layers.len());
        for layer in &spec.layers {
            layers.push(Layer {
                attention_norm: norm(&layer.attention_norm)?,
                attention: Attention::load(loader, &shards, &layer.qkv, &layer.attention_output)?,
                mlp_norm: norm(&layer.mlp_norm)?,
                mlp: Mlp::load(loader, &shards, &layer.gate_up, &layer.down)?,
            });
        }
        let head = match &spec.head {
            None => None,
            Some(head) => {
                let tied =
                    embedding.as_ref().filter(|_| head.shared).map(|embedding| embedding.table.clone());
                Some(LmHead::load(loader, norm(&head.norm)?, &head.matrix, tied)?)
            }
        };
        let device = loader.device;
        let table = config.rope.table(limits.max_model_len, config.head_dim);
        let rope = device.tensor_f32(limits.max_model_len, config.head_dim, &table)?;
        let shapes = WorkspaceShapes::new(config, &shards, limits, device.activation_dtype());
        let workspace = Workspace::allocate(device, &shapes)?;
        Ok(Self { shards, embedding, layers, head, rope, workspace })
    }

    /// Bytes held in the device's memory.
    pub(crate) fn bytes(&self) -> usize {
        let layer = |layer: &Layer| {
            layer.attention_norm.bytes()
                + layer.attention.bytes()
                + layer.mlp_norm.bytes()
                + layer.mlp.bytes()
        };
        let layers: usize = self.layers.iter().map(layer).sum();
        let embedding = self.embedding.as_ref().map_or(0, Embedding::bytes);
        let head = self.head.as_ref().map_or(0, LmHead::bytes);
        embedding + layers + head + held_bytes(&self.rope) + self.workspace.bytes()
    }
}

/// Adds what the layer before made, summed over the ranks, to the residual stream, and norms that for the next.
fn add_hidden(norm: &RmsNorm, device: &Device, x: &mut Rows<'_>) {
    norm.reduce_add_forward(device, x.normed.reborrow(), x.residual.reborrow(), x.hidden.reborrow());
}

/// Every tensor of a Qwen2 model.
pub(super) fn tensors(config: &ModelConfig) -> Vec<TensorShape> {
    let (hidden, mlp) = (config.hidden_size, config.intermediate_size);
    let (q, kv) = (config.q_width(), config.kv_width());
    let of_layer = [
        ("input_layernorm.weight", TensorKind::Norm, 1, hidden),
        ("self_attn.q_proj.weight", TensorKind::Matrix, q, hidden),
        ("self_attn.k_proj.weight", TensorKind::Matrix, kv, hidden),
        ("self_attn.v_proj.weight", TensorKind::Matrix, kv, hidden),
        ("self_attn.q_proj.bias", TensorKind::Bias, 1, q),
        ("self_attn.k_proj.bias", TensorKind::Bias, 1, kv),
        ("self_attn.v_proj.bias", TensorKind::Bias, 1, kv),
        ("self_attn.o_proj.weight", TensorKind::AttentionOutput, hidden, q),
        ("post_attention_layernorm.weight", TensorKind::Norm, 1, hidden),
        ("mlp.gate_proj.weight", TensorKind::Matrix, mlp, hidden),
        ("mlp.up_proj.weight", TensorKind::Matrix, mlp, hidden),
        ("mlp.down_proj.weight", TensorKind::MlpOutput, hidden, mlp),
    ];
    let shape = |name: String, kind, rows, columns| TensorShape { name, kind, rows, columns };
    let mut tensors = vec![
        shape(EMBEDDING.to_string(), TensorKind::Matrix, config.vocab_size, hidden),
        shape(FINAL_NORM.to_string(), TensorKind::Norm, 1, hidden),
    ];
    if !config.tie_word_embeddings {
        tensors.push(shape(OUTPUT_MATRIX.to_string(), TensorKind::Matrix, config.vocab_size, hidden));
    }
    for layer in 0..config.num_layers {
        let named =
            of_layer.map(|(name, kind, rows, columns)| shape(in_layer(layer, name), kind, rows, columns));
        tensors.extend(named);
    }
    tensors
}
