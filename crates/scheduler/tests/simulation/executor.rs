//! A machine hall that keeps, instead of keys and values, what they depend on, and watches every access.

use std::collections::{HashMap, HashSet, VecDeque};

use phalanx_scheduler::step::{
    Chunk, ChunkTokens, Sampled, SampledToken, SequenceFault, SequenceId, Step, StepOutput, TokenId,
};

use crate::random::{next_token, slot_content};

/// The limits a step must keep.
pub(crate) struct Limits {
    pub(crate) block_size: usize,
    pub(crate) max_batched_tokens: usize,
    pub(crate) max_sequences: usize,
    pub(crate) overlap: bool,
}

#[derive(Clone, Copy, Default)]
struct Slot {
    content: u64,
    /// The last steps, counted from 1, that read and wrote it.
    read: u64,
    written: u64,
}

/// What a worker knows of a sequence.
struct Known {
    tokens: Vec<TokenId>,
    /// What the slot of each token must hold.
    contents: Vec<u64>,
    seed: u64,
    /// The number of the last step that sampled it, to see its token in flight.
    sampled_in: Option<u64>,
}

impl Known {
    fn push(&mut self, token: TokenId) {
        self.contents.push(slot_content(self.contents.last().copied(), token));
        self.tokens.push(token);
    }
}

/// Carries out each step when it is submitted; outputs are handed over when they are waited for. To all who
/// look from outside that is the same as any executor that applies steps in order.
pub(crate) struct FakeExecutor {
    limits: Limits,
    slots: Vec<Slot>,
    sequences: HashMap<SequenceId, Known>,
    outputs: VecDeque<StepOutput>,
    next_step: u64,
}

impl FakeExecutor {
    pub(crate) fn new(num_blocks: usize, limits: Limits) -> Self {
        Self {
            slots: vec![Slot::default(); num_blocks * limits.block_size],
            limits,
            sequences: HashMap::new(),
            outputs: VecDeque::new(),
            next_step: 0,
        }
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.outputs.len()
    }

    /// How many sequences nobody has declared finished.
    pub(crate) fn remembered(&self) -> usize {
        self.sequences.len()
    }

    pub(crate) fn wait(&mut self) -> StepOutput {
        self.outputs.pop_front().expect("a step is in flight")
    }

    pub(crate) fn submit(&mut self, step: &Step) {
        assert_eq!(step.number, self.next_step, "steps are numbered in order");
        self.next_step += 1;
        for started in &step.started {
            let seed = started.sampling.seed;
            let mut known = Known { tokens: Vec::new(), contents: Vec::new(), seed, sampled_in: None };
            started.prompt.iter().for_each(|&token| known.push(token));
            let twice = self.sequences.insert(started.sequence, known).is_some();
            assert!(!twice, "{:?} is introduced twice", started.sequence);
        }
        self.copy(step);
        let tokens: usize = step.chunks.iter().map(Chunk::len).sum();
        assert!(tokens <= self.limits.max_batched_tokens, "step {} computes {tokens} tokens", step.number);
        assert!(step.chunks.len() <= self.limits.max_sequences, "step {} has too many chunks", step.number);
        let once: HashSet<SequenceId> = step.chunks.iter().map(|chunk| chunk.sequence).collect();
        assert_eq!(once.len(), step.chunks.len(), "a sequence appears at most once in a step");
        for chunk in &step.chunks {
            self.read(chunk, step.number);
        }
        let sampled = step.chunks.iter().filter_map(|chunk| self.compute(chunk, step.number)).collect();
        self.outputs.push_back(StepOutput { number: step.number, sampled });
        for id in &step.finished {
            assert!(self.sequences.remove(id).is_some(), "{id:?} ends and was never introduced");
        }
    }

    fn copy(&mut self, step: &Step) {
        let size = self.limits.block_size;
        for (index, copy) in step.copies.iter().enumerate() {
            let (from, to) = (copy.from.0 as usize * size, copy.to.0 as usize * size);
            let clash = step
                .copies
                .iter()
                .enumerate()
                .any(|(other, that)| that.from == copy.to || (other != index && that.to == copy.to));
            assert!(!clash, "the copies of step {} depend on their order", step.number);
            for offset in 0..size {
                self.slots[to + offset].content = self.slots[from + offset].content;
            }
        }
    }

    fn slot(&self, chunk: &Chunk, position: usize) -> usize {
        let size = self.limits.block_size;
        let block = chunk.blocks.get(position / size).expect("the block table reaches the last position");
        block.0 as usize * size + position % size
    }

    /// Every position before a chunk must hold what its sequence's tokens make it hold, before any chunk of
    /// the same step writes.
    fn read(&mut self, chunk: &Chunk, step: u64) {
        let id = chunk.sequence;
        assert!(!chunk.is_empty(), "{id:?} has a chunk without tokens");
        assert!(self.sequences.contains_key(&id), "{id:?} was not introduced");
        assert!(chunk.start <= self.sequences[&id].contents.len(), "{id:?} begins beyond its tokens");
        for position in 0..chunk.start {
            let slot = self.slot(chunk, position);
            let slot = &mut self.slots[slot];
            let right = slot.content == self.sequences[&id].contents[position];
            assert!(right, "step {step}: {id:?} finds something else at position {position}");
            slot.read = step + 1;
        }
    }

    /// Writes a chunk's slots and samples.
    fn compute(&mut self, chunk: &Chunk, step: u64) -> Option<Sampled> {
        let id = chunk.sequence;
        let known = &self.sequences[&id];
        let tokens = match &chunk.tokens {
            ChunkTokens::Given(tokens) => tokens.clone(),
            ChunkTokens::LastSampled => {
                assert!(known.sampled_in.is_some(), "{id:?} has not sampled yet");
                assert_eq!(chunk.start + 1, known.tokens.len(), "{id:?} continues behind its last token");
                vec![known.tokens[chunk.start]]
            }
        };
        let end = chunk.start + tokens.len();
        assert_eq!(known.tokens.get(chunk.start..end), Some(&tokens[..]), "{id:?} is given other tokens");
        let mut before = chunk.start.checked_sub(1).map(|last| self.slots[self.slot(chunk, last)].content);
        for (position, token) in (chunk.start..).zip(tokens) {
            let slot = self.slot(chunk, position);
            let slot = &mut self.slots[slot];
            assert!(slot.written != step + 1, "step {step} writes a slot twice, once for {id:?}");
            assert!(slot.read != step + 1, "step {step}: {id:?} writes a slot that another chunk reads");
            before = Some(slot_content(before, token));
            (slot.content, slot.written) = (before.expect("just set"), step + 1);
        }
        chunk.sample.then(|| self.sample(id, end, before.expect("a chunk has tokens"), step))
    }

    fn sample(&mut self, id: SequenceId, end: usize, last_slot: u64, step: u64) -> Sampled {
        let oldest = self.outputs.front().map_or(step, |output| output.number);
        let known = self.sequences.get_mut(&id).expect("checked by the caller");
        assert_eq!(end, known.tokens.len(), "{id:?} samples where its tokens do not end");
        let in_flight = known.sampled_in.is_some_and(|sampled_in| oldest <= sampled_in);
        assert!(self.limits.overlap || !in_flight, "{id:?} samples with its last token in flight");
        known.sampled_in = Some(step);
        let token = next_token(last_slot, known.seed);
        known.push(token.unwrap_or(0));
        let outcome = match token {
            Some(token) => Ok(SampledToken { token, logprobs: None }),
            None => Err(SequenceFault::NonFiniteLogits),
        };
        Sampled { sequence: id, outcome }
    }
}
