//! The sizes of Qwen2.5, so that memory can be planned without a download: their published `config.json` files.

use std::path::Path;

use crate::config::ModelConfig;

/// Name and `config.json` of the Qwen2.5 Instruct models, smallest first.
const QWEN2_5: [(&str, &str); 6] = [
    ("Qwen2.5-0.5B-Instruct", include_str!("../configs/qwen2.5-0.5b.json")),
    ("Qwen2.5-1.5B-Instruct", include_str!("../configs/qwen2.5-1.5b.json")),
    ("Qwen2.5-7B-Instruct", include_str!("../configs/qwen2.5-7b.json")),
    ("Qwen2.5-14B-Instruct", include_str!("../configs/qwen2.5-14b.json")),
    ("Qwen2.5-32B-Instruct", include_str!("../configs/qwen2.5-32b.json")),
    ("Qwen2.5-72B-Instruct", include_str!("../configs/qwen2.5-72b.json")),
];

/// The Qwen2.5 models and their sizes, smallest first.
#[must_use]
pub fn qwen2_5() -> Vec<(&'static str, ModelConfig)> {
    let read = |(name, text)| {
        let config = ModelConfig::from_json(Path::new(name), text);
        (name, config.expect("the published configurations are valid, which a test holds"))
    };
    QWEN2_5.into_iter().map(read).collect()
}
