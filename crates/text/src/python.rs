//! Values as Python prints them: `json.dumps` for `tojson`, and `str` for what a template prints directly.
//!
//! Models were trained on prompts that Python rendered, so a space after a colon is part of the prompt.
//! Integers beyond 64 bits are the known difference: the request's JSON parser has made floats of them already.

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Error, ErrorKind, Output, State, Value};

/// How `json.dumps` was asked to print.
struct JsonStyle {
    ensure_ascii: bool,
    /// The text of one level, or `None` for a single line.
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
}

/// The filter `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)` of the reference's
/// environment: `json.dumps`, without HTML escaping.
#[allow(clippy::needless_pass_by_value, reason = "minijinja hands filters their arguments by value")]
pub(crate) fn tojson(value: &Value, positional: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let style = JsonStyle::new(&positional, &named)?;
    named.assert_all_used()?;
    let mut text = String::new();
    style.write(value, 0, &mut text)?;
    Ok(Value::from(text))
}

impl JsonStyle {
    fn new(positional: &[Value], named: &Kwargs) -> Result<Self, Error> {
        let argument = |index: usize, name: &str| -> Result<Value, Error> {
            match positional.get(index) {
                Some(value) => Ok(value.clone()),
                None => Ok(named.get::<Option<Value>>(name)?.unwrap_or(Value::from(()))),
            }
        };
        let indent = argument(1, "indent")?;
        let indent = match indent.kind() {
            ValueKind::None | ValueKind::Undefined => None,
            ValueKind::String => Some(indent.to_string()),
            // More than any template means; a hostile one must not multiply its output.
            _ => Some(" ".repeat(indent.as_usize().filter(|width| *width <= 64).ok_or_else(bad_indent)?)),
        };
        let separators = argument(2, "separators")?;
        let (item_separator, key_separator) = if separators.is_none() || separators.is_undefined() {
            (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned())
        } else {
            let of = |index| separators.get_item_by_index(index).map(|separator| separator.to_string());
            (of(0)?, of(1)?)
        };
        let ensure_ascii = argument(0, "ensure_ascii")?.is_true();
        let sort_keys = argument(3, "sort_keys")?.is_true();
        Ok(Self { ensure_ascii, indent, item_separator, key_separator, sort_keys })
    }

    fn write(&self, value: &Value, depth: usize, text: &mut String) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => text.push_str("null"),
            ValueKind::Bool => text.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => write_number(value, text),
            ValueKind::String => self.write_string(value.as_str().unwrap_or_default(), text),
            ValueKind::Map => return self.write_map(value, depth, text),
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?.map(|item| (None, item));
                return self.write_items(items, ('[', ']'), depth, text);
            }
            other => {
                let fault = format!("a value of the kind `{other}` is not JSON serializable");
                return Err(Error::new(ErrorKind::InvalidOperation, fault));
            }
        }
        Ok(())
    }

    fn write_map(&self, map: &Value, depth: usize, text: &mut String) -> Result<(), Error> {
        let mut pairs = Vec::new();
        for key in map.try_iter()? {
            let value = map.get_item(&key)?;
            pairs.push((key_text(&key), value));
        }
        if self.sort_keys {
            pairs.sort_by(|(left, _), (right, _)| left.cmp(right));
        }
        let items = pairs.into_iter().map(|(key, value)| (Some(key), value));
        self.write_items(items, ('{', '}'), depth, text)
    }

    fn write_items(
        &self,
        items: impl Iterator<Item = (Option<String>, Value)>,
        brackets: (char, char),
        depth: usize,
        text: &mut String,
    ) -> Result<(), Error> {
        if MAX_DEPTH < depth {
            let fault = format!("a value nested more than {MAX_DEPTH} deep is not printed");
            return Err(Error::new(ErrorKind::InvalidOperation, fault));
        }
        text.push(brackets.0);
        let mut empty = true;
        for (key, value) in items {
            if !empty {
                text.push_str(&self.item_separator);
            }
            empty = false;
            self.write_line_start(depth + 1, text);
            if let Some(key) = key {
                self.write_string(&key, text);
                text.push_str(&self.key_separator);
            }
            self.write(&value, depth + 1, text)?;
        }
        if !empty {
            self.write_line_start(depth, text);
        }
        text.push(brackets.1);
        Ok(())
    }

    fn write_line_start(&self, depth: usize, text: &mut String) {
        if let Some(indent) = &self.indent {
            text.push('\n');
            text.push_str(&indent.repeat(depth));
        }
    }

    fn write_string(&self, string: &str, text: &mut String) {
        text.push('"');
        for character in string.chars() {
            match character {
                '"' => text.push_str("\\\""),
                '\\' => text.push_str("\\\\"),
                '\n' => text.push_str("\\n"),
                '\r' => text.push_str("\\r"),
                '\t' => text.push_str("\\t"),
                '\u{8}' => text.push_str("\\b"),
                '\u{c}' => text.push_str("\\f"),
                '\0'..='\u{1f}' => text.push_str(&format!("\\u{:04x}", u32::from(character))),
                '\u{7f}'.. if self.ensure_ascii => {
                    for unit in character.encode_utf16(&mut [0; 2]) {
                        text.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                _ => text.push(character),
            }
        }
        text.push('"');
    }
}

/// Deeper nesting than any tool's schema; the request's own JSON parser stops at 128.
const MAX_DEPTH: usize = 200;

fn bad_indent() -> Error {
    Error::new(ErrorKind::InvalidOperation, "tojson takes an indent of 0 to 64 spaces, or a string")
}

/// A key of a JSON object, which Python makes a string of: `True` becomes `true`, 1 becomes `1`.
fn key_text(key: &Value) -> String {
    match key.kind() {
        ValueKind::None => "null".to_owned(),
        ValueKind::Number => {
            let mut text = String::new();
            write_number(key, &mut text);
            text
        }
        // Strings print as they are, and booleans as JSON writes them.
        _ => key.to_string(),
    }
}

fn write_number(value: &Value, text: &mut String) {
    match f64::try_from(value.clone()) {
        Ok(float) if !value.is_integer() => text.push_str(&float_repr(float)),
        _ => text.push_str(&value.to_string()),
    }
}

/// `repr` of a Python float: the fewest digits that read back the same, an exponent below 1e-4 and from 1e16 on.
fn float_repr(float: f64) -> String {
    if float.is_nan() {
        return "NaN".to_owned();
    }
    if float.is_infinite() {
        return if 0.0 < float { "Infinity" } else { "-Infinity" }.to_owned();
    }
    let scientific = format!("{float:e}");
    let (digits, exponent) = scientific.split_once('e').expect("`{:e}` writes an exponent");
    let exponent: i32 = exponent.parse().expect("`{:e}` writes an integer exponent");
    if float == 0.0 || (-4..16).contains(&exponent) {
        let plain = float.to_string();
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// Prints a template's `{{ value }}` as Jinja2 does: `True`, `None`, `['a', 1]`.
pub(crate) fn print(output: &mut Output, _state: &mut State, value: &Value) -> Result<(), Error> {
    match value.as_str() {
        Some(text) => output.write_str(text)?,
        None if value.is_undefined() => {}
        None => {
            let mut text = String::new();
            write_repr(value, 0, &mut text)?;
            output.write_str(&text)?;
        }
    }
    Ok(())
}

/// Python's `repr`.
fn write_repr(value: &Value, depth: usize, text: &mut String) -> Result<(), Error> {
    if MAX_DEPTH < depth {
        let fault = format!("a value nested more than {MAX_DEPTH} deep is not printed");
        return Err(Error::new(ErrorKind::InvalidOperation, fault));
    }
    match value.kind() {
        ValueKind::None => text.push_str("None"),
        ValueKind::Bool => text.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => match f64::try_from(value.clone()) {
            Ok(float) if float.is_nan() => text.push_str("nan"),
            Ok(float) if float.is_infinite() => text.push_str(if 0.0 < float { "inf" } else { "-inf" }),
            _ => write_number(value, text),
        },
        ValueKind::String => write_string_repr(value.as_str().unwrap_or_default(), text),
        ValueKind::Map => {
            text.push('{');
            for (index, key) in value.try_iter()?.enumerate() {
                text.push_str(if index == 0 { "" } else { ", " });
                write_repr(&key, depth + 1, text)?;
                text.push_str(": ");
                write_repr(&value.get_item(&key)?, depth + 1, text)?;
            }
            text.push('}');
        }
        ValueKind::Seq | ValueKind::Iterable => {
            text.push('[');
            for (index, item) in value.try_iter()?.enumerate() {
                text.push_str(if index == 0 { "" } else { ", " });
                write_repr(&item, depth + 1, text)?;
            }
            text.push(']');
        }
        _ => text.push_str(&value.to_string()),
    }
    Ok(())
}

/// Python's `repr` of a string: single quotes unless only double ones avoid an escape.
fn write_string_repr(string: &str, text: &mut String) {
    let quote = if string.contains('\'') && !string.contains('"') { '"' } else { '\'' };
    text.push(quote);
    for character in string.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '\0'..='\u{1f}' | '\u{7f}' => text.push_str(&format!("\\x{:02x}", u32::from(character))),
            _ if character == quote => text.extend(['\\', quote]),
            _ => text.push(character),
        }
    }
    text.push(quote);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_pythons() {
        // Expected texts: repr(float) of Python 3.11.
        for (float, expected) in [
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (0.1, "0.1"),
            (1e-5, "1e-05"),
            (0.0001, "0.0001"),
            (1.5e-7, "1.5e-07"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.234_567_890_123_456_7e300, "1.2345678901234567e+300"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-Infinity"),
        ] {
            assert_eq!(float_repr(float), expected);
        }
    }
}
