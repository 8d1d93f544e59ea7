//! Opens NVIDIA's libraries at run time, so that one binary starts on machines without them.

use std::path::PathBuf;

use libloading::Library;

use crate::DeviceError;

/// Opens the first of `names` that is found: in `folders`, then wherever the system's loader looks, then in a toolkit.
///
/// # Errors
/// None is found; says where was looked.
pub(crate) fn open(names: &[&str], folders: &[PathBuf]) -> Result<Library, DeviceError> {
    let mut candidates = Vec::new();
    for folder in folders {
        candidates.extend(names.iter().map(|name| folder.join(name)));
    }
    candidates.extend(names.iter().map(PathBuf::from));
    candidates.extend(names.iter().map(|name| PathBuf::from("/usr/local/cuda/lib64").join(name)));
    for candidate in &candidates {
        // SAFETY: these are NVIDIA's libraries: their initialisers have no requirements on us.
        if let Ok(library) = unsafe { Library::new(candidate) } {
            return Ok(library);
        }
    }
    let looked: Vec<String> = candidates.iter().map(|path| path.display().to_string()).collect();
    Err(DeviceError(format!(
        "{} is not found (looked for {}): install it, or give its folder",
        names[0],
        looked.join(", ")
    )))
}
