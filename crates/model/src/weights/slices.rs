//! Rectangles of stored tensors as the rows of one matrix: read, gathered and converted by whichever thread asks.

use std::ops::Range;

use phalanx_device::cpu::quant;
use phalanx_device::{DeviceError, Format, RowSource};

use crate::weights::inventory::Stored;
use crate::weights::mapped::MappedFile;

/// Elements converted at once: their floats fit a core's own cache.
const CONVERTED_AT_ONCE: usize = 1 << 15;

/// Whole rows, or whole blocks of each of them, of a stored tensor.
pub(crate) struct Slice<'a> {
    pub(crate) file: &'a MappedFile,
    pub(crate) stored: &'a Stored,
    pub(crate) rows: Range<usize>,
    pub(crate) columns: Range<usize>,
}

/// Slices of one width, one below the other, in `format`.
pub(crate) struct Slices<'a> {
    pub(crate) slices: Vec<Slice<'a>>,
    /// Dense, or what the tensors are stored in.
    pub(crate) format: Format,
}

impl RowSource for Slices<'_> {
    fn read(&self, rows: Range<usize>, out: &mut [u8]) -> Result<(), DeviceError> {
        let (mut start, mut out) = (0, out);
        for slice in &self.slices {
            let end = start + slice.rows.len();
            let wanted = rows.start.max(start)..rows.end.min(end);
            if wanted.start < wanted.end {
                let first = slice.rows.start + wanted.start - start;
                let bytes = wanted.len() * self.format.row_bytes(slice.columns.len());
                let (own, rest) = out.split_at_mut(bytes);
                slice.read(first..first + wanted.len(), self.format, own)?;
                out = rest;
            }
            start = end;
        }
        Ok(())
    }

    fn bytes(&self) -> Option<&[u8]> {
        match self.slices.as_slice() {
            [only] if only.stored.format == self.format && only.is_whole_rows() => {
                let range = only.range(only.rows.clone());
                Some(&only.file.bytes()[range])
            }
            _ => None,
        }
    }
}

impl Slice<'_> {
    fn is_whole_rows(&self) -> bool {
        self.columns.len() == self.stored.columns
    }

    /// Where whole rows lie in the file.
    fn range(&self, rows: Range<usize>) -> Range<usize> {
        let row_bytes = self.stored.format.row_bytes(self.stored.columns);
        self.stored.start + rows.start * row_bytes..self.stored.start + rows.end * row_bytes
    }

    /// Rows `rows` of the tensor, this slice's columns of them, in `format`.
    fn read(&self, rows: Range<usize>, format: Format, out: &mut [u8]) -> Result<(), DeviceError> {
        let from = self.stored.format;
        if from == format {
            return self.read_stored(rows, out);
        }
        let columns = self.columns.len();
        let rows_at_once = (CONVERTED_AT_ONCE / columns).max(1);
        let mut stored = vec![0; rows_at_once * from.row_bytes(columns)];
        let mut values = vec![0.0; rows_at_once * columns];
        for (index, out) in out.chunks_mut(rows_at_once * format.row_bytes(columns)).enumerate() {
            let start = rows.start + index * rows_at_once;
            let count = rows_at_once.min(rows.end - start);
            let stored = &mut stored[..count * from.row_bytes(columns)];
            let values = &mut values[..count * columns];
            self.read_stored(start..start + count, stored)?;
            quant::dequantize(from, stored, values);
            quant::encode(format, values, out);
        }
        Ok(())
    }

    /// The same as stored.
    fn read_stored(&self, rows: Range<usize>, out: &mut [u8]) -> Result<(), DeviceError> {
        if self.is_whole_rows() {
            return self.file.read_at(self.range(rows).start, out);
        }
        // A disk is asked for all of it at once: what lies between is another rank's, which wants it now as well.
        self.file.will_read(self.range(rows.clone()));
        let format = self.stored.format;
        let first = format.row_bytes(self.columns.start);
        let row_bytes = format.row_bytes(self.columns.len());
        for (row, out) in rows.zip(out.chunks_exact_mut(row_bytes)) {
            self.file.read_at(self.range(row..row + 1).start + first, out)?;
        }
        Ok(())
    }
}
