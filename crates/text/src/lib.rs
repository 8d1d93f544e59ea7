//! Text to tokens and back: tokenizer, incremental detokenizer, chat template, stop strings.
//!
//! Everything here is pure: strings and ids in, strings and ids out. The one file read is the tokenizer's.

#![forbid(unsafe_code)]

mod byte_level;
mod chat_template;
mod detokenizer;
mod error;
mod python;
mod reference;
mod stop;
mod strftime;
mod template_environment;
mod template_input;
mod tokenizer;
mod untrusted;
mod vocabulary;
mod words;

pub use chat_template::{ChatTemplate, RenderOptions};
pub use detokenizer::Detokenizer;
pub use error::TextError;
pub use reference::TokenizerReference;
pub use stop::{StopMatcher, StopStep};
pub use tokenizer::{SpecialTokens, Tokenizer};
pub use vocabulary::Vocabulary;
