//! What can go wrong between text and tokens, told in sentences for the person who must put it right.

use std::path::PathBuf;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// A file could not be read.
    #[error("{} cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A tokenizer's description is broken, or of a kind this crate does not carry out.
    #[error("{origin} is not a tokenizer Phalanx can use: {fault}")]
    Tokenizer {
        /// The file, or what the description was made from.
        origin: String,
        /// What is wrong with it.
        fault: String,
    },
    /// A text could not be turned into tokens.
    #[error("the text cannot be turned into tokens: {0}")]
    Encode(String),
    /// The model's chat template does not parse.
    #[error("the chat template does not parse: {0}")]
    TemplateSyntax(String),
    /// The chat template refused a conversation, by `raise_exception` or by failing on it.
    #[error("the chat template cannot render this conversation: {0}")]
    TemplateRender(String),
    /// Rendering took more work or produced more text than a conversation of this size deserves.
    #[error("the chat template was stopped: {0}")]
    TemplateLimit(String),
    /// A conversation is not shaped as a chat template expects.
    #[error("{field}: {fault}")]
    Conversation {
        /// The field of the request, as `messages[2].content`.
        field: String,
        /// What is wrong with it.
        fault: String,
    },
}
