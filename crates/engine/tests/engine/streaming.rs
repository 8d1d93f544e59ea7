//! What a caller reads: text in order, cut where it should be, with its usage.

use phalanx_engine::{Finish, Request, RequestError, Stop};

use crate::fake::{END, Fake, NOT_FINITE, OTHER_END, SEED, complete, options, request, say, start, text_of};

#[test]
fn tokens_arrive_one_by_one_and_end_with_usage() {
    let engine = start(options(), Fake::free_running(1));
    let (deltas, usage) = complete(engine.submit(say("hello")).unwrap()).unwrap();
    let tokens: Vec<Vec<u32>> = deltas.iter().map(|delta| delta.tokens.clone()).collect();
    let mut expected: Vec<Vec<u32>> = "hello".bytes().map(|byte| vec![u32::from(byte)]).collect();
    expected.push(vec![END]);
    assert_eq!(tokens, expected);
    let texts: Vec<&str> = deltas.iter().map(|delta| delta.text.as_str()).collect();
    assert_eq!(texts, ["h", "e", "l", "l", "o", ""]);
    let (last, before) = deltas.split_last().unwrap();
    assert!(before.iter().all(|delta| delta.finish.is_none()));
    assert_eq!(last.finish, Some(Finish::EndToken(END)));
    assert_eq!((usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens), (5, 0, 6));
    let timing = usage.timing;
    assert!(0.0 <= timing.queue_seconds && timing.queue_seconds <= timing.first_token_seconds);
    assert!(timing.first_token_seconds <= timing.total_seconds);
}

#[test]
fn characters_are_never_split() {
    let engine = start(options(), Fake::free_running(1));
    let (deltas, _) = complete(engine.submit(say("é世🦀")).unwrap()).unwrap();
    let texts: Vec<&str> = deltas.iter().map(|delta| delta.text.as_str()).collect();
    assert_eq!(texts, ["", "é", "", "", "世", "", "", "", "🦀", ""]);
}

#[test]
fn a_character_cut_by_the_length_becomes_a_replacement() {
    let engine = start(options(), Fake::free_running(1));
    let (deltas, _) =
        complete(engine.submit(Request { max_new_tokens: Some(3), ..say("a世") }).unwrap()).unwrap();
    assert_eq!(text_of(&deltas, 0), "a\u{fffd}");
    assert_eq!(deltas.last().unwrap().finish, Some(Finish::Length));
}

struct Cut {
    says: &'static str,
    stop: Stop,
    max_new_tokens: Option<usize>,
    text: &'static str,
    finish: Finish,
}

fn stop(strings: &[&str]) -> Stop {
    Stop { strings: strings.iter().map(|&string| string.to_owned()).collect(), ..Stop::default() }
}

fn met(string: &str) -> Finish {
    Finish::StopString(string.to_owned())
}

fn cut(says: &'static str, stop: Stop, text: &'static str, finish: Finish) -> Cut {
    Cut { says, stop, max_new_tokens: None, text, finish }
}

#[test]
fn answers_end_where_they_should() {
    let engine = start(options(), Fake::free_running(1));
    let eos = || Finish::EndToken(END);
    let with_token = Stop { token_ids: vec![u32::from(b'l')], ..Stop::default() };
    let cases = [
        cut("one\n\ntwo", stop(&["\n\n"]), "one", met("\n\n")),
        cut("one\n\ntwo", Stop { include_in_output: true, ..stop(&["\n\n"]) }, "one\n\n", met("\n\n")),
        cut("a user:b", stop(&["user:", "us"]), "a ", met("us")),
        cut("almost use", stop(&["user"]), "almost use", eos()),
        cut("ababac!", stop(&["abac"]), "ab", met("abac")),
        cut("世界。end", stop(&["。"]), "世界", met("。")),
        cut("xx stop stop", Stop { min_tokens: 7, ..stop(&["stop"]) }, "xx stop ", met("stop")),
        cut("hello", with_token, "he", Finish::EndToken(u32::from(b'l'))),
        Cut { max_new_tokens: Some(4), ..cut("hello", stop(&["lo"]), "hell", Finish::Length) },
        Cut { max_new_tokens: Some(5), ..cut("hello", stop(&["lo"]), "hel", met("lo")) },
    ];
    for Cut { says, stop, max_new_tokens, text, finish } in cases {
        let (deltas, usage) =
            complete(engine.submit(Request { stop, max_new_tokens, ..say(says) }).unwrap()).unwrap();
        assert_eq!(text_of(&deltas, 0), text, "{says}");
        assert_eq!(deltas.last().unwrap().finish, Some(finish), "{says}");
        assert_eq!(usage.completion_tokens, deltas.len(), "{says}: a delta a token");
    }
    assert_eq!(engine.metrics().scheduler.used_blocks, 0);
}

#[test]
fn end_tokens_can_be_ignored_and_are_then_text() {
    let engine = start(options(), Fake::free_running(1));
    let prompt = [u32::from(b'a'), OTHER_END, u32::from(b'b')];
    for (skip_special_tokens, text) in [(true, "ab"), (false, "a<|endoftext|>b")] {
        let request = Request { skip_special_tokens, ..request(&prompt) };
        let (deltas, _) = complete(engine.submit(request).unwrap()).unwrap();
        assert_eq!(text_of(&deltas, 0), text);
    }
    let stop = Stop { ignore_eos: true, ..Stop::default() };
    let request = Request { stop, max_new_tokens: Some(5), ..say("ab") };
    let (deltas, _) = complete(engine.submit(request).unwrap()).unwrap();
    assert_eq!(deltas.last().unwrap().finish, Some(Finish::Length));
    assert_eq!(deltas[4].tokens, [END]);
}

#[test]
fn logprobs_come_with_their_tokens() {
    let engine = start(options(), Fake::free_running(1));
    let mut request = say("ab");
    request.sampling.logprobs = Some(1);
    let (deltas, _) = complete(engine.submit(request).unwrap()).unwrap();
    for delta in deltas {
        assert_eq!(delta.logprobs.len(), 1);
        assert_eq!(delta.logprobs[0].chosen, (delta.tokens[0], -0.5));
        assert_eq!(delta.logprobs[0].top, [(delta.tokens[0], -0.5)]);
    }
}

#[test]
fn answers_of_one_request_have_seeds_of_their_own() {
    let engine = start(options(), Fake::free_running(1));
    let prompt = [SEED; 6];
    let tokens_of = |n: usize, seed: Option<i64>| {
        let mut request = Request { n, ..request(&prompt) };
        request.sampling.seed = seed;
        let (deltas, usage) = complete(engine.submit(request).unwrap()).unwrap();
        assert_eq!((usage.prompt_tokens, usage.completion_tokens), (6, n * 7));
        let first = |index| deltas.iter().find(|delta| delta.index == index).unwrap().tokens[0];
        (0..n).map(first).collect::<Vec<u32>>()
    };
    let four = tokens_of(4, Some(42));
    assert_eq!(four[0], 42, "the first answer uses the seed itself");
    assert_eq!(four, tokens_of(4, Some(42)), "same seed, same answers");
    let distinct: std::collections::HashSet<u32> = four.iter().copied().collect();
    assert!(1 < distinct.len(), "answers differ: {four:?}");
    let drawn: std::collections::HashSet<u32> = (0..16).map(|_| tokens_of(1, None)[0]).collect();
    assert!(1 < drawn.len(), "without a seed every request draws its own");
}

#[test]
fn many_answers_share_a_prompt_and_each_ends_once() {
    let engine = start(options(), Fake::free_running(1));
    let stream = engine.submit(Request { n: 5, ..say("twelve token") }).unwrap();
    let (deltas, usage) = complete(stream).unwrap();
    for index in 0..5 {
        assert_eq!(text_of(&deltas, index), "twelve token");
        let ends = deltas.iter().filter(|delta| delta.index == index && delta.finish.is_some());
        assert_eq!(ends.count(), 1);
    }
    assert_eq!((usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens), (12, 0, 65));
    let figures = engine.metrics();
    assert_eq!((figures.scheduler.used_blocks, figures.live_requests), (0, 0));
    assert_eq!((figures.finished.stop, figures.generation_tokens, figures.prompt_tokens), (5, 65, 12));
}

#[test]
fn a_prompt_seen_before_is_cached_unless_its_salt_differs() {
    let engine = start(options(), Fake::free_running(1));
    let cached = |salt: Option<&str>| {
        let request = Request { cache_salt: salt.map(str::to_owned), ..say("a prompt of 21 tokens") };
        complete(engine.submit(request).unwrap()).unwrap().1.cached_tokens
    };
    assert_eq!([cached(None), cached(None), cached(Some("x")), cached(Some("x"))], [0, 20, 0, 20]);
    assert_eq!(engine.metrics().scheduler.prefix_hits, 40);
}

#[test]
fn logits_that_are_not_finite_fail_one_request_alone() {
    let engine = start(options(), Fake::free_running(1));
    let ill = [u32::from(b'a'), u32::from(b'b'), NOT_FINITE, u32::from(b'c')];
    let streams = [
        engine.submit(say("well")).unwrap(),
        engine.submit(Request { n: 2, ..request(&ill) }).unwrap(),
        engine.submit(say("also well")).unwrap(),
    ];
    let outcomes = streams.map(complete);
    assert_eq!(text_of(&outcomes[0].as_ref().unwrap().0, 0), "well");
    assert_eq!(outcomes[1], Err(RequestError::NonFinite { index: 0, position: 2 }));
    assert_eq!(text_of(&outcomes[2].as_ref().unwrap().0, 0), "also well");
    let figures = engine.metrics();
    assert_eq!((figures.non_finite_requests, figures.finished.error), (1, 2));
    assert_eq!((figures.scheduler.used_blocks, figures.live_requests), (0, 0));
}
