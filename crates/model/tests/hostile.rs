//! Broken files: one clear line, never a panic, never more memory than the file is worth.
#![allow(clippy::unwrap_used, reason = "this is all test code, helpers included")]

mod rig;

use std::path::Path;

use phalanx_device::{DType, Format};
use phalanx_model::{
    Limits, LoadFormat, LoadOptions, MemoryRequest, Model, ModelConfig, Place, WeightFormats, WeightType,
    Weights, memory,
};
use rig::{Random, files, lone_device};

fn tiny() -> (String, ModelConfig) {
    let text = serde_json::json!({
        "architectures": ["Qwen2ForCausalLM"], "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
        "vocab_size": 40, "max_position_embeddings": 64, "torch_dtype": "bfloat16"
    });
    let text = text.to_string();
    let config = ModelConfig::from_json(Path::new("config.json"), &text).unwrap();
    (text, config)
}

fn gguf() -> Vec<u8> {
    files::gguf(&tiny().1, |_| Format::Q8_0, 1)
}

fn open_gguf(bytes: &[u8]) -> Result<Weights, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    std::fs::write(&path, bytes).unwrap();
    let text = |error: phalanx_model::LoadError| error.to_string().replace(path.to_str().unwrap(), "FILE");
    Weights::open(&path, LoadFormat::Auto).map_err(text)
}

fn open_safetensors(config: &str, bytes: &[u8]) -> Result<Weights, String> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    std::fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    let text = |error: phalanx_model::LoadError| {
        error.to_string().replace(folder.path().to_str().unwrap(), "").replace("/model.safetensors", "FILE")
    };
    Weights::open(folder.path(), LoadFormat::Auto).map_err(text)
}

/// A file that opens also loads, into memory that the file's size bounds.
fn load(weights: &Weights, file_len: usize) {
    let config = weights.config();
    let limits = Limits { max_tokens: 1, max_samples: 1, max_model_len: config.max_model_len.min(8) };
    let request = MemoryRequest {
        formats: WeightFormats::Of(weights, WeightType::F32),
        activation_dtype: DType::F32,
        kv_dtype: DType::F32,
        block_size: 4,
        limits,
    };
    let plan = memory::plan(config, Place::ALONE, &request).unwrap();
    assert!(plan.fixed_bytes() < 16 * file_len + (1 << 20), "{} bytes for {file_len}", plan.fixed_bytes());
    let options = LoadOptions { place: Place::ALONE, limits, weight_type: WeightType::F32 };
    Model::load(&lone_device(), weights, config, &options, &|_| {}).unwrap();
}

/// Changes, cuts and repeats bytes of `file`, mostly in its first `header` ones.
fn mutate(random: &mut Random, file: &[u8], header: usize) -> Vec<u8> {
    let mut bytes = file.to_vec();
    if random.below(8) == 0 {
        bytes.truncate(random.below(file.len()));
        return bytes;
    }
    for _ in 0..1 + random.below(3) {
        let at = random.below(header);
        match random.below(4) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
            2 => bytes[at..at + 8].fill([0, 0xff][random.below(2)]),
            _ => bytes.copy_within(header / 2 + random.below(header / 2)..header, at / 2),
        }
    }
    bytes
}

#[test]
fn a_gguf_file_changed_anywhere_opens_or_says_why_not() {
    let file = gguf();
    let header = file.len() - 20_000;
    let mut random = Random(11);
    let mut opened = 0;
    for _ in 0..3000 {
        let bytes = mutate(&mut random, &file, header.min(4000));
        match open_gguf(&bytes) {
            Ok(weights) => {
                opened += 1;
                load(&weights, bytes.len());
            }
            Err(text) => assert!(!text.contains('\n') && text.len() < 500, "{text}"),
        }
    }
    assert!(0 < opened && opened < 2000, "{opened} opened");
}

#[test]
fn a_safetensors_file_changed_anywhere_opens_or_says_why_not() {
    let (text, config) = tiny();
    let file = files::safetensors(&config, 1);
    let header = 8 + usize::from_le_bytes(file[..8].try_into().unwrap());
    let mut random = Random(12);
    for _ in 0..3000 {
        let bytes = mutate(&mut random, &file, header);
        match open_safetensors(&text, &bytes) {
            Ok(weights) => load(&weights, bytes.len()),
            Err(text) => assert!(!text.contains('\n') && text.len() < 500, "{text}"),
        }
    }
}

#[test]
fn a_config_changed_anywhere_is_read_or_says_why_not() {
    let (text, _) = tiny();
    let mut random = Random(13);
    for _ in 0..5000 {
        let bytes = mutate(&mut random, text.as_bytes(), text.len() - 8);
        let text = String::from_utf8_lossy(&bytes);
        if let Err(error) = ModelConfig::from_json(Path::new("config.json"), &text) {
            assert!(!error.to_string().contains('\n'), "{error}");
        }
    }
}

/// Where the bytes behind `key` begin.
fn behind(file: &[u8], key: &str) -> usize {
    let found = file.windows(key.len()).position(|window| window == key.as_bytes());
    found.expect("the key is in the file") + key.len()
}

fn check_gguf(change: impl Fn(&mut Vec<u8>), expected: &str) {
    let mut file = gguf();
    change(&mut file);
    assert_eq!(open_gguf(&file).unwrap_err(), expected);
}

fn put(file: &mut [u8], at: usize, value: u64, bytes: usize) {
    file[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
}

fn rename(file: &mut [u8], from: &str, to: &str) {
    assert_eq!(from.len(), to.len());
    let end = behind(file, from);
    file[end - from.len()..end].copy_from_slice(to.as_bytes());
}

#[test]
fn gguf_headers_that_lie() {
    check_gguf(|file| file.truncate(3), "FILE: is cut short: it ends at byte 3, inside the magic");
    check_gguf(|file| file[0] = b'X', "FILE: is no GGUF file: it does not begin with GGUF");
    check_gguf(|file| put(file, 4, 1, 4), "FILE: GGUF version 1: 2 and 3 are supported");
    check_gguf(
        |file| file[4..8].reverse(),
        "FILE: GGUF version 50331648: big-endian files are not supported",
    );
    let mut file = gguf();
    put(&mut file, 4, 2, 4);
    assert!(open_gguf(&file).is_ok(), "versions 2 and 3 are read alike");
    file.pop();
    assert!(open_gguf(&file).unwrap_err().contains("reach behind the end of the file"));
    for at in [8, 16] {
        let mut file = gguf();
        put(&mut file, at, 1_000_000_000_000, 8);
        assert!(open_gguf(&file).is_err());
    }
}

#[test]
fn gguf_metadata_that_lies() {
    let heads = |value| {
        move |file: &mut Vec<u8>| {
            let at = behind(file, "qwen2.attention.head_count") + 4;
            put(file, at, value, 4);
        }
    };
    check_gguf(
        heads(0),
        "FILE: qwen2.attention.head_count: is 0, and has to be a whole number from 1 to 4096",
    );
    check_gguf(
        |file| {
            let at = behind(file, "qwen2.attention.head_count_kv") + 4;
            put(file, at, 3, 4);
        },
        "FILE: qwen2.attention.head_count_kv: is 3, which does not divide the 2 query heads",
    );
    check_gguf(
        |file| {
            let end = behind(file, "general.architecture") + 4 + 8;
            file[end..end + 5].copy_from_slice(b"llama");
        },
        "FILE: general.architecture: names llama, and this program knows qwen2; take a model of that kind, such as \
         Qwen/Qwen2.5-7B-Instruct",
    );
    check_gguf(
        |file| {
            let at = behind(file, "tokenizer.ggml.tokens") + 8;
            put(file, at, 1 << 60, 8);
        },
        "FILE: is cut short: metadata tokenizer.ggml.tokens should have 1152921504606846976 values",
    );
    check_gguf(
        |file| {
            let at = behind(file, "tokenizer.ggml.tokens") + 4;
            put(file, at, 9, 4);
        },
        "FILE: metadata tokenizer.ggml.tokens is a list of type 9",
    );
    check_gguf(
        |file| rename(file, "qwen2.embedding_length", "qwen2.feed_forward_leng"[..22].as_ref()),
        "FILE: qwen2.embedding_length: is missing",
    );
}

#[test]
fn gguf_tensors_that_lie() {
    let name = "blk.0.attn_q.weight";
    let at = move |file: &[u8], field: usize| behind(file, name) + field;
    let tensor = |what: &str| format!("FILE: tensor {name}: {what}");
    let change = |field: usize, value: u64, bytes: usize, expected: &str| {
        check_gguf(
            |file| {
                let at = at(file, field);
                put(file, at, value, bytes);
            },
            &tensor(expected),
        );
    };
    change(0, 0, 4, "has 0 dimensions, and has to have one or two");
    change(4, 1 << 60, 8, "its shape [32, 1152921504606846976] is larger than any file");
    change(4, 33, 8, "rows of 33 elements are not whole blocks of 32");
    change(4, 0, 8, "is empty");
    change(12, 16, 8, "has shape [16, 32], but the configuration says [32, 32]");
    change(
        20,
        23,
        4,
        "has type IQ4_XS (23); F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K and Q6_K are supported",
    );
    change(24, u64::MAX, 8, "begins at byte 18446744073709551615 of the data, which is not aligned to 32");
    change(24, u64::MAX - 31, 8, "begins at byte 18446744073709551584");
    change(24, 0, 8, "shares bytes with another tensor");
    check_gguf(|file| rename(file, name, "blk.0.attn_x.weight"), &tensor("is missing"));
    check_gguf(|file| rename(file, "blk.1.attn_q.weight", name), &tensor("is there twice"));
    check_gguf(
        |file| {
            let at = behind(file, "qwen2.block_count") + 4;
            put(file, at, 1, 4);
        },
        "FILE: tensor blk.1.attn_k.bias: is not part of the model that the configuration describes (and 11 others)",
    );
}

fn check_safetensors(from: &str, to: &str, expected: &str) {
    let (config, sizes) = tiny();
    let file = files::safetensors(&sizes, 1);
    let end = 8 + usize::from_le_bytes(file[..8].try_into().unwrap());
    let header = std::str::from_utf8(&file[8..end]).unwrap();
    assert!(header.contains(from), "{header}");
    let header = header.replacen(from, to, 1);
    let mut changed = (header.len() as u64).to_le_bytes().to_vec();
    changed.extend(header.as_bytes());
    changed.extend(&file[end..]);
    assert_eq!(open_safetensors(&config, &changed).unwrap_err(), expected);
}

#[test]
fn safetensors_that_lie() {
    let tensor = |what: &str| format!("FILE: tensor model.embed_tokens.weight: {what}");
    let entry = r#"{"dtype":"BF16","shape":[40,32],"data_offsets":[0,2560]}"#;
    let changes = [
        (
            r#"{"dtype":"I8","shape":[40,32],"data_offsets":[0,2560]}"#,
            "has dtype I8; F32, F16 and BF16 are supported",
        ),
        (
            r#"{"dtype":"BF16","shape":[40,32],"data_offsets":[0,2558]}"#,
            "has offsets 0 to 2558, but its shape needs 2560 bytes",
        ),
        (
            r#"{"dtype":"BF16","shape":[40,32],"data_offsets":[2560,0]}"#,
            "has offsets 2560 to 0, but its shape needs 2560 bytes",
        ),
        (
            r#"{"dtype":"BF16","shape":[40,32],"data_offsets":[18446744073709551615,0]}"#,
            "begins at byte 18446744073709551615",
        ),
        (
            r#"{"dtype":"BF16","shape":[4294967296,4294967296],"data_offsets":[0,2560]}"#,
            "its shape [4294967296, 4294967296] is larger than any file",
        ),
        (
            r#"{"dtype":"BF16","shape":[40],"data_offsets":[0,80]}"#,
            "has shape [1, 40], but the configuration says [40, 32]",
        ),
        (
            r#"{"dtype":"BF16","shape":[2,2,2],"data_offsets":[0,16]}"#,
            "has 3 dimensions, and has to have one or two",
        ),
    ];
    for (changed, what) in changes {
        check_safetensors(entry, changed, &tensor(what));
    }
    let no_shape = r#"{"dtype":"BF16","data_offsets":[0,2560]}"#;
    check_safetensors(
        entry,
        no_shape,
        "FILE: the header is not what it should be: tensor model.embed_tokens.weight: missing field `shape` at line 1 column 69",
    );
    check_safetensors("model.norm.weight", "model.embed_tokens.weight", &tensor("is there twice"));
    check_safetensors("model.norm.weight", "model.nrom.weight", "FILE: tensor model.norm.weight: is missing");
    check_safetensors(
        r#""model.norm.weight""#,
        r#""model.more.weight":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]},"model.norm.weight""#,
        "FILE: tensor model.more.weight: shares bytes with another tensor",
    );
    let (config, _) = tiny();
    let error = open_safetensors(&config, &u64::MAX.to_le_bytes()).unwrap_err();
    assert!(error.starts_with("FILE: is cut short or no safetensors file"), "{error}");
}

#[test]
fn safetensors_with_strings_of_megabytes_are_refused_on_one_short_line() {
    let long = "x\\n".repeat(1 << 20);
    let headers = [
        format!(r#"{{"a":{{"dtype":"{long}","shape":[1],"data_offsets":[0,4]}}}}"#),
        format!(r#"{{"a":{{"dtype":"F32","shape":"{long}","data_offsets":[0,4]}}}}"#),
        format!(r#"{{"{long}":{{"dtype":"F32","shape":[1],"data_offsets":[0,"{long}"]}}}}"#),
        format!(r#"{{"{long}":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}}}"#),
        format!(r#""{long}""#),
    ];
    for header in headers {
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        file.extend([0; 4]);
        let error = open_safetensors(&tiny().0, &file).unwrap_err();
        assert!(error.starts_with("FILE: "), "{error}");
        assert!(!error.contains('\n') && error.len() < 500, "{} bytes: {error}", error.len());
    }
}

#[test]
fn an_index_that_names_no_file_of_its_folder() {
    for (named, shown) in
        [("../../etc/passwd", "../../etc/passwd"), (r"model\n1.safetensors", "model\u{fffd}1.safetensors")]
    {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), tiny().0).unwrap();
        let index = format!(r#"{{"weight_map": {{"model.norm.weight": "{named}"}}}}"#);
        std::fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
        let error = Weights::open(folder.path(), LoadFormat::Auto).unwrap_err().to_string();
        let expected = format!("model.safetensors.index.json: names the file {shown}");
        assert!(error.ends_with(&expected), "{error}");
    }
}

#[test]
fn a_gguf_file_beside_a_config_is_what_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), tiny().0).unwrap();
    let error = Weights::open(folder.path(), LoadFormat::Auto).unwrap_err().to_string();
    assert!(error.ends_with("nor a GGUF file; give a folder that holds the weights too"), "{error}");
    let path = folder.path().join("tiny.gguf");
    std::fs::write(&path, gguf()).unwrap();
    let opened = |format| Weights::open(folder.path(), format).map(|weights| weights.path().to_path_buf());
    assert_eq!(opened(LoadFormat::Auto), Ok(path));
    assert_eq!(opened(LoadFormat::Dummy { seed: 1 }), Ok(folder.path().join("config.json")));
    assert!(opened(LoadFormat::Safetensors).is_err());
    // Weights that the configuration belongs to come first.
    std::fs::write(folder.path().join("model.safetensors"), files::safetensors(&tiny().1, 1)).unwrap();
    assert_eq!(opened(LoadFormat::Auto), Ok(folder.path().to_path_buf()));
}

#[test]
fn tensors_that_do_no_harm_are_let_pass() {
    let (config, sizes) = tiny();
    let file = files::safetensors(&sizes, 1);
    let end = 8 + usize::from_le_bytes(file[..8].try_into().unwrap());
    let header = std::str::from_utf8(&file[8..end]).unwrap();
    let start = file.len() - end;
    let extra =
        r#""model.layers.0.self_attn.rotary_emb.inv_freq":{"dtype":"F32","shape":[1],"data_offsets":"#;
    let header = format!("{{{extra}[{start},{}]}},{}", start + 4, &header[1..]);
    let mut changed = (header.len() as u64).to_le_bytes().to_vec();
    changed.extend(header.as_bytes());
    changed.extend(&file[end..]);
    changed.extend([0; 4]);
    open_safetensors(&config, &changed).unwrap();
    // A tied model may be stored with its output matrix all the same.
    let tied = config.replace('{', r#"{"tie_word_embeddings": true, "#);
    assert!(open_safetensors(&tied, &changed).unwrap().config().tie_word_embeddings);
}

#[test]
fn paths_that_hold_no_model() {
    let folder = tempfile::tempdir().unwrap();
    let open = |name: &str| {
        let path = folder.path().join(name);
        let error = Weights::open(&path, LoadFormat::Auto).unwrap_err().to_string();
        error.replace(folder.path().to_str().unwrap(), "")
    };
    assert_eq!(open("none"), "/none: No such file or directory (os error 2)");
    assert_eq!(open(""), "/: holds no config.json and no GGUF file; give a model's folder, or a GGUF file");
    std::fs::write(folder.path().join("model.safetensors"), "").unwrap();
    assert_eq!(
        open("model.safetensors"),
        "/model.safetensors: is a single file; give the folder that holds config.json and the safetensors files"
    );
    std::fs::write(folder.path().join("empty.gguf"), "").unwrap();
    std::fs::write(folder.path().join("other.gguf"), "").unwrap();
    assert_eq!(open(""), "/: holds several GGUF files; name one of them");
    std::fs::write(folder.path().join("config.json"), "[]").unwrap();
    assert_eq!(open(""), "/config.json: invalid type: sequence, expected a map at line 1 column 0");
}
