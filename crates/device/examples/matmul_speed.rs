//! Measures matrix products: `cargo run --release -p phalanx-device --example matmul_speed [threads]`.
//!
//! The first table has the products of one pass through Qwen2.5-0.5B in Q4_K_M (a decode step but for attention), by
//! rows of `x` (the last line: a chunk of a prompt, whose head computes one row); the second has each format alone, on
//! 8 MB of weights, which third-level caches hold: what the kernels could do if memory kept up.

#![allow(unsafe_code)]

use std::alloc::Layout;
use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

use phalanx_device::cpu::features::Features;
use phalanx_device::cpu::matmul::huge_pages::HugePages;
use phalanx_device::cpu::matmul::{Workspace, matmul, pack};
use phalanx_device::cpu::pool::Pool;
use phalanx_device::{Allocation, Arena, DType, DeviceError, Format, Matrix, Tensor};

/// Host memory, zeroed by the system when it is first touched.
struct Memory(*mut u8, Layout);

// SAFETY: the pointer is only kept to free the memory.
unsafe impl Send for Memory {}
// SAFETY: a shared `Memory` offers nothing.
unsafe impl Sync for Memory {}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and freed only here.
        unsafe { std::alloc::dealloc(self.0, self.1) }
    }
}

fn allocate(bytes: usize) -> Result<Allocation, DeviceError> {
    let layout = Layout::from_size_align(bytes + 256, 16).expect("a small alignment");
    // SAFETY: the size is not zero.
    let memory = Memory(unsafe { std::alloc::alloc_zeroed(layout) }, layout);
    let address = memory.0 as usize;
    assert!(address != 0, "{bytes} bytes of memory");
    Ok(Allocation::new(address.next_multiple_of(256), bytes, Arc::new(memory)))
}

fn zeros(rows: usize, width: usize) -> Tensor {
    let bytes = Arena::tensor_bytes(DType::F32, rows, width);
    Arena::new(allocate(bytes).expect("host memory")).tensor(DType::F32, rows, width)
}

/// A matrix of arbitrary bytes: speed does not depend on values.
fn matrix(pool: &Pool, pages: &HugePages, format: Format, rows: usize, columns: usize) -> Matrix {
    let bytes: Vec<u8> =
        (0..rows * format.row_bytes(columns)).map(|i| ((i * 31) >> 3) as u8 & 0x3b).collect();
    pack(pool, format, rows, columns, &bytes, |bytes| pages.allocate(bytes, allocate)).expect("host memory")
}

/// The head is measured in parts, each short enough to be left alone by the scheduler once in a while.
const HEAD_PARTS: usize = 8;

/// The matrices of Qwen2.5-Coder-0.5B-Instruct Q4_K_M, the head last.
fn model(pool: &Pool, pages: &HugePages) -> Vec<Matrix> {
    let mut matrices = Vec::new();
    for layer in 0..24 {
        let rare = layer % 2 == 0;
        let value = if rare { Format::Q8_0 } else { Format::Q5_0 };
        let down = if rare { Format::Q6K } else { Format::Q4K };
        matrices.push(matrix(pool, pages, Format::Q5_0, 896, 896));
        matrices.push(matrix(pool, pages, Format::Q5_0, 128, 896));
        matrices.push(matrix(pool, pages, value, 128, 896));
        matrices.push(matrix(pool, pages, Format::Q5_0, 896, 896));
        matrices.push(matrix(pool, pages, Format::Q5_0, 4864, 896));
        matrices.push(matrix(pool, pages, Format::Q5_0, 4864, 896));
        matrices.push(matrix(pool, pages, down, 896, 4864));
    }
    matrices.extend((0..HEAD_PARTS).map(|_| matrix(pool, pages, Format::Q8_0, 151_936 / HEAD_PARTS, 896)));
    matrices
}

/// Seconds of a pass through all matrices: the sum of each one's fastest of some passes, so that other processes
/// disturb little. `rows` gives the rows of `x` of each matrix.
fn pass(pool: &Pool, features: Features, matrices: &[Matrix], rows: &dyn Fn(usize) -> usize) -> f64 {
    let mut workspace = Workspace::new(features);
    let most = |f: &dyn Fn(usize) -> usize| (0..matrices.len()).map(f).max().unwrap_or(0);
    let x = zeros(most(rows), most(&|index| matrices[index].columns));
    let mut outs: Vec<Tensor> =
        (0..matrices.len()).map(|index| zeros(rows(index), matrices[index].rows)).collect();
    let mut fastest = vec![f64::INFINITY; matrices.len()];
    for _ in 0..if most(rows) <= 16 { 12 } else { 4 } {
        for (index, matrix) in matrices.iter().enumerate() {
            let x = x.view().slice_rows(0..rows(index)).slice_columns(0..matrix.columns);
            let start = Instant::now();
            matmul(pool, &mut workspace, outs[index].view_mut(), x, matrix, None);
            fastest[index] = fastest[index].min(start.elapsed().as_secs_f64());
        }
    }
    fastest.iter().sum()
}

fn main() -> std::io::Result<()> {
    let threads = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(2);
    let only = std::env::args().nth(2);
    let (pool, pages) = (Pool::new(threads), HugePages::new());
    let mut out = std::io::stdout().lock();
    let start = Instant::now();
    let matrices = model(&pool, &pages);
    let bytes: usize = matrices.iter().map(Matrix::bytes).sum();
    let weights: usize = matrices.iter().map(|matrix| matrix.rows * matrix.columns).sum();
    writeln!(out, "{} MB made and packed in {:.2} s", bytes >> 20, start.elapsed().as_secs_f64())?;
    for features in Features::available() {
        if only.as_ref().is_some_and(|only| only != features.describe()) {
            continue;
        }
        writeln!(out, "\n{}, {threads} threads\nrows      ms   tok/s    GB/s  GFLOP/s", features.describe())?;
        let head = weights - 151_936 * 896;
        for (rows, head_rows) in [(1, 1), (2, 2), (4, 4), (8, 8), (16, 16), (32, 32), (128, 1)] {
            let head_at = matrices.len() - HEAD_PARTS;
            let time =
                pass(&pool, features, &matrices, &|index| if index < head_at { rows } else { head_rows });
            let flops = 2.0 * (head * rows + (weights - head) * head_rows) as f64;
            let (ms, rate) = (time * 1e3, rows as f64 / time);
            let (gb, gflop) = (bytes as f64 / time / 1e9, flops / time / 1e9);
            writeln!(out, "{rows:4} {ms:8.2} {rate:7.1} {gb:7.1} {gflop:8.1}")?;
        }
        writeln!(out, "\nformat  GB/s at 1 row   GFLOP/s at 8, 128 rows")?;
        for format in [
            Format::F32,
            Format::F16,
            Format::BF16,
            Format::Q8_0,
            Format::Q4_0,
            Format::Q4_1,
            Format::Q5_0,
            Format::Q5_1,
            Format::Q4K,
            Format::Q5K,
            Format::Q6K,
        ] {
            let matrix = [matrix(&pool, &pages, format, (8 << 20) / format.row_bytes(1024), 1024)];
            let gflop = |rows: usize| 2.0 * (matrix[0].rows * 1024 * rows) as f64 / 1e9;
            let gb = matrix[0].bytes() as f64 / 1e9 / pass(&pool, features, &matrix, &|_| 1);
            let eight = gflop(8) / pass(&pool, features, &matrix, &|_| 8);
            let many = gflop(128) / pass(&pool, features, &matrix, &|_| 128);
            writeln!(out, "{:6} {gb:10.1} {eight:14.1} {many:8.1}", format!("{format:?}"))?;
        }
    }
    Ok(())
}
