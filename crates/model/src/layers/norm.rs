//! RMSNorm (arXiv 1910.07467).

use phalanx_device::{Device, Tensor, View, ViewMut};

use crate::error::LoadError;
use crate::layers::held_bytes;
use crate::weights::load::Loader;

/// `x / sqrt(mean(x^2) + eps) * weight`; whole on every rank.
#[derive(Debug)]
pub struct RmsNorm {
    weight: Tensor,
    eps: f32,
}

impl RmsNorm {
    /// Takes the vector `tensor` of `width` elements.
    ///
    /// # Errors
    /// There is not that much memory.
    pub fn load(loader: &Loader<'_>, tensor: &str, width: usize, eps: f32) -> Result<Self, LoadError> {
        Ok(Self { weight: loader.vector([(tensor, 0..width)])?, eps })
    }

    /// `out = norm(x)`, all `[tokens, width]`.
    pub fn forward(&self, device: &Device, out: ViewMut<'_>, x: View<'_>) {
        device.rms_norm(out, x, self.weight.view(), self.eps);
    }

    /// `residual += sum of x over the ranks`, then `out = norm(residual)`; `x` is scratch afterwards.
    pub fn reduce_add_forward(
        &self,
        device: &Device,
        out: ViewMut<'_>,
        residual: ViewMut<'_>,
        x: ViewMut<'_>,
    ) {
        device.all_reduce_add_rms_norm(out, residual, x, self.weight.view(), self.eps);
    }

    /// Bytes held in the device's memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        held_bytes(&self.weight)
    }
}
