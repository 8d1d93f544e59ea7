//! The way to an engine: start it, hand it requests, look at it, stop it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Sender};
use std::time::{Duration, Instant};

use futures_channel::mpsc::unbounded;
use phalanx_scheduler::Scheduler;
use phalanx_scheduler::step::Executor;
use phalanx_text::Tokenizer;

use crate::metrics::Snapshot;
use crate::options::{EngineError, EngineOptions};
use crate::output::RequestError;
use crate::request::Request;
use crate::run::{Accepted, Command, Loop, RequestKey};
use crate::shared::{Health, Lifecycle, Shared};
use crate::stream::EventStream;
use crate::validate::{Limits, lower};

/// How much longer than its grace [`EngineHandle::shutdown`] waits for a step that is in flight.
const LAST_STEP: Duration = Duration::from_secs(5);

/// One replica: a scheduler and an executor on a thread of their own.
pub struct Engine;

impl Engine {
    /// Starts the loop. It ends by [`EngineHandle::shutdown`], by a fault, or when all handles and streams are dropped.
    ///
    /// # Errors
    /// Options that contradict each other, or no thread.
    pub fn start(
        options: EngineOptions,
        tokenizer: Arc<Tokenizer>,
        executor: Box<dyn Executor>,
    ) -> Result<EngineHandle, EngineError> {
        options.validate()?;
        let limits = Limits {
            vocab_size: options.vocab_size,
            max_model_len: options.scheduler.max_model_len,
            max_queue: options.max_queue,
            eos_token_ids: options.eos_token_ids,
            block_size: options.scheduler.block_size,
            prefix_blocks: if options.scheduler.prefix_cache { options.scheduler.num_blocks } else { 0 },
        };
        let scheduler = Scheduler::new(options.scheduler)?;
        let shared = Arc::new(Shared::new(limits));
        let (commands, received) = mpsc::channel();
        let engine_loop = Loop::new(scheduler, executor, tokenizer, Arc::clone(&shared));
        std::thread::Builder::new().name(options.name).spawn(move || engine_loop.live(&received))?;
        Ok(EngineHandle { commands, shared })
    }
}

/// A way to an engine, cheap to clone.
#[derive(Clone)]
pub struct EngineHandle {
    commands: Sender<Command>,
    shared: Arc<Shared>,
}

impl EngineHandle {
    /// Validates a request and queues it.
    ///
    /// # Errors
    /// [`RequestError::Invalid`] and [`RequestError::ContextLength`] for what it asks, [`RequestError::Overloaded`]
    /// when the queue is full, [`RequestError::EngineGone`] when the engine has ended or is about to.
    pub fn submit(&self, request: Request) -> Result<EventStream, RequestError> {
        self.submit_spared(request, 0)
    }

    /// As [`EngineHandle::submit`], of a prompt of which `spared` tokens need not be computed here.
    pub(crate) fn submit_spared(&self, request: Request, spared: usize) -> Result<EventStream, RequestError> {
        self.offer(request, spared).inspect_err(|error| {
            if matches!(error, RequestError::Overloaded(_)) {
                self.shared.published().snapshot.rejected_overloaded += 1;
            }
        })
    }

    /// As [`EngineHandle::submit_spared`], but a full queue is not counted as a refusal: the router has other engines to
    /// ask.
    pub(crate) fn offer(&self, request: Request, spared: usize) -> Result<EventStream, RequestError> {
        let mut lowered = lower(request, &self.shared.limits).inspect_err(|_| {
            self.shared.published().snapshot.rejected_invalid += 1;
        })?;
        lowered.prompt_load = lowered.prompt_load.saturating_sub(spared);
        let lifecycle = self.shared.lifecycle();
        if *lifecycle != Lifecycle::Running {
            drop(lifecycle);
            return Err(self.shared.gone());
        }
        self.take_place_in_queue()?;
        self.shared.live.fetch_add(1, Ordering::Relaxed);
        self.shared
            .outstanding_tokens
            .fetch_add(lowered.prompt_load + lowered.answer_load, Ordering::Relaxed);
        let key = RequestKey(self.shared.next_request.fetch_add(1, Ordering::Relaxed));
        let (sender, events) = unbounded();
        let accepted = Accepted { key, lowered, events: sender, submitted: Instant::now() };
        // When the loop died a moment ago, the stream itself finds that out.
        let _gone = self.commands.send(Command::Submit(Box::new(accepted)));
        drop(lifecycle);
        Ok(EventStream {
            key,
            events,
            commands: self.commands.clone(),
            shared: Arc::clone(&self.shared),
            ended: false,
        })
    }

    /// The figures of the last step.
    #[must_use]
    pub fn metrics(&self) -> Snapshot {
        let mut snapshot = self.shared.published().snapshot.clone();
        snapshot.queued_requests = self.shared.queued.load(Ordering::Relaxed);
        snapshot.live_requests = self.shared.live.load(Ordering::Relaxed);
        snapshot.routed_requests = self.shared.routed_requests.load(Ordering::Relaxed);
        snapshot.prefix_routed_tokens = self.shared.prefix_routed_tokens.load(Ordering::Relaxed);
        snapshot
    }

    /// Whether the loop is alive, and when it last did something.
    #[must_use]
    pub fn health(&self) -> Health {
        let lifecycle = self.shared.lifecycle().clone();
        let published = self.shared.published();
        Health { lifecycle, busy: published.busy, last_step_age: published.last_step.elapsed() }
    }

    /// Takes no more requests, lets those it has complete for at most `grace`, then fails the rest and ends.
    ///
    /// Waits for that: call it from a thread that may block. A second call with a shorter grace hurries the first.
    /// False when a step in flight did not come back even 5 s later.
    pub fn shutdown(&self, grace: Duration) -> bool {
        let mut lifecycle = self.shared.lifecycle();
        if *lifecycle == Lifecycle::Running {
            *lifecycle = Lifecycle::Draining;
        }
        drop(lifecycle);
        // A loop that is gone has ended already.
        let _gone = self.commands.send(Command::Shutdown { deadline: Instant::now().checked_add(grace) });
        self.shared.wait_for_end(grace.saturating_add(LAST_STEP))
    }

    /// Tokens that accepted requests were expected to need: of a prompt those that the router did not take for known
    /// here, until its first token is computed; of an answer all, until its end.
    #[must_use]
    pub fn outstanding_tokens(&self) -> usize {
        self.shared.outstanding_tokens.load(Ordering::Relaxed)
    }

    /// Requests that the router gave to this engine.
    pub(crate) fn routed_requests(&self) -> u64 {
        self.shared.routed_requests.load(Ordering::Relaxed)
    }

    /// Counts a request of the router's, of which it took `spared` tokens for known here.
    pub(crate) fn note_routed(&self, spared: usize) {
        self.shared.routed_requests.fetch_add(1, Ordering::Relaxed);
        self.shared.prefix_routed_tokens.fetch_add(spared as u64, Ordering::Relaxed);
    }

    /// Tokens of a KV block.
    pub(crate) fn block_size(&self) -> usize {
        self.shared.limits.block_size
    }

    /// Blocks of its pool that keep what was computed for later prompts; 0 without a prefix cache.
    pub(crate) fn prefix_blocks(&self) -> usize {
        self.shared.limits.prefix_blocks
    }

    /// Tokens of the longest sequence, prompt and answer together.
    #[must_use]
    pub fn max_model_len(&self) -> usize {
        self.shared.limits.max_model_len
    }

    /// Tokens that exist.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.shared.limits.vocab_size
    }

    fn take_place_in_queue(&self) -> Result<(), RequestError> {
        let most = self.shared.limits.max_queue;
        let place = |queued: usize| (queued < most).then_some(queued + 1);
        match self.shared.queued.fetch_update(Ordering::Relaxed, Ordering::Relaxed, place) {
            Ok(_) => Ok(()),
            Err(queued) => Err(RequestError::Overloaded(format!(
                "the queue is full: {queued} requests wait already; try again in a while"
            ))),
        }
    }
}

impl fmt::Debug for EngineHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EngineHandle({:?})", *self.shared.lifecycle())
    }
}
