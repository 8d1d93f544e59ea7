//! What an engine counts: plain data, with the meanings and bucket bounds of vLLM's metrics, so that dashboards fit.

use phalanx_scheduler::Stats;

use crate::histogram::Histogram;

/// Answers that ended, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Finished {
    /// At an end token or a stop string.
    pub stop: u64,
    /// At `max_new_tokens` or the context's end.
    pub length: u64,
    /// The caller left.
    pub abort: u64,
    /// A fault, or the engine's end.
    pub error: u64,
}

/// An engine's figures at one moment. Gauges say how things stand, counters only grow, times are seconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// The scheduler's own gauges and counters: running and waiting sequences, blocks, preemptions, prefix cache.
    pub scheduler: Stats,
    /// Gauge: requests accepted that have not had their first step.
    pub queued_requests: usize,
    /// Gauge: requests accepted that have not ended.
    pub live_requests: usize,
    /// Counter: requests that the router gave to this engine.
    pub routed_requests: u64,
    /// Counter: tokens of their prompts that the router took for known here.
    pub prefix_routed_tokens: u64,
    /// Counter: prompt tokens of requests that got their first token.
    pub prompt_tokens: u64,
    /// Counter: how many of them had not to be computed; `scheduler.prefix_hits` counts them for each of `n` answers.
    pub cached_prompt_tokens: u64,
    /// Counter: tokens sampled.
    pub generation_tokens: u64,
    /// Counter: answers that ended.
    pub finished: Finished,
    /// Counter: requests refused because the queue was full.
    pub rejected_overloaded: u64,
    /// Counter: requests refused because of what they asked.
    pub rejected_invalid: u64,
    /// Counter: requests that ended because logits were NaN or infinite.
    pub non_finite_requests: u64,
    /// Tokens computed by a step.
    pub iteration_tokens: Histogram,
    /// From submission to the first token of any answer.
    pub time_to_first_token: Histogram,
    /// Between two tokens of one answer.
    pub inter_token_latency: Histogram,
    /// An answer's mean time between its tokens.
    pub time_per_output_token: Histogram,
    /// From submission to the last token.
    pub e2e_latency: Histogram,
    /// From submission to the first step.
    pub queue_time: Histogram,
    /// From the first step to the last token.
    pub inference_time: Histogram,
    /// From the first step to the first token.
    pub prefill_time: Histogram,
    /// From the first token to the last.
    pub decode_time: Histogram,
    /// Prompt lengths of completed requests.
    pub request_prompt_tokens: Histogram,
    /// Lengths of completed answers.
    pub request_generation_tokens: Histogram,
    /// `max_new_tokens` of accepted requests, as far as they set it.
    pub request_max_tokens: Histogram,
    /// `n` of accepted requests.
    pub request_n: Histogram,
}

impl Snapshot {
    /// The share of KV blocks in use, from 0 to 1.
    #[must_use]
    pub fn kv_cache_usage(&self) -> f64 {
        match self.scheduler.total_blocks {
            0 => 0.0,
            total => self.scheduler.used_blocks as f64 / total as f64,
        }
    }

    /// Everything at zero.
    pub(crate) fn new(max_model_len: usize) -> Self {
        let lengths = Histogram::one_two_five(max_model_len);
        let requests = Histogram::new(&REQUEST_SECONDS);
        Self {
            scheduler: Stats::default(),
            queued_requests: 0,
            live_requests: 0,
            routed_requests: 0,
            prefix_routed_tokens: 0,
            prompt_tokens: 0,
            cached_prompt_tokens: 0,
            generation_tokens: 0,
            finished: Finished::default(),
            rejected_overloaded: 0,
            rejected_invalid: 0,
            non_finite_requests: 0,
            iteration_tokens: Histogram::new(&ITERATION_TOKENS),
            time_to_first_token: Histogram::new(&FIRST_TOKEN_SECONDS),
            inter_token_latency: Histogram::new(&TOKEN_SECONDS),
            time_per_output_token: Histogram::new(&TOKEN_SECONDS),
            e2e_latency: requests.clone(),
            queue_time: Histogram::new(&QUEUE_SECONDS),
            inference_time: requests.clone(),
            prefill_time: requests.clone(),
            decode_time: requests,
            request_prompt_tokens: lengths.clone(),
            request_generation_tokens: lengths.clone(),
            request_max_tokens: lengths,
            request_n: Histogram::new(&[1.0, 2.0, 5.0, 10.0, 20.0]),
        }
    }
}

// The bounds below are those of vLLM 0.10 (`v1/metrics/loggers.py`), and smaller ones in front where a GPU's times would
// all fall below the first.

const ITERATION_TOKENS: [f64; 13] =
    [1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0];

const FIRST_TOKEN_SECONDS: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
];

const TOKEN_SECONDS: [f64; 25] = [
    0.001, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75,
    1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];

const QUEUE_SECONDS: [f64; 29] = [
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0,
    20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
];

const REQUEST_SECONDS: [f64; 21] = [
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
];
