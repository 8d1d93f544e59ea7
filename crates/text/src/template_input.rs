//! A request's messages in the shape that templates expect: text for text, objects for arguments.

use serde_json::Value;

use crate::TextError;

/// Whether a template walks over the parts of a message's content, rather than printing it as one string.
pub(crate) fn expects_parts(source: &str) -> bool {
    let loops = source.split("{%").skip(1).filter_map(|block| block.split("%}").next());
    let mut subjects = loops.filter_map(|block| {
        let block = block.trim_start_matches(['-', '+']).trim_start();
        let (_, subject) = block.strip_prefix("for ")?.split_once(" in ")?;
        subject.split([' ', '|', '-']).find(|word| !word.is_empty())
    });
    subjects.any(|subject| {
        let subject = subject.trim();
        ["content", "['content']", "[\"content\"]"].iter().any(|end| subject.ends_with(end))
    })
}

/// The messages as a template expects them.
///
/// Content given as parts becomes one string, the parts joined by line ends, unless the template walks over parts
/// itself. A tool call's arguments, which OpenAI's API carries as a string of JSON, become the object they spell.
///
/// # Errors
/// A message is no object, has no role, or holds a part that is not text: the field is named.
pub(crate) fn normalised(messages: &[Value], keep_parts: bool) -> Result<Vec<Value>, TextError> {
    let mut normalised = messages.to_vec();
    for (index, message) in normalised.iter_mut().enumerate() {
        let fault = |field: &str, fault: &str| TextError::Conversation {
            field: format!("messages[{index}]{field}"),
            fault: fault.to_owned(),
        };
        let Some(fields) = message.as_object_mut() else {
            return Err(fault("", "a message must be an object with `role` and `content`"));
        };
        if !fields.get("role").is_some_and(Value::is_string) {
            return Err(fault(".role", "a message must have a role, which is a string"));
        }
        if let Some(Value::Array(parts)) = fields.get("content") {
            let text = joined_text(parts, &format!("messages[{index}].content"))?;
            if !keep_parts {
                fields.insert("content".to_owned(), Value::String(text));
            }
        }
        if let Some(Value::Array(calls)) = fields.get_mut("tool_calls") {
            calls.iter_mut().for_each(parse_arguments);
        }
    }
    Ok(normalised)
}

/// The text of content parts.
fn joined_text(parts: &[Value], field: &str) -> Result<String, TextError> {
    let mut texts = Vec::with_capacity(parts.len());
    for (index, part) in parts.iter().enumerate() {
        let text = match part {
            Value::String(text) => Some(text.as_str()),
            part if part["type"] == "text" => part["text"].as_str(),
            _ => None,
        };
        let Some(text) = text else {
            let fault = match part["type"].as_str() {
                Some("text") => "a part of the type `text` must have a `text`, which is a string".to_owned(),
                Some(kind) => {
                    format!("this model reads only text, but the part is of the type `{kind}`")
                }
                None => "a part must be an object with `type` and `text`".to_owned(),
            };
            return Err(TextError::Conversation { field: format!("{field}[{index}]"), fault });
        };
        texts.push(text);
    }
    Ok(texts.join("\n"))
}

/// Replaces a tool call's arguments by the object they spell; arguments that spell none stay a string.
fn parse_arguments(call: &mut Value) {
    let function = if call["function"].is_object() { &mut call["function"] } else { call };
    let object = function["arguments"].as_str().and_then(|text| serde_json::from_str(text).ok());
    if let Some(object @ Value::Object(_)) = object {
        function["arguments"] = object;
    }
}

/// How much there is to render: the bytes of all strings, and something for every value.
pub(crate) fn weight(value: &Value) -> usize {
    let inside = match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(weight).sum(),
        Value::Object(fields) => fields.iter().map(|(key, value)| key.len() + weight(value)).sum(),
        _ => 0,
    };
    inside + 16
}
