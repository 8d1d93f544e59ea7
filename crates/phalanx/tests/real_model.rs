//! The binary with a real Qwen2.5, from the outside: reference texts, official clients, crowds and people who leave.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Servers are started one after the other: each takes all cores, and together they would take all memory.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Longest time anything here may take before it counts as hanging.
const PATIENCE: Duration = Duration::from_secs(300);

fn model() -> String {
    std::env::var("PHALANX_TEST_MODEL").expect(
        "PHALANX_TEST_MODEL must name the small real model: run scripts/test, or set it to the output of \
         `cargo run -p phalanx -- pull qwen2.5-coder-0.5b-instruct`",
    )
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// A running `phalanx serve`, ended when dropped.
struct Server {
    process: Child,
    address: String,
    _turn: MutexGuard<'static, ()>,
}

impl Server {
    fn start(arguments: &[&str]) -> Self {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let mut process = Command::new(env!("CARGO_BIN_EXE_phalanx"))
            .args(["serve", "--model", &model(), "--served-model-name", "real", "--port", "0"])
            .args(arguments)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut told = BufReader::new(process.stderr.take().unwrap()).lines();
        let mut seen = Vec::new();
        let address = loop {
            let Some(Ok(line)) = told.next() else { panic!("the server ended: {seen:#?}") };
            if let Some((_, address)) = line.split_once(" at http://") {
                break address.to_owned();
            }
            seen.push(line);
        };
        // Someone has to read the rest, or the server would wait for room in the pipe.
        std::thread::spawn(move || told.for_each(drop));
        Self { process, address, _turn: turn }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        let mut response = ureq::post(self.url(path)).send_json(body).unwrap();
        response.body_mut().read_json().unwrap()
    }

    /// The value of a metric that has one series.
    fn metric(&self, name: &str) -> f64 {
        let text = ureq::get(self.url("/metrics")).call().unwrap().body_mut().read_to_string().unwrap();
        let line = text.lines().find(|line| line.starts_with(name) && !line.starts_with('#'));
        line.and_then(|line| line.rsplit(' ').next())
            .unwrap_or_else(|| panic!("{name} is exposed"))
            .parse()
            .unwrap()
    }

    /// Waits until nothing runs or waits and no block is held.
    fn assert_returns_to_zero(&self) {
        let start = Instant::now();
        let gauges = ["vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"];
        loop {
            let values = gauges.map(|name| self.metric(name));
            if values == [0.0; 3] {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "{gauges:?} stay at {values:?}");
            std::thread::yield_now();
        }
    }

    /// Greedy tokens for each prompt, all asked at once.
    fn greedy(&self, prompts: &[Vec<u64>], tokens: usize) -> Vec<Vec<u64>> {
        let ask = |ids: &Vec<u64>| {
            let body = json!({"input_ids": ids, "max_new_tokens": tokens, "temperature": 0, "ignore_eos": true,
                              "repetition_penalty": 1.0});
            let answer = self.post("/generate", &body);
            let ids = answer["output_ids"].as_array().unwrap_or_else(|| panic!("{answer}"));
            ids.iter().map(|id| id.as_u64().unwrap()).collect()
        };
        std::thread::scope(|scope| {
            let asking: Vec<_> = prompts.iter().map(|ids| scope.spawn(move || ask(ids))).collect();
            asking.into_iter().map(|answer| answer.join().unwrap()).collect()
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ended = self.process.kill();
        let _reaped = self.process.wait();
    }
}

/// What transformers says: prompts' ids, and the 64 tokens that follow.
fn reference() -> (Vec<Vec<u64>>, Vec<Vec<u64>>) {
    let text = std::fs::read_to_string(root().join("golden/data/greedy.json")).unwrap();
    let golden: Value = serde_json::from_str(&text).unwrap();
    let ids = |case: &Value, key: &str| {
        case[key].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect::<Vec<_>>()
    };
    golden["cases"].as_array().unwrap().iter().map(|case| (ids(case, "ids"), ids(case, "tokens"))).unzip()
}

#[test]
fn greedy_text_is_the_references_in_float32() {
    let (prompts, expected) = reference();
    let server = Server::start(&["--dtype", "float32", "--max-model-len", "1024"]);
    for (case, answer) in server.greedy(&prompts, 64).iter().enumerate() {
        assert_eq!(answer, &expected[case], "prompt {case}");
    }
}

#[test]
fn greedy_text_is_the_references_on_the_quantised_path() {
    const TOKENS: usize = 40;
    let (prompts, expected) = reference();
    let server = Server::start(&["--max-model-len", "1024"]);
    let answers = server.greedy(&prompts, TOKENS);
    let equal = |answer: &Vec<u64>, expected: &Vec<u64>| answer[..] == expected[..TOKENS];
    let differing: Vec<usize> =
        (0..prompts.len()).filter(|case| !equal(&answers[*case], &expected[*case])).collect();
    assert!(differing.len() <= 1, "prompts {differing:?} of {} differ", prompts.len());
}

#[test]
fn ranks_and_stages_change_nothing() {
    let (prompts, _) = reference();
    let prompts = &prompts[..4];
    let alone = Server::start(&["--max-model-len", "1024"]).greedy(prompts, 24);
    for layout in [["--tp", "2", "--pp", "1"], ["--tp", "3", "--pp", "1"], ["--tp", "2", "--pp", "2"]] {
        let server = Server::start(&[&layout[..], &["--max-model-len", "1024"]].concat());
        assert_eq!(server.greedy(prompts, 24), alone, "{layout:?}");
    }
}

#[test]
fn the_tokenizer_is_the_references() {
    let text = std::fs::read_to_string(root().join("golden/data/tokenizer_qwen2_5.json")).unwrap();
    let reference = phalanx_text::TokenizerReference::from_json(&text).unwrap();
    let weights = phalanx_model::Weights::open(Path::new(&model()), phalanx_model::LoadFormat::Auto).unwrap();
    let held = weights.vocabulary().unwrap();
    let tokenizer = phalanx_text::Tokenizer::from_vocabulary(&phalanx_text::Vocabulary {
        tokens: held.tokens.clone(),
        token_types: held.token_types.clone(),
        merges: held.merges.clone(),
        pre: held.pre.clone(),
        bos: held.bos,
        eos: held.eos,
    });
    let differences = reference.differences(&tokenizer.unwrap());
    assert!(differences.is_empty(), "{} of {}: {differences:#?}", differences.len(), reference.len());
}

#[test]
fn official_and_source_clients_are_content() {
    let python = std::env::var("PHALANX_TEST_PYTHON").expect(
        "PHALANX_TEST_PYTHON must name a Python with the packages openai and requests: run scripts/test",
    );
    let server = Server::start(&["--max-model-len", "4096"]);
    for client in ["source_client.py", "openai_client.py"] {
        let script = root().join("tests/clients").join(client);
        let output = Command::new(&python).arg(&script).arg(server.url("")).output().unwrap();
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        assert!(output.status.success(), "{client}: {}", said.join("\n"));
    }
}

#[test]
fn a_crowd_is_served_and_those_who_leave_leave_nothing() {
    let server = Server::start(&["--max-model-len", "2048"]);
    crowd(&server);
    server.assert_returns_to_zero();
    leavers(&server);
    server.assert_returns_to_zero();
    let answer =
        server.post("/generate", &json!({"prompt": "1, 2, 3,", "max_new_tokens": 4, "temperature": 0}));
    assert_eq!(answer["text"], " 4, ", "the server is well after all that: {answer}");
}

/// 64 requests of mixed length at once: all complete, to the last token asked for.
fn crowd(server: &Server) {
    std::thread::scope(|scope| {
        for i in 0..64_usize {
            scope.spawn(move || {
                let asked = 1 + i * 7 % 40;
                let prompt = "The quick brown fox jumps over the lazy dog. ".repeat(1 + i % 9);
                let body =
                    json!({"prompt": format!("{i}. {prompt}"), "max_new_tokens": asked, "ignore_eos": true});
                let answer = server.post("/generate", &body);
                assert_eq!(
                    answer["output_ids"].as_array().map(Vec::len),
                    Some(asked),
                    "request {i}: {answer}"
                );
            });
        }
    });
}

/// 200 clients hang up: before the headers are done, while they wait, in the middle of a stream.
fn leavers(server: &Server) {
    let mut random = fastrand::Rng::with_seed(11);
    let choices: Vec<(bool, usize)> = (0..200).map(|_| (random.bool(), random.usize(0..3))).collect();
    for crowd in choices.chunks(25) {
        std::thread::scope(|scope| {
            for (stream, manner) in crowd {
                scope.spawn(move || leave(server, *stream, *manner));
            }
        });
    }
}

fn leave(server: &Server, stream: bool, manner: usize) {
    let body =
        json!({"prompt": "Once upon a time", "max_new_tokens": 500, "ignore_eos": true, "stream": stream})
            .to_string();
    let head = format!(
        "POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let mut connection = TcpStream::connect(&server.address).unwrap();
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    match manner {
        0 => connection.write_all(&head.as_bytes()[..40]).unwrap(),
        1 => connection.write_all(format!("{head}{body}").as_bytes()).unwrap(),
        _ => {
            connection.write_all(format!("{head}{body}").as_bytes()).unwrap();
            // A stream's first bytes; without a stream there are none until the end, so nothing is waited for.
            if stream {
                connection.read_exact(&mut [0; 64]).unwrap();
            }
        }
    }
}

#[test]
fn the_terminal_command_answers() {
    let arguments = ["--chat", "--prompt", "What is the capital of France? One word.", "--max-tokens", "8"];
    let output = Command::new(env!("CARGO_BIN_EXE_phalanx"))
        .args(["generate", "--model", &model(), "--temperature", "0", "--max-model-len", "512"])
        .args(arguments)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("Paris"),
        "{said} {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn top_shows_a_server_that_works() {
    let server = Server::start(&["--max-model-len", "512"]);
    server.post("/generate", &json!({"prompt": "1, 2, 3,", "max_new_tokens": 4, "ignore_eos": true}));
    let output = Command::new(env!("CARGO_BIN_EXE_phalanx"))
        .args(["top", "--once", "--interval", "0.1", "--url", &server.url("")])
        .output()
        .unwrap();
    let picture = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{picture} {}", String::from_utf8_lossy(&output.stderr));
    for part in ["real at http://", "0 running", "KV blocks", "TTFT       p50", "(since the start)"] {
        assert!(picture.contains(part), "{part} is not in\n{picture}");
    }
    assert!(!picture.contains("GPU"), "the CPU is no GPU:\n{picture}");
}

#[test]
fn bench_measures_what_the_readme_says() {
    let output = Command::new(env!("CARGO_BIN_EXE_phalanx"))
        .args([
            "bench",
            "latency",
            "--model",
            &model(),
            "--batch-size",
            "1,2",
            "--output-len",
            "4",
            "--repeats",
            "1",
            "--json",
        ])
        .args(["--max-model-len", "512"])
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    assert_eq!(report["figures"].as_array().map(Vec::len), Some(4), "{report}");
}
