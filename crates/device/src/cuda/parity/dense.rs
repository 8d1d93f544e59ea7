//! Cases of the operations on whole rows: embedding, norms, products, activation, gathering.

use super::paged::HEADS;
use super::{Bench, Twin, encode, rounded};
use crate::backend::Backend;
use crate::batch::BatchLayout;
use crate::cpu::quant;
use crate::dtype::DType;
use crate::matrix::Format;

pub(super) fn run(bench: &mut Bench<'_>) {
    for (tokens, width) in [(1, 3584), (17, 896), (300, 72)] {
        embed(bench, tokens, width);
    }
    for (rows, width) in [(1, 3584), (3, 896), (65, 5120), (5, 101), (2, 18_944)] {
        norms(bench, rows, width);
    }
    for (rows, width) in [(1, 18_944), (9, 4864), (33, 77)] {
        silu_mul(bench, rows, width);
    }
    for (tokens, width) in [(7, 3584), (130, 51)] {
        gather(bench, tokens, width);
    }
    for (tokens, rows, columns) in [
        (1, 4608, 3584),
        (2, 3584, 18_944),
        (3, 37, 64),
        (5, 1000, 896),
        (7, 130, 4864),
        (8, 3584, 3584),
        (9, 4608, 3584),
        (17, 333, 72),
        (33, 1152, 896),
        (64, 3584, 3584),
        (257, 4864, 896),
    ] {
        for biased in [false, true] {
            matmul(bench, [tokens, rows, columns], biased, DType::BF16);
        }
    }
    for tokens in [1, 8, 19] {
        matmul(bench, [tokens, 5001, 896], false, DType::F32);
    }
    for (tokens, width, columns) in [(1, 4864, 896), (3, 37, 64), (8, 1001, 3584), (9, 300, 128)] {
        matmul_silu_mul(bench, tokens, width, columns);
    }
    for format in
        [Format::F32, Format::F16, Format::BF16, Format::Q8_0, Format::Q4_0, Format::Q4K, Format::Q6K]
    {
        formats(bench, format);
    }
}

fn embed(bench: &mut Bench<'_>, tokens: usize, width: usize) {
    let dtype = bench.cuda.activation_dtype();
    let table: Vec<f32> = (0..50 * width).map(|_| rounded(dtype, bench.random.normal())).collect();
    let bytes = encode(DType::F32, &table);
    // Some ids lie before and some behind the 50 that are here.
    let ids: Vec<i32> = (0..tokens).map(|_| 90 + bench.random.below(70) as i32).collect();
    let ids = bench.integers(&ids);
    let mut out = bench.poisoned(dtype, tokens, width);
    let load = |backend: &dyn Backend| {
        backend.load_matrix(Format::F32, 50, width, &bytes).expect("there is memory for a test")
    };
    let (ours, theirs) = (load(bench.cuda), load(bench.reference));
    bench.cuda.embed(out.cuda.view_mut(), ids.cuda.view(), &ours, 100 + bench.missing());
    bench.reference.embed(out.reference.view_mut(), ids.reference.view(), &theirs, 100);
    bench.compare("embed", format!("tokens {tokens}, width {width}"), &out, 0.0);
}

fn norms(bench: &mut Bench<'_>, rows: usize, width: usize) {
    let dtype = bench.cuda.activation_dtype();
    let (x, mut residual) = (bench.activations(rows, width), bench.activations(rows, width));
    let weight: Vec<f32> = (0..width).map(|_| bench.random.normal()).collect();
    let weight = bench.twin(DType::F32, 1, width, &weight);
    let mut out = bench.poisoned(dtype, rows, width);
    let case = format!("rows {rows}, width {width}");
    let told = rows - bench.missing();
    let (ours, theirs) = (out.cuda.view_mut().slice_rows(0..told), out.reference.view_mut());
    bench.cuda.rms_norm(ours, x.cuda.view().slice_rows(0..told), weight.cuda.view(), 1e-6);
    bench.reference.rms_norm(theirs, x.reference.view(), weight.reference.view(), 1e-6);
    bench.compare("rms_norm", case.clone(), &out, bench.rounding());

    let mut out = bench.poisoned(dtype, rows, width);
    let (ours, theirs) = (out.cuda.view_mut().slice_rows(0..told), out.reference.view_mut());
    let ours_residual = residual.cuda.view_mut().slice_rows(0..told);
    bench.cuda.add_rms_norm(ours, ours_residual, x.cuda.view().slice_rows(0..told), weight.cuda.view(), 1e-6);
    let residual_there = residual.reference.view_mut();
    bench.reference.add_rms_norm(theirs, residual_there, x.reference.view(), weight.reference.view(), 1e-6);
    bench.compare("add_rms_norm", case.clone(), &out, bench.rounding());
    bench.compare("add_rms_norm", format!("{case}: residual"), &residual, bench.rounding());
}

fn silu_mul(bench: &mut Bench<'_>, rows: usize, width: usize) {
    let gate_up = bench.activations(rows, 2 * width);
    let mut out = bench.poisoned(bench.cuda.activation_dtype(), rows, width);
    let told = rows - bench.missing();
    let ours = out.cuda.view_mut().slice_rows(0..told);
    bench.cuda.silu_mul(ours, gate_up.cuda.view().slice_rows(0..told));
    bench.reference.silu_mul(out.reference.view_mut(), gate_up.reference.view());
    bench.compare("silu_mul", format!("rows {rows}, width {width}"), &out, bench.rounding());
}

fn gather(bench: &mut Bench<'_>, tokens: usize, width: usize) {
    let x = bench.activations(tokens, width);
    let layout = |step: usize, first: usize| BatchLayout {
        sample_rows: (first..tokens).step_by(step).map(|row| row as i32).collect(),
        block_size: 16,
        ..BatchLayout::default()
    };
    let (ours, theirs) = (layout(3, bench.missing()), layout(3, 0));
    let rows = theirs.sample_rows.len();
    let told = ours.sample_rows.len();
    let (ours, theirs) = (bench.cuda.plan(ours, HEADS[0]), bench.reference.plan(theirs, HEADS[0]));
    let mut out = bench.poisoned(bench.cuda.activation_dtype(), rows, width);
    bench.cuda.gather_sample_rows(out.cuda.view_mut().slice_rows(0..told), x.cuda.view(), &ours);
    bench.reference.gather_sample_rows(out.reference.view_mut(), x.reference.view(), &theirs);
    bench.compare("gather_sample_rows", format!("tokens {tokens}, width {width}"), &out, 0.0);
}

fn matmul(bench: &mut Bench<'_>, [tokens, rows, columns]: [usize; 3], biased: bool, out_dtype: DType) {
    let dtype = bench.cuda.activation_dtype();
    let out_dtype = if out_dtype == DType::F32 { DType::F32 } else { dtype };
    let x = bench.activations(tokens, columns);
    let weight: Vec<f32> = (0..rows * columns).map(|_| rounded(dtype, bench.random.normal())).collect();
    let bias: Vec<f32> = (0..rows).map(|_| rounded(dtype, 10.0 * bench.random.normal())).collect();
    let bias = bench.twin(DType::F32, 1, rows, &bias);
    let bytes = encode(DType::F32, &weight);
    let mut out = bench.poisoned(out_dtype, tokens, rows);
    let load = |backend: &dyn Backend| {
        backend.load_matrix(Format::F32, rows, columns, &bytes).expect("there is memory for a test")
    };
    let (ours, theirs) = (load(bench.cuda), load(bench.reference));
    let told = tokens - bench.missing();
    let ours_out = out.cuda.view_mut().slice_rows(0..told);
    let ours_bias = Some(bias.cuda.view()).filter(|_| biased);
    bench.cuda.matmul(ours_out, x.cuda.view().slice_rows(0..told), &ours, ours_bias);
    let bias = Some(bias.reference.view()).filter(|_| biased);
    bench.reference.matmul(out.reference.view_mut(), x.reference.view(), &theirs, bias);
    let limit = if out_dtype == DType::F32 { 1e-4 } else { bench.rounding() };
    let case = format!("{tokens} x {rows} x {columns}, bias {biased}, to {out_dtype:?}");
    bench.compare("matmul", case, &out, limit);
}

fn matmul_silu_mul(bench: &mut Bench<'_>, tokens: usize, width: usize, columns: usize) {
    let dtype = bench.cuda.activation_dtype();
    let x = bench.activations(tokens, columns);
    // Products near 1, where the gate bends.
    let scale = 1.0 / (columns as f32).sqrt();
    let weight: Vec<f32> =
        (0..2 * width * columns).map(|_| rounded(dtype, scale * bench.random.normal())).collect();
    let bytes = encode(DType::F32, &weight);
    let mut gate_up = bench.poisoned(dtype, tokens, 2 * width);
    let mut out = bench.poisoned(dtype, tokens, width);
    let load = |backend: &dyn Backend| {
        backend.load_matrix(Format::F32, 2 * width, columns, &bytes).expect("there is memory for a test")
    };
    let (ours, theirs) = (load(bench.cuda), load(bench.reference));
    let told = tokens - bench.missing();
    let (ours_out, room) =
        (out.cuda.view_mut().slice_rows(0..told), gate_up.cuda.view_mut().slice_rows(0..told));
    bench.cuda.matmul_silu_mul(ours_out, room, x.cuda.view().slice_rows(0..told), &ours);
    let room = gate_up.reference.view_mut();
    bench.reference.matmul_silu_mul(out.reference.view_mut(), room, x.reference.view(), &theirs);
    // Above eight tokens gate and up are rounded before they meet.
    let limit = if tokens <= 8 { bench.rounding() } else { 3.0 * bench.rounding() };
    bench.compare("matmul_silu_mul", format!("{tokens} x 2 * {width} x {columns}"), &out, limit);
}

/// A weight in each encoding, against the same numbers dequantised.
fn formats(bench: &mut Bench<'_>, format: Format) {
    let (rows, columns) = (33, 1024);
    let mut bytes: Vec<u8> =
        (0..rows * format.row_bytes(columns)).map(|_| bench.random.bits() as u8).collect();
    tame(format, &mut bytes);
    let mut values = vec![0.0; rows * columns];
    quant::dequantize(format, &bytes, &mut values);
    let x = bench.activations(3, columns);
    let Twin { mut cuda, mut reference } = bench.poisoned(DType::F32, 3, rows);
    let ours = bench.cuda.load_matrix(format, rows, columns, &bytes).expect("there is memory for a test");
    let there = encode(DType::F32, &values);
    let theirs = bench.reference.load_matrix(Format::F32, rows, columns, &there).expect("there is memory");
    let told = 3 - bench.missing();
    let ours_x = x.cuda.view().slice_rows(0..told);
    bench.cuda.matmul(cuda.view_mut().slice_rows(0..told), ours_x, &ours, None);
    bench.reference.matmul(reference.view_mut(), x.reference.view(), &theirs, None);
    let out = Twin { cuda, reference };
    bench.compare("load_matrix", format!("{format:?}, {rows} x {columns}"), &out, bench.rounding());
}

/// Random bytes are no sensible floats: sets the exponents of every float in them.
fn tame(format: Format, bytes: &mut [u8]) {
    // Each float's high byte lies at these places of a block; half-precision scales become 2^-7 to 2^-3.
    let (places, mask, base): (&[usize], u8, u8) = match format {
        Format::F32 => (&[3], 0x80, 0x3f),
        Format::BF16 => (&[1], 0x80, 0x3f),
        Format::F16 => (&[1], 0x8f, 0x30),
        Format::Q6K => (&[209], 0x83, 0x20),
        Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => (&[1, 3], 0x83, 0x20),
        Format::Q8_0 | Format::Q4_0 | Format::Q5_0 => (&[1], 0x83, 0x20),
    };
    for block in bytes.chunks_exact_mut(format.block_bytes()) {
        for place in places {
            block[*place] = block[*place] & mask | base;
        }
    }
}
