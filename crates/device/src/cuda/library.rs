//! Opens NVIDIA's libraries at run time, so that one binary starts on machines without them.

use std::path::{Path, PathBuf};

use libloading::Library;

use crate::DeviceError;

/// What cuBLASLt's file is called, the newest first.
pub(crate) const CUBLASLT: [&str; 3] = ["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"];
/// What NCCL's file is called.
pub(crate) const NCCL: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

/// Where Python keeps packages that were installed for everyone.
const SYSTEM_ENVIRONMENTS: [&str; 2] = ["/usr/local", "/usr"];

/// Opens the first of `names` that is found: in `folders`, each of which may be a Python environment with NVIDIA's
/// wheels, then wherever the system's loader looks, then in a toolkit, then in the system's Python.
///
/// # Errors
/// None is found; says where was looked.
pub(crate) fn open(names: &[&str], folders: &[PathBuf]) -> Result<Library, DeviceError> {
    let mut candidates = Vec::new();
    for folder in folders {
        candidates.extend(names.iter().map(|name| folder.join(name)));
        candidates.extend(in_wheels(folder, names));
    }
    candidates.extend(names.iter().map(PathBuf::from));
    candidates.extend(names.iter().map(|name| PathBuf::from("/usr/local/cuda/lib64").join(name)));
    for environment in SYSTEM_ENVIRONMENTS {
        candidates.extend(in_wheels(Path::new(environment), names));
    }
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

/// Files of these names in the wheels of a Python environment: `lib/python3.12/site-packages/nvidia/nccl/lib/...`.
fn in_wheels(environment: &Path, names: &[&str]) -> Vec<PathBuf> {
    let entries = |folder: PathBuf| {
        let listed = std::fs::read_dir(folder).into_iter().flatten();
        let mut found: Vec<PathBuf> = listed.flatten().map(|entry| entry.path()).collect();
        found.sort();
        found
    };
    let mut found = Vec::new();
    for python in entries(environment.join("lib")) {
        for packages in ["site-packages", "dist-packages"] {
            for wheel in entries(python.join(packages).join("nvidia")) {
                let paths = names.iter().map(|name| wheel.join("lib").join(name));
                found.extend(paths.filter(|path| path.is_file()));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wheels_of_an_environment_are_found() {
        let environment = std::env::temp_dir().join(format!("phalanx-wheels-{}", std::process::id()));
        let folder = environment.join("lib/python3.12/site-packages/nvidia/nccl/lib");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("libnccl.so.2"), b"").unwrap();
        let found = in_wheels(&environment, &["libnccl.so.2", "libnccl.so"]);
        std::fs::remove_dir_all(&environment).unwrap();
        assert_eq!(found, [folder.join("libnccl.so.2")]);
    }
}
