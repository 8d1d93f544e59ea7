//! The making of a step: running sequences first, in the order of their rank, then those that wait.

use crate::sequence::Handle;
use crate::step::{Chunk, ChunkTokens, Started, Step};
use crate::{InFlight, Sabotage, Scheduler};

impl Scheduler {
    /// The next step, or none when nothing can be started before a step in flight is completed.
    ///
    /// A step has no chunks when all that is left to say is which sequences have ended; it is submitted and
    /// completed like any other.
    ///
    /// 256 decoding sequences of 1000 to 2000 tokens cost 30 to 50 us (`examples/schedule_speed.rs`, on a busy
    /// AVX-512 server), most of it for the step's own vectors.
    pub fn schedule(&mut self) -> Option<Step> {
        let mut step = Step { number: self.next_step, ..Step::default() };
        let mut flight = InFlight { number: step.number, sampling: Vec::new() };
        let mut budget = self.config.max_batched_tokens;
        self.batch.clear();
        self.continue_running(&mut step, &mut flight, &mut budget);
        self.admit_waiting(&mut step, &mut flight, &mut budget);
        // Endings alone are no hurry while another step will come, but the last one must be announced.
        if step.chunks.is_empty() && (self.finished.is_empty() || !self.in_flight.is_empty()) {
            return None;
        }
        // Only now: a chunk must not read what another chunk of the same step is still to write.
        for index in 0..self.batch.len() {
            let handle = self.batch[index];
            let sequence = &mut self.sequences[handle];
            sequence.readable = sequence.computed;
            self.register_full_blocks(handle);
        }
        step.finished = std::mem::take(&mut self.finished);
        self.next_step += 1;
        self.in_flight.push_back(flight);
        Some(step)
    }

    /// Gives the running sequences their tokens. Each that takes part gets at least one: the first in rank
    /// may be far behind, but never takes the tokens which those after it need.
    fn continue_running(&mut self, step: &mut Step, flight: &mut InFlight, budget: &mut usize) {
        let overlap = self.config.overlap;
        let (mut ready, mut behind) = (0, 0);
        for &handle in &self.running {
            match self.sequences[handle].wanted(overlap) {
                0 => {}
                1 => ready += 1,
                _ => behind += 1,
            }
        }
        let mut turns = self.turns(ready);
        let mut index = 0;
        while index < self.running.len() {
            let handle = self.running[index];
            index += 1;
            let wanted = self.sequences[handle].wanted(overlap);
            match wanted {
                0 => continue,
                1 if turns == 0 => continue,
                1 => turns -= 1,
                _ => behind -= 1,
            }
            let len = wanted.min(*budget - turns - behind);
            if !self.make_room(handle, len) {
                // It is the last, so nobody else is held up. It keeps its blocks and waits for others to end:
                // to give them back now would only be to compute them again.
                break;
            }
            self.push_chunk(handle, len, step, flight);
            *budget -= len;
        }
    }

    /// How many of the `ready` sequences, those one token behind, this step takes: all of them, except that
    /// a pipeline needs something for each stage. There its free places share what is ready, and no step
    /// takes more than its part of all that runs: a burst admitted by one step would stay together forever.
    /// Who is further behind is not dealt out: its chunks may follow one another through the stages.
    fn turns(&self, ready: usize) -> usize {
        let stages = self.config.stages;
        let places = stages.saturating_sub(self.in_flight.len()).max(1);
        ready.div_ceil(places).min(self.running.len().div_ceil(stages))
    }

    /// Makes sure that `len` more tokens of a running sequence have blocks to go to, by preemption of those
    /// after it if need be. False when it is the last itself and there are still too few.
    fn make_room(&mut self, handle: Handle, len: usize) -> bool {
        loop {
            if self.missing_blocks(handle, len) <= self.pool.free() {
                return true;
            }
            let last = *self.running.last().expect("at least the sequence itself is running");
            if last == handle {
                return false;
            }
            self.preempt(last);
        }
    }

    /// How many blocks must be allocated before `len` more tokens can be computed.
    fn missing_blocks(&self, handle: Handle, len: usize) -> usize {
        let sequence = &self.sequences[handle];
        let block_size = self.config.block_size;
        let total = (sequence.computed + len).div_ceil(block_size);
        // Nobody shares a block it goes on to write, yet: that comes with the fork of a running sequence.
        let written = sequence.blocks.get(sequence.computed / block_size);
        let copies = usize::from(written.is_some_and(|&block| 1 < self.pool.refs(block)));
        total.saturating_sub(sequence.blocks.len()) + copies
    }

    /// Takes all blocks from a running sequence and lets it wait at its old rank, which is ahead of everybody
    /// in its priority who has not run yet. Its tokens stay; what it computed must be computed again, less
    /// what the prefix cache still has then. A token of its that is in flight will be kept.
    fn preempt(&mut self, handle: Handle) {
        self.counters.preemptions += 1;
        self.counters.preempted_tokens += self.sequences[handle].computed as u64;
        self.leave_running(handle);
        self.waiting.insert(self.sequences[handle].rank, handle);
    }

    /// Takes a sequence out of the running ones; its blocks are free at once.
    pub(crate) fn leave_running(&mut self, handle: Handle) {
        let rank = self.sequences[handle].rank;
        let index = self.running.partition_point(|&other| self.sequences[other].rank < rank);
        assert!(self.running.get(index) == Some(&handle), "a running sequence is found by its rank");
        self.running.remove(index);
        let sequence = &mut self.sequences[handle];
        sequence.computed = 0;
        sequence.readable = 0;
        sequence.registered = 0;
        // The last block first: it is the first to be reused, and a chain is worth nothing without its start.
        for block in sequence.blocks.drain(..).rev() {
            self.pool.release(block);
        }
    }

    /// Puts the next `len` tokens of a running sequence into the step. The blocks it takes are there.
    pub(crate) fn push_chunk(&mut self, handle: Handle, len: usize, step: &mut Step, flight: &mut InFlight) {
        let block_size = self.config.block_size;
        let sequence = &mut self.sequences[handle];
        let start = sequence.computed;
        let end = start + len;
        assert!(start < end, "a chunk has tokens");
        if let Some(place) = sequence.blocks.get_mut(start / block_size)
            && let Some(copy) = self.pool.make_writable(place)
        {
            step.copies.push(copy);
            self.counters.copied_blocks += 1;
        }
        while sequence.blocks.len() * block_size < end {
            sequence.blocks.push(self.pool.allocate().expect("the caller made room for this chunk"));
        }
        if !sequence.introduced {
            sequence.introduced = true;
            step.started.push(Started {
                sequence: sequence.id,
                prompt: sequence.prompt.clone(),
                sampling: sequence.sampling.clone(),
            });
        }
        let tokens = match sequence.pending {
            0 => ChunkTokens::Given(sequence.tokens(start, end).collect()),
            _ => ChunkTokens::LastSampled,
        };
        let sample = end == sequence.known() + sequence.pending;
        let blocks = sequence.blocks[..end.div_ceil(block_size)].to_vec();
        step.chunks.push(Chunk { sequence: sequence.id, start, tokens, blocks, sample });
        sequence.computed = end;
        if sample {
            sequence.pending += 1;
            flight.sampling.push((handle, sequence.id));
        }
        self.counters.computed_tokens += len as u64;
        self.batch.push(handle);
        if self.sabotage == Some(Sabotage::EarlyName) {
            self.register_full_blocks(handle);
        }
    }

    /// Offers the blocks that became full, with tokens all known, to the prefix cache.
    pub(crate) fn register_full_blocks(&mut self, handle: Handle) {
        if !self.config.prefix_cache {
            return;
        }
        let block_size = self.config.block_size;
        let sequence = &mut self.sequences[handle];
        let full = sequence.known().min(sequence.computed) / block_size;
        if sequence.registered < full {
            sequence.name_blocks(full, block_size, &mut self.chain);
            for index in sequence.registered..full {
                self.pool.register(sequence.blocks[index], sequence.hashes[index]);
            }
            sequence.registered = full;
        }
    }
}
