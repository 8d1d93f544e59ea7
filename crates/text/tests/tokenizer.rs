//! Our ids are the reference's: Hugging Face tokenizers as the oracle, over the same small vocabulary.

#![allow(clippy::unwrap_used, reason = "this is all test code, helpers included")]

use std::path::Path;

use phalanx_text::{SpecialTokens, TextError, Tokenizer, TokenizerReference, Vocabulary};
use serde_json::{Value, json};

const DESCRIPTION: &str = include_str!("data/tiny_tokenizer.json");

fn description() -> Value {
    serde_json::from_str(DESCRIPTION).unwrap()
}

fn ours() -> Tokenizer {
    Tokenizer::from_json(description()).unwrap()
}

fn oracle() -> tokenizers::Tokenizer {
    tokenizers::Tokenizer::from_bytes(DESCRIPTION).unwrap()
}

/// The fixture as a GGUF file's metadata would carry it, with three rows of padding.
fn vocabulary() -> Vocabulary {
    let description = description();
    let mut entries: Vec<(u64, String, i32)> = Vec::new();
    for (token, id) in description["model"]["vocab"].as_object().unwrap() {
        entries.push((id.as_u64().unwrap(), token.clone(), 1));
    }
    for token in description["added_tokens"].as_array().unwrap() {
        let kind = if token["special"] == true { 3 } else { 4 };
        entries.push((token["id"].as_u64().unwrap(), token["content"].as_str().unwrap().to_owned(), kind));
    }
    entries.sort();
    let merge = |pair: &Value| format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap());
    let mut vocabulary = Vocabulary {
        tokens: entries.iter().map(|(_, token, _)| token.clone()).collect(),
        token_types: entries.iter().map(|(_, _, kind)| *kind).collect(),
        merges: description["model"]["merges"].as_array().unwrap().iter().map(merge).collect(),
        pre: "qwen2".to_owned(),
        bos: Some(1024),
        eos: Some(1026),
    };
    for row in 0..3 {
        vocabulary.tokens.push(format!("[PAD{row}]"));
        vocabulary.token_types.push(5);
    }
    vocabulary
}

/// Texts no person would write: every script, every kind of space, control tokens whole and broken.
fn random_text(rng: &mut fastrand::Rng) -> String {
    const RANGES: [std::ops::Range<u32>; 14] = [
        0x20..0x7f,
        0x09..0x0e,
        0xa0..0x250,
        0x300..0x370,
        0x370..0x530,
        0x590..0x700,
        0x900..0xe00,
        0x1100..0x1200,
        0x1e00..0x2400,
        0x3000..0x3400,
        0x4e00..0x5200,
        0xac00..0xad00,
        0x1f300..0x1f700,
        0x0..0x110000,
    ];
    const PIECES: [&str; 20] = [
        "<|im_end|>",
        "<|im_start|>",
        "<|endoftext|>",
        "<|im_",
        "|>",
        "<tool_call>",
        "</tool_call>",
        "👨‍👩‍👧‍👦",
        "🇩🇪",
        "'ll",
        "'S",
        "'ſ",
        "'ſt",
        "\u{180e}",
        "\r\n",
        "    ",
        "\u{3000}",
        "e\u{301}\u{323}",
        "٣",
        "import os\n    return x\n",
    ];
    let mut text = String::new();
    for _ in 0..rng.usize(0..12) {
        let range = RANGES[rng.usize(0..RANGES.len())].clone();
        text.extend((0..rng.usize(0..8)).filter_map(|_| char::from_u32(rng.u32(range.clone()))));
        if rng.u8(0..3) == 0 {
            text.push_str(PIECES[rng.usize(0..PIECES.len())]);
        }
    }
    text
}

#[test]
fn ids_and_texts_are_the_references() {
    let (ours, mut oracle) = (ours(), oracle());
    for seed in 0..5_000 {
        let text = random_text(&mut fastrand::Rng::with_seed(seed));
        for (special, as_text) in [(SpecialTokens::Parse, false), (SpecialTokens::AsText, true)] {
            oracle.set_encode_special_tokens(as_text);
            let expected = oracle.encode_fast(text.as_str(), false).unwrap();
            let ids = ours.encode(&text, special).unwrap();
            assert_eq!(ids, expected.get_ids(), "seed {seed}, {special:?}: {text:?}");
            for skip in [false, true] {
                let expected = oracle.decode(&ids, skip).unwrap();
                assert_eq!(ours.decode(&ids, skip), expected, "seed {seed}, skip {skip}");
            }
        }
    }
}

#[test]
fn every_character_is_cut_from_its_neighbours_as_the_reference_does() {
    let (ours, oracle) = (ours(), oracle());
    // All but ideographs, Hangul syllables and planes 2 and up, which are alike: of those a sample.
    let alike = ['\u{3400}'..='\u{9fff}', '\u{ac00}'..='\u{d7a3}', '\u{20000}'..=char::MAX];
    let sampled = |c: &char| u32::from(*c) % 97 == 0 || !alike.iter().any(|range| range.contains(c));
    let characters: Vec<char> = ('\0'..=char::MAX).filter(sampled).collect();
    for group in characters.chunks(64) {
        // Beside a letter, a space, a tab, a number, an apostrophe and a contraction.
        let text: String = group.iter().map(|c| format!("{c}x {c}\t{c}1{c}'{c}'s'{c}ab")).collect();
        let expected = oracle.encode_fast(text.as_str(), false).unwrap();
        let ids = ours.encode(&text, SpecialTokens::Parse).unwrap();
        assert!(ids == expected.get_ids(), "from {:?} on", group[0]);
    }
}

#[test]
fn ids_in_any_order_decode_as_the_reference_does() {
    let (ours, oracle) = (ours(), oracle());
    for seed in 0..2_000 {
        let mut rng = fastrand::Rng::with_seed(seed);
        // Single bytes are the first 256 ids: mostly broken characters.
        let size = if rng.bool() { 256 } else { ours.vocab_size() as u32 };
        let ids: Vec<u32> = (0..rng.usize(0..20)).map(|_| rng.u32(0..size)).collect();
        for skip in [false, true] {
            assert_eq!(ours.decode(&ids, skip), oracle.decode(&ids, skip).unwrap(), "seed {seed}: {ids:?}");
        }
    }
}

#[test]
fn long_runs_are_the_references() {
    let (ours, oracle) = (ours(), oracle());
    let units = ["\n", " \n\t", "a", "7", "!", "的", "e\u{301}", "<|", "<|im_end|>", "'ſ", "\u{180e} "];
    let runs = units.iter().map(|unit| unit.repeat((1 << 17) / unit.len()));
    for text in runs.chain([" ".repeat(1 << 20)]) {
        let ids = ours.encode(&text, SpecialTokens::Parse).unwrap();
        let expected = oracle.encode_fast(text.as_str(), false).unwrap();
        assert!(ids == expected.get_ids(), "a run of {:?}…", text.chars().take(3));
    }
}

#[test]
fn a_vocabulary_gives_the_same_tokenizer() {
    let (from_json, from_vocabulary) = (ours(), Tokenizer::from_vocabulary(&vocabulary()).unwrap());
    assert_eq!(from_vocabulary.vocab_size(), 1046, "rows of padding do not count");
    assert_eq!(from_vocabulary.vocab_size(), from_json.vocab_size());
    assert_eq!((from_vocabulary.bos_id(), from_vocabulary.eos_id()), (Some(1024), Some(1026)));
    for id in 0..1050 {
        assert_eq!(from_vocabulary.token_text(id), from_json.token_text(id));
        assert_eq!(from_vocabulary.token_bytes(id), from_json.token_bytes(id));
        assert_eq!(from_vocabulary.is_special(id), from_json.is_special(id));
    }
    for seed in 0..1_000 {
        let text = random_text(&mut fastrand::Rng::with_seed(seed));
        for special in [SpecialTokens::Parse, SpecialTokens::AsText] {
            assert_eq!(
                from_vocabulary.encode(&text, special).unwrap(),
                from_json.encode(&text, special).unwrap(),
                "seed {seed}: {text:?}"
            );
        }
    }
}

#[test]
fn tokens_have_names_bytes_and_ids() {
    let tokenizer = ours();
    let end = tokenizer.id_of("<|im_end|>").unwrap();
    assert!(tokenizer.is_special(end));
    assert_eq!(tokenizer.token_text(end), Some("<|im_end|>"));
    let call = tokenizer.id_of("<tool_call>").unwrap();
    assert!(!tokenizer.is_special(call), "a tool call is part of the answer");
    let spaces = tokenizer.id_of("ĠĠ").unwrap();
    assert_eq!(tokenizer.token_bytes(spaces), b"  ");
    assert_eq!(tokenizer.token_bytes(99_999), b"");
    assert_eq!(tokenizer.token_text(99_999), None);
    assert_eq!(tokenizer.id_of("no such token"), None);
}

#[test]
fn unflagged_control_tokens_are_letters_for_users_and_shown_when_decoded() {
    let mut description = description();
    for token in description["added_tokens"].as_array_mut().unwrap() {
        if token["content"] == "<|fim_prefix|>" {
            token["special"] = json!(false);
        }
    }
    let tokenizer = Tokenizer::from_json(description).unwrap();
    let id = tokenizer.id_of("<|fim_prefix|>").unwrap();
    assert_eq!(tokenizer.encode("<|fim_prefix|>", SpecialTokens::Parse).unwrap(), [id]);
    assert!(!tokenizer.encode("<|fim_prefix|>", SpecialTokens::AsText).unwrap().contains(&id));
    assert_eq!(tokenizer.decode(&[id], true), "<|fim_prefix|>");
}

#[test]
fn a_saved_truncation_is_not_applied() {
    let mut description = description();
    description["truncation"] =
        json!({ "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0 });
    let tokenizer = Tokenizer::from_json(description).unwrap();
    let ids = tokenizer.encode("one two three four five", SpecialTokens::Parse).unwrap();
    assert_eq!(tokenizer.decode(&ids, false), "one two three four five");
}

#[test]
fn files_are_read_with_the_config_beside_them() {
    let folder = std::env::temp_dir().join(format!("phalanx-text-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("tokenizer.json");
    std::fs::write(&path, DESCRIPTION).unwrap();
    assert_eq!(Tokenizer::from_file(&path).unwrap().eos_id(), None);
    let config = json!({ "bos_token": null, "eos_token": { "content": "<|im_end|>" } });
    std::fs::write(folder.join("tokenizer_config.json"), config.to_string()).unwrap();
    let tokenizer = Tokenizer::from_file(&path).unwrap();
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_id()), (None, tokenizer.id_of("<|im_end|>")));
    std::fs::remove_dir_all(&folder).unwrap();
    let error = Tokenizer::from_file(Path::new("/no/such/tokenizer.json")).unwrap_err();
    assert!(matches!(error, TextError::Read { .. }));
    assert!(error.to_string().starts_with("/no/such/tokenizer.json cannot be read: "), "{error}");
}

#[test]
fn broken_descriptions_are_refused_in_words() {
    type Spoil = fn(&mut Value);
    let cases: [(Spoil, &str); 8] = [
        (|d| d["model"]["type"] = json!("Unigram"), "its model is of the type Unigram"),
        (|d| d["model"]["vocab"] = json!([]), "model.vocab is not an object"),
        (|d| d["model"]["vocab"]["zz"] = json!(4_000_000_000_u32), "the id of \"zz\" is no plausible number"),
        (|d| d["model"]["vocab"]["zz"] = json!(-1), "the id of \"zz\" is no plausible number"),
        (|d| d["decoder"] = json!({ "type": "Metaspace" }), "only ByteLevel is known"),
        (|d| d["added_tokens"][0]["content"] = json!(""), "has no content"),
        (|d| d["model"]["merges"] = json!([["!", "nothing"]]), ""),
        (|d| *d = json!(7), "its model is of the type unknown"),
    ];
    for (spoil, expected) in cases {
        let mut description = description();
        spoil(&mut description);
        let error = Tokenizer::from_json(description).unwrap_err().to_string();
        assert!(
            error.starts_with("the tokenizer description is not a tokenizer Phalanx can use: "),
            "{error}"
        );
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn broken_vocabularies_are_refused_in_words() {
    type Spoil = fn(&mut Vocabulary);
    let cases: [(Spoil, &str); 5] = [
        (|v| v.pre = "gpt-4o".to_owned(), "its pre-tokenizer is `gpt-4o`, but only `qwen2` is known"),
        (|v| v.token_types.truncate(9), "it has 1049 tokens but 9 token types"),
        (|v| v.token_types[7] = 6, "token 7 has the type 6, which is not known"),
        (|v| v.tokens[7] = "!".to_owned(), "token 7 repeats the text \"!\" of an earlier one"),
        (|v| v.merges.push("no space-here-either x y".to_owned()), ""),
    ];
    for (spoil, expected) in cases {
        let mut vocabulary = vocabulary();
        spoil(&mut vocabulary);
        let error = Tokenizer::from_vocabulary(&vocabulary).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_reference_reports_every_difference() {
    let tokenizer = ours();
    let ids = tokenizer.encode("a<|im_end|>", SpecialTokens::Parse).unwrap();
    let as_text = tokenizer.encode("a<|im_end|>", SpecialTokens::AsText).unwrap();
    let reference = |vocab_size: usize, decoded: &str| {
        let case = json!({ "text": "a<|im_end|>", "ids": ids, "ids_as_text": as_text, "decoded": decoded });
        let json = json!({ "vocab_size": vocab_size, "cases": [case, { "text": " ", "ids": [220] }] });
        TokenizerReference::from_json(&json.to_string()).unwrap().differences(&tokenizer)
    };
    assert_eq!(reference(1046, "a"), [""; 0]);
    assert_eq!(
        reference(1047, "b"),
        [
            "the vocabulary has 1046 tokens, the reference 1047".to_owned(),
            format!("{ids:?} decode to \"a\", reference \"b\"")
        ]
    );
    assert!(TokenizerReference::from_json("{}").is_err());
}
