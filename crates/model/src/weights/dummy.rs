//! Seeded random weights from a configuration alone: speed, memory and parallel layouts without a download.

use crate::architectures::{TensorKind, TensorShape};

/// The values of elements `first ..` (counted row after row) of a dummy tensor.
///
/// A value depends on seed, name and place alone, so that a rank that makes only its slices makes the same ones.
/// Matrices have a variance of 1 / columns, which keeps activations near 1; what is added to the residual stream is
/// smaller by the root of how often that happens, so that logits stay finite however many layers there are.
pub(crate) fn fill(seed: u64, tensor: &TensorShape, num_layers: usize, first: usize, values: &mut [f32]) {
    let spread = match tensor.kind {
        TensorKind::Norm => 0.1,
        TensorKind::Bias => 0.1,
        TensorKind::Matrix => (3.0 / tensor.columns as f32).sqrt(),
        TensorKind::AttentionOutput | TensorKind::MlpOutput => {
            (3.0 / tensor.columns as f32).sqrt() / (2.0 * num_layers as f32).sqrt()
        }
    };
    let middle = if tensor.kind == TensorKind::Norm { 1.0 } else { 0.0 };
    let stream = tensor.name.bytes().fold(mix(seed), |state, byte| mix(state ^ u64::from(byte)));
    for (index, value) in (first as u64..).zip(values) {
        // The upper 24 bits fill a float's mantissa: uniform in -1 .. 1, and exactly so on every machine.
        let uniform = (mix(stream.wrapping_add(index)) >> 40) as f32 / (1 << 23) as f32 - 1.0;
        *value = middle + spread * uniform;
    }
}

/// SplitMix64's step (Steele, Lea and Flood 2014): a bijection that scatters counters.
fn mix(counter: u64) -> u64 {
    let z = counter.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
