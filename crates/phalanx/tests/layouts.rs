//! Every layout by threads on the CPU, from the outside: the same text, and errors that name the flag.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Four heads over two KV heads, four layers: room for three ranks of a layer, unevenly, and three stages.
const CONFIG: &str = r#"{
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", "hidden_size": 64,
    "intermediate_size": 160, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": false,
    "torch_dtype": "float32", "vocab_size": 1088
}"#;

fn tokenizer() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../text/tests/data/tiny_tokenizer.json")
}

/// The folder of a tiny model: nothing but its configuration.
fn tiny_model() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tiny-model");
    std::fs::create_dir_all(&folder).unwrap();
    let config = folder.join("config.json");
    // Tests run side by side: all write the same, and a reader must not meet half of it.
    let fresh = folder.join(format!("{:?}.tmp", std::thread::current().id()));
    std::fs::write(&fresh, CONFIG).unwrap();
    std::fs::rename(&fresh, &config).unwrap();
    folder
}

/// Runs the binary on it with dummy weights.
fn phalanx(command: &[&str], arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_phalanx"))
        .args(command)
        .args([
            "--load-format",
            "dummy",
            "--dtype",
            "float32",
            "--device",
            "cpu",
            "--threads",
            "2",
            "--model",
        ])
        .arg(tiny_model())
        .arg("--tokenizer")
        .arg(tokenizer())
        .args(["--kv-cache-memory", "64MiB"])
        .args(arguments)
        .output()
        .unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn layout(replicas: usize, num_stages: usize, tensor_size: usize) -> [String; 3] {
    [
        format!("--data-parallel-size={replicas}"),
        format!("--pipeline-parallel-size={num_stages}"),
        format!("--tensor-parallel-size={tensor_size}"),
    ]
}

fn answer(layout: &[String]) -> Vec<u8> {
    let command = ["generate", "--prompt", "one and the same", "--temperature", "0", "--max-tokens", "12"];
    let output = phalanx(&command, &layout.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(output.status.success(), "{layout:?}: {}", stderr(&output));
    output.stdout
}

#[test]
fn every_layout_gives_the_same_text() {
    let expected = answer(&[]);
    assert!(1 < expected.len());
    for replicas in 1..=2 {
        for num_stages in 1..=3 {
            for tensor_size in 1..=3 {
                let layout = layout(replicas, num_stages, tensor_size);
                assert_eq!(answer(&layout), expected, "{layout:?}");
            }
        }
    }
}

#[test]
fn replicas_of_a_mesh_share_a_crowd() {
    let command = ["bench", "throughput", "--batch-size", "6", "--input-len", "40", "--output-len", "8"];
    let layout = layout(2, 2, 2);
    let arguments: Vec<&str> =
        layout.iter().map(String::as_str).chain(["--repeats", "1", "--json"]).collect();
    let output = phalanx(&command, &arguments);
    assert!(output.status.success(), "{}", stderr(&output));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(report["device"].as_str().unwrap().contains("8 x 1 threads"), "{report}");
}

#[test]
fn a_layout_that_cannot_be_names_its_flag() {
    let cases = [
        ("--tensor-parallel-size=5", "--tensor-parallel-size 5 is more than the model's 4 query heads"),
        ("--pipeline-parallel-size=5", "--pipeline-parallel-size 5 is more than the model's 4 layers"),
        ("--tensor-parallel-size=0", "--tensor-parallel-size"),
        ("--pipeline-parallel-size=x", "--pipeline-parallel-size"),
        ("--data-parallel-size=-1", "--data-parallel-size"),
        ("--objective=speed", "--objective"),
    ];
    for (flag, expected) in cases {
        let output = phalanx(&["generate", "--prompt", "x"], &[flag]);
        assert!(!output.status.success(), "{flag}");
        let told = stderr(&output);
        assert!(told.contains(expected), "{flag}: {told}");
    }
}

/// Nothing to choose from: what was asked for stays, and an objective beside a layout is told to be idle.
#[test]
fn an_objective_beside_a_layout_is_told_to_choose_nothing() {
    let command = ["generate", "--prompt", "x", "--max-tokens", "1", "--log", "warn"];
    let output = phalanx(&command, &["--objective=throughput", "--tensor-parallel-size=1"]);
    assert!(output.status.success());
    assert!(stderr(&output).contains("--objective chooses nothing"), "{}", stderr(&output));
    let output = phalanx(&command, &["--objective=throughput"]);
    assert!(output.status.success() && !stderr(&output).contains("--objective"), "{}", stderr(&output));
}

/// What the files have in 32 bits takes 16 on GPUs, and a plan says so.
#[test]
fn a_plan_for_gpus_weighs_two_bytes_an_element() {
    let folder = tiny_model();
    let plan = |arguments: &[&str]| {
        let command = Command::new(env!("CARGO_BIN_EXE_phalanx"))
            .args(["plan", "--json", "--model"])
            .arg(&folder)
            .args(arguments)
            .output()
            .unwrap();
        assert!(command.status.success(), "{}", stderr(&command));
        serde_json::from_slice::<serde_json::Value>(&command.stdout).unwrap()
    };
    let too_small = Command::new(env!("CARGO_BIN_EXE_phalanx"))
        .args(["plan", "--gpus", "1x4090D", "--model", "Qwen2.5-72B", "--json"])
        .output()
        .unwrap();
    assert_eq!(too_small.status.code(), Some(1), "a script hears that nothing fits");
    let told: serde_json::Value = serde_json::from_slice(&too_small.stdout).unwrap();
    assert!(told["layouts"][0]["does_not_fit"].is_string() && told["chosen"].is_null(), "{told}");
    // Two tables of 1088 by 64; a layer's matrices; norms and biases add little.
    let matrices = 2 * 1088 * 64 + 4 * (64 * (64 + 2 * 32) + 64 * 64 + 3 * 64 * 160);
    let weights = [&plan(&["--devices", "1"])[0], &plan(&["--gpus", "1xH200"])["layouts"][0]]
        .map(|layout| layout["weights_bytes"].as_u64().unwrap());
    assert_eq!(weights[0], weights[1]);
    assert!((matrices * 2..matrices * 21 / 10).contains(&weights[0]), "{weights:?}, {matrices} elements");
}
