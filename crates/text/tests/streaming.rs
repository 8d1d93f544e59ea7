//! What comes out piece by piece is what would come out at once: the detokenizer and the stop strings.

#![allow(clippy::unwrap_used, reason = "this is all test code, helpers included")]

use std::sync::Arc;

use phalanx_text::{Detokenizer, SpecialTokens, StopMatcher, StopStep, Tokenizer};

fn tokenizer() -> Arc<Tokenizer> {
    let description = include_str!("data/tiny_tokenizer.json");
    Arc::new(Tokenizer::from_json(serde_json::from_str(description).unwrap()).unwrap())
}

#[test]
fn pieces_add_up_to_the_whole_for_any_ids() {
    let tokenizer = tokenizer();
    for seed in 0..5_000 {
        let mut rng = fastrand::Rng::with_seed(seed);
        // Ids below 256 are single bytes, mostly broken characters; the last 30 hold special tokens and none at all.
        let ids: Vec<u32> = (0..rng.usize(0..30))
            .map(|_| match rng.u8(0..3) {
                0 => rng.u32(0..256),
                1 => rng.u32(0..1024),
                _ => rng.u32(1020..1050),
            })
            .collect();
        for skip in [false, true] {
            let mut detokenizer = Detokenizer::new(Arc::clone(&tokenizer), skip);
            let mut text: String = ids.iter().map(|id| detokenizer.push(*id)).collect();
            text.push_str(&detokenizer.finish());
            assert_eq!(text, tokenizer.decode(&ids, skip), "seed {seed}, skip {skip}: {ids:?}");
        }
    }
}

#[test]
fn valid_text_never_shows_a_replacement_character() {
    let tokenizer = tokenizer();
    let text = "é漢字🙂 👨‍👩‍👧‍👦 مرحبا 🇩🇪 𠜎 naïve";
    let ids = tokenizer.encode(text, SpecialTokens::Parse).unwrap();
    let mut detokenizer = Detokenizer::new(Arc::clone(&tokenizer), false);
    let mut shown = String::new();
    for id in &ids {
        shown.push_str(&detokenizer.push(*id));
        assert!(text.starts_with(&shown), "{shown:?}");
    }
    assert_eq!(shown, text);
    assert_eq!(detokenizer.finish(), "");
}

#[test]
fn a_character_appears_with_its_last_byte_and_a_broken_one_at_once() {
    let tokenizer = tokenizer();
    let byte = |byte: u8| (0..256).find(|id| tokenizer.token_bytes(*id) == [byte]).unwrap();
    let mut detokenizer = Detokenizer::new(Arc::clone(&tokenizer), false);
    // (byte, text that is certain after it)
    let steps = [
        (0xf0, ""),
        (0x9f, ""),
        (0x99, ""),
        (0x82, "🙂"), // whole
        (0xe6, ""),
        (0xbc, ""),
        (b'a', "\u{fffd}a"), // cut short by a letter
        (0x80, "\u{fffd}"),
        (0xff, "\u{fffd}"), // never the first byte of anything
        (0xe6, ""),
        (0xf0, "\u{fffd}"),
        (0x9f, ""), // cut short by another beginning
    ];
    for (input, expected) in steps {
        assert_eq!(detokenizer.push(byte(input)), expected, "after {input:#x}");
    }
    assert_eq!(detokenizer.finish(), "\u{fffd}");
    assert_eq!(detokenizer.finish(), "");
}

/// What stop strings mean, said as plainly as possible: the match that ends first, of those the longest.
fn batch(text: &str, stops: &[String], include: bool) -> (String, Option<usize>) {
    let mut best: Option<(usize, usize, usize)> = None; // (end, start, index), the smaller the better
    for (index, stop) in stops.iter().enumerate().filter(|(_, stop)| !stop.is_empty()) {
        if let Some(start) = text.find(stop.as_str()) {
            let candidate = (start + stop.len(), start, index);
            best = Some(best.map_or(candidate, |best| best.min(candidate)));
        }
    }
    match best {
        None => (text.to_owned(), None),
        Some((end, start, index)) => (text[..if include { end } else { start }].to_owned(), Some(index)),
    }
}

/// What the matcher makes of a text given in pieces.
fn streamed(pieces: &[String], stops: &[String], include: bool) -> (String, Option<usize>) {
    let mut matcher = StopMatcher::new(stops.to_vec(), include);
    let (mut shown, mut matched) = (String::new(), None);
    let whole = batch(&pieces.concat(), stops, include).0;
    for piece in pieces {
        let step = matcher.push(piece);
        assert!(matched.is_none() || step == StopStep::default(), "nothing comes after a match");
        shown.push_str(&step.text);
        matched = matched.or(step.matched);
        assert!(whole.starts_with(&shown), "{shown:?} leaks past {whole:?}");
    }
    if matched.is_none() {
        // Only an end that could still become a stop string may be held back.
        let text = pieces.concat();
        let held = &text[shown.len()..];
        assert!(
            held.is_empty() || stops.iter().any(|stop| stop.starts_with(held)),
            "{held:?} is held for nothing"
        );
    }
    shown.push_str(&matcher.finish());
    (shown, matched)
}

#[test]
fn streams_stop_where_whole_texts_do() {
    let alphabet = ["a", "b", "é", "漢", "🙂"];
    for seed in 0..20_000 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let letters = rng.usize(1..=alphabet.len());
        let mut word = |longest: usize| -> String {
            (0..rng.usize(0..=longest)).map(|_| alphabet[rng.usize(0..letters)]).collect()
        };
        let stops = vec![word(4), word(6), word(2)];
        let pieces: Vec<String> = (0..8).map(|_| word(3)).collect();
        for include in [false, true] {
            let expected = batch(&pieces.concat(), &stops, include);
            assert_eq!(streamed(&pieces, &stops, include), expected, "seed {seed}: {pieces:?} {stops:?}");
        }
    }
}

#[test]
fn stops_cut_and_hold_back() {
    // (pieces, stops, texts after each piece, what finish adds, the match)
    type Case = (
        &'static [&'static str],
        &'static [&'static str],
        &'static [&'static str],
        &'static str,
        Option<usize>,
    );
    let cases: [Case; 7] = [
        (&["Hello", " wor", "ld"], &["world"], &["Hello", " ", ""], "", Some(0)),
        (&["Hello", " wor", "k"], &["world"], &["Hello", " ", "work"], "", None),
        (&["a\n", "\nb"], &["\n\n"], &["a", ""], "", Some(0)),
        (&["end\n"], &["\n\n"], &["end"], "\n", None),
        (&["aaab"], &["aab"], &["a"], "", Some(0)),
        (&["abcd"], &["abcd", "bc"], &["a"], "", Some(1)),
        (&["x", "END", "y"], &["", "END"], &["x", "", ""], "", Some(1)),
    ];
    for (pieces, stops, texts, rest, matched) in cases {
        let stops = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let mut matcher = StopMatcher::new(stops, false);
        let steps: Vec<StopStep> = pieces.iter().map(|piece| matcher.push(piece)).collect();
        let shown: Vec<&str> = steps.iter().map(|step| step.text.as_str()).collect();
        assert_eq!(shown, texts, "{pieces:?}");
        assert_eq!(steps.iter().find_map(|step| step.matched), matched, "{pieces:?}");
        assert_eq!(matcher.finish(), rest, "{pieces:?}");
    }
}

#[test]
fn repetitive_stops_do_not_slow_a_stream_down() {
    // A matcher that rescans what it holds would take 10^11 steps here.
    let stop = "a".repeat(100_000) + "b";
    let mut matcher = StopMatcher::new(vec![stop], false);
    let mut shown = 0;
    for _ in 0..1_000_000 {
        shown += matcher.push("a").text.len();
    }
    assert_eq!(shown, 900_000);
    assert_eq!(matcher.finish().len(), 100_000);
}

#[test]
fn what_is_shared_between_threads_may_be() {
    fn shared<T: Send + Sync + 'static>() {}
    shared::<Tokenizer>();
    shared::<phalanx_text::ChatTemplate>();
    shared::<Detokenizer>();
    shared::<StopMatcher>();
}
