//! Log probabilities in the two shapes OpenAI gave them: chat's list of objects, and the older parallel lists.

use phalanx_engine::TokenLogprobs;
use phalanx_text::Tokenizer;
use serde_json::{Map, Value, json};

/// JSON has no minus infinity; this is what vLLM sends in its place.
const LEAST: f32 = -9999.0;

/// The shape of `/v1/chat/completions`.
pub(crate) fn chat(tokenizer: &Tokenizer, logprobs: &[TokenLogprobs]) -> Value {
    let entry = |(token, logprob): (u32, f32)| {
        let bytes = tokenizer.token_bytes(token);
        json!({ "token": text(tokenizer, token), "logprob": logprob.max(LEAST), "bytes": bytes })
    };
    let content = |position: &TokenLogprobs| {
        let mut content = entry(position.chosen);
        content["top_logprobs"] = position.top.iter().copied().map(entry).collect();
        content
    };
    json!({ "content": logprobs.iter().map(content).collect::<Vec<_>>(), "refusal": null })
}

/// The shape of `/v1/completions`. `offset` is where the first token's text begins, in characters of the choice's
/// text; the second result is where the next chunk's first begins.
pub(crate) fn completion(tokenizer: &Tokenizer, logprobs: &[TokenLogprobs], offset: usize) -> (Value, usize) {
    let mut next = offset;
    let mut offsets = Vec::with_capacity(logprobs.len());
    let mut tokens = Vec::with_capacity(logprobs.len());
    for position in logprobs {
        let token = text(tokenizer, position.chosen.0);
        offsets.push(next);
        next += tokenizer.decode(&[position.chosen.0], false).chars().count();
        tokens.push(token);
    }
    let likeliest = |position: &TokenLogprobs| {
        let entry = |(token, logprob): &(u32, f32)| (text(tokenizer, *token), json!(logprob.max(LEAST)));
        // The chosen token is always among them, as OpenAI documents, even when it is not among the likeliest.
        position.top.iter().chain([&position.chosen]).map(entry).collect::<Map<_, _>>()
    };
    let value = json!({
        "tokens": tokens,
        "token_logprobs": logprobs.iter().map(|position| position.chosen.1.max(LEAST)).collect::<Vec<_>>(),
        "top_logprobs": logprobs.iter().map(likeliest).collect::<Vec<_>>(),
        "text_offset": offsets,
    });
    (value, next)
}

/// A token's text; one that is no whole characters is spelt `bytes:\xe4\xbd`, as OpenAI does.
fn text(tokenizer: &Tokenizer, token: u32) -> String {
    let bytes = tokenizer.token_bytes(token);
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |text, byte| text + &format!("\\x{byte:02x}")),
    }
}
