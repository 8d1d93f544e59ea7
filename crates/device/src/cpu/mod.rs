//! The CPU: the reference for every operation, and fast enough to be used.

mod activation;
mod attention;
mod copies;
pub mod embed;
pub mod features;
mod lanes;
mod load;
pub mod matmul;
pub mod memory;
mod norm;
mod parallel;
pub mod philox;
pub mod pool;
pub mod quant;
mod rope;
mod sampling;
pub(crate) mod views;

use std::sync::{Mutex, PoisonError};

use self::features::Features;
use self::matmul::Workspace;
use self::matmul::huge_pages::HugePages;
use self::pool::Pool;
use crate::DeviceError;
use crate::backend::{Backend, Heads, KvLayer};
use crate::batch::{BatchLayout, Plan};
use crate::dtype::DType;
use crate::matrix::{Format, Matrix};
use crate::sampling::{SampleRow, SampledRow};
use crate::source::RowSource;
use crate::tensor::{Allocation, View, ViewMut};

/// A CPU as one rank's device: activations in F32, operations done when they return.
pub struct Cpu {
    pool: Pool,
    features: Features,
    /// One a thread of the pool: what attention computes in, grown when first needed.
    scratch: Vec<Mutex<Vec<f32>>>,
    /// Attention's results of spans that several threads share.
    partials: Mutex<Vec<f32>>,
    /// Where matrices lie.
    pages: HugePages,
    /// Where `matmul` keeps its activations.
    workspace: Mutex<Workspace>,
    /// What was chosen, until it is collected.
    sampled: Mutex<sampling::Results>,
}

impl Cpu {
    /// A device that computes on `threads` threads, the calling one included, with the best instructions there are.
    ///
    /// # Errors
    /// `threads` is zero.
    pub fn new(threads: usize) -> Result<Self, DeviceError> {
        Self::with_features(threads, Features::detect())
    }

    /// As [`Cpu::new`], but with the instructions named: tests run every set the machine has.
    ///
    /// # Errors
    /// `threads` is zero.
    pub fn with_features(threads: usize, features: Features) -> Result<Self, DeviceError> {
        if threads == 0 {
            return Err(DeviceError("a CPU device needs at least one thread".to_owned()));
        }
        Ok(Self {
            pool: Pool::new(threads),
            features,
            scratch: (0..threads).map(|_| Mutex::new(Vec::new())).collect(),
            partials: Mutex::new(Vec::new()),
            pages: HugePages::new(),
            workspace: Mutex::new(Workspace::new(features)),
            sampled: Mutex::default(),
        })
    }
}

impl Backend for Cpu {
    fn describe(&self) -> String {
        let threads = self.pool.threads();
        let threads = if threads == 1 { "1 thread".to_owned() } else { format!("{threads} threads") };
        format!("CPU, {threads}, {}", self.features.describe())
    }

    fn activation_dtype(&self) -> DType {
        DType::F32
    }

    fn allocate(&self, bytes: usize) -> Result<Allocation, DeviceError> {
        memory::allocate(bytes)
    }

    fn write(&self, to: ViewMut<'_>, bytes: &[u8]) {
        memory::write(to, bytes);
    }

    fn read(&self, from: View<'_>, bytes: &mut [u8]) {
        memory::read(from, bytes);
    }

    fn load_matrix(
        &self,
        format: Format,
        rows: usize,
        columns: usize,
        source: &dyn RowSource,
    ) -> Result<Matrix, DeviceError> {
        load::matrix(self, format, rows, columns, source)
    }

    fn plan(&self, layout: BatchLayout, _: Heads) -> Plan {
        Plan { layout, device: None }
    }

    fn token_ids(&self, out: ViewMut<'_>, plan: &Plan, sampled: View<'_>) {
        copies::token_ids(out, plan, sampled);
    }

    fn embed(&self, out: ViewMut<'_>, ids: View<'_>, table: &Matrix, first_id: usize) {
        embed::embed(&self.pool, out, ids, table, first_id);
    }

    fn rms_norm(&self, out: ViewMut<'_>, x: View<'_>, weight: View<'_>, eps: f32) {
        norm::rms_norm(self, out, x, weight, eps);
    }

    fn add_rms_norm(&self, out: ViewMut<'_>, residual: ViewMut<'_>, x: View<'_>, weight: View<'_>, eps: f32) {
        norm::add_rms_norm(self, out, residual, x, weight, eps);
    }

    fn matmul(&self, out: ViewMut<'_>, x: View<'_>, weight: &Matrix, bias: Option<View<'_>>) {
        let mut workspace = self.workspace.lock().unwrap_or_else(PoisonError::into_inner);
        matmul::matmul(&self.pool, &mut workspace, out, x, weight, bias);
    }

    fn rope_and_store(&self, qkv: ViewMut<'_>, rope: View<'_>, kv: &mut KvLayer, plan: &Plan, heads: Heads) {
        rope::rope_and_store(self, qkv, rope, kv, &plan.layout, heads);
    }

    fn attention(&self, out: ViewMut<'_>, qkv: View<'_>, kv: &KvLayer, plan: &Plan, heads: Heads) {
        attention::attention(self, out, qkv, kv, &plan.layout, heads);
    }

    fn silu_mul(&self, out: ViewMut<'_>, gate_up: View<'_>) {
        activation::silu_mul(self, out, gate_up);
    }

    fn gather_sample_rows(&self, out: ViewMut<'_>, x: View<'_>, plan: &Plan) {
        copies::gather_sample_rows(out, x, plan);
    }

    fn copy_blocks(&self, kv: &mut KvLayer, copies: &[(u32, u32)]) {
        copies::copy_blocks(kv, copies);
    }

    fn sample(&self, logits: ViewMut<'_>, vocab: usize, rows: &[SampleRow], tokens: ViewMut<'_>) {
        sampling::sample(self, logits, vocab, rows, tokens);
    }

    fn end_step(&self) {
        self.sampled.lock().unwrap_or_else(PoisonError::into_inner).end_step();
    }

    fn is_done(&self) -> bool {
        self.sampled.lock().unwrap_or_else(PoisonError::into_inner).is_done()
    }

    fn collect(&self) -> Result<Vec<SampledRow>, DeviceError> {
        Ok(self.sampled.lock().unwrap_or_else(PoisonError::into_inner).collect())
    }
}

/// A position, slot or row as an index.
fn index(number: i32) -> usize {
    usize::try_from(number).expect("the layout's numbers count from 0")
}
