//! Which of NVIDIA's libraries this program finds at run time, where, and of what version.

use std::ffi::c_int;
use std::path::PathBuf;

use crate::cuda::library;
use crate::facts::{Known, LibraryFacts};

/// Looks for all of them, in `folders` first. What is found stays loaded no longer than the call.
#[must_use]
pub fn found(folders: &[PathBuf]) -> Vec<LibraryFacts> {
    vec![
        LibraryFacts {
            name: "NVML",
            without: "GPUs are used, but not watched",
            remedy: "it comes with NVIDIA's driver; in a container, allow the driver capability `utility`",
            found: nvml(),
        },
        LibraryFacts {
            name: "cuBLASLt",
            without: "large matrix products run on this program's own kernels, several times slower",
            remedy: "install it with `pip install nvidia-cublas`, or the CUDA toolkit, and name its folder in LD_LIBRARY_PATH",
            found: cublaslt(folders),
        },
        LibraryFacts {
            name: "NCCL",
            without: "GPUs exchange data by this program's own kernels only",
            remedy: "install it with `pip install nvidia-nccl-cu13` and name its folder in LD_LIBRARY_PATH",
            found: nccl(folders),
        },
    ]
}

fn nvml() -> Known<(String, String)> {
    let library = nvml_wrapper::Nvml::init().map_err(|error| error.to_string())?;
    let version = library.sys_nvml_version().map_err(|error| error.to_string())?;
    Ok((path_of("libnvidia-ml.so"), version))
}

fn cublaslt(folders: &[PathBuf]) -> Known<(String, String)> {
    let opened = library::open(&library::CUBLASLT, folders);
    let library = opened.map_err(|error| error.to_string())?;
    // SAFETY: the type is that of cublasLt.h; the function reads a constant.
    let version = unsafe {
        let version: libloading::Symbol<'_, unsafe extern "C" fn() -> usize> =
            library.get(b"cublasLtGetVersion").map_err(|error| error.to_string())?;
        version()
    };
    let text = format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100);
    Ok((path_of("libcublasLt.so"), text))
}

/// NCCL's file and version, or why it cannot be used; looked for in `folders` first.
///
/// # Errors
/// It is not there, or no NCCL.
pub fn nccl(folders: &[PathBuf]) -> Known<(String, String)> {
    let library = library::open(&library::NCCL, folders).map_err(|error| error.to_string())?;
    let mut version = 0;
    // SAFETY: the type is that of nccl.h; the function writes one integer.
    let code = unsafe {
        let get: libloading::Symbol<'_, unsafe extern "C" fn(*mut c_int) -> c_int> =
            library.get(b"ncclGetVersion").map_err(|error| error.to_string())?;
        get(&mut version)
    };
    match code {
        0 => {
            let text = format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100);
            Ok((path_of("libnccl.so"), text))
        }
        code => Err(format!("it does not tell its version (code {code})")),
    }
}

/// The file that a loaded library came from, as the system's map of this process names it.
fn path_of(name: &str) -> String {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    path_in(&maps, name).unwrap_or_else(|| name.to_owned())
}

fn path_in(maps: &str, name: &str) -> Option<String> {
    let paths = maps.lines().filter_map(|line| line.find('/').map(|start| &line[start..]));
    let mut named = paths.filter(|path| path.rsplit('/').next().is_some_and(|file| file.starts_with(name)));
    named.next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_loaded_library_has_a_path() {
        let maps = "7f00-7f10 r--p 0 08:01 12 /usr/lib/libc.so.6\n7f20-7f30 r-xp 0 08:01 13 /opt/a b/libnccl.so.2\n7f40-7f50 rw-p 0 00:00 0\n";
        assert_eq!(super::path_in(maps, "libnccl.so"), Some("/opt/a b/libnccl.so.2".to_owned()));
        assert_eq!(super::path_in(maps, "libcublasLt.so"), None);
    }
}
