//! Raw prompts on the wire: one or many, text or ids.

use serde_json::Value;

use crate::error::ApiError;
use crate::fields::{Fields, parse_at};
use crate::generation::Prompt;
use crate::state::Shared;

/// The prompts of a request.
#[derive(Debug)]
pub(crate) struct Prompts {
    /// At least one.
    pub(crate) list: Vec<Prompt>,
    /// Whether the client sent a list of prompts, and so expects a list of answers.
    pub(crate) many: bool,
    /// The field they came in.
    pub(crate) name: &'static str,
}

/// Takes the prompts out of whichever of these fields holds them.
///
/// # Errors
/// None of the fields is there, or several are; wrong types, by path.
pub(crate) fn take_prompts(fields: &mut Fields, names: &[&'static str]) -> Result<Prompts, ApiError> {
    let mut given = names.iter().filter_map(|name| Some((*name, fields.take_value(name)?)));
    let first = given.next();
    let second = given.next();
    match (first, second) {
        (Some((name, value)), None) => {
            let (list, many) = parse(value, name)?;
            Ok(Prompts { list, many, name })
        }
        (Some((first, _)), Some((second, _))) => Err(ApiError::invalid(
            second,
            format!("Both `{first}` and `{second}` hold a prompt: give one of them."),
        )),
        (None, _) => {
            let message = format!("The prompt is missing: give `{}`.", names.join("`, `"));
            Err(ApiError::missing(names[0], message))
        }
    }
}

/// Refuses more prompts than the server takes in one request.
///
/// # Errors
/// 400 with both numbers.
pub(crate) fn check_count(count: usize, state: &Shared, name: &str) -> Result<(), ApiError> {
    let most = state.options.max_prompts;
    if most < count {
        let message = format!("`{name}` holds {count} prompts; one request may hold at most {most}.");
        return Err(ApiError::invalid(name, message));
    }
    Ok(())
}

/// A string, ids, or a list of either.
fn parse(value: Value, name: &str) -> Result<(Vec<Prompt>, bool), ApiError> {
    match value {
        Value::String(text) => Ok((vec![Prompt::Text(text)], false)),
        Value::Array(items) => match items.first() {
            None => Err(ApiError::invalid(name, format!("`{name}` must not be empty."))),
            Some(Value::Number(_)) => {
                Ok((vec![Prompt::Tokens(parse_at(Value::Array(items), name.to_owned())?)], false))
            }
            Some(Value::Array(_)) => {
                let lists: Vec<Vec<u32>> = parse_at(Value::Array(items), name.to_owned())?;
                Ok((lists.into_iter().map(Prompt::Tokens).collect(), true))
            }
            Some(_) => {
                let texts: Vec<String> = parse_at(Value::Array(items), name.to_owned())?;
                Ok((texts.into_iter().map(Prompt::Text).collect(), true))
            }
        },
        _ => {
            let message = format!("`{name}` must be a string, an array of token ids, or an array of either.");
            Err(ApiError::invalid(name, message))
        }
    }
}
