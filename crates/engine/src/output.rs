//! What an engine tells a caller while a request is carried out.

use phalanx_scheduler::step::TokenId;

/// What happened to a request, in order. After `Done` or `Failed` nothing follows.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Answer `index` grew, or ended (then `finish` says why); its text may be empty when bytes or a possible stop
    /// string are held back. The concatenated texts are the answer.
    Delta(Delta),
    /// All answers are complete.
    Done(Usage),
    /// The request ended without completing.
    Failed(RequestError),
}

/// One answer's next piece.
#[derive(Clone, Debug, PartialEq)]
pub struct Delta {
    /// Which of the `n` answers.
    pub index: usize,
    /// New text; never a part of a character, never a part of a stop string.
    pub text: String,
    /// The tokens sampled since the last delta of this answer.
    pub tokens: Vec<TokenId>,
    /// One for each of `tokens`, when asked for.
    pub logprobs: Vec<TokenLogprobs>,
    /// Set once, on the last delta of the answer.
    pub finish: Option<Finish>,
}

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Finish {
    /// An end token.
    EndToken(TokenId),
    /// A stop string.
    StopString(String),
    /// `max_new_tokens` or the context's end.
    Length,
}

/// Natural-log probabilities of one position.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// The chosen token and its log probability.
    pub chosen: (TokenId, f32),
    /// The likeliest tokens, highest first.
    pub top: Vec<(TokenId, f32)>,
}

/// What a request used, and when.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Usage {
    /// Tokens of the prompt, once.
    pub prompt_tokens: usize,
    /// Of these, taken from the prefix cache.
    pub cached_tokens: usize,
    /// Tokens of all answers.
    pub completion_tokens: usize,
    /// How often one of its sequences was preempted.
    pub preemptions: usize,
    /// Its times.
    pub timing: Timing,
}

/// A request's times, in seconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Timing {
    /// From submission to its first step.
    pub queue_seconds: f64,
    /// From submission to its first token.
    pub first_token_seconds: f64,
    /// From submission to its end.
    pub total_seconds: f64,
}

/// Why a request failed. The text is for the caller.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RequestError {
    /// A value out of its range; the door answers 400 and names the field.
    #[error("{message}")]
    Invalid {
        /// The field of [`crate::Request`], in the API's words, for example `temperature`.
        field: &'static str,
        /// What was asked, what is possible.
        message: String,
    },
    /// The prompt, or the prompt and the answer, do not fit the context; the text keeps vLLM's phrase
    /// `This model's maximum context length is N tokens`.
    #[error("{message}")]
    ContextLength {
        /// What was asked, what is possible.
        message: String,
    },
    /// The queue is full; the door answers 429.
    #[error("{0}")]
    Overloaded(String),
    /// The logits of one of its sequences were NaN or infinite.
    #[error(
        "the model's output was not a finite number at token {position} of answer {index}; this request ends, others go on"
    )]
    NonFinite {
        /// Which answer.
        index: usize,
        /// Which of its tokens.
        position: usize,
    },
    /// The engine ended; the door answers 503.
    #[error("{0}")]
    EngineGone(String),
}
