//! What a GGUF file says beside its weights: tokenizer parts and chat template, as plain values.

use std::path::Path;

use serde_json::Value;

use crate::error::LoadError;
use crate::weights::gguf::{Array, Metadata};

/// The tokenizer of a GGUF file, unread: the crate that knows text makes sense of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GgufVocabulary {
    /// The kind (`tokenizer.ggml.model`), for Qwen `gpt2`: byte-level BPE.
    pub model: String,
    /// How text is cut before merging (`tokenizer.ggml.pre`), for Qwen `qwen2`.
    pub pre: String,
    /// Each token's text, by id, in the byte-level alphabet.
    pub tokens: Vec<String>,
    /// Each token's type: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte.
    pub token_types: Vec<i32>,
    /// Merges, most important first, as two tokens with a space between.
    pub merges: Vec<String>,
    /// The token a text begins with.
    pub bos: Option<u32>,
    /// The token that ends an answer.
    pub eos: Option<u32>,
    /// The token that fills up batches.
    pub padding: Option<u32>,
    /// Put `bos` before every prompt.
    pub add_bos: bool,
    /// The chat template (Jinja).
    pub chat_template: Option<String>,
}

impl GgufVocabulary {
    /// Takes the tokenizer's values out of `metadata`; `None` when the file has none.
    pub(crate) fn take(path: &Path, metadata: &mut Metadata) -> Result<Option<Self>, LoadError> {
        let mut strings = |key: &str| match metadata.arrays.remove(key) {
            None => Ok(None),
            Some(Array::Strings(strings)) => Ok(Some(strings)),
            Some(_) => Err(LoadError::malformed(path, format!("metadata {key} is no list of strings"))),
        };
        let Some(tokens) = strings("tokenizer.ggml.tokens")? else { return Ok(None) };
        let merges = strings("tokenizer.ggml.merges")?.unwrap_or_default();
        let token_types = match metadata.arrays.remove("tokenizer.ggml.token_type") {
            None => Vec::new(),
            Some(Array::Integers(types)) => {
                types.into_iter().map(|kind| i32::try_from(kind).unwrap_or(0)).collect()
            }
            Some(_) => {
                return Err(LoadError::malformed(
                    path,
                    "metadata tokenizer.ggml.token_type is no list of numbers",
                ));
            }
        };
        if !token_types.is_empty() && token_types.len() != tokens.len() {
            let what = format!(
                "metadata tokenizer.ggml.token_type has {} entries for {} tokens",
                token_types.len(),
                tokens.len()
            );
            return Err(LoadError::malformed(path, what));
        }
        let text = |key: &str| metadata.scalars.get(key).and_then(Value::as_str).map(str::to_string);
        let id = |key: &str| {
            metadata.scalars.get(key).and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok())
        };
        Ok(Some(Self {
            model: text("tokenizer.ggml.model").unwrap_or_default(),
            pre: text("tokenizer.ggml.pre").unwrap_or_default(),
            bos: id("tokenizer.ggml.bos_token_id"),
            eos: id("tokenizer.ggml.eos_token_id"),
            padding: id("tokenizer.ggml.padding_token_id"),
            add_bos: metadata.scalars.get("tokenizer.ggml.add_bos_token") == Some(&Value::Bool(true)),
            chat_template: text("tokenizer.chat_template"),
            tokens,
            token_types,
            merges,
        }))
    }
}
