//! The one place where what a client sends is checked before it becomes an index, a size or a loop bound.

use std::sync::Arc;

use phalanx_scheduler::step::{SamplingParams, TokenId};

use crate::output::RequestError;
use crate::request::{Request, Sampling, Stop};

/// Answers of one request.
const MAX_N: usize = 128;
/// Alternatives beside the chosen token.
const MAX_LOGPROBS: u32 = 20;
const MAX_LOGIT_BIAS: usize = 4096;
const MAX_STOP_STRINGS: usize = 16;
const MAX_STOP_TOKENS: usize = 128;
/// Bytes of one stop string, and of a cache salt.
const MAX_STRING_BYTES: usize = 1024;
/// A request may have the whole context for its answer and hardly any takes it: the load that one is counted as, at most.
const LIKELY_ANSWER_LEN: usize = 256;
/// Temperatures below this are greedy: dividing logits by less would leave the range of f32.
const GREEDY_BELOW: f32 = 1e-5;

/// What requests are held to.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    pub(crate) vocab_size: usize,
    pub(crate) max_model_len: usize,
    pub(crate) max_queue: usize,
    pub(crate) eos_token_ids: Vec<TokenId>,
    /// Tokens of a KV block.
    pub(crate) block_size: usize,
    /// Blocks that may be found again by other prompts.
    pub(crate) prefix_blocks: usize,
}

/// A request in the scheduler's words: every number in it is safe to use.
#[derive(Debug)]
pub(crate) struct Lowered {
    pub(crate) request: Request,
    /// As asked, or what the context leaves.
    pub(crate) max_new_tokens: usize,
    /// One an answer.
    pub(crate) sampling: Vec<Arc<SamplingParams>>,
    /// The tokens that end an answer.
    pub(crate) stop_token_ids: Vec<TokenId>,
    /// Tokens to be computed before its first one.
    pub(crate) prompt_load: usize,
    /// Tokens its answers are expected to have.
    pub(crate) answer_load: usize,
}

/// Checks a request and puts it in the scheduler's words.
pub(crate) fn lower(request: Request, limits: &Limits) -> Result<Lowered, RequestError> {
    check_prompt(&request, limits)?;
    check_range("n", request.n, 1, MAX_N)?;
    check_sampling(&request.sampling, limits)?;
    check_stop(&request.stop, limits)?;
    let salt_bytes = request.cache_salt.as_ref().map_or(0, String::len);
    check_count("cache_salt", "bytes", salt_bytes, MAX_STRING_BYTES)?;
    let max_new_tokens = answer_len(&request, limits)?;
    check_range("min_tokens", request.stop.min_tokens, 0, max_new_tokens)?;
    let mut stop_token_ids = request.stop.token_ids.clone();
    if !request.stop.ignore_eos {
        stop_token_ids.extend_from_slice(&limits.eos_token_ids);
    }
    stop_token_ids.sort_unstable();
    stop_token_ids.dedup();
    let seed = match request.sampling.seed {
        Some(seed) => seed.cast_unsigned(),
        None => random_seed(),
    };
    let params = sampling_params(&request, &stop_token_ids);
    let sampling = (0..request.n)
        .map(|index| Arc::new(SamplingParams { seed: answer_seed(seed, index), ..params.clone() }));
    Ok(Lowered {
        max_new_tokens,
        sampling: sampling.collect(),
        stop_token_ids,
        prompt_load: request.prompt.len(),
        answer_load: request.n * max_new_tokens.min(LIKELY_ANSWER_LEN),
        request,
    })
}

fn check_prompt(request: &Request, limits: &Limits) -> Result<(), RequestError> {
    if request.prompt.is_empty() {
        return Err(invalid("prompt", "the prompt is empty: it needs at least one token".to_owned()));
    }
    // First the length: an over-long prompt is not worth a look at its tokens.
    let (context, prompt) = (limits.max_model_len, request.prompt.len());
    if context <= prompt {
        return Err(RequestError::ContextLength {
            message: format!(
                "This model's maximum context length is {context} tokens. However, your prompt has {prompt} tokens, \
                 and the answer needs at least one. Please shorten the prompt to {} tokens or fewer.",
                context - 1
            ),
        });
    }
    check_tokens("prompt", request.prompt.iter().copied(), limits)
}

fn answer_len(request: &Request, limits: &Limits) -> Result<usize, RequestError> {
    let (context, prompt) = (limits.max_model_len, request.prompt.len());
    let left = context - prompt;
    match request.max_new_tokens {
        None => Ok(left),
        Some(0) => Err(invalid("max_tokens", "max_tokens is 0: it must be at least 1".to_owned())),
        Some(asked) if asked <= left => Ok(asked),
        Some(asked) => Err(RequestError::ContextLength {
            message: format!(
                "This model's maximum context length is {context} tokens. However, you requested {} tokens \
                 ({prompt} in the prompt, {asked} in the completion). Please reduce the length of the prompt, or \
                 ask for at most {left} tokens.",
                prompt.saturating_add(asked)
            ),
        }),
    }
}

fn check_sampling(sampling: &Sampling, limits: &Limits) -> Result<(), RequestError> {
    check_number("temperature", sampling.temperature, 0.0, 100.0)?;
    check_number("top_p", sampling.top_p, 0.0, 1.0)?;
    if sampling.top_p == 0.0 {
        return Err(invalid("top_p", "top_p is 0: it must be above 0 and at most 1".to_owned()));
    }
    check_number("min_p", sampling.min_p, 0.0, 1.0)?;
    check_number("repetition_penalty", sampling.repetition_penalty, 0.01, 100.0)?;
    check_number("presence_penalty", sampling.presence_penalty, -2.0, 2.0)?;
    check_number("frequency_penalty", sampling.frequency_penalty, -2.0, 2.0)?;
    check_count("logit_bias", "tokens", sampling.logit_bias.len(), MAX_LOGIT_BIAS)?;
    check_tokens("logit_bias", sampling.logit_bias.iter().map(|(token, _)| *token), limits)?;
    for (_, bias) in &sampling.logit_bias {
        check_number("logit_bias", *bias, -100.0, 100.0)?;
    }
    check_range("logprobs", sampling.logprobs.unwrap_or(0), 0, MAX_LOGPROBS)
}

fn check_stop(stop: &Stop, limits: &Limits) -> Result<(), RequestError> {
    check_count("stop", "strings", stop.strings.len(), MAX_STOP_STRINGS)?;
    for string in &stop.strings {
        if string.is_empty() {
            return Err(invalid("stop", "a stop string is empty".to_owned()));
        }
        check_count("stop", "bytes in one string", string.len(), MAX_STRING_BYTES)?;
    }
    check_count("stop_token_ids", "tokens", stop.token_ids.len(), MAX_STOP_TOKENS)?;
    check_tokens("stop_token_ids", stop.token_ids.iter().copied(), limits)
}

fn check_tokens(
    field: &'static str,
    mut tokens: impl Iterator<Item = TokenId>,
    limits: &Limits,
) -> Result<(), RequestError> {
    let size = limits.vocab_size;
    match tokens.find(|token| size <= *token as usize) {
        None => Ok(()),
        Some(token) => Err(invalid(
            field,
            format!("{field} has the token id {token}, but the vocabulary has {size} tokens"),
        )),
    }
}

/// A number's or a count's range, both ends included.
fn check_range<T: Copy + PartialOrd + std::fmt::Display>(
    field: &'static str,
    value: T,
    least: T,
    most: T,
) -> Result<(), RequestError> {
    if least <= value && value <= most {
        return Ok(());
    }
    Err(invalid(field, format!("{field}: {value} is not in the range from {least} to {most}")))
}

/// How many of something a field may have; `what` are they.
fn check_count(field: &'static str, what: &str, count: usize, most: usize) -> Result<(), RequestError> {
    if count <= most {
        return Ok(());
    }
    Err(invalid(field, format!("{field} has {count} {what}: at most {most} are taken")))
}

/// As [`check_range`]; NaN and infinity are in no range.
fn check_number(field: &'static str, value: f32, least: f32, most: f32) -> Result<(), RequestError> {
    check_range(field, value, least, most)
}

fn invalid(field: &'static str, message: String) -> RequestError {
    RequestError::Invalid { field, message }
}

fn sampling_params(request: &Request, stop_token_ids: &[TokenId]) -> SamplingParams {
    let sampling = &request.sampling;
    let greedy = sampling.temperature < GREEDY_BELOW;
    let suppressed = if 0 < request.stop.min_tokens { stop_token_ids.to_vec() } else { Vec::new() };
    SamplingParams {
        temperature: if greedy { 0.0 } else { sampling.temperature },
        // More than the vocabulary has is all of it, which 0 says as well.
        top_k: u32::try_from(sampling.top_k.max(0)).unwrap_or(0),
        top_p: sampling.top_p,
        min_p: sampling.min_p,
        repetition_penalty: sampling.repetition_penalty,
        presence_penalty: sampling.presence_penalty,
        frequency_penalty: sampling.frequency_penalty,
        logit_bias: sampling.logit_bias.clone(),
        suppressed_until_min: suppressed,
        min_tokens: request.stop.min_tokens,
        seed: 0,
        logprobs: sampling.logprobs,
    }
}

/// A seed for a request that brought none.
fn random_seed() -> u64 {
    getrandom::u64().expect("the operating system has random numbers")
}

/// The first answer is what the request would give with `n` of 1; the others follow from the seed and their index
/// (the finaliser of SplitMix64, so that neighbouring seeds share no answer).
fn answer_seed(seed: u64, index: usize) -> u64 {
    if index == 0 {
        return seed;
    }
    let mut mixed = seed.wrapping_add((index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
