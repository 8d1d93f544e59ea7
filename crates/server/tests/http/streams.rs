//! Streams: they add up to the unstreamed answer, and speak the protocol to the letter.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::client::{JSON, post, send};
use crate::fake::{BREAK, NOT_FINITE};
use crate::{Running, Setup};

const TEXT: &str = "héllo 量子纠缠 🧩 مرحبا";

/// A body with more fields.
fn merged(mut body: Value, more: Value) -> Value {
    let Value::Object(fields) = more else { panic!("fields are an object") };
    body.as_object_mut().unwrap().extend(fields);
    body
}

/// The streamed texts by index, and the reasons they ended for.
fn texts(chunks: &[Value], text_of: impl Fn(&Value) -> Option<&str>) -> BTreeMap<u64, (String, String)> {
    let mut texts: BTreeMap<u64, (String, String)> = BTreeMap::new();
    for choice in chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap()) {
        let (text, finish) = texts.entry(choice["index"].as_u64().unwrap()).or_default();
        assert_eq!(*finish, "", "nothing follows the reason it ended for");
        text.push_str(text_of(choice).unwrap_or_default());
        finish.push_str(choice["finish_reason"].as_str().unwrap_or_default());
    }
    texts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streamed_and_whole_answers_are_the_same() {
    let server = Running::start().await;
    for more in [
        json!({}),
        json!({ "n": 3 }),
        json!({ "max_tokens": 7 }),
        json!({ "stop": ["子纠", "zzz"] }),
        json!({ "stop": "子纠", "include_stop_str_in_output": true }),
        json!({ "echo": true }),
        json!({ "prompt": [TEXT, "second", "third"], "n": 2 }),
    ] {
        let body = merged(json!({ "prompt": TEXT, "max_tokens": 100 }), more);
        let whole = post(server.address, "/v1/completions", &body).await.json();
        let streamed = merged(body.clone(), json!({ "stream": true }));
        let chunks = post(server.address, "/v1/completions", &streamed).await.chunks();
        let streamed = texts(&chunks, |choice| choice["text"].as_str());
        let choices = whole["choices"].as_array().unwrap();
        assert_eq!(streamed.len(), choices.len(), "{body}");
        for choice in choices {
            let (text, finish) = &streamed[&choice["index"].as_u64().unwrap()];
            assert_eq!(
                (choice["text"].as_str(), choice["finish_reason"].as_str()),
                (Some(&**text), Some(&**finish))
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chat_streams_begin_with_the_role_and_end_with_an_empty_delta() {
    let server = Running::start().await;
    let body = json!({ "messages": [{ "role": "user", "content": TEXT }], "n": 2 });
    let whole = post(server.address, "/v1/chat/completions", &body).await.json();
    let streamed = merged(body, json!({ "stream": true }));
    let chunks = post(server.address, "/v1/chat/completions", &streamed).await.chunks();
    let by_index = texts(&chunks, |choice| choice["delta"]["content"].as_str());
    for index in 0..2 {
        let expected = whole["choices"][index]["message"]["content"].as_str().unwrap();
        assert_eq!(expected, format!("user:{TEXT};"));
        assert_eq!(by_index[&(index as u64)], (expected.to_owned(), "stop".to_owned()));
        let own: Vec<&Value> = chunks
            .iter()
            .map(|chunk| &chunk["choices"][0])
            .filter(|choice| choice["index"] == index)
            .collect();
        assert_eq!(own[0]["delta"], json!({ "role": "assistant", "content": "", "refusal": null }));
        assert!(own[1..].iter().all(|choice| choice["delta"].get("role").is_none()));
        assert_eq!(own.last().unwrap()["delta"], json!({}));
    }
    for chunk in &chunks {
        assert_eq!(chunk["object"], "chat.completion.chunk");
        assert_eq!(chunk["id"], chunks[0]["id"]);
        assert!(chunk.get("usage").is_none(), "usage was not asked for");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_comes_in_a_chunk_of_its_own() {
    let server = Running::start().await;
    for (path, body) in [
        ("/v1/completions", json!({ "prompt": "hello", "max_tokens": 50 })),
        ("/v1/chat/completions", json!({ "messages": [{ "role": "user", "content": "hello" }] })),
    ] {
        let asked = json!({ "stream": true, "stream_options": { "include_usage": true, "include_obfuscation": false } });
        let response = post(server.address, path, &merged(body.clone(), asked)).await;
        assert_eq!(response.header("x-phalanx-warnings"), None);
        let chunks = response.chunks();
        let (last, others) = chunks.split_last().unwrap();
        assert_eq!(last["choices"], json!([]));
        let whole = post(server.address, path, &body).await.json()["usage"].clone();
        for field in ["prompt_tokens", "completion_tokens", "total_tokens", "completion_tokens_details"] {
            assert_eq!(last["usage"][field], whole[field], "{field}");
        }
        assert!(last["usage"]["prompt_tokens_details"]["cached_tokens"].is_u64());
        for chunk in others {
            assert_eq!(chunk.get("usage"), Some(&Value::Null), "every other chunk says `usage: null`");
        }
        let asked = json!({ "stream": true, "stream_options": { "continuous_usage_stats": true } });
        let chunks = post(server.address, path, &merged(body, asked)).await.chunks();
        let counts = chunks.iter().map(|chunk| chunk["usage"]["completion_tokens"].as_u64().unwrap());
        assert!(counts.is_sorted(), "the count grows");
        assert_eq!(chunks.last().unwrap()["usage"]["completion_tokens"], whole["completion_tokens"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn generate_streams_pieces_or_the_whole_so_far() {
    let server = Running::start().await;
    let body = json!({ "prompt": TEXT, "max_new_tokens": 100, "stream": true });
    let chunks = post(server.address, "/generate", &body).await.chunks();
    let pieces: String = chunks.iter().map(|chunk| chunk["text"].as_str().unwrap()).collect();
    assert_eq!(pieces, TEXT);
    assert_eq!(chunks.last().unwrap()["usage"]["completion_tokens"], TEXT.len() + 1);
    let cumulative = merged(body, json!({ "stream_cumulative": true }));
    let chunks = post(server.address, "/generate", &cumulative).await.chunks();
    assert!(
        chunks
            .windows(2)
            .all(|pair| { pair[1]["text"].as_str().unwrap().starts_with(pair[0]["text"].as_str().unwrap()) })
    );
    assert_eq!(chunks.last().unwrap()["text"], TEXT);
    assert_eq!(chunks.last().unwrap()["finish_reason"], "stop");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_in_a_stream_is_its_last_event() {
    let server = Running::start().await;
    let body = json!({ "prompt": [104, 105, NOT_FINITE], "max_tokens": 10, "stream": true });
    let response = post(server.address, "/v1/completions", &body).await;
    assert_eq!(response.status, 200);
    let data = response.data();
    let error: Value = serde_json::from_str(data.last().unwrap()).unwrap();
    assert_eq!(error["error"]["code"], "non_finite_logits");
    assert_eq!(error["error"]["type"], "server_error");
    // One request's fault is nobody else's.
    let well = json!({ "prompt": "hello", "max_tokens": 10 });
    assert_eq!(post(server.address, "/v1/completions", &well).await.json()["choices"][0]["text"], "hello");
    let whole = json!({ "prompt": [104, NOT_FINITE], "max_tokens": 10 });
    assert_eq!(post(server.address, "/v1/completions", &whole).await.status, 500);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_engine_dies_everyone_is_told() {
    let server = Running::start().await;
    let body = json!({ "prompt": [104, 105, BREAK], "max_tokens": 10, "stream": true });
    let response = post(server.address, "/v1/completions", &body).await;
    let error: Value = serde_json::from_str(response.data().last().unwrap()).unwrap();
    assert_eq!(error["error"]["code"], "service_unavailable");
    for path in ["/health", "/health/live", "/health/ready"] {
        let health = crate::client::get(server.address, path).await;
        assert_eq!(health.status, 503, "{path}");
        assert!(health.json()["error"]["message"].as_str().unwrap().contains("rank 1 is lost"));
    }
    let next = post(server.address, "/generate", &json!({ "prompt": "x" })).await;
    assert_eq!((next.status, next.header("retry-after")), (503, Some("1")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_stream_is_kept_alive_by_comments() {
    let options = phalanx_server::ServerOptions {
        ping_interval: std::time::Duration::from_millis(1),
        ..phalanx_server::ServerOptions::default()
    };
    let server = Running::with(Setup { options, max_sequences: 1, ..Setup::default() }).await;
    // The one place is taken, so the second request waits in silence.
    let body = json!({ "prompt": [crate::fake::ENDLESS], "max_tokens": 900_000, "stream": true });
    let first = crate::client::begin(server.address, "/v1/completions", &body).await;
    let body = json!({ "prompt": "hello", "stream": true });
    let line = "POST /v1/completions";
    let mut second = crate::client::open(server.address, line, JSON, &body.to_string()).await;
    let mut text = String::new();
    let mut buffer = [0; 256];
    while !text.contains(": ping\n\n") {
        let length = tokio::io::AsyncReadExt::read(&mut second, &mut buffer).await.unwrap();
        assert!(0 < length);
        text.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
    drop(first);
    let whole = send(server.address, line, JSON, &json!({ "prompt": "hello" }).to_string()).await;
    assert_eq!(whole.json()["choices"][0]["text"], "hello");
}
