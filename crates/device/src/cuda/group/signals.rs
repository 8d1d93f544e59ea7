//! What ends the waits of a group's ranks: words that their kernels look at, and why the host has ended the group.

use std::sync::{Mutex, PoisonError};

use crate::cuda::group::turns::Turns;
use crate::cuda::runtime::Pinned;

/// Words of host memory that a rank's kernels and the host tell each other with.
pub(crate) const FAULT: usize = 0;
pub(crate) const STOP: usize = 1;
pub(crate) const BEGUN: usize = 2;
pub(crate) const ENDED: usize = 3;

/// Shared with whoever may have to end the group, whether or not it holds the group's memory.
pub(crate) struct Signals {
    /// One a rank, of its own device: see the words above.
    pub(crate) words: Vec<Pinned>,
    /// Ranks share GPUs: they take turns on the host.
    pub(crate) turns: Option<Turns>,
    /// Why the host has ended the group.
    reason: Mutex<Option<String>>,
}

impl Signals {
    pub(crate) fn new(words: Vec<Pinned>, turns: Option<Turns>) -> Self {
        Self { words, turns, reason: Mutex::new(None) }
    }

    /// Ends all waits of all ranks, on devices and on the host; the first reason is kept.
    pub(crate) fn stop(&self, reason: &str) {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| reason.to_owned());
        for words in &self.words {
            words.set(STOP, 1);
        }
        if let Some(turns) = &self.turns {
            turns.fail(reason);
        }
    }

    /// The host has ended the group.
    pub(crate) fn is_stopped(&self) -> bool {
        self.words[0].get(STOP) != 0
    }

    pub(crate) fn reason(&self) -> Option<String> {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
