//! OpenAI's API: what its clients send and expect, field by field.

pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod logprobs;
pub(crate) mod models;
pub(crate) mod types;
