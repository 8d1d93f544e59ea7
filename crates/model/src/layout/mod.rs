//! What each way to lay a model over GPUs would give, before anything is loaded: memory, time to the first token,
//! tokens a second. Pure data in, pure data out.
//!
//! A layout is `dp x pp x tp`: replicas of the whole model, stages (spans of layers) of a replica, ranks that split each
//! layer. [`compare`] predicts every one that a machine has GPUs for; [`choose::choose`] takes one for an objective.
//!
//! # The model of time
//!
//! It has few constants ([`cost::CONSTANTS`]), all of them physical, and no table of results:
//!
//! - A product of `m` rows with a matrix takes `hypot(bytes / bandwidth, operations / rate)`: with few rows it reads the
//!   matrix, with many it computes, and long ones at lower clocks. Each kernel adds a few microseconds in which the card neither reads nor computes, so
//!   that small matrices reach less of the bandwidth than large ones: 33 MB (qkv of a 7B model) 3.5 TB/s of an H200's
//!   4.8, its output matrix of 1.1 GB 4.5.
//! - Attention reads the keys and values of every context (decoding) or computes with them (prompts).
//! - Norms, RoPE and SiLU read and write activations, which counts for prompts; a layer's ten kernels count for decoding.
//! - Ranks of a layer sum twice a layer, latency plus bytes through the links ([`links::Links`], measured or listed), and
//!   the slowest rank decides: 28 heads over 3 ranks are 10, 9, 9.
//! - A decode step is its layers, the logits and sampling. Through a pipeline go as many steps as it has stages: the
//!   slowest stage sets the pace, or the way of one step through all stages and back through the host, which one stage
//!   alone does not wait for.
//! - A prompt goes in chunks, which follow one another through the stages. The first token comes when the last chunk
//!   has left the last stage.
//!
//! Each of dp, pp and tp follows from this: replicas share the requests and nothing else, stages read fewer layers for each
//! step but wait for each other, ranks of a layer read their part of it at the same time and pay for the sums.

pub mod cards;
pub mod choose;
pub mod cost;
pub mod links;
pub mod loads;
pub mod table;

use std::fmt;

use crate::config::ModelConfig;
use crate::layout::cards::Card;
use crate::layout::cost::{CONSTANTS, RankCost, ReplicaCost};
use crate::layout::links::Links;
use crate::memory::{self, MemoryPlan, MemoryRequest};
use crate::weights::shard::Shards;

/// Prompt lengths whose first token is predicted.
pub const PROMPT_LENS: [usize; 4] = [4096, 16_384, 65_536, 131_072];
/// Numbers of sequences whose decoding is predicted.
pub const BATCH_SIZES: [usize; 4] = [1, 8, 64, 256];
/// Tokens before the one that is decoded, in those predictions.
pub const DECODE_CONTEXT: usize = 300;
/// Prompt and answer of the requests that total throughput is predicted for.
pub const TRAFFIC: (usize, usize) = (1024, 256);
/// Prompt and answer of the request, alone on the machine, that latency is judged by.
pub const SINGLE: (usize, usize) = (4096, 512);

/// Ranks that exchange data with each other at most, as the device's groups have it.
pub const MOST_IN_A_GROUP: usize = 8;

/// How a model is laid over GPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Replicas of the whole model (data parallel).
    pub replicas: usize,
    /// Spans of layers of each replica (pipeline parallel).
    pub num_stages: usize,
    /// Ranks that split each layer (tensor parallel).
    pub tensor_size: usize,
}

impl Layout {
    /// GPUs it takes.
    #[must_use]
    pub fn num_gpus(&self) -> usize {
        self.replicas * self.num_stages * self.tensor_size
    }

    /// Every layout of up to `num_gpus` GPUs, those that use few of them first.
    #[must_use]
    pub fn candidates(num_gpus: usize) -> Vec<Self> {
        let mut all = Vec::new();
        for replicas in 1..=num_gpus {
            for num_stages in 1..=num_gpus / replicas {
                for tensor_size in 1..=num_gpus / replicas / num_stages {
                    all.push(Self { replicas, num_stages, tensor_size });
                }
            }
        }
        all.sort_by_key(|layout| (layout.num_gpus(), layout.replicas, layout.num_stages));
        all
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} x {} x {}", self.replicas, self.num_stages, self.tensor_size)
    }
}

/// GPUs of one kind, and what connects them.
#[derive(Clone, Debug, PartialEq)]
pub struct Machine {
    /// Each of them.
    pub card: Card,
    /// How many.
    pub num_gpus: usize,
    /// What lies between them.
    pub links: Links,
}

impl Machine {
    /// So many cards, connected as their data sheet has it.
    #[must_use]
    pub fn listed(num_gpus: usize, card: Card) -> Self {
        let links = Links { wiring: card.wiring, bandwidth: card.link_bandwidth, measured: Vec::new() };
        Self { card, num_gpus, links }
    }

    /// Bytes a second that streaming reaches.
    pub(crate) fn stream_bandwidth(&self) -> f64 {
        self.card.memory_bandwidth * CONSTANTS.stream_share
    }
}

/// What is to be laid out.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The model, for the context wanted.
    pub config: &'a ModelConfig,
    /// What its memory is planned by; `limits` are the largest step's, where there is one stage.
    pub request: &'a MemoryRequest<'a>,
    /// Tokens of the largest step where there are several stages.
    pub staged_tokens: usize,
    /// Bytes of each GPU that a rank may use.
    pub budget_bytes: usize,
    /// KV blocks that sequences cannot have.
    pub scratch_blocks: usize,
}

/// What of a model fits into a replica's GPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fit {
    /// Weights of the fullest GPU, in bytes.
    pub weights_bytes: usize,
    /// Its workspace and tables.
    pub other_bytes: usize,
    /// Keys and values of a token on it.
    pub kv_bytes_per_token: usize,
    /// Tokens that the KV cache holds.
    pub cached_tokens: usize,
    /// Tokens of the longest sequence: the context wanted, or what the cache holds of it.
    pub longest: usize,
}

impl<'a> Subject<'a> {
    /// What fits when each layer is split over `tensor_size` GPUs, and the layers are over `num_stages` times as many.
    ///
    /// # Errors
    /// The model cannot be dealt that way, or not one token fits.
    pub fn fit(&self, tensor_size: usize, num_stages: usize) -> Result<Fit, Misfit> {
        self.planned(tensor_size, num_stages).map(|(fit, _)| fit)
    }

    /// The request with the steps of so many stages.
    fn request_of(&self, num_stages: usize) -> MemoryRequest<'a> {
        let mut request = *self.request;
        if 1 < num_stages {
            request.limits.max_tokens = self.staged_tokens;
        }
        request
    }

    fn planned(&self, tensor_size: usize, num_stages: usize) -> Result<(Fit, Vec<MemoryPlan>), Misfit> {
        let Self { config, budget_bytes, scratch_blocks, .. } = *self;
        let request = self.request_of(num_stages);
        let plans =
            memory::plan_layout(config, tensor_size, num_stages, &request).map_err(Misfit::impossible)?;
        let (fullest, blocks) = memory::fullest(&plans, budget_bytes).expect("there is a rank");
        let cached_tokens = blocks.saturating_sub(scratch_blocks) * request.block_size;
        if cached_tokens == 0 {
            return Err(Misfit::of(&plans, budget_bytes, scratch_blocks));
        }
        let fit = Fit {
            weights_bytes: fullest.weights_bytes,
            other_bytes: fullest.rope_bytes + fullest.workspace_bytes,
            kv_bytes_per_token: fullest.kv_bytes_per_token,
            cached_tokens,
            longest: config.max_model_len.min(cached_tokens),
        };
        Ok((fit, plans))
    }
}

/// What is expected of one layout.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// Which.
    pub layout: Layout,
    /// Its figures, or why it cannot be.
    pub outcome: Result<Figures, Misfit>,
}

/// Why a layout cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// GPUs are too small.
    Memory {
        /// Bytes the fullest of them needs before the first token.
        needed: usize,
        /// Bytes it may use.
        budget: usize,
    },
    /// The model cannot be dealt that way, however large the GPUs are.
    Impossible(String),
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gib = |bytes: usize| bytes as f64 / f64::from(1 << 30);
        match self {
            Self::Memory { needed, budget } => write!(
                f,
                "a GPU needs {:.1} GiB before the first token and may use {:.1}",
                gib(*needed),
                gib(*budget)
            ),
            Self::Impossible(reason) => f.write_str(reason),
        }
    }
}

impl Misfit {
    /// That none of `plans` has room for a token within `budget` bytes; `scratch_blocks` are no sequence's.
    fn of(plans: &[MemoryPlan], budget: usize, scratch_blocks: usize) -> Self {
        let needed = |plan: &MemoryPlan| plan.fixed_bytes() + plan.kv_bytes(1 + scratch_blocks);
        Self::Memory { needed: plans.iter().map(needed).max().unwrap_or(0), budget }
    }

    fn impossible(error: impl fmt::Display) -> Self {
        Self::Impossible(error.to_string())
    }
}

/// Figures of a layout that fits.
#[derive(Clone, Debug, PartialEq)]
pub struct Figures {
    /// Weights of the fullest GPU, in bytes.
    pub weights_bytes: usize,
    /// Its workspace and tables.
    pub other_bytes: usize,
    /// Keys and values of a token on it.
    pub kv_bytes_per_token: usize,
    /// Tokens that one replica's KV cache holds.
    pub cached_tokens: usize,
    /// Seconds to the first token for each of [`PROMPT_LENS`]; none where the cache or the context is too short.
    pub first_token_seconds: [Option<f64>; PROMPT_LENS.len()],
    /// Seconds a token for each of [`BATCH_SIZES`] at a context of [`DECODE_CONTEXT`]; none where the context is
    /// shorter, or they do not fit at once.
    pub step_seconds: [Option<f64>; BATCH_SIZES.len()],
    /// Seconds of one [`SINGLE`] request alone, or of the longest that fits in its place.
    pub single_seconds: f64,
    /// Tokens a second, in and out, under a crowd of [`TRAFFIC`] requests, or of the longest that fit in their place.
    pub tokens_per_second: f64,
}

impl Figures {
    /// Output tokens a second for each of [`BATCH_SIZES`].
    #[must_use]
    pub fn decode_rates(&self) -> [Option<f64>; BATCH_SIZES.len()] {
        let mut rates = [None; BATCH_SIZES.len()];
        for ((rate, seconds), batch) in rates.iter_mut().zip(self.step_seconds).zip(BATCH_SIZES) {
            *rate = seconds.map(|seconds| batch as f64 / seconds);
        }
        rates
    }
}

/// Predicts every layout the machine has GPUs for.
#[must_use]
pub fn compare(machine: &Machine, subject: &Subject<'_>) -> Vec<Prediction> {
    let layouts = Layout::candidates(machine.num_gpus);
    layouts
        .into_iter()
        .map(|layout| Prediction { layout, outcome: predict(machine, subject, layout) })
        .collect()
}

/// The figures of one layout.
///
/// # Errors
/// The model cannot be dealt that way, or does not fit.
pub fn predict(machine: &Machine, subject: &Subject<'_>, layout: Layout) -> Result<Figures, Misfit> {
    let timed = Timed::new(machine, subject, layout)?;
    let Fit { weights_bytes, other_bytes, kv_bytes_per_token, cached_tokens, longest } = timed.fit;
    Ok(Figures {
        weights_bytes,
        other_bytes,
        kv_bytes_per_token,
        cached_tokens,
        // A prompt of the whole context leaves no room for an answer, but is what people ask about.
        first_token_seconds: PROMPT_LENS.map(|len| timed.first_token(len)),
        step_seconds: BATCH_SIZES.map(|batch| timed.decode(batch, DECODE_CONTEXT)),
        single_seconds: timed.single(),
        tokens_per_second: timed.crowd(shortened(TRAFFIC, longest), usize::MAX),
    })
}

/// A layout that fits, and what its times follow from.
struct Timed<'a> {
    machine: &'a Machine,
    replica: ReplicaCost,
    layout: Layout,
    fit: Fit,
    /// Sequences that a replica computes at once.
    max_sequences: usize,
    chunk_len: usize,
}

impl<'a> Timed<'a> {
    fn new(machine: &'a Machine, subject: &Subject<'_>, layout: Layout) -> Result<Self, Misfit> {
        let (config, request) = (subject.config, subject.request_of(layout.num_stages));
        if MOST_IN_A_GROUP < layout.tensor_size.max(layout.num_stages) {
            return Err(Misfit::impossible(format!(
                "more than {MOST_IN_A_GROUP} ranks cannot exchange data"
            )));
        }
        let (fit, plans) = subject.planned(layout.tensor_size, layout.num_stages)?;
        let ranks = plans.iter().map(|plan| {
            let shards = Shards::new(config, plan.place, &request.formats).map_err(Misfit::impossible)?;
            Ok(RankCost::new(config, &shards, plan))
        });
        let ranks = ranks.collect::<Result<Vec<_>, Misfit>>()?;
        Ok(Self {
            machine,
            replica: ReplicaCost::new(config, &ranks, layout.tensor_size),
            layout,
            fit,
            max_sequences: request.limits.max_samples,
            chunk_len: request.limits.max_tokens,
        })
    }

    fn first_token(&self, prompt_len: usize) -> Option<f64> {
        (prompt_len <= self.fit.longest).then(|| self.first_token_seconds(prompt_len))
    }

    fn first_token_seconds(&self, prompt_len: usize) -> f64 {
        self.replica.first_token_seconds(self.machine, prompt_len, self.chunk_len)
    }

    /// Seconds a token of `batch` sequences behind `context` tokens, dealt to the replicas, when each has room for its
    /// part.
    fn decode(&self, batch: usize, context: usize) -> Option<f64> {
        let part = batch.div_ceil(self.layout.replicas);
        let fits = context < self.fit.longest
            && part * context <= self.fit.cached_tokens
            && part <= self.max_sequences;
        fits.then(|| self.replica.decode_seconds(self.machine, part as f64, context as f64))
    }

    /// One request alone, shortened to what fits.
    fn single(&self) -> f64 {
        let (input, output) = shortened(SINGLE, self.fit.longest);
        let context = (input + output / 2) as f64;
        self.first_token_seconds(input)
            + output as f64 * self.replica.decode_seconds(self.machine, 1.0, context)
    }

    /// Of `requests` requests as many at once as each replica has room and seats for.
    fn crowd(&self, (input, output): (usize, usize), requests: usize) -> f64 {
        let room = (self.fit.cached_tokens / (input + output)).clamp(1, self.max_sequences);
        let at_once = room.min(requests.div_ceil(self.layout.replicas));
        let lens = (input as f64, output as f64);
        let of_one = self.replica.traffic(self.machine, at_once as f64, lens, self.chunk_len as f64);
        of_one * self.layout.replicas.min(requests) as f64
    }
}

/// A request's two lengths, in the same proportion, of `longest` tokens together at most.
fn shortened((input, output): (usize, usize), longest: usize) -> (usize, usize) {
    let whole = input + output;
    if whole <= longest {
        return (input, output);
    }
    ((input * longest / whole).max(1), (output * longest / whole).max(1))
}

#[cfg(test)]
mod tests;
