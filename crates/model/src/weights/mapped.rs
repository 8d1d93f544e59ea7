//! A file of weights mapped into memory: the operating system reads what is touched, and may forget it again.
#![allow(unsafe_code)]

use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::error::LoadError;

/// A file, read-only.
#[derive(Debug)]
pub(crate) struct MappedFile {
    /// Where it lies; named in errors.
    pub(crate) path: PathBuf,
    map: Mmap,
}

impl MappedFile {
    /// Maps `path`.
    pub(crate) fn open(path: &Path) -> Result<Self, LoadError> {
        let file = File::open(path).map_err(|error| LoadError::io(path, &error))?;
        // SAFETY: the map is read-only. Should another program change the file meanwhile, the bytes of a weight change,
        // which no code here depends on: lengths and offsets were copied out and checked, and any byte is a valid u8.
        // A file cut short while it is mapped ends the process (SIGBUS), as it does for every program that maps weights.
        let map = unsafe { Mmap::map(&file) }.map_err(|error| LoadError::io(path, &error))?;
        Ok(Self { path: path.to_path_buf(), map })
    }

    /// The whole file.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }
}
