//! The comparison of layouts as one table for people, and its summary for programs.

use std::fmt;

use serde::Serialize;

use crate::layouts::{Compared, Deviation, LayoutRow, Trial, Winner, winners, worst_figure, worst_memory};
use crate::report::{describe_limits, rounded};
use crate::roofline::DeviceLimits;

/// Layouts this close to the fastest are as good.
const AS_GOOD: f64 = 0.95;

/// What `bench layouts` found out, beside its rows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayoutSummary {
    /// The model's name.
    pub model: String,
    /// What each device was measured to do at the start of this run.
    pub limits: Vec<DeviceLimits>,
    /// What each layout was asked.
    pub trial: Trial,
    /// Tokens of the answer of the request that latency is judged by.
    pub answer_len: usize,
    /// Why nothing is predicted; none where something is.
    pub unpredicted: Option<String>,
    /// The fastest for one request alone, and for many.
    pub fastest: Vec<Winner>,
    /// The figure that is furthest from its prediction.
    pub worst: Option<Deviation>,
    /// The device whose memory is furthest from the plan.
    pub worst_memory: Option<Deviation>,
}

impl LayoutSummary {
    /// Draws the conclusions from `rows`; `auto` has what is taken for latency and for throughput.
    #[must_use]
    pub fn conclude(self, rows: &[LayoutRow], auto: [Option<String>; 2]) -> Self {
        Self {
            fastest: winners(rows, &self.trial, self.answer_len, auto),
            worst: worst_figure(rows),
            worst_memory: worst_memory(rows),
            ..self
        }
    }
}

/// The rows and what follows from them, for people.
#[derive(Clone, Debug)]
pub struct LayoutTable<'a> {
    /// One for each layout.
    pub rows: &'a [LayoutRow],
    /// What follows from them.
    pub summary: &'a LayoutSummary,
}

/// A group of three columns.
const GROUP: usize = 30;

impl fmt::Display for LayoutTable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rows, summary } = self;
        writeln!(f, "{}", summary.model)?;
        write!(f, "{}", describe_limits(&summary.limits))?;
        let width = rows.iter().map(|row| row.layout.len()).max().unwrap_or(0).max("layout".len());
        self.write_main(f, width)?;
        self.write_others(f, width)?;
        for row in rows.iter().filter(|row| row.is_measured()) {
            for reason in &row.left_out {
                writeln!(f, "  {} left out: {reason}", row.layout)?;
            }
        }
        summary.fastest.iter().try_for_each(|winner| writeln!(f, "  {}", told(winner, summary)))?;
        self.write_worst(f)
    }
}

impl LayoutTable<'_> {
    /// What the choice of a layout is judged by.
    fn write_main(&self, f: &mut fmt::Formatter<'_>, width: usize) -> fmt::Result {
        let Self { rows, summary: LayoutSummary { trial, .. } } = self;
        let first =
            trial.prompt_lens.first().map_or(String::new(), |len| format!("first token after {len}, ms"));
        let one = trial.batch_sizes.first().map_or(String::new(), |size| format!("tok/s, {size} at once"));
        let (input_len, output_len) = trial.request_lens;
        let many = format!("tok/s, {} x {input_len}+{output_len}", trial.requests);
        let heads = [first, one, many].map(|head| format!("  {head:>GROUP$}")).concat();
        writeln!(f, "  {:width$}{heads}  {:>15}", "", "GB of a device")?;
        let group = format!("  {:>10} {:>10} {:>8}", "predicted", "measured", "ratio");
        writeln!(f, "  {:width$}{}  {:>7} {:>7}", "layout", group.repeat(3), "planned", "used")?;
        for row in *rows {
            write!(f, "  {:width$}", row.layout)?;
            if !row.is_measured() {
                writeln!(f, "  {}", row.left_out.join("; "))?;
                continue;
            }
            let first = |figures: &[Option<Compared>]| cells(figures.first().and_then(Option::as_ref));
            write!(f, "{}{}{}", first(&row.first_tokens), first(&row.decode), cells(row.crowd.as_ref()))?;
            writeln!(f, "  {}", memory(row))?;
        }
        Ok(())
    }

    /// Longer prompts and larger batches, where there are some.
    fn write_others(&self, f: &mut fmt::Formatter<'_>, width: usize) -> fmt::Result {
        let Self { rows, summary: LayoutSummary { trial, .. } } = self;
        let lens = trial.prompt_lens.iter().skip(1).map(|len| format!("ms after {len}"));
        let sizes = trial.batch_sizes.iter().skip(1).map(|size| format!("tok/s x {size}"));
        let heads: Vec<String> = lens.chain(sizes).map(|head| format!("  {head:>17}")).collect();
        if heads.is_empty() {
            return Ok(());
        }
        writeln!(f, "  {:width$}{}   measured (ratio)", "layout", heads.concat())?;
        for row in rows.iter().filter(|row| row.is_measured()) {
            let others = row.first_tokens.iter().skip(1).chain(row.decode.iter().skip(1));
            let cells = others.map(|figure| match figure {
                None => format!("  {:>17}", "-"),
                Some(Compared { measured, ratio, .. }) => {
                    let ratio = ratio.map_or(String::new(), |ratio| format!(" ({ratio:.2})"));
                    format!("  {:>17}", format!("{}{ratio}", rounded(measured.median)))
                }
            });
            writeln!(f, "  {:width$}{}", row.layout, cells.collect::<String>())?;
        }
        Ok(())
    }

    /// The last line: whether predictions hold.
    fn write_worst(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LayoutSummary { worst, worst_memory, unpredicted, .. } = self.summary;
        let figures = match (worst, unpredicted) {
            (Some(worst), _) => format!(
                "ratios are predicted / measured: off by {:.1} % at worst ({}, {}: {} {unit} predicted, {} {unit} measured)",
                100.0 * worst.deviation,
                worst.layout,
                worst.figure,
                rounded(worst.predicted),
                rounded(worst.measured),
                unit = worst.unit,
            ),
            (None, Some(reason)) => format!("nothing is predicted: {reason}"),
            (None, None) => "nothing that was predicted could be measured".to_owned(),
        };
        let memory = worst_memory.as_ref().map_or(String::new(), |worst| {
            let percent = 100.0 * worst.deviation;
            format!("; memory by {percent:.1} % ({}, {})", worst.layout, worst.figure)
        });
        writeln!(f, "  {figures}{memory}")
    }
}

/// Predicted, measured and their ratio.
fn cells(figure: Option<&Compared>) -> String {
    let Some(figure) = figure else { return format!("  {:>10} {:>10} {:>8}", "-", "-", "-") };
    let predicted = figure.predicted.map_or("-".to_owned(), rounded);
    let ratio = figure.ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
    format!("  {predicted:>10} {:>10} {ratio:>8}", rounded(figure.measured.median))
}

/// Planned and used, of the device for which most is planned.
fn memory(row: &LayoutRow) -> String {
    let gigabytes = |bytes: usize| format!("{:.1}", bytes as f64 / 1e9);
    match row.memory.iter().max_by_key(|memory| memory.planned_bytes) {
        None => format!("{:>7} {:>7}", "-", "-"),
        Some(fullest) => {
            let used = fullest.used_bytes.map_or("-".to_owned(), gigabytes);
            format!("{:>7} {used:>7}", gigabytes(fullest.planned_bytes))
        }
    }
}

/// Which layout was fastest at something, and whether `auto` knew.
fn told(winner: &Winner, summary: &LayoutSummary) -> String {
    let fastest = match winner.objective.as_str() {
        "latency" => format!(
            "one request alone, {} in and {} out: {} is the fastest, {:.2} s",
            summary.trial.prompt_lens[0], summary.answer_len, winner.layout, winner.measured
        ),
        _ => format!("many requests: {} is the fastest, {} tok/s", winner.layout, rounded(winner.measured)),
    };
    let objective = &winner.objective;
    let auto = match (&winner.auto, winner.auto_speed) {
        (None, _) => return fastest,
        (Some(auto), None) => {
            format!("`auto` takes {auto} for {objective}, which was not measured")
        }
        (Some(auto), Some(_)) if *auto == winner.layout => format!("`auto` takes it for {objective}"),
        (Some(auto), Some(speed)) if AS_GOOD <= speed => {
            format!("`auto` takes {auto} for {objective}, {speed:.2} of its speed: as good")
        }
        (Some(auto), Some(speed)) => {
            format!("`auto` takes {auto} for {objective}, {speed:.2} of its speed: wrong")
        }
    };
    format!("{fastest}; {auto}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layouts::tests::{row, trial};

    fn text(rows: &[LayoutRow], unpredicted: Option<&str>, auto: [Option<&str>; 2]) -> String {
        let limits =
            vec![DeviceLimits { name: "GPU 0".to_owned(), bandwidth: 4.41e12, arithmetic: 7.612e14 }];
        let summary = LayoutSummary {
            model: "7b".to_owned(),
            limits,
            trial: trial(),
            answer_len: 512,
            unpredicted: unpredicted.map(str::to_owned),
            fastest: Vec::new(),
            worst: None,
            worst_memory: None,
        };
        let summary = summary.conclude(rows, auto.map(|auto| auto.map(str::to_owned)));
        LayoutTable { rows, summary: &summary }.to_string()
    }

    #[test]
    fn layouts_stand_beside_each_other_and_the_last_line_judges() {
        let rows = [
            row("tp2", [(50.0, Some(55.0)), (400.0, Some(340.0)), (9e4, Some(9e4))]),
            row("dp2", [(80.0, Some(80.0)), (250.0, Some(251.0)), (1e5, Some(1.1e5))]),
            LayoutRow::absent("tp4".to_owned(), &trial(), "there are 2 GPUs".to_owned()),
        ];
        let text = text(&rows, None, [Some("tp2"), Some("tp2")]);
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let lines: Vec<String> = text.lines().map(words).collect();
        assert_eq!(lines[..2], ["7b", "GPU 0: reads 4410 GB/s, multiplies at 761 TFLOP/s"]);
        assert_eq!(
            lines[2],
            "first token after 4096, ms tok/s, 1 at once tok/s, 512 x 1024+256 GB of a device"
        );
        assert_eq!(lines[4], "tp2 55.0 50.0 1.10 340 400 0.85 90000 90000 1.00 101.0 100.0");
        assert_eq!(lines[6], "tp4 there are 2 GPUs");
        assert_eq!(lines[8], "tp2 - -");
        assert_eq!(
            lines[10],
            "one request alone, 4096 in and 512 out: tp2 is the fastest, 1.33 s; `auto` takes it for latency"
        );
        assert_eq!(
            lines[11],
            "many requests: dp2 is the fastest, 100000 tok/s; `auto` takes tp2 for throughput, 0.90 of its speed: wrong"
        );
        let judged = "ratios are predicted / measured: off by 15.0 % at worst (tp2, decode, 1 at once: 340 tok/s predicted, \
                      400 tok/s measured); memory by 1.0 % (dp2, GPU 0)";
        assert_eq!(lines[12..], [judged]);
        let columns: Vec<usize> = text.lines().skip(2).take(4).map(str::len).collect();
        assert!(columns.iter().all(|len| *len == columns[0]), "columns stand under their heads:\n{text}");
    }

    #[test]
    fn where_nothing_is_predicted_the_fastest_is_told_and_why_there_is_no_ratio() {
        let rows = [row("tp2", [(50.0, None), (400.0, None), (9e4, None)])];
        let text = text(&rows, Some("this is a CPU"), [None, None]);
        assert!(text.contains("tp2 is the fastest, 90000 tok/s\n"), "{text}");
        assert!(text.ends_with("  nothing is predicted: this is a CPU\n"), "{text}");
    }
}
