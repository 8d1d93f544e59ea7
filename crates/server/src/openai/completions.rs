//! `POST /v1/completions`: raw prompts, continued.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use phalanx_engine::{Delta, Usage};
use phalanx_text::Tokenizer;
use serde_json::{Value, json};

use super::logprobs;
use super::types::{Envelope, RunningUsage, SharedFields, new_id, usage_json, with_warnings};
use crate::error::ApiError;
use crate::fields::Fields;
use crate::generation::{Answer, Generation, encode_prompts, finish_reason, total};
use crate::prompt::{check_count, take_prompts};
use crate::sampling::refuse_unless;
use crate::state::Shared;
use crate::stream::{self, Chunks};

/// OpenAI's default; short, because a base model has no end.
const DEFAULT_MAX_TOKENS: usize = 16;

/// Answers one request.
pub(crate) async fn create(State(state): State<Shared>, mut fields: Fields) -> Result<Response, ApiError> {
    let mut shared = SharedFields::take(&mut fields, &state, "prompt", &["max_tokens"])?;
    shared.sampling.default_max_new_tokens = Some(DEFAULT_MAX_TOKENS);
    refuse_unless(&mut fields, "suffix", &[json!("")])?;
    refuse_unless(&mut fields, "add_special_tokens", &[json!(true), json!(false)])?;
    let echo = fields.take("echo")?.unwrap_or(false);
    let top = take_logprobs(&mut fields, echo)?;
    shared.sampling.sampling.logprobs = top;
    let prompts = take_prompts(&mut fields, &["prompt"])?;
    check_count(prompts.list.len(), &state, "prompt")?;
    let warnings = fields.finish();
    let prompts = encode_prompts(&state, prompts.list, shared.words).await?;
    let echoes: Vec<String> = match echo {
        true => prompts.iter().map(|tokens| state.tokenizer.decode(tokens, false)).collect(),
        false => vec![String::new(); prompts.len()],
    };
    let prompt_tokens = prompts.iter().map(|tokens| tokens.len()).sum();
    let id = new_id("cmpl-");
    let generation = Generation::submit(&state, &id, prompts, &shared.sampling, shared.words)?;
    let envelope = Envelope::new(id, "text_completion", &state.model.id);
    let tokenizer = top.map(|_| Arc::clone(&state.tokenizer));
    let n = shared.sampling.n;
    if shared.stream {
        let usage = shared.running_usage(prompt_tokens);
        let offsets = vec![0; echoes.len() * n];
        let begun = vec![false; offsets.len()];
        let chunks = TextChunks { envelope, tokenizer, echoes, n, begun, offsets, usage };
        return Ok(stream::respond(generation, chunks, &warnings, state.options.ping_interval));
    }
    let (answers, usages) = generation.collect().await?;
    let choice = |(index, answer): (usize, &Answer)| {
        json!({
            "index": index,
            "text": format!("{}{}", echoes[index / n], answer.text),
            "logprobs": tokenizer.as_deref().map(|tokenizer| logprobs::completion(tokenizer, &answer.logprobs, 0).0),
            "finish_reason": answer.finish.as_ref().map(finish_reason),
        })
    };
    let choices = answers.iter().enumerate().map(choice).collect();
    Ok(Json(with_warnings(envelope.object(&choices, &usage_json(&total(&usages))), warnings)).into_response())
}

/// `logprobs`, which here is a count.
fn take_logprobs(fields: &mut Fields, echo: bool) -> Result<Option<u32>, ApiError> {
    match fields.take::<u32>("logprobs")? {
        Some(21..) => Err(ApiError::invalid("logprobs", "`logprobs` must be from 0 to 20.")),
        Some(_) if echo => {
            let message =
                "Log probabilities of the prompt are not supported: leave out `logprobs` or `echo`.";
            Err(ApiError::unsupported("logprobs", message))
        }
        top => Ok(top),
    }
}

/// A stream's chunks.
struct TextChunks {
    envelope: Envelope,
    /// There when log probabilities are wanted.
    tokenizer: Option<Arc<Tokenizer>>,
    /// What each prompt's answers begin with.
    echoes: Vec<String>,
    n: usize,
    /// Which answers have sent their beginning.
    begun: Vec<bool>,
    /// How many characters of tokens each answer has sent.
    offsets: Vec<usize>,
    usage: RunningUsage,
}

impl Chunks for TextChunks {
    fn delta(&mut self, delta: Delta, out: &mut VecDeque<Value>) {
        let index = delta.index;
        let mut text = delta.text;
        if !std::mem::replace(&mut self.begun[index], true) {
            text.insert_str(0, &self.echoes[index / self.n]);
        }
        self.usage.completion_tokens += delta.tokens.len();
        let logprobs = match &self.tokenizer {
            Some(tokenizer) if !delta.logprobs.is_empty() => {
                let (value, next) = logprobs::completion(tokenizer, &delta.logprobs, self.offsets[index]);
                self.offsets[index] = next;
                value
            }
            _ => Value::Null,
        };
        if text.is_empty() && logprobs.is_null() && delta.finish.is_none() {
            return;
        }
        let choice = json!({
            "index": index, "text": text, "logprobs": logprobs,
            "finish_reason": delta.finish.as_ref().map(finish_reason),
        });
        out.push_back(self.envelope.chunk(&json!([choice]), self.usage.in_chunk()));
    }

    fn done(&mut self, usage: &Usage, out: &mut VecDeque<Value>) {
        if self.usage.options.include_usage {
            out.push_back(self.envelope.chunk(&json!([]), Some(usage_json(usage))));
        }
    }
}
