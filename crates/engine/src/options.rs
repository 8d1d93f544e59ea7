//! What an engine is started with, and why it may not start.

use phalanx_scheduler::step::TokenId;
use phalanx_scheduler::{ConfigError, SchedulerConfig};

/// What an engine works with, fixed for its life.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// For the thread's name and logs; tells replicas apart.
    pub name: String,
    /// The pool, the budgets and the context's length.
    pub scheduler: SchedulerConfig,
    /// Tokens that exist: ids at or above it are neither accepted nor sampled, though matrices may have more rows.
    pub vocab_size: usize,
    /// The model's end tokens.
    pub eos_token_ids: Vec<TokenId>,
    /// Requests that wait for their first step at most; one more is refused as [`crate::RequestError::Overloaded`].
    pub max_queue: usize,
}

/// Why an engine cannot start.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The scheduler cannot work with its configuration.
    #[error("{0}")]
    Scheduler(#[from] ConfigError),
    /// An option is out of its range.
    #[error("{0}")]
    Options(String),
    /// The operating system gave no thread.
    #[error("the engine's thread could not be started: {0}")]
    Thread(#[from] std::io::Error),
}

impl EngineOptions {
    /// Refuses options with which no request could be served.
    pub(crate) fn validate(&self) -> Result<(), EngineError> {
        if self.max_queue == 0 {
            return Err(EngineError::Options(
                "the queue holds 0 requests, so none could be accepted: allow at least 1".to_owned(),
            ));
        }
        if self.vocab_size == 0 {
            return Err(EngineError::Options("the vocabulary is empty".to_owned()));
        }
        match self.eos_token_ids.iter().find(|id| self.vocab_size <= **id as usize) {
            Some(id) => Err(EngineError::Options(format!(
                "the end token {id} is outside the vocabulary of {} tokens",
                self.vocab_size
            ))),
            None => Ok(()),
        }
    }
}
