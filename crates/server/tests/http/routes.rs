//! What each route answers when all is well.

use serde_json::{Value, json};

use crate::client::{get, post};
use crate::{MAX_MODEL_LEN, MODEL, Running, Setup};

/// A body and what is expected at some places of its answer, as JSON pointers.
async fn check(server: &Running, path: &str, body: Value, expected: &[(&str, Value)]) {
    let response = post(server.address, path, &body).await;
    assert_eq!(response.status, 200, "{path} {body}: {}", response.body);
    let answer = response.json();
    for (pointer, value) in expected {
        assert_eq!(
            answer.pointer(pointer).unwrap_or(&json!("nothing there")),
            value,
            "{path} {body} {pointer}: {answer}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn generate_takes_the_guides_request_and_its_relatives() {
    let server = Running::start().await;
    let question = "请解释量子纠缠的基本原理，并用中文输出。";
    let guide = json!({ "prompt": question, "max_new_tokens": 1024, "temperature": 0.7, "top_p": 0.9 });
    check(
        &server,
        "/generate",
        guide,
        &[
            ("/text", json!(question)),
            ("/finish_reason", json!("stop")),
            ("/usage/prompt_tokens", json!(question.len())),
            ("/usage/completion_tokens", json!(question.len() + 1)),
            ("/meta_info/finish_reason", json!({ "type": "stop", "matched": 256 })),
            ("/warnings", json!([])),
        ],
    )
    .await;
    let hello = [("/text", json!("hello"))];
    for body in [
        json!({ "text": "hello" }),
        json!({ "inputs": "hello", "parameters": { "max_new_tokens": 10, "do_sample": false } }),
        json!({ "input_ids": [104, 101, 108, 108, 111], "sampling_params": { "max_new_tokens": 10, "temperature": 0 } }),
        json!({ "prompt": [104, 101, 108, 108, 111] }),
        json!({ "prompt": "hello", "max_tokens": 10, "max_new_tokens": 10 }),
        json!({ "prompt": "hello", "priority": 0 }),
    ] {
        check(&server, "/generate", body, &hello).await;
    }
    check(
        &server,
        "/generate",
        json!({ "prompt": "hello", "max_new_tokens": 2 }),
        &[
            ("/text", json!("he")),
            ("/output_ids", json!([104, 101])),
            ("/meta_info/finish_reason", json!({ "type": "length", "length": 2 })),
        ],
    )
    .await;
    // `null` says nothing, also inside, and so does not contradict what stands outside.
    let nested = json!({ "prompt": "hello", "max_new_tokens": 2, "parameters": { "max_new_tokens": null } });
    check(&server, "/generate", nested, &[("/text", json!("he"))]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn default_lengths_give_way_to_the_context() {
    let server = Running::with(Setup { max_model_len: 64, ..Setup::default() }).await;
    let prompt = "x".repeat(60);
    let four = [("/text", json!("xxxx")), ("/finish_reason", json!("length"))];
    check(&server, "/generate", json!({ "prompt": prompt }), &four).await;
    let four = [("/choices/0/text", json!("xxxx")), ("/choices/0/finish_reason", json!("length"))];
    check(&server, "/v1/completions", json!({ "prompt": prompt }), &four).await;
    for (path, name) in [("/generate", "max_new_tokens"), ("/v1/completions", "max_tokens")] {
        let body = json!({ "prompt": prompt, name: 16 });
        assert_eq!(post(server.address, path, &body).await.status, 400, "what a client asks for stands");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn generate_answers_questions_lists_and_several_times() {
    let server = Running::start().await;
    check(
        &server,
        "/generate",
        json!({ "inputs": "x", "parameters": { "details": true, "return_full_text": false } }),
        &[("/warnings", json!(["`parameters.details` is not supported here and had no effect"]))],
    )
    .await;
    check(
        &server,
        "/generate",
        json!({ "prompt": "hello", "chat": true }),
        &[("/text", json!("user:hello;"))],
    )
    .await;
    check(
        &server,
        "/generate",
        json!({ "prompt": "hello", "n": 2 }),
        &[
            ("/text", json!("hello")),
            ("/texts", json!(["hello", "hello"])),
            ("/usage/completion_tokens", json!(12)),
        ],
    )
    .await;
    check(
        &server,
        "/generate",
        json!({ "prompt": ["one", "two"] }),
        &[("/0/text", json!("one")), ("/1/text", json!("two")), ("/1/usage/prompt_tokens", json!(3))],
    )
    .await;
    check(
        &server,
        "/generate",
        json!({ "prompt": "hello", "colour": 1, "sampling_params": { "shade": 2 } }),
        &[(
            "/warnings",
            json!([
                "`colour` is not supported here and had no effect",
                "`sampling_params.shade` is not supported here and had no effect"
            ]),
        )],
    )
    .await;
    check(
        &server,
        "/generate",
        json!({ "prompt": "x", "rid": "mine-1" }),
        &[("/meta_info/id", json!("mine-1"))],
    )
    .await;
    let unusable = "`rid` must be 1 to 128 letters, digits and `-_.:` to name a request, and had no effect";
    check(&server, "/generate", json!({ "prompt": "x", "rid": "a b" }), &[("/warnings", json!([unusable]))])
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn completions_in_all_their_forms() {
    let server = Running::start().await;
    let path = "/v1/completions";
    check(
        &server,
        path,
        json!({ "model": MODEL, "prompt": "hello world, how are you" }),
        &[
            ("/object", json!("text_completion")),
            ("/model", json!(MODEL)),
            ("/choices/0/text", json!("hello world, how")),
            ("/choices/0/finish_reason", json!("length")),
            ("/choices/0/logprobs", Value::Null),
            ("/usage/completion_tokens", json!(16)),
            ("/usage/completion_tokens_details", json!({ "reasoning_tokens": 0 })),
        ],
    )
    .await;
    check(
        &server,
        path,
        json!({ "prompt": [[104, 105], [111]], "n": 2, "best_of": 2 }),
        &[
            ("/choices/0/text", json!("hi")),
            ("/choices/1/text", json!("hi")),
            ("/choices/2/text", json!("o")),
            ("/choices/3/index", json!(3)),
            ("/usage/prompt_tokens", json!(3)),
            ("/usage/completion_tokens", json!(10)),
        ],
    )
    .await;
    check(&server, path, json!({ "prompt": "ab", "echo": true }), &[("/choices/0/text", json!("abab"))])
        .await;
    check(
        &server,
        path,
        json!({ "prompt": "a b stop c", "stop": " stop" }),
        &[("/choices/0/text", json!("a b")), ("/choices/0/finish_reason", json!("stop"))],
    )
    .await;
    check(
        &server,
        path,
        json!({ "prompt": "hé", "logprobs": 1 }),
        &[
            ("/choices/0/logprobs/tokens", json!(["h", "bytes:\\xc3", "bytes:\\xa9", "<|im_end|>"])),
            ("/choices/0/logprobs/token_logprobs", json!([-0.25, -0.25, -0.25, -0.25])),
            ("/choices/0/logprobs/top_logprobs/0", json!({ "a": -0.5, "h": -0.25 })),
            ("/choices/0/logprobs/text_offset/0", json!(0)),
            ("/choices/0/logprobs/text_offset/1", json!(1)),
        ],
    )
    .await;
    check(
        &server,
        path,
        json!({ "prompt": "x", "colour": "red", "n": 1 }),
        &[("/warnings", json!(["`colour` is not supported here and had no effect"]))],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chat_completions_in_all_their_forms() {
    let server = Running::start().await;
    let path = "/v1/chat/completions";
    let user = json!({ "role": "user", "content": "hi" });
    check(
        &server,
        path,
        json!({ "messages": [user] }),
        &[
            ("/object", json!("chat.completion")),
            (
                "/choices/0/message",
                json!({ "role": "assistant", "content": "user:hi;", "refusal": null, "annotations": [] }),
            ),
            ("/choices/0/finish_reason", json!("stop")),
            ("/choices/0/logprobs", Value::Null),
            ("/usage/prompt_tokens", json!(8)),
            ("/usage/total_tokens", json!(17)),
            ("/service_tier", Value::Null),
        ],
    )
    .await;
    let history = json!([
        { "role": "developer", "content": "be brief" },
        { "role": "user", "content": [{ "type": "text", "text": "one" }, { "type": "text", "text": "two" }] },
        { "role": "assistant", "content": null, "tool_calls": [] },
        { "role": "tool", "content": "3", "tool_call_id": "x" },
    ]);
    let rendered = "system:be brief;user:one\ntwo;assistant:;tool:3;";
    check(&server, path, json!({ "messages": history }), &[("/choices/0/message/content", json!(rendered))])
        .await;
    check(
        &server,
        path,
        json!({ "messages": [user], "max_completion_tokens": 4, "n": 2 }),
        &[("/choices/1/message/content", json!("user")), ("/choices/1/finish_reason", json!("length"))],
    )
    .await;
    check(
        &server,
        path,
        json!({ "messages": [user], "max_tokens": 1, "logprobs": true, "top_logprobs": 2 }),
        &[(
            "/choices/0/logprobs",
            json!({
                "content": [{
                    "token": "u", "logprob": -0.25, "bytes": [117],
                    "top_logprobs": [
                        { "token": "a", "logprob": -0.5, "bytes": [97] },
                        { "token": "b", "logprob": -1.5, "bytes": [98] },
                    ],
                }],
                "refusal": null,
            }),
        )],
    )
    .await;
    let prefill = json!([user, { "role": "assistant", "content": "so" }]);
    let continued =
        json!({ "messages": prefill, "continue_final_message": true, "add_generation_prompt": false });
    check(&server, path, continued, &[("/choices/0/message/content", json!("user:hi;assistant:so"))]).await;
    // A control token that a user wrote is text.
    let forged = json!({ "messages": [{ "role": "user", "content": "<|im_end|>" }] });
    check(&server, path, forged, &[("/choices/0/message/content", json!("user:<|im_end|>;"))]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_message_says_in_vain_is_named_once() {
    let server = Running::start().await;
    let history = json!([
        { "role": "user", "name": "ann", "content": [{ "type": "text", "text": "a", "cache_control": {} }] },
        { "role": "assistant", "content": "b", "refusal": null, "annotations": [], "audio": { "id": "1" } },
        { "role": "user", "content": [{ "type": "text", "text": "c", "cache_control": {} }] },
    ]);
    let warnings = json!([
        "`messages[1].audio` is not supported here and had no effect",
        "`messages[0].content[0].cache_control` is not supported here and had no effect",
    ]);
    check(&server, "/v1/chat/completions", json!({ "messages": history }), &[("/warnings", warnings)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn warnings_of_a_stream_stand_in_a_header() {
    let server = Running::start().await;
    let body = json!({ "prompt": "x", "stream": true, "größe": 1 });
    let response = post(server.address, "/v1/completions", &body).await;
    let expected = "`gr\\u{f6}\\u{df}e` is not supported here and had no effect";
    assert_eq!(response.header("x-phalanx-warnings"), Some(expected));
    assert_eq!(response.header("cache-control"), Some("no-cache"));
    assert_eq!(response.header("x-accel-buffering"), Some("no"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_model_has_all_its_names() {
    let server = Running::start().await;
    let list = get(server.address, "/v1/models").await.json();
    assert_eq!(list["object"], "list");
    let ids: Vec<&str> =
        list["data"].as_array().unwrap().iter().map(|card| card["id"].as_str().unwrap()).collect();
    assert_eq!(ids, [MODEL, "fake"]);
    assert_eq!(list["data"][0]["max_model_len"], MAX_MODEL_LEN);
    for path in ["/v1/models/org/fake-1b", "/v1/models/org%2Ffake-1b", "/v1/models/fake"] {
        let card = get(server.address, path).await;
        assert_eq!((card.status, card.json()["object"].as_str()), (200, Some("model")), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_and_back() {
    let server = Running::start().await;
    for text in ["hello", "量子 🧩", "a<|im_end|>b", " \n\t ", ""] {
        let tokenized =
            post(server.address, "/tokenize", &json!({ "model": MODEL, "prompt": text })).await.json();
        assert_eq!(tokenized["count"], tokenized["tokens"].as_array().unwrap().len());
        assert_eq!(tokenized["max_model_len"], MAX_MODEL_LEN);
        assert_eq!(tokenized["token_strs"], Value::Null);
        let back =
            post(server.address, "/detokenize", &json!({ "tokens": tokenized["tokens"] })).await.json();
        assert_eq!(back["prompt"], text);
    }
    check(
        &server,
        "/tokenize",
        json!({ "prompt": "h <|im_end|>", "return_token_strs": true }),
        &[("/tokens", json!([104, 32, 256])), ("/token_strs", json!(["h", "Ġ", "<|im_end|>"]))],
    )
    .await;
    let messages = json!([{ "role": "user", "content": "x" }]);
    check(&server, "/tokenize", json!({ "messages": messages }), &[("/count", json!(7))]).await;
}
