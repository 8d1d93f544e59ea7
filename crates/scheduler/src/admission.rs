//! The way in: whoever waits at the head gets blocks, some of them with their content, and runs.

use crate::sequence::Handle;
use crate::step::Step;
use crate::{InFlight, Scheduler};

/// Where the head of the queue may begin.
enum Beginning {
    /// Its first tokens are computed already, in the blocks now in `Scheduler::prefix`.
    At(usize),
    /// Not yet: in a step or two it can begin with more.
    Later,
}

/// Who could share a prompt with the head of the queue.
enum Sibling {
    /// This one has it computed.
    Ready(Handle),
    /// Somebody is about to.
    Computing,
    None,
}

impl Scheduler {
    /// Admits waiting sequences in the order of their rank until one does not fit; nobody overtakes it.
    pub(crate) fn admit_waiting(&mut self, step: &mut Step, flight: &mut InFlight, budget: &mut usize) {
        while 0 < *budget && self.running.len() < self.config.max_sequences {
            if self.pool.free() <= self.running.len() {
                // As `admit` would find, after a look-up of all of a long prompt.
                return;
            }
            let Some((_, &handle)) = self.waiting.first_key_value() else { return };
            let Beginning::At(computed) = self.beginning(handle) else { return };
            if !self.admit(handle, computed) {
                return;
            }
            let wanted = self.sequences[handle].wanted(self.config.overlap);
            let len = wanted.min(*budget);
            self.push_chunk(handle, len, step, flight);
            *budget -= len;
        }
    }

    /// Moves the head of the queue to the running sequences, with blocks for all its known tokens, so that a
    /// prompt once begun is never short of room for its own rest. One more block must remain for every
    /// running sequence: admitted into the very last block, it would be preempted by the next one to grow.
    fn admit(&mut self, handle: Handle, computed: usize) -> bool {
        let block_size = self.config.block_size;
        let known = self.sequences[handle].known();
        let unused = self.prefix.iter().filter(|&&block| self.pool.refs(block) == 0).count();
        // At least one: where all blocks are there and in use, the last of them will be copied.
        let taken = (known.div_ceil(block_size) - self.prefix.len() + unused).max(1);
        if self.pool.free() < taken + self.running.len() {
            return false;
        }
        let sequence = &mut self.sequences[handle];
        for &block in &self.prefix {
            self.pool.share(block);
            sequence.blocks.push(block);
        }
        while sequence.blocks.len() * block_size < known {
            sequence.blocks.push(self.pool.allocate().expect("the blocks were counted just now"));
        }
        sequence.computed = computed;
        sequence.registered = computed / block_size;
        if sequence.cached_tokens.is_none() {
            sequence.cached_tokens = Some(computed);
            self.counters.prefix_queries += sequence.prompt.len() as u64;
            self.counters.prefix_hits += computed as u64;
        }
        let rank = sequence.rank;
        self.waiting.remove(&rank);
        let index = self.running.partition_point(|&other| self.sequences[other].rank < rank);
        self.running.insert(index, handle);
        true
    }

    /// Finds what is computed already of a waiting sequence. At least one token is left to compute: we
    /// sample from its logits.
    fn beginning(&mut self, handle: Handle) -> Beginning {
        self.prefix.clear();
        let sequence = &self.sequences[handle];
        if 0 < sequence.pending {
            // It was preempted with a token in flight, and goes on when that is known.
            return Beginning::Later;
        }
        let most = sequence.known() - 1;
        if sequence.output.is_empty() && 0 < most {
            match self.sibling(handle, most) {
                Sibling::Ready(source) => return self.fork(handle, source, most),
                Sibling::Computing => return Beginning::Later,
                Sibling::None => {}
            }
        }
        Beginning::At(self.cached_prefix(handle).min(most))
    }

    /// Looks for a sequence of the same submission that has computed, or will have, the first `len` tokens.
    fn sibling(&self, handle: Handle, len: usize) -> Sibling {
        let mut found = Sibling::None;
        for source in self.sequences[handle].family.iter().filter_map(|&id| self.sequences.find(id)) {
            if len <= self.sequences[source].readable {
                return Sibling::Ready(source);
            }
            if !self.sequences[source].blocks.is_empty() {
                found = Sibling::Computing;
            }
        }
        found
    }

    /// Lets the sequence begin with the first `len` tokens of `source`, which are the same as its own, in
    /// the blocks of `source`. Whichever of the two first writes to a block that both hold, copies it.
    fn fork(&mut self, handle: Handle, source: Handle, len: usize) -> Beginning {
        let block_size = self.config.block_size;
        let source = &self.sequences[source];
        self.prefix.extend_from_slice(&source.blocks[..len.div_ceil(block_size)]);
        let names = source.hashes.iter().take(len / block_size).copied().collect();
        self.sequences[handle].hashes = names;
        Beginning::At(len)
    }

    /// Collects the cached blocks a sequence could begin with, and says how many tokens they hold.
    fn cached_prefix(&mut self, handle: Handle) -> usize {
        if !self.config.prefix_cache {
            return 0;
        }
        let block_size = self.config.block_size;
        let sequence = &mut self.sequences[handle];
        let full = sequence.known() / block_size;
        sequence.name_blocks(full, block_size, &mut self.chain);
        self.prefix.extend(sequence.hashes[..full].iter().map_while(|name| self.pool.find(name)));
        self.prefix.len() * block_size
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::step::{BlockCopy, BlockId, Sampled, SampledToken, SamplingParams, SequenceId, StepOutput};
    use crate::{SchedulerConfig, Submission};

    /// Sequence 2 is a fork of sequence 1, which has seven tokens, six of them computed: what beam search
    /// will do. Both hold the same two blocks of four.
    fn forked() -> (Scheduler, Handle) {
        let mut scheduler = Scheduler::new(SchedulerConfig {
            num_blocks: 4,
            block_size: 4,
            max_batched_tokens: 16,
            max_sequences: 4,
            max_model_len: 16,
            prefix_cache: true,
            overlap: false,
            stages: 1,
            hash_key: [3; 32],
        })
        .unwrap();
        for id in 1..=2 {
            let submission = Submission {
                sequences: vec![SequenceId(id)],
                prompt: Arc::from([1, 2, 3, 4, 5, 6]),
                sampling: vec![Arc::new(SamplingParams::default())],
                max_new_tokens: 10,
                stop_token_ids: Vec::new(),
                priority: 0,
                cache_salt: None,
            };
            scheduler.submit(submission).unwrap();
            if id == 1 {
                let step = scheduler.schedule().unwrap();
                let outcome = Ok(SampledToken { token: 7, logprobs: None });
                let sampled = vec![Sampled { sequence: SequenceId(1), outcome }];
                scheduler.complete(&StepOutput { number: step.number, sampled });
            }
        }
        let source = scheduler.sequences.find(SequenceId(1)).unwrap();
        let handle = scheduler.sequences.find(SequenceId(2)).unwrap();
        scheduler.sequences[handle].output = vec![7];
        scheduler.prefix.clear();
        let Beginning::At(computed) = scheduler.fork(handle, source, 6) else {
            panic!("a fork begins at once")
        };
        assert!(scheduler.admit(handle, computed), "there are two blocks left");
        (scheduler, handle)
    }

    #[test]
    fn the_first_to_write_copies() {
        let (mut scheduler, _) = forked();
        let step = scheduler.schedule().unwrap();
        assert_eq!(step.copies, [BlockCopy { from: BlockId(1), to: BlockId(2) }]);
        assert_eq!(step.chunks[0].blocks, [BlockId(0), BlockId(2)]);
        assert_eq!(step.chunks[1].blocks, [BlockId(0), BlockId(1)]);
        scheduler.check();
    }

    #[test]
    fn without_room_for_a_copy_the_fork_is_preempted() {
        let (mut scheduler, handle) = forked();
        while scheduler.pool.allocate().is_some() {}
        let step = scheduler.schedule().unwrap();
        assert_eq!((step.chunks.len(), step.copies.len()), (1, 0));
        assert!(scheduler.sequences[handle].blocks.is_empty());
    }
}
