//! Measures attention, sampling and the row-wise operations on this machine's CPU, with each set of instructions.
//!
//! `cargo run --release -p phalanx-device --example operation_speed -- [threads]`; each line is the best of several runs.
#![allow(clippy::print_stdout, reason = "an example prints what it measured")]

use std::time::Instant;

use phalanx_device::backend::{Heads, KvLayer};
use phalanx_device::collective::alone::Alone;
use phalanx_device::cpu::Cpu;
use phalanx_device::cpu::features::Features;
use phalanx_device::cpu::philox::uniform;
use phalanx_device::{Arena, BatchLayout, DType, Device, SampleRow, Tensor};

const BLOCK_SIZE: usize = 16;
/// Qwen2.5-0.5B.
const SMALL: Heads = Heads { num_heads: 14, num_kv_heads: 2, head_dim: 64, group_size: 7, group_offset: 0 };
/// Qwen2.5-7B.
const LARGE: Heads = Heads { num_heads: 28, num_kv_heads: 4, head_dim: 128, group_size: 7, group_offset: 0 };

fn main() {
    let threads = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(2);
    for features in Features::available() {
        let cpu = Cpu::with_features(threads, features).expect("at least one thread");
        let device = Device::new(Box::new(cpu), Box::new(Alone), Box::new(Alone));
        println!("{}", device.describe());
        attention(&device);
        sampling(&device);
        rows(&device);
    }
}

/// Microseconds of the best run in half a second.
fn best(mut run: impl FnMut()) -> f64 {
    let start = Instant::now();
    let mut best = f64::INFINITY;
    while start.elapsed().as_millis() < 500 || best.is_infinite() {
        let start = Instant::now();
        run();
        best = best.min(start.elapsed().as_secs_f64() * 1e6);
    }
    best
}

fn tensor(device: &Device, dtype: DType, rows: usize, width: usize) -> Tensor {
    device.arena(Arena::tensor_bytes(dtype, rows, width)).expect("memory").tensor(dtype, rows, width)
}

/// Random numbers in -1 .. 1.
fn random(device: &Device, rows: usize, width: usize) -> Tensor {
    let values: Vec<f32> = (0..rows * width).map(|at| uniform(1, at as u64) as f32 * 2.0 - 1.0).collect();
    device.tensor_f32(rows, width, &values).expect("memory")
}

fn attention(device: &Device) {
    for (heads, sequences, context, rows) in [
        (SMALL, 1, 512, 1),
        (SMALL, 1, 16_384, 1),
        (SMALL, 8, 1024, 1),
        (SMALL, 1, 512, 64),
        (SMALL, 1, 512, 512),
        (SMALL, 1, 2048, 2048),
        (SMALL, 1, 16_384, 512),
        (LARGE, 1, 4096, 1),
        (LARGE, 1, 2048, 512),
    ] {
        let blocks_per_row = context / BLOCK_SIZE;
        let num_blocks = sequences * blocks_per_row;
        let cache_rows = num_blocks * heads.num_kv_heads * BLOCK_SIZE;
        let kv = KvLayer {
            keys: tensor(device, DType::F16, cache_rows, heads.head_dim),
            values: tensor(device, DType::F16, cache_rows, heads.head_dim),
            num_blocks,
            block_size: BLOCK_SIZE,
        };
        let layout = BatchLayout {
            positions: (0..sequences).flat_map(|_| context - rows..context).map(|at| at as i32).collect(),
            slots: vec![0; sequences * rows],
            query_starts: (0..=sequences).map(|index| (index * rows) as i32).collect(),
            context_lens: vec![context as i32; sequences],
            block_tables: (0..num_blocks as i32).collect(),
            blocks_per_row,
            block_size: BLOCK_SIZE,
            ..BatchLayout::default()
        };
        let plan = device.plan(layout, heads);
        let qkv = random(device, sequences * rows, heads.qkv_width());
        let mut out = tensor(device, DType::F32, sequences * rows, heads.num_heads * heads.head_dim);
        let time = best(|| device.attention(out.view_mut(), qkv.view(), &kv, &plan, heads));
        // Two products of the head's size for each pair of a query and a key it sees.
        let pairs = (context - rows) * rows + rows * (rows + 1) / 2;
        let work = 4 * sequences * heads.num_heads * pairs * heads.head_dim;
        println!(
            "  attention {}:{} heads of {}, {sequences} x {rows} rows, context {context}: {time:.0} us, {:.1} GFLOP/s",
            heads.num_heads,
            heads.num_kv_heads,
            heads.head_dim,
            work as f64 / time / 1e3
        );
    }
}

fn sampling(device: &Device) {
    let (width, vocab) = (151_936, 151_665);
    let greedy = SampleRow {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        seen: vec![],
        edits: vec![],
        seed: 1,
        position: 0,
        logprobs: None,
    };
    let warm = SampleRow { temperature: 0.7, ..greedy.clone() };
    let ways = [
        ("greedy", greedy.clone()),
        ("greedy, 5 logprobs", SampleRow { logprobs: Some(5), ..greedy }),
        ("temperature", warm.clone()),
        ("temperature, top-p 0.9", SampleRow { top_p: 0.9, ..warm.clone() }),
        ("temperature, top-k 20, top-p 0.8", SampleRow { top_k: 20, top_p: 0.8, ..warm.clone() }),
        ("temperature, min-p 0.05", SampleRow { min_p: 0.05, ..warm }),
    ];
    // Spread 2.4 with a long tail upwards, as a language model's; and flat, the worst case.
    for (shape, steep) in [("steep", 1.0), ("flat", 0.0)] {
        let logits: Vec<f32> = (0..width)
            .map(|at| {
                let x = uniform(3, at as u64) as f32;
                x + steep * (4.0 * x - (1.0 - uniform(4, at as u64) as f32).ln())
            })
            .collect();
        let mut logits = device.tensor_f32(1, width, &logits).expect("memory");
        let mut token = tensor(device, DType::I32, 1, 1);
        for (name, how) in &ways {
            let rows = std::slice::from_ref(how);
            let time = best(|| device.sample(logits.view_mut(), vocab, rows, token.view_mut()));
            println!("  sampling {name}, {shape} row: {time:.0} us");
        }
    }
}

fn rows(device: &Device) {
    for (rows, width) in [(1, 896), (512, 896), (512, 3584)] {
        let (x, weight) = (random(device, rows, width), random(device, 1, width));
        let mut residual = random(device, rows, width);
        let mut out = tensor(device, DType::F32, rows, width);
        let norm = best(|| {
            device.add_rms_norm(out.view_mut(), residual.view_mut(), x.view(), weight.view(), 1e-6);
        });
        let gate_up = random(device, rows, 2 * width);
        let silu = best(|| device.silu_mul(out.view_mut(), gate_up.view()));
        println!("  [{rows}, {width}]: add_rms_norm {norm:.1} us, silu_mul {silu:.1} us");
    }
}
