//! Ranks that are threads of this process, sharing memory.
//!
//! Each rank copies its part into a slot of its own and says that it came; then every rank reads all slots in rank
//! order. So the sum has the same bits on every rank and from run to run. There are two sets of slots, used in turn: a
//! rank that comes to operation `n + 1` has read what it needed of operation `n`, so when all have come to `n + 1`, the
//! slots of `n` are free for `n + 2`, and one meeting an operation is enough.

pub(crate) mod meeting;
mod pipe;

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use half::{bf16, f16};

use self::meeting::{Meeting, Wanted};
use self::pipe::Pipe;
use super::Collective;
use crate::DeviceError;
use crate::cpu::views::{Element, Rows, RowsMut};
use crate::dtype::DType;
use crate::tensor::{View, ViewMut};

/// From this many elements on, each rank adds up only its share, and the ranks meet once more to exchange shares.
const WORTH_SHARING: usize = 32 * 1024;

/// What the ranks of a group share.
struct Shared {
    meeting: Meeting,
    /// Two sets, used in turn: what each rank brought.
    slots: [Vec<RwLock<Slot>>; 2],
    /// From rank `from` to rank `to`: `from * size + to`.
    pipes: Vec<Pipe>,
}

/// What a rank brought to an operation.
#[derive(Default)]
struct Slot {
    /// For people, when ranks disagree.
    operation: &'static str,
    /// Rows and width, or rows alone where widths may differ: what ranks must agree on.
    shape: [usize; 2],
    /// Bytes of a row.
    row_bytes: usize,
    /// Numbers to be added, or this rank's share of the sums.
    numbers: Vec<f32>,
    /// Bytes to be copied.
    bytes: Vec<u8>,
}

/// One rank's end of a group of threads. Dropping it, also by a panic, is a fault for ranks that still need it.
pub struct ThreadGroup {
    shared: Arc<Shared>,
    rank: usize,
}

/// Ends a group's waits from any thread.
#[derive(Clone)]
pub struct AbortHandle {
    shared: Arc<Shared>,
}

impl AbortHandle {
    /// Makes `reason` the group's fault, unless it has one, and wakes every rank.
    pub fn abort(&self, reason: &str) {
        self.shared.meeting.fail(reason.to_owned());
    }
}

/// A group of `size` ranks, each to be moved to its own thread. Waits end with a fault after `deadline`.
///
/// # Panics
/// `size` is zero.
#[must_use]
pub fn group(size: usize, deadline: Duration) -> Vec<ThreadGroup> {
    assert!(0 < size, "a group has a rank");
    let slots = || (0..size).map(|_| RwLock::new(Slot::default())).collect();
    let pipes = (0..size * size).map(|_| Pipe::default()).collect();
    let shared = Arc::new(Shared { meeting: Meeting::new(size, deadline), slots: [slots(), slots()], pipes });
    (0..size).map(|rank| ThreadGroup { shared: Arc::clone(&shared), rank }).collect()
}

impl ThreadGroup {
    /// A handle that ends this group's waits.
    #[must_use]
    pub fn abort_handle(&self) -> AbortHandle {
        AbortHandle { shared: Arc::clone(&self.shared) }
    }

    /// Fills this rank's slot, meets the others, and returns the slots' set; nothing after a fault.
    fn meet(
        &self,
        operation: &'static str,
        shape: [usize; 2],
        fill: impl FnOnce(&mut Slot),
    ) -> Option<&[RwLock<Slot>]> {
        let meeting = &self.shared.meeting;
        if meeting.is_over() {
            return None;
        }
        let set = &self.shared.slots[meeting.turn(self.rank)];
        {
            let mut slot = set[self.rank].write().unwrap_or_else(PoisonError::into_inner);
            (slot.operation, slot.shape) = (operation, shape);
            fill(&mut slot);
        }
        if !meeting.meet(self.rank, operation) {
            return None;
        }
        for (rank, slot) in set.iter().enumerate() {
            let slot = slot.read().unwrap_or_else(PoisonError::into_inner);
            if slot.operation != operation || slot.shape != shape {
                let (theirs, their_shape, size) = (slot.operation, slot.shape, set.len());
                meeting.fail(format!(
                    "rank {rank} of {size} came to {theirs} of {their_shape:?}, rank {} to {operation} of {shape:?}",
                    self.rank
                ));
                return None;
            }
        }
        Some(set)
    }

    /// Sums `x` over the ranks in F32, in rank order, and rounds once.
    fn sum<T: Number>(&self, x: ViewMut<'_>) {
        let mut x = RowsMut::<T>::new(x);
        let shape = [x.rows(), x.width()];
        let len = shape[0] * shape[1];
        let slots = self.meet("all_reduce", shape, |slot| {
            slot.numbers.clear();
            for row in 0..shape[0] {
                slot.numbers.extend(x.row(row).iter().map(|&x| x.to_f32()));
            }
        });
        let Some(slots) = slots else { return };
        let size = self.size();
        if size == 1 {
            return;
        }
        if len < WORTH_SHARING {
            let mut sums = vec![0.0; len];
            add_slots(slots, 0, &mut sums);
            return write_back(&mut x, 0, &sums);
        }
        // My share of the sums goes to everybody at a second meeting, in the other set of slots.
        let share = len.div_ceil(size);
        let start = (self.rank * share).min(len);
        let mut sums = vec![0.0; share.min(len - start)];
        add_slots(slots, start, &mut sums);
        let Some(slots) = self.meet("all_reduce", shape, |slot| slot.numbers = sums) else { return };
        for (rank, slot) in slots.iter().enumerate() {
            let slot = slot.read().unwrap_or_else(PoisonError::into_inner);
            write_back(&mut x, rank * share, &slot.numbers);
        }
    }
}

/// Adds the ranks' numbers from `start` on, in rank order.
fn add_slots(slots: &[RwLock<Slot>], start: usize, sums: &mut [f32]) {
    for slot in slots {
        let slot = slot.read().unwrap_or_else(PoisonError::into_inner);
        for (sum, number) in sums.iter_mut().zip(&slot.numbers[start..]) {
            *sum += number;
        }
    }
}

/// Writes elements `start ..` of `x`, counted row after row.
fn write_back<T: Number>(x: &mut RowsMut<'_, T>, start: usize, sums: &[f32]) {
    let width = x.width();
    let mut done = 0;
    while done < sums.len() {
        let (row, column) = ((start + done) / width, (start + done) % width);
        let to = &mut x.row(row)[column..];
        for (to, &sum) in to.iter_mut().zip(&sums[done..]) {
            *to = T::from_f32(sum);
        }
        done += width - column;
    }
}

impl Collective for ThreadGroup {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.shared.slots[0].len()
    }

    fn all_reduce(&self, x: ViewMut<'_>) {
        match x.view().dtype() {
            DType::F32 => self.sum::<f32>(x),
            DType::F16 => self.sum::<f16>(x),
            DType::BF16 => self.sum::<bf16>(x),
            DType::I32 => panic!("only fractions are summed"),
        }
    }

    fn gather_columns(&self, out: ViewMut<'_>, x: View<'_>) {
        let (mut out, x) = (RowsMut::bytes(out), Rows::bytes(x));
        let slots = self.meet("gather_columns", [x.rows(), 0], |slot| {
            slot.row_bytes = x.width();
            slot.bytes.clear();
            for row in 0..x.rows() {
                slot.bytes.extend_from_slice(x.row(row));
            }
        });
        let Some(slots) = slots else { return };
        let mut column = 0;
        for slot in slots {
            let slot = slot.read().unwrap_or_else(PoisonError::into_inner);
            let width = slot.row_bytes;
            for (row, from) in slot.bytes.chunks_exact(width.max(1)).enumerate() {
                out.row(row)[column..column + width].copy_from_slice(from);
            }
            column += width;
        }
        assert!(
            column == out.width(),
            "the ranks' columns make a row of {} bytes, not {column}",
            out.width()
        );
    }

    fn send(&self, to: usize, x: View<'_>) {
        let (shared, size) = (&self.shared, self.size());
        let pipe = &shared.pipes[self.rank * size + to];
        let room = || if pipe.has_room() { Wanted::Here } else { Wanted::From(to) };
        if !shared.meeting.wait("receive", room) {
            return;
        }
        let x = Rows::bytes(x);
        let mut message = pipe.empty();
        for row in 0..x.rows() {
            message.extend_from_slice(x.row(row));
        }
        pipe.push(message);
        shared.meeting.wake();
    }

    fn receive(&self, from: usize, x: ViewMut<'_>) {
        let (shared, size) = (&self.shared, self.size());
        let pipe = &shared.pipes[from * size + self.rank];
        let message = || if pipe.has_message() { Wanted::Here } else { Wanted::From(from) };
        if !shared.meeting.wait("send", message) {
            return;
        }
        let mut x = RowsMut::bytes(x);
        let (width, bytes) = (x.width(), pipe.pop());
        if bytes.len() == x.rows() * width {
            for (row, bytes) in bytes.chunks_exact(width.max(1)).enumerate() {
                x.row(row).copy_from_slice(bytes);
            }
        } else {
            shared.meeting.fail(format!(
                "rank {from} of {size} sent {} bytes, rank {} expected {}",
                bytes.len(),
                self.rank,
                x.rows() * width
            ));
        }
        pipe.give_back(bytes);
        shared.meeting.wake();
    }

    fn abort(&self, reason: &str) {
        self.shared.meeting.fail(reason.to_owned());
    }

    fn fault(&self) -> Option<DeviceError> {
        self.shared.meeting.fault()
    }
}

impl Drop for ThreadGroup {
    fn drop(&mut self) {
        self.shared.meeting.leave(self.rank);
    }
}

/// A type that can be summed.
trait Number: Element {
    fn to_f32(self) -> f32;
    fn from_f32(x: f32) -> Self;
}

impl Number for f32 {
    fn to_f32(self) -> f32 {
        self
    }

    fn from_f32(x: f32) -> Self {
        x
    }
}

impl Number for f16 {
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }

    fn from_f32(x: f32) -> Self {
        f16::from_f32(x)
    }
}

impl Number for bf16 {
    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }

    fn from_f32(x: f32) -> Self {
        bf16::from_f32(x)
    }
}
