//! `POST /generate`: a prompt in, its completion out, with the field names of several servers.
//!
//! The prompt is continued as it is, as everywhere under this route's name (vLLM, SGLang, TGI, LMDeploy); `"chat": true`
//! asks it as a user's question, through the model's chat template. `text` in the answer is the completion alone.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use phalanx_engine::{Delta, Finish, Usage};
use serde_json::{Value, json};

use crate::error::{ApiError, Words};
use crate::fields::Fields;
use crate::generation::{Answer, Generation, Prompt, check_length, encode_prompts, finish_reason};
use crate::observe::sane_id;
use crate::openai::chat::Conversation;
use crate::openai::types::{new_id, usage_json};
use crate::prompt::{Prompts, check_count, take_prompts};
use crate::sampling::{SamplingFields, accept, refuse_unless};
use crate::state::Shared;
use crate::stream::{self, Chunks};

/// SGLang's and LMDeploy's default.
const DEFAULT_MAX_NEW_TOKENS: usize = 128;

/// Answers one request.
pub(crate) async fn generate(State(state): State<Shared>, mut fields: Fields) -> Result<Response, ApiError> {
    fields.absorb("sampling_params")?;
    fields.absorb("parameters")?;
    state.check_model(fields.take::<String>("model")?.as_deref())?;
    refuse_unsupported(&mut fields)?;
    let mut sampling = SamplingFields::take(&mut fields, &state)?;
    let max_tokens = sampling.take_max_tokens(&mut fields, &["max_new_tokens", "max_tokens"])?;
    sampling.default_max_new_tokens = Some(DEFAULT_MAX_NEW_TOKENS);
    // TGI's way to ask for greedy decoding, or for none.
    if fields.take("do_sample")? == Some(false) {
        sampling.sampling.temperature = 0.0;
    }
    let streamed = fields.take("stream")?.unwrap_or(false);
    let cumulative = fields.take("stream_cumulative")?.unwrap_or(false);
    let chat = fields.take("chat")?.unwrap_or(false);
    let id = take_id(&mut fields)?;
    let Prompts { list, many, name } = take_prompts(&mut fields, &["prompt", "text", "inputs", "input_ids"])?;
    check_count(list.len(), &state, name)?;
    let warnings = fields.finish();
    let words = Words { prompt: name, max_tokens };
    let prompts = match chat {
        false => encode_prompts(&state, list, words).await?,
        true => encode_questions(&state, list, words).await?,
    };
    let prompt_tokens: Vec<usize> = prompts.iter().map(|tokens| tokens.len()).collect();
    let n = sampling.n;
    let generation = Generation::submit(&state, &id, prompts, &sampling, words)?;
    if streamed {
        let parts = vec![Part::default(); prompt_tokens.len() * n];
        let open = parts.len();
        let chunks = GenerateChunks { id, cumulative, n, prompt_tokens, parts, open, last: None };
        return Ok(stream::respond(generation, chunks, &warnings, state.options.ping_interval));
    }
    let (answers, usages) = generation.collect().await?;
    let object = |(answers, usage): (&[Answer], &Usage)| answer_json(&id, answers, usage, &warnings);
    let mut objects: Vec<Value> = answers.chunks(n).zip(&usages).map(object).collect();
    match many {
        true => Ok(Json(Value::Array(objects)).into_response()),
        false => Ok(Json(objects.remove(0)).into_response()),
    }
}

/// The client's name for its request, or one of ours.
fn take_id(fields: &mut Fields) -> Result<String, ApiError> {
    match fields.take::<String>("rid")? {
        Some(id) if sane_id(&id) => Ok(id),
        Some(_) => {
            let wanted = "1 to 128 letters, digits and `-_.:`";
            fields.warn(format!("`rid` must be {wanted} to name a request, and had no effect"));
            Ok(new_id("gen-"))
        }
        None => Ok(new_id("gen-")),
    }
}

/// Refuses what other servers offer under this route and this one does not.
fn refuse_unsupported(fields: &mut Fields) -> Result<(), ApiError> {
    let table = [
        ("return_logprob", vec![json!(false)]),
        ("return_full_text", vec![json!(false)]),
        ("decoder_input_details", vec![json!(false)]),
        ("top_n_tokens", vec![json!(0)]),
        ("input_embeds", vec![]),
        ("image_data", vec![]),
        ("session_params", vec![]),
        ("no_stop_trim", vec![json!(false)]),
    ];
    for (name, defaults) in table {
        refuse_unless(fields, name, &defaults)?;
    }
    accept(fields, "details", &[json!(false)]);
    Ok(())
}

/// Prompts as users' questions, through the chat template.
async fn encode_questions(
    state: &Shared,
    prompts: Vec<Prompt>,
    words: Words,
) -> Result<Vec<Arc<[u32]>>, ApiError> {
    let mut encoded = Vec::with_capacity(prompts.len());
    for prompt in prompts {
        let Prompt::Text(text) = prompt else {
            return Err(ApiError::invalid("chat", "`chat` needs a prompt of text, not of token ids."));
        };
        check_length(state, text.len(), words)?;
        encoded.push(Conversation::of_user(&text).encode(state, words).await?);
    }
    Ok(encoded)
}

/// One prompt's answer object. `text` is the first of its answers; `texts` holds all of them when there are several.
fn answer_json(id: &str, answers: &[Answer], usage: &Usage, warnings: &[String]) -> Value {
    let first = &answers[0];
    let mut object = json!({
        "text": first.text,
        "output_ids": first.tokens,
        "finish_reason": first.finish.as_ref().map(finish_reason),
        "usage": usage_json(usage),
        "meta_info": {
            "id": id,
            "finish_reason": first.finish.as_ref().map(|finish| finish_json(finish, first.tokens.len())),
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "cached_tokens": usage.cached_tokens,
            "e2e_latency": usage.timing.total_seconds,
        },
        "warnings": warnings,
    });
    if 1 < answers.len() {
        object["texts"] = answers.iter().map(|answer| answer.text.as_str()).collect();
    }
    object
}

/// SGLang's `finish_reason`, an object that also tells what was matched.
fn finish_json(finish: &Finish, tokens: usize) -> Value {
    match finish {
        Finish::EndToken(token) => json!({ "type": "stop", "matched": token }),
        Finish::StopString(text) => json!({ "type": "stop", "matched": text }),
        Finish::Length => json!({ "type": "length", "length": tokens }),
    }
}

/// What a stream has sent of one answer.
#[derive(Clone, Debug, Default)]
struct Part {
    /// Kept only where chunks repeat it.
    text: String,
    tokens: usize,
}

/// A stream's chunks.
struct GenerateChunks {
    id: String,
    /// Chunks carry the whole text so far, as SGLang's, rather than its newest piece.
    cumulative: bool,
    n: usize,
    prompt_tokens: Vec<usize>,
    parts: Vec<Part>,
    /// Answers that have not ended.
    open: usize,
    /// The chunk that ended the last answer, which waits for the usage.
    last: Option<Value>,
}

impl Chunks for GenerateChunks {
    fn delta(&mut self, delta: Delta, out: &mut VecDeque<Value>) {
        let part = &mut self.parts[delta.index];
        part.tokens += delta.tokens.len();
        if delta.text.is_empty() && delta.finish.is_none() {
            return;
        }
        let text = match self.cumulative {
            true => {
                part.text.push_str(&delta.text);
                part.text.clone()
            }
            false => delta.text,
        };
        let chunk = json!({
            "index": delta.index,
            "text": text,
            "finish_reason": delta.finish.as_ref().map(finish_reason),
            "meta_info": {
                "id": self.id,
                "finish_reason": delta.finish.as_ref().map(|finish| finish_json(finish, part.tokens)),
                "prompt_tokens": self.prompt_tokens[delta.index / self.n],
                "completion_tokens": part.tokens,
            },
        });
        self.open -= usize::from(delta.finish.is_some());
        match self.open {
            0 => self.last = Some(chunk),
            _ => out.push_back(chunk),
        }
    }

    fn done(&mut self, usage: &Usage, out: &mut VecDeque<Value>) {
        if let Some(mut chunk) = self.last.take() {
            chunk["usage"] = usage_json(usage);
            out.push_back(chunk);
        }
    }
}
