//! The header of a safetensors file (huggingface/safetensors): a length, a JSON object of tensors, then their bytes.

use std::fmt;
use std::ops::Range;
use std::path::Path;

use phalanx_device::Format;
use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, Visitor};

use crate::error::{LoadError, printable};
use crate::weights::inventory::{Declared, Inventory, overlap};
use crate::weights::mapped::MappedFile;

/// The format's own limit; a header of a 72B model has 100 KB.
const MOST_HEADER_BYTES: u64 = 100_000_000;

/// Adds the tensors of `file`, which is number `index` of its model, to `inventory`.
pub(crate) fn read_header(
    file: &MappedFile,
    index: usize,
    inventory: &mut Inventory,
) -> Result<(), LoadError> {
    let path = file.path.as_path();
    let bytes = file.bytes();
    let data_start = header_end(path, bytes)?;
    let header: Header = serde_json::from_slice(&bytes[8..data_start]).map_err(|error| {
        let error = printable(&error.to_string());
        LoadError::malformed(path, format!("the header is not what it should be: {error}"))
    })?;
    let mut covered: Vec<Range<usize>> = Vec::with_capacity(header.0.len());
    let mut names = Vec::with_capacity(header.0.len());
    for (name, entry) in header.0 {
        names.push(name.clone());
        covered.push(add(file, index, data_start, (name, entry), inventory)?);
    }
    match overlap(&covered) {
        None => Ok(()),
        Some(at) => Err(LoadError::tensor(path, &names[at], "shares bytes with another tensor")),
    }
}

/// Where the tensors' bytes begin.
fn header_end(path: &Path, bytes: &[u8]) -> Result<usize, LoadError> {
    let Some(length) = bytes.first_chunk::<8>() else {
        return Err(LoadError::malformed(path, format!("{} bytes are no safetensors file", bytes.len())));
    };
    let length = u64::from_le_bytes(*length);
    if MOST_HEADER_BYTES < length || bytes.len() as u64 - 8 < length {
        let what = format!(
            "is cut short or no safetensors file: its header should have {length} bytes, the file has {}",
            bytes.len()
        );
        return Err(LoadError::malformed(path, what));
    }
    Ok(8 + length as usize)
}

fn add(
    file: &MappedFile,
    index: usize,
    data_start: usize,
    (name, entry): (String, Entry),
    inventory: &mut Inventory,
) -> Result<Range<usize>, LoadError> {
    let path = file.path.as_path();
    let format = match entry.dtype.as_str() {
        "F32" => Format::F32,
        "F16" => Format::F16,
        "BF16" => Format::BF16,
        other => {
            let what = format!("has dtype {}; F32, F16 and BF16 are supported", printable(other));
            return Err(LoadError::tensor(path, &name, what));
        }
    };
    let [start, end] = entry.data_offsets;
    let Some(absolute) = start.checked_add(data_start as u64) else {
        return Err(LoadError::tensor(path, &name, format!("begins at byte {start}")));
    };
    let declared = Declared { name: name.clone(), shape: entry.shape, format, start: absolute };
    let range = inventory.add(path, index, file.bytes().len(), &declared)?;
    match end.checked_sub(start) {
        Some(bytes) if bytes == range.len() as u64 => Ok(range),
        _ => {
            let what = format!("has offsets {start} to {end}, but its shape needs {} bytes", range.len());
            Err(LoadError::tensor(path, &name, what))
        }
    }
}

/// One tensor of the header.
#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// The header's tensors in order: a map would hide a name that is there twice.
struct Header(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut entries = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let entry = map
                .next_value()
                .map_err(|error| A::Error::custom(format!("tensor {}: {error}", printable(&name))))?;
            entries.push((name, entry));
        }
        Ok(Header(entries))
    }
}
