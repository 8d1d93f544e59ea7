//! A CPU that pretends to be as a GPU is: when an operation returns, nobody knows whether it is done.

use phalanx_device::backend::{Heads, KvLayer};
use phalanx_device::cpu::Cpu;
use phalanx_device::{
    Allocation, Backend, BatchLayout, DType, DeviceError, Format, Graph, Matrix, Plan, RowSource, SampleRow,
    SampledRow, View, ViewMut,
};

/// Steps stay under way until they are waited for, and to record one fails, which must do no harm.
pub(crate) struct Late(pub(crate) Cpu);

impl Backend for Late {
    fn is_done(&self) -> bool {
        false
    }

    fn record(&self, _: &Plan, _: &mut dyn FnMut()) -> Result<Option<Graph>, DeviceError> {
        Err(DeviceError("this device records nothing".to_owned()))
    }

    fn describe(&self) -> String {
        self.0.describe()
    }

    fn activation_dtype(&self) -> DType {
        self.0.activation_dtype()
    }

    fn allocate(&self, bytes: usize) -> Result<Allocation, DeviceError> {
        self.0.allocate(bytes)
    }

    fn write(&self, to: ViewMut<'_>, bytes: &[u8]) {
        self.0.write(to, bytes);
    }

    fn read(&self, from: View<'_>, bytes: &mut [u8]) {
        self.0.read(from, bytes);
    }

    fn load_matrix(
        &self,
        format: Format,
        rows: usize,
        columns: usize,
        source: &dyn RowSource,
    ) -> Result<Matrix, DeviceError> {
        self.0.load_matrix(format, rows, columns, source)
    }

    fn plan(&self, layout: BatchLayout, heads: Heads) -> Plan {
        self.0.plan(layout, heads)
    }

    fn token_ids(&self, out: ViewMut<'_>, plan: &Plan, sampled: View<'_>) {
        self.0.token_ids(out, plan, sampled);
    }

    fn embed(&self, out: ViewMut<'_>, ids: View<'_>, table: &Matrix, first_id: usize) {
        self.0.embed(out, ids, table, first_id);
    }

    fn rms_norm(&self, out: ViewMut<'_>, x: View<'_>, weight: View<'_>, eps: f32) {
        self.0.rms_norm(out, x, weight, eps);
    }

    fn add_rms_norm(&self, out: ViewMut<'_>, residual: ViewMut<'_>, x: View<'_>, weight: View<'_>, eps: f32) {
        self.0.add_rms_norm(out, residual, x, weight, eps);
    }

    fn matmul(&self, out: ViewMut<'_>, x: View<'_>, weight: &Matrix, bias: Option<View<'_>>) {
        self.0.matmul(out, x, weight, bias);
    }

    fn rope_and_store(&self, qkv: ViewMut<'_>, rope: View<'_>, kv: &mut KvLayer, plan: &Plan, heads: Heads) {
        self.0.rope_and_store(qkv, rope, kv, plan, heads);
    }

    fn attention(&self, out: ViewMut<'_>, qkv: View<'_>, kv: &KvLayer, plan: &Plan, heads: Heads) {
        self.0.attention(out, qkv, kv, plan, heads);
    }

    fn silu_mul(&self, out: ViewMut<'_>, gate_up: View<'_>) {
        self.0.silu_mul(out, gate_up);
    }

    fn gather_sample_rows(&self, out: ViewMut<'_>, x: View<'_>, plan: &Plan) {
        self.0.gather_sample_rows(out, x, plan);
    }

    fn copy_blocks(&self, kv: &mut KvLayer, copies: &[(u32, u32)]) {
        self.0.copy_blocks(kv, copies);
    }

    fn sample(&self, logits: ViewMut<'_>, vocab: usize, rows: &[SampleRow], tokens: ViewMut<'_>) {
        self.0.sample(logits, vocab, rows, tokens);
    }

    fn end_step(&self) {
        self.0.end_step();
    }

    fn collect(&self) -> Result<Vec<SampledRow>, DeviceError> {
        self.0.collect()
    }
}
