//! Lives of a scheduler, each from one seed: whatever is submitted, aborted, shared, evicted, preempted and
//! pipelined, every sequence gets what it would have got alone, and the pool's books are right after each step.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "Clippy sees tests only in functions marked so")]

mod executor;
mod random;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use phalanx_scheduler::{Sabotage, Stats};
use world::{Plan, Summary, World};

const STEPS_A_LIFE: u64 = 500;

/// One life; a failure names its seed.
fn live(seed: u64, plan: Plan) -> Summary {
    match catch_unwind(AssertUnwindSafe(|| World::new(seed, plan).live(STEPS_A_LIFE))) {
        Ok(summary) => summary,
        Err(panic) => {
            println!("the life of seed {seed} failed: call live({seed}, …) alone to see it again");
            resume_unwind(panic)
        }
    }
}

#[test]
fn a_million_steps_keep_every_invariant() {
    let plan = Plan { aborts: true, check: true, ..Plan::default() };
    let mut total = Stats::default();
    let mut sequences = 0;
    for seed in 0.. {
        let summary = live(seed, plan);
        sequences += summary.sequences;
        total.steps += summary.stats.steps;
        total.computed_tokens += summary.stats.computed_tokens;
        total.preemptions += summary.stats.preemptions;
        total.prefix_hits += summary.stats.prefix_hits;
        total.copied_blocks += summary.stats.copied_blocks;
        if 1_000_000 <= total.steps {
            println!("{} lives, {sequences} sequences, {total:?}", seed + 1);
            break;
        }
    }
    // A simulation that never gets into trouble proves nothing.
    assert!(5_000 < total.preemptions, "only {} preemptions", total.preemptions);
    assert!(10_000 < total.copied_blocks, "only {} copies", total.copied_blocks);
    assert!(100_000 < total.prefix_hits, "only {} cached tokens", total.prefix_hits);
}

#[test]
fn the_prefix_cache_changes_no_output() {
    for seed in 0..100 {
        let plan = |prefix_cache| Plan { prefix_cache: Some(prefix_cache), ..Plan::default() };
        let with = live(seed, plan(true));
        let without = live(seed, plan(false));
        // Arrivals follow the steps taken, so one life may have room for more sequences than the other.
        for (id, (with, without)) in with.outputs.iter().zip(&without.outputs).enumerate() {
            assert_eq!(with, without, "seed {seed}: sequence {id} differs with the prefix cache on");
        }
    }
}

#[test]
fn planted_bugs_are_found() {
    let bugs = [Sabotage::NoCopyOnWrite, Sabotage::UncountedHolder, Sabotage::StaleName, Sabotage::EarlyName];
    // By what sequences read and put out alone, and again with the books open.
    for (bug, check) in bugs.into_iter().flat_map(|bug| [(bug, false), (bug, true)]) {
        let plan = Plan { aborts: true, check, sabotage: Some(bug), ..Plan::default() };
        let mut lives = 0..50;
        let found = lives.find(|&seed| catch_unwind(|| World::new(seed, plan).live(STEPS_A_LIFE)).is_err());
        let seed = found.unwrap_or_else(|| panic!("{bug:?} lives through 50 lives, check: {check}"));
        println!("{bug:?} is found in the life of seed {seed}, check: {check}");
    }
}
