//! The end of ranks that use each other's memory: none gives its own back before all have let go.
//!
//! A rank that is lost ends before the others do. Their devices may be in the midst of writing to it, and go on until they
//! hear of its end.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// How many ranks have not let go.
#[derive(Debug)]
struct Holders {
    count: Mutex<usize>,
    none: Condvar,
}

/// One rank's hold on the others' memory. Dropping it lets go, too, for ranks that never used any.
#[derive(Debug)]
pub(crate) struct Hold {
    holders: Arc<Holders>,
}

/// A hold for each of `count` ranks.
pub(crate) fn holds(count: usize) -> Vec<Hold> {
    let holders = Arc::new(Holders { count: Mutex::new(count), none: Condvar::new() });
    (0..count).map(|_| Hold { holders: Arc::clone(&holders) }).collect()
}

impl Hold {
    /// Lets go, and waits until all the others have.
    pub(crate) fn part(self) {
        let holders = Arc::clone(&self.holders);
        drop(self);
        let count = holders.count.lock().unwrap_or_else(PoisonError::into_inner);
        let _none =
            holders.none.wait_while(count, |count| 0 < *count).unwrap_or_else(PoisonError::into_inner);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut count = self.holders.count.lock().unwrap_or_else(PoisonError::into_inner);
        *count -= 1;
        if *count == 0 {
            self.holders.none.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::holds;

    #[test]
    fn nobody_goes_before_all_have_let_go() {
        const RANKS: usize = 4;
        for _ in 0..200 {
            let used = AtomicUsize::new(RANKS);
            std::thread::scope(|scope| {
                for (rank, hold) in holds(RANKS).into_iter().enumerate() {
                    let used = &used;
                    scope.spawn(move || {
                        used.fetch_sub(1, Ordering::SeqCst);
                        // One was never made, and has nothing to give back.
                        if rank == 1 {
                            return drop(hold);
                        }
                        hold.part();
                        assert_eq!(
                            used.load(Ordering::SeqCst),
                            0,
                            "memory is given back while a rank uses it"
                        );
                    });
                }
            });
        }
    }
}
