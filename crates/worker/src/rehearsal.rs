//! Steps of made-up sequences, before there is a request: the first real step finds everything in its place.

use std::sync::Arc;

use phalanx_scheduler::step::{
    BlockId, Chunk, ChunkTokens, Executor, ExecutorError, SamplingParams, SequenceId, Started, Step,
};

/// A step as it may come: so many sequences, so many tokens each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scene {
    /// Sequences, each of which samples a token.
    pub sequences: usize,
    /// Tokens that each of them computes, from position 0 on.
    pub tokens: usize,
}

/// Carries out `scenes` one after the other, in KV blocks `0 ..` of `block_size` tokens. What they leave there is
/// nobody's: a real sequence computes its blocks before it reads them.
///
/// # Errors
/// A rank is lost.
///
/// # Panics
/// A scene exceeds the limits or the KV cache of the executor's ranks.
pub fn rehearse(
    executor: &mut dyn Executor,
    scenes: &[Scene],
    block_size: usize,
) -> Result<(), ExecutorError> {
    for (number, scene) in scenes.iter().enumerate() {
        executor.submit(Arc::new(step(number, *scene, block_size)));
        executor.wait()?;
    }
    Ok(())
}

fn step(number: usize, scene: Scene, block_size: usize) -> Step {
    let blocks_each = scene.tokens.div_ceil(block_size);
    // From the far end: an engine counts its sequences up from 0.
    let id = |index: usize| SequenceId(u64::MAX - index as u64);
    let prompt: Arc<[u32]> = vec![0; scene.tokens].into();
    let sampling = Arc::new(SamplingParams { temperature: 0.0, ..SamplingParams::default() });
    let started =
        |index| Started { sequence: id(index), prompt: Arc::clone(&prompt), sampling: Arc::clone(&sampling) };
    let chunk = |index: usize| Chunk {
        sequence: id(index),
        start: 0,
        tokens: ChunkTokens::Given(prompt.to_vec()),
        blocks: (index * blocks_each..(index + 1) * blocks_each).map(|block| BlockId(block as u32)).collect(),
        sample: true,
    };
    Step {
        number: number as u64,
        started: (0..scene.sequences).map(started).collect(),
        copies: Vec::new(),
        chunks: (0..scene.sequences).map(chunk).collect(),
        finished: (0..scene.sequences).map(id).collect(),
    }
}
