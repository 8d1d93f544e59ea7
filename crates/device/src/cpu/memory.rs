//! Host memory: zeroed, aligned to 256 bytes, refused with a sentence when there is not that much.
#![allow(unsafe_code)]

use std::alloc::Layout;
use std::sync::Arc;

use super::views::{Rows, RowsMut};
use crate::DeviceError;
use crate::tensor::{Allocation, View, ViewMut};

/// Every allocation begins at a multiple of this.
const ALIGNMENT: usize = 256;

/// One piece of host memory, freed when dropped.
struct Owned {
    start: *mut u8,
    layout: Layout,
}

// SAFETY: the pointer is only kept to free the memory, which any thread may do.
unsafe impl Send for Owned {}
// SAFETY: a shared `Owned` offers nothing.
unsafe impl Sync for Owned {}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: allocated in `allocate` by the same allocator with the same layout, and freed only here.
        unsafe { std::alloc::dealloc(self.start, self.layout) }
    }
}

/// Zeroed memory of `bytes` bytes. Pages are taken from the system when they are first touched.
///
/// # Errors
/// There is not that much left; says how much was asked and how much there is.
pub(crate) fn allocate(bytes: usize) -> Result<Allocation, DeviceError> {
    let available = available();
    // Linux promises more than it has and kills later: so we ask first what there is.
    if available.is_some_and(|available| available < bytes) {
        return Err(refused(bytes, available));
    }
    // The system's allocator zeroes lazily only for ordinary alignments, so we align by hand.
    let padded = bytes.checked_add(ALIGNMENT).ok_or_else(|| refused(bytes, available))?;
    let layout = Layout::from_size_align(padded, 16).map_err(|_| refused(bytes, available))?;
    // SAFETY: the layout's size is not zero.
    let start = unsafe { std::alloc::alloc_zeroed(layout) };
    if start.is_null() {
        return Err(refused(bytes, available));
    }
    let address = start.expose_provenance().next_multiple_of(ALIGNMENT);
    Ok(Allocation::new(address, bytes, Arc::new(Owned { start, layout })))
}

fn refused(bytes: usize, available: Option<usize>) -> DeviceError {
    let asked = format!("asked for {} of host memory", in_gib(bytes));
    DeviceError(match available {
        Some(available) => format!("{asked}, but only {} are available", in_gib(available)),
        None => format!("{asked}, which the system does not have"),
    })
}

/// `1.500 GiB (1610612736 bytes)`.
fn in_gib(bytes: usize) -> String {
    // Exact to a thousandth in integers, so that hostile sizes print as what they are.
    let thousandths = bytes as u128 * 1000 / (1 << 30);
    format!("{}.{:03} GiB ({bytes} bytes)", thousandths / 1000, thousandths % 1000)
}

/// Bytes this process may still take: what the system has, or what its control group leaves. `None` where neither says.
#[must_use]
pub fn available() -> Option<usize> {
    let system = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| available_in_meminfo(&text));
    match (system, available_in_group()) {
        (Some(system), Some(group)) => Some(system.min(group)),
        (system, group) => system.or(group),
    }
}

fn available_in_meminfo(text: &str) -> Option<usize> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()?.checked_mul(1024)
}

/// What a container's limit leaves (control groups, version 2). Cached files count as used there but give way.
fn available_in_group() -> Option<usize> {
    let read = |name: &str| std::fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok();
    let number = |name: &str| read(name)?.trim().parse::<usize>().ok();
    let (limit, used) = (number("memory.max")?, number("memory.current")?);
    Some(limit.saturating_sub(used.saturating_sub(file_pages(&read("memory.stat")?))))
}

/// Bytes of a control group that hold copies of files: the system takes them back when memory is wanted.
fn file_pages(statistics: &str) -> usize {
    statistics
        .lines()
        .filter_map(|line| line.strip_prefix("inactive_file ").or_else(|| line.strip_prefix("active_file ")))
        .filter_map(|bytes| bytes.parse::<usize>().ok())
        .sum()
}

/// Copies bytes to an unstrided view.
pub(crate) fn write(to: ViewMut<'_>, bytes: &[u8]) {
    let mut rows = RowsMut::bytes(to);
    let width = rows.width();
    assert!(rows.rows() * width == bytes.len(), "{} bytes for {} rows of {width}", bytes.len(), rows.rows());
    for (index, row) in bytes.chunks_exact(width.max(1)).enumerate() {
        rows.row(index).copy_from_slice(row);
    }
}

/// Copies an unstrided view to bytes.
pub(crate) fn read(from: View<'_>, bytes: &mut [u8]) {
    let rows = Rows::bytes(from);
    let width = rows.width();
    assert!(rows.rows() * width == bytes.len(), "{} bytes for {} rows of {width}", bytes.len(), rows.rows());
    for (index, row) in bytes.chunks_exact_mut(width.max(1)).enumerate() {
        row.copy_from_slice(rows.row(index));
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_the_system_says_is_read() {
        assert_eq!(super::file_pages("anon 5\ninactive_file 30\nactive_file 12\n"), 42);
        let text = "MemTotal:       24000000 kB\nMemAvailable:   20000000 kB\n";
        assert_eq!(super::available_in_meminfo(text), Some(20_480_000_000));
        assert_eq!(super::available_in_meminfo("nothing"), None);
    }
}
