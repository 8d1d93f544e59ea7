//! The requests an engine is carrying out, and what becomes of them: events for the caller, figures for the metrics.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use futures_channel::mpsc::UnboundedSender;
use phalanx_scheduler::Update;
use phalanx_scheduler::step::{SequenceId, Step};
use phalanx_text::Tokenizer;

use crate::answer::Answer;
use crate::metrics::Snapshot;
use crate::output::{Event, Finish, RequestError, Timing, Usage};
use crate::run::{Accepted, RequestKey};
use crate::shared::Shared;

/// A request between its submission and its end.
struct Live {
    events: UnboundedSender<Event>,
    answers: Vec<Answer>,
    prompt_tokens: usize,
    cached_tokens: Option<usize>,
    preemptions: usize,
    /// Its part of the engine's outstanding tokens: the prompt's until the first token, the answers' until the end.
    prompt_load: usize,
    answer_load: usize,
    submitted: Instant,
    first_step: Option<Instant>,
    first_token: Option<Instant>,
}

impl Live {
    fn usage(&self, now: Instant) -> Usage {
        let since = |moment: Option<Instant>| seconds(self.submitted, moment.unwrap_or(now));
        Usage {
            prompt_tokens: self.prompt_tokens,
            cached_tokens: self.cached_tokens.unwrap_or(0),
            completion_tokens: self.answers.iter().map(|answer| answer.num_tokens).sum(),
            preemptions: self.preemptions,
            timing: Timing {
                queue_seconds: since(self.first_step),
                first_token_seconds: since(self.first_token),
                total_seconds: seconds(self.submitted, now),
            },
        }
    }
}

/// All of them, by key and by sequence.
pub(crate) struct Requests {
    live: HashMap<RequestKey, Live>,
    by_sequence: HashMap<SequenceId, (RequestKey, usize)>,
    next_sequence: u64,
    shared: Arc<Shared>,
    /// Events wait here until the next step is under way and the metrics tell the same story.
    outbox: Vec<(UnboundedSender<Event>, Event)>,
}

impl Requests {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            live: HashMap::new(),
            by_sequence: HashMap::new(),
            next_sequence: 0,
            shared,
            outbox: Vec::new(),
        }
    }

    /// Takes a request in and returns the ids of its sequences.
    pub(crate) fn insert(
        &mut self,
        accepted: Accepted,
        tokenizer: &Arc<Tokenizer>,
        figures: &mut Snapshot,
    ) -> Vec<SequenceId> {
        let Accepted { key, lowered, events, submitted } = accepted;
        let request = &lowered.request;
        let stop_strings: Arc<[String]> = request.stop.strings.clone().into();
        let first = self.next_sequence;
        self.next_sequence += request.n as u64;
        let ids: Vec<SequenceId> = (first..self.next_sequence).map(SequenceId).collect();
        let answers = ids.iter().enumerate().map(|(index, id)| {
            self.by_sequence.insert(*id, (key, index));
            Answer::new(index, *id, request, &stop_strings, tokenizer)
        });
        let live = Live {
            events,
            answers: answers.collect(),
            prompt_tokens: request.prompt.len(),
            cached_tokens: None,
            preemptions: 0,
            prompt_load: lowered.prompt_load,
            answer_load: lowered.answer_load,
            submitted,
            first_step: None,
            first_token: None,
        };
        figures.request_n.observe(request.n as f64);
        if let Some(most) = request.max_new_tokens {
            figures.request_max_tokens.observe(most as f64);
        }
        self.live.insert(key, live);
        ids
    }

    /// Notes who runs in a step that is about to start.
    pub(crate) fn note_step(&mut self, step: &Step, now: Instant, figures: &mut Snapshot) {
        let mut computed = 0;
        for chunk in &step.chunks {
            computed += chunk.len();
            let Some((key, index)) = self.by_sequence.get(&chunk.sequence) else { continue };
            let live = self.live.get_mut(key).expect("a sequence known by id belongs to a living request");
            if live.first_step.is_none() {
                live.first_step = Some(now);
                self.shared.queued.fetch_sub(1, Ordering::Relaxed);
            }
            let answer = &mut live.answers[*index];
            // Computing again what was computed: it was preempted in between.
            live.preemptions += usize::from(chunk.start < answer.computed);
            answer.computed = chunk.start + chunk.len();
        }
        figures.iteration_tokens.observe(computed as f64);
    }

    /// Tells a caller what a step meant for one of its answers. Returns the sequences that must end because of it.
    pub(crate) fn apply(&mut self, update: Update, now: Instant, figures: &mut Snapshot) -> Vec<SequenceId> {
        let Some(&(key, index)) = self.by_sequence.get(&update.sequence) else { return Vec::new() };
        let live = self.live.get_mut(&key).expect("a sequence known by id belongs to a living request");
        let position = live.answers[index].num_tokens;
        let Some(token) = update.token else {
            figures.non_finite_requests += 1;
            return self.fail(key, RequestError::NonFinite { index, position }, figures);
        };
        // Siblings find the first one's prompt computed; what the cache spared the request is the least of them.
        let cached = live.cached_tokens.map_or(update.cached_tokens, |least| least.min(update.cached_tokens));
        live.cached_tokens = Some(cached);
        // The prompt is computed, which nobody waits for any more.
        self.shared.outstanding_tokens.fetch_sub(std::mem::take(&mut live.prompt_load), Ordering::Relaxed);
        let still_scheduled = update.finish.is_none();
        let delta = live.answers[index].push(token, update);
        observe_token(live, index, now, figures);
        let answer = &live.answers[index];
        let mut over = Vec::new();
        if let Some(finish) = &delta.finish {
            self.by_sequence.remove(&answer.sequence);
            over.extend(still_scheduled.then_some(answer.sequence));
            observe_answer(answer, finish, figures);
        }
        self.outbox.push((live.events.clone(), Event::Delta(delta)));
        if live.answers.iter().all(|answer| answer.ended) {
            let live = self.remove(key).expect("it was there a line before");
            observe_request(&live, now, figures);
            let usage = live.usage(now);
            self.outbox.push((live.events, Event::Done(usage)));
        }
        over
    }

    /// Ends a request with an error; returns its sequences that were alive.
    pub(crate) fn fail(
        &mut self,
        key: RequestKey,
        error: RequestError,
        figures: &mut Snapshot,
    ) -> Vec<SequenceId> {
        let Some(live) = self.remove(key) else { return Vec::new() };
        let alive = alive_sequences(&live);
        figures.finished.error += alive.len() as u64;
        self.outbox.push((live.events, Event::Failed(error)));
        alive
    }

    /// Ends every request with an error; returns the sequences that were alive.
    pub(crate) fn fail_all(&mut self, error: &RequestError, figures: &mut Snapshot) -> Vec<SequenceId> {
        let keys: Vec<RequestKey> = self.live.keys().copied().collect();
        keys.into_iter().flat_map(|key| self.fail(key, error.clone(), figures)).collect()
    }

    /// Forgets a request whose caller left; returns its sequences that were alive.
    pub(crate) fn abort(&mut self, key: RequestKey, figures: &mut Snapshot) -> Vec<SequenceId> {
        // It may have ended on its own while the abort was under way.
        let Some(live) = self.remove(key) else { return Vec::new() };
        let alive = alive_sequences(&live);
        figures.finished.abort += alive.len() as u64;
        alive
    }

    /// Sends what has happened since the last call.
    pub(crate) fn send_events(&mut self) {
        for (events, event) in self.outbox.drain(..) {
            // A caller that is gone has sent an abort, which is read before another step is scheduled.
            let _gone = events.unbounded_send(event);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    fn remove(&mut self, key: RequestKey) -> Option<Live> {
        let live = self.live.remove(&key)?;
        for answer in &live.answers {
            self.by_sequence.remove(&answer.sequence);
        }
        if live.first_step.is_none() {
            self.shared.queued.fetch_sub(1, Ordering::Relaxed);
        }
        self.shared.live.fetch_sub(1, Ordering::Relaxed);
        self.shared.outstanding_tokens.fetch_sub(live.prompt_load + live.answer_load, Ordering::Relaxed);
        Some(live)
    }
}

fn alive_sequences(live: &Live) -> Vec<SequenceId> {
    live.answers.iter().filter(|answer| !answer.ended).map(|answer| answer.sequence).collect()
}

fn observe_token(live: &mut Live, index: usize, now: Instant, figures: &mut Snapshot) {
    figures.generation_tokens += 1;
    if live.first_token.is_none() {
        live.first_token = Some(now);
        figures.prompt_tokens += live.prompt_tokens as u64;
        figures.cached_prompt_tokens += live.cached_tokens.unwrap_or(0) as u64;
        figures.time_to_first_token.observe(seconds(live.submitted, now));
    }
    let answer = &mut live.answers[index];
    match answer.last_token {
        Some(last) => figures.inter_token_latency.observe(seconds(last, now)),
        None => answer.first_token = Some(now),
    }
    answer.last_token = Some(now);
}

fn observe_answer(answer: &Answer, finish: &Finish, figures: &mut Snapshot) {
    match finish {
        Finish::EndToken(_) | Finish::StopString(_) => figures.finished.stop += 1,
        Finish::Length => figures.finished.length += 1,
    }
    figures.request_generation_tokens.observe(answer.num_tokens as f64);
    if let (Some(first), Some(last)) = (answer.first_token, answer.last_token)
        && 1 < answer.num_tokens
    {
        let intervals = (answer.num_tokens - 1) as f64;
        figures.time_per_output_token.observe(seconds(first, last) / intervals);
    }
}

fn observe_request(live: &Live, now: Instant, figures: &mut Snapshot) {
    figures.request_prompt_tokens.observe(live.prompt_tokens as f64);
    figures.e2e_latency.observe(seconds(live.submitted, now));
    let (Some(first_step), Some(first_token)) = (live.first_step, live.first_token) else { return };
    figures.queue_time.observe(seconds(live.submitted, first_step));
    figures.prefill_time.observe(seconds(first_step, first_token));
    figures.decode_time.observe(seconds(first_token, now));
    figures.inference_time.observe(seconds(first_step, now));
}

fn seconds(from: Instant, to: Instant) -> f64 {
    to.saturating_duration_since(from).as_secs_f64()
}
