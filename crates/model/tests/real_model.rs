//! A real Qwen2.5 loads and says what llama.cpp says.
#![allow(clippy::unwrap_used, reason = "this is all test code, helpers included")]

mod rig;

use std::path::PathBuf;

use phalanx_device::DType;
use phalanx_model::{LoadFormat, MemoryRequest, Place, WeightFormats, WeightType, Weights, memory};
use rig::{Prompt, logits_of_each};

/// `Qwen2.5-Coder-0.5B-Instruct`, Q4_K_M.
fn weights() -> Weights {
    let path = std::env::var_os("PHALANX_TEST_MODEL").map(PathBuf::from).expect(
        "set PHALANX_TEST_MODEL to qwen2.5-coder-0.5b-instruct-q4_k_m.gguf; the README says how to fetch it",
    );
    Weights::open(&path, LoadFormat::Auto).expect("the real model opens")
}

/// Tokens, and for some of their places the likeliest token behind.
type Expected = (&'static [i32], &'static [(usize, usize)]);

/// "The capital of France is", "def fibonacci(n):\n    if n" and "你好，我是", and the likeliest token behind each of
/// their tokens where llama.cpp (llama-cpp-python 0.3.36) finds it ahead of the second by more than 1.
const PROMPTS: [Expected; 3] = [
    (&[785, 6722, 315, 9625, 374], &[(1, 315), (3, 374), (4, 12095)]),
    (&[750, 75698, 1445, 982, 262, 421, 308], &[(2, 982), (3, 262), (4, 421), (5, 308), (6, 2651)]),
    (&[108_386, 3837, 104_198], &[(1, 334), (2, 102_661)]),
];

fn check(weights: &Weights, mesh: (usize, usize), weight_type: WeightType) {
    let vocab = weights.config().vocab_size;
    let prompt =
        |tokens: &[i32]| Prompt { tokens: tokens.to_vec(), first_position: 0, chunks: vec![tokens.len()] };
    let prompts = PROMPTS.map(|(tokens, _)| prompt(tokens));
    let all = logits_of_each(weights, weights.config(), mesh, weight_type, &prompts);
    for ((tokens, expected), logits) in PROMPTS.iter().zip(&all) {
        for (row, token) in *expected {
            let row_logits = &logits[row * vocab..(row + 1) * vocab];
            let likeliest = (0..vocab).max_by(|a, b| row_logits[*a].total_cmp(&row_logits[*b])).unwrap();
            assert_eq!(
                likeliest, *token,
                "behind token {row} of {tokens:?} on TP {} x PP {}",
                mesh.0, mesh.1
            );
        }
    }
}

#[test]
fn quantised_weights_say_what_llama_cpp_says() {
    check(&weights(), (1, 1), WeightType::AsStored);
}

#[test]
fn three_ranks_in_two_stages_say_it_too() {
    check(&weights(), (3, 2), WeightType::AsStored);
}

#[test]
fn weights_taken_apart_to_bfloat16_say_it_too() {
    check(&weights(), (1, 1), WeightType::BF16);
}

#[test]
fn the_file_is_described() {
    let weights = weights();
    let config = weights.config();
    assert_eq!((config.num_layers, config.num_heads, config.num_kv_heads, config.head_dim), (24, 14, 2, 64));
    assert_eq!((config.trained_len, config.vocab_size, config.tie_word_embeddings), (32_768, 151_936, false));
    assert_eq!(weights.name(), Some("Qwen2.5 Coder 0.5B Instruct AWQ"));
    let vocabulary = weights.vocabulary().expect("the file holds its tokenizer");
    assert_eq!((vocabulary.model.as_str(), vocabulary.pre.as_str()), ("gpt2", "qwen2"));
    assert_eq!((vocabulary.tokens.len(), vocabulary.token_types.len()), (151_936, 151_936));
    assert_eq!(vocabulary.merges.len(), 151_387);
    assert_eq!((vocabulary.bos, vocabulary.eos, vocabulary.add_bos), (Some(151_643), Some(151_645), false));
    assert!(vocabulary.chat_template.as_ref().is_some_and(|template| template.contains("<|im_start|>")));
    let request = MemoryRequest {
        formats: WeightFormats::Of(&weights, WeightType::AsStored),
        // Planned for a GPU, which keeps a file's rows as they are.
        activation_dtype: DType::BF16,
        kv_dtype: DType::F32,
        block_size: 16,
        limits: phalanx_model::Limits { max_tokens: 1, max_samples: 1, max_model_len: 1 },
    };
    let plan = memory::plan(config, Place::ALONE, &request).unwrap();
    assert_eq!(plan.weights_bytes, weights.bytes());
}
