//! What a caller asks of an engine: tokens in, and how to choose the tokens that come out.

use std::sync::Arc;

use phalanx_scheduler::step::TokenId;

/// A request: one prompt, `n` answers. Values are validated by [`crate::EngineHandle::submit`], once, here.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// For logs; it need not be unique.
    pub id: String,
    /// At least one token.
    pub prompt: Arc<[TokenId]>,
    /// How many answers, from 1 to 128; they share the prompt's KV cache.
    pub n: usize,
    /// At most this many tokens an answer; `None`: as many as the context leaves.
    pub max_new_tokens: Option<usize>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// When an answer ends.
    pub stop: Stop,
    /// Lower goes first; equal goes by arrival.
    pub priority: i32,
    /// Prompts with different salts never share cached blocks; at most 1 KiB.
    pub cache_salt: Option<String>,
    /// Leave control tokens out of the text.
    pub skip_special_tokens: bool,
}

/// How tokens are chosen; the meanings and defaults are OpenAI's and vLLM's.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0 is greedy. From 0 to 100 (clients send up to 2).
    pub temperature: f32,
    /// 0 or below: all tokens.
    pub top_k: i64,
    /// Above 0, at most 1.
    pub top_p: f32,
    /// From 0 to 1.
    pub min_p: f32,
    /// From 0.01 to 100; 1 is off.
    pub repetition_penalty: f32,
    /// From -2 to 2.
    pub presence_penalty: f32,
    /// From -2 to 2.
    pub frequency_penalty: f32,
    /// Each from -100 to 100, for tokens of the vocabulary; at most 4096.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Same seed, same text, whatever else is in the batch. `None`: the engine draws one.
    pub seed: Option<i64>,
    /// Return log probabilities of the chosen token and of this many alternatives (at most 20).
    pub logprobs: Option<u32>,
}

impl Default for Sampling {
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
            seed: None,
            logprobs: None,
        }
    }
}

/// When an answer ends, besides its length.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stop {
    /// The answer is cut before the first of these (at most 16, none empty, 1 KiB each).
    pub strings: Vec<String>,
    /// The answer ends with one of these tokens, besides the model's own end tokens; at most 128.
    pub token_ids: Vec<TokenId>,
    /// Keep the stop string in the text.
    pub include_in_output: bool,
    /// Go on behind the model's end tokens.
    pub ignore_eos: bool,
    /// No stop before this many tokens; at most `max_new_tokens`.
    pub min_tokens: usize,
}
