//! A group of one rank: sums and gathers are what it has already.

use super::Collective;
use crate::DeviceError;
use crate::cpu::views::{Rows, RowsMut};
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

    /// Copies; both views are the host's memory.
    fn gather_columns(&self, out: ViewMut<'_>, x: View<'_>) {
        let (mut out, x) = (RowsMut::bytes(out), Rows::bytes(x));
        for row in 0..x.rows() {
            out.row(row).copy_from_slice(x.row(row));
        }
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
