//! `POST /v1/chat/completions`: a conversation to the assistant's next message.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use phalanx_engine::{Delta, Finish, Usage};
use phalanx_text::{RenderOptions, Tokenizer};
use serde_json::{Map, Value, json};

use super::logprobs;
use super::types::{Envelope, RunningUsage, SharedFields, new_id, usage_json, with_warnings};
use crate::error::{ApiError, Words};
use crate::fields::Fields;
use crate::generation::{Answer, Generation, check_length, finish_reason, off_reactor, total};
use crate::sampling::{accept, refuse_unless};
use crate::state::Shared;
use crate::stream::{self, Chunks};

/// Answers one request.
pub(crate) async fn create(State(state): State<Shared>, mut fields: Fields) -> Result<Response, ApiError> {
    let mut shared =
        SharedFields::take(&mut fields, &state, "messages", &["max_completion_tokens", "max_tokens"])?;
    refuse_unsupported(&mut fields)?;
    shared.sampling.sampling.logprobs = take_logprobs(&mut fields)?;
    let conversation = Conversation::take(&mut fields)?;
    check_length(&state, conversation.text_bytes(), shared.words)?;
    let warnings = fields.finish();
    let prompt = conversation.encode(&state, shared.words).await?;
    let prompt_tokens = prompt.len();
    let id = new_id("chatcmpl-");
    let generation = Generation::submit(&state, &id, vec![prompt], &shared.sampling, shared.words)?;
    let with_logprobs = shared.sampling.sampling.logprobs.is_some();
    if shared.stream {
        let chunks = ChatChunks {
            envelope: Envelope::new(id, "chat.completion.chunk", &state.model.id),
            tokenizer: with_logprobs.then(|| Arc::clone(&state.tokenizer)),
            greeted: vec![false; shared.sampling.n],
            usage: shared.running_usage(prompt_tokens),
        };
        return Ok(stream::respond(generation, chunks, &warnings, state.options.ping_interval));
    }
    let (answers, usages) = generation.collect().await?;
    let envelope = Envelope::new(id, "chat.completion", &state.model.id);
    let choice = |(index, answer): (usize, &Answer)| {
        json!({
            "index": index,
            "message": {
                "role": "assistant", "content": answer.text, "refusal": null, "annotations": [],
            },
            "logprobs": with_logprobs.then(|| logprobs::chat(&state.tokenizer, &answer.logprobs)),
            "finish_reason": answer.finish.as_ref().map(finish_reason),
        })
    };
    let choices = answers.iter().enumerate().map(choice).collect();
    Ok(Json(with_warnings(envelope.object(&choices, &usage_json(&total(&usages))), warnings)).into_response())
}

/// Refuses what would change the answer and is not there yet; accepts what asks for nothing.
fn refuse_unsupported(fields: &mut Fields) -> Result<(), ApiError> {
    let table = [
        ("tools", vec![json!([])]),
        ("tool_choice", vec![json!("none"), json!("auto")]),
        ("functions", vec![json!([])]),
        ("function_call", vec![json!("none"), json!("auto")]),
        // It speaks about tools, of which there are none.
        ("parallel_tool_calls", vec![json!(true), json!(false)]),
        ("modalities", vec![json!(["text"])]),
        ("audio", vec![]),
        ("prediction", vec![]),
        ("web_search_options", vec![]),
        ("chat_template", vec![]),
        ("echo", vec![json!(false)]),
        ("add_special_tokens", vec![json!(false)]),
    ];
    for (name, defaults) in table {
        refuse_unless(fields, name, &defaults)?;
    }
    accept(fields, "store", &[json!(false)]);
    accept(fields, "service_tier", &[json!("auto"), json!("default")]);
    Ok(())
}

/// `logprobs` and `top_logprobs`.
fn take_logprobs(fields: &mut Fields) -> Result<Option<u32>, ApiError> {
    let wanted = fields.take("logprobs")?.unwrap_or(false);
    match (wanted, fields.take::<u32>("top_logprobs")?) {
        (false, Some(1..)) => {
            Err(ApiError::invalid("top_logprobs", "`top_logprobs` needs `logprobs` to be true."))
        }
        (false, _) => Ok(None),
        (true, Some(21..)) => Err(ApiError::invalid("top_logprobs", "`top_logprobs` must be from 0 to 20.")),
        (true, top) => Ok(Some(top.unwrap_or(0))),
    }
}

/// The messages of a request and how the template is to render them.
pub(crate) struct Conversation {
    messages: Vec<Value>,
    options: RenderOptions,
}

impl Conversation {
    /// Takes a conversation out of a body.
    ///
    /// # Errors
    /// 400 that names the message that is wrong.
    pub(crate) fn take(fields: &mut Fields) -> Result<Self, ApiError> {
        let mut messages: Vec<Value> = fields
            .take("messages")?
            .ok_or_else(|| ApiError::missing("messages", "`messages` is missing: an array of messages."))?;
        if messages.is_empty() {
            return Err(ApiError::invalid("messages", "`messages` must hold at least one message."));
        }
        let mut unknown = BTreeMap::new();
        for (index, message) in messages.iter_mut().enumerate() {
            let path = format!("messages[{index}]");
            check_message(message, &path)?;
            note_unknown(message, &path, &mut unknown);
        }
        for path in unknown.into_values() {
            fields.warn(format!("`{path}` is not supported here and had no effect"));
        }
        let mut options = RenderOptions::default();
        fields.set("add_generation_prompt", &mut options.add_generation_prompt)?;
        fields.set("continue_final_message", &mut options.continue_final_message)?;
        options.extra = fields.take::<Map<String, Value>>("chat_template_kwargs")?.unwrap_or_default();
        Ok(Self { messages, options })
    }

    /// Bytes of what was said.
    fn text_bytes(&self) -> usize {
        let part = |part: &Value| part.as_str().or_else(|| part["text"].as_str()).map_or(0, str::len);
        let said = |message: &Value| match &message["content"] {
            Value::Array(parts) => parts.iter().map(part).sum(),
            content => part(content),
        };
        self.messages.iter().map(said).sum::<usize>()
    }

    /// The prompt's ids, by the model's template.
    ///
    /// # Errors
    /// 400 when the model has no template, or the template refuses the conversation.
    pub(crate) async fn encode(self, state: &Shared, words: Words) -> Result<Arc<[u32]>, ApiError> {
        let Some(template) = state.template.clone() else {
            let message = "This model has no chat template; use `/v1/completions` or `/generate`.";
            return Err(ApiError::unsupported("messages", message));
        };
        let tokenizer = Arc::clone(&state.tokenizer);
        off_reactor(&state.tokenizing, words, move || {
            template.encode_chat(&tokenizer, &self.messages, None, &self.options).map(Into::into)
        })
        .await
    }

    /// One user's message, for APIs that take a bare prompt.
    pub(crate) fn of_user(prompt: &str) -> Self {
        let messages = vec![json!({ "role": "user", "content": prompt })];
        Self { messages, options: RenderOptions::default() }
    }
}

/// Checks a message's role and content, and turns the role `developer` into its older name.
fn check_message(message: &mut Value, path: &str) -> Result<(), ApiError> {
    let invalid = |field: &str, text: &str| {
        let path = format!("{path}{field}");
        Err(ApiError::invalid(path.clone(), format!("`{path}`: {text}.")))
    };
    let Some(fields) = message.as_object_mut() else {
        return invalid("", "a message must be an object with `role` and `content`");
    };
    let role = match fields.get("role") {
        Some(Value::String(role)) => role.clone(),
        _ => return invalid(".role", "a message must have a role, which is a string"),
    };
    match role.as_str() {
        "developer" => drop(fields.insert("role".to_owned(), json!("system"))),
        "system" | "user" | "assistant" | "tool" => {}
        _ => return invalid(".role", "a role must be `system`, `developer`, `user`, `assistant` or `tool`"),
    }
    if let Some((field, fault)) = fields.get("tool_calls").and_then(fault_of_calls) {
        return invalid(&field, fault);
    }
    match fields.get("content") {
        Some(Value::String(_) | Value::Array(_)) => Ok(()),
        // An assistant that called tools said nothing; templates print an empty text.
        None | Some(Value::Null) if role == "assistant" => {
            fields.insert("content".to_owned(), json!(""));
            Ok(())
        }
        _ => invalid(".content", "the content must be a string or an array of parts"),
    }
}

/// What is wrong with the calls of a message, and where: templates print a name and arguments of each.
fn fault_of_calls(calls: &Value) -> Option<(String, &'static str)> {
    let calls = match calls {
        Value::Null => return None,
        Value::Array(calls) => calls,
        _ => return Some((".tool_calls".to_owned(), "the calls must be an array")),
    };
    let named = |call: &Value| call["function"]["name"].is_string() || call["name"].is_string();
    let nameless = calls.iter().position(|call| !named(call))?;
    Some((
        format!(".tool_calls[{nameless}]"),
        "a call must have a `function` with a `name`, which is a string",
    ))
}

/// Notes the keys of a message and its parts that no template of this family reads, each once, with its first path.
fn note_unknown(message: &Value, path: &str, unknown: &mut BTreeMap<String, String>) {
    const OF_MESSAGES: [&str; 6] =
        ["role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content"];
    let mut note = |object: &Value, known: &[&str], path: &str| {
        for (key, value) in object.as_object().into_iter().flatten() {
            // An answer of ours that comes back as history has keys that say nothing, as `annotations: []`.
            let says_nothing = value.is_null() || *value == json!([]);
            if !says_nothing && !known.contains(&key.as_str()) {
                unknown.entry(key.clone()).or_insert_with(|| format!("{path}.{key}"));
            }
        }
    };
    note(message, &OF_MESSAGES, path);
    for (index, part) in message["content"].as_array().into_iter().flatten().enumerate() {
        note(part, &["type", "text"], &format!("{path}.content[{index}]"));
    }
}

/// A stream's chunks.
struct ChatChunks {
    envelope: Envelope,
    /// There when log probabilities are wanted.
    tokenizer: Option<Arc<Tokenizer>>,
    /// Which answers have sent their role.
    greeted: Vec<bool>,
    usage: RunningUsage,
}

impl ChatChunks {
    fn chunk(&self, index: usize, delta: &Value, logprobs: &Value, finish: Option<&Finish>) -> Value {
        let choice = json!({
            "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish.map(finish_reason),
        });
        self.envelope.chunk(&json!([choice]), self.usage.in_chunk())
    }
}

impl Chunks for ChatChunks {
    fn delta(&mut self, delta: Delta, out: &mut VecDeque<Value>) {
        // The role waits for the first token: a client that times its first chunk then times the model.
        if !std::mem::replace(&mut self.greeted[delta.index], true) {
            let role = json!({ "role": "assistant", "content": "", "refusal": null });
            out.push_back(self.chunk(delta.index, &role, &Value::Null, None));
        }
        self.usage.completion_tokens += delta.tokens.len();
        let logprobs = match &self.tokenizer {
            Some(tokenizer) if !delta.logprobs.is_empty() => logprobs::chat(tokenizer, &delta.logprobs),
            _ => Value::Null,
        };
        if !delta.text.is_empty() || !logprobs.is_null() {
            out.push_back(self.chunk(delta.index, &json!({ "content": delta.text }), &logprobs, None));
        }
        if let Some(finish) = &delta.finish {
            out.push_back(self.chunk(delta.index, &json!({}), &Value::Null, Some(finish)));
        }
    }

    fn done(&mut self, usage: &Usage, out: &mut VecDeque<Value>) {
        if self.usage.options.include_usage {
            out.push_back(self.envelope.chunk(&json!([]), Some(usage_json(usage))));
        }
    }
}
