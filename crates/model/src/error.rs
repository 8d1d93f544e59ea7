//! What can be wrong with a model before it runs: one sentence each, naming file and tensor.

use std::path::{Path, PathBuf};

use phalanx_device::DeviceError;

/// Why a model cannot be loaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// The file system said no.
    #[error("{}: {reason}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// A file does not hold what its format says.
    #[error("{}: {what}", file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// What is wrong, naming the field.
        what: String,
    },
    /// Nothing is wrong with the files, as far as was seen, but this program does not run them, or not as they lie there.
    #[error("{}: {what}; {instead}", file.display())]
    Refused {
        /// The file or folder.
        file: PathBuf,
        /// What is not supported, naming the field, and what would be.
        what: String,
        /// What to do.
        instead: String,
    },
    /// A tensor is missing, unknown, or not what the configuration says.
    #[error("{}: tensor {tensor}: {what}", file.display())]
    Tensor {
        /// The file.
        file: PathBuf,
        /// The tensor as the file spells it.
        tensor: String,
        /// What is wrong.
        what: String,
    },
    /// The model cannot be split or run as asked.
    #[error("{0}")]
    Layout(String),
    /// The device has no room.
    #[error("{0}")]
    Device(#[from] DeviceError),
}

impl LoadError {
    /// A system error about `path`.
    pub(crate) fn io(path: &Path, error: &std::io::Error) -> Self {
        Self::Io { path: path.to_path_buf(), reason: error.to_string() }
    }

    /// A sentence about `file`.
    pub(crate) fn malformed(file: &Path, what: impl Into<String>) -> Self {
        Self::Malformed { file: file.to_path_buf(), what: what.into() }
    }

    /// What is not supported of `file`, and what to do.
    pub(crate) fn refused(file: &Path, what: impl Into<String>, instead: impl Into<String>) -> Self {
        Self::Refused { file: file.to_path_buf(), what: what.into(), instead: instead.into() }
    }

    /// A sentence about one tensor of `file`.
    pub(crate) fn tensor(file: &Path, tensor: &str, what: impl Into<String>) -> Self {
        Self::Tensor { file: file.to_path_buf(), tensor: printable(tensor), what: what.into() }
    }
}

/// A name from an untrusted file on one line of bounded length: no control characters, at most 120 characters.
pub(crate) fn printable(name: &str) -> String {
    name.chars().take(120).map(|letter| if letter.is_control() { '\u{fffd}' } else { letter }).collect()
}
