//! The loads worth naming: one stream, many streams, long prompts, the specification's table.

use phalanx_engine::Router;

use crate::load::{Load, LoadError, Observed, Prompts, run};
use crate::matrix::MatrixRow;
use crate::report::Figure;
use crate::roofline::Roofline;

/// Runs of each load before those that count.
pub const WARM_UP_RUNS: usize = 1;
/// Tokens of an answer while warming up: enough for every kind of step to have been made.
const WARM_UP_OUTPUT: usize = 32;

/// What all suites need.
pub struct Suite<'a> {
    /// Where requests go.
    pub router: &'a Router,
    /// Where prompts come from.
    pub prompts: Prompts,
    /// Runs of each load that count.
    pub repeats: usize,
    /// What the devices allow.
    pub roofline: &'a Roofline,
}

impl Suite<'_> {
    fn observe(&mut self, load: &Load) -> Result<Vec<Observed>, LoadError> {
        let short = |&(input_len, output_len): &(usize, usize)| (input_len, output_len.min(WARM_UP_OUTPUT));
        let warm_up = Load { requests: load.requests.iter().map(short).collect() };
        for _ in 0..WARM_UP_RUNS {
            run(self.router, &warm_up, &mut self.prompts)?;
        }
        (0..self.repeats.max(1)).map(|_| run(self.router, load, &mut self.prompts)).collect()
    }
}

/// Decode speed for each batch size: all requests in step, prompts of `input_len`, `output_len` tokens out; and why a
/// batch size has none: a request failed, or answers are too short for all requests to decode at the same time.
///
/// # Errors
/// The reason, when no batch size could be measured.
pub fn latency(
    suite: &mut Suite<'_>,
    batch_sizes: &[usize],
    input_len: usize,
    output_len: usize,
) -> Result<(Vec<Figure>, Vec<String>), LoadError> {
    each(batch_sizes, |&batch_size| {
        let seen = suite.observe(&Load::uniform(batch_size, input_len, output_len))?;
        // The time of one token of each request, while all of them decode.
        let round = |seen: &Observed| match 0 < seen.steady_tokens && 0.0 < seen.steady_seconds {
            true => Ok(seen.steady_seconds * batch_size as f64 / seen.steady_tokens as f64),
            false => Err(LoadError::TooShort { batch_size, output_len }),
        };
        let seconds = seen.iter().map(round).collect::<Result<Vec<f64>, _>>()?;
        let mean_context = input_len as f64 + output_len as f64 / 2.0;
        let least = suite.roofline.decode_seconds(batch_size, mean_context);
        Ok([
            Figure::rate(format!("decode, {batch_size} at once"), batch_size, &seconds, least),
            Figure::millis(format!("one token of each, {batch_size} at once"), &seconds, least),
        ])
    })
}

/// Measures each of `loads`. One that fails takes nothing from what was measured before: its reason is told beside it.
fn each<T: std::fmt::Display>(
    loads: &[T],
    mut measure: impl FnMut(&T) -> Result<[Figure; 2], LoadError>,
) -> Result<(Vec<Figure>, Vec<String>), LoadError> {
    let (mut figures, mut left_out, mut first) = (Vec::new(), Vec::new(), None);
    for load in loads {
        match measure(load) {
            Ok(measured) => figures.extend(measured),
            Err(error) => {
                left_out.push(format!("{load}: {error}"));
                first.get_or_insert(error);
            }
        }
    }
    match first {
        Some(error) if figures.is_empty() => Err(error),
        _ => Ok((figures, left_out)),
    }
}

/// Prompt speed and time to first token for each length, one request at a time; and why a length has none.
///
/// # Errors
/// The reason, when no length could be measured.
pub fn prefill(suite: &mut Suite<'_>, input_lens: &[usize]) -> Result<(Vec<Figure>, Vec<String>), LoadError> {
    each(input_lens, |&input_len| {
        let seen = suite.observe(&Load::uniform(1, input_len, 1))?;
        let seconds: Vec<f64> = seen.iter().map(|seen| seen.first_token_seconds[0]).collect();
        let least = suite.roofline.prefill_seconds(1, input_len);
        Ok([
            Figure::rate(format!("prefill of {input_len}"), input_len, &seconds, least),
            Figure::millis(format!("first token after {input_len}"), &seconds, least),
        ])
    })
}

/// Tokens a second over requests submitted at once; see [`equal`] and [`mixed`].
///
/// # Errors
/// A request failed.
pub fn throughput(suite: &mut Suite<'_>, load: &Load, name: &str) -> Result<Vec<Figure>, LoadError> {
    let seen = suite.observe(load)?;
    let seconds: Vec<f64> = seen.iter().map(|seen| seen.total_seconds).collect();
    let least = suite.roofline.mixed_seconds(&load.requests);
    let Observed { input_tokens, output_tokens, .. } = seen[0];
    Ok(vec![
        Figure::rate(format!("output of {name}"), output_tokens, &seconds, least),
        Figure::rate(format!("input and output of {name}"), input_tokens + output_tokens, &seconds, least),
    ])
}

/// Tokens a second, in and out, of one run of a load that is long enough to tell by itself. Nothing warms up: what is
/// measured before it has.
///
/// # Errors
/// A request failed.
pub(crate) fn crowd(suite: &mut Suite<'_>, load: &Load) -> Result<Figure, LoadError> {
    let seen = run(suite.router, load, &mut suite.prompts)?;
    let least = suite.roofline.mixed_seconds(&load.requests);
    let name = format!("input and output of {} at once", load.requests.len());
    Ok(Figure::rate(name, seen.input_tokens + seen.output_tokens, &[seen.total_seconds], least))
}

/// `count` equal requests, and their name.
#[must_use]
pub fn equal(count: usize, input_len: usize, output_len: usize) -> (Load, String) {
    (Load::uniform(count, input_len, output_len), format!("{count} x ({input_len} in, {output_len} out)"))
}

/// `count` requests of lengths from an eighth to the whole of what is given, and their name.
#[must_use]
pub fn mixed(count: usize, input_len: usize, output_len: usize) -> (Load, String) {
    let share = |length: usize, i: usize| (length * (1 + i * 5 % 8)).div_ceil(8);
    let requests = (0..count).map(|i| (share(input_len, i), share(output_len, i + 3))).collect();
    (Load { requests }, format!("{count} mixed requests, up to {input_len} in, {output_len} out"))
}

/// One row of the specification's table; `device_bytes` is what it takes of the fullest device.
///
/// # Errors
/// A request failed.
pub fn matrix_row(
    suite: &mut Suite<'_>,
    (input_len, output_len): (usize, usize),
    batch_size: usize,
    device_bytes: usize,
) -> Result<MatrixRow, LoadError> {
    let seen = suite.observe(&Load::uniform(batch_size, input_len, output_len))?;
    let seconds: Vec<f64> = seen.iter().map(|seen| seen.total_seconds).collect();
    let first: Vec<f64> =
        seen.iter().map(|seen| seen.first_token_seconds.iter().copied().fold(0.0, f64::max)).collect();
    let least = suite.roofline.answer_seconds(batch_size, input_len, output_len);
    let least_first = suite.roofline.prefill_seconds(batch_size, input_len);
    let (output, all) = (batch_size * output_len, batch_size * (input_len + output_len));
    Ok(MatrixRow {
        input_len,
        output_len,
        batch_size,
        output: Figure::rate("output", output, &seconds, least),
        total: Figure::rate("input and output", all, &seconds, least),
        first_token: Figure::millis("last first token", &first, least_first),
        device_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_that_fails_takes_nothing_from_the_others() {
        let measure = |batch_size: &usize| match batch_size {
            8 => Err(LoadError::TooShort { batch_size: 8, output_len: 2 }),
            _ => Ok([Figure::rate("a", 1, &[1.0], 0.5), Figure::millis("b", &[1.0], 0.5)]),
        };
        let (figures, left_out) = each(&[1, 8, 2], measure).unwrap();
        assert_eq!((figures.len(), left_out.len()), (4, 1));
        assert!(left_out[0].starts_with("8: "), "{left_out:?}");
        assert!(each(&[8, 8], measure).is_err());
    }

    #[test]
    fn mixed_requests_take_every_eighth() {
        let (load, _) = mixed(8, 80, 16);
        let mut lens: Vec<(usize, usize)> = load.requests;
        assert_eq!(lens[0], (10, 16));
        lens.sort_unstable();
        assert_eq!(lens.iter().map(|lens| lens.0).collect::<Vec<_>>(), [10, 20, 30, 40, 50, 60, 70, 80]);
    }
}
