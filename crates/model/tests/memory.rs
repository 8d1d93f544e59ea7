//! What the plan says is what a loaded model holds.
#![allow(clippy::unwrap_used, reason = "this is all test code, helpers included")]

mod rig;

use std::path::Path;

use phalanx_device::{DType, Format};
use phalanx_model::{
    Limits, LoadFormat, LoadOptions, MemoryRequest, Model, ModelConfig, Place, WeightFormats, WeightType,
    Weights, catalogue, memory, work,
};
use rig::{files, golden, lone_device};

const LIMITS: Limits = Limits { max_tokens: 48, max_samples: 5, max_model_len: 77 };

fn request(formats: WeightFormats<'_>) -> MemoryRequest<'_> {
    MemoryRequest {
        formats,
        activation_dtype: DType::F32,
        kv_dtype: DType::BF16,
        block_size: 16,
        limits: LIMITS,
    }
}

/// Bytes planned and bytes held, for every rank of every layout.
fn planned_and_held(weights: &Weights, weight_type: WeightType) -> Vec<(usize, usize)> {
    let device = lone_device();
    let mut pairs = Vec::new();
    for (tensor_size, num_stages) in [(1, 1), (3, 1), (8, 1), (1, 2), (2, 2)] {
        let request = request(WeightFormats::Of(weights, weight_type));
        for place in Place::all(tensor_size, num_stages) {
            let plan = memory::plan(weights.config(), place, &request).unwrap();
            let options = LoadOptions { place, limits: LIMITS, weight_type };
            let model = Model::load(&device, weights, weights.config(), &options, &|_| {}).unwrap();
            // Scratch is the device's own, not the model's.
            pairs.push((plan.fixed_bytes() - plan.scratch_bytes, model.bytes()));
        }
    }
    pairs
}

#[test]
fn dense_weights_take_what_was_planned_to_the_byte() {
    for tied in [false, true] {
        let text = files::config_json(28, 4, 16, 64).replace("300", "320");
        let mut config = ModelConfig::from_json(Path::new("config.json"), &text).unwrap();
        config.tie_word_embeddings = tied;
        let weights = Weights::dummy(config, 1);
        for weight_type in [WeightType::AsStored, WeightType::F32, WeightType::F16] {
            for (planned, held) in planned_and_held(&weights, weight_type) {
                assert_eq!(planned, held, "tied: {tied}, as {weight_type:?}");
            }
        }
    }
}

// The CPU fills matrices up to groups of 16 rows, and a vocabulary of 300 ends inside one.
#[test]
fn odd_rows_take_what_was_planned_to_the_byte() {
    let weights = Weights::open(&golden("untied-28-4"), LoadFormat::Auto).unwrap();
    for (planned, held) in planned_and_held(&weights, WeightType::AsStored) {
        assert_eq!(planned, held);
    }
}

// The CPU unpacks the scales of some block formats, which takes some padding.
#[test]
fn quantised_weights_take_what_was_planned_to_the_byte() {
    let text = files::config_json(28, 4, 64, 256);
    let config = ModelConfig::from_json(Path::new("config.json"), &text).unwrap();
    for format in [Format::Q4K, Format::Q6K, Format::Q8_0, Format::Q4_0, Format::Q5_1] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiny.gguf");
        std::fs::write(&path, files::gguf(&config, |_| format, 5)).unwrap();
        let weights = Weights::open(&path, LoadFormat::Auto).unwrap();
        for (planned, held) in planned_and_held(&weights, WeightType::AsStored) {
            assert_eq!(planned, held, "{format:?}");
        }
    }
}

#[test]
fn all_bytes_are_heard_of_while_loading() {
    let weights = Weights::open(&golden("untied-28-4"), LoadFormat::Auto).unwrap();
    let heard = std::cell::Cell::new(0);
    let options = LoadOptions { place: Place::ALONE, limits: LIMITS, weight_type: WeightType::F32 };
    let progress = |bytes: usize| heard.set(heard.get() + bytes);
    Model::load(&lone_device(), &weights, weights.config(), &options, &progress).unwrap();
    assert_eq!(heard.get(), weights.bytes());
}

#[test]
fn blocks_that_fit_fit_and_one_more_does_not() {
    for (_, config) in catalogue::qwen2_5() {
        let plan =
            memory::plan(&config, Place::ALONE, &request(WeightFormats::Uniform(Format::BF16))).unwrap();
        for left in [0, 1, plan.kv_bytes_per_block, 1 << 30, (1 << 33) + 12345] {
            let blocks = plan.blocks_that_fit(plan.fixed_bytes() + left);
            assert!(plan.kv_bytes(blocks) <= left && left < plan.kv_bytes(blocks + 1));
        }
        assert_eq!(plan.blocks_that_fit(plan.fixed_bytes() - 1), 0);
    }
}

#[test]
fn the_published_sizes_of_qwen2_5() {
    let published =
        [494_032_768, 1_543_714_304, 7_615_616_512, 14_770_033_664, 32_763_876_352, 72_706_203_648];
    for ((name, config), parameters) in catalogue::qwen2_5().into_iter().zip(published) {
        assert_eq!(config.num_parameters(), parameters, "{name}");
        let request = request(WeightFormats::Uniform(Format::BF16));
        let vectors = (2 * config.num_layers + 1) * config.hidden_size
            + config.num_layers * (config.q_width() + 2 * config.kv_width());
        let plan = memory::plan(&config, Place::ALONE, &request).unwrap();
        // Norms and biases are kept in F32.
        assert_eq!(plan.weights_bytes, 2 * (parameters + vectors), "{name}");
    }
}

#[test]
fn a_token_of_the_7b_model_has_57_344_bytes_of_keys_and_values() {
    let (_, config) = catalogue::qwen2_5().swap_remove(2);
    let request = request(WeightFormats::Uniform(Format::BF16));
    let per_token = |tensor_size, num_stages| -> Vec<usize> {
        let plans = memory::plan_layout(&config, tensor_size, num_stages, &request).unwrap();
        plans.iter().map(|plan| plan.kv_bytes_per_token).collect()
    };
    assert_eq!(per_token(1, 1), [57_344]);
    assert_eq!(per_token(4, 1), [14_336; 4]);
    // 10, 9 and 9 query heads read 2, 2 and 2 of the 4 KV heads; over eight ranks each reads one.
    assert_eq!(per_token(3, 1), [28_672; 3]);
    assert_eq!(per_token(8, 1)[0], 14_336);
    assert_eq!(per_token(1, 2).iter().sum::<usize>(), 57_344);
}

#[test]
fn a_step_of_the_7b_model_reads_all_but_its_embedding_and_multiplies_six_and_a_half_billion_numbers() {
    let models = catalogue::qwen2_5();
    let of =
        |index: usize| work::work(&models[index].1, &request(WeightFormats::Uniform(Format::BF16))).unwrap();
    let (half, seven) = (of(0), of(2));
    let embedding = 152_064 * 3584;
    assert_eq!(seven.layer_elements, 28 * (3584 * (3584 + 2 * 512 + 3584) + 3 * 3584 * 18_944));
    assert_eq!((seven.head_elements, seven.query_width), (embedding, 28 * 28 * 128));
    assert_eq!(seven.kv_bytes_per_token, 57_344);
    let vectors = 4 * ((2 * 28 + 1) * 3584 + 28 * (3584 + 2 * 512));
    assert_eq!(seven.weights_bytes, 2 * (seven.layer_elements + embedding) + vectors);
    // A tied embedding is read whole, as the output matrix.
    assert_eq!(half.weights_bytes, 2 * 494_032_768 + 2 * ((2 * 24 + 1) * 896 + 24 * (896 + 2 * 128)));
}
