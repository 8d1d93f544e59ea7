//! Cases of taking weights in: what lies in the device's memory has to be what the reference has, to the bit.

use super::{Bench, encode, rounded};
use crate::backend::Backend;
use crate::dtype::DType;
use crate::matrix::{Format, Matrix};
use crate::noise::Noise;

pub(super) fn run(bench: &mut Bench<'_>) {
    // The last has several pieces for each of the reading threads.
    for (rows, columns) in [(1, 8), (37, 104), (1001, 3584), (40_000, 896)] {
        load(bench, rows, columns);
    }
    for stored in [Format::BF16, Format::F16, Format::F32] {
        make(bench, stored);
    }
}

/// Each row of both matrices, which an embedding returns as it is.
fn compare(bench: &mut Bench<'_>, operation: &'static str, case: String, [ours, theirs]: [&Matrix; 2]) {
    // Enough rows to meet every piece, few enough to be fast.
    let step = ours.rows.div_ceil(2000);
    let ids: Vec<i32> = (0..ours.rows).step_by(step).map(|row| row as i32).collect();
    let ids = bench.integers(&ids);
    let mut out = bench.poisoned(bench.cuda.activation_dtype(), ids.cuda.rows(), ours.columns);
    bench.cuda.embed(out.cuda.view_mut(), ids.cuda.view(), ours, 0);
    bench.reference.embed(out.reference.view_mut(), ids.reference.view(), theirs, 0);
    bench.compare(operation, case, &out, 0.0);
}

fn load(bench: &mut Bench<'_>, rows: usize, columns: usize) {
    let dtype = bench.cuda.activation_dtype();
    let format = if dtype == DType::F16 { Format::F16 } else { Format::BF16 };
    let values: Vec<f32> = (0..rows * columns).map(|_| rounded(dtype, bench.random.normal())).collect();
    let bytes = encode(dtype, &values);
    // The planted mistake: rows one element late.
    let mut told = bytes.clone();
    told.rotate_left(2 * bench.missing());
    let ours = bench.cuda.load_matrix(format, rows, columns, &told).expect("there is memory for a test");
    let theirs = bench.reference.load_matrix(format, rows, columns, &bytes).expect("there is memory");
    compare(bench, "load_matrix", format!("{rows} x {columns}, to the bit"), [&ours, &theirs]);
}

fn make(bench: &mut Bench<'_>, stored: Format) {
    let format = if bench.cuda.activation_dtype() == DType::F16 { Format::F16 } else { Format::BF16 };
    let piece = |key, rows, first: usize| Noise {
        key,
        spread: 0.0289,
        stored,
        tensor_columns: 152_064,
        rows,
        columns: first..first + 1000,
    };
    let first = 151_000 + 8 * bench.missing();
    let ours = [piece(7, 3..40, first), piece(u64::MAX - 9, 0..300, first)];
    let theirs = [piece(7, 3..40, 151_000), piece(u64::MAX - 9, 0..300, 151_000)];
    let ours = bench.cuda.make_matrix(format, &ours).expect("there is memory for a test");
    let theirs = bench.reference.make_matrix(format, &theirs).expect("there is memory for a test");
    compare(bench, "make_matrix", format!("337 x 1000 stored as {stored:?}, to the bit"), [&ours, &theirs]);
}
