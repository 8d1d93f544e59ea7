//! Every operation of a GPU against the CPU's, on random inputs: the GPU's test suite, and a user's diagnosis.
//!
//! Outputs are poisoned with NaN first, so that what was not written shows; sizes are odd on purpose.

mod dense;
pub mod group;
mod loading;
mod paged;
mod sampling;
mod steps;

use std::fmt;

use half::{bf16, f16};

use crate::backend::Backend;
use crate::cuda::Cuda;
use crate::dtype::DType;
use crate::tensor::{Arena, Tensor};

/// One case's outcome.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The operation, for example `attention`.
    pub operation: &'static str,
    /// Its sizes.
    pub case: String,
    /// The worst row's error relative to that row's length; infinite when something was not written.
    pub error: f32,
    /// What is allowed.
    pub limit: f32,
}

impl Outcome {
    /// The error is within the limit.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.error <= self.limit
    }
}

/// All outcomes, in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// One a case.
    pub outcomes: Vec<Outcome>,
}

impl Report {
    /// Every case passed.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.outcomes.iter().all(Outcome::passed)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Outcome { operation, case, error, limit } in &self.outcomes {
            let verdict = if error <= limit { "ok" } else { "MISS" };
            writeln!(f, "{verdict:4} {operation:18} {case:52} {error:9.2e} (limit {limit:.0e})")?;
        }
        let passed = self.outcomes.iter().filter(|outcome| outcome.passed()).count();
        write!(f, "{passed} of {} cases passed", self.outcomes.len())
    }
}

/// What to do wrong on purpose, to show that a mistake is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// Nothing.
    Nothing,
    /// The device is told of one row, key, column or token less than there is.
    OffByOne,
}

/// Runs every case.
#[must_use]
pub fn run(cuda: &Cuda, reference: &dyn Backend, planted: Planted) -> Report {
    let mut bench = Bench { cuda, reference, planted, random: Random::new(0x5eed), outcomes: Vec::new() };
    dense::run(&mut bench);
    loading::run(&mut bench);
    paged::run(&mut bench);
    sampling::run(&mut bench);
    steps::run(&mut bench);
    if let Err(error) = cuda.collect() {
        let case = error.to_string();
        bench.outcomes.push(Outcome { operation: "device", case, error: f32::INFINITY, limit: 0.0 });
    }
    Report { outcomes: bench.outcomes }
}

/// The two devices and what came of the cases so far.
struct Bench<'a> {
    cuda: &'a Cuda,
    reference: &'a dyn Backend,
    planted: Planted,
    random: Random,
    outcomes: Vec<Outcome>,
}

/// The same array on both devices: in the compute type (or as given) here, in F32 there.
struct Twin {
    cuda: Tensor,
    reference: Tensor,
}

impl Bench<'_> {
    /// How much less the device is told.
    fn missing(&self) -> usize {
        usize::from(self.planted == Planted::OffByOne)
    }

    fn tensor(backend: &dyn Backend, dtype: DType, rows: usize, width: usize) -> Tensor {
        let bytes = Arena::tensor_bytes(dtype, rows, width);
        let allocation = backend.allocate(bytes).expect("there is memory for a test");
        Arena::new(allocation).tensor(dtype, rows, width)
    }

    /// Random numbers that the compute type holds exactly, about as large as activations are.
    fn activations(&mut self, rows: usize, width: usize) -> Twin {
        let dtype = self.cuda.activation_dtype();
        let values: Vec<f32> = (0..rows * width).map(|_| rounded(dtype, self.random.normal())).collect();
        self.twin(dtype, rows, width, &values)
    }

    /// The same numbers on both devices.
    fn twin(&self, dtype: DType, rows: usize, width: usize, values: &[f32]) -> Twin {
        let mut twin = Twin {
            cuda: Self::tensor(self.cuda, dtype, rows, width),
            reference: Self::tensor(self.reference, DType::F32, rows, width),
        };
        self.cuda.write(twin.cuda.view_mut(), &encode(dtype, values));
        self.reference.write(twin.reference.view_mut(), &encode(DType::F32, values));
        twin
    }

    fn integers(&self, values: &[i32]) -> Twin {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
        let mut twin = Twin {
            cuda: Self::tensor(self.cuda, DType::I32, values.len(), 1),
            reference: Self::tensor(self.reference, DType::I32, values.len(), 1),
        };
        self.cuda.write(twin.cuda.view_mut(), &bytes);
        self.reference.write(twin.reference.view_mut(), &bytes);
        twin
    }

    /// A column of integers.
    fn integers_of(backend: &dyn Backend, tensor: &Tensor) -> Vec<i32> {
        let mut bytes = vec![0; tensor.rows() * 4];
        backend.read(tensor.view(), &mut bytes);
        bytes.as_chunks().0.iter().map(|word| i32::from_ne_bytes(*word)).collect()
    }

    /// An output, full of NaN.
    fn poisoned(&self, dtype: DType, rows: usize, width: usize) -> Twin {
        self.twin(dtype, rows, width, &vec![f32::NAN; rows * width])
    }

    /// Notes how far the device's array is from the reference's.
    fn compare(&mut self, operation: &'static str, case: String, twin: &Twin, limit: f32) {
        let ours = decode(self.cuda, &twin.cuda);
        let theirs = decode(self.reference, &twin.reference);
        let width = twin.cuda.width();
        let rows = ours.chunks_exact(width).zip(theirs.chunks_exact(width));
        let error = rows.map(|(ours, theirs)| distance(ours, theirs)).fold(0.0, f32::max);
        self.outcomes.push(Outcome { operation, case, error, limit });
    }

    /// What rounding to the compute type, once or twice, may cost.
    fn rounding(&self) -> f32 {
        match self.cuda.activation_dtype() {
            DType::F16 => 1.5e-3,
            _ => 1e-2,
        }
    }
}

/// The length of the difference relative to the reference's; infinite when either has a NaN the other has not.
fn distance(ours: &[f32], theirs: &[f32]) -> f32 {
    let mut difference = 0.0_f64;
    let mut length = 0.0_f64;
    for (a, b) in ours.iter().zip(theirs) {
        if a.is_nan() && b.is_nan() {
            continue;
        }
        difference += f64::from(a - b).powi(2);
        length += f64::from(*b).powi(2);
    }
    let error = (difference.sqrt() / length.sqrt().max(1e-20)) as f32;
    if error.is_nan() { f32::INFINITY } else { error }
}

fn rounded(dtype: DType, value: f32) -> f32 {
    match dtype {
        DType::BF16 => bf16::from_f32(value).to_f32(),
        DType::F16 => f16::from_f32(value).to_f32(),
        DType::F32 | DType::I32 => value,
    }
}

fn encode(dtype: DType, values: &[f32]) -> Vec<u8> {
    match dtype {
        DType::BF16 => values.iter().flat_map(|value| bf16::from_f32(*value).to_ne_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|value| f16::from_f32(*value).to_ne_bytes()).collect(),
        DType::F32 | DType::I32 => values.iter().flat_map(|value| value.to_ne_bytes()).collect(),
    }
}

fn decode(backend: &dyn Backend, tensor: &Tensor) -> Vec<f32> {
    let mut bytes = vec![0; tensor.rows() * tensor.width() * tensor.dtype().bytes()];
    backend.read(tensor.view(), &mut bytes);
    match tensor.dtype() {
        DType::BF16 => bytes.as_chunks().0.iter().map(|pair| bf16::from_ne_bytes(*pair).to_f32()).collect(),
        DType::F16 => bytes.as_chunks().0.iter().map(|pair| f16::from_ne_bytes(*pair).to_f32()).collect(),
        DType::F32 | DType::I32 => bytes.as_chunks().0.iter().map(|word| f32::from_ne_bytes(*word)).collect(),
    }
}

/// Numbers for inputs (SplitMix64): fast, and the same on every run.
struct Random {
    state: u64,
}

impl Random {
    fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `end`.
    fn below(&mut self, end: usize) -> usize {
        (self.bits() % end as u64) as usize
    }

    /// About normal, of variance 1: the sum of four uniform numbers.
    fn normal(&mut self) -> f32 {
        let bits = self.bits();
        let sum: f32 = (0..4).map(|i| (bits >> (16 * i) & 0xffff) as f32 / 65536.0).sum();
        (sum - 2.0) * 3.0_f32.sqrt()
    }
}
