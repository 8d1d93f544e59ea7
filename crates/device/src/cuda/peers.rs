//! Ranks of one process over plain peer pointers: sums, columns side by side, and hand-overs between stages.
//!
//! [`seats`] makes room on every GPU and lets them reach each other; each rank's thread then takes its seat with the
//! back end it computes with, and what it does with its peers is ordered with that back end's kernels.

use std::sync::Arc;
use std::time::Duration;

use crate::DeviceError;
use crate::collective::Collective;
use crate::cuda::Cuda;
use crate::cuda::kernels::{
    self, AllReduceParams, GatherColumnsParams, HandOverParams, MAX_RANKS, PeerParams,
};
use crate::cuda::runtime::{self, Pinned, Stream};
use crate::dtype::DType;
use crate::tensor::{Allocation, View, ViewMut};

/// What one rank pushes to another at once; longer arrays take several turns.
const PLACE_BYTES: usize = 8 << 20;
/// Each rank has places for each: two for calls of all, two for messages. So a sender waits for the receiver once it is
/// two places ahead, and ranks that all send first and then receive can hand over two places (16 MiB) at a time.
const PLACES: usize = 4;
const MAX_BLOCKS: usize = 128;
/// Blocks of a hand-over: the same for all, for their counters are a block's own.
const HAND_OVER_BLOCKS: usize = 32;
/// 16-byte vectors a block takes at once.
const VECTORS_PER_BLOCK: usize = 256;

/// One rank's memory in a group, and everyone's addresses.
#[derive(Debug)]
pub struct Seat {
    rank: usize,
    ordinal: usize,
    ranks: Vec<usize>,
    /// Everyone's memory: it must outlive the last rank that may still push to it.
    _memory: Arc<Vec<Allocation>>,
    /// The device writes here what went wrong.
    fault: Pinned,
    deadline: Duration,
}

/// Makes a group of the GPUs `ordinals`, one rank each, in this order. A GPU may have several ranks.
///
/// # Errors
/// There are more than eight, two of them cannot reach each other's memory, or one has no room.
pub fn seats(ordinals: &[usize], deadline: Duration) -> Result<Vec<Seat>, DeviceError> {
    if MAX_RANKS < ordinals.len() {
        return Err(DeviceError(format!("{} GPUs in a group: at most {MAX_RANKS}", ordinals.len())));
    }
    for from in ordinals {
        for to in ordinals {
            runtime::reach(*from, *to)?;
        }
    }
    // SAFETY: takes and returns a number.
    let head = unsafe { kernels::peer_head_bytes() } as usize;
    let mut memory = Vec::new();
    for ordinal in ordinals {
        let allocation = runtime::allocate(*ordinal, head + PLACES * ordinals.len() * PLACE_BYTES)?;
        let stream = Stream::new()?;
        stream.fill(allocation.address(), 0, head)?;
        stream.synchronize()?;
        memory.push(allocation);
    }
    let memory = Arc::new(memory);
    let ranks: Vec<usize> = memory.iter().map(Allocation::address).collect();
    let seat = |(rank, ordinal): (usize, &usize)| {
        let (ranks, _memory) = (ranks.clone(), Arc::clone(&memory));
        Ok(Seat { rank, ordinal: *ordinal, ranks, _memory, fault: Pinned::new(256)?, deadline })
    };
    ordinals.iter().enumerate().map(seat).collect()
}

impl Seat {
    /// Takes the seat with the back end whose kernels the group's operations follow and precede.
    ///
    /// # Panics
    /// The back end is of another GPU.
    #[must_use]
    pub fn take(self, cuda: &Cuda) -> Peers {
        assert!(cuda.ordinal == self.ordinal, "the seat's GPU");
        Peers { launch: cuda.launch(), _stream: Arc::clone(&cuda.stream), seat: self }
    }
}

/// One rank's end of the group.
pub struct Peers {
    seat: Seat,
    launch: kernels::Launch,
    /// Keeps the stream of `launch`.
    _stream: Arc<Stream>,
}

impl Peers {
    fn params(&self) -> PeerParams {
        if runtime::use_device(self.seat.ordinal).is_err() {
            self.seat.fault.write_word(LAUNCH_FAILED);
        }
        let mut ranks = [0; MAX_RANKS];
        ranks[..self.seat.ranks.len()].copy_from_slice(&self.seat.ranks);
        PeerParams {
            ranks,
            fault: self.seat.fault.address(),
            place_bytes: PLACE_BYTES as u64,
            deadline_ns: u64::try_from(self.seat.deadline.as_nanos()).unwrap_or(u64::MAX),
            rank: self.seat.rank as u32,
            size: self.seat.ranks.len() as u32,
        }
    }

    /// A launch that failed is a fault, too.
    fn launched(&self, code: i32) {
        if code != 0 {
            self.seat.fault.write_word(LAUNCH_FAILED);
        }
    }

    /// Calls `hand_over` for each piece of an unstrided array.
    fn in_pieces(
        &self,
        x: View<'_>,
        peer: usize,
        hand_over: unsafe extern "C" fn(HandOverParams, kernels::Launch) -> i32,
    ) {
        assert!(is_unstrided(x), "an unstrided array");
        let bytes = x.rows() * x.width() * x.dtype().bytes();
        for start in (0..bytes).step_by(PLACE_BYTES) {
            let params = HandOverParams {
                peers: self.params(),
                x: x.address() + start,
                bytes: (bytes - start).min(PLACE_BYTES) as u64,
                peer: peer as u32,
                blocks: HAND_OVER_BLOCKS as u32,
            };
            // SAFETY: see `kernels`: the piece lies in the view, and fits its place.
            self.launched(unsafe { hand_over(params, self.launch) });
        }
    }
}

/// The fault word of a launch that the runtime refused.
const LAUNCH_FAILED: i32 = 255 << 8;

fn is_unstrided(x: View<'_>) -> bool {
    x.rows() <= 1 || x.stride() == x.width()
}

/// Enough blocks for a transfer, few for a short one: each costs a flag.
fn blocks_for(bytes: usize) -> u32 {
    bytes.div_ceil(16).div_ceil(VECTORS_PER_BLOCK).clamp(1, MAX_BLOCKS) as u32
}

impl Collective for Peers {
    fn rank(&self) -> usize {
        self.seat.rank
    }

    fn size(&self) -> usize {
        self.seat.ranks.len()
    }

    fn all_reduce(&self, x: ViewMut<'_>) {
        let x = x.view();
        assert!(is_unstrided(x), "an unstrided array");
        let dtype = match x.dtype() {
            DType::BF16 => 0,
            DType::F16 => 1,
            DType::F32 => 2,
            DType::I32 => panic!("sums are of floats"),
        };
        let (count, size) = (x.rows() * x.width(), x.dtype().bytes());
        if self.size() == 1 {
            return;
        }
        let most = PLACE_BYTES / size;
        for start in (0..count).step_by(most) {
            let count = (count - start).min(most);
            let blocks = blocks_for(count * size);
            let (peers, x) = (self.params(), x.address() + start * size);
            let params = AllReduceParams { peers, x, count: count as u64, dtype, blocks };
            // SAFETY: see `kernels`: the piece lies in the view, and fits its place.
            self.launched(unsafe { kernels::launch_all_reduce(params, self.launch) });
        }
    }

    fn gather_columns(&self, out: ViewMut<'_>, x: View<'_>) {
        let out = out.view();
        let size = x.dtype().bytes();
        let row = out.width() * size;
        assert!(0 < row && row <= PLACE_BYTES, "a row fits a place");
        // The same on all ranks, whatever their own widths.
        let rows_at_once = PLACE_BYTES / row;
        for start in (0..x.rows()).step_by(rows_at_once) {
            let rows = (x.rows() - start).min(rows_at_once);
            let params = GatherColumnsParams {
                peers: self.params(),
                out: out.address() + start * out.stride() * size,
                x: x.address() + start * x.stride() * size,
                width: (x.width() * size) as u64,
                out_stride: (out.stride() * size) as u64,
                x_stride: (x.stride() * size) as u64,
                rows: rows as u32,
                blocks: blocks_for(rows * row),
                element_bytes: size as u32,
                padding: 0,
            };
            // SAFETY: see `kernels`: the rows lie in the views, and fit their places.
            self.launched(unsafe { kernels::launch_gather_columns(params, self.launch) });
        }
    }

    fn send(&self, to: usize, x: View<'_>) {
        self.in_pieces(x, to, kernels::launch_send);
    }

    fn receive(&self, from: usize, x: ViewMut<'_>) {
        self.in_pieces(x.view(), from, kernels::launch_receive);
    }

    fn fault(&self) -> Option<DeviceError> {
        let word = self.seat.fault.read_word();
        let operation = match word >> 8 {
            0 => return None,
            1 => "all_reduce",
            2 => "gather_columns",
            3 => "send",
            4 => "receive",
            _ => return Some(DeviceError(format!("rank {} could not start an operation", self.seat.rank))),
        };
        Some(DeviceError(format!(
            "rank {} of {} did not come to {operation} within {:?}: rank {} waited on GPU {}",
            word & 0xff,
            self.size(),
            self.seat.deadline,
            self.seat.rank,
            self.seat.ordinal
        )))
    }
}
