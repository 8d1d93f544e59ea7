//! Writes tiny model files: GGUF with random blocks, safetensors with random values.

use half::f16;
use phalanx_device::Format;
use phalanx_model::ModelConfig;
use phalanx_model::architectures::{TensorKind, TensorShape, tensors};

use super::Random;

/// ggml's number of a format.
pub fn ggml_type(format: Format) -> u32 {
    match format {
        Format::F32 => 0,
        Format::F16 => 1,
        Format::Q4_0 => 2,
        Format::Q4_1 => 3,
        Format::Q5_0 => 6,
        Format::Q5_1 => 7,
        Format::Q8_0 => 8,
        Format::Q4K => 12,
        Format::Q5K => 13,
        Format::Q6K => 14,
        Format::BF16 => 30,
    }
}

/// The names llama.cpp gives the tensors, written down independently of the crate's own table.
pub fn gguf_name(name: &str) -> String {
    let parts: Vec<&str> = name.split('.').collect();
    match parts.as_slice() {
        ["model", "embed_tokens", end] => format!("token_embd.{end}"),
        ["model", "norm", end] => format!("output_norm.{end}"),
        ["lm_head", end] => format!("output.{end}"),
        ["model", "layers", layer, rest @ ..] => {
            let theirs = match rest[..rest.len() - 1].join(".").as_str() {
                "input_layernorm" => "attn_norm",
                "post_attention_layernorm" => "ffn_norm",
                "self_attn.q_proj" => "attn_q",
                "self_attn.k_proj" => "attn_k",
                "self_attn.v_proj" => "attn_v",
                "self_attn.o_proj" => "attn_output",
                "mlp.gate_proj" => "ffn_gate",
                "mlp.up_proj" => "ffn_up",
                "mlp.down_proj" => "ffn_down",
                other => panic!("{other}"),
            };
            format!("blk.{layer}.{theirs}.{}", rest[rest.len() - 1])
        }
        _ => panic!("{name}"),
    }
}

/// A GGUF file of a model with random weights; `format` says how each matrix is encoded.
pub fn gguf(config: &ModelConfig, format: impl Fn(&TensorShape) -> Format, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let tensors = tensors(config);
    let mut data = Vec::new();
    let mut infos = Vec::new();
    for tensor in &tensors {
        let format = if tensor.kind.is_vector() { Format::F32 } else { format(tensor) };
        data.resize(data.len().next_multiple_of(32), 0);
        string(&mut infos, &gguf_name(&tensor.name));
        let dimensions: &[usize] =
            if tensor.kind.is_vector() { &[tensor.columns] } else { &[tensor.columns, tensor.rows] };
        infos.extend((dimensions.len() as u32).to_le_bytes());
        dimensions.iter().for_each(|size| infos.extend((*size as u64).to_le_bytes()));
        infos.extend(ggml_type(format).to_le_bytes());
        infos.extend((data.len() as u64).to_le_bytes());
        data.extend(encoded(&mut random, tensor, format));
    }
    let (metadata, count) = metadata(config);
    let mut file = b"GGUF".to_vec();
    file.extend(3_u32.to_le_bytes());
    file.extend((tensors.len() as u64).to_le_bytes());
    file.extend((count as u64).to_le_bytes());
    file.extend(metadata);
    file.extend(infos);
    file.resize(file.len().next_multiple_of(32), 0);
    file.extend(data);
    file
}

fn metadata(config: &ModelConfig) -> (Vec<u8>, usize) {
    let mut out = Vec::new();
    let numbers = [
        ("qwen2.block_count", config.num_layers),
        ("qwen2.context_length", config.trained_len),
        ("qwen2.embedding_length", config.hidden_size),
        ("qwen2.feed_forward_length", config.intermediate_size),
        ("qwen2.attention.head_count", config.num_heads),
        ("qwen2.attention.head_count_kv", config.num_kv_heads),
        ("qwen2.attention.key_length", config.head_dim),
        ("tokenizer.ggml.eos_token_id", 2),
    ];
    for (key, value) in numbers {
        string(&mut out, key);
        out.extend(4_u32.to_le_bytes());
        out.extend((value as u32).to_le_bytes());
    }
    for (key, value) in [
        ("qwen2.rope.freq_base", config.rope.theta as f32),
        ("qwen2.attention.layer_norm_rms_epsilon", config.norm_eps),
    ] {
        string(&mut out, key);
        out.extend(6_u32.to_le_bytes());
        out.extend(value.to_le_bytes());
    }
    for (key, value) in [
        ("general.architecture", "qwen2"),
        ("general.name", "tiny"),
        ("tokenizer.ggml.model", "gpt2"),
        ("tokenizer.ggml.pre", "qwen2"),
    ] {
        string(&mut out, key);
        out.extend(8_u32.to_le_bytes());
        string(&mut out, value);
    }
    string(&mut out, "tokenizer.ggml.tokens");
    out.extend(9_u32.to_le_bytes());
    out.extend(8_u32.to_le_bytes());
    out.extend(3_u64.to_le_bytes());
    ["a", "b", "<|end|>"].iter().for_each(|token| string(&mut out, token));
    string(&mut out, "tokenizer.ggml.token_type");
    out.extend(9_u32.to_le_bytes());
    out.extend(5_u32.to_le_bytes());
    out.extend(3_u64.to_le_bytes());
    [1_i32, 1, 3].iter().for_each(|kind| out.extend(kind.to_le_bytes()));
    (out, numbers.len() + 2 + 4 + 2)
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// A tensor's values: near 1 for norms, small for biases, a variance of about 1 / columns for matrices.
fn encoded(random: &mut Random, tensor: &TensorShape, format: Format) -> Vec<u8> {
    let elements = tensor.rows * tensor.columns;
    let scale = 1.0 / (tensor.columns as f32).sqrt();
    if format.block_len() == 1 {
        let (middle, spread) = match tensor.kind {
            TensorKind::Norm => (1.0, 0.2),
            TensorKind::Bias => (0.0, 0.3),
            _ => (0.0, 1.7 * scale),
        };
        let value = |random: &mut Random| middle + spread * (random.below(2001) as f32 / 1000.0 - 1.0);
        return (0..elements).flat_map(|_| dense(format, value(random))).collect();
    }
    (0..elements / format.block_len()).flat_map(|_| block(random, format, scale)).collect()
}

fn dense(format: Format, value: f32) -> Vec<u8> {
    match format {
        Format::F32 => value.to_le_bytes().to_vec(),
        Format::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
        _ => half::bf16::from_f32(value).to_le_bytes().to_vec(),
    }
}

/// Random codes under scales that bring the values to about `scale`.
fn block(random: &mut Random, format: Format, scale: f32) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..format.block_bytes()).map(|_| random.next() as u8).collect();
    // The spread of the codes, where the scale lies, and where the minimum lies with how many scales centre the codes.
    let (spread, at, minimum) = match format {
        Format::Q8_0 => (74.0, 0, None),
        Format::Q4_0 => (4.6, 0, None),
        Format::Q4_1 => (4.6, 0, Some((2, -7.5))),
        Format::Q5_0 => (9.2, 0, None),
        Format::Q5_1 => (9.2, 0, Some((2, -15.5))),
        Format::Q4K => (180.0, 0, Some((2, 7.5))),
        Format::Q5K => (370.0, 0, Some((2, 15.5))),
        _ => (1350.0, 208, None),
    };
    let d = scale / spread * (0.5 + random.below(1000) as f32 / 1000.0);
    bytes[at..at + 2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    if let Some((at, factor)) = minimum {
        bytes[at..at + 2].copy_from_slice(&f16::from_f32(d * factor).to_le_bytes());
    }
    bytes
}

/// A safetensors file with a model's tensors in BF16.
pub fn safetensors(config: &ModelConfig, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let mut data = Vec::new();
    let mut header = serde_json::Map::new();
    for tensor in tensors(config) {
        let start = data.len();
        data.extend(encoded(&mut random, &tensor, Format::BF16));
        let shape =
            if tensor.kind.is_vector() { vec![tensor.columns] } else { vec![tensor.rows, tensor.columns] };
        let entry = serde_json::json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, data.len()]});
        header.insert(tensor.name, entry);
    }
    let header = serde_json::to_vec(&header).unwrap();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend(data);
    file
}

/// A `config.json` of a tiny Qwen2 model.
pub fn config_json(num_heads: usize, num_kv_heads: usize, head_dim: usize, hidden: usize) -> String {
    serde_json::json!({
        "architectures": ["Qwen2ForCausalLM"], "hidden_size": hidden, "intermediate_size": 768,
        "num_hidden_layers": 4, "num_attention_heads": num_heads, "num_key_value_heads": num_kv_heads,
        "head_dim": head_dim, "vocab_size": 300, "max_position_embeddings": 64, "rope_theta": 10000.0,
        "torch_dtype": "bfloat16", "tie_word_embeddings": false
    })
    .to_string()
}
