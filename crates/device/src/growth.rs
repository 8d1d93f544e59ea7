//! What a rank allocates while it serves: everything is sized before, so this tells what was sized too small.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Counts one rank's allocations, on its device and of host memory that its device copies from, from
/// [`Growth::start_counting`] on. What the driver allocates on its own account (graphs, code) is not seen.
#[derive(Debug, Default)]
pub struct Growth {
    counting: AtomicBool,
    allocations: AtomicU64,
    bytes: AtomicU64,
}

impl Growth {
    /// From now on everything should have its room.
    pub fn start_counting(&self) {
        self.counting.store(true, Ordering::Relaxed);
    }

    /// How many allocations there were.
    #[must_use]
    pub fn allocations(&self) -> u64 {
        self.allocations.load(Ordering::Relaxed)
    }

    /// Their bytes, together.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Counts an allocation; false before anything is counted.
    #[allow(dead_code, reason = "the CPU allocates as it goes")]
    pub(crate) fn add(&self, bytes: usize) -> bool {
        let counting = self.counting.load(Ordering::Relaxed);
        if counting {
            self.allocations.fetch_add(1, Ordering::Relaxed);
            self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        counting
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sized_before_serving_is_not_counted() {
        let growth = Growth::default();
        assert!(!growth.add(4096));
        growth.start_counting();
        assert!(growth.add(100) && growth.add(28));
        assert_eq!((growth.allocations(), growth.bytes()), (2, 128));
    }
}
