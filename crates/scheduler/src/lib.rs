//! What to compute next: admission, chunking, preemption, the block pool and the prefix cache.
//!
//! Pure: no I/O, clock, thread, tensor or text. Sequences have tokens and a count of *computed* tokens; a
//! step gives some sequences some tokens, so that computed catches up. Everything else follows from that:
//! a long prompt is caught up in chunks, a decoding sequence is one token behind, a prefix hit begins ahead,
//! a preempted sequence begins again. There is no prefill phase and no decode phase.
//!
//! The caller keeps up to [`step::Executor::depth`] steps in flight:
//!
//! ```text
//! while in flight < depth, and let Some(step) = scheduler.schedule() { executor.submit(step) }
//! for update in scheduler.complete(&executor.wait()?) { tell the client }
//! ```
//!
//! **Order is the only lock.** Every rank applies steps in the order they were scheduled, so the scheduler
//! books a step as done the moment it is scheduled. A block may be shared while the step that fills it is in
//! flight, and may change hands while a step in flight still uses it (an aborted sequence's, or the late
//! token of one that stopped): what is scheduled later happens later, on each stage of a pipeline too.
//! Within one step only this order holds: copies first, one after the other, then chunks, none of which
//! reads what another chunk of the same step writes.
//!
//! **No deadlock, no starvation.** A sequence of full length fits into the pool alone ([`ConfigError`]), and
//! the first of the running sequences may take blocks from all others, so it always advances. Whoever waits
//! at the head is never overtaken by one behind it. Every running sequence whose last token is known gets at
//! least one token a step, or, in a pipeline, in one of as many steps as there are stages.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::blocks::BlockPool;
use crate::prefix::HashChain;
use crate::sequence::{Handle, Rank, Sequence, Sequences};
use crate::step::{BlockId, SequenceId, TokenId};

mod admission;
mod blocks;
mod check;
mod complete;
mod interface;
mod prefix;
mod schedule;
mod sequence;
pub mod step;

#[doc(hidden)]
pub use interface::Sabotage;
pub use interface::{ConfigError, FinishReason, SchedulerConfig, Stats, Submission, SubmitError, Update};

/// Decides every step of one engine.
pub struct Scheduler {
    config: SchedulerConfig,
    sequences: Sequences,
    pool: BlockPool,
    chain: HashChain,
    /// Sequences without blocks, by rank.
    waiting: BTreeMap<Rank, Handle>,
    /// Sequences with blocks, by rank: the last is the first to be preempted.
    running: Vec<Handle>,
    /// Steps scheduled and not completed, oldest first.
    in_flight: VecDeque<InFlight>,
    /// Ended sequences that the workers still remember.
    finished: Vec<SequenceId>,
    /// The sequences of the step in the making.
    batch: Vec<Handle>,
    /// The blocks found for the sequence being admitted.
    prefix: Vec<BlockId>,
    next_step: u64,
    next_arrival: u64,
    /// The counters since the start; the other fields stay zero.
    counters: Stats,
    sabotage: Option<Sabotage>,
}

/// What is remembered of a step in flight.
struct InFlight {
    number: u64,
    /// Who samples, in the order of the step's chunks. Some may have ended since.
    sampling: Vec<(Handle, SequenceId)>,
}

impl Scheduler {
    /// A scheduler without sequences.
    ///
    /// # Errors
    /// When some sequence that `config` admits could never end; the text says what to change.
    pub fn new(config: SchedulerConfig) -> Result<Self, ConfigError> {
        config.validate()?;
        Ok(Self {
            sequences: Sequences::default(),
            pool: BlockPool::new(config.num_blocks),
            chain: HashChain::new(config.hash_key),
            waiting: BTreeMap::new(),
            running: Vec::with_capacity(config.max_sequences),
            in_flight: VecDeque::new(),
            finished: Vec::new(),
            batch: Vec::new(),
            prefix: Vec::new(),
            next_step: 0,
            next_arrival: 0,
            counters: Stats::default(),
            sabotage: None,
            config,
        })
    }

    /// Adds the sequences of `submission`, behind those of the same priority.
    ///
    /// # Errors
    /// When nothing could be generated; the text is for the client.
    ///
    /// # Panics
    /// When a sequence id was used before, or ids and sampling parameters differ in number.
    pub fn submit(&mut self, submission: Submission) -> Result<(), SubmitError> {
        let Submission { sequences, prompt, sampling, max_new_tokens, stop_token_ids, priority, cache_salt } =
            submission;
        assert_eq!(sequences.len(), sampling.len(), "each sequence has its own sampling parameters");
        if prompt.is_empty() {
            return Err(SubmitError::EmptyPrompt);
        }
        if max_new_tokens == 0 {
            return Err(SubmitError::NoNewTokens);
        }
        let max_model_len = self.config.max_model_len;
        if max_model_len < prompt.len() + 1 {
            return Err(SubmitError::PromptTooLong { prompt_len: prompt.len(), max_model_len });
        }
        let max_len = max_model_len.min(prompt.len().saturating_add(max_new_tokens));
        let family: Arc<[SequenceId]> = sequences.into();
        let stop_token_ids: Arc<[TokenId]> = stop_token_ids.into();
        let root = self.chain.root(cache_salt.as_deref());
        for (&id, sampling) in family.iter().zip(sampling) {
            let rank = Rank { priority, arrival: self.next_arrival };
            self.next_arrival += 1;
            let handle = self.sequences.insert(Sequence {
                id,
                rank,
                family: Arc::clone(&family),
                output: Vec::new(),
                prompt: Arc::clone(&prompt),
                sampling,
                stop_token_ids: Arc::clone(&stop_token_ids),
                max_len,
                computed: 0,
                readable: 0,
                pending: 0,
                blocks: Vec::new(),
                root,
                hashes: Vec::new(),
                registered: 0,
                introduced: false,
                cached_tokens: None,
            });
            self.waiting.insert(rank, handle);
        }
        Ok(())
    }

    /// Ends a sequence for a reason outside the scheduler: its client is gone, or its text is complete. Its
    /// blocks are free at once, and what is in flight for it is dropped when it arrives. An id that is not
    /// alive is ignored.
    pub fn abort(&mut self, sequence: SequenceId) {
        if let Some(handle) = self.sequences.find(sequence) {
            self.end(handle);
        }
    }

    /// Whether there is anything left to schedule or to wait for.
    #[must_use]
    pub fn has_work(&self) -> bool {
        !self.sequences.is_empty() || !self.in_flight.is_empty() || !self.finished.is_empty()
    }

    /// Steps in flight: scheduled and not completed.
    #[must_use]
    pub fn steps_in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Plants a bug, for the test that must find it.
    #[doc(hidden)]
    pub fn sabotage(&mut self, bug: Sabotage) {
        self.sabotage = Some(bug);
        self.pool.sabotage = Some(bug);
    }

    /// Figures for metrics; costs a copy of them.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats {
            running: self.running.len(),
            waiting: self.waiting.len(),
            used_blocks: self.pool.used(),
            total_blocks: self.pool.total(),
            cached_blocks: self.pool.cached(),
            steps: self.next_step,
            ..self.counters
        }
    }
}
