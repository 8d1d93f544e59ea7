//! One NVIDIA GPU as a back end: kernels of `cuda/*.cu` in one stream, cuBLASLt for large products.
//!
//! Compiled only with the feature `cuda`; starts without a driver, where [`Cuda::new`] says so.
#![allow(unsafe_code)]

pub mod card;
pub mod code;
mod cublaslt;
mod graphs;
pub mod group;
mod items;
mod kernels;
pub mod libraries;
mod library;
pub mod links;
mod load;
mod matmul;
pub mod nvml;
pub mod parity;
mod rooms;
mod runtime;
mod sampler;
pub mod speed;
mod steps;

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::sync::Arc;

use crate::DeviceError;
use crate::backend::{Backend, Heads, KvLayer};
use crate::batch::{BatchLayout, DevicePlan, Plan};
use crate::cuda::code::Code;
use crate::cuda::cublaslt::Shape;
use crate::cuda::items::ITEM_WORDS;
use crate::cuda::kernels::{AttentionParams, Element, Launch};
use crate::cuda::kernels::{
    EmbedParams, GatherRowsParams, RmsNormParams, RopeAndStoreParams, SiluMulParams, TokenIdsParams,
};
use crate::cuda::load::Loaders;
use crate::cuda::matmul::{Matmul, Product};
use crate::cuda::rooms::Rooms;
use crate::cuda::runtime::Stream;
use crate::cuda::sampler::Sampler;
use crate::cuda::steps::{Offsets, Steps};
use crate::dtype::DType;
use crate::graph::Graph;
use crate::growth::Growth;
use crate::matrix::{Format, Matrix};
use crate::noise::Noise;
use crate::sampling::{SampleRow, SampledRow};
use crate::source::RowSource;
use crate::tensor::{Allocation, View, ViewMut};
use crate::tuning::Tunings;

/// How many GPUs there are.
///
/// # Errors
/// There is no driver; says so.
pub fn device_count() -> Result<usize, DeviceError> {
    runtime::device_count()
}

/// Bytes free and bytes there are on GPU `ordinal`, whoever holds the rest.
///
/// # Errors
/// There is no such GPU, or it is lost.
pub fn memory(ordinal: usize) -> Result<(usize, usize), DeviceError> {
    runtime::use_device(ordinal)?;
    runtime::memory()
}

/// Heads no wider than this have kernels.
const MAX_HEAD_DIM: usize = 128;

/// One GPU's rank.
pub struct Cuda {
    ordinal: usize,
    description: String,
    element: Element,
    multiprocessors: usize,
    /// Kernels may start while the one before drains (code of sm_90 and up).
    overlaps: Cell<bool>,
    /// Code of sm_90a runs here, no other: long queries have a kernel of their own.
    hopper: bool,
    matmul: Matmul,
    steps: RefCell<Steps>,
    sampler: RefCell<Sampler>,
    attention: AttentionWorkspace,
    /// For tensors and caches.
    rooms: Rooms,
    growth: Arc<Growth>,
    /// While weights are taken in.
    loaders: RefCell<Option<Loaders>>,
    fault: RefCell<Option<DeviceError>>,
    /// Dropped last: everything above was used in it.
    stream: Arc<Stream>,
}

/// Where splits of an attention tile meet.
struct AttentionWorkspace {
    partial_outs: Allocation,
    partial_stats: Allocation,
    counters: Allocation,
}

impl AttentionWorkspace {
    fn new(ordinal: usize, multiprocessors: usize, stream: &Stream) -> Result<Self, DeviceError> {
        let rows = items::max_partial_rows(multiprocessors);
        let counters = runtime::allocate(ordinal, items::max_counters(multiprocessors) * 4)?;
        stream.fill(counters.address(), 0, counters.bytes())?;
        Ok(Self {
            partial_outs: runtime::allocate(ordinal, rows * MAX_HEAD_DIM * 4)?,
            partial_stats: runtime::allocate(ordinal, rows * 8)?,
            counters,
        })
    }
}

impl Cuda {
    /// Opens GPU `ordinal`, to compute in `dtype` ([`DType::BF16`] or [`DType::F16`]).
    ///
    /// # Errors
    /// There is no driver or no such GPU, this binary's kernels are not for it, or it has no memory left.
    pub fn new(ordinal: usize, dtype: DType) -> Result<Self, DeviceError> {
        Self::with_libraries(ordinal, dtype, &[])
    }

    /// As [`Cuda::new`], looking for NVIDIA's libraries in `folders` first.
    ///
    /// # Errors
    /// As [`Cuda::new`]. A missing cuBLASLt is no error: [`Backend::describe`] names it.
    pub fn with_libraries(ordinal: usize, dtype: DType, folders: &[PathBuf]) -> Result<Self, DeviceError> {
        Self::with_tunings(ordinal, dtype, folders, Arc::new(Tunings::at_first_use()))
    }

    /// As [`Cuda::with_libraries`], multiplying as `tunings` says, which GPUs share.
    ///
    /// # Errors
    /// As [`Cuda::with_libraries`].
    pub fn with_tunings(
        ordinal: usize,
        dtype: DType,
        folders: &[PathBuf],
        tunings: Arc<Tunings>,
    ) -> Result<Self, DeviceError> {
        let element = match dtype {
            DType::BF16 => Element::BF16,
            DType::F16 => Element::F16,
            DType::F32 | DType::I32 => {
                return Err(DeviceError(format!("a GPU computes in bfloat16 or float16, not in {dtype:?}")));
            }
        };
        let count = device_count()?;
        if count <= ordinal {
            return Err(DeviceError(format!("there is no GPU {ordinal}: this machine has {count}")));
        }
        runtime::use_device(ordinal)?;
        let facts = runtime::facts(ordinal)?;
        let code = Code::of(ordinal)?;
        let multiprocessors = facts.multiprocessors as usize;
        let stream = Arc::new(Stream::new()?);
        let kind = format!("{}, {multiprocessors} multiprocessors, {}", facts.name(), code.describe());
        let matmul = Matmul::new(ordinal, (&kind, facts.l2_bytes as usize), element, folders, tunings)?;
        let description = facts.describe(ordinal, code, element, &matmul.describe());
        let growth = Arc::default();
        let cuda = Self {
            ordinal,
            description,
            element,
            multiprocessors,
            overlaps: Cell::new(code.overlaps()),
            hopper: code.has_warpgroups(),
            matmul,
            steps: RefCell::new(Steps::new(ordinal, multiprocessors, &growth)?),
            sampler: RefCell::new(Sampler::new(ordinal, &growth)?),
            attention: AttentionWorkspace::new(ordinal, multiprocessors, &stream)?,
            rooms: Rooms::new(ordinal, "a tensor", &growth),
            growth,
            loaders: RefCell::default(),
            fault: RefCell::new(None),
            stream,
        };
        cuda.stream.synchronize()?;
        Ok(cuda)
    }

    /// The GPU's number.
    #[must_use]
    pub fn ordinal(&self) -> usize {
        self.ordinal
    }

    /// Bytes free and bytes there are on the card, whoever holds the rest.
    ///
    /// # Errors
    /// The device is lost.
    pub fn memory(&self) -> Result<(usize, usize), DeviceError> {
        memory(self.ordinal)
    }

    /// What it allocates while it serves.
    #[must_use]
    pub fn growth(&self) -> Arc<Growth> {
        Arc::clone(&self.growth)
    }

    /// No kernel starts before the one ahead of it is done: where ranks share this GPU, kernels that start early could take
    /// all the room, and what they wait for in turn would wait for room.
    pub fn start_in_turn(&self) {
        self.overlaps.set(false);
    }

    /// Where to launch, on the thread at hand.
    fn launch(&self) -> Launch {
        self.note(runtime::use_device(self.ordinal));
        Launch {
            stream: self.stream.handle(),
            overlaps: u32::from(self.overlaps.get()),
            multiprocessors: self.multiprocessors as u32,
        }
    }

    /// Keeps the first fault for `collect`.
    fn note(&self, result: Result<(), DeviceError>) {
        if let Err(error) = result {
            self.fault.borrow_mut().get_or_insert(error);
        }
    }

    /// Notes a launcher's result.
    fn launched(&self, code: i32, operation: &str) {
        self.note(runtime::check(code, operation));
    }

    fn is_activation(&self, view: View<'_>) -> bool {
        view.dtype() == self.element.dtype()
    }
}

/// A table's or array's address within a plan's memory.
fn word(address: usize, words: usize) -> usize {
    address + words * 4
}

/// A dimension as kernels take it.
fn dim(value: usize) -> u32 {
    u32::try_from(value).expect("dimensions are below four billion")
}

/// The plan's arrays; none when they could not be copied here, which is a fault by now.
fn device_plan(plan: &Plan) -> (usize, Offsets) {
    let arrays = plan.device.as_ref().map_or(0, |device| device.arrays.view().address());
    (arrays, Offsets::of(&plan.layout))
}

impl Backend for Cuda {
    fn describe(&self) -> String {
        self.description.clone()
    }

    fn activation_dtype(&self) -> DType {
        self.element.dtype()
    }

    fn allocate(&self, bytes: usize) -> Result<Allocation, DeviceError> {
        let allocation = self.rooms.device(bytes)?;
        self.stream.fill(allocation.address(), 0, bytes)?;
        self.stream.synchronize()?;
        Ok(allocation)
    }

    fn write(&self, to: ViewMut<'_>, bytes: &[u8]) {
        let view = to.view();
        assert!(bytes.len() == view.rows() * view.width() * view.dtype().bytes(), "the view's bytes");
        assert!(view.rows() <= 1 || view.stride() == view.width(), "an unstrided view");
        self.launch();
        self.note(self.stream.copy_to_device(view.address(), bytes.as_ptr(), bytes.len()));
    }

    fn read(&self, from: View<'_>, bytes: &mut [u8]) {
        assert!(bytes.len() == from.rows() * from.width() * from.dtype().bytes(), "the view's bytes");
        assert!(from.rows() <= 1 || from.stride() == from.width(), "an unstrided view");
        self.launch();
        self.note(self.stream.copy_to_host(bytes.as_mut_ptr(), from.address(), bytes.len()));
        self.note(self.stream.synchronize());
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

    fn make_matrix(&self, _format: Format, pieces: &[Noise]) -> Result<Matrix, DeviceError> {
        load::noise(self, pieces)
    }

    fn plan(&self, layout: BatchLayout, heads: Heads) -> Plan {
        assert!(layout.block_size.is_power_of_two(), "blocks of a power of two of tokens");
        drop(self.loaders.take());
        self.launch();
        let device = self.steps.borrow_mut().upload(&layout, heads, &self.stream);
        let device = device.map_err(|error| self.note(Err(error))).ok();
        Plan { layout, device }
    }

    fn token_ids(&self, out: ViewMut<'_>, plan: &Plan, sampled: View<'_>) {
        let (arrays, offsets) = device_plan(plan);
        let params = TokenIdsParams {
            out: out.view().address(),
            ids: word(arrays, offsets.ids),
            sampled: sampled.address(),
            tokens: dim(out.view().rows()),
            padding: 0,
        };
        // SAFETY: see `kernels`; `Device` checked what the ids refer to.
        self.launched(unsafe { kernels::launch_token_ids(params, self.launch()) }, "token_ids");
    }

    fn embed(&self, out: ViewMut<'_>, ids: View<'_>, table: &Matrix, first_id: usize) {
        assert!(self.is_activation(out.view()) && ids.dtype() == DType::I32, "activations of I32 ids");
        let out = out.view();
        let params = EmbedParams {
            out: out.address(),
            ids: ids.address(),
            table: table.data.address(),
            tokens: dim(out.rows()),
            rows: dim(table.rows),
            width: dim(out.width()),
            out_stride: dim(out.stride()),
            ids_stride: dim(ids.stride()),
            first_id: i32::try_from(first_id).expect("ids are below two billion"),
        };
        // SAFETY: see `kernels`: the addresses are those of views whose shapes `Device` checked.
        self.launched(unsafe { kernels::launch_embed(params, self.element, self.launch()) }, "embed");
    }

    fn rms_norm(&self, out: ViewMut<'_>, x: View<'_>, weight: View<'_>, eps: f32) {
        self.norm(out.view(), None, x, weight, eps);
    }

    fn add_rms_norm(&self, out: ViewMut<'_>, residual: ViewMut<'_>, x: View<'_>, weight: View<'_>, eps: f32) {
        self.norm(out.view(), Some(residual.view()), x, weight, eps);
    }

    fn matmul(&self, out: ViewMut<'_>, x: View<'_>, weight: &Matrix, bias: Option<View<'_>>) {
        let out = out.view();
        assert!(bias.is_none_or(|bias| bias.dtype() == DType::F32), "a bias in F32");
        if out.rows() == 0 {
            return;
        }
        let product = self.product(out, x, weight, bias);
        self.note(self.matmul.run(&product, self.launch(), &self.stream));
    }

    fn rope_and_store(&self, qkv: ViewMut<'_>, rope: View<'_>, kv: &mut KvLayer, plan: &Plan, heads: Heads) {
        assert!(self.is_activation(qkv.view()) && rope.dtype() == DType::F32);
        assert!(kv.keys.dtype() == self.element.dtype(), "keys in the compute type");
        let (arrays, offsets) = device_plan(plan);
        let params = RopeAndStoreParams {
            qkv: qkv.view().address(),
            keys: kv.keys.view_mut().view().address(),
            values: kv.values.view_mut().view().address(),
            rope: rope.address(),
            positions: word(arrays, offsets.positions),
            slots: word(arrays, offsets.slots),
            tokens: dim(qkv.view().rows()),
            qkv_stride: dim(qkv.view().stride()),
            num_heads: dim(heads.num_heads),
            num_kv_heads: dim(heads.num_kv_heads),
            head_dim: dim(heads.head_dim),
            block_size: dim(kv.block_size),
            rope_stride: dim(rope.stride()),
            padding: 0,
        };
        // SAFETY: see `kernels`; slots and positions come with the plan, which is trusted.
        let code = unsafe { kernels::launch_rope_and_store(params, self.element, self.launch()) };
        self.launched(code, "rope_and_store");
    }

    fn attention(&self, out: ViewMut<'_>, qkv: View<'_>, kv: &KvLayer, plan: &Plan, heads: Heads) {
        assert!(self.is_activation(out.view()) && self.is_activation(qkv));
        assert!(kv.block_size == plan.layout.block_size, "the plan's block size");
        let Some(planned) = &plan.device else { return };
        assert!(planned.heads == heads, "attention with the heads it was planned for");
        let (arrays, offsets) = device_plan(plan);
        let params = AttentionParams {
            out: out.view().address(),
            qkv: qkv.address(),
            keys: kv.keys.view().address(),
            values: kv.values.view().address(),
            items: word(arrays, offsets.items),
            arrays,
            num_items: 0,
            partial_outs: self.attention.partial_outs.address(),
            partial_stats: self.attention.partial_stats.address(),
            counters: self.attention.counters.address(),
            grid_items: dim(planned.many + planned.few),
            out_stride: dim(out.view().stride()),
            qkv_stride: dim(qkv.stride()),
            num_heads: dim(heads.num_heads),
            num_kv_heads: dim(heads.num_kv_heads),
            group_size: dim(heads.group_size),
            group_offset: dim(heads.group_offset),
            block_shift: kv.block_size.trailing_zeros(),
            head_dim: dim(heads.head_dim),
            scale: std::f32::consts::LOG2_E / (heads.head_dim as f32).sqrt(),
        };
        self.attend(params, planned, &plan.layout);
    }

    fn silu_mul(&self, out: ViewMut<'_>, gate_up: View<'_>) {
        let out = out.view();
        assert!(self.is_activation(out) && self.is_activation(gate_up));
        let params = SiluMulParams {
            out: out.address(),
            gate_up: gate_up.address(),
            rows: dim(out.rows()),
            width: dim(out.width()),
            out_stride: dim(out.stride()),
            gate_up_stride: dim(gate_up.stride()),
        };
        // SAFETY: see `kernels`.
        self.launched(unsafe { kernels::launch_silu_mul(params, self.element, self.launch()) }, "silu_mul");
    }

    fn matmul_silu_mul(&self, out: ViewMut<'_>, mut gate_up: ViewMut<'_>, x: View<'_>, weight: &Matrix) {
        assert!(self.is_activation(out.view()), "activations of gated products");
        let product = self.product(out.view(), x, weight, None);
        match self.matmul.silu_mul(&product, self.launch()) {
            Ok(true) => {}
            Ok(false) => {
                self.matmul(gate_up.reborrow(), x, weight, None);
                self.silu_mul(out, gate_up.view());
            }
            Err(error) => self.note(Err(error)),
        }
    }

    fn gather_sample_rows(&self, out: ViewMut<'_>, x: View<'_>, plan: &Plan) {
        let out = out.view();
        assert!(out.dtype() == x.dtype(), "rows of one type");
        let size = x.dtype().bytes();
        let (arrays, offsets) = device_plan(plan);
        let params = GatherRowsParams {
            out: out.address(),
            x: x.address(),
            rows: word(arrays, offsets.sample_rows),
            count: dim(out.rows()),
            row_bytes: dim(out.width() * size),
            out_stride_bytes: dim(out.stride() * size),
            x_stride_bytes: dim(x.stride() * size),
        };
        // SAFETY: see `kernels`; sample rows come with the plan, which is trusted.
        self.launched(unsafe { kernels::launch_gather_rows(params, self.launch()) }, "gather_sample_rows");
    }

    fn copy_blocks(&self, kv: &mut KvLayer, copies: &[(u32, u32)]) {
        self.launch();
        let block = kv.keys.rows() / kv.num_blocks * kv.keys.width() * kv.keys.dtype().bytes();
        for array in [kv.keys.view_mut().view().address(), kv.values.view_mut().view().address()] {
            for (from, to) in copies {
                let (from, to) = (array + *from as usize * block, array + *to as usize * block);
                self.note(self.stream.copy_on_device(to, from, block));
            }
        }
    }

    fn sample(&self, logits: ViewMut<'_>, vocab: usize, rows: &[SampleRow], tokens: ViewMut<'_>) {
        assert!(logits.view().dtype() == DType::F32, "logits in F32");
        let at = (self.launch(), &*self.stream);
        let sampled = self.sampler.borrow_mut().now().sample(logits.view(), vocab, rows, tokens.view(), at);
        self.note(sampled);
    }

    fn record(&self, plan: &Plan, work: &mut dyn FnMut()) -> Result<Option<Graph>, DeviceError> {
        self.record_graph(plan, work)
    }

    fn replay(&self, graph: &Graph, plan: &Plan) -> bool {
        self.replay_graph(graph, plan)
    }

    fn end_step(&self) {
        self.launch();
        self.note(self.sampler.borrow_mut().end_step(&self.stream));
    }

    fn is_done(&self) -> bool {
        self.launch();
        self.sampler.borrow().is_done()
    }

    fn wait_idle(&self) {
        self.launch();
        self.note(self.stream.synchronize());
    }

    fn collect(&self) -> Result<Vec<SampledRow>, DeviceError> {
        self.launch();
        let rows = self.sampler.borrow_mut().collect(&self.stream);
        let rows = rows.map_err(|error| self.note(Err(error))).unwrap_or_default();
        let fault = self.fault.borrow().clone();
        fault.map_or(Ok(rows), Err)
    }
}

impl Drop for Cuda {
    /// Kernels and copies use what goes now, until they end.
    fn drop(&mut self) {
        self.wait_idle();
    }
}

impl Cuda {
    /// Starts attention: one kernel for all items, or on Hopper one for those of many rows and one for the others.
    fn attend(&self, params: AttentionParams, planned: &DevicePlan, layout: &BatchLayout) {
        let launch = self.launch();
        let mut rest = params;
        if planned.many == 0 {
            // A grid for any step of as many sequences, so that a graph may record it.
            let most = items::max_few_items(layout.sequences(), planned.heads, self.multiprocessors);
            rest.grid_items = dim(most);
            rest.num_items = word(params.arrays, Offsets::of(layout).num_items);
        } else if self.hopper {
            let many = AttentionParams { grid_items: dim(planned.many), ..params };
            // SAFETY: see `kernels`; block tables come with the plan, which is trusted.
            let code = unsafe { kernels::launch_attention_hopper(many, self.element, launch) };
            self.launched(code, "attention");
            rest.items = word(params.items, planned.many * ITEM_WORDS);
            rest.grid_items = dim(planned.few);
        }
        // SAFETY: as above.
        let code = unsafe { kernels::launch_attention(rest, self.element, launch) };
        self.launched(code, "attention");
    }

    /// A product's addresses and shape, its types and alignment checked.
    fn product(&self, out: View<'_>, x: View<'_>, weight: &Matrix, bias: Option<View<'_>>) -> Product {
        assert!(self.is_activation(x) && (self.is_activation(out) || out.dtype() == DType::F32));
        assert!(
            x.stride().is_multiple_of(8) && x.address().is_multiple_of(16),
            "rows are read 16 bytes at a time"
        );
        Product {
            shape: Shape {
                tokens: out.rows(),
                rows: weight.rows,
                columns: weight.columns,
                x_stride: x.stride(),
                out_stride: out.stride(),
                out_is_float: out.dtype() == DType::F32,
                biased: bias.is_some(),
            },
            out: out.address(),
            x: x.address(),
            weight: weight.data.address(),
            bias: bias.map_or(0, |bias| bias.address()),
        }
    }

    fn norm(&self, out: View<'_>, residual: Option<View<'_>>, x: View<'_>, weight: View<'_>, eps: f32) {
        assert!(self.is_activation(out) && self.is_activation(x) && weight.dtype() == DType::F32);
        assert!(residual.is_none_or(|residual| self.is_activation(residual)));
        let params = RmsNormParams {
            out: out.address(),
            residual: residual.map_or(0, |residual| residual.address()),
            x: x.address(),
            weight: weight.address(),
            rows: dim(x.rows()),
            width: dim(x.width()),
            out_stride: dim(out.stride()),
            residual_stride: residual.map_or(0, |residual| dim(residual.stride())),
            x_stride: dim(x.stride()),
            eps,
        };
        // SAFETY: see `kernels`.
        self.launched(unsafe { kernels::launch_rms_norm(params, self.element, self.launch()) }, "rms_norm");
    }
}
