//! What a layout would give for loads that somebody is about to measure, rather than for the usual ones.

use crate::layout::{Layout, Machine, Misfit, Subject, Timed};

/// Loads to predict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loads {
    /// Prompts, one at a time, whose first token is waited for.
    pub prompt_lens: Vec<usize>,
    /// Numbers of sequences that decode at once.
    pub batch_sizes: Vec<usize>,
    /// Tokens before the one that they decode.
    pub context: usize,
    /// Requests submitted at once.
    pub requests: usize,
    /// Prompt and answer of each of those.
    pub request_lens: (usize, usize),
}

/// What is expected, entry for entry; none where the context or the cache is too small.
#[derive(Clone, Debug, PartialEq)]
pub struct Expected {
    /// Seconds to the first token behind each prompt.
    pub first_token_seconds: Vec<Option<f64>>,
    /// Seconds until each of so many sequences has one more token.
    pub step_seconds: Vec<Option<f64>>,
    /// Tokens a second, in and out, of the requests submitted at once.
    pub tokens_per_second: Option<f64>,
}

/// Predicts `loads` for one layout.
///
/// # Errors
/// The model cannot be dealt that way, or does not fit.
pub fn expect(
    machine: &Machine,
    subject: &Subject<'_>,
    layout: Layout,
    loads: &Loads,
) -> Result<Expected, Misfit> {
    let timed = Timed::new(machine, subject, layout)?;
    let (input, output) = loads.request_lens;
    let fits = 0 < loads.requests && input + output <= timed.fit.longest;
    Ok(Expected {
        first_token_seconds: loads.prompt_lens.iter().map(|len| timed.first_token(*len)).collect(),
        step_seconds: loads.batch_sizes.iter().map(|batch| timed.decode(*batch, loads.context)).collect(),
        tokens_per_second: fits.then(|| timed.crowd(loads.request_lens, loads.requests)),
    })
}
