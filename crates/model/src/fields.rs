//! Reads numbers, words and switches out of a model's description, naming file and field when one is wrong.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{LoadError, printable};

/// The named values of one file: `config.json`, or the scalars of a GGUF file's metadata.
pub(crate) struct Fields<'a> {
    /// Named in errors.
    pub(crate) file: &'a Path,
    /// What the file says.
    pub(crate) values: &'a Map<String, Value>,
}

impl Fields<'_> {
    /// An error about one field.
    pub(crate) fn error(&self, key: &str, what: &str) -> LoadError {
        LoadError::malformed(self.file, format!("{key}: {what}"))
    }

    /// One field asks for what is not supported; what to do `instead`.
    pub(crate) fn refused(&self, key: &str, what: &str, instead: &str) -> LoadError {
        LoadError::refused(self.file, format!("{key}: {what}"), instead)
    }

    /// A whole number from 1 to `most` that has to be there.
    pub(crate) fn count(&self, key: &str, most: usize) -> Result<usize, LoadError> {
        match self.optional_count(key, most)? {
            Some(count) => Ok(count),
            None => Err(self.error(key, "is missing")),
        }
    }

    /// A whole number from 1 to `most`, when it is there.
    pub(crate) fn optional_count(&self, key: &str, most: usize) -> Result<Option<usize>, LoadError> {
        let Some(value) = self.present(key) else { return Ok(None) };
        match value.as_u64().and_then(|count| usize::try_from(count).ok()) {
            Some(count) if 1 <= count && count <= most => Ok(Some(count)),
            _ => {
                let what = format!("is {}, and has to be a whole number from 1 to {most}", shown(value));
                Err(self.error(key, &what))
            }
        }
    }

    /// A finite number above zero, when it is there.
    pub(crate) fn optional_positive(&self, key: &str) -> Result<Option<f64>, LoadError> {
        let Some(value) = self.present(key) else { return Ok(None) };
        match value.as_f64() {
            Some(number) if number.is_finite() && 0.0 < number => Ok(Some(number)),
            _ => Err(self.error(key, &format!("is {}, and has to be a number above 0", shown(value)))),
        }
    }

    /// A word, when it is there.
    pub(crate) fn optional_text(&self, key: &str) -> Result<Option<&str>, LoadError> {
        match self.present(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(value) => Err(self.error(key, &format!("is {}, and has to be a string", shown(value)))),
        }
    }

    /// A switch; off when it is not there.
    pub(crate) fn switch(&self, key: &str) -> Result<bool, LoadError> {
        match self.present(key) {
            None => Ok(false),
            Some(Value::Bool(on)) => Ok(*on),
            Some(value) => Err(self.error(key, &format!("is {}, and has to be true or false", shown(value)))),
        }
    }

    /// The value, unless it is absent or null.
    pub(crate) fn present(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|value| !value.is_null())
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Array(_) => "a list".to_string(),
        Value::Object(_) => "an object".to_string(),
        other => printable(&other.to_string()),
    }
}
