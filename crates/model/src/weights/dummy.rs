//! Seeded random weights from a configuration alone: speed, memory and parallel layouts without a download.

use phalanx_device::noise::{mix, uniform};

use crate::architectures::{TensorKind, TensorShape};

/// What makes a dummy tensor's numbers: values lie within `spread` of `middle`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Recipe {
    /// Of seed and name, so that each tensor has numbers of its own.
    pub(crate) key: u64,
    pub(crate) middle: f32,
    pub(crate) spread: f32,
}

impl Recipe {
    /// Matrices have a variance of 1 / columns, which keeps activations near 1; what is added to the residual stream is
    /// smaller by the root of how often that happens, so that logits stay finite however many layers there are.
    pub(crate) fn new(seed: u64, tensor: &TensorShape, num_layers: usize) -> Self {
        let spread = match tensor.kind {
            TensorKind::Norm => 0.1,
            TensorKind::Bias => 0.1,
            TensorKind::Matrix => (3.0 / tensor.columns as f32).sqrt(),
            TensorKind::AttentionOutput | TensorKind::MlpOutput => {
                (3.0 / tensor.columns as f32).sqrt() / (2.0 * num_layers as f32).sqrt()
            }
        };
        let middle = if tensor.kind == TensorKind::Norm { 1.0 } else { 0.0 };
        let key = tensor.name.bytes().fold(mix(seed), |state, byte| mix(state ^ u64::from(byte)));
        Self { key, middle, spread }
    }

    /// Elements `first ..` of a vector.
    pub(crate) fn fill(&self, first: usize, values: &mut [f32]) {
        for (index, value) in (first as u64..).zip(values) {
            *value = self.middle + self.spread * uniform(self.key, index);
        }
    }
}
