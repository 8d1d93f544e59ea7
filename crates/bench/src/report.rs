//! Figures, as a table for people or as JSON for programs.

use std::fmt::{self, Write};

use serde::Serialize;

use crate::matrix::{self, MatrixRow};
use crate::roofline::DeviceLimits;

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
    /// What the devices' limits would allow, in the same unit.
    pub limit: f64,
    /// The share of that which the median reaches; 1 is all of it.
    pub of_limit: f64,
}

impl Figure {
    /// `tokens` a second of runs that took `seconds` each, where the limits allow `least_seconds`.
    ///
    /// # Panics
    /// There are no runs.
    #[must_use]
    pub fn rate(name: impl Into<String>, tokens: usize, seconds: &[f64], least_seconds: f64) -> Self {
        let rate = |seconds: f64| tokens as f64 / seconds;
        let limit = rate(least_seconds);
        let figure = Self::new(name, "tok/s", seconds.iter().map(|seconds| rate(*seconds)).collect(), limit);
        Self { of_limit: figure.median / limit, ..figure }
    }

    /// The milliseconds of runs that took `seconds` each.
    ///
    /// # Panics
    /// There are no runs.
    #[must_use]
    pub fn millis(name: impl Into<String>, seconds: &[f64], least_seconds: f64) -> Self {
        let limit = 1e3 * least_seconds;
        let figure = Self::new(name, "ms", seconds.iter().map(|seconds| 1e3 * seconds).collect(), limit);
        Self { of_limit: limit / figure.median, ..figure }
    }

    fn new(name: impl Into<String>, unit: &'static str, mut values: Vec<f64>, limit: f64) -> Self {
        assert!(!values.is_empty(), "a figure has at least one run");
        values.sort_by(f64::total_cmp);
        let runs = values.len();
        // Of an even number of runs the middle two count, so that neither side is flattered.
        let median = (values[(runs - 1) / 2] + values[runs / 2]) / 2.0;
        let (lowest, highest) = (values[0], values[runs - 1]);
        Self { name: name.into(), unit, median, lowest, highest, runs, limit, of_limit: 0.0 }
    }

    /// `60.0 (59.0 to 61.0)`.
    pub(crate) fn spread(&self) -> String {
        match self.runs {
            1 => rounded(self.median),
            _ => format!("{} ({} to {})", rounded(self.median), rounded(self.lowest), rounded(self.highest)),
        }
    }

    /// `82 %`.
    pub(crate) fn share(&self) -> String {
        format!("{:.0} %", 100.0 * self.of_limit)
    }
}

/// What one bench measured, on what.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The model's name.
    pub model: String,
    /// What computed.
    pub device: String,
    /// What each device was measured to do at the start of this run.
    pub limits: Vec<DeviceLimits>,
    /// Runs of each load that were made first and are not in any figure.
    pub warm_up_runs: usize,
    /// The figures, in the order measured.
    pub figures: Vec<Figure>,
    /// The rows of a matrix; empty for other benches.
    pub matrix: Vec<MatrixRow>,
    /// What was asked for and could not be measured, and why.
    pub left_out: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} on {}", self.model, self.device)?;
        f.write_str(&describe_limits(&self.limits))?;
        let width = self.figures.iter().map(|figure| figure.name.chars().count()).max().unwrap_or(0);
        for figure in &self.figures {
            let mut line =
                format!("  {:width$}  {:>10} {:<5}", figure.name, rounded(figure.median), figure.unit);
            if 1 < figure.runs {
                let (lowest, highest) = (rounded(figure.lowest), rounded(figure.highest));
                write!(line, "  ({lowest} to {highest} in {} runs)", figure.runs)?;
            }
            writeln!(f, "{line}  {:>5} of {}", figure.share(), rounded(figure.limit))?;
        }
        let on_gpus = self.limits.iter().all(|device| device.name.starts_with("GPU"));
        matrix::write_table(f, &self.matrix, if on_gpus { "GB per GPU" } else { "GB" })?;
        for left_out in &self.left_out {
            writeln!(f, "  left out: {left_out}")?;
        }
        writeln!(
            f,
            "  medians; {} of each load warmed up and is not counted; the limits above were measured before this run",
            if self.warm_up_runs == 1 { "one run".to_owned() } else { format!("{} runs", self.warm_up_runs) }
        )
    }
}

/// A line for each device.
pub(crate) fn describe_limits(limits: &[DeviceLimits]) -> String {
    let line = |DeviceLimits { name, bandwidth, arithmetic }: &DeviceLimits| {
        let (value, unit) = match arithmetic / 1e12 {
            teraflops if teraflops < 1.0 => (1e3 * teraflops, "GFLOP/s"),
            teraflops => (teraflops, "TFLOP/s"),
        };
        format!("  {name}: reads {:.0} GB/s, multiplies at {} {unit}\n", bandwidth / 1e9, rounded(value))
    };
    limits.iter().map(line).collect()
}

/// Three significant digits at least, no more than are meant.
pub(crate) fn rounded(value: f64) -> String {
    match value.abs() {
        size if size < 10.0 => format!("{value:.2}"),
        size if size < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(figures: Vec<Figure>, matrix: Vec<MatrixRow>) -> String {
        let limits =
            vec![DeviceLimits { name: "GPU 0".to_owned(), bandwidth: 4.41e12, arithmetic: 7.612e14 }];
        let left_out = vec!["130560 in".to_owned()];
        let (model, device) = ("m".to_owned(), "1 GPU".to_owned());
        Report { model, device, limits, warm_up_runs: 1, figures, matrix, left_out }.to_string()
    }

    #[test]
    fn a_report_reads_as_a_table() {
        let figures = vec![
            Figure::rate("decode, 1 at once", 120, &[2.0, 2.4, 1.92], 1.5),
            Figure::millis("first token", &[1.6], 0.4),
        ];
        let expected = "m on 1 GPU\n  GPU 0: reads 4410 GB/s, multiplies at 761 TFLOP/s\n\
                        \x20 decode, 1 at once        60.0 tok/s  (50.0 to 62.5 in 3 runs)   75 % of 80.0\n\
                        \x20 first token              1600 ms      25 % of 400\n\
                        \x20 left out: 130560 in\n\
                        \x20 medians; one run of each load warmed up and is not counted; the limits above were measured before this run\n";
        assert_eq!(report(figures, Vec::new()), expected);
    }

    #[test]
    fn a_matrix_reads_as_the_sources_table() {
        let row = MatrixRow {
            input_len: 4096,
            output_len: 512,
            batch_size: 4,
            output: Figure::rate("output", 2048, &[2.0, 4.0], 1.0),
            total: Figure::rate("total", 4608, &[2.0, 4.0], 1.0),
            first_token: Figure::millis("first token", &[0.2, 0.1], 0.06),
            device_bytes: 17_250_000_000,
        };
        let text = report(Vec::new(), vec![row]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[2].split_whitespace().collect::<Vec<_>>().join(" "),
            "in out batch output tok/s of limit total tok/s first token ms of limit GB per GPU"
        );
        assert_eq!(
            lines[3].split_whitespace().collect::<Vec<_>>().join(" "),
            "4096 512 4 768 (512 to 1024) 38 % 1728 (1152 to 2304) 150 (100 to 200) 40 % 17.2"
        );
        assert_eq!(lines[2].len(), lines[3].len(), "columns stand under their heads:\n{text}");
    }

    #[test]
    fn the_median_of_an_even_number_of_runs_lies_between_the_middle_two() {
        assert_eq!(Figure::rate("x", 1, &[1.0, 0.5, 0.25, 0.125], 0.1).median, 3.0);
    }

    #[test]
    fn limits_are_told_to_programs_with_their_units() {
        let limit = DeviceLimits { name: "GPU 0".to_owned(), bandwidth: 2.0, arithmetic: 3.0 };
        let expected =
            serde_json::json!({"name": "GPU 0", "bytes_per_second": 2.0, "operations_per_second": 3.0});
        assert_eq!(serde_json::to_value(limit).unwrap(), expected);
    }
}
