//! Submits requests all at once and observes when their tokens come.

use std::time::Instant;

use futures_executor::block_on_stream;
use futures_util::StreamExt;
use futures_util::stream::SelectAll;
use phalanx_engine::{Event, EventStream, Request, RequestError, Router, Sampling, Stop};

/// Requests to submit at once: prompt length and answer length of each, in tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Load {
    /// One entry a request.
    pub requests: Vec<(usize, usize)>,
}

impl Load {
    /// `count` equal requests.
    #[must_use]
    pub fn uniform(count: usize, input_len: usize, output_len: usize) -> Self {
        Self { requests: vec![(input_len, output_len); count] }
    }
}

/// What was seen of one load, in seconds from its submission.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// Tokens of all prompts.
    pub input_tokens: usize,
    /// Tokens of all answers.
    pub output_tokens: usize,
    /// Each request's first token.
    pub first_token_seconds: Vec<f64>,
    /// Tokens that came after every request had its first, until the first request ended: decode at the full batch.
    pub steady_tokens: usize,
    /// How long that took.
    pub steady_seconds: f64,
    /// Until the last request ended.
    pub total_seconds: f64,
}

/// Why a load was not carried out.
#[derive(Debug)]
pub enum LoadError {
    /// A request was refused or failed.
    Request(RequestError),
    /// A request gave fewer tokens than asked for.
    Short {
        /// Tokens asked for.
        asked: usize,
        /// Tokens that came.
        came: usize,
    },
    /// The first request had ended before the last one began to decode.
    TooShort {
        /// Requests at once.
        batch_size: usize,
        /// Tokens of each answer.
        output_len: usize,
    },
}

impl std::fmt::Display for LoadError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Request(error) => write!(f, "{error}"),
            Self::Short { asked, came } => write!(f, "a request gave {came} of {asked} tokens"),
            Self::TooShort { batch_size, output_len } => write!(
                f,
                "answers of {output_len} tokens are over before all of {batch_size} requests decode: raise --output-len"
            ),
        }
    }
}

impl std::error::Error for LoadError {}

/// Random prompts of a vocabulary.
#[derive(Debug)]
pub struct Prompts {
    random: fastrand::Rng,
    /// Ids below this are drawn: byte and word pieces, no control tokens.
    vocab_size: u32,
}

impl Prompts {
    /// A stream of prompts; `seed` makes it the same again.
    #[must_use]
    pub fn new(vocab_size: usize, seed: u64) -> Self {
        // The upper ids of a vocabulary are control tokens: the lower nine tenths are safe in every Qwen.
        let vocab_size =
            u32::try_from(vocab_size / 10 * 9).expect("a vocabulary has fewer than 2^32 tokens").max(1);
        Self { random: fastrand::Rng::with_seed(seed), vocab_size }
    }

    fn draw(&mut self, len: usize) -> Vec<u32> {
        (0..len).map(|_| self.random.u32(0..self.vocab_size)).collect()
    }
}

/// Submits `load` and waits for all of it. Answers are greedy and do not stop early.
///
/// # Errors
/// A request was refused, failed or came out short.
pub fn run(router: &Router, load: &Load, prompts: &mut Prompts) -> Result<Observed, LoadError> {
    let requests: Vec<Request> = load
        .requests
        .iter()
        .map(|&(input_len, output_len)| request(prompts.draw(input_len), output_len))
        .collect();
    let start = Instant::now();
    let streams = requests.into_iter().map(|request| router.submit(request));
    let streams = streams.collect::<Result<Vec<_>, _>>().map_err(LoadError::Request)?;
    let histories = watch(streams, start)?;
    let total_seconds = start.elapsed().as_secs_f64();
    for (history, &(_, asked)) in histories.iter().zip(&load.requests) {
        if history.len() != asked {
            return Err(LoadError::Short { asked, came: history.len() });
        }
    }
    Ok(observed(load, &histories, total_seconds))
}

fn request(prompt: Vec<u32>, output_len: usize) -> Request {
    Request {
        id: "bench".to_owned(),
        prompt: prompt.into(),
        n: 1,
        max_new_tokens: Some(output_len),
        sampling: Sampling { temperature: 0.0, ..Sampling::default() },
        stop: Stop { ignore_eos: true, ..Stop::default() },
        priority: 0,
        cache_salt: None,
        skip_special_tokens: false,
    }
}

/// The times of each request's tokens.
///
/// One thread sees all of them: to wake one a request takes longer than the turn in the queue that it saves, 2 ms a step
/// of 256 sequences in place of 0.2 (`examples/host_work.rs` of the engine).
fn watch(streams: Vec<EventStream>, start: Instant) -> Result<Vec<Vec<f64>>, LoadError> {
    let mut histories = vec![Vec::new(); streams.len()];
    let numbered = streams.into_iter().enumerate();
    let all: SelectAll<_> =
        numbered.map(|(request, events)| events.map(move |event| (request, event))).collect();
    for (request, event) in block_on_stream(all) {
        match event {
            Event::Delta(delta) => {
                let now = start.elapsed().as_secs_f64();
                histories[request].extend(delta.tokens.iter().map(|_| now));
            }
            Event::Done(_) => {}
            Event::Failed(error) => return Err(LoadError::Request(error)),
        }
    }
    Ok(histories)
}

fn observed(load: &Load, histories: &[Vec<f64>], total_seconds: f64) -> Observed {
    let first_token_seconds: Vec<f64> = histories.iter().map(|times| times[0]).collect();
    let from = first_token_seconds.iter().copied().fold(0.0, f64::max);
    let ends = histories.iter().map(|times| times[times.len() - 1]);
    let until = ends.fold(f64::INFINITY, f64::min);
    let steady = histories.iter().flatten().filter(|time| from < **time && **time <= until).count();
    Observed {
        input_tokens: load.requests.iter().map(|(input_len, _)| input_len).sum(),
        output_tokens: load.requests.iter().map(|(_, output_len)| output_len).sum(),
        first_token_seconds,
        steady_tokens: steady,
        steady_seconds: (until - from).max(0.0),
        total_seconds,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_steady_part_is_where_all_requests_decode() {
        let load = Load::uniform(2, 3, 4);
        let histories = [vec![1.0, 2.0, 3.0, 4.0], vec![2.0, 3.0, 4.0, 5.0]];
        let seen = observed(&load, &histories, 6.0);
        assert_eq!((seen.steady_tokens, seen.steady_seconds), (4, 2.0));
        assert_eq!((seen.input_tokens, seen.output_tokens), (6, 8));
    }
}
