//! A client that goes away takes its request with it, however it asked.

use std::time::Duration;

use phalanx_server::ServerOptions;
use serde_json::{Value, json};

use crate::client::{JSON, begin, get, open, post};
use crate::fake::ENDLESS;
use crate::{Running, Setup};

/// A prompt whose answer does not end by itself.
fn endless() -> Value {
    json!([104, 105, ENDLESS])
}

/// Opens the request, leaves once it runs, and waits for the engine to have nothing left of it.
async fn leave(path: &str, body: Value, sequences: usize) {
    let server = Running::start().await;
    let connection = match body["stream"] == true {
        true => begin(server.address, path, &body).await,
        false => {
            let line = format!("POST {path}");
            open(server.address, &line, JSON, &body.to_string()).await
        }
    };
    server.until(|figures| figures.scheduler.running == sequences && 0 < figures.scheduler.used_blocks).await;
    drop(connection);
    server.until(|figures| figures.live_requests == 0 && figures.scheduler.used_blocks == 0).await;
    let figures = server.engine.metrics();
    assert_eq!(figures.finished.abort, sequences as u64, "it was aborted, it did not end: {figures:?}");
    assert_eq!(get(server.address, "/health").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_stays_and_reads_nothing_is_cut_off() {
    let options = ServerOptions { write_timeout: Duration::from_millis(20), ..ServerOptions::default() };
    let server = Running::with(Setup { options, ..Setup::default() }).await;
    let body = json!({ "prompt": endless(), "max_tokens": 1_000_000, "stream": true }).to_string();
    let staying = open(server.address, "POST /v1/completions", JSON, &body).await;
    server.until(|figures| figures.finished.abort == 1 && figures.live_requests == 0).await;
    drop(staying);
    assert_eq!(get(server.address, "/health").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_nobody_reads_is_aborted() {
    leave("/v1/completions", json!({ "prompt": endless(), "max_tokens": 1_000_000, "stream": true }), 1)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_nobody_waits_for_is_aborted() {
    leave("/v1/completions", json!({ "prompt": endless(), "max_tokens": 1_000_000 }), 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_answers_of_a_request_are_aborted() {
    let prompts = json!([[104, ENDLESS], [105, ENDLESS]]);
    leave("/generate", json!({ "input_ids": prompts, "n": 3, "max_new_tokens": 900_000, "stream": true }), 6)
        .await;
    leave("/generate", json!({ "input_ids": prompts, "n": 3, "max_new_tokens": 900_000 }), 6).await;
}

/// Clients that stay for no time at all, for the head of the response, or for the first event, in turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_impatient_clients_leave_nothing_behind() {
    let server = Running::with(Setup { max_sequences: 64, ..Setup::default() }).await;
    let paths = ["/v1/completions", "/generate", "/v1/chat/completions"];
    let mut staying = Vec::new();
    for client in 0..200_usize {
        let path = paths[client % paths.len()];
        let mut body = match path {
            "/v1/chat/completions" => {
                json!({ "messages": [{ "role": "user", "content": "x".repeat(client) }] })
            }
            _ => json!({ "prompt": endless(), "max_tokens": 50_000 }),
        };
        body["n"] = json!(1 + client % 3);
        body["stream"] = json!(client % 4 < 2);
        let line = format!("POST {path}");
        match client % 4 {
            0 => drop(begin(server.address, path, &body).await),
            1 => drop(open(server.address, &line, JSON, &body.to_string()).await),
            _ => staying.push(open(server.address, &line, JSON, &body.to_string()).await),
        }
        // Some leave while others arrive.
        if 8 < staying.len() {
            staying.swap_remove(client % 8);
        }
    }
    drop(staying);
    // Every request was heard of before the engine is asked whether anything is left.
    let answered = post(server.address, "/generate", &json!({ "prompt": "hello" })).await;
    assert_eq!(answered.json()["text"], "hello");
    server.until(|figures| figures.live_requests == 0 && figures.scheduler.used_blocks == 0).await;
    let figures = server.engine.metrics();
    assert_eq!((figures.scheduler.running, figures.scheduler.waiting, figures.queued_requests), (0, 0, 0));
    assert!(0 < figures.finished.abort, "{figures:?}");
}
