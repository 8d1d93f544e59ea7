//! What the handles of an engine and its loop both look at.

use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::metrics::Snapshot;
use crate::output::RequestError;
use crate::validate::Limits;

/// Where an engine is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lifecycle {
    /// It takes requests.
    Running,
    /// It takes no more requests and completes those it has.
    Draining,
    /// It ended because it was told to.
    Stopped,
    /// It ended by a fault; the text says which.
    Dead(String),
}

/// Whether an engine is well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Where it is in its life.
    pub lifecycle: Lifecycle,
    /// Steps are in flight.
    pub busy: bool,
    /// Since the last step came back, or since steps are awaited. Old age while `busy` means that it hangs.
    pub last_step_age: Duration,
}

impl Health {
    /// The loop is alive, and takes requests or completes them.
    #[must_use]
    pub fn alive(&self) -> bool {
        matches!(self.lifecycle, Lifecycle::Running | Lifecycle::Draining)
    }
}

/// What the loop lets others see, written once a step.
pub(crate) struct Published {
    pub(crate) snapshot: Snapshot,
    pub(crate) busy: bool,
    pub(crate) last_step: Instant,
}

pub(crate) struct Shared {
    pub(crate) limits: Limits,
    /// Requests are sent while this is held and says `Running`, so none can come behind the order to stop.
    lifecycle: Mutex<Lifecycle>,
    ended: Condvar,
    published: Mutex<Published>,
    /// Requests accepted that have not had their first step.
    pub(crate) queued: AtomicUsize,
    /// Requests accepted that have not ended.
    pub(crate) live: AtomicUsize,
    /// Tokens that accepted requests are expected to need still: what the router balances.
    pub(crate) outstanding_tokens: AtomicUsize,
    /// Requests that the router gave to this engine, and their tokens that it took for known here.
    pub(crate) routed_requests: AtomicU64,
    pub(crate) prefix_routed_tokens: AtomicU64,
    pub(crate) next_request: AtomicU64,
}

impl Shared {
    pub(crate) fn new(limits: Limits) -> Self {
        let snapshot = Snapshot::new(limits.max_model_len);
        Self {
            limits,
            lifecycle: Mutex::new(Lifecycle::Running),
            ended: Condvar::new(),
            published: Mutex::new(Published { snapshot, busy: false, last_step: Instant::now() }),
            queued: AtomicUsize::new(0),
            live: AtomicUsize::new(0),
            outstanding_tokens: AtomicUsize::new(0),
            routed_requests: AtomicU64::new(0),
            prefix_routed_tokens: AtomicU64::new(0),
            next_request: AtomicU64::new(0),
        }
    }

    /// A panic elsewhere must not take the survivors down: both locks guard plain values that are whole at any time.
    pub(crate) fn lifecycle(&self) -> MutexGuard<'_, Lifecycle> {
        self.lifecycle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn published(&self) -> MutexGuard<'_, Published> {
        self.published.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the end of the loop. The first reason stays: a death is not overwritten by the tidying up after it.
    pub(crate) fn end(&self, reason: Lifecycle) {
        let mut lifecycle = self.lifecycle();
        if matches!(*lifecycle, Lifecycle::Running | Lifecycle::Draining) {
            *lifecycle = reason;
        }
    }

    /// Wakes those who wait for the loop's thread to be done with everything.
    pub(crate) fn announce_end(&self) {
        let _held = self.lifecycle();
        self.ended.notify_all();
    }

    /// Waits for the loop's end; false when it did not come in time.
    pub(crate) fn wait_for_end(&self, limit: Duration) -> bool {
        let alive = |lifecycle: &mut Lifecycle| matches!(lifecycle, Lifecycle::Running | Lifecycle::Draining);
        let waited = self.ended.wait_timeout_while(self.lifecycle(), limit, alive);
        let (_lifecycle, result) = waited.unwrap_or_else(PoisonError::into_inner);
        !result.timed_out()
    }

    /// What a caller is told who comes too late.
    pub(crate) fn gone(&self) -> RequestError {
        RequestError::EngineGone(match &*self.lifecycle() {
            Lifecycle::Running => "the engine ended".to_owned(),
            Lifecycle::Draining | Lifecycle::Stopped => "the server is shutting down".to_owned(),
            Lifecycle::Dead(reason) => format!("the engine died: {reason}"),
        })
    }
}
