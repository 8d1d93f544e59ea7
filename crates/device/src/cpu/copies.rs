//! Rows and blocks that only change place.

use super::views::{Rows, RowsMut};
use crate::backend::KvLayer;
use crate::batch::Plan;
use crate::tensor::{Tensor, View, ViewMut};

/// See [`crate::Backend::gather_sample_rows`].
pub(super) fn gather_sample_rows(out: ViewMut<'_>, x: View<'_>, plan: &Plan) {
    let (mut out, x) = (RowsMut::bytes(out), Rows::bytes(x));
    for (index, &row) in plan.layout.sample_rows.iter().enumerate() {
        out.row(index).copy_from_slice(x.row(super::index(row)));
    }
}

/// See [`crate::Backend::token_ids`].
pub(super) fn token_ids(out: ViewMut<'_>, plan: &Plan, sampled: View<'_>) {
    let (mut out, sampled) = (RowsMut::<i32>::new(out), Rows::<i32>::new(sampled));
    for (index, &id) in plan.layout.ids.iter().enumerate() {
        // The bits of -(k + 1) are those of k, each turned over.
        out.row(index)[0] = if 0 <= id { id } else { sampled.row(super::index(!id))[0] };
    }
}

/// See [`crate::Backend::copy_blocks`].
pub(super) fn copy_blocks(kv: &mut KvLayer, copies: &[(u32, u32)]) {
    let num_blocks = kv.num_blocks;
    let copy = |tensor: &mut Tensor| {
        let rows = tensor.rows() / num_blocks;
        let mut bytes = RowsMut::bytes(tensor.view_mut());
        for &(from, to) in copies {
            bytes.copy_rows(from as usize * rows, to as usize * rows, rows);
        }
    };
    copy(&mut kv.keys);
    copy(&mut kv.values);
}
