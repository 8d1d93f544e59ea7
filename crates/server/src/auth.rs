//! API keys: who may use the guarded routes.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use crate::error::ApiError;
use crate::state::Shared;

/// The hashes of all keys. Comparing hashes, all of them and to the end, tells a guesser nothing by its duration.
#[derive(Debug)]
pub(crate) struct ApiKeys(Vec<[u8; 32]>);

impl ApiKeys {
    pub(crate) fn new(keys: &[String]) -> Self {
        Self(keys.iter().map(|key| Sha256::digest(key).into()).collect())
    }

    /// Whether any key will do.
    fn open(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether this is one of the keys.
    fn contains(&self, key: &str) -> bool {
        let hash: [u8; 32] = Sha256::digest(key).into();
        self.0.iter().fold(Choice::from(0), |found, known| found | known.ct_eq(&hash)).into()
    }
}

/// The middleware in front of guarded routes. It is laid around those routes themselves, not chosen by the request's
/// path, so no spelling of a path can walk around it.
pub(crate) async fn require_key(State(state): State<Shared>, request: Request, next: Next) -> Response {
    // A browser asks what it may send before it sends a key; the answer holds nothing but method names.
    if state.keys.open() || request.method() == Method::OPTIONS {
        return next.run(request).await;
    }
    match bearer(request.headers()) {
        Some(key) if state.keys.contains(key) => next.run(request).await,
        Some(_) => ApiError::unauthorized("This API key is not known to the server.").into_response(),
        None => {
            let message = "This server wants an API key, as the header `Authorization: Bearer KEY`.";
            ApiError::unauthorized(message).into_response()
        }
    }
}

/// The key a request carries. The scheme's name has no case (RFC 9110, section 11.1).
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, key) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(key.trim())
}
