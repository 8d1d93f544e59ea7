//! How much a step computes at most, unless told otherwise.

use anyhow::{Result, bail};
use phalanx_model::Limits;

/// Tokens a step computes on the CPU unless told otherwise: a running answer waits for no longer than these take.
pub(crate) const CPU_BATCHED_TOKENS: usize = 512;
/// The same on GPUs, which want long steps; but stages of a pipeline wait for the first step to come through, and for the
/// last, which shorter ones shorten. Predicted for four H200 in four stages (`plan --gpus 4xH200`): the first token after
/// 4,096 comes after 59 ms in place of 90, and a crowd loses 1 %. Measured by two stages on two cores of a CPU (0.5B, 1,024
/// tokens, `bench prefill --pp 2`): in steps of 256 it comes 1.41 times as soon as in one (1.28 to 1.46 in three rounds).
const GPU_BATCHED_TOKENS: usize = 8192;
const STAGED_BATCHED_TOKENS: usize = 2048;
/// Sequences a step computes unless told otherwise.
const SEQUENCES: usize = 256;

/// The largest steps on GPUs, as given or as usual.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GpuSteps {
    /// Tokens where there is one stage.
    pub(crate) tokens: usize,
    /// Tokens where there are several.
    pub(crate) staged_tokens: usize,
    /// Sequences.
    pub(crate) sequences: usize,
}

impl GpuSteps {
    /// Tokens and sequences may be `given`.
    ///
    /// # Errors
    /// More sequences than tokens are asked for.
    pub(crate) fn new(given: (Option<usize>, Option<usize>)) -> Result<Self> {
        let (tokens, sequences) = step_limits(given, gpu_batched_tokens(1))?;
        let (staged_tokens, _) = step_limits(given, gpu_batched_tokens(2))?;
        Ok(Self { tokens, staged_tokens, sequences })
    }

    /// Those of one stage.
    pub(crate) fn limits(&self, max_model_len: usize) -> Limits {
        Limits { max_tokens: self.tokens, max_samples: self.sequences, max_model_len }
    }
}

/// Tokens a step computes on GPUs unless told otherwise.
pub(crate) fn gpu_batched_tokens(num_stages: usize) -> usize {
    if num_stages == 1 { GPU_BATCHED_TOKENS } else { STAGED_BATCHED_TOKENS }
}

/// Tokens and sequences a step computes at most: as `given`, or as usual.
///
/// # Errors
/// More sequences than tokens are asked for.
pub(crate) fn step_limits(
    given: (Option<usize>, Option<usize>),
    usual_tokens: usize,
) -> Result<(usize, usize)> {
    match given {
        (None, sequences) => {
            let sequences = sequences.unwrap_or(SEQUENCES);
            Ok((usual_tokens.max(sequences), sequences))
        }
        (Some(tokens), None) => Ok((tokens, SEQUENCES.min(tokens))),
        (Some(tokens), Some(sequences)) if tokens < sequences => bail!(
            "--max-num-seqs {sequences} needs a token for each running sequence and --max-num-batched-tokens allows {tokens}: \
             raise the latter or lower the former"
        ),
        (Some(tokens), Some(sequences)) => Ok((tokens, sequences)),
    }
}
