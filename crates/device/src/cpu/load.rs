//! Takes weights in: every thread reads (or makes up) some of the rows, then they are laid out for the kernels.

use std::sync::{Mutex, PoisonError};

use crate::DeviceError;
use crate::cpu::{Cpu, matmul, memory};
use crate::matrix::{Format, Matrix};
use crate::source::RowSource;

/// What a thread asks of the source at once.
const PIECE_BYTES: usize = 1 << 20;

/// See [`crate::Backend::load_matrix`].
pub(super) fn matrix(
    cpu: &Cpu,
    format: Format,
    rows: usize,
    columns: usize,
    source: &dyn RowSource,
) -> Result<Matrix, DeviceError> {
    let pack = |bytes: &[u8]| {
        matmul::pack(&cpu.pool, format, rows, columns, bytes, |bytes| {
            cpu.pages.allocate(bytes, memory::allocate)
        })
    };
    match source.bytes() {
        Some(bytes) => pack(bytes),
        None => pack(&gathered(cpu, rows, format.row_bytes(columns), source)?),
    }
}

/// All rows, read by all threads.
fn gathered(
    cpu: &Cpu,
    rows: usize,
    row_bytes: usize,
    source: &dyn RowSource,
) -> Result<Vec<u8>, DeviceError> {
    let mut bytes = vec![0; rows * row_bytes];
    let rows_at_once = (PIECE_BYTES / row_bytes).max(1);
    let failed = Mutex::new(None);
    cpu.pool.run_chunks(&mut bytes, rows_at_once * row_bytes, &|index, out| {
        let first = index * rows_at_once;
        if let Err(error) = source.read(first..first + out.len() / row_bytes, out) {
            failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        }
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(bytes),
    }
}
