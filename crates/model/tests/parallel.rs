//! However a model is split over ranks, stages and steps, its logits are the same.
#![allow(clippy::unwrap_used, reason = "this is all test code, helpers included")]

mod rig;

use std::path::Path;

use phalanx_device::Format;
use phalanx_model::architectures::{TensorKind, TensorShape};
use phalanx_model::{LoadError, LoadFormat, ModelConfig, Place, Shards, WeightFormats, WeightType, Weights};
use rig::{Prompt, difference, files, golden, logits};

const MESHES: [(usize, usize); 9] = [(2, 1), (3, 1), (4, 1), (7, 1), (8, 1), (1, 2), (1, 4), (2, 2), (3, 2)];

/// Holds every mesh to one rank, within `tolerance` of the largest logit.
fn check(weights: &Weights, weight_type: WeightType, meshes: &[(usize, usize)], tolerance: f32) {
    let config = weights.config();
    let prompt = Prompt::random(config.vocab_size, 21, &[21]);
    let alone = logits(weights, config, (1, 1), weight_type, &prompt);
    for mesh in meshes {
        let together = logits(weights, config, *mesh, weight_type, &prompt);
        let difference = difference(&alone, &together);
        assert!(difference < tolerance, "TP {} x PP {}: logits differ by {difference}", mesh.0, mesh.1);
    }
}

/// A GGUF file of a model with 28 query and 4 KV heads, whose matrices `format` encodes.
fn quantised(format: impl Fn(&TensorShape) -> Format, seed: u64) -> (tempfile::TempDir, Weights) {
    let text = files::config_json(28, 4, 64, 256);
    let config = ModelConfig::from_json(Path::new("config.json"), &text).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    std::fs::write(&path, files::gguf(&config, format, seed)).unwrap();
    let weights = Weights::open(&path, LoadFormat::Auto).unwrap();
    (folder, weights)
}

#[test]
fn dense_weights_over_ranks_and_stages() {
    let weights = Weights::open(&golden("untied-28-4"), LoadFormat::Auto).unwrap();
    check(&weights, WeightType::F32, &MESHES, 1e-5);
}

#[test]
fn a_tied_model_over_ranks_and_stages() {
    let weights = Weights::open(&golden("tied-14-2"), LoadFormat::Auto).unwrap();
    check(&weights, WeightType::F32, &[(3, 1), (8, 1), (14, 1), (1, 3), (2, 2)], 1e-5);
}

#[test]
fn dummy_weights_are_the_same_however_they_are_sliced() {
    let text = files::config_json(28, 4, 16, 64);
    let config = ModelConfig::from_json(Path::new("config.json"), &text).unwrap();
    check(&Weights::dummy(config, 7), WeightType::F32, &[(3, 1), (2, 2)], 1e-5);
}

#[test]
fn dummy_logits_are_finite_and_varied_however_deep_the_model_is() {
    for layers in [1, 48] {
        let text = files::config_json(4, 2, 16, 64);
        let mut config = ModelConfig::from_json(Path::new("config.json"), &text).unwrap();
        config.num_layers = layers;
        let prompt = Prompt::random(config.vocab_size, 9, &[9]);
        let of_seed = |seed| {
            let weights = Weights::dummy(config.clone(), seed);
            logits(&weights, &config, (1, 1), WeightType::AsStored, &prompt)
        };
        let (first, second) = (of_seed(1), of_seed(2));
        let spread = (first.iter().map(|logit| logit * logit).sum::<f32>() / first.len() as f32).sqrt();
        assert!(0.3 < spread && spread < 10.0, "{layers} layers: {spread}");
        assert_eq!(first, of_seed(1));
        assert!(0.1 < difference(&first, &second));
    }
}

// Cuts inside blocks are exact: with the weights taken apart to F32 nothing but the order of sums differs.
#[test]
fn blocks_are_cut_without_loss() {
    let (_folder, weights) = quantised(|_| Format::Q4K, 1);
    check(&weights, WeightType::F32, &MESHES, 1e-5);
}

// The device rounds activations to 16 bits block by block, and a rank's blocks are not the whole model's: measured, the
// largest difference is 9e-5.
#[test]
fn quantised_weights_over_ranks_and_stages() {
    let (_folder, weights) = quantised(|_| Format::Q4K, 2);
    check(&weights, WeightType::AsStored, &MESHES, 3e-4);
    let (_folder, weights) = quantised(|_| Format::Q8_0, 3);
    check(&weights, WeightType::AsStored, &MESHES, 3e-4);
}

#[test]
fn formats_may_differ_inside_a_layer_and_between_layers() {
    let mixed = |tensor: &TensorShape| match tensor.kind {
        _ if tensor.name.contains("v_proj") => Format::Q6K,
        _ if tensor.name.contains("up_proj") => Format::Q5_1,
        TensorKind::MlpOutput if tensor.name.contains("layers.1") => Format::Q8_0,
        TensorKind::AttentionOutput if tensor.name.contains("layers.0") => Format::Q5_0,
        TensorKind::AttentionOutput => Format::Q5K,
        _ if tensor.name.contains("q_proj") => Format::Q4_0,
        _ if tensor.name.contains("k_proj") => Format::Q4_1,
        _ if tensor.name.contains("embed") => Format::F16,
        _ => Format::Q4K,
    };
    let (_folder, weights) = quantised(mixed, 4);
    check(&weights, WeightType::F32, &[(3, 1), (8, 1), (2, 2)], 1e-5);
    check(&weights, WeightType::AsStored, &[(3, 1), (8, 1), (2, 2)], 3e-4);
}

#[test]
fn a_prompt_in_chunks_is_the_prompt() {
    let weights = Weights::open(&golden("untied-28-4"), LoadFormat::Auto).unwrap();
    let config = weights.config();
    let whole = logits(&weights, config, (1, 1), WeightType::F32, &Prompt::random(300, 21, &[21]));
    for chunks in [&[7, 7, 7][..], &[1, 19, 1], &[4, 3, 9, 5], &[1; 21]] {
        let prompt = Prompt::random(300, 21, chunks);
        assert!(difference(&whole, &logits(&weights, config, (1, 1), WeightType::F32, &prompt)) < 1e-5);
        assert!(difference(&whole, &logits(&weights, config, (3, 2), WeightType::F32, &prompt)) < 1e-5);
    }
}

#[test]
fn more_ranks_than_heads_is_a_sentence() {
    let weights = Weights::open(&golden("tied-14-2"), LoadFormat::Auto).unwrap();
    let formats = WeightFormats::Of(&weights, WeightType::AsStored);
    let place = Place { tensor_size: 15, ..Place::ALONE };
    let error = Shards::new(weights.config(), place, &formats).unwrap_err();
    let text = "--tensor-parallel-size 15 is more than the model's 14 query heads: lower it to 14 or less";
    assert_eq!(error, LoadError::Layout(text.to_string()));
    let place = Place { num_stages: 5, ..Place::ALONE };
    let error = Shards::new(weights.config(), place, &formats).unwrap_err();
    let text = "--pipeline-parallel-size 5 is more than the model's 4 layers: lower it to 4 or less";
    assert_eq!(error, LoadError::Layout(text.to_string()));
}
