//! `/tokenize` and `/detokenize`, in vLLM's shapes: benchmarks and evaluation harnesses call them.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use phalanx_text::SpecialTokens;
use serde_json::{Value, json};

use crate::error::{ApiError, Words};
use crate::fields::Fields;
use crate::generation::off_reactor;
use crate::openai::chat::Conversation;
use crate::openai::types::with_warnings;
use crate::sampling::{accept, refuse_unless};
use crate::state::Shared;

/// `POST /tokenize`: a prompt's or a conversation's ids.
pub(crate) async fn tokenize(
    State(state): State<Shared>,
    mut fields: Fields,
) -> Result<Json<Value>, ApiError> {
    state.check_model(fields.take::<String>("model")?.as_deref())?;
    let with_texts = fields.take("return_token_strs")?.unwrap_or(false);
    // Models of this family put nothing before or after a text, so either value means the same.
    accept(&mut fields, "add_special_tokens", &[json!(true), json!(false)]);
    refuse_unless(&mut fields, "tools", &[json!([])])?;
    refuse_unless(&mut fields, "chat_template", &[])?;
    let words = Words { prompt: "prompt", max_tokens: "max_tokens" };
    let (tokens, warnings): (Arc<[u32]>, _) = match fields.take::<String>("prompt")? {
        Some(prompt) => {
            let warnings = fields.finish();
            let tokenizer = Arc::clone(&state.tokenizer);
            let encode = move || tokenizer.encode(&prompt, SpecialTokens::Parse).map(Into::into);
            (off_reactor(&state.tokenizing, words, encode).await?, warnings)
        }
        None if fields.peek("messages").is_some() => {
            let conversation = Conversation::take(&mut fields)?;
            let warnings = fields.finish();
            let words = Words { prompt: "messages", ..words };
            (conversation.encode(&state, words).await?, warnings)
        }
        None => return Err(ApiError::missing("prompt", "Give `prompt`, a string, or `messages`.")),
    };
    let texts = || tokens.iter().map(|token| state.tokenizer.token_text(*token)).collect::<Vec<_>>();
    let answer = json!({
        "count": tokens.len(), "max_model_len": state.model.max_model_len, "tokens": &*tokens,
        "token_strs": with_texts.then(texts),
    });
    Ok(Json(with_warnings(answer, warnings)))
}

/// `POST /detokenize`: the ids' text, control tokens included.
pub(crate) async fn detokenize(
    State(state): State<Shared>,
    mut fields: Fields,
) -> Result<Json<Value>, ApiError> {
    state.check_model(fields.take::<String>("model")?.as_deref())?;
    let tokens: Vec<u32> = fields
        .take("tokens")?
        .ok_or_else(|| ApiError::missing("tokens", "`tokens` is missing: an array of token ids."))?;
    let size = state.tokenizer.vocab_size();
    if let Some((index, token)) = tokens.iter().enumerate().find(|(_, token)| size <= **token as usize) {
        let path = format!("tokens[{index}]");
        let message = format!("`{path}`: {token} is not in the vocabulary, which has {size} tokens.");
        return Err(ApiError::invalid(path, message));
    }
    let warnings = fields.finish();
    let prompt = state.tokenizer.decode(&tokens, false);
    Ok(Json(with_warnings(json!({ "prompt": prompt }), warnings)))
}
