//! Requests over several engines: where they are known, never where nothing moves.

use std::time::Duration;

use phalanx_engine::{EngineHandle, Request, Router, Usage};

use crate::fake::{BREAK, Fake, complete, options, request, say, start};

fn free_running() -> EngineHandle {
    start(options(), Fake::free_running(1))
}

fn answered(router: &Router, request: Request) -> Usage {
    let stream = router.submit(request).expect("an engine takes it");
    complete(stream).expect("it is answered").1
}

fn routed(engines: &[EngineHandle]) -> Vec<u64> {
    engines.iter().map(|engine| engine.metrics().routed_requests).collect()
}

#[test]
fn a_conversation_comes_back_to_the_engine_that_knows_it() {
    let engines = [free_running(), free_running(), free_running()];
    let router = Router::new(engines.to_vec());
    let mut talks = ["first talk: ", "another one, ", "and a third: "].map(str::to_owned);
    for turn in 0..4 {
        for talk in &mut talks {
            // The answer is the prompt again; the next prompt is both and a question.
            let usage = answered(&router, Request { max_new_tokens: Some(4), ..say(talk) });
            assert_eq!(0 < turn, 0 < usage.cached_tokens, "turn {turn}: {talk}");
            talk.push_str("more words. ");
        }
    }
    assert_eq!(routed(&engines), [4, 4, 4]);
    let spared: Vec<u64> = engines.iter().map(|engine| engine.metrics().prefix_routed_tokens).collect();
    // Blocks of four tokens: all full ones of the turn before.
    assert!(spared.iter().all(|spared| (60..=84).contains(spared)), "{spared:?}");
}

#[test]
fn a_burst_over_one_beginning_goes_where_it_is_known_until_work_outweighs_it() {
    let (executor, gate) = Fake::gated(1);
    let engines = [start(options(), executor), free_running()];
    let router = Router::new(engines.to_vec());
    let shared = "what all begin with, and it is rather long: ".repeat(2);
    let asks = |question: &str| Request { max_new_tokens: Some(8), ..say(&format!("{shared}{question}")) };
    // 88 tokens are two steps, the second of which has the answer.
    let first = router.submit(Request { max_new_tokens: Some(1), ..say(&shared) }).unwrap();
    gate.permit(2);
    complete(first).unwrap();
    assert_eq!(routed(&engines), [1, 0]);
    // From here on the first engine computes nothing. Each costs it its last tokens and an answer.
    let burst = [router.submit(asks("one")).unwrap(), router.submit(asks("two")).unwrap()];
    assert_eq!(routed(&engines), [3, 0]);
    assert!((1..=2 * (8 + 7)).contains(&engines[0].outstanding_tokens()), "{engines:?}");
    // Work that nobody spares it: now the other one is done earlier.
    let other = engines[0].submit(Request { max_new_tokens: Some(8), ..say(&"x".repeat(100)) }).unwrap();
    let moved = router.submit(asks("three")).unwrap();
    assert_eq!(routed(&engines), [3, 1]);
    gate.permit(1000);
    burst.into_iter().chain([other, moved]).for_each(|stream| drop(complete(stream).unwrap()));
    assert_eq!(engines.map(|engine| engine.outstanding_tokens()), [0, 0]);
}

#[test]
fn another_salt_is_another_conversation() {
    let engines = [free_running(), free_running()];
    let router = Router::new(engines.to_vec());
    let salted = |salt: &str| Request { cache_salt: Some(salt.to_owned()), ..say("the same long words") };
    assert_eq!(answered(&router, salted("a")).cached_tokens, 0);
    assert_eq!(answered(&router, salted("b")).cached_tokens, 0);
    assert_eq!(routed(&engines), [1, 1], "nothing speaks for the first");
    assert!(0 < answered(&router, salted("a")).cached_tokens);
    assert!(0 < answered(&router, salted("b")).cached_tokens);
    assert_eq!(routed(&engines), [2, 2]);
}

#[test]
fn engines_without_a_prefix_cache_are_not_thought_to_know_anything() {
    let plain = || {
        let mut options = options();
        options.scheduler.prefix_cache = false;
        start(options, Fake::free_running(1))
    };
    let engines = [plain(), plain()];
    let router = Router::new(engines.to_vec());
    for _ in 0..4 {
        answered(&router, say("the same long words"));
    }
    assert_eq!(routed(&engines), [2, 2]);
    assert_eq!(engines[0].metrics().prefix_routed_tokens, 0);
}

#[test]
fn a_stuck_engine_is_passed_over_and_a_dead_one_loses_nothing() {
    let (executor, gate) = Fake::gated(1);
    let (stuck, other) = (start(options(), executor), free_running());
    let router = Router::new(vec![stuck.clone(), other.clone()]).stuck_after(Duration::ZERO);
    let first = router.submit(say("what both are asked")).unwrap();
    // Its step is out and does not come back.
    gate.next_step();
    for _ in 0..5 {
        answered(&router, say("what both are asked"));
    }
    assert_eq!((stuck.metrics().routed_requests, other.metrics().routed_requests), (1, 5));
    // With the other one dead it is the only one left, and what it is given is answered when it moves again.
    complete(other.submit(request(&[BREAK])).unwrap()).unwrap_err();
    let late = router.submit(say("what both are asked")).unwrap();
    gate.permit(1000);
    complete(first).unwrap();
    complete(late).unwrap();
    assert_eq!(stuck.metrics().routed_requests, 2);
}
