//! Turns on the host, for groups in which ranks share a GPU: tests of more ranks than there are GPUs.
//!
//! A kernel that waits for a peer's holds a part of its GPU. When the peer's has still to come to the same GPU, behind
//! other work or behind the loading of a module, it may never get there. So the ranks first finish what they have
//! started, meet on the host, and only then start kernels that wait, few enough to run all at once. Of several groups on the
//! same GPUs one at a time does so.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::collective::floor::Floor;
use crate::collective::threads::meeting::{Meeting, Wanted};
use crate::cuda::group::mail::MESSAGE_PLACES;

/// Where the ranks meet, and how far messages are.
pub(crate) struct Turns {
    meeting: Meeting,
    floor: Arc<Floor>,
    group: usize,
    deadline: Duration,
    /// By sender: messages that lie with the next rank, messages it has taken.
    sent: Vec<AtomicU64>,
    taken: Vec<AtomicU64>,
}

impl Turns {
    /// Nothing when each rank has a GPU of its own, and no `floor` says that other groups' ranks share them.
    pub(crate) fn needed(ordinals: &[usize], deadline: Duration, floor: Option<&Arc<Floor>>) -> Option<Self> {
        let shared = (1..ordinals.len()).any(|i| ordinals[..i].contains(&ordinals[i]));
        let counts = || ordinals.iter().map(|_| AtomicU64::new(0)).collect();
        (shared || floor.is_some()).then(|| {
            let floor = floor.cloned().unwrap_or_default();
            Self {
                meeting: Meeting::new(ordinals.len(), deadline),
                group: floor.register(),
                floor,
                deadline,
                sent: counts(),
                taken: counts(),
            }
        })
    }

    /// `rank`, which has finished its work, waits for the others, and until no other group has kernels that wait. False
    /// after a fault; otherwise [`Self::leave`] is due.
    pub(crate) fn meet(&self, rank: usize, operation: &str) -> bool {
        if !self.meeting.meet(rank, operation) {
            return false;
        }
        let entered = self.floor.enter(self.group, self.deadline);
        if !entered {
            let deadline = self.deadline;
            self.fail(&format!(
                "another group on the same GPUs was not done within {deadline:?} of {operation}"
            ));
        }
        entered
    }

    /// Its kernels that waited have ended.
    pub(crate) fn leave(&self) {
        self.floor.leave();
    }

    /// Waits for room in the next rank's ring. False after a fault.
    pub(crate) fn await_room(&self, sender: usize, receiver: usize) -> bool {
        let full = || MESSAGE_PLACES as u64 <= self.ahead(sender);
        self.meeting.wait("receive", || if full() { Wanted::From(receiver) } else { Wanted::Here })
    }

    /// Waits for a message. False after a fault.
    pub(crate) fn await_message(&self, sender: usize) -> bool {
        self.meeting
            .wait("send", || if self.ahead(sender) == 0 { Wanted::From(sender) } else { Wanted::Here })
    }

    pub(crate) fn has_sent(&self, sender: usize) {
        self.sent[sender].fetch_add(1, Ordering::SeqCst);
        self.meeting.wake();
    }

    pub(crate) fn has_taken(&self, sender: usize) {
        self.taken[sender].fetch_add(1, Ordering::SeqCst);
        self.meeting.wake();
    }

    /// Ends all waits.
    pub(crate) fn fail(&self, reason: &str) {
        self.meeting.fail(reason.to_owned());
    }

    /// The first fault.
    pub(crate) fn fault(&self) -> Option<crate::DeviceError> {
        self.meeting.fault()
    }

    fn ahead(&self, sender: usize) -> u64 {
        let taken = self.taken[sender].load(Ordering::SeqCst);
        self.sent[sender].load(Ordering::SeqCst) - taken
    }
}
