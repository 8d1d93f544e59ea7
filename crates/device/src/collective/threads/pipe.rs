//! Messages from one rank to another: copies, a few of them, so that a sender can run ahead.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Messages that may wait for their receiver.
const DEPTH: usize = 4;

/// A short queue with one sender and one receiver.
#[derive(Default)]
pub(super) struct Pipe {
    /// How many wait, kept beside the queue so that a rank can look without a lock.
    waiting: AtomicUsize,
    messages: Mutex<VecDeque<Vec<u8>>>,
    /// Messages' memory to be used again.
    spare: Mutex<Vec<Vec<u8>>>,
}

impl Pipe {
    /// For the sender: whether another message fits.
    pub(super) fn has_room(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) < DEPTH
    }

    /// For the receiver: whether there is a message.
    pub(super) fn has_message(&self) -> bool {
        0 < self.waiting.load(Ordering::SeqCst)
    }

    /// Memory for a message.
    pub(super) fn empty(&self) -> Vec<u8> {
        let mut message = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        message.clear();
        message
    }

    /// Hands a message over.
    pub(super) fn push(&self, message: Vec<u8>) {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner).push_back(message);
        self.waiting.fetch_add(1, Ordering::SeqCst);
    }

    /// Takes the oldest message.
    pub(super) fn pop(&self) -> Vec<u8> {
        let message = self.messages.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        message.expect("the receiver saw a message and is the only one to take it")
    }

    /// Returns a message's memory.
    pub(super) fn give_back(&self, message: Vec<u8>) {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner).push(message);
    }
}
