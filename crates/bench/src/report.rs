//! Figures, as a table for people or as JSON for programs.

use std::fmt::{self, Write};

use serde::Serialize;

/// One measured figure: the median of several runs, and their spread.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// What was measured, for example `decode, 8 at once`.
    pub name: String,
    /// In which unit, for example `tok/s`.
    pub unit: &'static str,
    /// The middle one of the runs.
    pub median: f64,
    /// The lowest.
    pub lowest: f64,
    /// The highest.
    pub highest: f64,
    /// How many runs.
    pub runs: usize,
}

impl Figure {
    /// Sums up `values`.
    ///
    /// # Panics
    /// There are none.
    #[must_use]
    pub fn new(name: impl Into<String>, unit: &'static str, mut values: Vec<f64>) -> Self {
        assert!(!values.is_empty(), "a figure has at least one run");
        values.sort_by(f64::total_cmp);
        Self {
            name: name.into(),
            unit,
            median: values[values.len() / 2],
            lowest: values[0],
            highest: values[values.len() - 1],
            runs: values.len(),
        }
    }
}

/// What one bench measured, on what.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The model's name.
    pub model: String,
    /// What computed.
    pub device: String,
    /// The figures, in the order measured.
    pub figures: Vec<Figure>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.figures.iter().map(|figure| figure.name.chars().count()).max().unwrap_or(0);
        writeln!(f, "{} on {}", self.model, self.device)?;
        for figure in &self.figures {
            let mut line =
                format!("  {:width$}  {:>10} {:<5}", figure.name, rounded(figure.median), figure.unit);
            if 1 < figure.runs {
                let (lowest, highest) = (rounded(figure.lowest), rounded(figure.highest));
                write!(line, "  ({lowest} to {highest} in {} runs)", figure.runs)?;
            }
            writeln!(f, "{line}")?;
        }
        Ok(())
    }
}

/// Three significant digits at least, no more than are meant.
fn rounded(value: f64) -> String {
    match value.abs() {
        size if size < 10.0 => format!("{value:.2}"),
        size if size < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_reads_as_a_table() {
        let figures = vec![
            Figure::new("decode, 1 at once", "tok/s", vec![61.0, 59.04, 60.0]),
            Figure::new("first token", "s", vec![1.6]),
        ];
        let report = Report { model: "m".to_owned(), device: "CPU".to_owned(), figures };
        let expected = "m on CPU\n  decode, 1 at once        60.0 tok/s  (59.0 to 61.0 in 3 runs)\n  first token              1.60 s    \n";
        assert_eq!(report.to_string(), expected);
    }
}
