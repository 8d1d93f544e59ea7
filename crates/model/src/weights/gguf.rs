//! A GGUF file's header (ggml-org/ggml docs/gguf.md, versions 2 and 3): metadata, then where each tensor lies.

use std::collections::HashMap;

use phalanx_device::Format;
use serde_json::{Map, Value};

use crate::error::{LoadError, printable};
use crate::weights::inventory::{Declared, Inventory, overlap};
use crate::weights::mapped::MappedFile;

/// A list in the metadata.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Array {
    /// Strings.
    Strings(Vec<String>),
    /// Whole numbers of any width, and switches as 0 and 1.
    Integers(Vec<i64>),
    /// Real numbers.
    Numbers(Vec<f64>),
}

/// The metadata: plain values, and lists.
#[derive(Debug, Default)]
pub(crate) struct Metadata {
    /// Numbers, strings and switches.
    pub(crate) scalars: Map<String, Value>,
    /// Lists.
    pub(crate) arrays: HashMap<String, Array>,
}

/// Reads the header of `file`, the only one of its model.
pub(crate) fn read_header(file: &MappedFile) -> Result<(Metadata, Inventory), LoadError> {
    let mut cursor = Cursor { file, at: 0 };
    if cursor.take(4, "the magic")? != b"GGUF" {
        return Err(cursor.error("is no GGUF file: it does not begin with GGUF"));
    }
    let version = cursor.u32("the version")?;
    if version != 2 && version != 3 {
        let why = if version.swap_bytes() < 16 {
            "big-endian files are not supported"
        } else {
            "2 and 3 are supported"
        };
        return Err(cursor.error(&format!("GGUF version {version}: {why}")));
    }
    let num_tensors = cursor.u64("the number of tensors")?;
    let num_values = cursor.u64("the number of metadata values")?;
    let metadata = read_metadata(&mut cursor, num_values)?;
    let inventory = read_tensors(&mut cursor, num_tensors, &metadata)?;
    Ok((metadata, inventory))
}

fn read_metadata(cursor: &mut Cursor<'_>, count: u64) -> Result<Metadata, LoadError> {
    let mut metadata = Metadata::default();
    // Nothing is reserved for `count`: a hostile one ends with the file.
    for _ in 0..count {
        let key = cursor.string("a metadata key")?;
        if metadata.scalars.contains_key(&key) || metadata.arrays.contains_key(&key) {
            return Err(cursor.error(&format!("metadata {} is there twice", printable(&key))));
        }
        match cursor.u32(&key)? {
            ARRAY => {
                let array = cursor.array(&key)?;
                metadata.arrays.insert(key, array);
            }
            kind => {
                let value = cursor.scalar(kind, &key)?;
                metadata.scalars.insert(key, value);
            }
        }
    }
    Ok(metadata)
}

fn read_tensors(cursor: &mut Cursor<'_>, count: u64, metadata: &Metadata) -> Result<Inventory, LoadError> {
    let alignment = match metadata.scalars.get("general.alignment").map(Value::as_u64) {
        None => 32,
        Some(Some(alignment)) if alignment.is_power_of_two() && alignment <= 1 << 20 => alignment,
        Some(_) => return Err(cursor.error("general.alignment is no power of two up to 1048576")),
    };
    let mut declared = Vec::new();
    for _ in 0..count {
        declared.push(read_tensor(cursor)?);
    }
    let data_start = (cursor.at as u64).next_multiple_of(alignment);
    let path = cursor.file.path.as_path();
    let mut inventory = Inventory::default();
    let mut covered = Vec::with_capacity(declared.len());
    let mut names = Vec::with_capacity(declared.len());
    for mut tensor in declared {
        if !tensor.start.is_multiple_of(alignment) {
            let what =
                format!("begins at byte {} of the data, which is not aligned to {alignment}", tensor.start);
            return Err(LoadError::tensor(path, &tensor.name, what));
        }
        let Some(start) = tensor.start.checked_add(data_start) else {
            return Err(LoadError::tensor(path, &tensor.name, format!("begins at byte {}", tensor.start)));
        };
        tensor.start = start;
        names.push(tensor.name.clone());
        covered.push(inventory.add(path, 0, cursor.file.bytes().len(), &tensor)?);
    }
    match overlap(&covered) {
        None => Ok(inventory),
        Some(at) => Err(LoadError::tensor(path, &names[at], "shares bytes with another tensor")),
    }
}

fn read_tensor(cursor: &mut Cursor<'_>) -> Result<Declared, LoadError> {
    let name = cursor.string("a tensor's name")?;
    let path = cursor.file.path.as_path();
    let dimensions = cursor.u32(&name)?;
    if dimensions == 0 || 4 < dimensions {
        let what = format!("has {dimensions} dimensions, and has to have one or two");
        return Err(LoadError::tensor(path, &name, what));
    }
    let mut shape = Vec::new();
    for _ in 0..dimensions {
        shape.push(cursor.u64(&name)?);
    }
    shape.reverse();
    let format = match cursor.u32(&name)? {
        0 => Format::F32,
        1 => Format::F16,
        2 => Format::Q4_0,
        3 => Format::Q4_1,
        6 => Format::Q5_0,
        7 => Format::Q5_1,
        8 => Format::Q8_0,
        12 => Format::Q4K,
        13 => Format::Q5K,
        14 => Format::Q6K,
        30 => Format::BF16,
        other => {
            let what = format!(
                "has type {} ({other}); F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K and Q6_K are supported",
                unsupported_type(other)
            );
            return Err(LoadError::tensor(path, &name, what));
        }
    };
    let start = cursor.u64(&name)?;
    Ok(Declared { name, shape, format, start })
}

/// The names of ggml's other types, so that a user can tell which file to take instead.
fn unsupported_type(number: u32) -> &'static str {
    match number {
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24..=27 => "an integer type",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => "unknown",
    }
}

const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// Bytes of a metadata value of this type; strings have at least their length.
fn value_bytes(kind: u32) -> Option<usize> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        STRING | 10..=12 => Some(8),
        _ => None,
    }
}

/// A place in the header; every step forward is checked against the file's end.
struct Cursor<'a> {
    file: &'a MappedFile,
    at: usize,
}

impl<'a> Cursor<'a> {
    fn error(&self, what: &str) -> LoadError {
        LoadError::malformed(&self.file.path, what)
    }

    fn take(&mut self, count: usize, what: &str) -> Result<&'a [u8], LoadError> {
        let bytes = self.file.bytes();
        match self.at.checked_add(count).and_then(|end| bytes.get(self.at..end)) {
            Some(taken) => {
                self.at += count;
                Ok(taken)
            }
            None => {
                let what = printable(what);
                Err(self.error(&format!("is cut short: it ends at byte {}, inside {what}", bytes.len())))
            }
        }
    }

    fn u32(&mut self, what: &str) -> Result<u32, LoadError> {
        let bytes = self.take(4, what)?;
        Ok(u32::from_le_bytes(bytes.try_into().expect("four bytes were taken")))
    }

    fn u64(&mut self, what: &str) -> Result<u64, LoadError> {
        let bytes = self.take(8, what)?;
        Ok(u64::from_le_bytes(bytes.try_into().expect("eight bytes were taken")))
    }

    fn string(&mut self, what: &str) -> Result<String, LoadError> {
        let length = usize::try_from(self.u64(what)?).unwrap_or(usize::MAX);
        match std::str::from_utf8(self.take(length, what)?) {
            Ok(text) => Ok(text.to_string()),
            Err(_) => Err(self.error(&format!("{} is not UTF-8", printable(what)))),
        }
    }

    /// A number, switch or string.
    fn scalar(&mut self, kind: u32, key: &str) -> Result<Value, LoadError> {
        if kind == STRING {
            return Ok(Value::from(self.string(key)?));
        }
        match value_bytes(kind) {
            Some(count) => Ok(number(kind, self.take(count, key)?)),
            None => Err(self.error(&format!("metadata {} has the unknown type {kind}", printable(key)))),
        }
    }

    /// A list. Lists of lists are refused: no model has them, and their depth would be the file's choice.
    fn array(&mut self, key: &str) -> Result<Array, LoadError> {
        let kind = self.u32(key)?;
        let count = usize::try_from(self.u64(key)?).unwrap_or(usize::MAX);
        let Some(least) = value_bytes(kind) else {
            return Err(self.error(&format!("metadata {} is a list of type {kind}", printable(key))));
        };
        let left = self.file.bytes().len() - self.at;
        if left / least < count {
            let what = format!("is cut short: metadata {} should have {count} values", printable(key));
            return Err(self.error(&what));
        }
        if kind == STRING {
            let strings: Result<Vec<String>, LoadError> = (0..count).map(|_| self.string(key)).collect();
            return Ok(Array::Strings(strings?));
        }
        let values = self.take(count * least, key)?.chunks_exact(least).map(|bytes| number(kind, bytes));
        match kind {
            6 | 12 => Ok(Array::Numbers(values.map(|value| value.as_f64().unwrap_or_default()).collect())),
            7 => Ok(Array::Integers(values.map(|value| i64::from(value == true)).collect())),
            _ => Ok(Array::Integers(values.map(|value| value.as_i64().unwrap_or_default()).collect())),
        }
    }
}

/// A number or switch of metadata type `kind` from exactly its bytes.
fn number(kind: u32, bytes: &[u8]) -> Value {
    let mut wide = [0; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    let unsigned = u64::from_le_bytes(wide);
    // Moving the sign bit to the top and back spreads it.
    let shift = 64 - 8 * bytes.len() as u32;
    let signed = (unsigned << shift) as i64 >> shift;
    match kind {
        0 | 2 | 4 | 10 => Value::from(unsigned),
        1 | 3 | 5 | 11 => Value::from(signed),
        6 => real(f64::from(f32::from_bits(unsigned as u32))),
        12 => real(f64::from_bits(unsigned)),
        _ => Value::from(unsigned != 0),
    }
}

/// A number; NaN and infinities, for which JSON has none, as words: as null they would count as absent.
fn real(number: f64) -> Value {
    match number.is_finite() {
        true => Value::from(number),
        false => Value::from(number.to_string()),
    }
}
