//! One row's way from logits to a token: plain values for the device, nothing of requests.

/// How one row of logits `[vocab]` becomes a token. Applied in this order: edits and penalties, logprobs are taken
/// from the row before any of them; temperature; top-k; top-p; min-p; draw.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleRow {
    /// 0: take the largest logit (the lowest id of equals).
    pub temperature: f32,
    /// 0: keep all.
    pub top_k: u32,
    /// 1.0: keep all.
    pub top_p: f32,
    /// 0.0: keep all.
    pub min_p: f32,
    /// 1.0: off.
    pub repetition_penalty: f32,
    /// 0.0: off.
    pub presence_penalty: f32,
    /// 0.0: off.
    pub frequency_penalty: f32,
    /// Tokens seen so far, each once: only filled when a penalty is on.
    pub seen: Vec<SeenToken>,
    /// Added to logits: bias, and minus infinity for tokens that may not be chosen.
    pub edits: Vec<(u32, f32)>,
    /// The random stream, with `position` its counter: a draw depends on nothing else.
    pub seed: u64,
    /// How many tokens this sequence has sampled before.
    pub position: u64,
    /// Return the chosen token's log probability and those of this many likeliest ones.
    pub logprobs: Option<u32>,
}

/// A token that occurred in a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeenToken {
    /// Its id.
    pub token: u32,
    /// How often it was sampled; 0 when only the prompt has it.
    pub output_count: u32,
}

/// What came of one row.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledRow {
    /// The chosen token, below the `vocab` the operation was given; meaningless when not `finite`.
    pub token: u32,
    /// No NaN and no infinity was among the row's logits, and its edits left a token to choose.
    pub finite: bool,
    /// The chosen token's natural-log probability, when asked for.
    pub logprob: f32,
    /// The likeliest tokens and their log probabilities, highest first, when asked for.
    pub top: Vec<(u32, f32)>,
}
