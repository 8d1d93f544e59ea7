//! Weights in huge pages: a decode step reads all of them once, and translating addresses of 4 KiB pages slows
//! that.
//!
//! Measured on two cores of Zen 4, all products of Qwen2.5-0.5B in Q4_K_M, with 4 KiB and with 2 MiB pages: one
//! row 69 and 78 tokens/s, eight rows 316 and 488. (One core that only reads: 16 and 29 GB/s.)
//!
//! Linux gives huge pages to who asks (`madvise`), for aligned 2 MiB that are first touched as a whole. Most
//! matrices of a small model are smaller, so they are cut from slabs; what is not used of a slab is never touched
//! and costs nothing.

#![allow(unsafe_code)]

use std::sync::{Arc, Mutex, PoisonError};

use crate::DeviceError;
use crate::tensor::Allocation;

/// What is asked of the system at once.
const SLAB_BYTES: usize = 64 << 20;
/// The size and alignment of a huge page.
pub(super) const PAGE_BYTES: usize = 2 << 20;
/// Every allocation begins at a multiple of this.
const ALIGNMENT: usize = 256;

/// A rank's memory for weights.
#[derive(Debug, Default)]
pub struct HugePages {
    /// The slab in use and how much of it is gone.
    slab: Mutex<Option<(Allocation, usize)>>,
}

impl HugePages {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Zeroed memory of `bytes` bytes, aligned to 256. `allocate` is asked for slabs, which it must not have
    /// touched.
    ///
    /// # Errors
    /// What `allocate` says.
    pub fn allocate(
        &self,
        bytes: usize,
        allocate: impl Fn(usize) -> Result<Allocation, DeviceError>,
    ) -> Result<Allocation, DeviceError> {
        let mut slab = self.slab.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((memory, used)) = slab.as_mut()
            && bytes <= memory.bytes() - *used
        {
            let part = part(memory, *used, bytes);
            *used = (*used + bytes).next_multiple_of(ALIGNMENT).min(memory.bytes());
            return Ok(part);
        }
        // A large matrix gets a slab of its own, and the one in use stays.
        let is_large = SLAB_BYTES / 2 < bytes;
        let slab_bytes = if is_large { bytes } else { SLAB_BYTES };
        let memory = match allocate(slab_bytes + PAGE_BYTES) {
            Ok(memory) => aligned(&memory, slab_bytes),
            // There may still be room for what is needed now.
            Err(_) => return allocate(bytes),
        };
        advise(&memory);
        let first = part(&memory, 0, bytes);
        if !is_large {
            *slab = Some((memory, bytes.next_multiple_of(ALIGNMENT)));
        }
        Ok(first)
    }
}

/// `bytes` bytes of `memory` from the first huge page's start on.
fn aligned(memory: &Allocation, bytes: usize) -> Allocation {
    part(memory, memory.address().next_multiple_of(PAGE_BYTES) - memory.address(), bytes)
}

/// A piece that keeps the whole alive.
fn part(memory: &Allocation, offset: usize, bytes: usize) -> Allocation {
    assert!(offset + bytes <= memory.bytes(), "a part of the memory");
    Allocation::new(memory.address() + offset, bytes, Arc::new(memory.clone()))
}

/// Asks for huge pages where the whole of one lies in `memory`. They are a gain only, so a refusal is not an
/// error.
#[cfg(target_os = "linux")]
pub(crate) fn advise(memory: &Allocation) {
    let start = memory.address().next_multiple_of(PAGE_BYTES);
    let end = (memory.address() + memory.bytes()) / PAGE_BYTES * PAGE_BYTES;
    if start < end {
        // SAFETY: the range is ours, and the advice changes the size of pages, not what is in them.
        unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE) };
    }
}

/// Other systems decide for themselves.
#[cfg(not(target_os = "linux"))]
pub(crate) fn advise(_memory: &Allocation) {}
