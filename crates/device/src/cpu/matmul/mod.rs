//! `out = x * weight^T + bias` for every weight format and any number of rows, on vectors of sixteen weight rows.
//!
//! Block formats: `x` is quantised once a call to 32-column blocks of int8, in two planes of 8 bits each, which kernels
//! take for two rows; then each thread takes groups of sixteen weight rows and multiplies 512 columns of them with all
//! planes of `x`, eight at a time. With few rows of `x` the weights are unpacked in registers, with many they are first
//! unpacked to bytes in the first-level cache.
//!
//! A result's bits depend on its row of `x` and on the weight only: not on the number of rows, on the other rows,
//! or on threads. In block formats they do not depend on the kind of processor either: integer dot products are
//! exact, and scales are applied in the same order, with the same fused multiply-adds, everywhere. Dense formats
//! multiply in f32, one fused multiply-add a column; only BF16 weights on a processor with bfloat16 products round
//! activations to bfloat16, too (relative error of a product about 2^-9).
//!
//! Measured on two cores of a Zen 4 server (3.7 GHz; `examples/matmul_speed`, best of five runs beside other work), all
//! products of Qwen2.5-Coder-0.5B-Instruct Q4_K_M, weights in huge pages, in tokens/s at 1, 8 and 128 rows of `x`:
//! AVX-512 72 (28 GB/s, the memory's limit), 259 and 359 (258 GFLOP/s); AVX2 40, 94 and 152. From eight rows on
//! arithmetic is the limit, and the second plane takes half the speed.

#![allow(unsafe_code)]

pub(crate) mod activations;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod chunk;
pub(crate) mod dense;
#[cfg(target_arch = "x86_64")]
mod dense256;
#[cfg(target_arch = "x86_64")]
mod dense512;
pub mod huge_pages;
mod kernels;
pub(crate) mod layout;
mod pack;
mod portable;

use std::ops::Range;

use self::activations::{Block, PLANES};
use self::chunk::{Chunk, Span};
use self::kernels::{Kernels, PairsDot};
use self::layout::{INTERLEAVED, LANES, Layout, TILE};
use super::features::Features;
use super::pool::Pool;
use super::quant::{Kind, kind};
use super::views::{Output, Rows};
use crate::DeviceError;
use crate::matrix::{Format, Matrix};
use crate::tensor::{Allocation, View, ViewMut};

/// Rows of `x` (of block formats: planes, two a row) that are multiplied at once: their sums stay in registers.
const TOKENS: usize = 8;
/// The least worth being a task of its own when memory is the limit: several times what kernels ask for ahead.
const RUN_BYTES: usize = 256 << 10;
/// Up to so many planes of `x`, unpacking once for eight of them costs no more than the way through a chunk in the
/// cache (measured at 16 planes 31 ms against 42, at 64 the same).
const FEW: usize = 32;
/// Results of one chunk: a row of `x` each.
pub(crate) type Sums = [[f32; LANES]];

/// A rank's room for activations as its kernels want them, and which kernels those are. It grows to the largest
/// call's needs and is kept.
#[derive(Debug)]
pub struct Workspace {
    kernels: Kernels,
    /// `x` for block formats, row after row, each as [`PLANES`] planes.
    blocks: Vec<Block>,
    /// `x` for BF16 products, row after row: pairs of bfloat16.
    pairs: Vec<u32>,
}

impl Workspace {
    /// No room yet.
    #[must_use]
    pub fn new(features: Features) -> Self {
        Self { kernels: Kernels::new(features), blocks: Vec::new(), pairs: Vec::new() }
    }
}

/// Bytes that [`pack`] lays a weight `[rows, columns]` out in.
#[must_use]
pub fn packed_bytes(format: Format, rows: usize, columns: usize) -> usize {
    Layout::new(format, rows, columns).bytes()
}

/// Bytes that [`matmul`] keeps the activations of `rows` rows of `columns` columns in, whatever the weight's format.
#[must_use]
pub const fn workspace_bytes(rows: usize, columns: usize) -> usize {
    rows * columns.div_ceil(TILE) * PLANES * size_of::<Block>()
}

/// Takes a weight `[rows, columns]`, encoded row after row as in a file, into memory that `allocate` gives
/// (zeroed, aligned to 64 bytes; [`huge_pages`] has what is fast).
///
/// # Errors
/// What `allocate` says.
pub fn pack(
    pool: &Pool,
    format: Format,
    rows: usize,
    columns: usize,
    bytes: &[u8],
    allocate: impl FnOnce(usize) -> Result<Allocation, DeviceError>,
) -> Result<Matrix, DeviceError> {
    let row_bytes = format.row_bytes(columns);
    assert!(bytes.len() == rows * row_bytes, "{rows} rows of {columns} columns");
    let layout = Layout::new(format, rows, columns);
    let data = allocate(layout.bytes())?;
    assert!(layout.bytes() <= data.bytes() && data.address().is_multiple_of(64), "memory as asked");
    // SAFETY: the allocation is ours alone and that long.
    let packed = unsafe { std::slice::from_raw_parts_mut(data.address() as *mut u8, layout.bytes()) };
    // Threads touch different huge pages, or both would clear the same one.
    let groups_at_once = (huge_pages::PAGE_BYTES / layout.group_bytes).max(1);
    pool.run_chunks(packed, groups_at_once * layout.group_bytes, &|index, out| {
        pack::pack_groups(&layout, &bytes[index * groups_at_once * LANES * row_bytes..], out);
    });
    Ok(Matrix { format, rows, columns, data, layout: INTERLEAVED })
}

/// `out[t, n] = sum_k x[t, k] * weight[n, k] + bias[n]`; all views are F32, `bias` is `[1, rows]`.
///
/// # Panics
/// A view is not F32; shapes differ.
pub fn matmul(
    pool: &Pool,
    workspace: &mut Workspace,
    mut out: ViewMut<'_>,
    x: View<'_>,
    weight: &Matrix,
    bias: Option<View<'_>>,
) {
    assert!(out.view().rows() == x.rows(), "a row out for a row in");
    assert!(out.view().width() == weight.rows && x.width() == weight.columns, "the weight's shape");
    if x.rows() == 0 {
        return;
    }
    let layout = Layout::of(weight);
    let call = Call {
        kernels: workspace.kernels,
        layout,
        bytes: matrix_bytes(weight, &layout),
        x: Rows::new(x),
        output: Output::new(&mut out),
        bias: bias.map(|bias| {
            assert!(bias.width() == weight.rows, "a bias for each row of the weight");
            Rows::new(bias).row(0)
        }),
    };
    match (kind(weight.format), call.kernels.bf16) {
        (Kind::Dense, Some(dot)) if weight.format == Format::BF16 => {
            let stride = layout.columns.div_ceil(2);
            let pairs = room(&mut workspace.pairs, call.x.rows() * stride, 0);
            pool.run_chunks(pairs, stride, &|row, pairs| dense::round_row(call.x.row(row), pairs));
            call.run(pool, &|groups| call.bf16_groups(groups, pairs, dot));
        }
        (Kind::Dense, _) => call.run(pool, &|groups| call.dense_groups(groups)),
        _ => {
            let stride = layout.columns / TILE;
            let blocks = room(&mut workspace.blocks, call.x.rows() * PLANES * stride, activations::ZERO);
            pool.run_chunks(blocks, PLANES * stride, &|row, blocks| {
                // SAFETY: the kernels were chosen for this processor.
                unsafe { (call.kernels.quantize)(layout.format, call.x.row(row), blocks) };
            });
            call.run(pool, &|groups| call.block_groups(groups, blocks));
        }
    }
}

/// The rows of `x` as runs of eight, then of four, two and one: `(first, count)`.
fn runs(rows: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut first = 0;
    std::iter::from_fn(move || {
        let count = 1 << TOKENS.min(rows - first).checked_ilog2()?;
        first += count;
        Some((first - count, count))
    })
}

/// The first `len` elements of something that grows.
fn room<T: Clone>(buffer: &mut Vec<T>, len: usize, fill: T) -> &mut [T] {
    if buffer.len() < len {
        buffer.resize(len, fill);
    }
    &mut buffer[..len]
}

/// What multiplies a chunk of dense weights: `dot(weights from the chunk's first column on, the chunk's columns,
/// first row of x, sums)`.
type DenseDot<'a> = dyn FnMut(&[u8], Range<usize>, usize, &mut Sums) + 'a;

/// One matrix product.
struct Call<'a> {
    kernels: Kernels,
    layout: Layout,
    bytes: &'a [u8],
    x: Rows<'a, f32>,
    output: Output,
    bias: Option<&'a [f32]>,
}

impl Call<'_> {
    /// Deals the groups of rows to the pool's threads.
    fn run(&self, pool: &Pool, f: &(dyn Fn(Range<usize>) + Sync)) {
        let groups = self.layout.groups();
        // More tasks than threads, so that a thread that was interrupted does not hold up the others; but with few
        // rows of `x` memory is the limit, and it is fast in long runs only.
        let runs =
            if self.x.rows() <= TOKENS { self.layout.bytes() / (pool.threads() * RUN_BYTES) } else { 8 };
        let tasks = if pool.threads() == 1 { 1 } else { groups.min(pool.threads() * runs.clamp(1, 8)) };
        pool.run(tasks, &|task| f(groups * task / tasks..groups * (task + 1) / tasks));
    }

    fn group(&self, index: usize) -> &[u8] {
        &self.bytes[index * self.layout.group_bytes..][..self.layout.group_bytes]
    }

    fn block_groups(&self, groups: Range<usize>, x: &[Block]) {
        let stride = self.layout.columns / TILE;
        let mut chunk = Chunk::new();
        let mut sums = [[0.0; LANES]; TOKENS];
        let planes = self.x.rows() * PLANES;
        let packed = self.kernels.dot_packed.filter(|_| planes <= FEW);
        for (group, span) in groups.flat_map(|group| Span::all(stride).map(move |span| (group, span))) {
            let weights = self.group(group);
            if packed.is_none() {
                // SAFETY: the kernels were chosen for this processor.
                unsafe { (self.kernels.fill)(&self.layout, weights, span, &mut chunk) };
            }
            // An even number of planes goes in even runs, so the two of a row are never parted.
            for (first, count) in runs(planes) {
                let sums = &mut sums[..count];
                let x = &x[first * stride + span.first..];
                // SAFETY: the kernels were chosen for this processor.
                unsafe {
                    match packed {
                        Some(dot) => dot(&self.layout, weights, span, x, stride, sums),
                        None => (self.kernels.dot)(&self.layout, &chunk, span, x, stride, sums),
                    }
                }
                let rows = add_planes(sums);
                self.add(group, first / PLANES, rows, span.first == 0, span.first + span.blocks == stride);
            }
        }
    }

    fn dense_groups(&self, groups: Range<usize>) {
        self.each_dense_chunk(groups, &mut |weights, columns, first, sums| {
            let last = self.x.rows() - 1;
            let x: [&[f32]; TOKENS] =
                std::array::from_fn(|index| &self.x.row(last.min(first + index))[columns.clone()]);
            // SAFETY: the kernels were chosen for this processor.
            unsafe { (self.kernels.dense)(self.layout.format, weights, &x[..sums.len()], sums) };
        });
    }

    fn bf16_groups(&self, groups: Range<usize>, x: &[u32], dot: PairsDot) {
        let stride = self.layout.columns.div_ceil(2);
        self.each_dense_chunk(groups, &mut |weights, columns, first, sums| {
            let x = &x[first * stride + columns.start / 2..];
            // SAFETY: the kernels were chosen for this processor.
            unsafe { dot(weights, columns.len().div_ceil(2), x, stride, sums) };
        });
    }

    /// Calls `dot` for each chunk of each group and each few rows of `x`, and adds up what it finds.
    fn each_dense_chunk(&self, groups: Range<usize>, dot: &mut DenseDot<'_>) {
        let columns = self.layout.columns;
        let mut sums = [[0.0; LANES]; TOKENS];
        for group in groups {
            for start in (0..columns).step_by(dense::CHUNK_COLUMNS) {
                let end = columns.min(start + dense::CHUNK_COLUMNS);
                let tile = if self.layout.format == Format::BF16 { start / 2 } else { start };
                let weights = &self.group(group)[tile * self.layout.tile_bytes..];
                for (first, count) in runs(self.x.rows()) {
                    let sums = &mut sums[..count];
                    dot(weights, start..end, first, sums);
                    self.add(group, first, sums, start == 0, end == columns);
                }
            }
        }
    }

    /// Adds a chunk's sums to the output: the first chunk's overwrite it, the last one's bring the bias.
    fn add(&self, group: usize, first_row: usize, sums: &Sums, is_first: bool, is_last: bool) {
        let start = group * LANES;
        let end = self.layout.rows.min(start + LANES);
        for (index, sums) in sums.iter().enumerate() {
            // SAFETY: only this task writes these columns, and `out` is borrowed until all tasks are done.
            let out = unsafe { self.output.row(first_row + index, start, end) };
            match is_first {
                true => out.copy_from_slice(&sums[..out.len()]),
                false => out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum),
            }
            if let (true, Some(bias)) = (is_last, self.bias) {
                out.iter_mut().zip(&bias[start..end]).for_each(|(out, bias)| *out += bias);
            }
        }
    }
}

/// Adds each row's fine plane to its coarse one; the rows' sums come to lie side by side.
fn add_planes(sums: &mut Sums) -> &Sums {
    let rows = sums.len() / PLANES;
    for row in 0..rows {
        let (coarse, fine) = (sums[row * PLANES], sums[row * PLANES + 1]);
        for ((sum, coarse), fine) in sums[row].iter_mut().zip(coarse).zip(fine) {
            *sum = coarse + fine;
        }
    }
    &sums[..rows]
}

/// The bytes of a packed matrix.
pub(crate) fn matrix_bytes<'a>(matrix: &'a Matrix, layout: &Layout) -> &'a [u8] {
    assert!(layout.bytes() <= matrix.data.bytes(), "the whole matrix is there");
    // SAFETY: the matrix owns that many bytes of host memory, and nobody writes them after packing.
    unsafe { std::slice::from_raw_parts(matrix.data.address() as *const u8, layout.bytes()) }
}
