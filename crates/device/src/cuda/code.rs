//! Which form of the kernels a GPU runs, as a kernel tells that was compiled like all others.
//!
//! The card does not decide that alone: a binary may hold nothing of its newest instructions, and a driver can be told to
//! compile PTX where there is machine code (`CUDA_FORCE_PTX_JIT=1`).

use std::ffi::c_int;

use crate::DeviceError;
use crate::architecture::{self, Architecture};
use crate::cuda::runtime::{self, Pinned, Stream};

/// As build.rs gave them to nvcc, with commas between them.
const BUILT: &str = env!("PHALANX_CUDA_BUILT");
/// This program's version, and what its kernels were built for, on two lines.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\nkernels for ", env!("PHALANX_CUDA_BUILT"));

/// What the runtime says of a GPU that none of the code is for.
const INVALID_DEVICE_FUNCTION: c_int = 98;
const NO_KERNEL_IMAGE: c_int = 209;
/// The twin of `__CUDA_ARCH__` from which on kernels wait for the one before them by themselves.
const OVERLAPPING: u32 = 900;

unsafe extern "C" {
    /// `facts` is room for two words that the device writes.
    fn launch_tell_code(facts: usize, stream: usize) -> c_int;
}

/// What this binary's kernels were built for.
///
/// # Panics
/// Never: what the build script writes can be read.
#[must_use]
pub fn built() -> Vec<Architecture> {
    Architecture::parse_list(BUILT).expect("the build script writes names of architectures")
}

/// What the kernels that one GPU runs were compiled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Code {
    /// `__CUDA_ARCH__`, for example 900.
    architecture: u32,
    warpgroups: bool,
}

impl Code {
    /// Asks GPU `ordinal`; PTX is compiled now, should it be needed.
    ///
    /// # Errors
    /// This binary has nothing that it can run.
    pub(crate) fn of(ordinal: usize) -> Result<Self, DeviceError> {
        runtime::use_device(ordinal)?;
        let (stream, told) = (Stream::new()?, Pinned::new(256)?);
        // SAFETY: both live until the stream is done; the device reaches pinned memory.
        match unsafe { launch_tell_code(told.address(), stream.handle()) } {
            INVALID_DEVICE_FUNCTION | NO_KERNEL_IMAGE => {
                let facts = runtime::facts(ordinal)?;
                let capability = (facts.capability_major, facts.capability_minor);
                let why = architecture::unserved(&built(), capability);
                let remedy = architecture::remedy(capability);
                return Err(DeviceError(format!("GPU {ordinal} ({}) {why}: {remedy}", facts.name())));
            }
            code => {
                runtime::check(
                    code,
                    &format!("to load kernels built for {}", architecture::names(&built())),
                )?;
            }
        }
        stream.synchronize()?;
        Ok(Self { architecture: told.get(0).cast_unsigned(), warpgroups: told.get(1) != 0 })
    }

    /// Kernels may start while the one before drains: they wait for it where they must.
    ///
    /// Compiled for less, they do not wait, and would read what the kernel before is still writing.
    pub(crate) fn overlaps(self) -> bool {
        OVERLAPPING <= self.architecture
    }

    /// There is wgmma: long queries have a kernel of their own.
    pub(crate) fn has_warpgroups(self) -> bool {
        self.warpgroups
    }

    /// For people: `sm_90a`.
    pub(crate) fn describe(self) -> String {
        format!("sm_{}{}", self.architecture / 10, if self.warpgroups { "a" } else { "" })
    }
}
