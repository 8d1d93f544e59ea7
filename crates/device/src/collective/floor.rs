//! Where groups whose ranks share devices wait for each other: of all of them, one at a time has work that waits on a device.
//!
//! Work of one group that waits on a device can hold up what another group's rank does there, and the other way round on the
//! next device; then neither is over before its deadline.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// One for all groups of a process that share devices.
#[derive(Debug, Default)]
pub struct Floor {
    groups: AtomicUsize,
    holder: Mutex<Holder>,
    left: Condvar,
}

/// The group that has the floor, and how many of its ranks are on it; nobody has it when there are none.
#[derive(Debug, Default)]
struct Holder {
    group: usize,
    ranks: usize,
}

impl Floor {
    /// A group's number.
    pub fn register(&self) -> usize {
        self.groups.fetch_add(1, Ordering::Relaxed)
    }

    /// A rank of `group` waits until no other group has the floor; the ranks of one group come to it together. False when
    /// it is not free within `deadline`: a rank was lost on it.
    #[must_use]
    pub fn enter(&self, group: usize, deadline: Duration) -> bool {
        let taken = |holder: &mut Holder| 0 < holder.ranks && holder.group != group;
        let waited = self.left.wait_timeout_while(self.lock(), deadline, taken);
        let (mut holder, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            return false;
        }
        *holder = Holder { group, ranks: holder.ranks + 1 };
        true
    }

    /// Leaves the floor.
    pub fn leave(&self) {
        let mut holder = self.lock();
        holder.ranks -= 1;
        if holder.ranks == 0 {
            self.left.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Holder> {
        self.holder.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_group_at_a_time_has_the_floor() {
        let (floor, on_it) = (Floor::default(), [AtomicUsize::new(0), AtomicUsize::new(0)]);
        let groups = [floor.register(), floor.register()];
        std::thread::scope(|scope| {
            for rank in 0..4 {
                let (floor, on_it, group) = (&floor, &on_it, groups[rank % 2]);
                scope.spawn(move || {
                    for _ in 0..500 {
                        assert!(floor.enter(group, Duration::from_secs(60)));
                        on_it[group].fetch_add(1, Ordering::SeqCst);
                        assert_eq!(
                            on_it[1 - group].load(Ordering::SeqCst),
                            0,
                            "both groups are on the floor"
                        );
                        on_it[group].fetch_sub(1, Ordering::SeqCst);
                        floor.leave();
                    }
                });
            }
        });
    }

    #[test]
    fn a_rank_that_is_lost_on_the_floor_does_not_hold_up_others_for_ever() {
        let floor = Floor::default();
        let (lost, other) = (floor.register(), floor.register());
        assert!(floor.enter(lost, Duration::ZERO));
        assert!(floor.enter(lost, Duration::ZERO), "the ranks of a group come together");
        assert!(!floor.enter(other, Duration::from_millis(1)));
    }
}
