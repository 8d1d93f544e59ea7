//! One seeded life of a scheduler: a random configuration, clients that come and go, and what each must get.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use phalanx_scheduler::step::{SamplingParams, SequenceFault, SequenceId, Step, TokenId};
use phalanx_scheduler::{FinishReason, Sabotage, Scheduler, SchedulerConfig, Stats, Submission, Update};

use crate::executor::{FakeExecutor, Limits};
use crate::random::{Random, VOCABULARY, next_token, slot_content};

/// What a life is made of, besides its seed.
#[derive(Clone, Copy, Default)]
pub(crate) struct Plan {
    /// Clients may leave before the end.
    pub(crate) aborts: bool,
    /// Verify the scheduler's own books after each step.
    pub(crate) check: bool,
    /// Overrides the random choice.
    pub(crate) prefix_cache: Option<bool>,
    pub(crate) sabotage: Option<Sabotage>,
}

/// What one sequence must get, and has got so far.
struct Expected {
    tokens: Vec<TokenId>,
    finish: FinishReason,
    got: usize,
    prompt_len: usize,
    rank: (i32, u64),
    /// It has ended or was aborted: nothing more may come.
    over: bool,
}

pub(crate) struct World {
    /// Decides what is submitted; apart from `random`, so that the same is submitted whatever comes of it.
    wishes: Random,
    /// Decides everything else.
    random: Random,
    plan: Plan,
    config: SchedulerConfig,
    depth: usize,
    scheduler: Scheduler,
    executor: FakeExecutor,
    expected: HashMap<SequenceId, Expected>,
    /// Sequences that no step has introduced, by rank.
    unstarted: BTreeSet<(i32, u64)>,
    alive: Vec<SequenceId>,
    next_id: u64,
    /// Prompts begin with a piece of one of these.
    beginnings: Vec<Vec<TokenId>>,
}

/// What a life amounted to.
pub(crate) struct Summary {
    pub(crate) stats: Stats,
    pub(crate) sequences: u64,
    /// What each sequence put out, in the order of their ids.
    pub(crate) outputs: Vec<Vec<TokenId>>,
}

fn random_config(random: &mut Random) -> (SchedulerConfig, usize) {
    let block_size = random.range(1, 16);
    let num_blocks = if random.chance(50) { random.range(1, 12) } else { random.range(1, 64) };
    let num_blocks = num_blocks.max(2usize.div_ceil(block_size));
    let depth = random.range(1, 4);
    let overlap = random.chance(50);
    let max_sequences = random.range(1, 12);
    let config = SchedulerConfig {
        num_blocks,
        block_size,
        max_batched_tokens: max_sequences + random.range(0, 40),
        max_sequences,
        max_model_len: random.range(2, (num_blocks * block_size).min(90)),
        prefix_cache: random.chance(75),
        overlap,
        stages: if overlap { 1 } else { random.range(1, depth) },
        hash_key: [random.next() as u8; 32],
    };
    (config, depth)
}

impl World {
    pub(crate) fn new(seed: u64, plan: Plan) -> Self {
        let mut random = Random(seed);
        let (mut config, depth) = random_config(&mut random);
        config.prefix_cache = plan.prefix_cache.unwrap_or(config.prefix_cache);
        let mut scheduler = Scheduler::new(config.clone()).unwrap();
        if let Some(bug) = plan.sabotage {
            scheduler.sabotage(bug);
        }
        let limits = Limits {
            block_size: config.block_size,
            max_batched_tokens: config.max_batched_tokens,
            max_sequences: config.max_sequences,
            overlap: config.overlap,
        };
        let beginnings = (0..3).map(|_| random_tokens(&mut random, config.max_model_len)).collect();
        Self {
            wishes: Random(random.next()),
            random,
            plan,
            executor: FakeExecutor::new(config.num_blocks, limits),
            config,
            depth,
            scheduler,
            expected: HashMap::new(),
            unstarted: BTreeSet::new(),
            alive: Vec::new(),
            next_id: 0,
            beginnings,
        }
    }

    /// Lives for `steps` steps, lets what is left come to its end, and looks that nothing remains.
    pub(crate) fn live(mut self, steps: u64) -> Summary {
        let crowd = self.random.range(1, 3 * self.config.max_sequences);
        while self.scheduler.stats().steps < steps {
            let arrives = self.alive.len() < crowd && self.random.chance(40);
            if arrives || !self.scheduler.has_work() {
                self.submit();
            }
            if self.plan.aborts && self.random.chance(5) {
                self.abort();
            }
            self.advance();
        }
        let mut patience = 1_000_000;
        while self.scheduler.has_work() {
            self.advance();
            patience -= 1;
            assert!(0 < patience, "the sequences left never end");
        }
        self.farewell()
    }

    fn farewell(self) -> Summary {
        let stats = self.scheduler.stats();
        assert_eq!((stats.used_blocks, stats.running, stats.waiting), (0, 0, 0), "something remains");
        assert_eq!(self.executor.remembered(), 0, "the workers were not told of every end");
        let mut outputs = Vec::new();
        for id in 0..self.next_id {
            let expected = &self.expected[&SequenceId(id)];
            assert!(expected.over, "sequence {id} never ended");
            outputs.push(expected.tokens[..expected.got].to_vec());
        }
        Summary { stats, sequences: self.next_id, outputs }
    }

    fn submit(&mut self) {
        let random = &mut self.wishes;
        let max_model_len = self.config.max_model_len;
        let beginning = &self.beginnings[random.range(0, self.beginnings.len() - 1)];
        let longest = if random.chance(50) { max_model_len - 1 } else { max_model_len.div_ceil(4) };
        let prompt_len = random.range(1, longest);
        let shared = random.range(0, prompt_len);
        let mut prompt = beginning[..shared].to_vec();
        let rest = if random.chance(30) { 0 } else { prompt_len - shared };
        prompt.extend(random_tokens(random, rest));
        if prompt.is_empty() {
            prompt.push(0);
        }
        let n = if random.chance(25) { random.range(2, 5) } else { 1 };
        let most = if random.chance(60) { 12 } else { 80 };
        let max_new_tokens = random.range(1, most);
        let stop_token_ids: Vec<TokenId> =
            if random.chance(50) { vec![(random.next() % VOCABULARY) as TokenId] } else { Vec::new() };
        let min_tokens = if random.chance(20) { random.range(1, 6) } else { 0 };
        let priority = if random.chance(70) { 0 } else { random.range(0, 2) as i32 - 1 };
        let cache_salt = random.chance(10).then(|| vec![random.next() as u8 % 2]);
        let mut submission = Submission {
            sequences: Vec::new(),
            prompt: prompt.into(),
            sampling: Vec::new(),
            max_new_tokens,
            stop_token_ids,
            priority,
            cache_salt,
        };
        for _ in 0..n {
            let id = SequenceId(self.next_id);
            let seed = if self.wishes.chance(50) { 0 } else { self.wishes.next() };
            let sampling = SamplingParams { seed, min_tokens, ..SamplingParams::default() };
            let rank = (priority, self.next_id);
            let expected = alone(&submission, &sampling, max_model_len, rank);
            self.expected.insert(id, expected);
            self.unstarted.insert(rank);
            self.alive.push(id);
            submission.sequences.push(id);
            submission.sampling.push(Arc::new(sampling));
            self.next_id += 1;
        }
        self.scheduler.submit(submission).unwrap();
    }

    /// Aborts somebody, often one who has ended already, now and then one who never was.
    fn abort(&mut self) {
        let id = if !self.alive.is_empty() && self.random.chance(80) {
            let index = self.random.range(0, self.alive.len() - 1);
            self.alive[index]
        } else {
            SequenceId(self.random.next() % (self.next_id + 1))
        };
        self.scheduler.abort(id);
        if let Some(expected) = self.expected.get_mut(&id) {
            expected.over = true;
            self.unstarted.remove(&expected.rank);
            self.alive.retain(|&other| other != id);
        }
        self.check();
    }

    /// Fills the steps in flight, or a part of them, and completes the oldest.
    fn advance(&mut self) {
        while self.executor.in_flight() < self.depth && !self.random.chance(10) {
            let step = self.scheduler.schedule();
            self.check();
            if self.executor.in_flight() == 0 && !self.alive.is_empty() {
                let advances = step.as_ref().is_some_and(|step| !step.chunks.is_empty());
                assert!(advances, "nothing is in flight, somebody is alive, and nothing is done");
            }
            let Some(step) = step else { break };
            self.check_order(&step);
            self.executor.submit(&step);
        }
        if 0 < self.executor.in_flight() {
            let output = self.executor.wait();
            let updates = self.scheduler.complete(&output);
            self.check();
            for update in updates {
                self.take_in(&update);
            }
        }
    }

    fn check(&self) {
        if self.plan.check {
            self.scheduler.check();
        }
    }

    /// Nobody is introduced while one of lower rank number has not been.
    fn check_order(&mut self, step: &Step) {
        for started in &step.started {
            let expected = &self.expected[&started.sequence];
            let first = self.unstarted.pop_first();
            assert_eq!(first, Some(expected.rank), "{:?} overtakes another", started.sequence);
        }
    }

    fn take_in(&mut self, update: &Update) {
        let id = update.sequence;
        let expected = self.expected.get_mut(&id).expect("an update is of a sequence that was submitted");
        assert!(!expected.over, "{id:?} has ended and gets an update");
        assert!(update.cached_tokens < expected.prompt_len, "{id:?} did not compute its last prompt token");
        assert_eq!(
            update.token,
            expected.tokens.get(expected.got).copied(),
            "{id:?} differs from itself alone"
        );
        if update.token.is_some() {
            expected.got += 1;
        }
        let fault = matches!(expected.finish, FinishReason::Fault(_));
        let last = expected.got == expected.tokens.len() && (!fault || update.token.is_none());
        assert_eq!(update.finish, last.then_some(expected.finish), "{id:?} ends otherwise than alone");
        if last {
            expected.over = true;
            self.alive.retain(|&other| other != id);
        }
    }
}

fn random_tokens(random: &mut Random, count: usize) -> Vec<TokenId> {
    (0..count).map(|_| (random.next() % VOCABULARY) as TokenId).collect()
}

/// What a sequence puts out when it has the machine to itself.
fn alone(
    submission: &Submission,
    sampling: &SamplingParams,
    max_model_len: usize,
    rank: (i32, u64),
) -> Expected {
    let prompt_len = submission.prompt.len();
    let mut slot = None;
    for &token in submission.prompt.iter() {
        slot = Some(slot_content(slot, token));
    }
    let mut tokens = Vec::new();
    let finish = loop {
        let Some(token) = next_token(slot.unwrap(), sampling.seed) else {
            break FinishReason::Fault(SequenceFault::NonFiniteLogits);
        };
        let may_stop = sampling.min_tokens <= tokens.len();
        tokens.push(token);
        slot = Some(slot_content(slot, token));
        if may_stop && submission.stop_token_ids.contains(&token) {
            break FinishReason::Stop;
        }
        if tokens.len() == submission.max_new_tokens || prompt_len + tokens.len() == max_model_len {
            break FinishReason::Length;
        }
    };
    Expected { tokens, finish, got: 0, prompt_len, rank, over: false }
}
