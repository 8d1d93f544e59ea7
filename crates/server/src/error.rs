//! What a client is told when its request is not answered: OpenAI's error object, all four keys always there.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use phalanx_engine::RequestError;
use phalanx_text::TextError;
use serde_json::{Value, json};

/// Seconds a client is asked to wait before it tries an overloaded server again.
const RETRY_AFTER_SECONDS: u32 = 1;

/// A refusal or failure, ready to be sent: as a response of its own, or inside a stream that has begun.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    param: Option<String>,
    message: String,
    retry: bool,
}

impl ApiError {
    fn new(status: StatusCode, code: Option<&'static str>, message: impl Into<String>) -> Self {
        let kind = match status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        Self { status, kind, code, param: None, message: message.into(), retry: false }
    }

    /// 400: a field's value is wrong; `param` is its path in the body, as `messages[0].role`.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        let error = Self::new(StatusCode::BAD_REQUEST, Some("invalid_value"), message);
        Self { param: Some(param.into()), ..error }
    }

    /// 400: the server knows this field and cannot do what it asks for.
    pub fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        let error = Self::new(StatusCode::BAD_REQUEST, Some("unsupported_parameter"), message);
        Self { param: Some(param.into()), ..error }
    }

    /// 400: a field that must be there is not.
    pub fn missing(param: impl Into<String>, message: impl Into<String>) -> Self {
        let error = Self::new(StatusCode::BAD_REQUEST, Some("missing_required_parameter"), message);
        Self { param: Some(param.into()), ..error }
    }

    /// 400: the body is no JSON object.
    pub(crate) fn malformed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Some("invalid_json"), message)
    }

    /// 401: no API key, or none that is known.
    pub(crate) fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, Some("invalid_api_key"), message)
    }

    /// 404: another model's name.
    pub(crate) fn model_not_found(asked: &str, served: &str) -> Self {
        let message = format!("The model `{asked}` does not exist; this server serves `{served}`.");
        let error = Self::new(StatusCode::NOT_FOUND, Some("model_not_found"), message);
        Self { param: Some("model".to_owned()), ..error }
    }

    /// An error of the transport: 404, 405, 408, 413, 415.
    pub(crate) fn transport(status: StatusCode, message: impl Into<String>) -> Self {
        Self::new(status, None, message)
    }

    /// 503: nothing new is taken.
    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self {
            retry: true,
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, Some("service_unavailable"), message)
        }
    }

    /// 500: a fault of the server's own.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, None, message)
    }

    /// What the engine said, in the words of the API that was called.
    pub(crate) fn from_engine(error: &RequestError, words: Words) -> Self {
        let message = error.to_string();
        match error {
            RequestError::Invalid { field, .. } => Self::invalid(words.of(field), message),
            RequestError::ContextLength { .. } => {
                let error = Self::new(StatusCode::BAD_REQUEST, Some("context_length_exceeded"), message);
                Self { param: Some(words.prompt.to_owned()), ..error }
            }
            RequestError::Overloaded(_) => {
                let error = Self::new(StatusCode::TOO_MANY_REQUESTS, Some("rate_limit_exceeded"), message);
                Self { retry: true, ..error }
            }
            RequestError::NonFinite { .. } => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, Some("non_finite_logits"), message)
            }
            RequestError::EngineGone(_) => Self::unavailable(message),
        }
    }

    /// What the tokenizer or the chat template said.
    pub(crate) fn from_text(error: &TextError, words: Words) -> Self {
        let message = error.to_string();
        match error {
            TextError::Conversation { field, .. } => Self::invalid(field.clone(), message),
            _ => Self::invalid(words.prompt, message),
        }
    }

    /// The error's JSON, the same in a response and in a stream.
    #[must_use]
    pub fn body(&self) -> Value {
        json!({ "error": {
            "message": self.message, "type": self.kind, "param": self.param, "code": self.code,
        }})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        let headers = response.headers_mut();
        if self.retry {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_SECONDS));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// How one API calls what the engine calls `prompt` and `max_new_tokens`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Words {
    /// The field that holds the prompt.
    pub(crate) prompt: &'static str,
    /// The field that limits an answer's length.
    pub(crate) max_tokens: &'static str,
}

impl Words {
    /// The API's name of a field of the engine's request.
    fn of(self, field: &'static str) -> &'static str {
        match field {
            "prompt" => self.prompt,
            "max_new_tokens" | "max_tokens" => self.max_tokens,
            other => other,
        }
    }
}
