//! The sampling fields that all three generating APIs share, and their one way into an engine's request.

use std::sync::Arc;

use phalanx_engine::{Request, Sampling, Stop};
use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::fields::{Fields, parse_at};
use crate::state::Shared;

/// What a request says about how its answers are made, over the model's defaults.
#[derive(Debug)]
pub(crate) struct SamplingFields {
    pub(crate) n: usize,
    pub(crate) max_new_tokens: Option<usize>,
    /// The API's own limit where the client gives none; unlike a client's, it gives way to the context.
    pub(crate) default_max_new_tokens: Option<usize>,
    pub(crate) sampling: Sampling,
    stop: Stop,
    priority: i32,
    cache_salt: Option<String>,
    skip_special_tokens: bool,
}

impl SamplingFields {
    /// Takes all sampling fields out of a body. Ranges are the engine's to check; types and names are ours.
    ///
    /// # Errors
    /// 400 that names the field.
    pub(crate) fn take(fields: &mut Fields, state: &Shared) -> Result<Self, ApiError> {
        refuse_unsupported(fields)?;
        let mut sampling = Sampling { logprobs: None, ..state.model.sampling.clone() };
        fields.set("temperature", &mut sampling.temperature)?;
        fields.set("top_k", &mut sampling.top_k)?;
        fields.set("top_p", &mut sampling.top_p)?;
        fields.set("min_p", &mut sampling.min_p)?;
        fields.set("repetition_penalty", &mut sampling.repetition_penalty)?;
        fields.set("presence_penalty", &mut sampling.presence_penalty)?;
        fields.set("frequency_penalty", &mut sampling.frequency_penalty)?;
        sampling.seed = fields.take_alias(&["seed", "sampling_seed"])?.map(|(_, seed)| seed);
        sampling.logit_bias = logit_bias(fields)?;
        let mut skip_special_tokens = true;
        fields.set("skip_special_tokens", &mut skip_special_tokens)?;
        let priority = priority(fields, state.options.client_priorities)?;
        let n = fields.take("n")?.unwrap_or(1);
        if n == 0 {
            return Err(ApiError::invalid("n", "`n` must be at least 1."));
        }
        // The best of as many as are returned is all of them.
        refuse_unless(fields, "best_of", &[json!(1), json!(n)])?;
        Ok(Self {
            n,
            max_new_tokens: None,
            default_max_new_tokens: None,
            sampling,
            stop: stop(fields)?,
            priority,
            cache_salt: fields.take("cache_salt")?,
            skip_special_tokens,
        })
    }

    /// Takes the longest answer's length, under whichever of its names it came, and returns that name.
    ///
    /// # Errors
    /// 400 for a wrong type, for 0, and for two names that differ.
    pub(crate) fn take_max_tokens(
        &mut self,
        fields: &mut Fields,
        names: &[&'static str],
    ) -> Result<&'static str, ApiError> {
        match fields.take_alias::<usize>(names)? {
            None => Ok(names[0]),
            Some((name, 0)) => Err(ApiError::invalid(name, format!("`{name}` must be at least 1."))),
            Some((name, max)) => {
                self.max_new_tokens = Some(max);
                Ok(name)
            }
        }
    }

    /// The engine's request for one prompt, in a context of `max_model_len` tokens.
    pub(crate) fn request(&self, id: String, prompt: Arc<[u32]>, max_model_len: usize) -> Request {
        // A prompt that leaves no room at all is the engine's to refuse.
        let room = max_model_len.saturating_sub(prompt.len()).max(1);
        let default = self.default_max_new_tokens.map(|most| most.min(room));
        Request {
            id,
            prompt,
            n: self.n,
            max_new_tokens: self.max_new_tokens.or(default),
            sampling: self.sampling.clone(),
            stop: self.stop.clone(),
            priority: self.priority,
            cache_salt: self.cache_salt.clone(),
            skip_special_tokens: self.skip_special_tokens,
        }
    }
}

/// The request's place among others, where clients may choose it.
fn priority(fields: &mut Fields, allowed: bool) -> Result<i32, ApiError> {
    let path = fields.path("priority");
    match fields.take("priority")?.unwrap_or(0) {
        priority if allowed || priority == 0 => Ok(priority),
        _ => {
            let message = format!(
                "`{path}` must be 0 here, or left out: clients may choose priorities only on a server started with `--enable-client-priorities`."
            );
            Err(ApiError::unsupported(path, message))
        }
    }
}

/// When an answer ends.
fn stop(fields: &mut Fields) -> Result<Stop, ApiError> {
    let path = fields.path("stop");
    let mut stop = Stop {
        strings: match fields.take_value("stop") {
            None => Vec::new(),
            Some(Value::String(text)) => vec![text],
            Some(list @ Value::Array(_)) => parse_at(list, path)?,
            Some(_) => {
                return Err(ApiError::invalid(path, "`stop` must be a string or an array of strings."));
            }
        },
        ..Stop::default()
    };
    fields.set("stop_token_ids", &mut stop.token_ids)?;
    fields.set("include_stop_str_in_output", &mut stop.include_in_output)?;
    fields.set("ignore_eos", &mut stop.ignore_eos)?;
    if let Some((_, tokens)) = fields.take_alias(&["min_tokens", "min_new_tokens"])? {
        stop.min_tokens = tokens;
    }
    Ok(stop)
}

/// `{"token id": bias}`; JSON has only strings for keys.
fn logit_bias(fields: &mut Fields) -> Result<Vec<(u32, f32)>, ApiError> {
    let path = fields.path("logit_bias");
    let biases = fields.take::<Map<String, Value>>("logit_bias")?.unwrap_or_default();
    let entry = |(key, bias): (String, Value)| match key.parse() {
        Ok(token) => Ok((token, parse_at(bias, format!("{path}.{key}"))?)),
        Err(_) => {
            let message = format!("`{path}`: a key must be a token's id, not {key:?}.");
            Err(ApiError::invalid(path.clone(), message))
        }
    };
    biases.into_iter().map(entry).collect()
}

/// Refuses what servers of this kind are known to offer and this one does not, unless the value asks for nothing.
///
/// Ignoring any of these would give an answer other than the one asked for.
fn refuse_unsupported(fields: &mut Fields) -> Result<(), ApiError> {
    let table = [
        ("beam_width", vec![json!(1)]),
        ("use_beam_search", vec![json!(false)]),
        ("length_penalty", vec![json!(1.0), json!(1)]),
        ("bad_words", vec![json!([])]),
        ("allowed_token_ids", vec![]),
        ("prompt_logprobs", vec![json!(0)]),
        ("truncate_prompt_tokens", vec![]),
        ("truncate", vec![]),
        ("structured_outputs", vec![]),
        ("guided_json", vec![]),
        ("guided_regex", vec![]),
        ("guided_choice", vec![]),
        ("guided_grammar", vec![]),
        ("json_schema", vec![]),
        ("regex", vec![]),
        ("ebnf", vec![]),
        ("grammar", vec![]),
        ("stop_regex", vec![]),
        ("response_format", vec![json!({"type": "text"})]),
        ("logits_processors", vec![json!([])]),
        ("return_token_ids", vec![json!(false)]),
        ("detokenize", vec![json!(true)]),
        ("spaces_between_special_tokens", vec![json!(true)]),
        ("typical_p", vec![json!(1.0), json!(1)]),
        ("watermark", vec![json!(false)]),
        ("lora_path", vec![]),
        ("adapter_id", vec![]),
    ];
    for (name, defaults) in table {
        refuse_unless(fields, name, &defaults)?;
    }
    Ok(())
}

/// Takes a field out when its value asks for nothing; any other value stays, to be named in a warning.
pub(crate) fn accept(fields: &mut Fields, name: &str, defaults: &[Value]) {
    if fields.peek(name).is_some_and(|value| defaults.contains(value)) {
        fields.take_value(name);
    }
}

/// Takes a field out and refuses it unless its value asks for nothing.
pub(crate) fn refuse_unless(fields: &mut Fields, name: &str, defaults: &[Value]) -> Result<(), ApiError> {
    let path = fields.path(name);
    match fields.take_value(name) {
        Some(value) if !defaults.contains(&value) => {
            let message = format!("`{path}` is not supported by this server; leave it out.");
            Err(ApiError::unsupported(path, message))
        }
        _ => Ok(()),
    }
}
