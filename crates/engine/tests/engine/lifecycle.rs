//! Leaving, overload, shutdown and death: nobody waits for what will not come, and nothing is left behind.

use std::time::Duration;

use phalanx_engine::{EngineHandle, EngineOptions, Event, Lifecycle, Request, RequestError, Router, Stop};

use crate::fake::{BREAK, Fake, Gate, PANIC, complete, options, request, say, start, text_of};

fn gated(depth: usize) -> (EngineHandle, Gate) {
    let (executor, gate) = Fake::gated(depth);
    (start(options(), executor), gate)
}

#[test]
fn a_dropped_stream_frees_its_blocks_within_one_step() {
    for depth in [1, 2] {
        let (engine, gate) = gated(depth);
        let mut events = engine.submit(Request { n: 2, ..say("a long prompt") }).unwrap().blocking();
        gate.next_step();
        gate.permit(1);
        assert!(matches!(events.next(), Some(Event::Delta(_))));
        // Now as many steps are in flight as there may be, and the loop waits.
        (0..depth).for_each(|_| assert!(!gate.next_step().chunks.is_empty()));
        assert!(0 < engine.metrics().scheduler.used_blocks);
        drop(events);
        gate.permit(depth);
        // Of what comes after them nothing is left but to tell the workers.
        let next = gate.next_step();
        assert_eq!((next.chunks.len(), next.finished.len()), (0, 2));
        let figures = engine.metrics();
        assert_eq!((figures.scheduler.used_blocks, figures.live_requests), (0, 0));
        assert_eq!(figures.finished.abort, 2);
    }
}

#[test]
fn a_stop_string_frees_its_blocks_at_once() {
    let (engine, gate) = gated(1);
    let stop = Stop { strings: vec!["stop".to_owned()], ..Stop::default() };
    let stream = engine.submit(Request { stop, ..say("stop, though there is more to say") }).unwrap();
    gate.permit(4);
    let (deltas, _) = complete(stream).unwrap();
    assert_eq!(text_of(&deltas, 0), "");
    assert_eq!(engine.metrics().scheduler.used_blocks, 0);
    // Four steps computed something; the fifth only says that the sequence is over.
    (0..4).for_each(|_| assert_eq!(gate.next_step().chunks.len(), 1));
    assert_eq!(gate.next_step().chunks.len(), 0);
}

#[test]
fn a_dropped_stream_leaves_the_queue() {
    let (executor, gate) = Fake::gated(1);
    let mut options = options();
    options.scheduler.max_sequences = 1;
    options.max_queue = 2;
    let engine = start(options, executor);
    let running = engine.submit(say("running")).unwrap();
    gate.next_step();
    let queued = [engine.submit(say("first")).unwrap(), engine.submit(say("second")).unwrap()];
    let refused = engine.submit(say("third"));
    assert!(matches!(refused, Err(RequestError::Overloaded(_))), "{refused:?}");
    let [first, second] = queued;
    drop(first);
    gate.permit(1);
    gate.next_step();
    let third = engine.submit(say("third")).unwrap();
    gate.permit(100);
    for (stream, text) in [(running, "running"), (second, "second"), (third, "third")] {
        assert_eq!(text_of(&complete(stream).unwrap().0, 0), text);
    }
    let figures = engine.metrics();
    assert_eq!((figures.rejected_overloaded, figures.queued_requests, figures.live_requests), (1, 0, 0));
    assert_eq!(engine.outstanding_tokens(), 0);
}

#[test]
fn a_lost_executor_fails_every_request_and_those_to_come() {
    for (marker, reason) in [(BREAK, "rank 1 is lost"), (PANIC, "the executor panics")] {
        let (engine, gate) = gated(1);
        let well = engine.submit(Request { n: 3, ..say("hello hello hello hello") }).unwrap();
        let ill = engine.submit(request(&[u32::from(b'a'), marker])).unwrap();
        gate.permit(100);
        for stream in [ill, well] {
            match complete(stream) {
                Err(RequestError::EngineGone(text)) => assert!(text.contains(reason), "{text}"),
                other => panic!("{other:?}"),
            }
        }
        let late = engine.submit(say("too late"));
        assert!(matches!(&late, Err(RequestError::EngineGone(text)) if text.contains(reason)), "{late:?}");
        let health = engine.health();
        assert!(!health.alive());
        assert!(matches!(health.lifecycle, Lifecycle::Dead(_)));
        assert!(engine.shutdown(Duration::ZERO), "a dead engine is down");
        assert_eq!((engine.metrics().live_requests, engine.outstanding_tokens()), (0, 0));
    }
}

/// The next step is submitted before callers hear of the last one: should that fail, they hear of both.
#[test]
fn what_the_last_step_completed_is_told_when_the_next_one_breaks() {
    let (mut executor, gate) = Fake::gated(1);
    executor.broken_step = Some(3);
    let engine = start(options(), executor);
    let short = engine.submit(say("a")).unwrap();
    let long = engine.submit(say("hello")).unwrap();
    gate.permit(100);
    assert_eq!(text_of(&complete(short).unwrap().0, 0), "a");
    match complete(long) {
        Err(RequestError::EngineGone(text)) => assert!(text.contains("the executor panics"), "{text}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn shutdown_completes_what_runs_and_takes_no_more() {
    let (engine, gate) = gated(1);
    let streams = ["one", "two", "three"].map(|text| (text, engine.submit(say(text)).unwrap()));
    gate.next_step();
    let stopping = engine.clone();
    let shutdown = std::thread::spawn(move || stopping.shutdown(Duration::from_secs(3600)));
    while engine.health().lifecycle == Lifecycle::Running {
        std::thread::yield_now();
    }
    let late = engine.submit(say("late"));
    assert_eq!(late.unwrap_err(), RequestError::EngineGone("the server is shutting down".to_owned()));
    assert!(engine.health().alive());
    gate.permit(100);
    for (text, stream) in streams {
        assert_eq!(text_of(&complete(stream).unwrap().0, 0), text);
    }
    assert!(shutdown.join().unwrap());
    assert_eq!(engine.health().lifecycle, Lifecycle::Stopped);
    gate.wait_for_drop();
}

#[test]
fn shutdown_without_grace_fails_what_runs() {
    let (engine, gate) = gated(1);
    let stream = engine.submit(say("never completed")).unwrap();
    gate.next_step();
    gate.permit(100);
    let stopped = engine.shutdown(Duration::ZERO);
    assert!(stopped);
    match complete(stream) {
        Err(RequestError::EngineGone(text)) => assert_eq!(text, "the server is shutting down"),
        // The race is open: the answer is short, and permits are there for all of it.
        Ok((deltas, _)) => assert_eq!(text_of(&deltas, 0), "never completed"),
        other => panic!("{other:?}"),
    }
    gate.wait_for_drop();
}

#[test]
fn an_engine_nobody_holds_ends() {
    let (engine, gate) = gated(1);
    let stream = engine.submit(say("hello")).unwrap();
    gate.permit(100);
    drop(engine);
    assert_eq!(text_of(&complete(stream).unwrap().0, 0), "hello");
    gate.wait_for_drop();
}

#[test]
fn the_router_takes_the_engine_with_the_fewest_tokens_outstanding() {
    let (first, first_gate) = gated(1);
    let (second, second_gate) = gated(1);
    let router = Router::new(vec![first.clone(), second.clone()]);
    let short = |text: &str| Request { max_new_tokens: Some(10), ..say(text) };
    let streams = [
        router.submit(say("a request of many tokens")).unwrap(),
        router.submit(short("a")).unwrap(),
        router.submit(short("b")).unwrap(),
    ];
    assert_eq!((first.metrics().live_requests, second.metrics().live_requests), (1, 2));
    first_gate.permit(1000);
    second_gate.permit(1000);
    for stream in streams {
        complete(stream).unwrap();
    }
    // An engine that died has nothing outstanding, and yet gets nothing.
    let _error = complete(first.submit(request(&[BREAK])).unwrap()).unwrap_err();
    assert!(router.alive());
    assert_eq!(text_of(&complete(router.submit(short("still")).unwrap()).unwrap().0, 0), "still");
    assert!(router.shutdown(Duration::from_secs(60)));
    assert!(!router.alive());
    assert!(matches!(router.submit(short("late")), Err(RequestError::EngineGone(_))));
}

#[test]
fn only_a_request_that_no_engine_takes_is_counted_as_refused() {
    let running = |request: Request| {
        let (executor, gate) = Fake::gated(1);
        let engine = start(EngineOptions { max_queue: 1, ..options() }, executor);
        let stream = engine.submit(request).unwrap();
        gate.next_step();
        (engine, gate, stream)
    };
    let short = || Request { max_new_tokens: Some(1), ..say("b") };
    let (first, _first_gate, _first_stream) = running(short());
    let (second, _second_gate, _second_stream) = running(say("as long as the context lasts"));
    let router = Router::new(vec![first.clone(), second.clone()]);
    let refusals = || (first.metrics().rejected_overloaded, second.metrics().rejected_overloaded);
    // The first is asked first, as long as it has less to do.
    let _in_first = router.submit(short()).unwrap();
    let _in_second = router.submit(short()).unwrap();
    assert_eq!((first.metrics().queued_requests, second.metrics().queued_requests), (1, 1));
    assert_eq!(refusals(), (0, 0), "the request that the first had no room for was accepted");
    assert!(matches!(router.submit(short()), Err(RequestError::Overloaded(_))));
    assert_eq!(refusals(), (0, 1));
}
