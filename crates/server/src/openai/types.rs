//! What chat and text completions have in common on the wire.

use std::time::{SystemTime, UNIX_EPOCH};

use phalanx_engine::Usage;
use serde_json::{Value, json};

use crate::error::{ApiError, Words};
use crate::fields::Fields;
use crate::sampling::SamplingFields;
use crate::state::Shared;

/// `stream_options`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StreamOptions {
    /// A last chunk tells the usage; all others carry `usage: null`.
    pub(crate) include_usage: bool,
    /// Every chunk tells the usage so far (vLLM's extension).
    pub(crate) continuous_usage: bool,
}

impl StreamOptions {
    /// Takes them out of a body.
    ///
    /// # Errors
    /// They are there without `stream`, or of the wrong type.
    pub(crate) fn take(fields: &mut Fields, stream: bool) -> Result<Self, ApiError> {
        let mut nested = fields.take_object("stream_options")?;
        let options = Self {
            include_usage: nested.take("include_usage")?.unwrap_or(false),
            continuous_usage: nested.take("continuous_usage_stats")?.unwrap_or(false),
        };
        fields.adopt(nested);
        if options.include_usage && !stream {
            let message =
                "`stream_options` needs `stream` to be true; other answers always tell their usage.";
            return Err(ApiError::invalid("stream_options", message));
        }
        Ok(options)
    }
}

/// What every object and chunk of one answer repeats.
#[derive(Clone, Debug)]
pub(crate) struct Envelope {
    pub(crate) id: String,
    pub(crate) object: &'static str,
    pub(crate) created: u64,
    pub(crate) model: String,
}

impl Envelope {
    /// An envelope dated now.
    pub(crate) fn new(id: String, object: &'static str, model: &str) -> Self {
        Self { id, object, created: now(), model: model.to_owned() }
    }

    /// An object with these choices and this usage.
    pub(crate) fn object(&self, choices: &Value, usage: &Value) -> Value {
        json!({
            "id": self.id, "object": self.object, "created": self.created, "model": self.model,
            "system_fingerprint": null, "service_tier": null, "choices": choices, "usage": usage,
        })
    }

    /// A chunk with these choices. Only streams with usage have the key, as OpenAI's do.
    pub(crate) fn chunk(&self, choices: &Value, usage: Option<Value>) -> Value {
        let mut chunk = json!({
            "id": self.id, "object": self.object, "created": self.created, "model": self.model,
            "system_fingerprint": null, "choices": choices,
        });
        if let Some(usage) = usage {
            chunk["usage"] = usage;
        }
        chunk
    }
}

/// A stream's bookkeeping of tokens, for `usage` in its chunks.
#[derive(Clone, Debug)]
pub(crate) struct RunningUsage {
    pub(crate) options: StreamOptions,
    pub(crate) prompt_tokens: usize,
    pub(crate) completion_tokens: usize,
}

impl RunningUsage {
    /// What a chunk before the last carries.
    pub(crate) fn in_chunk(&self) -> Option<Value> {
        if self.options.continuous_usage {
            let usage = Usage {
                prompt_tokens: self.prompt_tokens,
                completion_tokens: self.completion_tokens,
                ..Usage::default()
            };
            return Some(usage_json(&usage));
        }
        self.options.include_usage.then_some(Value::Null)
    }
}

/// OpenAI's usage object.
pub(crate) fn usage_json(usage: &Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": { "cached_tokens": usage.cached_tokens },
        "completion_tokens_details": { "reasoning_tokens": 0 },
    })
}

/// A name that does not repeat: the prefix, then 128 random bits.
pub(crate) fn new_id(prefix: &str) -> String {
    format!("{prefix}{:032x}", fastrand::u128(..))
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Adds `warnings` to an answer that has any.
pub(crate) fn with_warnings(mut answer: Value, warnings: Vec<String>) -> Value {
    if !warnings.is_empty() {
        answer["warnings"] = Value::from(warnings);
    }
    answer
}

/// The fields that chat and text completions share.
#[derive(Debug)]
pub(crate) struct SharedFields {
    pub(crate) stream: bool,
    pub(crate) stream_options: StreamOptions,
    pub(crate) sampling: SamplingFields,
    pub(crate) words: Words,
}

impl SharedFields {
    /// Takes them out of a body. `prompt` and `max_tokens` are the API's own names, the preferred one first.
    ///
    /// # Errors
    /// 404 for another model; 400 that names a field.
    pub(crate) fn take(
        fields: &mut Fields,
        state: &Shared,
        prompt: &'static str,
        max_tokens: &[&'static str],
    ) -> Result<Self, ApiError> {
        state.check_model(fields.take::<String>("model")?.as_deref())?;
        let stream = fields.take("stream")?.unwrap_or(false);
        let stream_options = StreamOptions::take(fields, stream)?;
        let mut sampling = SamplingFields::take(fields, state)?;
        let max_tokens = sampling.take_max_tokens(fields, max_tokens)?;
        Ok(Self { stream, stream_options, sampling, words: Words { prompt, max_tokens } })
    }

    /// A stream's bookkeeping.
    pub(crate) fn running_usage(&self, prompt_tokens: usize) -> RunningUsage {
        RunningUsage { options: self.stream_options, prompt_tokens, completion_tokens: 0 }
    }
}
