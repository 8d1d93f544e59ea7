//! Decode steps as graphs: one a size, recorded the first time the size is met, started as a whole from then on.
//!
//! A step in which every sequence computes one token and samples the next is filled up to one of few sizes with rows that
//! nobody asked for. Their keys and values go to a block that no sequence owns.

use std::time::Instant;

use phalanx_device::{Device, Graph, Plan};
use phalanx_scheduler::step::Step;

/// Blocks that a rank with graphs keeps beside the scheduler's pool.
pub const SCRATCH_BLOCKS: usize = 1;
/// Larger steps have so much to compute that launching it operation by operation does not show.
const LARGEST: usize = 256;

/// The graphs of one rank: their memory is bounded by how many sizes there are.
#[derive(Debug)]
pub(crate) struct Graphs {
    /// Ascending.
    sizes: Vec<usize>,
    /// One a size.
    recorded: Vec<Option<Graph>>,
    /// Not before everything is chosen, and not any more when it went wrong once: it would do so again.
    recording: bool,
}

/// One of the sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    index: usize,
    /// Rows of the step, those that fill it up included.
    pub(crate) rows: usize,
}

impl Graphs {
    /// For steps of up to `max_rows` rows.
    pub(crate) fn new(max_rows: usize) -> Self {
        let most = max_rows.min(LARGEST);
        let mut sizes: Vec<usize> = [1, 2, 4].into_iter().chain((8..=LARGEST).step_by(8)).collect();
        sizes.retain(|size| *size < most);
        sizes.push(most);
        let recorded = sizes.iter().map(|_| None).collect();
        Self { sizes, recorded, recording: false }
    }

    /// Everything that steps launch has been chosen.
    pub(crate) fn start_recording(&mut self) {
        self.recording = true;
    }

    /// The size that `step` is filled up to; none when it does more than one token a sequence, or is too large.
    pub(crate) fn size_of(&self, step: &Step) -> Option<Size> {
        if step.chunks.is_empty() || step.chunks.iter().any(|chunk| chunk.len() != 1 || !chunk.sample) {
            return None;
        }
        let index = self.sizes.partition_point(|size| *size < step.chunks.len());
        Some(Size { index, rows: *self.sizes.get(index)? })
    }

    /// Carries out a step of this size from its graph; false when there is none yet, or not for this plan.
    pub(crate) fn replay(&self, device: &Device, plan: &Plan, size: Size) -> bool {
        self.recorded[size.index].as_ref().is_some_and(|graph| device.replay(graph, plan))
    }

    /// Records a step of this size, which was carried out just now: everything in it has been chosen and loaded, and the
    /// device is still at it, so recording holds up nobody.
    pub(crate) fn record(&mut self, device: &Device, plan: &Plan, size: Size, work: &mut dyn FnMut()) {
        if !self.recording || self.recorded[size.index].is_some() {
            return;
        }
        let began = Instant::now();
        match device.record(plan, work) {
            Ok(graph) => {
                let us = began.elapsed().as_micros() as u64;
                tracing::debug!(rows = size.rows, recorded = graph.is_some(), us, "a graph");
                self.recorded[size.index] = graph;
            }
            Err(error) => {
                self.recording = false;
                tracing::warn!(
                    "steps are launched operation by operation, for they cannot be recorded: {error}"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use phalanx_scheduler::step::{BlockId, Chunk, ChunkTokens, SequenceId};

    use super::*;

    fn step(lens: &[usize], sample: bool) -> Step {
        let chunk = |(index, len): (usize, &usize)| Chunk {
            sequence: SequenceId(index as u64),
            start: 0,
            tokens: ChunkTokens::Given(vec![0; *len]),
            blocks: vec![BlockId(0)],
            sample,
        };
        Step { chunks: lens.iter().enumerate().map(chunk).collect(), ..Step::default() }
    }

    fn rows(max_rows: usize, sequences: usize) -> Option<usize> {
        Graphs::new(max_rows).size_of(&step(&vec![1; sequences], true)).map(|size| size.rows)
    }

    #[test]
    fn steps_are_filled_up_to_few_sizes() {
        for (sequences, expected) in [(1, 1), (2, 2), (3, 4), (5, 8), (8, 8), (9, 16), (249, 256), (256, 256)]
        {
            assert_eq!(rows(1000, sequences), Some(expected), "{sequences} sequences");
        }
        assert_eq!([rows(1000, 0), rows(1000, 257)], [None, None]);
        assert_eq!(Graphs::new(1000).sizes.len(), 35);
    }

    #[test]
    fn no_step_is_larger_than_there_is_room_for() {
        assert_eq!([rows(100, 97), rows(100, 96), rows(100, 101)], [Some(100), Some(96), None]);
        assert_eq!([rows(1, 1), rows(1, 2), rows(3, 3)], [Some(1), None, Some(3)]);
    }

    #[test]
    fn prompts_are_no_decode_steps() {
        let graphs = Graphs::new(16);
        assert_eq!(graphs.size_of(&step(&[1, 2], true)), None);
        assert_eq!(graphs.size_of(&step(&[1], false)), None);
    }
}
