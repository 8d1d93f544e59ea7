//! Logits equal those of transformers: see `golden/logits.py`, which made the files.
#![allow(clippy::unwrap_used, reason = "this is all test code, helpers included")]

mod rig;

use phalanx_model::rope::RopeConfig;
use phalanx_model::{LoadFormat, ModelConfig, WeightType, Weights};
use rig::{Prompt, difference, golden, logits};
use serde_json::Value;

struct Case {
    weights: Weights,
    prompt: Prompt,
    rows: usize,
    expected: Value,
}

fn case(name: &str) -> Case {
    let folder = golden(name);
    let expected: Value =
        serde_json::from_str(&std::fs::read_to_string(folder.join("expected.json")).unwrap()).unwrap();
    let tokens: Vec<i32> =
        expected["tokens"].as_array().unwrap().iter().map(|token| token.as_i64().unwrap() as i32).collect();
    let prompt = Prompt {
        chunks: vec![tokens.len()],
        tokens,
        first_position: expected["first_position"].as_u64().unwrap() as usize,
    };
    let rows = expected["rows"].as_u64().unwrap() as usize;
    Case { weights: Weights::open(&folder, LoadFormat::Auto).unwrap(), prompt, rows, expected }
}

fn check(name: &str) {
    let case = case(name);
    let bytes = std::fs::read(golden(name).join("logits.bin")).unwrap();
    let expected: Vec<f32> =
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let config = case.weights.config();
    let all = logits(&case.weights, config, (1, 1), WeightType::F32, &case.prompt);
    let last = &all[all.len() - case.rows * config.vocab_size..];
    let difference = difference(&expected, last);
    assert!(difference < 1e-4, "{name}: logits differ by {difference} of the largest");
}

#[test]
fn a_tied_model_with_14_heads() {
    check("tied-14-2");
}

#[test]
fn an_untied_model_with_28_heads_in_five_files() {
    check("untied-28-4");
}

#[test]
fn positions_from_40_000_on() {
    check("long-14-2");
}

#[test]
fn yarn_at_positions_from_100_000_on() {
    check("yarn-28-4");
}

#[test]
fn without_yarn_the_same_model_says_something_else() {
    let case = case("yarn-28-4");
    let mut plain = case.weights.config().clone();
    plain.rope.yarn = None;
    let with = logits(&case.weights, case.weights.config(), (1, 1), WeightType::F32, &case.prompt);
    let without = logits(&case.weights, &plain, (1, 1), WeightType::F32, &case.prompt);
    assert!(1e-2 < difference(&with, &without));
}

#[test]
fn yarn_changes_short_prompts_as_transformers_does() {
    check("yarn-short");
}

#[test]
fn inverse_frequencies_and_the_attention_factor_are_those_of_transformers_to_the_bit() {
    for name in ["tied-14-2", "long-14-2", "yarn-28-4", "yarn-short"] {
        let case = case(name);
        let config: &ModelConfig = case.weights.config();
        let rope: &RopeConfig = &config.rope;
        let expected: Vec<f32> = case.expected["inverse_frequencies"]
            .as_array()
            .unwrap()
            .iter()
            .map(|value| value.as_f64().unwrap() as f32)
            .collect();
        assert_eq!(rope.inverse_frequencies(config.head_dim), expected, "{name}");
        assert_eq!(
            rope.attention_factor(),
            case.expected["attention_factor"].as_f64().unwrap() as f32,
            "{name}"
        );
    }
}
