//! The list of architectures: how files name them, which tensors they have, and how a rank runs one.

pub mod qwen2;
pub mod spec;

use phalanx_device::backend::KvLayer;
use phalanx_device::{Device, ViewMut};

use crate::config::{Architecture, ModelConfig};
use crate::error::{LoadError, printable};
use crate::fields::Fields;
use crate::layers::Forward;
use crate::memory::Limits;
use crate::place::Place;
use crate::weights::convert::WeightType;
use crate::weights::load::Loader;
use crate::weights::shard::Shards;
use crate::weights::{WeightFormats, Weights};

/// Every architecture with its name in `config.json` and in GGUF metadata.
pub const KNOWN: [(Architecture, &str, &str); 1] = [(Architecture::Qwen2, "Qwen2ForCausalLM", "qwen2")];

/// The embedding in a GGUF file.
pub(crate) const GGUF_EMBEDDING: &str = "token_embd.weight";
/// The output matrix in a GGUF file; a model without one uses its embedding.
pub(crate) const GGUF_OUTPUT_MATRIX: &str = "output.weight";

/// What a tensor is to a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorKind {
    /// A matrix, of which ranks hold rows.
    Matrix,
    /// The attention's output matrix, of which ranks hold the columns of their heads.
    AttentionOutput,
    /// The MLP's output matrix, of which ranks hold columns.
    MlpOutput,
    /// Added to a matrix's result.
    Bias,
    /// A norm's weight.
    Norm,
}

impl TensorKind {
    /// One-dimensional, and kept in F32.
    #[must_use]
    pub const fn is_vector(self) -> bool {
        matches!(self, Self::Bias | Self::Norm)
    }
}

/// A tensor that a model needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorShape {
    /// The name Hugging Face gives it, which this crate uses.
    pub name: String,
    /// What it is.
    pub kind: TensorKind,
    /// Rows; 1 for a vector.
    pub rows: usize,
    /// Elements of a row.
    pub columns: usize,
}

/// The architecture that a `config.json` names.
pub(crate) fn of_hugging_face(fields: &Fields<'_>) -> Result<Architecture, LoadError> {
    let names = fields.present("architectures").and_then(|names| names.as_array());
    let name = names.and_then(|names| names.first()).and_then(|name| name.as_str()).unwrap_or("nothing");
    match KNOWN.iter().find(|known| known.1 == name) {
        Some(known) => Ok(known.0),
        None => Err(unknown(fields, "architectures", name, KNOWN.map(|known| known.1))),
    }
}

/// The architecture that GGUF metadata name, and the prefix of its fields.
pub(crate) fn of_gguf(fields: &Fields<'_>) -> Result<(Architecture, &'static str), LoadError> {
    let name = fields.optional_text("general.architecture")?.unwrap_or("nothing");
    match KNOWN.iter().find(|known| known.2 == name) {
        Some(known) => Ok((known.0, known.2)),
        None => Err(unknown(fields, "general.architecture", name, KNOWN.map(|known| known.2))),
    }
}

fn unknown(fields: &Fields<'_>, key: &str, name: &str, known: [&str; KNOWN.len()]) -> LoadError {
    let what = format!("names {}, and this program knows {}", printable(name), known.join(", "));
    fields.refused(key, &what, "take a model of that kind, such as Qwen/Qwen2.5-7B-Instruct")
}

/// Every tensor a model needs.
#[must_use]
pub fn tensors(config: &ModelConfig) -> Vec<TensorShape> {
    match config.architecture {
        Architecture::Qwen2 => qwen2::tensors(config),
    }
}

/// A tensor's name in a GGUF file. llama.cpp's converter leaves the rows of a Qwen2 model's q and k in order, so that
/// nothing but names differs.
pub(crate) fn gguf_name(name: &str) -> String {
    const MODULES: [(&str, &str); 12] = [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("input_layernorm", "attn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("post_attention_layernorm", "ffn_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    let theirs = |ours: &str| {
        MODULES.iter().find(|module| module.0 == ours).expect("every module of an architecture is listed").1
    };
    let (module, end) = name.rsplit_once('.').expect("a tensor is its module's weight or bias");
    match module.strip_prefix("model.layers.").and_then(|module| module.split_once('.')) {
        Some((layer, module)) => format!("blk.{layer}.{}.{end}", theirs(module)),
        None => format!("{}.{end}", theirs(module)),
    }
}

/// How to load a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// Which part.
    pub place: Place,
    /// The largest step and the longest sequence.
    pub limits: Limits,
    /// What to keep matrices in.
    pub weight_type: WeightType,
}

/// One rank's part of a model, ready to compute.
#[derive(Debug)]
pub enum Model {
    /// Qwen2 and Qwen2.5.
    Qwen2(qwen2::Qwen2),
}

impl Model {
    /// Takes one rank's slices of `weights` into `device`. `config` is `weights.config()`, or what
    /// [`ModelConfig::with_context`] made of it; `progress` hears how many bytes were taken since it last heard.
    ///
    /// # Errors
    /// The layout does not fit the model, or the device has not that much memory.
    pub fn load(
        device: &Device,
        weights: &Weights,
        config: &ModelConfig,
        options: &LoadOptions,
        progress: &dyn Fn(usize),
    ) -> Result<Self, LoadError> {
        options.limits.check()?;
        let loader = Loader { device, weights, weight_type: options.weight_type, progress };
        let shards = Shards::new(config, options.place, &WeightFormats::Of(weights, options.weight_type))?;
        match config.architecture {
            Architecture::Qwen2 => {
                Ok(Self::Qwen2(qwen2::Qwen2::load(&loader, config, shards, options.limits)?))
            }
        }
    }

    /// Computes a step: logits F32 `[samples, vocab]` of `plan`'s sample rows on the last stage, `None` on others and
    /// when nothing is sampled. `kv` has one entry for each layer of this stage.
    pub fn forward(&mut self, cx: &Forward<'_>, kv: &mut [KvLayer]) -> Option<ViewMut<'_>> {
        match self {
            Self::Qwen2(model) => model.forward(cx, kv),
        }
    }

    /// Where [`Self::forward`] of a step with so many sample rows left its logits: what it returned, on the last stage.
    pub fn logits(&mut self, samples: usize) -> ViewMut<'_> {
        match self {
            Self::Qwen2(model) => model.logits(samples),
        }
    }

    /// Which part this is.
    #[must_use]
    pub fn shards(&self) -> &Shards {
        match self {
            Self::Qwen2(model) => &model.shards,
        }
    }

    /// Bytes of weights, rope table and workspace held in the device's memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Qwen2(model) => model.bytes(),
        }
    }
}
