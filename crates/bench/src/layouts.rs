//! Layouts of one machine beside each other: what each was expected to do, what it did, and how far apart the two are.

use serde::Serialize;

use crate::capacity::Capacity;
use crate::load::{Load, LoadError};
use crate::report::Figure;
use crate::suites::{Suite, crowd, latency, prefill};

/// What every layout is asked, the same of each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Trial {
    /// Prompts, one at a time, whose first token is waited for, in tokens.
    pub prompt_lens: Vec<usize>,
    /// Numbers of sequences that decode at once.
    pub batch_sizes: Vec<usize>,
    /// Prompt and answer of those, in tokens.
    pub decode_lens: (usize, usize),
    /// Requests submitted at once.
    pub requests: usize,
    /// Prompt and answer of those, in tokens.
    pub request_lens: (usize, usize),
}

impl Trial {
    /// Tokens before the one that is decoded, in the mean.
    #[must_use]
    pub fn context(&self) -> usize {
        self.decode_lens.0 + self.decode_lens.1 / 2
    }
}

/// What was expected of a layout, entry for entry as in [`Trial`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Expectation {
    /// Seconds to the first token behind each prompt.
    pub first_token_seconds: Vec<Option<f64>>,
    /// Seconds until each of so many sequences has one more token.
    pub step_seconds: Vec<Option<f64>>,
    /// Tokens a second, in and out, of the requests submitted at once.
    pub tokens_per_second: Option<f64>,
}

/// A figure beside what was expected.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Compared {
    /// What was measured.
    #[serde(flatten)]
    pub measured: Figure,
    /// What was expected, in the same unit.
    pub predicted: Option<f64>,
    /// Predicted over measured; 1 where the prediction holds.
    pub ratio: Option<f64>,
}

impl Compared {
    fn new(measured: Figure, predicted: Option<f64>) -> Self {
        let ratio = predicted.map(|predicted| predicted / measured.median);
        Self { measured, predicted, ratio }
    }
}

/// What one device was planned to hold, and held when all was measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeviceMemory {
    /// For example `GPU 0`.
    pub device: String,
    /// Bytes, others' included.
    pub planned_bytes: usize,
    /// The same, as the driver counts; none where nobody does.
    pub used_bytes: Option<usize>,
}

/// One layout, entry for entry as in [`Trial`]; what is absent is explained in `left_out`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayoutRow {
    /// As it is spelt on the command line.
    pub layout: String,
    /// From opening the devices to the first request.
    pub start_seconds: Option<f64>,
    /// Milliseconds to the first token behind each prompt.
    pub first_tokens: Vec<Option<Compared>>,
    /// Tokens a second of so many sequences.
    pub decode: Vec<Option<Compared>>,
    /// Tokens a second, in and out, of the requests submitted at once.
    pub crowd: Option<Compared>,
    /// Every device of the layout.
    pub memory: Vec<DeviceMemory>,
    /// What could not be measured, and why; of a layout that did not start, only why.
    pub left_out: Vec<String>,
}

impl LayoutRow {
    /// One that did not start.
    #[must_use]
    pub fn absent(layout: String, trial: &Trial, reason: String) -> Self {
        Self {
            layout,
            start_seconds: None,
            first_tokens: vec![None; trial.prompt_lens.len()],
            decode: vec![None; trial.batch_sizes.len()],
            crowd: None,
            memory: Vec::new(),
            left_out: vec![reason],
        }
    }

    /// Every figure there is.
    pub(crate) fn figures(&self) -> impl Iterator<Item = &Compared> {
        self.first_tokens.iter().chain(&self.decode).chain([&self.crowd]).flatten()
    }

    /// Whether there is any.
    #[must_use]
    pub fn is_measured(&self) -> bool {
        self.figures().next().is_some()
    }

    /// Asks a running engine all of `trial`. The row has no `memory` and no `start_seconds` yet.
    #[must_use]
    pub fn measure(
        layout: String,
        suite: &mut Suite<'_>,
        capacity: &Capacity,
        trial: &Trial,
        expected: Option<&Expectation>,
    ) -> Self {
        let mut row = Self { left_out: Vec::new(), ..Self::absent(layout, trial, String::new()) };
        let of = |predicted: fn(&Expectation) -> &Vec<Option<f64>>, index: usize| {
            expected.and_then(|expected| predicted(expected).get(index).copied().flatten())
        };
        for (index, &len) in trial.prompt_lens.iter().enumerate() {
            let predicted = of(|expected| &expected.first_token_seconds, index).map(|seconds| 1e3 * seconds);
            let fits = capacity.check_length(len, 1);
            // Speed, then time: here the time is what is told.
            let told = told(fits, || Ok(prefill(suite, &[len])?.0.remove(1)));
            row.first_tokens[index] =
                row.keep(told, predicted, || format!("the first token after {len} tokens"));
        }
        let (input_len, output_len) = trial.decode_lens;
        for (index, &batch_size) in trial.batch_sizes.iter().enumerate() {
            let seconds = of(|expected| &expected.step_seconds, index);
            let fits = capacity.check_at_once(batch_size, input_len, output_len);
            let told = told(fits, || Ok(latency(suite, &[batch_size], input_len, output_len)?.0.remove(0)));
            let predicted = seconds.map(|seconds| batch_size as f64 / seconds);
            row.decode[index] = row.keep(told, predicted, || format!("decoding, {batch_size} at once"));
        }
        let (input_len, output_len) = trial.request_lens;
        let load = Load::uniform(trial.requests, input_len, output_len);
        let fits = capacity.check_length(input_len, output_len);
        let told = told(fits, || crowd(suite, &load));
        let predicted = expected.and_then(|expected| expected.tokens_per_second);
        row.crowd = row.keep(told, predicted, || format!("{} requests at once", trial.requests));
        row
    }

    /// The figure beside its prediction; or nothing, and the reason is kept.
    fn keep(
        &mut self,
        told: Result<Figure, String>,
        predicted: Option<f64>,
        what: impl Fn() -> String,
    ) -> Option<Compared> {
        match told {
            Ok(figure) => Some(Compared::new(figure, predicted)),
            Err(reason) => {
                self.left_out.push(format!("{}: {reason}", what()));
                None
            }
        }
    }
}

/// Measures what fits.
fn told(
    fits: Result<(), String>,
    measure: impl FnOnce() -> Result<Figure, LoadError>,
) -> Result<Figure, String> {
    fits.and_then(|()| measure().map_err(|error| error.to_string()))
}

/// A prediction that was off.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Deviation {
    /// Of which layout.
    pub layout: String,
    /// Of which figure.
    pub figure: String,
    /// In which unit.
    pub unit: &'static str,
    /// What was expected.
    pub predicted: f64,
    /// What was measured.
    pub measured: f64,
    /// How far the ratio of the two is from 1.
    pub deviation: f64,
}

/// The layout that was fastest at something, and what would have been taken for it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Winner {
    /// At what, as in `--objective`.
    pub objective: String,
    /// The layout.
    pub layout: String,
    /// What it gave: seconds of one request, or tokens a second of many.
    pub measured: f64,
    /// What `auto` takes; none where nothing is predicted.
    pub auto: Option<String>,
    /// How fast that is beside the fastest, at most 1; none where it was not measured.
    pub auto_speed: Option<f64>,
}

/// The figure that is furthest from its prediction; none where nothing was predicted.
pub(crate) fn worst_figure(rows: &[LayoutRow]) -> Option<Deviation> {
    let all = rows.iter().flat_map(|row| row.figures().map(move |figure| (row, figure)));
    let deviations = all.filter_map(|(row, figure)| {
        let (predicted, ratio) = (figure.predicted?, figure.ratio?);
        Some(Deviation {
            layout: row.layout.clone(),
            figure: figure.measured.name.clone(),
            unit: figure.measured.unit,
            predicted,
            measured: figure.measured.median,
            deviation: (ratio - 1.0).abs(),
        })
    });
    deviations.max_by(|a, b| a.deviation.total_cmp(&b.deviation))
}

/// The device that holds least of what was planned, or most beyond it; none where nobody counts.
pub(crate) fn worst_memory(rows: &[LayoutRow]) -> Option<Deviation> {
    let all = rows.iter().flat_map(|row| row.memory.iter().map(move |memory| (row, memory)));
    let deviations = all.filter_map(|(row, memory)| {
        let (predicted, measured) = (memory.planned_bytes as f64, memory.used_bytes? as f64);
        Some(Deviation {
            layout: row.layout.clone(),
            figure: memory.device.clone(),
            unit: "bytes",
            predicted,
            measured,
            deviation: (predicted / measured - 1.0).abs(),
        })
    });
    deviations.max_by(|a, b| a.deviation.total_cmp(&b.deviation))
}

/// Seconds of one request of the first prompt length and `answer_len` tokens, alone: from its first token and the pace
/// of one sequence. None where either is absent.
fn single_seconds(row: &LayoutRow, trial: &Trial, answer_len: usize) -> Option<f64> {
    let alone = trial.batch_sizes.iter().position(|batch_size| *batch_size == 1)?;
    let first = row.first_tokens.first()?.as_ref()?.measured.median / 1e3;
    Some(first + answer_len as f64 / row.decode[alone].as_ref()?.measured.median)
}

/// The fastest for one request alone with an answer of `answer_len` tokens, and for many requests; `auto` has what is
/// taken for each.
pub(crate) fn winners(
    rows: &[LayoutRow],
    trial: &Trial,
    answer_len: usize,
    [latency, throughput]: [Option<String>; 2],
) -> Vec<Winner> {
    let alone = |row: &LayoutRow| single_seconds(row, trial, answer_len);
    let many = |row: &LayoutRow| row.crowd.as_ref().map(|crowd| crowd.measured.median.recip());
    let found = [
        winner(rows, ("latency", alone), latency),
        winner(rows, ("throughput", many), throughput)
            .map(|winner| Winner { measured: winner.measured.recip(), ..winner }),
    ];
    found.into_iter().flatten().collect()
}

/// The row whose `cost` is least.
fn winner(
    rows: &[LayoutRow],
    (objective, cost): (&str, impl Fn(&LayoutRow) -> Option<f64>),
    auto: Option<String>,
) -> Option<Winner> {
    let costs = rows.iter().filter_map(|row| Some((&row.layout, cost(row)?)));
    let (layout, least) = costs.clone().min_by(|(_, a), (_, b)| a.total_cmp(b))?;
    let of_auto = costs.clone().find(|(layout, _)| auto.as_ref() == Some(*layout));
    Some(Winner {
        objective: objective.to_owned(),
        layout: layout.clone(),
        measured: least,
        auto_speed: of_auto.map(|(_, cost)| least / cost),
        auto,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn trial() -> Trial {
        Trial {
            prompt_lens: vec![4096, 16_384],
            batch_sizes: vec![1, 8],
            decode_lens: (268, 64),
            requests: 512,
            request_lens: (1024, 256),
        }
    }

    fn figure(name: &str, unit: &'static str, value: f64) -> Figure {
        Figure { name: name.to_owned(), unit, ..Figure::rate("", 1, &[value.recip()], 1.0) }
    }

    /// Milliseconds, tokens a second alone and of many, each measured and predicted.
    pub(crate) fn row(layout: &str, of: [(f64, Option<f64>); 3]) -> LayoutRow {
        let [first, one, many] = of;
        let compared =
            |name, unit, (value, predicted)| Some(Compared::new(figure(name, unit, value), predicted));
        LayoutRow {
            start_seconds: Some(3.0),
            first_tokens: vec![compared("first token after 4096", "ms", first), None],
            decode: vec![compared("decode, 1 at once", "tok/s", one), None],
            crowd: compared("512 at once", "tok/s", many),
            memory: vec![DeviceMemory {
                device: "GPU 0".to_owned(),
                planned_bytes: 101_000_000_000,
                used_bytes: one.1.map(|_| 100_000_000_000),
            }],
            left_out: Vec::new(),
            ..LayoutRow::absent(layout.to_owned(), &trial(), String::new())
        }
    }

    #[test]
    fn the_worst_prediction_is_the_furthest_from_its_ratio_to_either_side() {
        let rows = [
            row("tp2", [(50.0, Some(55.0)), (400.0, Some(340.0)), (9e4, Some(9e4))]),
            row("dp2", [(80.0, Some(80.0)), (250.0, None), (1e5, Some(1.1e5))]),
        ];
        let worst = worst_figure(&rows).unwrap();
        assert_eq!((worst.layout.as_str(), worst.figure.as_str()), ("tp2", "decode, 1 at once"));
        assert!((worst.deviation - 0.15).abs() < 1e-9);
        let memory = worst_memory(&rows).unwrap();
        assert!((memory.deviation - 0.01).abs() < 1e-9 && memory.layout == "tp2");
        assert_eq!(worst_figure(&[row("cpu", [(1.0, None); 3])]), None);
        assert_eq!(worst_memory(&[LayoutRow::absent("tp4".to_owned(), &trial(), "no".to_owned())]), None);
    }

    #[test]
    fn what_auto_takes_is_held_against_the_fastest() {
        let rows = [
            row("tp2", [(50.0, None), (400.0, None), (6e4, None)]),
            row("dp2", [(80.0, None), (250.0, None), (1e5, None)]),
            LayoutRow::absent("tp4".to_owned(), &trial(), "too few GPUs".to_owned()),
        ];
        let found = winners(&rows, &trial(), 512, [Some("tp2".to_owned()), Some("tp2".to_owned())]);
        let told: Vec<_> = found.iter().map(|winner| (winner.layout.as_str(), winner.auto_speed)).collect();
        assert_eq!(told, [("tp2", Some(1.0)), ("dp2", Some(0.6))]);
        assert!((found[0].measured - (0.05 + 512.0 / 400.0)).abs() < 1e-9);
        assert!((found[1].measured - 1e5).abs() < 1e-3);
        let found = winners(&rows, &trial(), 512, [Some("tp4".to_owned()), None]);
        assert_eq!(found[0].auto_speed, None, "what did not start was not measured");
        assert_eq!((&found[1].auto, found[1].auto_speed), (&None, None));
        // Without one sequence alone nobody knows what a lone request takes.
        let many = Trial { batch_sizes: vec![8, 64], ..trial() };
        assert_eq!(winners(&rows, &many, 512, [None, None]).len(), 1);
    }
}
