//! Running the server: keys, health, metrics, browsers, the page, shutting down.

use std::time::Duration;

use phalanx_server::{Cors, ServerOptions};
use serde_json::json;

use crate::client::{Response, begin, get, post, send};
use crate::fake::{BREAK, ENDLESS};
use crate::{PATIENCE, Running, Setup};

async fn with_options(options: ServerOptions) -> Running {
    Running::with(Setup { options, ..Setup::default() }).await
}

/// Every route, and whether it wants a key.
const ROUTES: [(&str, bool); 19] = [
    ("GET /", false),
    ("GET /assets/app.js", false),
    ("GET /health", false),
    ("GET /health/live", false),
    ("GET /health/ready", false),
    ("GET /ping", false),
    ("POST /ping", false),
    ("GET /version", true),
    ("GET /metrics", true),
    ("GET /v1/models", true),
    ("GET /v1/models/fake", true),
    ("POST /generate", true),
    ("POST /v1/completions", true),
    ("POST /v1/chat/completions", true),
    ("POST /tokenize", true),
    ("POST /detokenize", true),
    ("GET /nowhere", true),
    ("GET /generate", true),
    ("GET //health/../metrics", true),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_open_every_guarded_route_and_nothing_else_does() {
    let keys = vec!["first-key".to_owned(), "second-key".to_owned()];
    let server = with_options(ServerOptions { api_keys: keys, ..ServerOptions::default() }).await;
    let refused = [
        "",
        "authorization: Bearer first-ke\r\n",
        "authorization: Bearer first-key2\r\n",
        "authorization: Bearer \r\n",
        "authorization: Basic first-key\r\n",
        "authorization: first-key\r\n",
        "x-api-key: first-key\r\n",
        "host: /health?\r\n",
    ];
    for (line, guarded) in ROUTES {
        for header in refused {
            let response = send(server.address, line, header, "").await;
            assert_eq!(response.status == 401, guarded, "{line} {header}");
            if guarded {
                assert_eq!(response.json()["error"]["code"], "invalid_api_key");
                assert_eq!(response.header("www-authenticate"), Some("Bearer"));
            }
        }
        for key in ["authorization: Bearer first-key\r\n", "Authorization: bearer second-key\r\n"] {
            assert_ne!(send(server.address, line, key, "").await.status, 401, "{line} {key}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_keys_any_key_will_do() {
    let server = Running::start().await;
    for header in ["", "authorization: Bearer whatever\r\n"] {
        assert_eq!(send(server.address, "GET /v1/models", header, "").await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn head_and_options_are_answered() {
    let server = Running::start().await;
    for (line, _) in ROUTES.iter().filter(|(line, _)| line.starts_with("GET ")) {
        let path = line.trim_start_matches("GET ");
        let whole = get(server.address, path).await;
        let head = send(server.address, &format!("HEAD {path}"), "", "").await;
        assert_eq!((head.status, head.body.as_str()), (whole.status, ""), "{path}");
    }
    for (path, allow) in [("/", "GET,HEAD"), ("/generate", "POST"), ("/ping", "GET,HEAD,POST")] {
        let options = send(server.address, &format!("OPTIONS {path}"), "", "").await;
        assert_eq!((options.status, options.header("allow")), (204, Some(allow)), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn browsers_are_told_whose_pages_may_read() {
    let only = Cors::Only(vec!["https://chat.example.org".to_owned()]);
    for (cors, origin, allowed) in [
        (Cors::Off, "http://localhost:3000", false),
        (Cors::Local, "http://localhost:3000", true),
        (Cors::Local, "https://chat.example.org", false),
        (Cors::Any, "https://chat.example.org", true),
        (only.clone(), "https://chat.example.org", true),
        (only, "https://chat.example.org.evil.org", false),
    ] {
        let keys = vec!["key".to_owned()];
        let options = ServerOptions { cors: cors.clone(), api_keys: keys, ..ServerOptions::default() };
        let server = with_options(options).await;
        let headers = format!("origin: {origin}\r\naccess-control-request-method: POST\r\n");
        let preflight = send(server.address, "OPTIONS /v1/chat/completions", &headers, "").await;
        let refused = send(server.address, "POST /v1/chat/completions", &headers, "").await;
        assert_eq!((preflight.status, refused.status), (204, 401));
        for response in [preflight, refused] {
            let expected = allowed.then_some(origin);
            assert_eq!(response.header("access-control-allow-origin"), expected, "{cors:?} {origin}");
            assert_eq!(response.header("access-control-allow-headers").is_some(), allowed);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_have_names() {
    let server = Running::start().await;
    let name = |header: &'static str| async move {
        let response = send(server.address, "GET /ping", header, "").await;
        response.header("x-request-id").expect("every response has one").to_owned()
    };
    let mine = name("x-request-id: trace-7.a\r\n").await;
    assert_eq!(mine, "trace-7.a");
    assert!(name("x-request-id: a b\r\n").await.starts_with("req-"));
    assert_ne!(name("").await, name("").await);
}

/// A metric's value: the first series whose name and labels begin so.
fn metric(page: &Response, series: &str) -> f64 {
    let line = page.body.lines().find(|line| line.starts_with(series));
    line.unwrap_or_else(|| panic!("{series} is missing")).rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_tell_what_happened() {
    let server = Running::start().await;
    post(server.address, "/generate", &json!({ "prompt": "hello" })).await;
    post(server.address, "/generate", &json!({ "prompt": "hello", "max_new_tokens": 2 })).await;
    post(server.address, "/generate", &json!({ "prompt": "" })).await;
    get(server.address, "/no/such/place").await;
    server.until(|figures| figures.live_requests == 0 && figures.scheduler.used_blocks == 0).await;
    let page = get(server.address, "/metrics").await;
    assert_eq!(page.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let labels = "model_name=\"org/fake-1b\",engine=\"0\"";
    for (series, expected) in [
        (format!("vllm:num_requests_running{{{labels}}}"), 0.0),
        (format!("vllm:num_requests_waiting{{{labels}}}"), 0.0),
        (format!("vllm:kv_cache_usage_perc{{{labels}}}"), 0.0),
        (format!("vllm:prompt_tokens_total{{{labels}}}"), 10.0),
        (format!("vllm:generation_tokens_total{{{labels}}}"), 8.0),
        (format!("vllm:request_success_total{{{labels},finished_reason=\"stop\"}}"), 1.0),
        (format!("vllm:request_success_total{{{labels},finished_reason=\"length\"}}"), 1.0),
        (format!("vllm:admission_rejections_total{{{labels},reason=\"invalid\"}}"), 1.0),
        (format!("vllm:time_to_first_token_seconds_count{{{labels}}}"), 2.0),
        (format!("phalanx:routed_requests_total{{{labels}}}"), 2.0),
        (format!("phalanx:prefix_routed_tokens_total{{{labels}}}"), 0.0),
        (format!("vllm:e2e_request_latency_seconds_bucket{{{labels},le=\"+Inf\"}}"), 2.0),
        ("phalanx:http_requests_total{route=\"/generate\",method=\"POST\",status=\"200\"}".to_owned(), 2.0),
        ("phalanx:http_requests_total{route=\"/generate\",method=\"POST\",status=\"400\"}".to_owned(), 1.0),
        ("phalanx:http_requests_total{route=\"unmatched\",method=\"GET\",status=\"404\"}".to_owned(), 1.0),
        ("phalanx:fans_turns_total{fan=\"a\\\"b\"}".to_owned(), 7.5),
    ] {
        assert_eq!(metric(&page, &series), expected, "{series}");
    }
    assert!(page.body.contains("# TYPE phalanx:fans_turns_total counter\n"), "{}", page.body);
    for line in page.body.lines().filter(|line| !line.starts_with('#')) {
        let value = line.rsplit(' ').next().unwrap();
        assert!(value.parse::<f64>().is_ok(), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cached_prompt_tokens_are_never_more_than_prompt_tokens() {
    let server = Running::start().await;
    let body = json!({ "prompt": "x".repeat(40), "n": 4, "max_new_tokens": 1 });
    for cached in [0.0, 32.0] {
        assert_eq!(post(server.address, "/generate", &body).await.status, 200);
        let page = get(server.address, "/metrics").await;
        assert_eq!(metric(&page, "vllm:prompt_tokens_cached_total{"), cached);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_alive_as_long_as_one_of_its_engines_is() {
    let server = Running::with(Setup { replicas: 2, ..Setup::default() }).await;
    for status in [200, 503] {
        let broken = post(server.address, "/v1/completions", &json!({ "prompt": [BREAK] })).await;
        assert_eq!(broken.status, 503, "{}", broken.body);
        assert_eq!(get(server.address, "/health/live").await.status, status);
    }
    let fault = "The engine ended: rank 1 is lost.";
    let told = get(server.address, "/health/live").await.json();
    assert_eq!(told["error"]["message"], format!("{fault} {fault}"), "each engine's fault is told");
}

/// The series that vLLM's own Grafana dashboard asks for.
const DASHBOARD: [&str; 17] = [
    "vllm:e2e_request_latency_seconds_bucket",
    "vllm:e2e_request_latency_seconds_count",
    "vllm:e2e_request_latency_seconds_sum",
    "vllm:generation_tokens_total",
    "vllm:inter_token_latency_seconds_bucket",
    "vllm:kv_cache_usage_perc",
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:prompt_tokens_total",
    "vllm:request_decode_time_seconds_sum",
    "vllm:request_generation_tokens_bucket",
    "vllm:request_max_num_generation_tokens_bucket",
    "vllm:request_prefill_time_seconds_sum",
    "vllm:request_prompt_tokens_bucket",
    "vllm:request_queue_time_seconds_sum",
    "vllm:request_success_total",
    "vllm:time_to_first_token_seconds_bucket",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dashboards_find_their_series() {
    let server = Running::start().await;
    let page = get(server.address, "/metrics").await;
    for series in DASHBOARD {
        assert!(page.body.lines().any(|line| line.starts_with(&format!("{series}{{"))), "{series}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_comes_with_all_its_files() {
    let server = Running::start().await;
    let page = get(server.address, "/").await;
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    assert!(page.header("content-security-policy").unwrap().starts_with("default-src 'none'"));
    let mut files: Vec<String> = Vec::new();
    let mut unread = vec![page.body];
    while let Some(text) = unread.pop() {
        let linked = text
            .split('"')
            .filter_map(|word| word.strip_prefix("assets/").or_else(|| word.strip_prefix("./")));
        for name in linked.map(ToOwned::to_owned).collect::<Vec<_>>() {
            if !files.contains(&name) {
                let file = get(server.address, &format!("/assets/{name}")).await;
                assert_eq!(file.status, 200, "{name}");
                let tag = file.header("etag").unwrap();
                let known = format!("if-none-match: {tag}\r\n");
                let again = send(server.address, &format!("GET /assets/{name}"), &known, "").await;
                assert_eq!(again.status, 304);
                unread.push(file.body);
                files.push(name);
            }
        }
    }
    assert_eq!(files.len(), 10, "{files:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_told_to_stop_completes_what_it_has() {
    let mut server = Running::start().await;
    let body = json!({ "prompt": [ENDLESS], "max_tokens": 900_000, "stream": true });
    let running = begin(server.address, "/v1/completions", &body).await;
    server.stop.take().unwrap().send(()).unwrap();
    let unready = async { while get(server.address, "/health").await.status == 200 {} };
    tokio::time::timeout(PATIENCE, unready).await.expect("health is denied as soon as it drains");
    assert_eq!(get(server.address, "/health/live").await.status, 200);
    let refused = post(server.address, "/generate", &json!({ "prompt": "x" })).await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")));
    assert!(!server.serving.is_finished(), "a request is still running");
    drop(running);
    let ended = tokio::time::timeout(PATIENCE, server.serving).await;
    ended.expect("nothing is left to wait for").unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_told_to_stop_does_not_wait_forever() {
    let options = ServerOptions { drain_timeout: Duration::ZERO, ..ServerOptions::default() };
    let mut server = with_options(options).await;
    let body = json!({ "prompt": [ENDLESS], "max_tokens": 900_000, "stream": true });
    let mut running = begin(server.address, "/v1/completions", &body).await;
    server.stop.take().unwrap().send(()).unwrap();
    let mut rest = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut running, &mut rest).await.unwrap();
    assert!(rest.contains("the server is shutting down"), "its client is told why: {rest}");
    let ended = tokio::time::timeout(PATIENCE, server.serving).await;
    ended.expect("its time is over").unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_never_asks_is_closed() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let options = ServerOptions { idle_timeout: Duration::from_millis(1), ..ServerOptions::default() };
    let server = with_options(options).await;
    let mut connection = tokio::net::TcpStream::connect(server.address).await.unwrap();
    connection.write_all(b"GET / HTTP/1.1\r\nhost: ").await.unwrap();
    let mut answer = Vec::new();
    let closed = tokio::time::timeout(PATIENCE, connection.read_to_end(&mut answer)).await;
    // Closed without a word, or with 408; either way not kept.
    assert!(closed.is_ok(), "the head never came to its end");
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_serves_one_request_after_another() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let server = Running::start().await;
    let mut connection = tokio::net::TcpStream::connect(server.address).await.unwrap();
    for last in [false, false, true] {
        let close = if last { "connection: close\r\n" } else { "" };
        let request = format!("GET /ping HTTP/1.1\r\nhost: test\r\n{close}\r\n");
        connection.write_all(request.as_bytes()).await.unwrap();
    }
    let mut answers = String::new();
    connection.read_to_string(&mut answers).await.unwrap();
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 3);
}
