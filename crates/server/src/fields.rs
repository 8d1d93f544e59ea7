//! A request body taken apart field by field: each is asked for by name, and what nobody asked for is named in a warning.
//!
//! A body is not deserialised in one go because a client deserves more than serde's first complaint: the path of the
//! field that is wrong, aliases, and the list of fields that had no effect.

use std::collections::HashMap;

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderValue, StatusCode, header};
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::state::Shared;

/// Fields that label a request for the client's own books and change no answer: accepted without a warning.
const LABELS: [&str; 5] =
    ["user", "metadata", "safety_identifier", "prompt_cache_key", "include_obfuscation"];

/// The fields of a JSON object that have not been asked for yet.
#[derive(Debug, Default)]
pub(crate) struct Fields {
    values: Map<String, Value>,
    /// The full path of fields that came out of a nested object, and of this object itself (under "").
    paths: HashMap<String, String>,
    warnings: Vec<String>,
}

impl Fields {
    /// Reads a body, which must hold one JSON object.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, ApiError> {
        match serde_json::from_slice(bytes) {
            Ok(Value::Object(values)) => Ok(Self { values, ..Self::default() }),
            Ok(other) => Err(ApiError::malformed(format!(
                "The body must be a JSON object, but it is {}.",
                kind_of(&other)
            ))),
            Err(error) => Err(ApiError::malformed(format!("The body is not valid JSON: {error}."))),
        }
    }

    /// Takes a field; `null` is the same as leaving it out.
    ///
    /// # Errors
    /// 400 that names the path of what is of the wrong type.
    pub(crate) fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, ApiError> {
        match self.values.shift_remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => parse_at(value, self.path(name)).map(Some),
        }
    }

    /// Overwrites `place` with a field's value, when the field is there.
    ///
    /// # Errors
    /// Those of [`Fields::take`].
    pub(crate) fn set<T: DeserializeOwned>(&mut self, name: &str, place: &mut T) -> Result<(), ApiError> {
        if let Some(value) = self.take(name)? {
            *place = value;
        }
        Ok(())
    }

    /// Takes a field that has several names, and says under which name it came.
    ///
    /// # Errors
    /// Those of [`Fields::take`]; two names with different values.
    pub(crate) fn take_alias<T: DeserializeOwned + PartialEq>(
        &mut self,
        names: &[&'static str],
    ) -> Result<Option<(&'static str, T)>, ApiError> {
        let mut found: Option<(&'static str, T)> = None;
        for name in names {
            match (self.take::<T>(name)?, &found) {
                (None, _) => {}
                (Some(value), None) => found = Some((*name, value)),
                (Some(value), Some((_, first))) if value == *first => {}
                (Some(_), Some((first, _))) => {
                    let message =
                        format!("`{first}` and `{name}` mean the same but differ: give one of them.");
                    return Err(ApiError::invalid(self.path(name), message));
                }
            }
        }
        Ok(found)
    }

    /// Takes a field as it is, `null` included as absence.
    pub(crate) fn take_value(&mut self, name: &str) -> Option<Value> {
        self.values.shift_remove(name).filter(|value| !value.is_null())
    }

    /// Looks at a field that nobody has taken yet.
    pub(crate) fn peek(&self, name: &str) -> Option<&Value> {
        self.values.get(name)
    }

    /// Takes a nested object apart on its own; empty when it is not there.
    ///
    /// # Errors
    /// It is no object.
    pub(crate) fn take_object(&mut self, name: &str) -> Result<Self, ApiError> {
        let path = self.path(name);
        let values = self.take::<Map<String, Value>>(name)?.unwrap_or_default();
        Ok(Self { values, paths: HashMap::from([(String::new(), path)]), warnings: Vec::new() })
    }

    /// Moves a nested object's fields up beside its own, as if the client had sent them flat.
    ///
    /// # Errors
    /// It is no object, or says something else than a flat field of the same name.
    pub(crate) fn absorb(&mut self, name: &str) -> Result<(), ApiError> {
        for (key, value) in self.take::<Map<String, Value>>(name)?.unwrap_or_default() {
            if value.is_null() {
                continue;
            }
            let path = format!("{name}.{key}");
            match self.values.get(&key) {
                Some(flat) if !flat.is_null() && *flat != value => {
                    let message = format!("`{key}` and `{path}` differ: give one of them.");
                    return Err(ApiError::invalid(path, message));
                }
                _ => {}
            }
            self.values.insert(key.clone(), value);
            self.paths.insert(key, path);
        }
        Ok(())
    }

    /// Adds a remark about what was taken.
    pub(crate) fn warn(&mut self, remark: String) {
        self.warnings.push(remark);
    }

    /// Adds the remarks of an object that [`Fields::take_object`] took out.
    pub(crate) fn adopt(&mut self, nested: Self) {
        self.warnings.extend(nested.finish());
    }

    /// Ends the taking: what is left had no effect, and is named.
    pub(crate) fn finish(mut self) -> Vec<String> {
        let mut warnings = std::mem::take(&mut self.warnings);
        for (name, value) in &self.values {
            if !value.is_null() && !LABELS.contains(&name.as_str()) {
                warnings.push(format!("`{}` is not supported here and had no effect", self.path(name)));
            }
        }
        warnings
    }

    /// A field's path from the top of the body.
    pub(crate) fn path(&self, name: &str) -> String {
        match (self.paths.get(name), self.paths.get("")) {
            (Some(path), _) => path.clone(),
            (None, Some(parent)) => format!("{parent}.{name}"),
            (None, None) => name.to_owned(),
        }
    }
}

/// Deserialises the value found at `path`, and names the inner field that is wrong.
pub(crate) fn parse_at<T: DeserializeOwned>(value: Value, path: String) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let inner = error.path().to_string();
        let full = match inner.as_str() {
            "." => path,
            inner if inner.starts_with('[') => path + inner,
            inner => format!("{path}.{inner}"),
        };
        let message = format!("`{full}`: {}.", in_words(&error.inner().to_string()));
        ApiError::invalid(full, message)
    })
}

/// Serde's complaint without the names of Rust's types.
fn in_words(complaint: &str) -> String {
    let Some((found, expected)) = complaint.rsplit_once(", expected ") else {
        return complaint.to_owned();
    };
    let expected = match expected {
        "f32" | "f64" => "a number",
        "i32" | "i64" => "an integer",
        "u32" | "u64" | "usize" => "an integer of at least 0",
        "a sequence" => "an array",
        "a map" => "an object",
        other => other,
    };
    let found = match found {
        "invalid type: sequence" => "invalid type: an array".to_owned(),
        "invalid type: map" => "invalid type: an object".to_owned(),
        other => other.replacen("floating point", "the number", 1),
    };
    format!("{found}, expected {expected}")
}

/// What a JSON value is, in a sentence.
fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

impl FromRequest<Shared> for Fields {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &Shared) -> Result<Self, ApiError> {
        let (parts, content) = request.into_parts();
        let declared =
            parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
        if !is_json(declared) {
            let message =
                format!("Send JSON, with the header `Content-Type: application/json`, not {declared:?}.");
            return Err(ApiError::transport(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
        }
        if let Some(encoding) = parts.headers.get(header::CONTENT_ENCODING).filter(|name| *name != "identity")
        {
            let message =
                format!("Send the body as it is, without `Content-Encoding: {}`.", readable(encoding));
            return Err(ApiError::transport(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
        }
        let limit = state.options.body_limit_bytes;
        let length =
            parts.headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        let too_large = || {
            let message = format!("The body is larger than the {limit} bytes this server takes.");
            ApiError::transport(StatusCode::PAYLOAD_TOO_LARGE, message)
        };
        if length.is_some_and(|length: usize| limit < length) {
            return Err(too_large());
        }
        let patience = state.options.body_timeout;
        match tokio::time::timeout(patience, read(content, limit)).await {
            Ok(bytes) => Self::parse(&bytes?.ok_or_else(too_large)?),
            Err(_) => {
                let message = format!("The body did not arrive within {} seconds.", patience.as_secs());
                Err(ApiError::transport(StatusCode::REQUEST_TIMEOUT, message))
            }
        }
    }
}

/// Reads a whole body; `None` when it is longer than `limit`.
///
/// # Errors
/// The connection ends before the body does, or its chunks are malformed.
async fn read(content: Body, limit: usize) -> Result<Option<Vec<u8>>, ApiError> {
    let mut pieces = content.into_data_stream();
    let mut bytes = Vec::new();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|_| {
            ApiError::malformed("The body ends early, or the lengths of its chunks are wrong.")
        })?;
        if limit < bytes.len() + piece.len() {
            return Ok(None);
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(Some(bytes))
}

/// A header's value in a sentence, whatever its bytes are.
fn readable(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

/// Whether a media type is JSON, as `application/json; charset=utf-8` or `application/problem+json`.
fn is_json(media_type: &str) -> bool {
    let essence = media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}
