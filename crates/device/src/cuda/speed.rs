//! How long each operation takes at Qwen2.5-7B's shapes, and how near to the machine's limits that is.
//!
//! Every figure is the median of replays of a graph of many calls; weights and caches are rotated, so that what a model
//! reads from memory comes from memory here. The limits are measured in the same run: a copy, and a large product.

use std::cell::RefCell;
use std::fmt;

use crate::DeviceError;
use crate::backend::{Backend, Heads, KvLayer};
use crate::batch::BatchLayout;
use crate::cuda::Cuda;
use crate::cuda::runtime::{Event, Graph};
use crate::dtype::DType;
use crate::matrix::{Format, Matrix};
use crate::sampling::SampleRow;
use crate::tensor::{Arena, Tensor};

/// Bytes of weights or caches that are rotated through: several times the level-2 cache.
const ROTATED_BYTES: usize = 400 << 20;
const REPLAYS: usize = 7;
const HEADS: Heads = Heads { num_heads: 28, num_kv_heads: 4, head_dim: 128, group_size: 7, group_offset: 0 };
const BLOCK_SIZE: usize = 64;

/// One operation at one shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Timing {
    /// The operation.
    pub operation: &'static str,
    /// Its shape.
    pub case: String,
    /// Median time of a call.
    pub us: f32,
    /// Bytes that must move, each once.
    pub bytes: f64,
    /// Floating-point operations that must be done.
    pub flops: f64,
}

/// All timings, and the limits they are held against.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Speed {
    /// Bytes per second a copy within the device reads and writes.
    pub bandwidth: f64,
    /// Operations per second of a large product.
    pub arithmetic: f64,
    /// One an operation and shape.
    pub timings: Vec<Timing>,
}

impl fmt::Display for Speed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "copy {:.2} TB/s, product {:.0} TFLOP/s", self.bandwidth / 1e12, self.arithmetic / 1e12)?;
        for Timing { operation, case, us, bytes, flops } in &self.timings {
            let seconds = f64::from(*us) * 1e-6;
            let least = (bytes / self.bandwidth).max(flops / self.arithmetic);
            writeln!(
                f,
                "{operation:12} {case:34} {us:10.2} us  {:6.2} TB/s {:6.1} TFLOP/s  {:5.1} % of the limit",
                bytes / seconds / 1e12,
                flops / seconds / 1e12,
                least / seconds * 100.0
            )?;
        }
        Ok(())
    }
}

/// Times everything; takes about a minute.
///
/// # Errors
/// The device has no room for the largest case, or faults.
pub fn run(cuda: &Cuda) -> Result<Speed, DeviceError> {
    let mut bench = Bench { cuda, speed: Speed::default() };
    bench.limits()?;
    for (name, rows, columns) in [
        ("qkv", 4608, 3584),
        ("o", 3584, 3584),
        ("gate_up", 37_888, 3584),
        ("down", 3584, 18_944),
        ("lm_head", 152_064, 3584),
        ("qkv of 2", 2304, 3584),
        ("o of 2", 3584, 1792),
        ("gate_up of 2", 18_944, 3584),
        ("down of 2", 3584, 9472),
    ] {
        let copies = (ROTATED_BYTES / (rows * columns * 2)).clamp(1, 12);
        let weights = (0..copies).map(|_| bench.weight(rows, columns)).collect::<Result<Vec<_>, _>>()?;
        let most = match name {
            "lm_head" => 256,
            _ if name.ends_with("of 2") => 8,
            _ => 8192,
        };
        for tokens in [1, 2, 8, 9, 16, 32, 64, 128, 256, 2048, 8192] {
            if tokens <= most {
                bench.matmul(name, tokens, &weights)?;
            }
            if name == "gate_up" && tokens <= 8 {
                bench.gated(tokens, &weights)?;
            }
        }
    }
    for tokens in [1, 8, 64, 256, 4096] {
        bench.rows(tokens)?;
    }
    for (batch, context) in [
        (1, 512),
        (1, 4096),
        (1, 32_768),
        (1, 131_072),
        (8, 4096),
        (32, 4096),
        (64, 512),
        (64, 4096),
        (256, 512),
        (256, 1200),
    ] {
        bench.attention(&vec![(context - 1, 1); batch])?;
    }
    for (computed, tokens) in [(0, 512), (0, 4096), (0, 16_384), (61_440, 4096), (126_976, 4096)] {
        bench.attention(&[(computed, tokens)])?;
    }
    // A chunk of a prompt beside decoding sequences.
    let mut mixed = vec![(1000, 1); 64];
    mixed.push((4096, 1984));
    bench.attention(&mixed)?;
    for rows in [1, 64] {
        bench.sample(rows)?;
    }
    Ok(bench.speed)
}

struct Bench<'a> {
    cuda: &'a Cuda,
    speed: Speed,
}

impl Bench<'_> {
    fn tensor(&self, dtype: DType, rows: usize, width: usize) -> Result<Tensor, DeviceError> {
        let bytes = Arena::tensor_bytes(dtype, rows, width);
        Ok(Arena::new(self.cuda.allocate(bytes)?).tensor(dtype, rows, width))
    }

    /// Random numbers of about 1 in the compute type.
    fn activations(&self, rows: usize, width: usize) -> Result<Tensor, DeviceError> {
        let mut tensor = self.tensor(self.cuda.activation_dtype(), rows, width)?;
        self.cuda.write(tensor.view_mut(), &noise(rows * width * 2));
        Ok(tensor)
    }

    /// Median microseconds of one of `calls` calls of `work`, which gets the call's number.
    fn time(&self, calls: usize, work: impl Fn(usize)) -> Result<f32, DeviceError> {
        let stream = &self.cuda.stream;
        // The first call may choose an algorithm, which waits; nothing may wait while a graph is captured.
        work(0);
        stream.synchronize()?;
        let graph = Graph::capture(stream, || (0..calls).for_each(&work))?;
        let (start, end) = (Event::new(true)?, Event::new(true)?);
        let mut times = Vec::new();
        for _ in 0..=REPLAYS {
            start.record(stream)?;
            graph.start(stream)?;
            end.record(stream)?;
            end.wait()?;
            times.push(end.us_since(&start)? / calls as f32);
        }
        // The first replay warms up.
        let times = &mut times[1..];
        times.sort_by(f32::total_cmp);
        Ok(times[REPLAYS / 2])
    }

    fn push(&mut self, operation: &'static str, case: String, us: f32, bytes: usize, flops: f64) {
        self.speed.timings.push(Timing { operation, case, us, bytes: bytes as f64, flops });
    }

    fn limits(&mut self) -> Result<(), DeviceError> {
        // Our own copy of rows: the runtime's goes through a copy engine and is far slower.
        let (rows, width) = (65_536_usize, 8192);
        let (from, to) = (self.activations(rows, width)?, self.activations(rows, width)?);
        let sample_rows = (0..rows as i32).collect();
        let layout = BatchLayout { sample_rows, block_size: BLOCK_SIZE, ..BatchLayout::default() };
        let plan = self.cuda.plan(layout, HEADS);
        let to = RefCell::new(to);
        let us = self.time(4, |_| {
            self.cuda.gather_sample_rows(to.borrow_mut().view_mut(), from.view(), &plan);
        })?;
        self.speed.bandwidth = 2.0 * (rows * width * 2) as f64 / (f64::from(us) * 1e-6);
        let weight = self.weight(8192, 8192)?;
        let x = self.activations(8192, 8192)?;
        let out = RefCell::new(self.tensor(self.cuda.activation_dtype(), 8192, 8192)?);
        let us = self.time(10, |_| self.cuda.matmul(out.borrow_mut().view_mut(), x.view(), &weight, None))?;
        self.speed.arithmetic = 2.0 * 8192.0_f64.powi(3) / (f64::from(us) * 1e-6);
        Ok(())
    }

    fn weight(&self, rows: usize, columns: usize) -> Result<Matrix, DeviceError> {
        let format = match self.cuda.activation_dtype() {
            DType::F16 => Format::F16,
            _ => Format::BF16,
        };
        self.cuda.load_matrix(format, rows, columns, &noise(rows * columns * 2))
    }

    fn matmul(&mut self, name: &str, tokens: usize, weights: &[Matrix]) -> Result<(), DeviceError> {
        let (copies, rows, columns) = (weights.len(), weights[0].rows, weights[0].columns);
        let out_dtype = if name == "lm_head" { DType::F32 } else { self.cuda.activation_dtype() };
        let x = self.activations(tokens, columns)?;
        let out = RefCell::new(self.tensor(out_dtype, tokens, rows)?);
        let bias = self.tensor(DType::F32, 1, rows)?;
        let bias = Some(bias.view()).filter(|_| name == "qkv");
        let calls = if tokens <= 256 { copies.next_multiple_of(24) } else { copies };
        let us = self.time(calls, |call| {
            self.cuda.matmul(out.borrow_mut().view_mut(), x.view(), &weights[call % copies], bias);
        })?;
        let bytes = rows * columns * 2 + tokens * (columns * 2 + rows * out_dtype.bytes());
        let flops = 2.0 * tokens as f64 * rows as f64 * columns as f64;
        self.push("matmul", format!("{name} m {tokens}"), us, bytes, flops);
        Ok(())
    }

    /// The product with gate over up and their activation in one: to be compared with both apart.
    fn gated(&mut self, tokens: usize, weights: &[Matrix]) -> Result<(), DeviceError> {
        let (copies, rows, columns) = (weights.len(), weights[0].rows, weights[0].columns);
        let x = self.activations(tokens, columns)?;
        let dtype = self.cuda.activation_dtype();
        let room = RefCell::new(self.tensor(dtype, tokens, rows)?);
        let out = RefCell::new(self.tensor(dtype, tokens, rows / 2)?);
        let us = self.time(copies.next_multiple_of(24), |call| {
            let (mut out, mut room) = (out.borrow_mut(), room.borrow_mut());
            let weight = &weights[call % copies];
            self.cuda.matmul_silu_mul(out.view_mut(), room.view_mut(), x.view(), weight);
        })?;
        let bytes = rows * columns * 2 + tokens * (columns * 2 + rows);
        let flops = 2.0 * tokens as f64 * rows as f64 * columns as f64;
        self.push("matmul_silu_mul", format!("gate_up m {tokens}"), us, bytes, flops);
        Ok(())
    }

    /// Norm, activation and rotation of `tokens` rows.
    fn rows(&mut self, tokens: usize) -> Result<(), DeviceError> {
        let cuda = self.cuda;
        let (x, residual) = (self.activations(tokens, 3584)?, RefCell::new(self.activations(tokens, 3584)?));
        let out = RefCell::new(self.activations(tokens, 3584)?);
        let weight = self.tensor(DType::F32, 1, 3584)?;
        let us = self.time(28, |_| {
            let (mut out, mut residual) = (out.borrow_mut(), residual.borrow_mut());
            cuda.add_rms_norm(out.view_mut(), residual.view_mut(), x.view(), weight.view(), 1e-6);
        })?;
        self.push("add_rms_norm", format!("rows {tokens}"), us, tokens * 3584 * 8, 0.0);

        let (gate_up, out) =
            (self.activations(tokens, 37_888)?, RefCell::new(self.activations(tokens, 18_944)?));
        let us = self.time(28, |_| cuda.silu_mul(out.borrow_mut().view_mut(), gate_up.view()))?;
        self.push("silu_mul", format!("rows {tokens}"), us, tokens * 18_944 * 6, 0.0);

        let (layout, blocks) = layout(&[(0, tokens)]);
        let plan = cuda.plan(layout, HEADS);
        let (qkv, kv) =
            (RefCell::new(self.activations(tokens, HEADS.qkv_width())?), RefCell::new(self.layer(blocks)?));
        let rope = self.tensor(DType::F32, tokens, HEADS.head_dim)?;
        let us = self.time(28, |_| {
            cuda.rope_and_store(qkv.borrow_mut().view_mut(), rope.view(), &mut kv.borrow_mut(), &plan, HEADS);
        })?;
        let bytes = tokens * (HEADS.qkv_width() * 2 + (28 + 4) * 128 * 2 + 2 * 4 * 128 * 2 + 128 * 4);
        self.push("rope", format!("rows {tokens}"), us, bytes, 0.0);
        Ok(())
    }

    fn layer(&self, num_blocks: usize) -> Result<KvLayer, DeviceError> {
        let rows = num_blocks * HEADS.num_kv_heads * BLOCK_SIZE;
        let (keys, values) =
            (self.activations(rows, HEADS.head_dim)?, self.activations(rows, HEADS.head_dim)?);
        Ok(KvLayer { keys, values, num_blocks, block_size: BLOCK_SIZE })
    }

    fn attention(&mut self, sequences: &[(usize, usize)]) -> Result<(), DeviceError> {
        let (layout, blocks) = layout(sequences);
        let tokens = layout.tokens();
        let plan = self.cuda.plan(layout, HEADS);
        let layer_bytes = blocks * BLOCK_SIZE * HEADS.num_kv_heads * HEADS.head_dim * 4;
        let copies = (ROTATED_BYTES / layer_bytes).clamp(1, 12);
        let layers = (0..copies).map(|_| self.layer(blocks)).collect::<Result<Vec<_>, _>>()?;
        let qkv = self.activations(tokens, HEADS.qkv_width())?;
        let out = RefCell::new(self.activations(tokens, 28 * 128)?);
        let calls = if tokens <= 512 { copies.next_multiple_of(24) } else { 2 };
        let us = self.time(calls, |call| {
            let mut out = out.borrow_mut();
            self.cuda.attention(out.view_mut(), qkv.view(), &layers[call % copies], &plan, HEADS);
        })?;
        let contexts: usize = sequences.iter().map(|(computed, tokens)| computed + tokens).sum();
        let pairs: f64 = sequences
            .iter()
            .map(|(computed, tokens)| *tokens as f64 * (*computed as f64 + (*tokens as f64 + 1.0) / 2.0))
            .sum();
        let bytes = contexts * 4 * 128 * 4 + tokens * 28 * 128 * 4;
        let (first, last) = (sequences[0], sequences[sequences.len() - 1]);
        let case = match sequences.len() {
            1 => format!("{} tokens behind {}", first.1, first.0),
            count if first == last => format!("{count} x 1 behind {}", first.0),
            count => format!("{} x 1 behind {}, {} behind {}", count - 1, first.0, last.1, last.0),
        };
        self.push("attention", case, us, bytes, pairs * 4.0 * 28.0 * 128.0);
        Ok(())
    }

    fn sample(&mut self, rows: usize) -> Result<(), DeviceError> {
        let (vocab, width) = (151_936, 152_064);
        let mut logits = self.tensor(DType::F32, rows, width)?;
        // About normal with a deviation of 3, as a model's logits are: the sum of four uniform numbers.
        let values: Vec<u8> = noise(rows * width * 8)
            .as_chunks::<8>()
            .0
            .iter()
            .map(|bytes| bytes.iter().step_by(2).map(|byte| f32::from(*byte) / 256.0 - 0.5).sum::<f32>())
            .flat_map(|x| (x * 5.2).to_ne_bytes())
            .collect();
        self.cuda.write(logits.view_mut(), &values);
        let mut tokens = self.tensor(DType::I32, rows, 1)?;
        for (name, temperature, top_p) in
            [("greedy", 0.0, 1.0), ("temperature", 0.7, 1.0), ("top-p 0.9", 0.7, 0.9)]
        {
            let row = SampleRow {
                temperature,
                top_k: 0,
                top_p,
                min_p: 0.0,
                repetition_penalty: 1.0,
                presence_penalty: 0.0,
                frequency_penalty: 0.0,
                seen: Vec::new(),
                edits: Vec::new(),
                seed: 1,
                position: 1,
                logprobs: None,
            };
            let rows_of = vec![row; rows];
            let (start, end) = (Event::new(true)?, Event::new(true)?);
            let mut times = Vec::new();
            for _ in 0..=REPLAYS {
                start.record(&self.cuda.stream)?;
                self.cuda.sample(logits.view_mut(), vocab, &rows_of, tokens.view_mut());
                end.record(&self.cuda.stream)?;
                self.cuda.collect()?;
                times.push(end.us_since(&start)?);
            }
            times.sort_by(f32::total_cmp);
            self.push("sample", format!("{name}, rows {rows}"), times[REPLAYS / 2], rows * vocab * 4, 0.0);
        }
        Ok(())
    }
}

/// Sequences of (computed before, tokens in this step), and the blocks they take.
fn layout(sequences: &[(usize, usize)]) -> (BatchLayout, usize) {
    let longest = sequences.iter().map(|(computed, tokens)| computed + tokens).max().unwrap_or(0);
    let mut layout = BatchLayout {
        query_starts: vec![0],
        blocks_per_row: longest.div_ceil(BLOCK_SIZE),
        block_size: BLOCK_SIZE,
        ..BatchLayout::default()
    };
    let mut blocks = 0;
    for (computed, tokens) in sequences {
        let length = computed + tokens;
        let own = length.div_ceil(BLOCK_SIZE);
        let table: Vec<i32> =
            (0..layout.blocks_per_row).map(|i| if i < own { (blocks + i) as i32 } else { 0 }).collect();
        for position in *computed..length {
            layout.positions.push(position as i32);
            let block = table[position / BLOCK_SIZE] as usize;
            layout.slots.push((block * BLOCK_SIZE + position % BLOCK_SIZE) as i32);
        }
        layout.query_starts.push(layout.positions.len() as i32);
        layout.context_lens.push(length as i32);
        layout.block_tables.extend(table);
        blocks += own;
    }
    (layout, blocks)
}

/// Bytes that are numbers of about 1 in either compute type, of both signs.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut noise = Vec::with_capacity(bytes + 8);
    while noise.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Sign and mantissa are random; the exponent says 0.5 to 2.
        noise.extend((state & 0x80ff_80ff_80ff_80ff | 0x3f00_3f00_3f00_3f00).to_le_bytes());
    }
    noise.truncate(bytes);
    noise
}
