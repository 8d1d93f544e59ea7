//! What a kind of device must offer: one method an operation, every shape checked already by [`crate::Device`].

use crate::DeviceError;
use crate::batch::{BatchLayout, Plan};
use crate::dtype::DType;
use crate::graph::Graph;
use crate::matrix::{Format, Matrix};
use crate::noise::{Noise, NoiseRows};
use crate::sampling::{SampleRow, SampledRow};
use crate::source::RowSource;
use crate::tensor::{Allocation, Tensor, View, ViewMut};

/// A rank's share of an attention layer's heads.
///
/// Query heads are dealt in contiguous runs, so a run may begin inside a group: local query head `h` reads local
/// KV head `(group_offset + h) / group_size`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads of this rank.
    pub num_heads: usize,
    /// KV heads of this rank (replicated on ranks that share one).
    pub num_kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Query heads per KV head in the whole model (Qwen2.5-7B: 7).
    pub group_size: usize,
    /// How many query heads of its first KV head's group lie on ranks before this one.
    pub group_offset: usize,
}

impl Heads {
    /// The local KV head that local query head `head` reads.
    #[must_use]
    pub const fn kv_head(&self, head: usize) -> usize {
        (self.group_offset + head) / self.group_size
    }

    /// Columns of a row of q, k and v side by side: `(num_heads + 2 * num_kv_heads) * head_dim`.
    #[must_use]
    pub const fn qkv_width(&self) -> usize {
        (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
    }
}

/// One layer's keys and values: each `[num_blocks, num_kv_heads, block_size, head_dim]`, flattened to rows of `head_dim`.
#[derive(Debug)]
pub struct KvLayer {
    /// Rotated keys.
    pub keys: Tensor,
    /// Values.
    pub values: Tensor,
    /// Blocks in the pool.
    pub num_blocks: usize,
    /// Tokens a block holds.
    pub block_size: usize,
}

/// A kind of device. One value is one rank's; it is used from one thread at a time.
///
/// Operations are ordered: each sees what those before it wrote. They may return before they are done;
/// `read` and `collect` wait. A step is what lies between two calls of `end_step`; several may be under way.
pub trait Backend: Send {
    /// For people, for example `CPU, 2 threads, AVX-512 VNNI + BF16`.
    fn describe(&self) -> String;

    /// The type activations are kept in (CPU: F32).
    fn activation_dtype(&self) -> DType;

    /// Memory of this kind, zeroed, aligned to 256 bytes.
    ///
    /// # Errors
    /// There is not that much left; says how much there is.
    fn allocate(&self, bytes: usize) -> Result<Allocation, DeviceError>;

    /// Copies host bytes to an unstrided view.
    fn write(&self, to: ViewMut<'_>, bytes: &[u8]);

    /// Copies an unstrided view to the host, after all operations before.
    fn read(&self, from: View<'_>, bytes: &mut [u8]);

    /// Takes a weight `[rows, columns]`, encoded row after row as in a file, into this device's memory and best layout.
    /// Several threads read from `source`.
    ///
    /// # Errors
    /// No memory, saying how much was asked; or what the source says.
    fn load_matrix(
        &self,
        format: Format,
        rows: usize,
        columns: usize,
        source: &dyn RowSource,
    ) -> Result<Matrix, DeviceError>;

    /// A weight of made-up numbers in a dense format: rectangles of one width, one below the other.
    ///
    /// # Errors
    /// No memory; says how much was asked.
    fn make_matrix(&self, format: Format, pieces: &[Noise]) -> Result<Matrix, DeviceError> {
        let rows = pieces.iter().map(|piece| piece.rows.len()).sum();
        self.load_matrix(format, rows, pieces[0].columns.len(), &NoiseRows { format, pieces })
    }

    /// Prepares a step: validates nothing (the layout is trusted), uploads what kernels need, decides how attention with
    /// `heads` is split. A plan is used before the next one is made.
    fn plan(&self, layout: BatchLayout, heads: Heads) -> Plan;

    /// `out[t] = plan.layout.ids[t]`, or `sampled[k]` where that is `-(k + 1)`; all I32, `out` and `sampled` `[…, 1]`.
    fn token_ids(&self, out: ViewMut<'_>, plan: &Plan, sampled: View<'_>);

    /// `out[t] = table[ids[t] - first_id]`, or zeros when that row is another rank's. `ids` is I32 `[tokens, 1]`.
    fn embed(&self, out: ViewMut<'_>, ids: View<'_>, table: &Matrix, first_id: usize);

    /// `out = x / sqrt(mean(x^2) + eps) * weight`, row by row; `weight` is F32 `[1, width]`.
    fn rms_norm(&self, out: ViewMut<'_>, x: View<'_>, weight: View<'_>, eps: f32);

    /// `residual += x`, then `out = rms_norm(residual)`.
    fn add_rms_norm(&self, out: ViewMut<'_>, residual: ViewMut<'_>, x: View<'_>, weight: View<'_>, eps: f32);

    /// `out[t, n] = sum_k x[t, k] * weight[n, k] + bias[n]`; `bias` is F32 `[1, rows]`; `out` may be F32 (logits).
    fn matmul(&self, out: ViewMut<'_>, x: View<'_>, weight: &Matrix, bias: Option<View<'_>>);

    /// Rotates q and k of `qkv` `[tokens, qkv_width]` in place by each row's position (NeoX halves) and stores k and v
    /// in their slots. `rope` is F32 `[max_len, head_dim]`: cosines of the `head_dim / 2` angles, then sines.
    fn rope_and_store(&self, qkv: ViewMut<'_>, rope: View<'_>, kv: &mut KvLayer, plan: &Plan, heads: Heads);

    /// Causal attention over each sequence's blocks, `out` `[tokens, num_heads * head_dim]`, q the first columns of `qkv`.
    fn attention(&self, out: ViewMut<'_>, qkv: View<'_>, kv: &KvLayer, plan: &Plan, heads: Heads);

    /// `out = silu(gate) * up` for `gate_up` `[tokens, 2 * width]`, gate first.
    fn silu_mul(&self, out: ViewMut<'_>, gate_up: View<'_>);

    /// `out = silu(x gate^T) * (x up^T)` for a weight of gate over up; `gate_up` `[tokens, 2 * width]` is room for the
    /// products and holds nothing of use afterwards.
    fn matmul_silu_mul(&self, out: ViewMut<'_>, mut gate_up: ViewMut<'_>, x: View<'_>, weight: &Matrix) {
        self.matmul(gate_up.reborrow(), x, weight, None);
        self.silu_mul(out, gate_up.view());
    }

    /// `out[i] = x[plan.layout.sample_rows[i]]`.
    fn gather_sample_rows(&self, out: ViewMut<'_>, x: View<'_>, plan: &Plan);

    /// Copies whole blocks `(from, to)` of one layer.
    fn copy_blocks(&self, kv: &mut KvLayer, copies: &[(u32, u32)]);

    /// Chooses a token below `vocab` for each row of `logits` F32 `[rows, at least vocab]`. Its id is written to `tokens`
    /// I32 `[rows, 1]`, for a step to come; everything about it comes with `collect`.
    fn sample(&self, logits: ViewMut<'_>, vocab: usize, rows: &[SampleRow], tokens: ViewMut<'_>);

    /// Records what `work` starts with `plan` instead of starting it. `work` was done before with the same shapes, so that
    /// nothing in it has to wait. None where this back end records nothing, or not this plan.
    ///
    /// # Errors
    /// Something in `work` cannot be recorded; nothing else has changed.
    fn record(&self, _plan: &Plan, _work: &mut dyn FnMut()) -> Result<Option<Graph>, DeviceError> {
        Ok(None)
    }

    /// Starts recorded work with the newest plan, `plan`: its rows, sequences and samples are as many as were recorded.
    /// False, and nothing started, when it does not lie where the recorded one lay.
    fn replay(&self, _graph: &Graph, _plan: &Plan) -> bool {
        false
    }

    /// Ends a step, without waiting for it: what its last `sample` chose waits to be collected.
    fn end_step(&self);

    /// The oldest step that has ended and was not collected is done: `collect` would not wait.
    fn is_done(&self) -> bool;

    /// Waits until nothing that was started runs any more, whatever became of it: before memory is given back that it, or
    /// another rank, may use.
    fn wait_idle(&self) {}

    /// Waits for the oldest step that was not collected, ending the one at hand when there is no other, and returns what
    /// its `sample` chose (nothing when none was asked).
    ///
    /// # Errors
    /// A fault since the last call: the device is lost for this engine.
    fn collect(&self) -> Result<Vec<SampledRow>, DeviceError>;
}
