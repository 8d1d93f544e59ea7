//! What a model is: its sizes, read and checked from `config.json` or from GGUF metadata.

use std::fmt;
use std::path::Path;

use phalanx_device::Format;
use serde_json::{Map, Value};

use crate::architectures;
use crate::error::{LoadError, printable};
use crate::features;
use crate::fields::Fields;
use crate::rope::{RopeConfig, Yarn};

/// The kinds of model this crate runs; [`architectures::KNOWN`] has their names in files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Qwen2 and Qwen2.5, dense.
    Qwen2,
}

/// Something a user should read once: what was decided for them, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice(pub String);

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A model's sizes. Every value was checked when it was read: none is zero, no product of two overflows.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Which forward pass.
    pub architecture: Architecture,
    /// Layers.
    pub num_layers: usize,
    /// Width of the hidden state.
    pub hidden_size: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Elements of a head; a multiple of 16.
    pub head_dim: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Rows of the embedding, padding included; the tokenizer knows how many of them are real tokens.
    pub vocab_size: usize,
    /// The embedding is also the output matrix.
    pub tie_word_embeddings: bool,
    /// Added to the mean square in RMSNorm.
    pub norm_eps: f32,
    /// Rotary embedding.
    pub rope: RopeConfig,
    /// Tokens a sequence may have without YaRN being turned on or up.
    pub trained_len: usize,
    /// Tokens a sequence may have; see [`ModelConfig::with_context`].
    pub max_model_len: usize,
    /// What dense weights are stored in, and what dummy weights are made in.
    pub dtype: Format,
}

/// Larger sizes than any model has, small enough that no product of three overflows.
const MOST_LAYERS: usize = 1 << 12;
const MOST_HEADS: usize = 1 << 12;
const MOST_WIDTH: usize = 1 << 20;
const MOST_VOCAB: usize = 1 << 24;
const MOST_TOKENS: usize = 1 << 27;

/// Attention reads heads in whole vectors of this many elements.
const HEAD_UNIT: usize = 16;

/// Qwen2.5 was evaluated with YaRN up to this factor; beyond it answers fall apart without an error.
const MOST_YARN: usize = 4;

impl ModelConfig {
    /// Reads the text of a Hugging Face `config.json`; `file` is named in errors.
    ///
    /// # Errors
    /// Not JSON, an unknown architecture, a field that is missing or makes no sense.
    pub fn from_json(file: &Path, text: &str) -> Result<Self, LoadError> {
        let values: Map<String, Value> = serde_json::from_str(text)
            .map_err(|error| LoadError::malformed(file, printable(&error.to_string())))?;
        let fields = Fields { file, values: &values };
        let architecture = architectures::of_hugging_face(&fields)?;
        features::refuse(&fields)?;
        let (rope, trained_len) = rope_of_hugging_face(&fields)?;
        let num_heads = fields.count("num_attention_heads", MOST_HEADS)?;
        let config = Self {
            architecture,
            num_layers: fields.count("num_hidden_layers", MOST_LAYERS)?,
            hidden_size: fields.count("hidden_size", MOST_WIDTH)?,
            num_heads,
            num_kv_heads: fields.optional_count("num_key_value_heads", MOST_HEADS)?.unwrap_or(num_heads),
            head_dim: match fields.optional_count("head_dim", MOST_WIDTH)? {
                Some(head_dim) => head_dim,
                None => fields.count("hidden_size", MOST_WIDTH)? / num_heads,
            },
            intermediate_size: fields.count("intermediate_size", MOST_WIDTH)?,
            vocab_size: fields.count("vocab_size", MOST_VOCAB)?,
            tie_word_embeddings: fields.switch("tie_word_embeddings")?,
            norm_eps: fields.optional_positive("rms_norm_eps")?.unwrap_or(1e-6) as f32,
            rope,
            trained_len,
            max_model_len: trained_len,
            dtype: dtype_of_hugging_face(&fields)?,
        };
        config.checked(&fields, "num_attention_heads", "num_key_value_heads", "head_dim")
    }

    /// Reads the scalars of a GGUF file's metadata. `vocab_rows` is the height of its embedding and
    /// `tie_word_embeddings` says that it has no output matrix; GGUF has no fields for these.
    ///
    /// # Errors
    /// An unknown architecture, a field that is missing or makes no sense.
    pub(crate) fn from_gguf(
        fields: &Fields<'_>,
        vocab_rows: usize,
        tie_word_embeddings: bool,
    ) -> Result<Self, LoadError> {
        let (architecture, prefix) = architectures::of_gguf(fields)?;
        let key = |name: &str| format!("{prefix}.{name}");
        let (rope, trained_len) = rope_of_gguf(fields, prefix)?;
        let hidden_size = fields.count(&key("embedding_length"), MOST_WIDTH)?;
        let num_heads = fields.count(&key("attention.head_count"), MOST_HEADS)?;
        let num_kv_heads = fields.optional_count(&key("attention.head_count_kv"), MOST_HEADS)?;
        let head_dim = fields.optional_count(&key("attention.key_length"), MOST_WIDTH)?;
        let norm_eps = fields.optional_positive(&key("attention.layer_norm_rms_epsilon"))?;
        let config = Self {
            architecture,
            num_layers: fields.count(&key("block_count"), MOST_LAYERS)?,
            hidden_size,
            num_heads,
            num_kv_heads: num_kv_heads.unwrap_or(num_heads),
            head_dim: head_dim.unwrap_or(hidden_size / num_heads),
            intermediate_size: fields.count(&key("feed_forward_length"), MOST_WIDTH)?,
            vocab_size: vocab_rows,
            tie_word_embeddings,
            norm_eps: norm_eps.unwrap_or(1e-6) as f32,
            rope,
            trained_len,
            max_model_len: trained_len,
            dtype: Format::F16,
        };
        config.checked(
            fields,
            &key("attention.head_count"),
            &key("attention.head_count_kv"),
            &key("attention.key_length"),
        )
    }

    /// The same model for sequences of up to `max_model_len` tokens (as trained, when `None`).
    ///
    /// YaRN is turned on, with a notice, when that is more than the model was trained on.
    ///
    /// # Errors
    /// More than YaRN can stretch this model to.
    pub fn with_context(&self, max_model_len: Option<usize>) -> Result<(Self, Option<Notice>), LoadError> {
        let asked = max_model_len.unwrap_or(self.trained_len);
        if asked == 0 {
            return Err(LoadError::Layout("--max-model-len is 0: it has to be at least 1".to_string()));
        }
        let mut config = Self { max_model_len: asked, ..self.clone() };
        if asked <= self.trained_len {
            return Ok((config, None));
        }
        let original = match &self.rope.yarn {
            Some(yarn) => yarn.original_len,
            None => self.trained_len,
        };
        // Whole factors only: those are the ones that somebody has measured.
        let factor = asked.div_ceil(original);
        if MOST_YARN < factor {
            let most = self.trained_len.max(MOST_YARN * original);
            return Err(LoadError::Layout(format!(
                "--max-model-len {asked} is more than this model can do: lower it to {most} \
                 (it was trained on {original} tokens, and YaRN stretches that by at most {MOST_YARN})"
            )));
        }
        config.rope.yarn = Some(match &self.rope.yarn {
            // What the file says of the ramp stays; its attention factor belongs to its own stretch.
            Some(yarn) => Yarn { factor: factor as f64, attention_factor: None, ..yarn.clone() },
            None => Yarn::new(factor as f64, original),
        });
        let notice = format!(
            "YaRN with factor {factor} is on: --max-model-len {asked} is more than the {} tokens this model was \
             trained on. Answers to short prompts may be slightly worse; leave --max-model-len out to turn it off.",
            self.trained_len
        );
        Ok((config, Some(Notice(notice))))
    }

    /// Columns of the query projection, all ranks together.
    #[must_use]
    pub fn q_width(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Columns of the key projection (and of the value projection), all ranks together.
    #[must_use]
    pub fn kv_width(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    /// Query heads that share a KV head.
    #[must_use]
    pub fn group_size(&self) -> usize {
        self.num_heads / self.num_kv_heads
    }

    /// Elements of all weights (biases and norms included).
    #[must_use]
    pub fn num_parameters(&self) -> usize {
        architectures::tensors(self).iter().map(|tensor| tensor.rows * tensor.columns).sum()
    }

    fn checked(
        self,
        fields: &Fields<'_>,
        heads: &str,
        kv_heads: &str,
        head_dim: &str,
    ) -> Result<Self, LoadError> {
        if !self.num_heads.is_multiple_of(self.num_kv_heads) {
            let what =
                format!("is {}, which does not divide the {} query heads", self.num_kv_heads, self.num_heads);
            return Err(fields.error(kv_heads, &what));
        }
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(HEAD_UNIT) {
            let what = format!("is {}, and has to be a multiple of {HEAD_UNIT}", self.head_dim);
            return Err(fields.error(head_dim, &what));
        }
        if MOST_WIDTH < self.q_width() {
            let what = format!("{} heads of {} elements are too many", self.num_heads, self.head_dim);
            return Err(fields.error(heads, &what));
        }
        Ok(self)
    }
}

/// `torch_dtype`, or `dtype` as newer files call it; bfloat16 when a file has neither.
fn dtype_of_hugging_face(fields: &Fields<'_>) -> Result<Format, LoadError> {
    let key = if fields.present("torch_dtype").is_some() { "torch_dtype" } else { "dtype" };
    match fields.optional_text(key)? {
        None | Some("bfloat16") => Ok(Format::BF16),
        Some("float16") => Ok(Format::F16),
        Some("float32") => Ok(Format::F32),
        Some(kind) => Err(fields.refused(
            key,
            &format!("is {}, and this program knows bfloat16, float16 and float32", printable(kind)),
            features::UNQUANTISED,
        )),
    }
}

/// RoPE as `rope_theta` beside `rope_scaling`, or as newer files have it, both in `rope_parameters`; and the tokens it
/// is good for.
fn rope_of_hugging_face(fields: &Fields<'_>) -> Result<(RopeConfig, usize), LoadError> {
    let longest = fields.count("max_position_embeddings", MOST_TOKENS)?;
    let theta = fields.optional_positive("rope_theta")?;
    let key = if fields.present("rope_parameters").is_some() { "rope_parameters" } else { "rope_scaling" };
    let scaling = match fields.present(key) {
        None => return Ok((RopeConfig { theta: theta.unwrap_or(10_000.0), yarn: None }, longest)),
        Some(Value::Object(scaling)) => Fields { file: fields.file, values: scaling },
        Some(_) => return Err(fields.error(key, "has to be an object")),
    };
    let theta = scaling.optional_positive("rope_theta")?.or(theta).unwrap_or(10_000.0);
    let kind = match scaling.optional_text("rope_type")? {
        Some(kind) => Some(kind),
        None => scaling.optional_text("type")?,
    };
    match kind {
        None | Some("default") => Ok((RopeConfig { theta, yarn: None }, longest)),
        Some("yarn") => {
            let yarn = yarn_of_hugging_face(&scaling, longest)?;
            let trained_len = yarn.stretched_len();
            Ok((RopeConfig { theta, yarn: Some(yarn) }, trained_len))
        }
        Some(kind) => Err(fields.refused(
            key,
            &format!("asks for rope_type {}, and this program knows default and yarn", printable(kind)),
            features::OTHER_ROPE,
        )),
    }
}

fn yarn_of_hugging_face(scaling: &Fields<'_>, longest: usize) -> Result<Yarn, LoadError> {
    let original =
        scaling.optional_count("original_max_position_embeddings", MOST_TOKENS)?.unwrap_or(longest);
    let factor = stretch(scaling, "factor")?.unwrap_or(longest as f64 / original as f64);
    let mut yarn = Yarn::new(factor, original);
    yarn.attention_factor = scaling.optional_positive("attention_factor")?;
    yarn.beta_fast = scaling.optional_positive("beta_fast")?.unwrap_or(yarn.beta_fast);
    yarn.beta_slow = scaling.optional_positive("beta_slow")?.unwrap_or(yarn.beta_slow);
    if scaling.present("truncate").is_some() {
        yarn.truncate = scaling.switch("truncate")?;
    }
    if scaling.present("mscale").is_some() {
        return Err(scaling.refused("mscale", "is not supported", features::OTHER_ROPE));
    }
    Ok(yarn)
}

fn rope_of_gguf(fields: &Fields<'_>, prefix: &str) -> Result<(RopeConfig, usize), LoadError> {
    let key = |name: &str| format!("{prefix}.{name}");
    let longest = fields.count(&key("context_length"), MOST_TOKENS)?;
    let theta = fields.optional_positive(&key("rope.freq_base"))?.unwrap_or(10_000.0);
    let kind = key("rope.scaling.type");
    match fields.optional_text(&kind)? {
        None | Some("none") => return Ok((RopeConfig { theta, yarn: None }, longest)),
        Some("yarn") => {}
        Some(other) => {
            let what = format!("is {}, and this program knows none and yarn", printable(other));
            return Err(fields.refused(&kind, &what, features::OTHER_ROPE));
        }
    }
    let original =
        fields.optional_count(&key("rope.scaling.original_context_length"), MOST_TOKENS)?.unwrap_or(longest);
    let factor_key = key("rope.scaling.factor");
    let factor = stretch(fields, &factor_key)?.ok_or_else(|| fields.error(&factor_key, "is missing"))?;
    let mut yarn = Yarn::new(factor, original);
    let (fast, slow) = (key("rope.scaling.yarn_beta_fast"), key("rope.scaling.yarn_beta_slow"));
    yarn.beta_fast = fields.optional_positive(&fast)?.unwrap_or(yarn.beta_fast);
    yarn.beta_slow = fields.optional_positive(&slow)?.unwrap_or(yarn.beta_slow);
    // These multiply what the paper has; a file may say that they do not.
    for name in ["attn_factor", "yarn_attn_factor", "yarn_ext_factor", "yarn_log_multiplier"] {
        let key = key(&format!("rope.scaling.{name}"));
        let neutral = if name == "yarn_log_multiplier" { 0.0 } else { 1.0 };
        if fields.present(&key).is_some_and(|value| value.as_f64() != Some(neutral)) {
            return Err(fields.refused(&key, "is not supported", features::OTHER_ROPE));
        }
    }
    let trained_len = yarn.stretched_len();
    Ok((RopeConfig { theta, yarn: Some(yarn) }, trained_len))
}

/// YaRN's factor, when it is there.
fn stretch(fields: &Fields<'_>, key: &str) -> Result<Option<f64>, LoadError> {
    match fields.optional_positive(key)? {
        Some(factor) if !(1.0..=1024.0).contains(&factor) => {
            Err(fields.error(key, "has to be from 1 to 1024"))
        }
        factor => Ok(factor),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue;

    fn read(changes: &str) -> Result<ModelConfig, LoadError> {
        let mut values = serde_json::json!({
            "architectures": ["Qwen2ForCausalLM"], "hidden_size": 64, "intermediate_size": 96,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "vocab_size": 50, "max_position_embeddings": 128
        });
        let changes: Map<String, Value> = serde_json::from_str(changes).unwrap();
        values.as_object_mut().unwrap().extend(changes);
        ModelConfig::from_json(Path::new("config.json"), &values.to_string())
    }

    #[test]
    fn defaults_are_those_of_transformers() {
        let config = read("{}").unwrap();
        assert_eq!((config.head_dim, config.norm_eps, config.tie_word_embeddings), (16, 1e-6, false));
        assert_eq!((config.dtype, config.max_model_len), (Format::BF16, 128));
        assert_eq!(config.rope, RopeConfig { theta: 10_000.0, yarn: None });
    }

    #[test]
    fn values_that_make_no_sense_are_named() {
        let cases = [
            (
                r#"{"architectures": ["LlamaForCausalLM"]}"#,
                "architectures: names LlamaForCausalLM, and this program knows Qwen2ForCausalLM; take a model of that \
                 kind, such as Qwen/Qwen2.5-7B-Instruct",
            ),
            (
                r#"{"architectures": null}"#,
                "architectures: names nothing, and this program knows Qwen2ForCausalLM; take a model of that kind, such \
                 as Qwen/Qwen2.5-7B-Instruct",
            ),
            (
                r#"{"num_attention_heads": 0}"#,
                "num_attention_heads: is 0, and has to be a whole number from 1 to 4096",
            ),
            (
                r#"{"num_attention_heads": -4}"#,
                "num_attention_heads: is -4, and has to be a whole number from 1 to 4096",
            ),
            (
                r#"{"num_key_value_heads": 3}"#,
                "num_key_value_heads: is 3, which does not divide the 4 query heads",
            ),
            (
                r#"{"num_key_value_heads": 8}"#,
                "num_key_value_heads: is 8, which does not divide the 4 query heads",
            ),
            (
                r#"{"hidden_size": 1e30}"#,
                "hidden_size: is 1e+30, and has to be a whole number from 1 to 1048576",
            ),
            (
                r#"{"hidden_size": "many"}"#,
                "hidden_size: is \"many\", and has to be a whole number from 1 to 1048576",
            ),
            (r#"{"hidden_size": 60}"#, "head_dim: is 15, and has to be a multiple of 16"),
            (r#"{"head_dim": 24}"#, "head_dim: is 24, and has to be a multiple of 16"),
            (r#"{"head_dim": 1048576}"#, "num_attention_heads: 4 heads of 1048576 elements are too many"),
            (r#"{"vocab_size": null}"#, "vocab_size: is missing"),
            (r#"{"rope_scaling": {"type": "yarn", "factor": 0.5}}"#, "factor: has to be from 1 to 1024"),
            (r#"{"rope_theta": 0}"#, "rope_theta: is 0, and has to be a number above 0"),
        ];
        for (changes, expected) in cases {
            let error = read(changes).unwrap_err().to_string();
            assert_eq!(error, format!("config.json: {expected}"));
        }
    }

    /// What is not supported is named with what to do; nobody is told that the files are damaged.
    #[test]
    fn features_that_are_not_supported_are_named_with_what_to_do() {
        let window = "layers from 1 on see the last 32 tokens only (sliding_window), and this program has full attention";
        let cases = [
            (
                r#"{"use_sliding_window": true, "sliding_window": 32, "max_window_layers": 1}"#,
                "use_sliding_window",
                window,
                "--max-model-len 32",
            ),
            (
                r#"{"use_sliding_window": true, "sliding_window": 32, "layer_types": ["full_attention", "sliding_attention"]}"#,
                "use_sliding_window",
                window,
                "set the field to false",
            ),
            (
                r#"{"quantization_config": {"quant_method": "awq", "bits": 4}}"#,
                "quantization_config",
                "the weights are quantised (awq, 4 bits), which is read from GGUF files only",
                "GGUF file of it",
            ),
            (
                r#"{"quantization_config": {}}"#,
                "quantization_config",
                "the weights are quantised (an unnamed method), which is read from GGUF files only",
                "the model's own repository",
            ),
            (
                r#"{"torch_dtype": "int8"}"#,
                "torch_dtype",
                "is int8, and this program knows bfloat16, float16 and float32",
                "GGUF file of it",
            ),
            (
                r#"{"rope_scaling": {"type": "dynamic"}}"#,
                "rope_scaling",
                "asks for rope_type dynamic, and this program knows default and yarn",
                "take a model without it",
            ),
            (
                r#"{"rope_parameters": {"rope_type": "yarn", "factor": 4, "mscale": 1}}"#,
                "mscale",
                "is not supported",
                "take a model without it",
            ),
            (
                r#"{"hidden_act": "gelu"}"#,
                "hidden_act",
                "is gelu, and this program knows silu",
                "take a model",
            ),
        ];
        for (changes, field, expected, remedy) in cases {
            match read(changes) {
                Err(LoadError::Refused { what, instead, .. }) => {
                    assert_eq!(what, format!("{field}: {expected}"));
                    assert!(instead.contains(remedy), "{instead}");
                }
                other => panic!("{changes}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_window_that_no_layer_has_is_no_window() {
        for changes in [
            r#"{"use_sliding_window": false, "sliding_window": 32, "max_window_layers": 0}"#,
            r#"{"use_sliding_window": true, "sliding_window": 32, "max_window_layers": 2}"#,
            r#"{"use_sliding_window": true, "sliding_window": 32}"#,
            r#"{"use_sliding_window": true, "sliding_window": null, "max_window_layers": 0}"#,
            r#"{"use_sliding_window": true, "layer_types": ["full_attention", "full_attention"], "max_window_layers": 0}"#,
        ] {
            assert_eq!(read(changes), read("{}"), "{changes}");
        }
        let by_default =
            read(r#"{"use_sliding_window": true, "max_window_layers": 0}"#).unwrap_err().to_string();
        assert!(by_default.contains("the last 4096 tokens"), "{by_default}");
    }

    #[test]
    fn yarn_in_a_config_reaches_as_far_as_it_says() {
        let changes =
            r#"{"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}}"#;
        let config = read(changes).unwrap();
        assert_eq!((config.trained_len, config.rope.yarn), (512, Some(Yarn::new(4.0, 128))));
    }

    #[test]
    fn yarn_in_a_gguf_file_is_read_or_refused() {
        let read = |key: &str, value: f64| {
            let mut values = serde_json::json!({
                "qwen2.context_length": 512, "qwen2.rope.scaling.type": "yarn", "qwen2.rope.scaling.factor": 4.0,
                "qwen2.rope.scaling.original_context_length": 128
            });
            values[format!("qwen2.rope.scaling.{key}")] = Value::from(value);
            let fields = Fields { file: Path::new("FILE"), values: values.as_object().unwrap() };
            rope_of_gguf(&fields, "qwen2")
                .map(|(rope, _)| rope.yarn.unwrap())
                .map_err(|error| error.to_string())
        };
        let default = Yarn::new(4.0, 128);
        assert_eq!(read("yarn_beta_fast", 16.0), Ok(Yarn { beta_fast: 16.0, ..default }));
        assert_eq!(read("yarn_beta_slow", 2.0), Ok(Yarn { beta_slow: 2.0, ..default }));
        for (key, neutral) in [
            ("attn_factor", 1.0),
            ("yarn_attn_factor", 1.0),
            ("yarn_ext_factor", 1.0),
            ("yarn_log_multiplier", 0.0),
        ] {
            assert_eq!(read(key, neutral), Ok(default.clone()));
            let expected =
                format!("FILE: qwen2.rope.scaling.{key}: is not supported; {}", features::OTHER_ROPE);
            assert_eq!(read(key, 0.5), Err(expected));
        }
    }

    #[test]
    fn yarn_is_turned_on_with_a_notice_where_a_context_is_longer_than_the_training() {
        for (name, config) in catalogue::qwen2_5() {
            let yarn = |asked| {
                let (config, notice) = config.with_context(asked).unwrap();
                assert_eq!(notice.is_some(), config.rope.yarn.is_some(), "{name}");
                (config.max_model_len, config.rope.yarn.map(|yarn| yarn.factor))
            };
            assert_eq!(yarn(None), (32_768, None));
            assert_eq!(yarn(Some(100)), (100, None));
            assert_eq!(yarn(Some(32_769)), (32_769, Some(2.0)));
            assert_eq!(yarn(Some(131_072)), (131_072, Some(4.0)));
            let error = config.with_context(Some(131_073)).unwrap_err().to_string();
            assert!(
                error
                    .starts_with("--max-model-len 131073 is more than this model can do: lower it to 131072")
            );
        }
    }
}
