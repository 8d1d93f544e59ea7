//! Around every route: a request's name, its line in the log, its place in the counts, and what browsers must be told.

use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::Response;

use crate::openai::types::new_id;
use crate::state::{Answered, Cors, Shared};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Names the request, or keeps the client's name for it, and counts the answer.
pub(crate) async fn observe(State(state): State<Shared>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let given = request.headers().get(&REQUEST_ID).and_then(|id| id.to_str().ok()).filter(|id| sane_id(id));
    let id = given.map_or_else(|| new_id("req-"), ToOwned::to_owned);
    let route = request.extensions().get().map_or("unmatched", |path: &MatchedPath| path.as_str()).to_owned();
    let method = known_method(request.method());
    let origin = request.headers().get(header::ORIGIN).cloned();
    let mut response = next.run(request).await;
    if let Some(origin) = origin {
        allow_origin(&state.options.cors, &origin, response.headers_mut());
    }
    let status = response.status().as_u16();
    let seconds = started.elapsed().as_secs_f64();
    // Probes, dashboards and the page ask every few seconds; what a person asks for is what the log is for.
    if matches!(method, "GET" | "HEAD") && status < 400 {
        tracing::debug!(request_id = id, method, route, status, seconds, "request");
    } else {
        tracing::info!(request_id = id, method, route, status, seconds, "request");
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    let mut answered = state.answered.lock().expect("nothing panics while it counts");
    *answered.entry(Answered { route, method, status }).or_insert(0) += 1;
    drop(answered);
    response
}

/// Whether a client's name for its request may stand in headers and logs.
pub(crate) fn sane_id(id: &str) -> bool {
    let harmless = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
    !id.is_empty() && id.len() <= 128 && id.bytes().all(harmless)
}

/// A method's name; clients can invent methods, metrics must not grow with them.
fn known_method(method: &Method) -> &'static str {
    const KNOWN: [&str; 7] = ["GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"];
    KNOWN.into_iter().find(|known| *known == method.as_str()).unwrap_or("OTHER")
}

/// Lets a page of this origin read the answer, and send the headers our clients send.
fn allow_origin(cors: &Cors, origin: &HeaderValue, headers: &mut HeaderMap) {
    let allowed = match cors {
        Cors::Off => return,
        Cors::Any => true,
        Cors::Local => origin.to_str().is_ok_and(is_local),
        Cors::Only(origins) => origins.iter().any(|known| known.as_bytes() == origin.as_bytes()),
    };
    // Caches must not hand one origin's answer to another.
    headers.append(header::VARY, HeaderValue::from_static("origin"));
    if !allowed {
        return;
    }
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    let constants = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, HEAD, POST, OPTIONS"),
        // Clients of OpenAI's send a dozen headers about themselves. The star does not cover `authorization`.
        (header::ACCESS_CONTROL_ALLOW_HEADERS, "authorization, *"),
        (header::ACCESS_CONTROL_EXPOSE_HEADERS, "x-request-id, x-phalanx-warnings, retry-after"),
        (header::ACCESS_CONTROL_MAX_AGE, "600"),
    ];
    for (name, value) in constants {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

/// Whether an origin is a page of this machine: `http://localhost:5173`.
fn is_local(origin: &str) -> bool {
    let Some((_, host)) = origin.split_once("://") else { return false };
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((name, _)) => name,
        None => host.split(':').next().unwrap_or(host),
    };
    matches!(name, "localhost" | "127.0.0.1" | "::1")
}

#[cfg(test)]
mod tests {
    use super::{is_local, sane_id};

    #[test]
    fn only_this_machines_origins_are_local() {
        for (origin, expected) in [
            ("http://localhost", true),
            ("https://localhost:5173", true),
            ("http://127.0.0.1:8000", true),
            ("http://[::1]:3000", true),
            ("http://localhost.example.org", false),
            ("http://example.org:80", false),
            ("http://127.0.0.1.example.org", false),
            ("null", false),
        ] {
            assert_eq!(is_local(origin), expected, "{origin}");
        }
    }

    #[test]
    fn ids_with_room_for_mischief_are_replaced() {
        for (id, expected) in [("a-1_b.c:d", true), ("", false), ("a b", false), ("é", false), ("a\n", false)]
        {
            assert_eq!(sane_id(id), expected, "{id:?}");
        }
        assert!(!sane_id(&"x".repeat(129)));
    }
}
