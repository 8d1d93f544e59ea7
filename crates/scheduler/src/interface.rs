//! What goes into the scheduler and what comes out of it, besides Steps: plain data.

use std::sync::Arc;

use crate::step::{SamplingParams, SequenceFault, SequenceId, TokenId, TokenLogprobs};

/// What a scheduler works with, fixed for its life.
#[derive(Clone, Debug)]
pub struct SchedulerConfig {
    /// KV blocks in the pool of every rank.
    pub num_blocks: usize,
    /// Tokens a block holds.
    pub block_size: usize,
    /// Tokens a step computes at most.
    pub max_batched_tokens: usize,
    /// Sequences that run at once at most; the others wait.
    pub max_sequences: usize,
    /// Tokens a sequence has at most, prompt and output together.
    pub max_model_len: usize,
    /// Let sequences that begin alike share full blocks.
    pub prefix_cache: bool,
    /// Let a step be scheduled whose input is a token still in flight
    /// ([`crate::step::ChunkTokens::LastSampled`]). For one stage with two steps in flight; a pipeline leaves
    /// it off, its first stage does not know the token.
    pub overlap: bool,
    /// Pipeline stages, 1 without a pipeline: ready sequences are dealt evenly over as many steps in flight.
    pub stages: usize,
    /// The prefix cache's secret: random bytes, so that nobody can prepare prompts whose blocks collide.
    pub hash_key: [u8; 32],
}

/// Why no scheduler can work with a [`SchedulerConfig`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A count that must be positive is zero.
    #[error("{0} is 0: it must be at least 1")]
    Zero(&'static str),
    /// A sequence of full length could never end.
    #[error(
        "the KV cache holds {held} tokens but the longest sequence may have {max_model_len}: lower the maximum \
         model length to {held} or give the KV cache more memory"
    )]
    PoolTooSmall {
        /// Tokens the pool holds.
        held: usize,
        /// Tokens a sequence may have.
        max_model_len: usize,
    },
    /// Some running sequences would never get their token.
    #[error(
        "a step computes at most {max_batched_tokens} tokens but {max_sequences} sequences may run, each in \
         need of one: raise the tokens a step to {max_sequences} or lower the sequences to {max_batched_tokens}"
    )]
    BudgetBelowSequences {
        /// Tokens a step.
        max_batched_tokens: usize,
        /// Sequences at once.
        max_sequences: usize,
    },
}

impl SchedulerConfig {
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        let counts = [
            ("the number of KV blocks", self.num_blocks),
            ("the block size", self.block_size),
            ("the maximum of tokens a step", self.max_batched_tokens),
            ("the maximum of running sequences", self.max_sequences),
            ("the maximum model length", self.max_model_len),
            ("the number of pipeline stages", self.stages),
        ];
        if let Some((name, _)) = counts.iter().find(|(_, count)| *count == 0) {
            return Err(ConfigError::Zero(name));
        }
        let held = self.num_blocks.saturating_mul(self.block_size);
        if held < self.max_model_len {
            return Err(ConfigError::PoolTooSmall { held, max_model_len: self.max_model_len });
        }
        if self.max_batched_tokens < self.max_sequences {
            return Err(ConfigError::BudgetBelowSequences {
                max_batched_tokens: self.max_batched_tokens,
                max_sequences: self.max_sequences,
            });
        }
        Ok(())
    }
}

/// A prompt and the sequences that continue it, each in its own way.
#[derive(Clone, Debug)]
pub struct Submission {
    /// One new id for each of the `n` sequences. An id is never used again.
    pub sequences: Vec<SequenceId>,
    /// What all of them begin with.
    pub prompt: Arc<[TokenId]>,
    /// How each chooses its tokens, in the order of `sequences`.
    pub sampling: Vec<Arc<SamplingParams>>,
    /// A sequence ends with [`FinishReason::Length`] after this many new tokens.
    pub max_new_tokens: usize,
    /// A sequence ends with [`FinishReason::Stop`] at any of these, once `min_tokens` tokens are out. Empty
    /// to ignore the end-of-text token.
    pub stop_token_ids: Vec<TokenId>,
    /// Lower goes first.
    pub priority: i32,
    /// Cached blocks are shared only among submissions of the same salt.
    pub cache_salt: Option<Vec<u8>>,
}

/// Why a [`Submission`] is refused; nothing of it is kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// There is nothing to continue.
    #[error("the prompt is empty: it must have at least one token")]
    EmptyPrompt,
    /// Nothing is asked for.
    #[error("no new token is asked for: the maximum of new tokens must be at least 1")]
    NoNewTokens,
    /// No room is left for an answer.
    #[error(
        "the prompt has {prompt_len} tokens, which leaves no room for an answer: the model's maximum length is \
         {max_model_len} tokens, prompt and answer together; shorten the prompt to {} tokens or fewer",
        .max_model_len - 1
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt_len: usize,
        /// Tokens a sequence may have.
        max_model_len: usize,
    },
}

/// What a step's output meant for one sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    /// The sequence.
    pub sequence: SequenceId,
    /// Its next token, a stop token included; none when a fault ended it.
    pub token: Option<TokenId>,
    /// The token's log probabilities when they were asked for.
    pub logprobs: Option<TokenLogprobs>,
    /// Set in the sequence's last update.
    pub finish: Option<FinishReason>,
    /// Prompt tokens that had not to be computed when the sequence first ran: they came from the prefix
    /// cache, or from the sequence's sibling when `n > 1`.
    pub cached_tokens: usize,
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// At a stop token, which is its last.
    Stop,
    /// At `max_new_tokens` or at the model's maximum length.
    Length,
    /// The machine hall could not compute its next token.
    Fault(SequenceFault),
}

/// Where the scheduler stands (the first five), and what it has done since it began (the others).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Sequences that hold blocks.
    pub running: usize,
    /// Sequences that wait for a place, preempted ones included.
    pub waiting: usize,
    /// Blocks that running sequences hold; one held by several counts once.
    pub used_blocks: usize,
    /// Blocks of the pool.
    pub total_blocks: usize,
    /// Blocks the prefix cache knows, used or free.
    pub cached_blocks: usize,
    /// Steps scheduled.
    pub steps: u64,
    /// Tokens scheduled to be computed.
    pub computed_tokens: u64,
    /// Times a running sequence gave its blocks back to wait.
    pub preemptions: u64,
    /// Tokens that were computed and lost by preemption, before the prefix cache gives some of them back.
    pub preempted_tokens: u64,
    /// Prompt tokens of all sequences that began to run.
    pub prefix_queries: u64,
    /// How many of them had not to be computed: the sum of `cached_tokens`.
    pub prefix_hits: u64,
    /// Blocks copied on write.
    pub copied_blocks: u64,
}

/// A bug to plant, so that a test can show that it would be found. Never set outside tests.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// A shared block is written to without a copy.
    NoCopyOnWrite,
    /// A second holder of a block is not counted.
    UncountedHolder,
    /// A block that is allocated anew keeps the name of its old content.
    StaleName,
    /// A block is offered to the prefix cache while the step that fills it is still in the making.
    EarlyName,
}
