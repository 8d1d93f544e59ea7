//! What comes back from a step: tokens become known, and sequences end.

use crate::Scheduler;
use crate::interface::{FinishReason, Update};
use crate::sequence::Handle;
use crate::step::{Sampled, SampledToken, StepOutput};

impl Scheduler {
    /// Takes in the output of the oldest step in flight: one update for each living sequence that sampled.
    /// What came for a sequence that has ended meanwhile is dropped.
    ///
    /// # Panics
    /// When `output` is not that of the oldest step in flight.
    pub fn complete(&mut self, output: &StepOutput) -> Vec<Update> {
        let flight = self.in_flight.pop_front().expect("complete() takes the output of a step in flight");
        assert_eq!(flight.number, output.number, "outputs come in the order of their steps");
        assert_eq!(flight.sampling.len(), output.sampled.len(), "each chunk that samples has one output");
        let mut updates = Vec::with_capacity(output.sampled.len());
        for (&(handle, id), sampled) in flight.sampling.iter().zip(&output.sampled) {
            assert_eq!(id, sampled.sequence, "outputs stand in the order of their chunks");
            if self.sequences.is_alive(handle, id) {
                updates.push(self.take_in(handle, sampled));
            }
        }
        updates
    }

    fn take_in(&mut self, handle: Handle, sampled: &Sampled) -> Update {
        let sequence = &mut self.sequences[handle];
        sequence.pending -= 1;
        let mut update = Update {
            sequence: sequence.id,
            token: None,
            logprobs: None,
            finish: None,
            cached_tokens: sequence.cached_tokens.expect("a sequence that sampled has run"),
        };
        match &sampled.outcome {
            Ok(SampledToken { token, logprobs }) => {
                // Stop tokens are suppressed while fewer than `min_tokens` are out; should a sampler let one
                // pass, it is a token like any other.
                let may_stop = sequence.sampling.min_tokens <= sequence.output.len();
                sequence.output.push(*token);
                if may_stop && sequence.stop_token_ids.contains(token) {
                    update.finish = Some(FinishReason::Stop);
                } else if sequence.known() == sequence.max_len {
                    update.finish = Some(FinishReason::Length);
                }
                update.token = Some(*token);
                update.logprobs.clone_from(logprobs);
                // With overlap the token's own keys and values are in flight already: that block may be full.
                self.register_full_blocks(handle);
            }
            Err(fault) => update.finish = Some(FinishReason::Fault(*fault)),
        }
        if update.finish.is_some() {
            self.end(handle);
        }
        update
    }

    /// Forgets a sequence, wherever it stands, and frees its blocks. With a step of its in flight that is
    /// early and still right: their next holders write to them in later steps.
    pub(crate) fn end(&mut self, handle: Handle) {
        if self.sequences[handle].blocks.is_empty() {
            let waited = self.waiting.remove(&self.sequences[handle].rank);
            assert!(waited == Some(handle), "a sequence without blocks waits");
        } else {
            self.leave_running(handle);
        }
        let sequence = self.sequences.remove(handle);
        if sequence.introduced {
            self.finished.push(sequence.id);
        }
    }
}
