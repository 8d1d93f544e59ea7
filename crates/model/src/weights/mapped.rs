//! A file of weights: headers are looked at where the system maps the file, weights are read.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::ErrorKind;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use memmap2::{Advice, Mmap};
use phalanx_device::DeviceError;

use crate::error::LoadError;

/// A file, read-only.
#[derive(Debug)]
pub(crate) struct MappedFile {
    /// Where it lies; named in errors.
    pub(crate) path: PathBuf,
    file: File,
    map: Mmap,
}

impl MappedFile {
    /// Maps `path`.
    pub(crate) fn open(path: &Path) -> Result<Self, LoadError> {
        let file = File::open(path).map_err(|error| LoadError::io(path, &error))?;
        // SAFETY: the map is read-only. Should another program change the file meanwhile, the bytes of a weight change,
        // which no code here depends on: lengths and offsets were copied out and checked, and any byte is a valid u8.
        // A file cut short while its map is read ends the process (SIGBUS), as it does for every program that maps weights.
        let map = unsafe { Mmap::map(&file) }.map_err(|error| LoadError::io(path, &error))?;
        Ok(Self { path: path.to_path_buf(), file, map })
    }

    /// The whole file.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Copies the bytes from `at` on into `out`. Faster than copying from the map, whose every page would be a fault.
    ///
    /// # Errors
    /// The disk fails, or the file was cut short since it was opened; names the file.
    pub(crate) fn read_at(&self, at: usize, out: &mut [u8]) -> Result<(), DeviceError> {
        self.file.read_exact_at(out, at as u64).map_err(|error| {
            let what = match error.kind() {
                ErrorKind::UnexpectedEof => {
                    format!(
                        "is cut short: {} bytes from byte {at} on were there when it was opened",
                        out.len()
                    )
                }
                _ => format!("cannot be read at byte {at}: {error}"),
            };
            DeviceError(format!("{}: {what}", self.path.display()))
        })
    }

    /// Tells the system that these bytes are about to be read, piece by piece.
    pub(crate) fn will_read(&self, range: Range<usize>) {
        // Advice that is not taken costs time, nothing else.
        let _untaken = self.map.advise_range(Advice::WillNeed, range.start, range.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_cut_short_after_it_was_opened_is_named() {
        let folder = tempfile::tempdir().expect("a folder for a test");
        let path = folder.path().join("model.safetensors");
        std::fs::write(&path, [7; 4096]).expect("a file for a test");
        let file = MappedFile::open(&path).expect("it is there");
        let mut out = [0; 16];
        assert_eq!(file.read_at(4080, &mut out), Ok(()));
        assert_eq!(out, [7; 16]);
        File::options().write(true).open(&path).and_then(|file| file.set_len(4090)).expect("it is cut");
        let error = file.read_at(4080, &mut out).expect_err("six bytes are gone").to_string();
        assert!(error.contains("model.safetensors: is cut short: 16 bytes from byte 4080"), "{error}");
    }
}
