//! Where a weight's rows come from while a device takes them in: a file, host memory, or a counter that makes them up.

use std::ops::Range;

use crate::DeviceError;

/// The rows of a weight, encoded as [`crate::Format`] says; several threads ask for runs of them at the same time.
pub trait RowSource: Sync {
    /// Writes rows `rows`, one after the other, to `out`, which is exactly as long as they are.
    ///
    /// # Errors
    /// They cannot be read; names the file.
    fn read(&self, rows: Range<usize>, out: &mut [u8]) -> Result<(), DeviceError>;

    /// All rows, where they lie in host memory already, one after the other.
    fn bytes(&self) -> Option<&[u8]> {
        None
    }
}

impl RowSource for &[u8] {
    fn read(&self, rows: Range<usize>, out: &mut [u8]) -> Result<(), DeviceError> {
        let row_bytes = out.len() / rows.len().max(1);
        out.copy_from_slice(&self[rows.start * row_bytes..rows.end * row_bytes]);
        Ok(())
    }

    fn bytes(&self) -> Option<&[u8]> {
        Some(self)
    }
}

impl RowSource for Vec<u8> {
    fn read(&self, rows: Range<usize>, out: &mut [u8]) -> Result<(), DeviceError> {
        self.as_slice().read(rows, out)
    }

    fn bytes(&self) -> Option<&[u8]> {
        Some(self)
    }
}
