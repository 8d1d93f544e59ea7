//! Many requests at once, in pools too small for them.

use phalanx_engine::Request;

use crate::fake::{Fake, complete, options, request, say, start, text_of};

/// Permits for every step a test of this file can need.
const MORE_THAN_ENOUGH: usize = 100_000;

/// A prompt and answer of `len` letters; many begin alike.
fn letters(random: &mut fastrand::Rng, len: usize) -> String {
    let beginning = "the same beginning ".chars().cycle();
    let shared = random.usize(..=len);
    beginning.take(shared).chain((shared..len).map(|_| random.lowercase())).collect()
}

#[test]
fn sixty_four_requests_of_mixed_length_all_complete() {
    for (depth, num_blocks) in [(1, 32), (1, 40), (2, 64)] {
        let mut options = options();
        options.scheduler.num_blocks = num_blocks;
        options.scheduler.stages = depth;
        let (executor, gate) = Fake::gated(depth);
        let engine = start(options, executor);
        let mut random = fastrand::Rng::with_seed(64);
        let submit = |index: usize| {
            let len = random.usize(1..=60);
            let text = letters(&mut random, len);
            let request = Request { n: 1 + index % 3, priority: (index % 2) as i32, ..say(&text) };
            (text, request.n, engine.submit(request).unwrap())
        };
        let streams: Vec<_> = (0..64).map(submit).collect();
        gate.permit(MORE_THAN_ENOUGH);
        let mut preemptions = 0;
        for (text, n, stream) in streams {
            let (deltas, usage) = complete(stream).unwrap();
            for index in 0..n {
                assert_eq!(text_of(&deltas, index), text);
            }
            assert_eq!(usage.completion_tokens, n * (text.len() + 1));
            preemptions += usage.preemptions;
        }
        let figures = engine.metrics();
        assert_eq!((figures.scheduler.used_blocks, figures.scheduler.running), (0, 0));
        assert_eq!((figures.live_requests, figures.queued_requests), (0, 0));
        assert_eq!(figures.e2e_latency.count(), 64);
        let counted = figures.scheduler.preemptions as usize;
        assert!(0 < preemptions && preemptions <= counted, "{preemptions} of {counted} preemptions");
    }
}

#[test]
fn two_hundred_random_disconnects_leave_no_blocks() {
    for seed in 0..4 {
        let mut options = options();
        options.scheduler.num_blocks = 48;
        let (executor, gate) = Fake::gated(1);
        let engine = start(options, executor);
        let mut random = fastrand::Rng::with_seed(seed);
        let mut streams = Vec::new();
        // Some leave before anything is computed.
        for _ in 0..10 {
            drop(engine.submit(say("gone already")).unwrap());
        }
        gate.permit(MORE_THAN_ENOUGH);
        for _ in 0..190 {
            let len = random.usize(1..=50);
            let text = letters(&mut random, len);
            let request = Request { n: random.usize(1..=3), ..say(&text) };
            streams.push((engine.submit(request).unwrap(), random.usize(0..40)));
            if random.bool() {
                // This one leaves after so many events, or when it has seen all.
                let (stream, events) = streams.swap_remove(random.usize(..streams.len()));
                stream.blocking().take(events).for_each(drop);
            }
        }
        drop(streams);
        // Whoever comes after them finds the engine empty: commands are read in order.
        complete(engine.submit(request(&[1])).unwrap()).unwrap();
        let figures = engine.metrics();
        assert_eq!((figures.scheduler.used_blocks, figures.scheduler.running), (0, 0), "seed {seed}");
        assert_eq!((figures.scheduler.waiting, figures.live_requests), (0, 0), "seed {seed}");
        assert_eq!((figures.queued_requests, engine.outstanding_tokens()), (0, 0), "seed {seed}");
        assert!(10 <= figures.finished.abort, "seed {seed}: those who left before the first step");
    }
}
