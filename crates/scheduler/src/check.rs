//! The scheduler's invariants, all of them, for tests to verify after each step.

use std::collections::HashMap;

use crate::Scheduler;
use crate::sequence::Handle;
use crate::step::SequenceId;

impl Scheduler {
    /// Verifies the books of the block pool and every invariant. Costs a walk over all blocks and sequences.
    ///
    /// # Panics
    /// When one does not hold, with a sentence that says which.
    pub fn check(&self) {
        self.check_queues();
        let mut held = vec![0; self.pool.total()];
        for &handle in &self.running {
            self.check_running(handle);
            for block in &self.sequences[handle].blocks {
                held[block.0 as usize] += 1;
            }
        }
        self.pool.check(&held);
        self.check_in_flight();
    }

    fn check_queues(&self) {
        let (running, waiting) = (self.running.len(), self.waiting.len());
        assert!(running + waiting == self.sequences.len(), "every living sequence runs or waits, not both");
        assert!(running <= self.config.max_sequences, "{running} sequences run, more than allowed");
        let sorted = self.running.is_sorted_by_key(|&handle| self.sequences[handle].rank);
        assert!(sorted, "running sequences stand in the order of their rank");
        for (rank, &handle) in &self.waiting {
            let sequence = &self.sequences[handle];
            let id = sequence.id.0;
            assert!(sequence.rank == *rank, "sequence {id} waits at a rank that is not its own");
            assert!(sequence.blocks.is_empty(), "sequence {id} waits and holds blocks");
            assert!(sequence.computed == 0, "sequence {id} waits and has computed tokens");
            assert!(self.sequences.find(sequence.id) == Some(handle), "sequence {id} is not found by its id");
        }
    }

    fn check_running(&self, handle: Handle) {
        let sequence = &self.sequences[handle];
        let (id, known, block_size) = (sequence.id.0, sequence.known(), self.config.block_size);
        assert!(self.sequences.find(sequence.id) == Some(handle), "sequence {id} is not found by its id");
        assert!(known < sequence.max_len, "sequence {id} runs at its full length");
        assert!(known + sequence.pending <= sequence.max_len, "sequence {id} samples more than it may have");
        match sequence.pending {
            0 => assert!(
                sequence.computed < known,
                "sequence {id} has nothing to compute and nothing in flight"
            ),
            pending => assert!(
                sequence.computed + 1 == known + pending,
                "sequence {id} with {pending} tokens in flight is one token behind"
            ),
        }
        assert!(sequence.readable == sequence.computed, "sequence {id} hides what earlier steps computed");
        let capacity = sequence.blocks.len() * block_size;
        assert!(0 < capacity, "sequence {id} runs without blocks");
        assert!(sequence.computed <= capacity, "sequence {id} has computed more than its blocks hold");
        let needed = known.max(sequence.computed).div_ceil(block_size);
        assert!(sequence.blocks.len() <= needed, "sequence {id} holds more blocks than it needs");
        assert!(sequence.introduced, "sequence {id} runs and no worker has heard of it");
        if self.config.prefix_cache {
            let full = known.min(sequence.computed) / block_size;
            assert!(
                sequence.registered == full,
                "sequence {id} has not offered its full blocks to the cache"
            );
        }
        for (index, &block) in sequence.blocks.iter().enumerate() {
            if let Some(name) = self.pool.name(block) {
                assert!(
                    sequence.hashes.get(index) == Some(&name),
                    "sequence {id} holds a block of other content"
                );
            }
        }
    }

    fn check_in_flight(&self) {
        let mut pending: HashMap<SequenceId, usize> = HashMap::new();
        for &(_, id) in self.in_flight.iter().flat_map(|flight| &flight.sampling) {
            *pending.entry(id).or_default() += 1;
        }
        for &handle in self.running.iter().chain(self.waiting.values()) {
            let sequence = &self.sequences[handle];
            let in_flight = pending.get(&sequence.id).copied().unwrap_or(0);
            let id = sequence.id.0;
            assert!(sequence.pending == in_flight, "sequence {id} waits for tokens that are not in flight");
            assert!(self.config.overlap || in_flight <= 1, "sequence {id} runs ahead of its own tokens");
        }
    }
}
