//! Ranks of one process on GPUs: sums, columns side by side, and hand-overs between stages.
//!
//! [`form::form`] makes room on every GPU, lets them reach each other, shows with data that they do, and measures which sum is
//! fastest for which size. Each rank's thread then takes its seat with the back end it computes with, and what it does
//! with its peers is ordered with that back end's kernels. Where GPUs do not reach each other, or lied about it,
//! mailboxes lie in pinned host memory: slower, in the same kernels. Ranks that share a GPU take turns on the host.

pub mod form;
mod kernels;
pub mod links;
pub mod mail;
mod nccl;
pub mod pairs;
mod signals;
pub mod speed;
pub mod table;
mod turns;

use std::cell::Cell;
use std::sync::Arc;

use crate::DeviceError;
use crate::backend::Backend;
use crate::collective::Collective;
use crate::cuda::group::kernels::{AllReduceNormParams, AllReduceParams, Way};
use crate::cuda::group::kernels::{GatherColumnsParams, HandOverParams};
use crate::cuda::group::mail::{FLAGGED_BYTES, MESSAGE_BYTES, MESSAGE_PLACES, PLACE_BYTES, Shared};
use crate::cuda::group::signals::FAULT;
use crate::cuda::group::table::Algorithm;
use crate::cuda::kernels::{Element, Launch};
use crate::cuda::runtime::{self, Stream};
use crate::cuda::{Cuda, dim};
use crate::dtype::DType;
use crate::tensor::{View, ViewMut};

/// 16-byte vectors a thread block takes at once, by kernel.
const FLAGGED_VECTORS: usize = 128;
const SHOT_VECTORS: usize = 512;
const COLUMNS_VECTORS: usize = 256;
/// Blocks at most, and of them those that a multiprocessor of any GPU has room for at once: a block that waited for room
/// behind one that waits for its twin on another GPU would rest on the order in which GPUs start blocks.
const FLAGGED_BLOCKS: [usize; 2] = [512, 8];
const SHOT_BLOCKS: [usize; 2] = [128, 2];
/// Rows of a sum with the norm behind it at most: above, the sum alone, spread over more blocks, is faster.
const NORM_ROWS: [usize; 2] = [64, 1];
/// The widest row whose norm is one block's.
const NORM_WIDTH: usize = 16_384;

/// One rank's place in a group, until its thread takes it.
pub struct Seat {
    rank: usize,
    shared: Arc<Shared>,
}

impl Seat {
    /// Takes the seat with the back end whose kernels the group's operations follow and precede.
    ///
    /// # Panics
    /// The back end is of another GPU.
    #[must_use]
    pub fn take(self, cuda: &Cuda) -> Group {
        assert!(cuda.ordinal == self.shared.ordinals[self.rank], "the seat's GPU");
        Group::new(self.shared, self.rank, cuda.launch(), Arc::clone(&cuda.stream))
    }
}

/// One rank's end of a group.
pub struct Group {
    shared: Arc<Shared>,
    rank: usize,
    launch: Launch,
    stream: Arc<Stream>,
    /// See [`Collective::take_unrecorded`].
    unrecorded: Cell<bool>,
}

/// The fault word of a launch that the runtime refused.
const LAUNCH_FAILED: i32 = 255 << 8;
/// The host has ended the wait; the twin is `kStopped`.
const STOPPED: i32 = 1 << 16;

impl Group {
    pub(crate) fn new(shared: Arc<Shared>, rank: usize, mut launch: Launch, stream: Arc<Stream>) -> Self {
        if shared.signals.turns.is_some() {
            // As `Cuda::start_in_turn`: for the further pieces of an array.
            launch.overlaps = 0;
        }
        Self { shared, rank, launch, stream, unrecorded: Cell::new(false) }
    }

    /// A launch that failed is a fault, too, unless it was only to be recorded.
    fn launched(&self, code: i32) {
        match code {
            0 => {}
            _ if self.stream.is_capturing() == Ok(true) => self.unrecorded.set(true),
            _ => self.shared.signals.words[self.rank].set(FAULT, LAUNCH_FAILED),
        }
    }

    /// Whoever records sums on its own account asks: what was recorded without one of them would seem fast.
    fn check_recorded(&self) -> Result<(), DeviceError> {
        match self.unrecorded.take() {
            true => Err(DeviceError("the GPU refused to record a sum".to_owned())),
            false => Ok(()),
        }
    }

    /// False when nothing more can be started.
    fn is_ready(&self) -> bool {
        let selected = runtime::use_device(self.shared.ordinals[self.rank]);
        self.launched(i32::from(selected.is_err()));
        selected.is_ok() && !self.shared.signals.is_stopped()
    }

    /// Ranks that share a GPU finish their work and meet before kernels wait for each other; see `turns`.
    fn may_start(&self, operation: &str) -> bool {
        if !self.is_ready() {
            return false;
        }
        let Some(turns) = &self.shared.signals.turns else { return true };
        self.launched(i32::from(self.stream.synchronize().is_err()));
        turns.meet(self.rank, operation)
    }

    /// Enough blocks for an array, few for a short one: each costs a flag.
    fn blocks(&self, bytes: usize, vectors: usize, blocks: [usize; 2]) -> u32 {
        dim(bytes.div_ceil(16).div_ceil(vectors).clamp(1, self.at_once(blocks)))
    }

    /// The same number on all ranks: their blocks wait for each other.
    fn at_once(&self, [most, each]: [usize; 2]) -> usize {
        (most.min(each * self.shared.multiprocessors) / self.shared.ranks_on_one_gpu()).max(1)
    }

    /// [`Collective::all_reduce`], in one way or another.
    pub(crate) fn all_reduce_by(&self, algorithm: Algorithm, x: &ViewMut<'_>) {
        let x = x.view();
        assert!(is_unstrided(x), "an unstrided array");
        let count = x.rows() * x.width();
        if 1 < self.size() && 0 < count && self.may_start("all_reduce") {
            self.sum(algorithm, x.address(), count, x.dtype());
            self.finish_turn();
        }
    }

    /// Starts the sum of `count` elements at `x`.
    pub(crate) fn sum(&self, algorithm: Algorithm, x: usize, count: usize, dtype: DType) {
        let kind = match dtype {
            DType::BF16 => 0,
            DType::F16 => 1,
            DType::F32 => 2,
            DType::I32 => panic!("sums are of floats"),
        };
        assert!(x.is_multiple_of(16), "arrays are read 16 bytes at a time");
        let size = dtype.bytes();
        let (way, most, vectors, blocks) = match algorithm {
            Algorithm::Nccl => return self.sum_by_library(x, count, kind),
            Algorithm::Flagged => (Way::Flagged, FLAGGED_BYTES, FLAGGED_VECTORS, FLAGGED_BLOCKS),
            Algorithm::OneShot => (Way::OneShot, PLACE_BYTES, SHOT_VECTORS, SHOT_BLOCKS),
            Algorithm::TwoShot => (Way::TwoShot, usize::MAX, SHOT_VECTORS, SHOT_BLOCKS),
        };
        for start in (0..count).step_by(most / size) {
            let count = (count - start).min(most / size);
            let blocks = self.blocks(count * size, vectors, blocks);
            let (peers, x) = (self.shared.params(self.rank), x + start * size);
            let params =
                AllReduceParams { peers, x, count: count as u64, dtype: kind, blocks, way, padding: 0 };
            // SAFETY: see `kernels`: the piece lies in the array, and fits its place.
            self.launched(unsafe { kernels::launch_all_reduce(params, self.launch) });
        }
    }

    fn sum_by_library(&self, x: usize, count: usize, dtype: u32) {
        let peers = self.shared.params(self.rank);
        let sum = nccl::Sum { x, count, dtype, stream: self.launch.stream };
        // SAFETY: as above; marks only touch the rank's own counts and words.
        self.launched(unsafe { kernels::launch_mark(peers, 0, self.launch) });
        if let Err(error) = self.shared.communicators[self.rank].all_reduce(sum) {
            // Without the end's mark: the library may still start what it was at, which nobody but the watch would end.
            return self.shared.signals.stop(&error.to_string());
        }
        // SAFETY: as above.
        self.launched(unsafe { kernels::launch_mark(peers, 1, self.launch) });
    }

    /// Whether the sum of `x` and the norm behind it are one kernel.
    fn fuses(&self, x: View<'_>, out: View<'_>, residual: View<'_>, weight: View<'_>) -> bool {
        let bytes = x.rows() * x.width() * 2;
        let strides = x.width() | out.stride() | residual.stride();
        let rows = self.at_once(NORM_ROWS);
        matches!(x.dtype(), DType::BF16 | DType::F16)
            && out.dtype() == x.dtype()
            && residual.dtype() == x.dtype()
            && weight.dtype() == DType::F32
            && is_unstrided(x)
            && strides.is_multiple_of(8)
            && x.width() <= NORM_WIDTH
            && (1..=rows).contains(&x.rows())
            && self.shared.table.choose(bytes) == Algorithm::Flagged
    }

    /// What `hand_over` starts for each piece of an unstrided array.
    fn in_pieces(&self, x: View<'_>, peer: usize, mut hand_over: impl FnMut(HandOverParams)) {
        assert!(is_unstrided(x), "an unstrided array");
        let bytes = x.rows() * x.width() * x.dtype().bytes();
        for start in (0..bytes).step_by(MESSAGE_BYTES) {
            if !self.is_ready() {
                return;
            }
            hand_over(HandOverParams {
                peers: self.shared.params(self.rank),
                x: x.address() + start,
                bytes: (bytes - start).min(MESSAGE_BYTES) as u64,
                peer: peer as u32,
                places: MESSAGE_PLACES as u32,
            });
        }
    }

    /// Ranks that share a GPU start nothing, load nothing and free nothing while a kernel waits for a peer's.
    fn finish_turn(&self) {
        if let Some(turns) = &self.shared.signals.turns {
            self.finish();
            turns.leave();
        }
    }

    /// Waits for a kernel that another rank on the same GPU waits for on the host.
    fn finish(&self) {
        self.launched(i32::from(self.stream.synchronize().is_err()));
    }
}

fn is_unstrided(x: View<'_>) -> bool {
    x.rows() <= 1 || x.stride() == x.width()
}

impl Collective for Group {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.shared.size()
    }

    fn all_reduce(&self, x: ViewMut<'_>) {
        let view = x.view();
        let bytes = view.rows() * view.width() * view.dtype().bytes();
        self.all_reduce_by(self.shared.table.choose(bytes), &x);
    }

    fn all_reduce_add_rms_norm(
        &self,
        backend: &dyn Backend,
        out: ViewMut<'_>,
        residual: ViewMut<'_>,
        mut x: ViewMut<'_>,
        weight: View<'_>,
        eps: f32,
    ) {
        if !self.fuses(x.view(), out.view(), residual.view(), weight) {
            self.all_reduce(x.reborrow());
            backend.add_rms_norm(out, residual, x.view(), weight, eps);
            return;
        }
        if !self.may_start("all_reduce") {
            return;
        }
        let (x, out, residual) = (x.view(), out.view(), residual.view());
        let element = if x.dtype() == DType::F16 { Element::F16 } else { Element::BF16 };
        let params = AllReduceNormParams {
            peers: self.shared.params(self.rank),
            out: out.address(),
            residual: residual.address(),
            x: x.address(),
            weight: weight.address(),
            rows: dim(x.rows()),
            width: dim(x.width()),
            out_stride: dim(out.stride()),
            residual_stride: dim(residual.stride()),
            eps,
            padding: 0,
        };
        // SAFETY: see `kernels`: the addresses are those of views of one shape, which fits flagged words.
        self.launched(unsafe { kernels::launch_all_reduce_norm(params, element, self.launch) });
        self.finish_turn();
    }

    fn gather_columns(&self, out: ViewMut<'_>, x: View<'_>) {
        let out = out.view();
        let size = x.dtype().bytes();
        let row = out.width() * size;
        assert!(0 < row && row <= PLACE_BYTES, "a row fits a place");
        if !self.may_start("gather_columns") {
            return;
        }
        // The same on all ranks, whatever their own widths.
        let rows_at_once = PLACE_BYTES / row;
        for start in (0..x.rows()).step_by(rows_at_once) {
            let rows = (x.rows() - start).min(rows_at_once);
            let params = GatherColumnsParams {
                peers: self.shared.params(self.rank),
                out: out.address() + start * out.stride() * size,
                x: x.address() + start * x.stride() * size,
                width: (x.width() * size) as u64,
                out_stride: (out.stride() * size) as u64,
                x_stride: (x.stride() * size) as u64,
                rows: dim(rows),
                blocks: self.blocks(rows * row, COLUMNS_VECTORS, SHOT_BLOCKS),
                element_bytes: size as u32,
                padding: 0,
            };
            // SAFETY: see `kernels`: the rows lie in the views, and fit their places.
            self.launched(unsafe { kernels::launch_gather_columns(params, self.launch) });
        }
        self.finish_turn();
    }

    fn send(&self, to: usize, x: View<'_>) {
        assert!(to == (self.rank + 1) % self.size(), "a stage sends to the next one");
        self.in_pieces(x, to, |params| {
            if let Some(turns) = &self.shared.signals.turns
                && !turns.await_room(self.rank, to)
            {
                return;
            }
            // SAFETY: see `kernels`: the piece lies in the view, and fits its place.
            self.launched(unsafe { kernels::launch_send(params, self.launch) });
            if let Some(turns) = &self.shared.signals.turns {
                self.finish();
                turns.has_sent(self.rank);
            }
        });
    }

    fn receive(&self, from: usize, x: ViewMut<'_>) {
        assert!(self.rank == (from + 1) % self.size(), "a stage receives from the one before");
        self.in_pieces(x.view(), from, |params| {
            if let Some(turns) = &self.shared.signals.turns
                && !turns.await_message(from)
            {
                return;
            }
            // SAFETY: as above.
            self.launched(unsafe { kernels::launch_receive(params, self.launch) });
            if let Some(turns) = &self.shared.signals.turns {
                self.finish();
                turns.has_taken(from);
            }
        });
    }

    fn capturable(&self) -> bool {
        self.shared.signals.turns.is_none()
    }

    fn take_unrecorded(&self) -> bool {
        self.unrecorded.take()
    }

    fn abort(&self, reason: &str) {
        self.shared.signals.stop(reason);
    }

    fn fault(&self) -> Option<DeviceError> {
        if let Some(reason) = self.shared.signals.reason() {
            return Some(DeviceError(reason));
        }
        if let Some(fault) = self.shared.signals.turns.as_ref().and_then(turns::Turns::fault) {
            return Some(fault);
        }
        let (rank, size) = (self.rank, self.size());
        let word = self.shared.signals.words[rank].get(FAULT);
        let operation = match (word & 0xffff) >> 8 {
            0 => return None,
            1 => "all_reduce",
            2 => "gather_columns",
            3 => "send",
            4 => "receive",
            _ => return Some(DeviceError(format!("rank {rank} of {size} could not start an operation"))),
        };
        let (peer, gpu) = (word & 0xff, self.shared.ordinals[rank]);
        let why = match word & STOPPED {
            0 => format!("did not come to {operation} within {:?}", self.shared.deadline),
            _ => format!("was given up in {operation}"),
        };
        Some(DeviceError(format!("rank {peer} of {size} {why}: rank {rank} waited on GPU {gpu}")))
    }
}
