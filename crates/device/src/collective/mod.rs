//! What ranks do together. Every operation has a deadline; a fault is sticky and names rank and operation.

pub mod alone;
pub mod floor;
pub mod threads;

use crate::DeviceError;
use crate::backend::Backend;
use crate::tensor::{View, ViewMut};

/// One rank's end of a group of ranks. All ranks of a group call the same operations in the same order.
pub trait Collective: Send {
    /// This rank's place in the group, from 0.
    fn rank(&self) -> usize;

    /// How many ranks the group has.
    fn size(&self) -> usize;

    /// Replaces `x` on every rank by the sum over the ranks, the same bits on each of them.
    fn all_reduce(&self, x: ViewMut<'_>);

    /// `residual += sum of x over the ranks`, then `out = rms_norm(residual)` with the F32 `weight` `[1, width]`, each the
    /// same bits on every rank; `x` is scratch afterwards. What nearly every sum in a model is followed by.
    #[expect(clippy::too_many_arguments, reason = "a sum's and a norm's together")]
    fn all_reduce_add_rms_norm(
        &self,
        backend: &dyn Backend,
        out: ViewMut<'_>,
        residual: ViewMut<'_>,
        mut x: ViewMut<'_>,
        weight: View<'_>,
        eps: f32,
    ) {
        self.all_reduce(x.reborrow());
        backend.add_rms_norm(out, residual, x.view(), weight, eps);
    }

    /// Puts the ranks' columns side by side, in rank order, on every rank.
    ///
    /// `x` is this rank's `[rows, width]` (widths may differ between ranks); `out` is `[rows, sum of widths]`.
    fn gather_columns(&self, out: ViewMut<'_>, x: View<'_>);

    /// Sends `x` to rank `to`, which receives it into an array of the same shape. Does not wait for the receiver
    /// longer than it takes to hand `x` over: `x` may be reused when this returns.
    fn send(&self, to: usize, x: View<'_>);

    /// Receives what rank `from` sent.
    fn receive(&self, from: usize, x: ViewMut<'_>);

    /// Whether a device may record the operations in a graph: false when they wait on the host.
    fn capturable(&self) -> bool {
        true
    }

    /// Whether something could not be recorded since the last call: what was recorded then is not whole. No fault, for
    /// nothing of it was carried out.
    fn take_unrecorded(&self) -> bool {
        false
    }

    /// Ends the waits of all ranks, now and later, with `reason` as the group's fault unless it has one. Any rank may
    /// call it when it is lost.
    fn abort(&self, _reason: &str) {}

    /// The first fault, for example `rank 1 of 2 did not come to all_reduce within 30 s`. Operations after a fault do nothing.
    fn fault(&self) -> Option<DeviceError>;
}
