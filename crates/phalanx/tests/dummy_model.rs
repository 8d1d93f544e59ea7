//! The binary with dummy weights of a tiny model, from the outside: a crowd over HTTP, and what the benches report.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// The binary, told of a model of two layers whose weights are made up.
fn phalanx(arguments: &[&str]) -> Command {
    let config = json!({
        "architectures": ["Qwen2ForCausalLM"], "hidden_size": 112, "intermediate_size": 320, "num_hidden_layers": 2,
        "num_attention_heads": 7, "num_key_value_heads": 1, "vocab_size": 1088, "max_position_embeddings": 4096
    });
    // Tests run at the same time: each writes a file of its own.
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("config").replace(':', "-");
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.json"));
    std::fs::write(&path, config.to_string()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_phalanx"));
    command.args(arguments).args(["--load-format", "dummy", "--device", "cpu", "--model"]).arg(path);
    command.arg("--tokenizer").arg(root().join("crates/text/tests/data/tiny_tokenizer.json"));
    command
}

#[test]
fn a_crowd_of_256_loses_nothing_and_leaves_nothing() {
    let python = std::env::var("PHALANX_TEST_PYTHON")
        .expect("PHALANX_TEST_PYTHON must name a Python with the package requests: run scripts/test");
    let (mut server, told, address) = served();
    // Someone has to read the rest, or the server would wait for room in the pipe.
    std::thread::spawn(move || told.lines().for_each(drop));
    let crowd =
        Command::new(&python).arg(root().join("tests/clients/crowd.py")).arg(address).output().unwrap();
    server.kill().unwrap();
    server.wait().unwrap();
    assert!(crowd.status.success(), "{}", said(&crowd));
}

/// A server of the tiny model, the rest of what it will tell, and its address.
fn served() -> (Child, BufReader<ChildStderr>, String) {
    started(phalanx(&["serve", "--port", "0"]))
}

fn started(mut command: Command) -> (Child, BufReader<ChildStderr>, String) {
    let mut server = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut told = BufReader::new(server.stderr.take().unwrap());
    let address = told.by_ref().lines().map(Result::unwrap);
    let address = address.into_iter().find_map(|line| Some(line.split_once(" at ")?.1.to_owned()));
    (server, told, address.expect("the server tells its address"))
}

#[test]
fn a_log_that_nobody_reads_keeps_no_request_waiting() {
    // Once the reader stands still, as a hanging log collector does, and once it is gone.
    for gone in [false, true] {
        let (mut server, told, address) = served();
        let held = (!gone).then_some(told);
        let client = ureq::Agent::config_builder().http_status_as_error(false);
        let client = client.timeout_global(Some(Duration::from_secs(60))).build().new_agent();
        // Each is a line of more than 200 bytes, and a pipe holds 65,536.
        for request in 0..500 {
            let answer = client.post(format!("{address}/generate")).send_json(json!({ "prompt": "" }));
            let status = answer.map(|answer| answer.status().as_u16());
            assert!(matches!(status, Ok(400)), "request {request}, reader gone: {gone}: {status:?}");
        }
        server.kill().unwrap();
        server.wait().unwrap();
        drop(held);
    }
}

#[test]
fn more_clients_than_files_are_allowed_at_first_are_answered() {
    let inner = phalanx(&["serve", "--port", "0"]);
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -Sn 64 && exec \"$0\" \"$@\""])
        .arg(inner.get_program())
        .args(inner.get_args());
    let (mut server, told, address) = started(command);
    let idle: Vec<TcpStream> =
        (0..100).map(|_| TcpStream::connect(address.trim_start_matches("http://")).unwrap()).collect();
    let client =
        ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(60))).build().new_agent();
    let health = client.get(format!("{address}/health")).call().map(|answer| answer.status().as_u16());
    assert!(matches!(health, Ok(200)), "{health:?}");
    server.kill().unwrap();
    server.wait().unwrap();
    drop((idle, told));
}

#[test]
fn a_chat_goes_on_after_bytes_that_are_no_text() {
    let template = Path::new(env!("CARGO_TARGET_TMPDIR")).join("chat.jinja");
    std::fs::write(&template, "{% for message in messages %}{{ message.content }}{% endfor %}").unwrap();
    let mut command = phalanx(&["chat", "--max-tokens", "2"]);
    command.arg("--chat-template").arg(&template);
    let mut chat =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    chat.stdin.take().unwrap().write_all(b"one\n\xff\xfe\nthree\n").unwrap();
    let output = chat.wait_with_output().unwrap();
    let answers = String::from_utf8_lossy(&output.stderr).matches("tokens/s").count();
    assert_eq!((output.status.code(), answers), (Some(0), 3), "{}", said(&output));
}

#[test]
fn output_that_cannot_be_kept_is_a_failure() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_phalanx"))
        .arg("plan")
        .stdout(full)
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("cannot be written"), "{}", said(&output));
}

#[test]
fn a_plan_takes_its_model_as_a_server_does() {
    let plan = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_phalanx"));
        let output = command.args(["plan", "--json"]).args(arguments).output().unwrap();
        serde_json::from_slice::<Value>(&output.stdout).unwrap_or_else(|_| panic!("{}", said(&output)))
    };
    let named = plan(&["--model", "Qwen2.5-7B-Instruct"]);
    assert_eq!(plan(&["Qwen2.5-7B-Instruct"]), named);
    assert_ne!(plan(&[]), named);
}

#[test]
fn a_list_does_not_swallow_the_model() {
    for flag in ["--api-key", "--served-model-name"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_phalanx"));
        let output =
            command.args(["serve", "--port", "0", "--offline", flag, "x", "/no/such.gguf"]).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(said(&output).contains("MODEL first"), "{}", said(&output));
    }
}

#[test]
fn a_cause_is_told_once() {
    let usual = phalanx(&["generate", "--prompt", "x"]);
    // The tokenizer is the last argument.
    let arguments = usual.get_args().take(usual.get_args().count() - 1);
    let output = Command::new(usual.get_program()).args(arguments).arg("/no/such/file").output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    assert_eq!(said(&output).matches("os error 2").count(), 1, "{}", said(&output));
}

fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).join("\n")
}

fn bench(arguments: &[&str]) -> Output {
    phalanx(&[&["bench"], arguments, &["--repeats", "2", "--json"]].concat()).output().unwrap()
}

/// A figure lies between its runs' ends, and its share of the limit is that of its median.
fn assert_sound(figure: &Value) {
    let value = |key: &str| figure[key].as_f64().unwrap_or_else(|| panic!("{key} of {figure}"));
    assert!(0.0 < value("lowest") && value("lowest") <= value("median"), "{figure}");
    assert!(value("median") <= value("highest") && 0.0 < value("limit"), "{figure}");
    let share = match figure["unit"].as_str() {
        Some("ms") => value("limit") / value("median"),
        _ => value("median") / value("limit"),
    };
    assert!((value("of_limit") / share - 1.0).abs() < 1e-9, "{figure}");
}

#[test]
fn each_bench_reports_figures_beside_their_limits() {
    let cases: [(&[&str], usize); 4] = [
        // Long answers: all three requests have to be decoding at some moment, however busy this machine is.
        (&["latency", "--batch-size", "1,3", "--output-len", "1000"], 4),
        (&["prefill", "--input-len", "5,40"], 4),
        (&["throughput", "--batch-size", "6", "--input-len", "20", "--output-len", "5"], 2),
        (&["throughput", "--batch-size", "6", "--input-len", "20", "--output-len", "5", "--mixed"], 2),
    ];
    for (arguments, figures) in cases {
        let output = bench(arguments);
        let report: Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(&output)));
        assert_eq!(report["figures"].as_array().unwrap().len(), figures, "{report}");
        report["figures"].as_array().unwrap().iter().for_each(assert_sound);
        assert_eq!(report["limits"].as_array().unwrap().len(), 1, "{report}");
    }
}

#[test]
fn a_matrix_has_a_row_for_each_length_and_batch_that_fits_and_a_reason_for_each_that_does_not() {
    let output = bench(&["matrix", "--input-len", "30,4090", "--output-len", "7", "--batch-size", "1,4"]);
    let report: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(&output)));
    let rows = report["matrix"].as_array().unwrap();
    let key = |row: &Value| ["input_len", "output_len", "batch_size"].map(|key| row[key].as_u64().unwrap());
    assert_eq!(rows.iter().map(key).collect::<Vec<_>>(), [[30, 7, 1], [30, 7, 4]]);
    for row in rows {
        ["output", "total", "first_token"].iter().for_each(|figure| assert_sound(&row[figure]));
        assert!(0 < row["device_bytes"].as_u64().unwrap(), "{row}");
    }
    let reasons = report["left_out"].as_array().unwrap();
    assert!(reasons.len() == 1 && reasons[0].as_str().unwrap().contains("--max-model-len"), "{reasons:?}");
}

#[test]
fn layouts_are_measured_one_after_the_other_and_one_that_cannot_be_is_a_row_with_its_reason() {
    let flags = [
        "--layouts",
        "tp2,dp2pp2,tp9",
        "--input-len",
        "20,5000",
        "--batch-size",
        "1,2",
        "--output-len",
        "40",
    ];
    let crowd = ["--crowd", "6x20+5", "--threads", "2", "--kv-cache-memory", "8MiB"];
    let output = bench(&[&["layouts"][..], &flags, &crowd].concat());
    let text = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.len() == 4, "a line for each and the summary: {}", said(&output));
    for (row, layout) in lines.iter().zip(["tp2", "dp2pp2"]) {
        assert_eq!(row["layout"], layout);
        [&row["first_tokens"][0], &row["decode"][0], &row["crowd"]].into_iter().for_each(assert_sound);
        assert_eq!(row["crowd"]["predicted"], Value::Null, "nobody predicts a CPU");
        assert!(0 < row["memory"][0]["planned_bytes"].as_u64().unwrap(), "{row}");
        let left_out = row["left_out"].to_string();
        assert!(row["first_tokens"][1].is_null() && left_out.contains("--max-model-len"), "{row}");
    }
    assert!(lines[2]["start_seconds"].is_null(), "{}", lines[2]);
    assert!(lines[2]["left_out"][0].as_str().unwrap().contains("--tensor-parallel-size 9"), "{}", lines[2]);
    let summary = &lines[3]["summary"];
    assert_eq!(summary["fastest"].as_array().unwrap().len(), 2, "{summary}");
    assert!(summary["unpredicted"].as_str().unwrap().contains("CPU"), "{summary}");
}

#[test]
fn what_no_bench_can_measure_is_refused_with_the_flag() {
    let cases: [(&[&str], &str); 9] = [
        (&["layouts", "--tp", "2"], "--layouts tp2,pp2"),
        (&["layouts", "--layouts", "2x2"], "no layout such as tp4"),
        (&["layouts", "--layouts", "tp9"], "no layout could be measured"),
        (&["latency", "--layouts", "tp2"], "--layouts and --crowd are for `bench layouts`"),
        (&["latency", "--input-len", "1,2"], "--input-len"),
        (&["latency", "--output-len", "1"], "--output-len 1"),
        (&["prefill", "--input-len", "5000"], "--max-model-len"),
        (&["matrix", "--input-len", "4000"], "--max-model-len"),
        (&["latency", "--mixed"], "--mixed"),
    ];
    for (arguments, named) in cases {
        let output = bench(arguments);
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && complaint.contains(named), "{arguments:?}: {complaint}");
    }
}
