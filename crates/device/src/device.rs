//! One rank's machine: checks shapes, then delegates to its back end and its groups.

use crate::DeviceError;
use crate::backend::{Backend, Heads, KvLayer};
use crate::batch::{BatchLayout, Plan};
use crate::collective::Collective;
use crate::dtype::DType;
use crate::graph::Graph;
use crate::matrix::{Format, Matrix};
use crate::noise::Noise;
use crate::sampling::{SampleRow, SampledRow};
use crate::source::RowSource;
use crate::tensor::{Arena, Tensor, View, ViewMut};

/// A rank: a back end, the group it splits layers with (tensor parallel), and the stages around it (pipeline parallel).
pub struct Device {
    backend: Box<dyn Backend>,
    /// The ranks that share each layer with this one.
    tensor_group: Box<dyn Collective>,
    /// The ranks of this column of the mesh, one a stage, first layers first.
    stage_group: Box<dyn Collective>,
}

impl Device {
    /// Puts a rank together.
    #[must_use]
    pub fn new(
        backend: Box<dyn Backend>,
        tensor_group: Box<dyn Collective>,
        stage_group: Box<dyn Collective>,
    ) -> Self {
        Self { backend, tensor_group, stage_group }
    }

    /// The ranks that share each layer with this one.
    #[must_use]
    pub fn tensor_group(&self) -> &dyn Collective {
        self.tensor_group.as_ref()
    }

    /// The stages, one rank each.
    #[must_use]
    pub fn stage_group(&self) -> &dyn Collective {
        self.stage_group.as_ref()
    }

    /// For people: what this is.
    #[must_use]
    pub fn describe(&self) -> String {
        self.backend.describe()
    }

    /// The type of activations.
    #[must_use]
    pub fn activation_dtype(&self) -> DType {
        self.backend.activation_dtype()
    }

    /// One allocation, to be handed out tensor by tensor.
    ///
    /// # Errors
    /// There is not that much memory.
    pub fn arena(&self, bytes: usize) -> Result<Arena, DeviceError> {
        Ok(Arena::new(self.backend.allocate(bytes)?))
    }

    /// A tensor `[rows, width]` of its own, holding `values` as F32.
    ///
    /// # Errors
    /// There is not that much memory.
    pub fn tensor_f32(&self, rows: usize, width: usize, values: &[f32]) -> Result<Tensor, DeviceError> {
        assert!(values.len() == rows * width, "{} values for [{rows}, {width}]", values.len());
        let mut tensor =
            self.arena(Arena::tensor_bytes(DType::F32, rows, width))?.tensor(DType::F32, rows, width);
        let mut bytes = vec![0; values.len() * 4];
        for (bytes, value) in bytes.as_chunks_mut().0.iter_mut().zip(values) {
            *bytes = value.to_ne_bytes();
        }
        self.backend.write(tensor.view_mut(), &bytes);
        Ok(tensor)
    }

    /// Copies integers to an I32 tensor's first elements.
    pub fn write_i32(&self, to: ViewMut<'_>, values: &[i32]) {
        assert!(to.view().dtype() == DType::I32 && to.view().rows() * to.view().width() == values.len());
        assert!(is_dense(to.view()), "an unstrided view");
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
        self.backend.write(to, &bytes);
    }

    /// Copies an unstrided F32 view to the host.
    #[must_use]
    pub fn read_f32(&self, from: View<'_>) -> Vec<f32> {
        assert!(from.dtype() == DType::F32 && is_dense(from), "an unstrided F32 view");
        let mut bytes = vec![0; from.rows() * from.width() * 4];
        self.backend.read(from, &mut bytes);
        bytes.chunks_exact(4).map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    /// See [`Backend::load_matrix`].
    ///
    /// # Errors
    /// There is not that much memory, or the source fails.
    pub fn load_matrix(
        &self,
        format: Format,
        rows: usize,
        columns: usize,
        source: &dyn RowSource,
    ) -> Result<Matrix, DeviceError> {
        let bytes = rows * format.row_bytes(columns);
        assert!(
            source.bytes().is_none_or(|source| source.len() == bytes),
            "{rows} rows of {columns} columns"
        );
        self.backend.load_matrix(format, rows, columns, source)
    }

    /// See [`Backend::make_matrix`].
    ///
    /// # Errors
    /// There is not that much memory.
    pub fn make_matrix(&self, format: Format, pieces: &[Noise]) -> Result<Matrix, DeviceError> {
        assert!(format.is_dense() && pieces.iter().all(|piece| piece.stored.is_dense()), "dense formats");
        let width = pieces[0].columns.len();
        assert!(pieces.iter().all(|piece| piece.columns.len() == width), "rectangles of one width");
        assert!(pieces.iter().all(|piece| piece.columns.end <= piece.tensor_columns), "columns of a tensor");
        self.backend.make_matrix(format, pieces)
    }

    /// See [`Backend::plan`].
    #[must_use]
    pub fn plan(&self, layout: BatchLayout, heads: Heads) -> Plan {
        assert!(layout.ids.is_empty() || layout.ids.len() == layout.tokens(), "an id a token");
        assert!(layout.slots.len() == layout.tokens(), "a slot a token");
        assert!(layout.query_starts.len() == layout.sequences() + 1, "a start a sequence, and the end");
        assert!(
            layout.block_tables.len() == layout.sequences() * layout.blocks_per_row,
            "a table a sequence"
        );
        assert!(
            layout.query_starts.is_sorted() && layout.query_starts[0] == 0,
            "rows in the sequences' order"
        );
        assert!(
            layout.query_starts[layout.sequences()] as usize == layout.tokens(),
            "a sequence for each row"
        );
        let room = layout.blocks_per_row * layout.block_size;
        assert!(layout.context_lens.iter().all(|&len| len as usize <= room), "a block for each token");
        assert!(layout.sample_rows.iter().all(|&row| (row as usize) < layout.tokens()), "samples of rows");
        self.backend.plan(layout, heads)
    }

    /// See [`Backend::token_ids`].
    pub fn token_ids(&self, out: ViewMut<'_>, plan: &Plan, sampled: View<'_>) {
        let ids = &plan.layout.ids;
        assert!(is_id_column(out.view()) && is_id_column(sampled) && out.view().rows() == ids.len());
        assert!(
            ids.iter().all(|&id| 0 <= id || (!id as usize) < sampled.rows()),
            "ids of {}",
            sampled.rows()
        );
        self.backend.token_ids(out, plan, sampled);
    }

    /// See [`Backend::embed`].
    pub fn embed(&self, out: ViewMut<'_>, ids: View<'_>, table: &Matrix, first_id: usize) {
        assert!(out.view().rows() == ids.rows() && out.view().width() == table.columns && ids.width() == 1);
        assert!(ids.dtype() == DType::I32, "ids are integers");
        self.backend.embed(out, ids, table, first_id);
    }

    /// See [`Backend::rms_norm`].
    pub fn rms_norm(&self, out: ViewMut<'_>, x: View<'_>, weight: View<'_>, eps: f32) {
        assert!(same_shape(out.view(), x) && is_vector(weight, x.width()));
        self.backend.rms_norm(out, x, weight, eps);
    }

    /// See [`Backend::add_rms_norm`].
    pub fn add_rms_norm(
        &self,
        out: ViewMut<'_>,
        residual: ViewMut<'_>,
        x: View<'_>,
        weight: View<'_>,
        eps: f32,
    ) {
        assert!(same_shape(out.view(), x) && same_shape(residual.view(), x) && is_vector(weight, x.width()));
        self.backend.add_rms_norm(out, residual, x, weight, eps);
    }

    /// See [`Backend::matmul`].
    pub fn matmul(&self, out: ViewMut<'_>, x: View<'_>, weight: &Matrix, bias: Option<View<'_>>) {
        assert!(out.view().rows() == x.rows(), "a row out for a row in");
        assert!(out.view().width() == weight.rows && x.width() == weight.columns, "the weight's shape");
        assert!(bias.is_none_or(|bias| is_vector(bias, weight.rows)), "a bias for each row of the weight");
        self.backend.matmul(out, x, weight, bias);
    }

    /// See [`Backend::rope_and_store`].
    pub fn rope_and_store(
        &self,
        qkv: ViewMut<'_>,
        rope: View<'_>,
        kv: &mut KvLayer,
        plan: &Plan,
        heads: Heads,
    ) {
        assert!(qkv.view().rows() == plan.layout.tokens() && qkv.view().width() == heads.qkv_width());
        assert!(rope.dtype() == DType::F32 && rope.width() == heads.head_dim, "an angle for each pair");
        let len = rope.rows();
        assert!(plan.layout.positions.iter().all(|&position| (position as usize) < len), "angles to {len}");
        let slots = kv.num_blocks * kv.block_size;
        assert!(plan.layout.slots.iter().all(|&slot| (slot as usize) < slots), "slots of {slots}");
        check_cache(kv, plan, heads);
        self.backend.rope_and_store(qkv, rope, kv, plan, heads);
    }

    /// See [`Backend::attention`].
    pub fn attention(&self, out: ViewMut<'_>, qkv: View<'_>, kv: &KvLayer, plan: &Plan, heads: Heads) {
        assert!(out.view().rows() == plan.layout.tokens() && qkv.rows() == plan.layout.tokens());
        assert!(out.view().width() == heads.num_heads * heads.head_dim && qkv.width() == heads.qkv_width());
        assert!(heads.head_dim.is_multiple_of(16), "heads of {} elements: not whole vectors", heads.head_dim);
        check_cache(kv, plan, heads);
        self.backend.attention(out, qkv, kv, plan, heads);
    }

    /// See [`Backend::silu_mul`].
    pub fn silu_mul(&self, out: ViewMut<'_>, gate_up: View<'_>) {
        assert!(out.view().rows() == gate_up.rows() && out.view().width() * 2 == gate_up.width());
        self.backend.silu_mul(out, gate_up);
    }

    /// See [`Backend::matmul_silu_mul`].
    pub fn matmul_silu_mul(&self, out: ViewMut<'_>, gate_up: ViewMut<'_>, x: View<'_>, weight: &Matrix) {
        let (tokens, width) = (x.rows(), out.view().width());
        assert!(out.view().rows() == tokens && gate_up.view().rows() == tokens, "a row out for a row in");
        assert!(gate_up.view().width() == 2 * width && weight.rows == 2 * width, "gate over up");
        assert!(x.width() == weight.columns, "the weight's shape");
        self.backend.matmul_silu_mul(out, gate_up, x, weight);
    }

    /// See [`Backend::gather_sample_rows`].
    pub fn gather_sample_rows(&self, out: ViewMut<'_>, x: View<'_>, plan: &Plan) {
        assert!(out.view().rows() == plan.layout.sample_rows.len() && out.view().width() == x.width());
        self.backend.gather_sample_rows(out, x, plan);
    }

    /// See [`Backend::copy_blocks`].
    pub fn copy_blocks(&self, kv: &mut KvLayer, copies: &[(u32, u32)]) {
        let inside = |block: u32| (block as usize) < kv.num_blocks;
        assert!(copies.iter().all(|&(from, to)| inside(from) && inside(to)), "blocks of {}", kv.num_blocks);
        self.backend.copy_blocks(kv, copies);
    }

    /// Sums `x` over the tensor group.
    pub fn all_reduce(&self, x: ViewMut<'_>) {
        self.tensor_group.all_reduce(x);
    }

    /// `residual += sum of x over the tensor group`, then `out = rms_norm(residual)`; `x` is scratch afterwards. See
    /// [`Collective::all_reduce_add_rms_norm`].
    pub fn all_reduce_add_rms_norm(
        &self,
        out: ViewMut<'_>,
        residual: ViewMut<'_>,
        x: ViewMut<'_>,
        weight: View<'_>,
        eps: f32,
    ) {
        assert!(same_shape(out.view(), x.view()) && same_shape(residual.view(), x.view()));
        assert!(is_vector(weight, x.view().width()), "a weight for each column");
        let backend = self.backend.as_ref();
        self.tensor_group.all_reduce_add_rms_norm(backend, out, residual, x, weight, eps);
    }

    /// Puts the tensor group's columns side by side; see [`Collective::gather_columns`].
    pub fn gather_columns(&self, out: ViewMut<'_>, x: View<'_>) {
        self.tensor_group.gather_columns(out, x);
    }

    /// Whether what this rank does with others may be recorded in a graph; see [`Collective::capturable`].
    #[must_use]
    pub fn capturable(&self) -> bool {
        self.tensor_group.capturable() && self.stage_group.capturable()
    }

    /// Ends the waits of the ranks around this one, which is lost; see [`Collective::abort`].
    pub fn abort(&self, reason: &str) {
        self.tensor_group.abort(reason);
        self.stage_group.abort(reason);
    }

    /// See [`Backend::sample`].
    pub fn sample(&self, logits: ViewMut<'_>, vocab: usize, rows: &[SampleRow], tokens: ViewMut<'_>) {
        assert!(logits.view().rows() == rows.len() && vocab <= logits.view().width());
        assert!(0 < vocab && logits.view().dtype() == DType::F32, "F32 logits of some tokens");
        assert!(is_id_column(tokens.view()) && tokens.view().rows() == rows.len(), "a token a row");
        self.backend.sample(logits, vocab, rows, tokens);
    }

    /// See [`Backend::record`].
    ///
    /// # Errors
    /// Something in `work` cannot be recorded; nothing else has changed.
    pub fn record(&self, plan: &Plan, work: &mut dyn FnMut()) -> Result<Option<Graph>, DeviceError> {
        // A group whose operations wait on the host would wait while nothing runs.
        if !self.tensor_group.capturable() || !self.stage_group.capturable() {
            return Ok(None);
        }
        let recorded = self.backend.record(plan, work);
        let groups = [&self.tensor_group, &self.stage_group];
        // Both are asked: what one leaves would spoil the next recording.
        match groups.map(|group| group.take_unrecorded()) {
            [false, false] => recorded,
            _ => {
                recorded.and(Err(DeviceError("the GPU refused to record what ranks do together".to_owned())))
            }
        }
    }

    /// See [`Backend::replay`].
    #[must_use]
    pub fn replay(&self, graph: &Graph, plan: &Plan) -> bool {
        self.backend.replay(graph, plan)
    }

    /// See [`Backend::end_step`].
    pub fn end_step(&self) {
        self.backend.end_step();
    }

    /// See [`Backend::wait_idle`].
    pub fn wait_idle(&self) {
        self.backend.wait_idle();
    }

    /// See [`Backend::is_done`].
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.backend.is_done()
    }

    /// See [`Backend::collect`]; a fault of a group comes out here, too.
    ///
    /// # Errors
    /// A fault since the last call.
    pub fn collect(&self) -> Result<Vec<SampledRow>, DeviceError> {
        let sampled = self.backend.collect()?;
        match self.tensor_group.fault().or_else(|| self.stage_group.fault()) {
            Some(fault) => Err(fault),
            None => Ok(sampled),
        }
    }
}

/// A cache whose shape is that of `heads` and of the step's blocks.
fn check_cache(kv: &KvLayer, plan: &Plan, heads: Heads) {
    let rows = kv.num_blocks * heads.num_kv_heads * kv.block_size;
    assert!(kv.keys.rows() == rows && kv.keys.width() == heads.head_dim, "keys [{rows}, {}]", heads.head_dim);
    assert!(kv.values.rows() == rows && kv.values.width() == heads.head_dim, "values as keys");
    assert!(kv.keys.dtype() == kv.values.dtype() && kv.block_size == plan.layout.block_size, "one cache");
    assert!(0 < heads.num_heads && heads.group_offset < heads.group_size, "a run of heads");
    assert!(heads.kv_head(heads.num_heads - 1) < heads.num_kv_heads, "a KV head for each head");
}

/// F32 `[1, width]`.
fn is_vector(view: View<'_>, width: usize) -> bool {
    view.dtype() == DType::F32 && view.rows() == 1 && view.width() == width
}

/// I32 `[rows, 1]` without gaps.
fn is_id_column(view: View<'_>) -> bool {
    view.dtype() == DType::I32 && view.width() == 1 && is_dense(view)
}

/// Rows without gaps.
fn is_dense(view: View<'_>) -> bool {
    view.stride() == view.width() || view.rows() <= 1
}

fn same_shape(a: View<'_>, b: View<'_>) -> bool {
    a.rows() == b.rows() && a.width() == b.width()
}
