//! What is refused, and how: status, field and code, as data.

use serde_json::{Value, json};

use crate::client::{JSON, get, post, post_text, send};
use crate::{Running, Setup};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";
const GENERATE: &str = "/generate";

/// A refused field value: route, the field added to a good body, the `param` of the answer.
type Refused = (&'static str, Value, &'static str);

fn wrong_types() -> Vec<Refused> {
    vec![
        (CHAT, json!({ "temperature": "hot" }), "temperature"),
        (CHAT, json!({ "top_k": 1.5 }), "top_k"),
        (CHAT, json!({ "stream": "yes" }), "stream"),
        (CHAT, json!({ "max_tokens": -1 }), "max_tokens"),
        (CHAT, json!({ "seed": 1e30 }), "seed"),
        (CHAT, json!({ "model": 7 }), "model"),
        (CHAT, json!({ "logit_bias": [] }), "logit_bias"),
        (CHAT, json!({ "logit_bias": { "x": 1 } }), "logit_bias"),
        (CHAT, json!({ "logit_bias": { "97": "x" } }), "logit_bias.97"),
        (CHAT, json!({ "stop": 5 }), "stop"),
        (CHAT, json!({ "stop": ["a", 5] }), "stop[1]"),
        (CHAT, json!({ "stop_token_ids": [1, "x"] }), "stop_token_ids[1]"),
        (CHAT, json!({ "stream_options": 3 }), "stream_options"),
        (
            CHAT,
            json!({ "stream": true, "stream_options": { "include_usage": 1 } }),
            "stream_options.include_usage",
        ),
        (CHAT, json!({ "stream_options": { "include_usage": true } }), "stream_options"),
        (CHAT, json!({ "messages": "hello" }), "messages"),
        (CHAT, json!({ "messages": [] }), "messages"),
        (CHAT, json!({ "messages": ["hello"] }), "messages[0]"),
        (CHAT, json!({ "messages": [{ "content": "x" }] }), "messages[0].role"),
        (CHAT, json!({ "messages": [{ "role": "wizard", "content": "x" }] }), "messages[0].role"),
        (CHAT, json!({ "messages": [{ "role": "user" }] }), "messages[0].content"),
        (CHAT, json!({ "messages": [{ "role": "user", "content": 5 }] }), "messages[0].content"),
        (CHAT, json!({ "messages": [{ "role": "assistant", "tool_calls": "x" }] }), "messages[0].tool_calls"),
        (
            CHAT,
            json!({ "messages": [{ "role": "assistant", "tool_calls": [5] }] }),
            "messages[0].tool_calls[0]",
        ),
        (
            CHAT,
            json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url", "image_url": {} }] }] }),
            "messages[0].content[0]",
        ),
        (TEXT, json!({ "prompt": 5 }), "prompt"),
        (TEXT, json!({ "prompt": {} }), "prompt"),
        (TEXT, json!({ "prompt": [] }), "prompt"),
        (TEXT, json!({ "prompt": "" }), "prompt"),
        (TEXT, json!({ "prompt": ["a", 5] }), "prompt[1]"),
        (TEXT, json!({ "prompt": [97, -1] }), "prompt[1]"),
        (TEXT, json!({ "prompt": [[97], [[]]] }), "prompt[1][0]"),
        (TEXT, json!({ "logprobs": true }), "logprobs"),
    ]
}

fn out_of_range() -> Vec<Refused> {
    vec![
        (CHAT, json!({ "temperature": -0.1 }), "temperature"),
        (CHAT, json!({ "temperature": 1e39 }), "temperature"),
        (CHAT, json!({ "top_p": 1.1 }), "top_p"),
        (CHAT, json!({ "min_p": -1 }), "min_p"),
        (CHAT, json!({ "n": 0 }), "n"),
        (CHAT, json!({ "n": 129 }), "n"),
        (CHAT, json!({ "n": 18_446_744_073_709_551_615_u64 }), "n"),
        (CHAT, json!({ "presence_penalty": 3 }), "presence_penalty"),
        (CHAT, json!({ "repetition_penalty": 0 }), "repetition_penalty"),
        (CHAT, json!({ "logit_bias": { "97": 101 } }), "logit_bias"),
        (CHAT, json!({ "logit_bias": { "257": 1 } }), "logit_bias"),
        (CHAT, json!({ "stop": [""] }), "stop"),
        (CHAT, json!({ "stop": vec!["x"; 17] }), "stop"),
        (CHAT, json!({ "stop_token_ids": [257] }), "stop_token_ids"),
        (CHAT, json!({ "max_tokens": 0 }), "max_tokens"),
        (CHAT, json!({ "max_completion_tokens": 0 }), "max_completion_tokens"),
        (CHAT, json!({ "max_completion_tokens": 5, "max_tokens": 6 }), "max_tokens"),
        (CHAT, json!({ "logprobs": true, "top_logprobs": 21 }), "top_logprobs"),
        (CHAT, json!({ "top_logprobs": 2 }), "top_logprobs"),
        (CHAT, json!({ "cache_salt": "x".repeat(2000) }), "cache_salt"),
        (CHAT, json!({ "continue_final_message": true }), "continue_final_message"),
        (CHAT, json!({ "chat_template_kwargs": { "tokenize": 1 } }), "chat_template_kwargs.tokenize"),
        (TEXT, json!({ "prompt": [257] }), "prompt"),
        (TEXT, json!({ "prompt": vec!["x"; 257] }), "prompt"),
        (TEXT, json!({ "prompt": vec!["x"; 200], "n": 2 }), "n"),
        (TEXT, json!({ "logprobs": 21 }), "logprobs"),
    ]
}

fn known_and_not_there() -> Vec<Refused> {
    vec![
        (CHAT, json!({ "tools": [{ "type": "function" }] }), "tools"),
        (CHAT, json!({ "tool_choice": "required" }), "tool_choice"),
        (CHAT, json!({ "functions": [{}] }), "functions"),
        (CHAT, json!({ "response_format": { "type": "json_object" } }), "response_format"),
        (CHAT, json!({ "modalities": ["text", "audio"] }), "modalities"),
        (CHAT, json!({ "chat_template": "{{ x }}" }), "chat_template"),
        (CHAT, json!({ "guided_json": {} }), "guided_json"),
        (TEXT, json!({ "suffix": "x" }), "suffix"),
        (TEXT, json!({ "best_of": 2 }), "best_of"),
        (TEXT, json!({ "echo": true, "logprobs": 1 }), "logprobs"),
        (TEXT, json!({ "use_beam_search": true }), "use_beam_search"),
        (CHAT, json!({ "priority": -2_147_483_648_i64 }), "priority"),
        (GENERATE, json!({ "parameters": { "priority": 1 } }), "parameters.priority"),
        (GENERATE, json!({ "return_logprob": true }), "return_logprob"),
    ]
}

fn other_routes() -> Vec<Refused> {
    vec![
        (GENERATE, json!({ "max_new_tokens": 0 }), "max_new_tokens"),
        (GENERATE, json!({ "max_new_tokens": 5, "max_tokens": 6 }), "max_tokens"),
        (GENERATE, json!({ "text": "y" }), "text"),
        (GENERATE, json!({ "sampling_params": 5 }), "sampling_params"),
        (GENERATE, json!({ "sampling_params": { "top_p": "x" } }), "sampling_params.top_p"),
        (GENERATE, json!({ "top_p": 1, "sampling_params": { "top_p": 0.5 } }), "sampling_params.top_p"),
        (GENERATE, json!({ "prompt": [97], "chat": true }), "chat"),
        ("/tokenize", json!({ "prompt": 5 }), "prompt"),
        ("/detokenize", json!({ "tokens": "x" }), "tokens"),
        ("/detokenize", json!({ "tokens": [1, 257] }), "tokens[1]"),
    ]
}

fn missing() -> Vec<Refused> {
    vec![
        (CHAT, json!({ "messages": null }), "messages"),
        (TEXT, json!({ "prompt": null }), "prompt"),
        ("/tokenize", json!({ "prompt": null }), "prompt"),
        ("/detokenize", json!({ "tokens": null }), "tokens"),
    ]
}

fn too_long() -> Vec<Refused> {
    vec![
        (CHAT, json!({ "max_tokens": 5_000_000 }), "messages"),
        (TEXT, json!({ "prompt": vec![97; 1 << 20] }), "prompt"),
    ]
}

/// A body that the route accepts.
fn good(path: &str) -> Value {
    match path {
        CHAT => json!({ "messages": [{ "role": "user", "content": "hello" }] }),
        "/detokenize" => json!({ "tokens": [104] }),
        _ => json!({ "prompt": "hello" }),
    }
}

/// Adds each field to a good body, and expects 400 with this code.
async fn refuses(server: &Running, code: &str, cases: Vec<Refused>) {
    for (path, field, param) in cases {
        let mut body = good(path);
        body.as_object_mut().unwrap().extend(field.as_object().unwrap().clone());
        let response = post(server.address, path, &body).await;
        let shown: String = format!("{path} {field}").chars().take(120).collect();
        assert_eq!(response.status, 400, "{shown}: {}", response.body);
        let error = &response.json()["error"];
        assert_eq!(
            (error["param"].as_str(), error["code"].as_str()),
            (Some(param), Some(code)),
            "{shown}: {error}"
        );
        assert_eq!(error["type"], "invalid_request_error");
        let message = error["message"].as_str().unwrap();
        for type_of_rust in ["f32", "usize", "u32", "i64", "struct", "variant"] {
            assert!(!message.contains(type_of_rust), "{shown}: {message}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_field_is_named() {
    let server = Running::start().await;
    refuses(&server, "invalid_value", wrong_types()).await;
    refuses(&server, "invalid_value", out_of_range()).await;
    refuses(&server, "invalid_value", other_routes()).await;
    refuses(&server, "unsupported_parameter", known_and_not_there()).await;
    refuses(&server, "missing_required_parameter", missing()).await;
    refuses(&server, "context_length_exceeded", too_long()).await;
    assert_eq!(server.engine.metrics().live_requests, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bodies_of_good_requests_are_good() {
    let server = Running::start().await;
    for path in [CHAT, TEXT, GENERATE, "/tokenize", "/detokenize"] {
        assert_eq!(post(server.address, path, &good(path)).await.status, 200, "{path}");
    }
    // What asks for nothing is accepted without a word.
    let mut body = good(CHAT);
    body.as_object_mut().unwrap().extend(
        json!({
            "model": "fake", "tools": [], "tool_choice": "none", "response_format": { "type": "text" },
            "parallel_tool_calls": false, "store": false, "service_tier": "auto", "user": "u", "metadata": { "a": 1 },
            "modalities": ["text"], "temperature": null, "stop": null, "n": 1, "best_of": 1, "logprobs": false,
            "top_logprobs": 0, "seed": -9_007_199_254_740_991_i64, "logit_bias": { "97": -100 }, "stream_options": null,
        })
        .as_object()
        .unwrap()
        .clone(),
    );
    let response = post(server.address, CHAT, &body).await;
    assert_eq!(response.status, 200, "{}", response.body);
    assert_eq!(response.json().get("warnings"), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_are_no_objects_are_refused() {
    let server = Running::start().await;
    let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
    let deep_object = format!("{{\"prompt\": {deep}}}");
    for body in
        ["", "{", "[]", "5", "null", "\"x\"", "{\"a\":1}x", "\u{0}", &deep, &deep_object, "{\"n\": 1e999}"]
    {
        for path in [CHAT, TEXT, GENERATE, "/tokenize", "/detokenize"] {
            let response = post_text(server.address, path, body).await;
            assert_eq!(response.status, 400, "{path} {body:.20}: {}", response.body);
            let error = response.json()["error"].clone();
            assert_eq!(error["code"], "invalid_json", "{path} {body:.20}");
            let keys: Vec<&String> = error.as_object().unwrap().keys().collect();
            assert_eq!(keys, ["message", "type", "param", "code"]);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transport_errors_have_the_same_shape() {
    let options =
        phalanx_server::ServerOptions { body_limit_bytes: 1000, ..phalanx_server::ServerOptions::default() };
    let server = Running::with(Setup { options, ..Setup::default() }).await;
    let long = json!({ "prompt": "x".repeat(1000) }).to_string();
    let form = "content-type: application/x-www-form-urlencoded\r\n";
    for (line, headers, body, status) in [
        ("POST /generate", JSON, long.as_str(), 413),
        ("POST /generate", form, "{}", 415),
        ("POST /generate", "", "{}", 415),
        ("POST /generate", "content-type: application/json\r\ncontent-encoding: gzip\r\n", "{}", 415),
        ("GET /nowhere", "", "", 404),
        ("GET /v1", "", "", 404),
        ("GET /assets/x", "", "", 404),
        ("GET /generate", "", "", 405),
        ("DELETE /v1/models", "", "", 405),
        ("PUT /", "", "", 405),
    ] {
        let response = send(server.address, line, headers, body).await;
        assert_eq!(response.status, status, "{line}");
        let error = response.json()["error"].clone();
        assert_eq!(error["type"], "invalid_request_error", "{line}");
        assert!(
            error["message"].is_string() && error["code"].is_null() && error["param"].is_null(),
            "{line}"
        );
    }
    assert_eq!(send(server.address, "GET /generate", "", "").await.header("allow"), Some("POST"));
    // Chunked, so that the length is not known beforehand.
    let chunked = "content-type: application/json\r\ntransfer-encoding: chunked\r\n";
    let body = format!("{:x}\r\n{long}\r\n0\r\n\r\n", long.len());
    let response = send_without_length(server.address, chunked, &body).await;
    assert_eq!(response, 413);
    // A body that is broken off or garbled is no body that is too large.
    let response = send_without_length(server.address, chunked, "zz\r\n").await;
    assert_eq!(response, 400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_has_a_limit() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let server = Running::start().await;
    let mut connection = tokio::net::TcpStream::connect(server.address).await.unwrap();
    let head = format!("GET /health HTTP/1.1\r\nhost: test\r\nx: {}\r\n\r\n", "a".repeat(200_000));
    // The server may close before it has read everything, which resets the connection.
    connection.write_all(head.as_bytes()).await.ok();
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer).await.ok();
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    assert_eq!(get(server.address, "/health").await.status, 200);
}

/// Sends a chunked `/generate` request and returns its status.
async fn send_without_length(address: std::net::SocketAddr, headers: &str, body: &str) -> u16 {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut connection = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = format!("POST /generate HTTP/1.1\r\nhost: test\r\nconnection: close\r\n{headers}\r\n{body}");
    connection.write_all(head.as_bytes()).await.unwrap();
    let mut text = String::new();
    connection.read_to_string(&mut text).await.unwrap();
    text.split(' ').nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_models_are_not_found() {
    let server = Running::start().await;
    for path in [CHAT, TEXT, GENERATE, "/tokenize", "/detokenize"] {
        for (model, status) in [("org/fake-1b", 200), ("fake", 200), ("gpt-4o", 404), ("", 404)] {
            let mut body = good(path);
            body["model"] = json!(model);
            let response = post(server.address, path, &body).await;
            assert_eq!(response.status, status, "{path} {model}");
            if status == 404 {
                assert_eq!(response.json()["error"]["code"], "model_not_found");
                assert_eq!(response.json()["error"]["param"], "model");
            }
        }
    }
    assert_eq!(get(server.address, "/v1/models/gpt-4o").await.json()["error"]["code"], "model_not_found");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_says_when_to_come_back() {
    let server = Running::with(Setup { max_sequences: 1, max_queue: 1, ..Setup::default() }).await;
    let endless = json!({ "prompt": [crate::fake::ENDLESS], "max_tokens": 900_000, "stream": true });
    let _running = crate::client::begin(server.address, TEXT, &endless).await;
    let line = format!("POST {TEXT}");
    let _waiting = crate::client::open(server.address, &line, JSON, &endless.to_string()).await;
    server.until(|figures| figures.queued_requests == 1).await;
    let refused = post(server.address, TEXT, &good(TEXT)).await;
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("1")));
    assert_eq!(refused.json()["error"]["code"], "rate_limit_exceeded");
    assert_eq!(refused.json()["error"]["type"], "rate_limit_error");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_without_a_template_does_not_chat() {
    let server = Running::with(Setup { template: false, ..Setup::default() }).await;
    let response = post(server.address, CHAT, &good(CHAT)).await;
    assert_eq!(response.status, 400);
    assert!(response.json()["error"]["message"].as_str().unwrap().contains("no chat template"));
    assert_eq!(post(server.address, GENERATE, &good(GENERATE)).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn priorities_are_for_those_whom_the_server_trusts() {
    let body = json!({ "prompt": "hello", "priority": -1 });
    let refused = post(Running::start().await.address, GENERATE, &body).await.json();
    let message = refused["error"]["message"].as_str().unwrap();
    assert!(message.contains("--enable-client-priorities"), "{message}");
    let options =
        phalanx_server::ServerOptions { client_priorities: true, ..phalanx_server::ServerOptions::default() };
    let server = Running::with(Setup { options, ..Setup::default() }).await;
    assert_eq!(post(server.address, GENERATE, &body).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_text_that_no_tokens_could_shorten_enough_is_refused_unread() {
    let server = Running::with(Setup { max_model_len: 64, ..Setup::default() }).await;
    // The longest token of the vocabulary is `<|im_end|>`: ten bytes.
    let cases = [
        (TEXT, json!({ "prompt": "x".repeat(641) }), "prompt"),
        (TEXT, json!({ "prompt": ["x", "x".repeat(641)] }), "prompt"),
        (GENERATE, json!({ "inputs": "x".repeat(641), "chat": true }), "inputs"),
        (CHAT, json!({ "messages": [{ "role": "user", "content": "x".repeat(641) }] }), "messages"),
    ];
    for (path, body, param) in cases {
        let error = post(server.address, path, &body).await.json()["error"].clone();
        assert_eq!((&error["code"], &error["param"]), (&json!("context_length_exceeded"), &json!(param)));
        let message = error["message"].as_str().unwrap();
        let phrase = "This model's maximum context length is 64 tokens. However, your prompt has 641 bytes";
        assert!(message.starts_with(phrase), "{path}: {message}");
    }
    let counted = post(server.address, "/tokenize", &json!({ "prompt": "x".repeat(641) })).await;
    assert_eq!(counted.json()["count"], 641, "counting has no limit: it is how one finds out");
}
