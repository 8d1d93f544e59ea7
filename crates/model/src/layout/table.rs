//! Every candidate layout as a table for people.

use std::fmt;

use crate::layout::choose::{Choice, Objective, cost};
use crate::layout::{BATCH_SIZES, Figures, PROMPT_LENS, Prediction};

/// Predictions, and which of them was taken.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// Every candidate.
    pub predictions: Vec<Prediction>,
    /// What was wanted.
    pub objective: Objective,
    /// What was taken, or why none could be.
    pub choice: Result<Choice, String>,
}

impl Comparison {
    /// For a log: why the layout was taken, and a line on each of the `count` best; nothing when none fits.
    #[must_use]
    pub fn leading(&self, count: usize) -> Vec<String> {
        let Ok(choice) = &self.choice else { return Vec::new() };
        let fitting = self.predictions.iter().filter_map(|prediction| {
            let figures = prediction.outcome.as_ref().ok()?;
            Some((prediction.layout, figures))
        });
        let mut fitting: Vec<_> = fitting.collect();
        fitting.sort_by(|(_, a), (_, b)| cost(a, self.objective).total_cmp(&cost(b, self.objective)));
        let told = fitting.iter().take(count).map(|(layout, figures)| {
            format!(
                "{layout} (dp x pp x tp): {:.0} tokens/s over many requests, {:.2} s for one alone, {} tokens cached a replica",
                figures.tokens_per_second, figures.single_seconds, figures.cached_tokens
            )
        });
        std::iter::once(choice.reason.clone()).chain(told).collect()
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:>2}{:>9}  {:>8} {:>10}  {:<31}  {:<31}  {:>9}",
            "", "dp pp tp", "weights", "KV tokens", "  first token after", "  tokens/s decoding", "in + out"
        )?;
        write!(f, "{:>2}{:>9}  {:>8} {:>10} ", "", "", "a GPU", "a replica")?;
        for len in PROMPT_LENS {
            write!(f, " {:>7}", format!("{}K", len / 1024))?;
        }
        write!(f, " ")?;
        for batch in BATCH_SIZES {
            write!(f, " {:>7}", format!("x {batch}"))?;
        }
        writeln!(f, "  {:>9}", "tokens/s")?;
        let chosen = self.choice.as_ref().ok().map(|choice| choice.index);
        for (index, prediction) in self.predictions.iter().enumerate() {
            let mark = if chosen == Some(index) { "> " } else { "  " };
            let layout = prediction.layout;
            write!(
                f,
                "{mark}{:>9}",
                format!("{:>2} {:>2} {:>2}", layout.replicas, layout.num_stages, layout.tensor_size)
            )?;
            match &prediction.outcome {
                Ok(figures) => row(f, figures)?,
                Err(reason) => writeln!(f, "  {reason}")?,
            }
        }
        match &self.choice {
            Ok(choice) => write!(f, "{}", choice.reason),
            Err(reason) => f.write_str(reason),
        }
    }
}

fn row(f: &mut fmt::Formatter<'_>, figures: &Figures) -> fmt::Result {
    let gib = figures.weights_bytes as f64 / f64::from(1 << 30);
    write!(f, "  {gib:>4.1} GiB {:>10} ", figures.cached_tokens)?;
    for seconds in figures.first_token_seconds {
        let text = seconds.map_or("-".to_owned(), time);
        write!(f, " {text:>7}")?;
    }
    write!(f, " ")?;
    for rate in figures.decode_rates() {
        let text = rate.map_or("-".to_owned(), |rate| format!("{rate:.0}"));
        write!(f, " {text:>7}")?;
    }
    writeln!(f, "  {:>9.0}", figures.tokens_per_second)
}

/// `93 ms`, `1.68 s`.
fn time(seconds: f64) -> String {
    match seconds {
        short if short < 0.9995 => format!("{:.0} ms", short * 1e3),
        long => format!("{long:.2} s"),
    }
}
