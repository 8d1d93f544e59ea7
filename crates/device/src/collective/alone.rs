//! A group of one rank: sums are what it has already.

use super::Collective;
use crate::DeviceError;
use crate::tensor::{View, ViewMut};

/// The only rank of its group.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Collective for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn all_reduce(&self, _: ViewMut<'_>) {}

    fn gather_columns(&self, _: ViewMut<'_>, _: View<'_>) {
        // Nor could it copy: the views may lie in the memory of any device.
        unreachable!("a rank alone has all columns: it computes them in their place");
    }

    fn send(&self, to: usize, _: View<'_>) {
        panic!("a rank alone sends to no rank {to}");
    }

    fn receive(&self, from: usize, _: ViewMut<'_>) {
        panic!("a rank alone receives from no rank {from}");
    }

    fn fault(&self) -> Option<DeviceError> {
        None
    }
}
