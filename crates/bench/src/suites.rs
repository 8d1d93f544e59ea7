//! The loads worth naming: one stream, many streams, long prompts, the specification's table.

use phalanx_engine::Router;

use crate::load::{Load, LoadError, Observed, Prompts, run};
use crate::report::Figure;

/// What all suites need.
pub struct Suite<'a> {
    /// Where requests go.
    pub router: &'a Router,
    /// Where prompts come from.
    pub prompts: Prompts,
    /// Runs of each load; one more is made before, to warm up, and not counted.
    pub repeats: usize,
}

impl Suite<'_> {
    fn observe(&mut self, load: &Load) -> Result<Vec<Observed>, LoadError> {
        run(self.router, load, &mut self.prompts)?;
        (0..self.repeats.max(1)).map(|_| run(self.router, load, &mut self.prompts)).collect()
    }
}

/// Decode speed for each batch size: all requests in step, prompts of `input_len`, `output_len` tokens out.
///
/// # Errors
/// A request failed.
pub fn latency(
    suite: &mut Suite<'_>,
    batch_sizes: &[usize],
    input_len: usize,
    output_len: usize,
) -> Result<Vec<Figure>, LoadError> {
    let mut figures = Vec::new();
    for &batch_size in batch_sizes {
        let seen = suite.observe(&Load::uniform(batch_size, input_len, output_len))?;
        let rates = seen.iter().map(|seen| seen.steady_tokens as f64 / seen.steady_seconds).collect();
        figures.push(Figure::new(format!("decode, {batch_size} at once"), "tok/s", rates));
        let millis =
            seen.iter().map(|seen| 1e3 * seen.steady_seconds * batch_size as f64 / seen.steady_tokens as f64);
        figures.push(Figure::new(format!("one token of each, {batch_size} at once"), "ms", millis.collect()));
    }
    Ok(figures)
}

/// Prompt speed and time to first token for each length, one request at a time.
///
/// # Errors
/// A request failed.
pub fn prefill(suite: &mut Suite<'_>, input_lens: &[usize]) -> Result<Vec<Figure>, LoadError> {
    let mut figures = Vec::new();
    for &input_len in input_lens {
        let seen = suite.observe(&Load::uniform(1, input_len, 1))?;
        let first: Vec<f64> = seen.iter().map(|seen| seen.first_token_seconds[0]).collect();
        let rates = first.iter().map(|seconds| input_len as f64 / seconds).collect();
        figures.push(Figure::new(format!("prefill of {input_len}"), "tok/s", rates));
        let millis = first.iter().map(|seconds| seconds * 1e3).collect();
        figures.push(Figure::new(format!("first token after {input_len}"), "ms", millis));
    }
    Ok(figures)
}

/// Tokens a second over `count` requests submitted at once, of lengths from an eighth to the whole of what is given.
///
/// # Errors
/// A request failed.
pub fn throughput(
    suite: &mut Suite<'_>,
    count: usize,
    input_len: usize,
    output_len: usize,
) -> Result<Vec<Figure>, LoadError> {
    let share = |length: usize, i: usize| (length * (1 + i * 5 % 8)).div_ceil(8);
    let requests = (0..count).map(|i| (share(input_len, i), share(output_len, i + 3))).collect();
    let seen = suite.observe(&Load { requests })?;
    let output = seen.iter().map(|seen| seen.output_tokens as f64 / seen.total_seconds).collect();
    let total = seen
        .iter()
        .map(|seen| (seen.input_tokens + seen.output_tokens) as f64 / seen.total_seconds)
        .collect();
    Ok(vec![
        Figure::new(format!("output of {count} mixed requests"), "tok/s", output),
        Figure::new(format!("input and output of {count} mixed requests"), "tok/s", total),
    ])
}

/// The specification's table: for each prompt length, `output_len` tokens out, `batch_size` requests at once.
///
/// # Errors
/// A request failed.
pub fn matrix(
    suite: &mut Suite<'_>,
    input_lens: &[usize],
    output_len: usize,
    batch_size: usize,
) -> Result<Vec<Figure>, LoadError> {
    let mut figures = Vec::new();
    for &input_len in input_lens {
        let seen = suite.observe(&Load::uniform(batch_size, input_len, output_len))?;
        let name = format!("{input_len} in, {output_len} out, {batch_size} at once");
        let output = seen.iter().map(|seen| seen.output_tokens as f64 / seen.total_seconds).collect();
        figures.push(Figure::new(format!("{name}: output"), "tok/s", output));
        let first =
            seen.iter().map(|seen| 1e3 * seen.first_token_seconds.iter().copied().fold(0.0, f64::max));
        figures.push(Figure::new(format!("{name}: first token"), "ms", first.collect()));
    }
    Ok(figures)
}
