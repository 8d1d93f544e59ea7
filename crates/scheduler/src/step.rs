//! The contract between the control tower and the machine hall: plain data, and one trait to carry it out.
//!
//! A [`Step`] says which tokens of which sequences are computed now, into which KV blocks. Every rank is a
//! replica that applies the same Steps in the same order; a [`StepOutput`] is what comes back.

use std::sync::Arc;

/// A token's id in the model's vocabulary.
pub type TokenId = u32;

/// One growing list of tokens. Never reused while an engine lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// `block_size` tokens' worth of KV cache, by its index in the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);

/// The decision for one step: what every rank carries out next.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Step {
    /// Counts up from 0; a step's output carries the same number.
    pub number: u64,
    /// Sequences a worker has not heard of yet: what it must know until they are finished.
    pub started: Vec<Started>,
    /// Whole KV blocks to copy before anything is computed (copy on write).
    pub copies: Vec<BlockCopy>,
    /// Each sequence's share of this step; a sequence appears at most once.
    pub chunks: Vec<Chunk>,
    /// Sequences a worker may forget once this step is done.
    pub finished: Vec<SequenceId>,
}

/// A sequence's introduction, sent once. Preemption does not repeat it.
#[derive(Clone, Debug, PartialEq)]
pub struct Started {
    /// The new sequence.
    pub sequence: SequenceId,
    /// Its prompt: penalties count its tokens, even those the prefix cache spares us.
    pub prompt: Arc<[TokenId]>,
    /// How its tokens are chosen.
    pub sampling: Arc<SamplingParams>,
}

/// One sequence's share of a step: `tokens` stand at positions `start ..`, their keys and values go to `blocks`.
#[derive(Clone, Debug, PartialEq)]
pub struct Chunk {
    /// Whose tokens these are.
    pub sequence: SequenceId,
    /// The position of the first token; the `start` tokens before it are computed already.
    pub start: usize,
    /// The tokens to compute.
    pub tokens: ChunkTokens,
    /// The sequence's block table, long enough for the chunk's last position.
    pub blocks: Vec<BlockId>,
    /// Sample the next token from the last position's logits.
    pub sample: bool,
}

impl Chunk {
    /// How many tokens are computed.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.tokens {
            ChunkTokens::Given(tokens) => tokens.len(),
            ChunkTokens::LastSampled => 1,
        }
    }

    /// A chunk computes at least one token, so this is always false; Clippy wants it beside `len`.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Where a chunk's tokens come from.
#[derive(Clone, Debug, PartialEq)]
pub enum ChunkTokens {
    /// Here they are.
    Given(Vec<TokenId>),
    /// The one token this sequence sampled in its previous chunk, which only the worker knows yet.
    LastSampled,
}

/// Copy every layer's keys and values of one block to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockCopy {
    /// The block that stays as it is.
    pub from: BlockId,
    /// The block that becomes its twin.
    pub to: BlockId,
}

/// How one sequence's tokens are chosen. All values are validated at the door (the engine), never here.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 means greedy; otherwise logits are divided by it.
    pub temperature: f32,
    /// Keep the `top_k` likeliest tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the smallest set of likeliest tokens whose probabilities reach this; 1.0 keeps all.
    pub top_p: f32,
    /// Drop tokens less likely than this share of the likeliest; 0.0 drops none.
    pub min_p: f32,
    /// Divide (positive) or multiply (negative) the logits of tokens seen in prompt or output; 1.0 is off (CTRL, arXiv 1909.05858).
    pub repetition_penalty: f32,
    /// Subtract once from each token seen in the output.
    pub presence_penalty: f32,
    /// Subtract for every time a token was seen in the output.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Tokens that cannot be chosen while fewer than `min_tokens` are out.
    pub suppressed_until_min: Vec<TokenId>,
    /// How many tokens come out before those of `suppressed_until_min` may.
    pub min_tokens: usize,
    /// With the output position, the whole state of this sequence's random numbers: same seed, same text.
    pub seed: u64,
    /// Return the chosen token's log probability and those of this many likeliest tokens beside it.
    pub logprobs: Option<u32>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            suppressed_until_min: Vec::new(),
            min_tokens: 0,
            seed: 0,
            logprobs: None,
        }
    }
}

/// What a step brought back: one entry for each chunk with `sample`, in the chunks' order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepOutput {
    /// The step's number.
    pub number: u64,
    /// The sampled tokens.
    pub sampled: Vec<Sampled>,
}

/// One sequence's next token, or why there is none.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// Whose token.
    pub sequence: SequenceId,
    /// The token, or the fault that ends this sequence alone.
    pub outcome: Result<SampledToken, SequenceFault>,
}

/// A chosen token.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledToken {
    /// Its id, always below the real vocabulary's size.
    pub token: TokenId,
    /// Its log probabilities when they were asked for.
    pub logprobs: Option<TokenLogprobs>,
}

/// Natural-log probabilities under the model's own distribution (before temperature, penalties and cuts).
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// The chosen token's.
    pub chosen: f32,
    /// The likeliest tokens', highest first.
    pub top: Vec<(TokenId, f32)>,
}

/// A fault of one sequence; the others of its step go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SequenceFault {
    /// NaN or infinity among its logits.
    NonFiniteLogits,
}

/// A fault of the machine hall: the engine that meets it ends, with this text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ExecutorError(pub String);

/// Carries out Steps on some ranks. Steps are applied in the order submitted.
pub trait Executor: Send {
    /// How many steps may be in flight: 1, 2 with overlap, or the number of pipeline stages.
    fn depth(&self) -> usize;

    /// Starts a step. At most [`Executor::depth`] may be waiting for their output.
    fn submit(&mut self, step: Arc<Step>);

    /// Waits for the oldest step in flight.
    ///
    /// # Errors
    /// A rank died, a collective timed out, a device faulted; nothing more will come.
    fn wait(&mut self) -> Result<StepOutput, ExecutorError>;
}
