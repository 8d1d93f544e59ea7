//! The loop: commands in, steps out, and what came back to the callers.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Instant;

use futures_channel::mpsc::UnboundedSender;
use phalanx_scheduler::step::{Executor, SequenceId};
use phalanx_scheduler::{Scheduler, Submission};
use phalanx_text::Tokenizer;

use crate::output::{Event, RequestError};
use crate::requests::Requests;
use crate::shared::{Lifecycle, Shared};
use crate::validate::Lowered;

/// A request's name inside one engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RequestKey(pub(crate) u64);

/// What handles and streams ask of the loop.
pub(crate) enum Command {
    Submit(Box<Accepted>),
    /// The caller dropped its stream.
    Abort(RequestKey),
    /// Complete what there is until the deadline (none: however long it takes), then end.
    Shutdown {
        deadline: Option<Instant>,
    },
}

/// A request that passed validation and has a place in the queue.
pub(crate) struct Accepted {
    pub(crate) key: RequestKey,
    pub(crate) lowered: Lowered,
    pub(crate) events: UnboundedSender<Event>,
    pub(crate) submitted: Instant,
}

/// Whether the loop goes on.
enum Next {
    Continue,
    End,
}

/// When to end.
enum Stopping {
    No,
    /// When all requests are complete.
    WhenEmpty,
    /// When all requests are complete, or then.
    At(Instant),
}

/// Everything the engine's thread owns.
pub(crate) struct Loop {
    scheduler: Scheduler,
    executor: Box<dyn Executor>,
    tokenizer: Arc<Tokenizer>,
    requests: Requests,
    shared: Arc<Shared>,
    stopping: Stopping,
}

impl Loop {
    pub(crate) fn new(
        scheduler: Scheduler,
        executor: Box<dyn Executor>,
        tokenizer: Arc<Tokenizer>,
        shared: Arc<Shared>,
    ) -> Self {
        let requests = Requests::new(Arc::clone(&shared));
        Self { scheduler, executor, tokenizer, requests, shared, stopping: Stopping::No }
    }

    /// The thread's whole life. Neither a fault nor a panic leaves a caller waiting.
    pub(crate) fn live(mut self, commands: &Receiver<Command>) {
        self.tell();
        // What a panic may have left half done is only read again to fail every request.
        let end = match catch_unwind(AssertUnwindSafe(|| self.run(commands))) {
            Ok(Ok(())) => Lifecycle::Stopped,
            Ok(Err(fault)) => Lifecycle::Dead(fault),
            Err(panic) => Lifecycle::Dead(format!("a fault in the engine's loop: {}", panic_text(&*panic))),
        };
        match &end {
            Lifecycle::Dead(reason) => {
                tracing::error!(reason, "the engine died");
                // Before the callers hear of it: whoever asks why is told the same.
                self.shared.end(end.clone());
            }
            _ => tracing::info!("the engine stopped"),
        }
        // The scheduler is not touched any more: a panic may have come from it.
        let _alive = self.requests.fail_all(&self.shared.gone(), &mut self.shared.published().snapshot);
        self.requests.send_events();
        let Self { executor, shared, .. } = self;
        drop(executor);
        shared.end(end);
        shared.announce_end();
        // Requests still among the commands lose their senders when the receiver is dropped after this; their
        // streams find the reason in `shared`.
    }

    fn run(&mut self, commands: &Receiver<Command>) -> Result<(), String> {
        let mut since = Instant::now();
        loop {
            match self.take_commands(commands) {
                Next::Continue => {}
                Next::End => return Ok(()),
            }
            self.start_steps();
            // The devices have their next step before the callers hear of the last one.
            tracing::trace!(us = since.elapsed().as_micros() as u64, "the next step is submitted");
            self.tell();
            if 0 < self.scheduler.steps_in_flight() {
                tracing::trace!(us = since.elapsed().as_micros() as u64, "between steps");
                self.finish_step(&mut since)?;
            }
        }
    }

    /// Reads all commands there are; with nothing else to do, waits for one.
    fn take_commands(&mut self, commands: &Receiver<Command>) -> Next {
        loop {
            let command = match commands.try_recv() {
                Ok(command) => Some(command),
                Err(TryRecvError::Empty) => None,
                // Every handle and every stream is gone, so nobody is left to work for.
                Err(TryRecvError::Disconnected) => return Next::End,
            };
            match command {
                Some(command) => self.obey(command),
                None => {
                    self.check_deadline();
                    if self.scheduler.has_work() {
                        return Next::Continue;
                    }
                    self.tell();
                    if !matches!(self.stopping, Stopping::No) {
                        return Next::End;
                    }
                    match commands.recv() {
                        Ok(command) => self.obey(command),
                        Err(_) => return Next::End,
                    }
                }
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Submit(accepted) => self.submit(*accepted),
            Command::Abort(key) => {
                let alive = self.requests.abort(key, &mut self.shared.published().snapshot);
                self.end_sequences(&alive);
            }
            Command::Shutdown { deadline } => {
                self.stopping = match (&self.stopping, deadline) {
                    (Stopping::At(earlier), Some(later)) => Stopping::At(later.min(*earlier)),
                    (Stopping::At(earlier), None) => Stopping::At(*earlier),
                    (_, Some(deadline)) => Stopping::At(deadline),
                    (_, None) => Stopping::WhenEmpty,
                };
            }
        }
    }

    fn submit(&mut self, accepted: Accepted) {
        let key = accepted.key;
        let lowered = &accepted.lowered;
        let request = &lowered.request;
        tracing::debug!(id = request.id, prompt_tokens = request.prompt.len(), n = request.n, "request");
        let mut submission = Submission {
            sequences: Vec::new(),
            prompt: Arc::clone(&request.prompt),
            sampling: lowered.sampling.clone(),
            max_new_tokens: lowered.max_new_tokens,
            stop_token_ids: lowered.stop_token_ids.clone(),
            priority: request.priority,
            cache_salt: request.cache_salt.clone().map(String::into_bytes),
        };
        let figures = &mut self.shared.published().snapshot;
        submission.sequences = self.requests.insert(accepted, &self.tokenizer, figures);
        if let Err(error) = self.scheduler.submit(submission) {
            // Validation holds requests to the same limits; should the two ever differ, the caller is told.
            let error = RequestError::Invalid { field: "prompt", message: error.to_string() };
            self.requests.fail(key, error, figures);
        }
    }

    /// Keeps as many steps in flight as the executor takes.
    fn start_steps(&mut self) {
        let now = Instant::now();
        while self.scheduler.steps_in_flight() < self.executor.depth() {
            let Some(step) = self.scheduler.schedule() else { break };
            let mut published = self.shared.published();
            if !published.busy {
                published.busy = true;
                published.last_step = now;
            }
            self.requests.note_step(&step, now, &mut published.snapshot);
            // Before the step leaves: the metrics are never behind what a rank is doing. Where no step follows, `tell` does it.
            published.snapshot.scheduler = self.scheduler.stats();
            drop(published);
            self.executor.submit(Arc::new(step));
        }
        let stuck = self.scheduler.has_work() && self.scheduler.steps_in_flight() == 0;
        assert!(!stuck, "the scheduler has work, but neither makes a step nor waits for one");
    }

    /// Waits for the oldest step and takes in what it brought, noting when it came.
    fn finish_step(&mut self, since: &mut Instant) -> Result<(), String> {
        let output = self.executor.wait().map_err(|error| error.to_string())?;
        let now = Instant::now();
        *since = now;
        let updates = self.scheduler.complete(&output);
        let shared = Arc::clone(&self.shared);
        let mut published = shared.published();
        published.last_step = now;
        published.busy = 0 < self.scheduler.steps_in_flight();
        for update in updates {
            let over = self.requests.apply(update, now, &mut published.snapshot);
            self.end_sequences(&over);
        }
        Ok(())
    }

    /// When the grace of a shutdown is over, whatever is left fails.
    fn check_deadline(&mut self) {
        if let Stopping::At(deadline) = self.stopping
            && deadline <= Instant::now()
            && !self.requests.is_empty()
        {
            let alive = self.requests.fail_all(&self.shared.gone(), &mut self.shared.published().snapshot);
            self.end_sequences(&alive);
        }
    }

    fn end_sequences(&mut self, sequences: &[SequenceId]) {
        for sequence in sequences {
            self.scheduler.abort(*sequence);
        }
    }

    /// Lets the callers know what has happened, the metrics first: who reads `Done` finds the request's blocks free.
    fn tell(&mut self) {
        self.shared.published().snapshot.scheduler = self.scheduler.stats();
        self.requests.send_events();
    }
}

/// What a panic said.
fn panic_text(panic: &(dyn Any + Send)) -> &str {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (_, Some(text)) => text,
        _ => "unknown",
    }
}
