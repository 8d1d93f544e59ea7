//! The layers of a decoder, each on one rank's shard: what they hold, and one method that carries them out.

pub mod attention;
pub mod embedding;
pub mod linear;
pub mod lm_head;
pub mod mlp;
pub mod norm;
pub mod workspace;

use phalanx_device::{Arena, Device, Plan, Tensor, View};

/// What one step gives every layer.
#[derive(Clone, Copy)]
pub struct Forward<'a> {
    /// The rank's machine.
    pub device: &'a Device,
    /// The step's arrays.
    pub plan: &'a Plan,
    /// Token ids, I32 `[tokens, 1]`; only the first stage reads them.
    pub ids: View<'a>,
}

/// Bytes of the allocation that holds `tensor` alone.
pub(crate) fn held_bytes(tensor: &Tensor) -> usize {
    Arena::tensor_bytes(tensor.dtype(), tensor.rows(), tensor.width())
}
