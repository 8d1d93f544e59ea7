//! The pool under what a step does to it: many tiny jobs, panics, several pools on few cores.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use phalanx_device::cpu::pool::Pool;

/// Runs a job and says how often each task ran.
fn counts(pool: &Pool, tasks: usize) -> Vec<usize> {
    let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
    pool.run(tasks, &|task| {
        counts[task].fetch_add(1, Ordering::Relaxed);
    });
    counts.into_iter().map(AtomicUsize::into_inner).collect()
}

#[test]
fn every_task_runs_once() {
    for threads in [1, 2, 3, 8] {
        let pool = Pool::new(threads);
        assert_eq!(pool.threads(), threads);
        for tasks in [0, 1, 2, 3, 7, 64, 1000] {
            assert_eq!(counts(&pool, tasks), vec![1; tasks], "{threads} threads");
        }
    }
}

/// What tasks wrote is seen by the caller, job after job, also by jobs that follow each other at once.
#[test]
fn jobs_are_ordered() {
    let pool = Pool::new(4);
    let mut values = vec![0u64; 64];
    for round in 0..20_000 {
        pool.run_chunks(&mut values, 5, &|index, chunk| {
            for (offset, value) in chunk.iter_mut().enumerate() {
                assert_eq!(*value, round * (index * 5 + offset) as u64);
                *value += (index * 5 + offset) as u64;
            }
        });
    }
    assert!(values.iter().enumerate().all(|(index, &value)| value == 20_000 * index as u64));
}

#[test]
fn chunks_cover_the_data_and_the_last_may_be_shorter() {
    let pool = Pool::new(2);
    let mut lengths = vec![0; 23];
    pool.run_chunks(&mut lengths, 10, &|_, chunk| {
        let len = chunk.len();
        chunk.fill(len);
    });
    assert_eq!(lengths, [vec![10; 20], vec![3; 3]].concat());
    pool.run_chunks(&mut Vec::<u8>::new(), 10, &|_, _| unreachable!("there is nothing"));
}

#[test]
fn several_threads_take_part() {
    let pool = Pool::new(3);
    // Each task waits for the others, so one thread alone would never be done.
    let barrier = std::sync::Barrier::new(3);
    let names = Mutex::new(Vec::new());
    pool.run(3, &|_| {
        barrier.wait();
        names.lock().unwrap().push(std::thread::current().id());
    });
    let mut names = names.into_inner().unwrap();
    names.dedup();
    assert_eq!(names.len(), 3);
}

#[test]
fn a_panic_comes_out_of_run_and_the_pool_lives_on() {
    let pool = Pool::new(3);
    for bad in [0, 1, 17, 99] {
        let result = catch_unwind(AssertUnwindSafe(|| {
            pool.run(100, &|task| assert!(task != bad, "task {task} is bad"));
        }));
        let payload = result.unwrap_err();
        assert_eq!(payload.downcast_ref::<String>().unwrap(), &format!("task {bad} is bad"));
        assert_eq!(counts(&pool, 50), vec![1; 50]);
    }
    let all = catch_unwind(AssertUnwindSafe(|| pool.run(8, &|_| panic!("all"))));
    assert_eq!(all.unwrap_err().downcast_ref::<&str>(), Some(&"all"));
    assert_eq!(counts(&pool, 50), vec![1; 50]);
}

/// Eight ranks of one process on few cores, each with workers of its own.
#[test]
fn pools_share_cores() {
    let total = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let pool = Pool::new(3);
                for _ in 0..300 {
                    pool.run(6, &|_| {
                        total.fetch_add(1, Ordering::Relaxed);
                    });
                }
            });
        }
    });
    assert_eq!(total.into_inner(), 8 * 300 * 6);
}

/// Workers sleep between jobs that are far apart, and wake for the next; and a pool that sleeps can be dropped.
#[test]
fn sleeping_workers_wake() {
    let pool = Pool::new(3);
    for _ in 0..20 {
        // Long enough that workers give up waiting, without a clock: other pools come and go meanwhile.
        for _ in 0..10 {
            drop(Pool::new(2));
        }
        let barrier = std::sync::Barrier::new(3);
        pool.run(3, &|_| {
            barrier.wait();
        });
    }
}

/// A pool can move to the thread that will own it.
#[test]
fn a_pool_moves_between_threads() {
    let pool = Pool::new(2);
    let pool = std::thread::spawn(move || {
        assert_eq!(counts(&pool, 10), vec![1; 10]);
        pool
    });
    assert_eq!(counts(&pool.join().unwrap(), 10), vec![1; 10]);
}

#[test]
#[should_panic(expected = "the caller is a thread, too")]
fn no_threads_is_a_programmers_error() {
    drop(Pool::new(0));
}
