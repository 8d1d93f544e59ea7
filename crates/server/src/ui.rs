//! The chat page: plain files, embedded, served with headers that let them load nothing from elsewhere.

use axum::extract::Path;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use crate::error::ApiError;

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// Every file of the page: name, media type, content.
const FILES: [(&str, &str, &str); 11] = [
    ("index.html", HTML, include_str!("../web/index.html")),
    ("style.css", CSS, include_str!("../web/style.css")),
    ("chat.css", CSS, include_str!("../web/chat.css")),
    ("app.js", SCRIPT, include_str!("../web/app.js")),
    ("api.js", SCRIPT, include_str!("../web/api.js")),
    ("composer.js", SCRIPT, include_str!("../web/composer.js")),
    ("markdown.js", SCRIPT, include_str!("../web/markdown.js")),
    ("messages.js", SCRIPT, include_str!("../web/messages.js")),
    ("settings.js", SCRIPT, include_str!("../web/settings.js")),
    ("status.js", SCRIPT, include_str!("../web/status.js")),
    ("store.js", SCRIPT, include_str!("../web/store.js")),
];

/// The page may run its own scripts and talk to its own server, nothing else; an answer that smuggles a tag past the
/// renderer finds no way out.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// `GET /`.
pub(crate) async fn page(headers: HeaderMap) -> Response {
    file("index.html", &headers)
}

/// `GET /assets/{name}`.
pub(crate) async fn asset(Path(name): Path<String>, headers: HeaderMap) -> Response {
    file(&name, &headers)
}

/// One of the page's files, or 304 for a browser that has it.
fn file(name: &str, request: &HeaderMap) -> Response {
    let Some((_, media_type, content)) = FILES.iter().find(|(known, _, _)| *known == name) else {
        return ApiError::transport(StatusCode::NOT_FOUND, format!("There is no file `{name}`."))
            .into_response();
    };
    let digest = Sha256::digest(content);
    let tag =
        format!("\"{:016x}\"", digest.iter().take(8).fold(0_u64, |tag, byte| tag << 8 | u64::from(*byte)));
    let known = request.get(header::IF_NONE_MATCH).is_some_and(|value| value.as_bytes() == tag.as_bytes());
    let mut response = match known {
        true => StatusCode::NOT_MODIFIED.into_response(),
        false => ([(header::CONTENT_TYPE, HeaderValue::from_static(media_type))], *content).into_response(),
    };
    let headers = response.headers_mut();
    for (name, value) in [
        // Files change with the binary: ask each time, which costs one small answer.
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers
        .insert(header::ETAG, HeaderValue::from_str(&tag).expect("hexadecimal digits are a header's value"));
    response
}
