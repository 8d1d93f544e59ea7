//! What the door may pass on, and what is refused before it becomes an index, a size or a loop bound.

use phalanx_engine::{Request, RequestError};

use crate::fake::{Fake, VOCAB, complete, options, request, say, start};

fn base() -> Request {
    say("a prompt")
}

fn with(change: impl FnOnce(&mut Request)) -> Request {
    let mut request = base();
    change(&mut request);
    request
}

#[test]
fn values_out_of_range_are_refused_by_name() {
    let engine = start(options(), Fake::free_running(1));
    let beyond = VOCAB as u32;
    let cases = [
        ("prompt", request(&[])),
        ("prompt", request(&[1, beyond])),
        ("prompt", request(&[u32::MAX])),
        ("n", with(|r| r.n = 0)),
        ("n", with(|r| r.n = 129)),
        ("n", with(|r| r.n = usize::MAX)),
        ("max_tokens", with(|r| r.max_new_tokens = Some(0))),
        ("temperature", with(|r| r.sampling.temperature = -0.1)),
        ("temperature", with(|r| r.sampling.temperature = 100.1)),
        ("temperature", with(|r| r.sampling.temperature = f32::NAN)),
        ("temperature", with(|r| r.sampling.temperature = f32::INFINITY)),
        ("top_p", with(|r| r.sampling.top_p = 0.0)),
        ("top_p", with(|r| r.sampling.top_p = 1.1)),
        ("top_p", with(|r| r.sampling.top_p = f32::NAN)),
        ("min_p", with(|r| r.sampling.min_p = -0.1)),
        ("min_p", with(|r| r.sampling.min_p = 1.5)),
        ("repetition_penalty", with(|r| r.sampling.repetition_penalty = 0.0)),
        ("repetition_penalty", with(|r| r.sampling.repetition_penalty = f32::INFINITY)),
        ("presence_penalty", with(|r| r.sampling.presence_penalty = 2.5)),
        ("frequency_penalty", with(|r| r.sampling.frequency_penalty = f32::NEG_INFINITY)),
        ("logit_bias", with(|r| r.sampling.logit_bias = vec![(beyond, 1.0)])),
        ("logit_bias", with(|r| r.sampling.logit_bias = vec![(1, 101.0)])),
        ("logit_bias", with(|r| r.sampling.logit_bias = vec![(1, f32::NAN)])),
        ("logit_bias", with(|r| r.sampling.logit_bias = vec![(1, 1.0); 4097])),
        ("logprobs", with(|r| r.sampling.logprobs = Some(21))),
        ("stop", with(|r| r.stop.strings = vec![String::new()])),
        ("stop", with(|r| r.stop.strings = vec!["x".repeat(1025)])),
        ("stop", with(|r| r.stop.strings = vec!["x".to_owned(); 17])),
        ("stop_token_ids", with(|r| r.stop.token_ids = vec![beyond])),
        ("stop_token_ids", with(|r| r.stop.token_ids = vec![1; 129])),
        ("min_tokens", with(|r| (r.stop.min_tokens, r.max_new_tokens) = (6, Some(5)))),
        ("min_tokens", with(|r| r.stop.min_tokens = usize::MAX)),
        ("cache_salt", with(|r| r.cache_salt = Some("x".repeat(1025)))),
    ];
    let count = cases.len() as u64;
    for (expected, request) in cases {
        match engine.submit(request) {
            Err(RequestError::Invalid { field, message }) => {
                assert_eq!(field, expected, "{message}");
                assert!(message.contains(field), "{message}");
            }
            other => panic!("{expected}: {other:?}"),
        }
    }
    assert_eq!(engine.metrics().rejected_invalid, count);
    assert_eq!(engine.metrics().live_requests, 0);
}

#[test]
fn a_count_is_told_with_what_is_counted() {
    let engine = start(options(), Fake::free_running(1));
    for (request, expected) in [
        (
            with(|r| r.stop.strings = vec!["x".repeat(1025)]),
            "stop has 1025 bytes in one string: at most 1024",
        ),
        (with(|r| r.stop.strings = vec!["x".to_owned(); 17]), "stop has 17 strings: at most 16"),
        (with(|r| r.cache_salt = Some("x".repeat(1025))), "cache_salt has 1025 bytes: at most 1024"),
    ] {
        let message = engine.submit(request).expect_err(expected).to_string();
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn what_does_not_fit_the_context_is_refused_in_the_known_words() {
    let engine = start(options(), Fake::free_running(1));
    let full = vec![1; 128];
    let cases = [
        (request(&full), "your prompt has 128 tokens"),
        (Request { max_new_tokens: Some(29), ..request(&full[..100]) }, "you requested 129 tokens"),
        (Request { max_new_tokens: Some(usize::MAX), ..base() }, "18446744073709551615 in the completion"),
    ];
    for (request, words) in cases {
        match engine.submit(request) {
            Err(RequestError::ContextLength { message }) => {
                assert!(
                    message.starts_with("This model's maximum context length is 128 tokens."),
                    "{message}"
                );
                assert!(message.contains(words), "{message}");
            }
            other => panic!("{words}: {other:?}"),
        }
    }
}

#[test]
fn the_ends_of_every_range_are_served() {
    let engine = start(options(), Fake::free_running(1));
    let last = VOCAB as u32 - 1;
    let cases = [
        request(&[1; 127]),
        request(&[last]),
        with(|r| (r.n, r.max_new_tokens) = (128, Some(1))),
        with(|r| r.max_new_tokens = Some(120)),
        with(|r| r.sampling.temperature = 0.0),
        with(|r| r.sampling.temperature = 100.0),
        with(|r| r.sampling.temperature = f32::MIN_POSITIVE),
        with(|r| r.sampling.top_k = i64::MIN),
        with(|r| r.sampling.top_k = i64::MAX),
        with(|r| (r.sampling.top_p, r.sampling.min_p) = (f32::MIN_POSITIVE, 1.0)),
        with(|r| (r.sampling.presence_penalty, r.sampling.frequency_penalty) = (-2.0, 2.0)),
        with(|r| r.sampling.logit_bias = vec![(last, -100.0), (0, 100.0)]),
        with(|r| r.sampling.logprobs = Some(20)),
        with(|r| r.sampling.seed = Some(i64::MIN)),
        with(|r| r.stop.strings = vec!["x".repeat(1024); 16]),
        with(|r| (r.stop.min_tokens, r.max_new_tokens) = (5, Some(5))),
    ];
    for request in cases {
        complete(engine.submit(request).unwrap()).unwrap();
    }
}
