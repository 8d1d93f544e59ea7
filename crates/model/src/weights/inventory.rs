//! The tensors of a model's files by name: where each lies, and whether they are what the configuration says.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use phalanx_device::Format;

use crate::architectures::TensorShape;
use crate::error::LoadError;

/// Where a tensor lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    /// Which of the model's files.
    pub(crate) file: usize,
    /// Its first byte in that file; all of its bytes were found to lie inside.
    pub(crate) start: usize,
    /// How its elements are encoded.
    pub(crate) format: Format,
    /// Rows; 1 for a vector.
    pub(crate) rows: usize,
    /// Elements of a row.
    pub(crate) columns: usize,
}

impl Stored {
    /// How many bytes it has.
    pub(crate) fn bytes(&self) -> usize {
        self.rows * self.format.row_bytes(self.columns)
    }
}

/// What a header says of one tensor.
pub(crate) struct Declared {
    /// As the file spells it.
    pub(crate) name: String,
    /// Its shape, slowest dimension first.
    pub(crate) shape: Vec<u64>,
    /// How its elements are encoded.
    pub(crate) format: Format,
    /// Its first byte in the file.
    pub(crate) start: u64,
}

/// Tensors under the names their file gives them.
#[derive(Debug, Default)]
pub(crate) struct Inventory {
    by_name: HashMap<String, Stored>,
}

impl Inventory {
    /// Takes in one tensor of file number `file`, which has `file_len` bytes; returns the bytes it covers.
    pub(crate) fn add(
        &mut self,
        path: &Path,
        file: usize,
        file_len: usize,
        declared: &Declared,
    ) -> Result<Range<usize>, LoadError> {
        let name = &declared.name;
        let stored = match stored(declared, file) {
            Ok(stored) => stored,
            Err(what) => return Err(LoadError::tensor(path, name, what)),
        };
        let Some(end) = stored.start.checked_add(stored.bytes()).filter(|end| *end <= file_len) else {
            let what = format!(
                "its {} bytes from byte {} on reach behind the end of the file at {file_len}: the file is cut short",
                stored.bytes(),
                stored.start
            );
            return Err(LoadError::tensor(path, name, what));
        };
        let range = stored.start..end;
        match self.by_name.insert(declared.name.clone(), stored) {
            None => Ok(range),
            Some(_) => Err(LoadError::tensor(path, name, "is there twice")),
        }
    }

    /// A tensor by its name in the file.
    pub(crate) fn get(&self, name: &str) -> Option<&Stored> {
        self.by_name.get(name)
    }

    /// Holds the tensors to those a model needs, and returns them under the names this crate uses.
    ///
    /// `in_file` turns such a name into the file's; tensors that are not needed are an error unless `harmless`.
    pub(crate) fn matched(
        mut self,
        paths: &[&Path],
        needed: &[TensorShape],
        in_file: impl Fn(&str) -> String,
        harmless: impl Fn(&str) -> bool,
    ) -> Result<HashMap<String, Stored>, LoadError> {
        let mut matched = HashMap::with_capacity(needed.len());
        for tensor in needed {
            let name = in_file(&tensor.name);
            let Some(stored) = self.by_name.remove(&name) else {
                return Err(LoadError::tensor(paths[0], &name, "is missing"));
            };
            let path = paths[stored.file];
            if (stored.rows, stored.columns) != (tensor.rows, tensor.columns) {
                let what = format!(
                    "has shape [{}, {}], but the configuration says [{}, {}]",
                    stored.rows, stored.columns, tensor.rows, tensor.columns
                );
                return Err(LoadError::tensor(path, &name, what));
            }
            if tensor.kind.is_vector() && stored.format.block_len() != 1 {
                return Err(LoadError::tensor(
                    path,
                    &name,
                    "is quantised: norms and biases have to be dense",
                ));
            }
            matched.insert(tensor.name.clone(), stored);
        }
        let mut unknown: Vec<(String, Stored)> =
            self.by_name.into_iter().filter(|(name, _)| !harmless(name)).collect();
        unknown.sort_by(|a, b| a.0.cmp(&b.0));
        match unknown.first() {
            None => Ok(matched),
            Some((name, stored)) => {
                let others = match unknown.len() - 1 {
                    0 => String::new(),
                    count => format!(" (and {count} others)"),
                };
                let what = format!("is not part of the model that the configuration describes{others}");
                Err(LoadError::tensor(paths[stored.file], name, what))
            }
        }
    }
}

/// No two of `ranges` share a byte; otherwise the position of one that does.
pub(crate) fn overlap(ranges: &[Range<usize>]) -> Option<usize> {
    let mut order: Vec<usize> = (0..ranges.len()).filter(|index| !ranges[*index].is_empty()).collect();
    order.sort_by_key(|index| ranges[*index].start);
    order.windows(2).find(|pair| ranges[pair[1]].start < ranges[pair[0]].end).map(|pair| pair[1])
}

/// Checks a declaration for itself: at most two dimensions, whole blocks, sizes that fit.
fn stored(declared: &Declared, file: usize) -> Result<Stored, String> {
    let fits =
        |size: u64| usize::try_from(size).map_err(|_| format!("size {size} does not fit this machine"));
    let (rows, columns) = match declared.shape.as_slice() {
        [columns] => (1, fits(*columns)?),
        [rows, columns] => (fits(*rows)?, fits(*columns)?),
        shape => return Err(format!("has {} dimensions, and has to have one or two", shape.len())),
    };
    if rows == 0 || columns == 0 {
        return Err("is empty".to_string());
    }
    let format = declared.format;
    if !columns.is_multiple_of(format.block_len()) {
        return Err(format!("rows of {columns} elements are not whole blocks of {}", format.block_len()));
    }
    let row_bytes = (columns / format.block_len()).checked_mul(format.block_bytes());
    match row_bytes.and_then(|bytes| bytes.checked_mul(rows)) {
        Some(_) => Ok(Stored { file, start: fits(declared.start)?, format, rows, columns }),
        None => Err(format!("its shape [{rows}, {columns}] is larger than any file")),
    }
}
