//! Which layout to take: the best at what is wanted, and among those about as good the best at everything else.

use std::fmt;

use crate::layout::{Figures, Layout, Misfit, Prediction};

/// What is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Objective {
    /// One request done as soon as can be.
    Latency,
    /// As many tokens a second as can be, over many requests.
    Throughput,
}

impl fmt::Display for Objective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Latency => "latency",
            Self::Throughput => "throughput",
        })
    }
}

/// Layouts this close to the best are equally good as far as a prediction can tell: what else they are good at decides.
const EQUALLY_GOOD: f64 = 1.05;

/// A layout taken.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// Which of the predictions.
    pub index: usize,
    /// The layout.
    pub layout: Layout,
    /// One sentence for people.
    pub reason: String,
}

/// Takes the best of `predictions` for sequences of `context` tokens. Where none holds one that long, those that hold the
/// most are what there is.
///
/// # Errors
/// None fits; says why the one that came closest does not.
pub fn choose(predictions: &[Prediction], objective: Objective, context: usize) -> Result<Choice, String> {
    let fitting: Vec<(usize, Layout, &Figures)> = predictions
        .iter()
        .enumerate()
        .filter_map(|(index, prediction)| Some((index, prediction.layout, prediction.outcome.as_ref().ok()?)))
        .collect();
    let longest = fitting.iter().map(|(.., figures)| figures.cached_tokens.min(context)).max();
    let Some(longest) = longest else { return Err(none_fits(predictions)) };
    let able: Vec<_> = fitting.into_iter().filter(|(.., figures)| longest <= figures.cached_tokens).collect();
    let best = able.iter().map(|(.., figures)| cost(figures, objective)).fold(f64::INFINITY, f64::min);
    let close = able.iter().filter(|(.., figures)| cost(figures, objective) <= best * EQUALLY_GOOD);
    let other = match objective {
        Objective::Latency => Objective::Throughput,
        Objective::Throughput => Objective::Latency,
    };
    let (index, layout, figures) = close
        .min_by(|(_, a, of_a), (_, b, of_b)| {
            let fewer = a.num_gpus().cmp(&b.num_gpus());
            let by = |objective| cost(of_a, objective).total_cmp(&cost(of_b, objective));
            // Replicas are alike for one request: a GPU more is then worth what it adds.
            by(other).then(by(objective)).then(fewer)
        })
        .expect("the best is close to the best");
    let reason = reason(&able, (*layout, figures), objective, (longest, context));
    Ok(Choice { index: *index, layout: *layout, reason })
}

/// What is to be small: seconds.
pub(super) fn cost(figures: &Figures, objective: Objective) -> f64 {
    match objective {
        Objective::Latency => figures.single_seconds,
        Objective::Throughput => figures.tokens_per_second.recip(),
    }
}

fn reason(
    able: &[(usize, Layout, &Figures)],
    (layout, figures): (Layout, &Figures),
    objective: Objective,
    (longest, context): (usize, usize),
) -> String {
    let best = |objective: Objective| {
        able.iter()
            .min_by(|(.., a), (.., b)| cost(a, objective).total_cmp(&cost(b, objective)))
            .expect("one was chosen")
    };
    let held = match longest < context {
        true => format!("none holds a sequence of {context} tokens; of those that hold {longest}, "),
        false => String::new(),
    };
    let strictly_best = cost(figures, objective) <= cost(best(objective).2, objective);
    let of_all = match (able, strictly_best) {
        ([_], _) if longest < context => "the only one".to_owned(),
        ([_], _) => "the only one that can hold the context".to_owned(),
        (_, true) => format!("the best of {} for {objective}", able.len()),
        (_, false) => {
            format!("about the best of {} for {objective}, and the best of those at the rest", able.len())
        }
    };
    let figure = match objective {
        Objective::Latency => format!("one request alone takes {:.2} s", figures.single_seconds),
        Objective::Throughput => format!("{:.0} tokens/s over many requests", figures.tokens_per_second),
    };
    let (_, rival, theirs) = match objective {
        Objective::Latency => best(Objective::Throughput),
        Objective::Throughput => best(Objective::Latency),
    };
    let gain = match objective {
        Objective::Latency => theirs.tokens_per_second / figures.tokens_per_second,
        Objective::Throughput => figures.single_seconds / theirs.single_seconds,
    };
    let instead = match (objective, *rival == layout || gain < EQUALLY_GOOD) {
        (_, true) => String::new(),
        (Objective::Latency, false) => {
            format!(" ({rival} gives {gain:.2} x the tokens/s of many: --objective throughput)")
        }
        (Objective::Throughput, false) => {
            format!(" ({rival} answers one request {gain:.2} x as fast: --objective latency)")
        }
    };
    format!("{held}{layout} is {of_all}: {figure}{instead}")
}

fn none_fits(predictions: &[Prediction]) -> String {
    let too_small = predictions.iter().filter_map(|prediction| match &prediction.outcome {
        Err(reason @ Misfit::Memory { needed, .. }) => Some((needed, prediction.layout, reason)),
        _ => None,
    });
    match too_small.min_by_key(|(needed, ..)| *needed) {
        Some((_, layout, reason)) => format!("no layout fits: {reason}, even as {layout} (dp x pp x tp)"),
        None => "no layout of this model fits these GPUs".to_owned(),
    }
}
