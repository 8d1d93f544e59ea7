//! The GPUs' last phase before a server is ready: kernels are loaded and met once, products nothing is known of are timed.

use std::time::Duration;

use anyhow::Result;
use phalanx_device::Tunings;
use phalanx_model::Limits;
use phalanx_worker::{KvCacheSpec, LocalExecutor, Scene, rehearse};

/// What the first start on a machine takes longer than the next ones, at most.
const TUNING_TIME: Duration = Duration::from_secs(3);

/// Carries out steps of all sizes, briefly when `tunings` knows all their products.
///
/// # Errors
/// A rank is lost.
pub(crate) fn run(
    executor: &mut LocalExecutor,
    tunings: &Tunings,
    limits: Limits,
    kv_cache: KvCacheSpec,
) -> Result<()> {
    let scenes = |batches: &[usize], chunks: &[usize]| scenes(batches, chunks, limits, kv_cache);
    let mut play = |scenes: &[Scene]| rehearse(executor, scenes, kv_cache.block_size);
    // The longest chunk is tuned last: when its products are known, all are.
    let guessed_before = tunings.guessed();
    let longest = scenes(&[], &[limits.max_tokens]);
    play(&longest)?;
    // Where it does not fit it tells nothing.
    if longest.is_empty() || tunings.guessed() != guessed_before {
        // Decode steps first: should the time be over early, prompts' products are tuned at the next start.
        let batches: Vec<usize> = (8..=64).step_by(8).chain((96..=256).step_by(32)).collect();
        let chunks: Vec<usize> = (384..=1024)
            .step_by(128)
            .chain((11..).map(|power| 1 << power).take_while(|tokens| *tokens < limits.max_tokens))
            .chain([limits.max_tokens])
            .collect();
        tunings.open_window(TUNING_TIME);
        let tuned = play(&scenes(&batches, &chunks));
        tunings.close_window();
        tuned?;
        tell(tunings);
    }
    // Now that every choice stands, graphs are recorded of what many requests will want first.
    executor.start_recording();
    let first = scenes(&[1, 2, 4, 8, 16, 32, 64, 128, 256], &[16, 64, 128, 256, 512, 1024]);
    rehearse(executor, &first, kv_cache.block_size)?;
    Ok(())
}

/// Says what came of tuning, and keeps it.
fn tell(tunings: &Tunings) {
    let left = tunings.guessed();
    if 0 < left {
        tracing::info!("{left} matrix products are guessed, not timed, until the next start");
    }
    match tunings.save() {
        Ok(found) => tracing::info!("{found} matrix products were timed, for this start and the next ones"),
        Err(error) => tracing::warn!("{error}"),
    }
}

/// Steps of `batches` sequences that decode, then steps of a prompt's chunk of `chunks` tokens, as far as there is room.
fn scenes(batches: &[usize], chunks: &[usize], limits: Limits, kv_cache: KvCacheSpec) -> Vec<Scene> {
    let batch = |sequences: &usize| Scene { sequences: *sequences, tokens: 1 };
    let chunk = |tokens: &usize| {
        // A step may have more tokens than a sequence.
        let sequences = tokens.div_ceil(limits.max_model_len);
        Scene { sequences, tokens: tokens / sequences }
    };
    let fits = |scene: &Scene| {
        scene.sequences <= limits.max_samples
            && scene.sequences * scene.tokens <= limits.max_tokens
            && 0 < scene.tokens
            && scene.sequences * scene.tokens.div_ceil(kv_cache.block_size) <= kv_cache.num_blocks
    };
    batches.iter().map(batch).chain(chunks.iter().map(chunk)).filter(fits).collect()
}

#[cfg(test)]
mod tests {
    use phalanx_device::DType;

    use super::*;

    fn check(limits: (usize, usize, usize), num_blocks: usize, expected: &[(usize, usize)]) {
        let (max_tokens, max_samples, max_model_len) = limits;
        let limits = Limits { max_tokens, max_samples, max_model_len };
        let kv_cache = KvCacheSpec { dtype: DType::BF16, num_blocks, block_size: 64 };
        let found: Vec<_> = scenes(&[1, 8, 256], &[512, max_tokens], limits, kv_cache)
            .into_iter()
            .map(|scene| (scene.sequences, scene.tokens))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn scenes_stay_within_limits_and_cache() {
        check((8192, 256, 32_768), 1000, &[(1, 1), (8, 1), (256, 1), (1, 512), (1, 8192)]);
        check((8192, 256, 3000), 1000, &[(1, 1), (8, 1), (256, 1), (1, 512), (3, 2730)]);
        check((8192, 16, 32_768), 20, &[(1, 1), (8, 1), (1, 512)]);
    }
}
