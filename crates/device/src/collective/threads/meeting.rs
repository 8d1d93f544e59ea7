//! Waiting for other ranks: first spinning, then yielding, then asleep, and never past a deadline.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::yield_now;
use std::time::{Duration, Instant};

use crate::DeviceError;

/// Looks with a processor's pause between them: a microsecond, if the other rank runs at this very moment.
const SPINS: u32 = 64;
/// Looks with a yield between them. With more ranks than cores this is what lets the others come.
const YIELDS: u32 = 64;

/// What a wait's condition finds.
pub(crate) enum Wanted {
    /// What was waited for is here.
    Here,
    /// Not yet; this rank must do something first.
    From(usize),
}

/// Who has come to which operation, who has left, and what went wrong.
pub(crate) struct Meeting {
    deadline: Duration,
    ranks: Vec<Rank>,
    /// There is a fault: nobody waits any more.
    over: AtomicBool,
    fault: Mutex<Option<DeviceError>>,
    /// Ranks asleep, or about to be.
    sleepers: AtomicUsize,
    gate: Mutex<()>,
    bell: Condvar,
}

/// One rank's marks, on cache lines of their own.
#[repr(align(128))]
#[derive(Default)]
struct Rank {
    /// Operations of the whole group this rank has come to.
    arrived: AtomicU64,
    left: AtomicBool,
}

impl Meeting {
    pub(crate) fn new(size: usize, deadline: Duration) -> Self {
        Self {
            deadline,
            ranks: (0..size).map(|_| Rank::default()).collect(),
            over: AtomicBool::new(false),
            fault: Mutex::new(None),
            sleepers: AtomicUsize::new(0),
            gate: Mutex::new(()),
            bell: Condvar::new(),
        }
    }

    /// Whether there is a fault.
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// The first fault.
    pub(crate) fn fault(&self) -> Option<DeviceError> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes `text` the fault unless there is one, and wakes everybody.
    pub(crate) fn fail(&self, text: String) {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(DeviceError(text));
        self.over.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// Which of two sets of slots `rank`'s next operation uses.
    pub(crate) fn turn(&self, rank: usize) -> usize {
        (self.ranks[rank].arrived.load(Ordering::Relaxed) % 2) as usize
    }

    /// `rank` came to `operation`, and waits for the others. False after a fault.
    pub(crate) fn meet(&self, rank: usize, operation: &str) -> bool {
        let number = self.ranks[rank].arrived.fetch_add(1, Ordering::SeqCst) + 1;
        self.wake();
        // Those who have come stay come, so each look goes on where the last one ended.
        let mut next = 0;
        self.wait(operation, || {
            while next < self.ranks.len() && number <= self.ranks[next].arrived.load(Ordering::SeqCst) {
                next += 1;
            }
            if next == self.ranks.len() { Wanted::Here } else { Wanted::From(next) }
        })
    }

    /// `rank` is gone: who waits for it learns so at once.
    pub(crate) fn leave(&self, rank: usize) {
        self.ranks[rank].left.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// Lets sleepers look again: called after every change they may wait for.
    pub(crate) fn wake(&self) {
        // Both sides are sequentially consistent: either we see the sleeper, or it sees the change.
        if 0 < self.sleepers.load(Ordering::SeqCst) {
            drop(self.gate.lock().unwrap_or_else(PoisonError::into_inner));
            self.bell.notify_all();
        }
    }

    /// Waits until `look` finds what it wants; `operation` is what the other rank should come to. False after a fault.
    pub(crate) fn wait(&self, operation: &str, mut look: impl FnMut() -> Wanted) -> bool {
        for turn in 0..SPINS + YIELDS {
            match self.check(operation, &mut look) {
                Outcome::Over(ready) => return ready,
                Outcome::Gone(fault) => return self.give_up(fault),
                Outcome::NotYet(_) if turn < SPINS => std::hint::spin_loop(),
                Outcome::NotYet(_) => yield_now(),
            }
        }
        match self.sleep(operation, &mut look) {
            Ok(ready) => ready,
            Err(fault) => self.give_up(fault),
        }
    }

    /// Sleeps between looks. The fault, if there is one, is for the caller to declare: here the gate is ours.
    fn sleep(&self, operation: &str, look: &mut impl FnMut() -> Wanted) -> Result<bool, String> {
        let end = Instant::now() + self.deadline;
        let mut gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let outcome = loop {
            let missing = match self.check(operation, look) {
                Outcome::Over(ready) => break Ok(ready),
                Outcome::Gone(fault) => break Err(fault),
                Outcome::NotYet(missing) => missing,
            };
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let (size, deadline) = (self.ranks.len(), in_words(self.deadline));
                break Err(format!("rank {missing} of {size} did not come to {operation} within {deadline}"));
            }
            gate = self.bell.wait_timeout(gate, left).unwrap_or_else(PoisonError::into_inner).0;
        };
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        outcome
    }

    /// One look.
    fn check(&self, operation: &str, look: &mut impl FnMut() -> Wanted) -> Outcome {
        if self.is_over() {
            return Outcome::Over(false);
        }
        let Wanted::From(rank) = look() else { return Outcome::Over(true) };
        if !self.ranks[rank].left.load(Ordering::SeqCst) {
            return Outcome::NotYet(rank);
        }
        // It may have done what we wait for just before it left.
        match look() {
            Wanted::Here => Outcome::Over(true),
            Wanted::From(missing) if missing == rank => {
                let size = self.ranks.len();
                Outcome::Gone(format!("rank {rank} of {size} is gone and did not come to {operation}"))
            }
            Wanted::From(missing) => Outcome::NotYet(missing),
        }
    }

    fn give_up(&self, fault: String) -> bool {
        self.fail(fault);
        false
    }
}

/// What a look tells.
enum Outcome {
    /// The wait is over: what was wanted is here, or (false) there is a fault.
    Over(bool),
    /// The rank to wait for.
    NotYet(usize),
    /// Nothing will come; the fault to declare.
    Gone(String),
}

/// `30 s`, `50 ms`.
fn in_words(duration: Duration) -> String {
    if duration.subsec_nanos() == 0 {
        format!("{} s", duration.as_secs())
    } else {
        format!("{} ms", duration.as_millis())
    }
}
