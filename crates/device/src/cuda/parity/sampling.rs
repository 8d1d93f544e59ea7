//! Cases of sampling: the same tokens as the CPU's, all but draws that fall on the edge of two tokens.

use super::{Bench, Outcome};
use crate::backend::Backend;
use crate::dtype::DType;
use crate::sampling::{SampleRow, SampledRow, SeenToken};

const VOCAB: usize = 151_665;
const WIDTH: usize = 151_936;
const ROWS: usize = 64;

pub(super) fn run(bench: &mut Bench<'_>) {
    let plain = SampleRow {
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        seen: Vec::new(),
        edits: Vec::new(),
        seed: 0,
        position: 0,
        logprobs: None,
    };
    let seen = (0..40).map(|i| SeenToken { token: i * 3700, output_count: i % 3 }).collect();
    let greedy = SampleRow { temperature: 0.0, ..plain.clone() };
    let edits = (0..500).map(|i| (i * 300, if i % 2 == 0 { f32::NEG_INFINITY } else { 4.0 })).collect();
    let cases = [
        ("greedy", greedy.clone(), 0.0),
        ("greedy, edits, logprobs 20", SampleRow { edits, logprobs: Some(20), ..greedy.clone() }, 0.0),
        ("greedy, penalties", penalised(SampleRow { seen, ..greedy }), 0.0),
        ("temperature 0.7", SampleRow { temperature: 0.7, ..plain.clone() }, 0.05),
        ("top-k 50", SampleRow { top_k: 50, ..plain.clone() }, 0.05),
        ("top-k 1", SampleRow { top_k: 1, ..plain.clone() }, 0.0),
        ("top-p 0.9", SampleRow { top_p: 0.9, ..plain.clone() }, 0.05),
        (
            "top-k 100, top-p 0.8, min-p 0.05",
            SampleRow { top_k: 100, top_p: 0.8, min_p: 0.05, ..plain.clone() },
            0.05,
        ),
        (
            "temperature 1.5, min-p 0.1, logprobs 0",
            SampleRow { temperature: 1.5, min_p: 0.1, logprobs: Some(0), ..plain },
            0.05,
        ),
    ];
    for (name, row, limit) in cases {
        // Peaked rows, as models make them, and flat ones; the second kind has many equals.
        for (kind, sharpness, steps) in [("peaked", 3.0, 0.0), ("with equals", 2.0, 4.0)] {
            check(bench, format!("{name}, {kind}"), &row, (sharpness, steps), limit);
        }
    }
    faults(bench);
}

fn penalised(row: SampleRow) -> SampleRow {
    SampleRow { repetition_penalty: 1.3, presence_penalty: 0.5, frequency_penalty: 0.25, ..row }
}

/// Logits of `ROWS` rows; when `steps` is not 0, rounded to that many values a unit.
fn logits(bench: &mut Bench<'_>, sharpness: f32, steps: f32) -> Vec<f32> {
    (0..ROWS * WIDTH)
        .map(|_| {
            let value = sharpness * bench.random.normal();
            if steps == 0.0 { value } else { (value * steps).round() / steps }
        })
        .collect()
}

fn sample(bench: &Bench<'_>, values: &[f32], rows: &[SampleRow]) -> (Vec<SampledRow>, Vec<SampledRow>) {
    let mut twin = bench.twin(DType::F32, ROWS, WIDTH, values);
    let mut tokens = bench.integers(&[-1; ROWS]);
    let vocab = VOCAB - bench.missing();
    bench.cuda.sample(twin.cuda.view_mut(), vocab, rows, tokens.cuda.view_mut());
    bench.reference.sample(twin.reference.view_mut(), VOCAB, rows, tokens.reference.view_mut());
    let mut ours = bench.cuda.collect().unwrap_or_default();
    // What stays on the device for the next step must be what comes to the host.
    for (row, token) in ours.iter_mut().zip(Bench::integers_of(bench.cuda, &tokens.cuda)) {
        row.finite &= row.token == token.cast_unsigned();
    }
    (ours, bench.reference.collect().unwrap_or_default())
}

/// The share of rows that differ.
fn check(bench: &mut Bench<'_>, case: String, row: &SampleRow, (sharpness, steps): (f32, f32), limit: f32) {
    let mut values = logits(bench, sharpness, steps);
    // The last token of the vocabulary is sometimes the likeliest, and what lies behind it always is.
    for (index, row) in values.chunks_exact_mut(WIDTH).enumerate() {
        row[VOCAB - 1] = if index % 2 == 0 { 30.0 } else { -30.0 };
        row[VOCAB..].fill(100.0);
    }
    let rows: Vec<SampleRow> =
        (0..ROWS as u64).map(|i| SampleRow { seed: i * 77, position: i, ..row.clone() }).collect();
    let (ours, theirs) = sample(bench, &values, &rows);
    let same = ours.iter().zip(&theirs).filter(|(a, b)| alike(a, b)).count();
    let error = 1.0 - same as f32 / ROWS as f32;
    bench.outcomes.push(Outcome { operation: "sample", case, error, limit });
}

fn alike(a: &SampledRow, b: &SampledRow) -> bool {
    let near = |a: f32, b: f32| (a - b).abs() <= 1e-4 * (1.0 + b.abs());
    let tops =
        a.top.len() == b.top.len() && a.top.iter().zip(&b.top).all(|(a, b)| a.0 == b.0 && near(a.1, b.1));
    a.token == b.token && a.finite == b.finite && near(a.logprob, b.logprob) && tops
}

/// One NaN, one infinity, and a row in which every token is forbidden.
fn faults(bench: &mut Bench<'_>) {
    let mut values = logits(bench, 1.0, 0.0);
    values[WIDTH + 17] = f32::NAN;
    values[2 * WIDTH + VOCAB - 1] = f32::INFINITY;
    values[3 * WIDTH + VOCAB] = f32::NAN;
    let row = |edits: Vec<(u32, f32)>| SampleRow {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        seen: Vec::new(),
        edits,
        seed: 0,
        position: 0,
        logprobs: Some(2),
    };
    let mut rows = vec![row(Vec::new()); ROWS];
    rows[4] = row((0..VOCAB as u32).map(|token| (token, f32::NEG_INFINITY)).collect());
    let (ours, theirs) = sample(bench, &values, &rows);
    let wrong = ours.iter().zip(&theirs).filter(|(a, b)| !alike(a, b)).count() + ROWS - ours.len();
    let found = theirs.iter().filter(|row| !row.finite).count();
    let error = if found == 3 { wrong as f32 / ROWS as f32 } else { f32::INFINITY };
    let case = "NaN, infinity, all forbidden".to_owned();
    bench.outcomes.push(Outcome { operation: "sample", case, error, limit: 0.0 });
}
