//! Keeps users from writing control tokens: what they wrote is marked before rendering and unmarked after the
//! template's own control tokens have been found.
//!
//! In every string of a request, each control token's text (`<|im_end|>`) is replaced by one private-use character
//! that occurs nowhere else. A control token's text in the rendered prompt was therefore written by the template. The
//! prompt is cut at those, and the pieces between them, their characters turned back, are encoded as plain text.
//! A string's last characters are replaced too when they begin such a text (`<|im_`), so that two strings printed side
//! by side cannot make one. Text without any of this is rendered untouched, so its ids equal the reference's.
//!
//! Limits: a template that compares or measures content sees one character where the user wrote a control token; a
//! template that deletes characters inside content (not at its ends) could still join what was apart.

use serde_json::{Map, Value};

use crate::tokenizer::ControlToken;

/// The private-use characters of planes 15 and 16, which no font, language or vocabulary gives a meaning.
const PRIVATE_USE: std::ops::RangeInclusive<char> = '\u{f0000}'..='\u{10fffd}';

/// Which characters stand for which pieces of text in one request.
#[derive(Debug)]
pub(crate) struct Marks<'a> {
    control: &'a [ControlToken],
    free: Vec<char>,
    used: Vec<(char, String)>,
}

/// A piece of a rendered prompt.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Segment {
    /// A control token that the template wrote.
    Control(u32),
    /// Everything else, as its author wrote it.
    Text(String),
}

impl<'a> Marks<'a> {
    /// Marks for a request that consists of these values, rendered by a template with this source.
    pub(crate) fn new(control: &'a [ControlToken], template: &str, inputs: &[&Value]) -> Self {
        let mut taken: Vec<char> = template.chars().filter(|c| PRIVATE_USE.contains(c)).collect();
        inputs.iter().for_each(|input| private_use(input, &mut taken));
        taken.sort_unstable();
        // A mark for every text and every beginning of a text is the most a request can need.
        let needed = control.iter().map(|token| token.text.len()).sum();
        let free = PRIVATE_USE.filter(|c| taken.binary_search(c).is_err()).take(needed).collect();
        Self { control, free, used: Vec::new() }
    }

    /// Replaces control tokens' texts in every string of a value, keys of objects included.
    pub(crate) fn mark(&mut self, value: &mut Value) {
        match value {
            Value::String(text) => self.mark_text(text),
            Value::Array(items) => items.iter_mut().for_each(|item| self.mark(item)),
            Value::Object(fields) => {
                let marked = std::mem::take(fields).into_iter().map(|(mut key, mut value)| {
                    self.mark_text(&mut key);
                    self.mark(&mut value);
                    (key, value)
                });
                *fields = marked.collect::<Map<_, _>>();
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    fn mark_text(&mut self, text: &mut String) {
        for token in self.control {
            if text.contains(&token.text) {
                let mark = self.mark_of(&token.text);
                *text = text.replace(&token.text, mark.encode_utf8(&mut [0; 4]));
            }
        }
        // Templates trim content, so a beginning followed by spaces counts as well.
        let trimmed = text.trim_end().len();
        let end = &text[..trimmed];
        let beginnings = self.control.iter().filter_map(|token| longest_beginning(end, &token.text));
        if let Some(length) = beginnings.max() {
            let mark = self.mark_of(&end[trimmed - length..]);
            text.replace_range(trimmed - length..trimmed, mark.encode_utf8(&mut [0; 4]));
        }
    }

    fn mark_of(&mut self, text: &str) -> char {
        if let Some((mark, _)) = self.used.iter().find(|(_, used)| used == text) {
            return *mark;
        }
        // A request that fills both private planes gets U+FFFD: its control tokens come out unreadable, not obeyed.
        let mark = self.free.pop().unwrap_or(char::REPLACEMENT_CHARACTER);
        if mark != char::REPLACEMENT_CHARACTER {
            self.used.push((mark, text.to_owned()));
        }
        mark
    }

    /// Cuts a rendered prompt at the control tokens it holds, and turns marks back into what they stand for.
    pub(crate) fn segments(&self, prompt: &str) -> Vec<Segment> {
        let mut segments = Vec::new();
        let mut first_bytes: Vec<u8> = self.control.iter().map(|token| token.text.as_bytes()[0]).collect();
        first_bytes.dedup();
        let may_begin = |(_, byte): &(usize, u8)| first_bytes.contains(byte);
        let mut text_start = 0;
        for (position, _) in prompt.bytes().enumerate().filter(may_begin) {
            // Control tokens do not overlap: a beginning inside the one just found is not a beginning.
            if position < text_start {
                continue;
            }
            let here = &prompt[position..];
            if let Some(token) = self.control.iter().find(|token| here.starts_with(&token.text)) {
                self.push_text(&prompt[text_start..position], &mut segments);
                segments.push(Segment::Control(token.id));
                text_start = position + token.text.len();
            }
        }
        self.push_text(&prompt[text_start..], &mut segments);
        segments
    }

    fn push_text(&self, marked: &str, segments: &mut Vec<Segment>) {
        if marked.is_empty() {
            return;
        }
        segments.push(Segment::Text(self.unmarked(marked)));
    }

    /// Turns marks back into what they stand for.
    pub(crate) fn unmarked(&self, marked: &str) -> String {
        if self.used.is_empty() {
            return marked.to_owned();
        }
        let mut text = String::with_capacity(marked.len());
        for character in marked.chars() {
            match self.used.iter().find(|(mark, _)| *mark == character) {
                Some((_, original)) => text.push_str(original),
                None => text.push(character),
            }
        }
        text
    }
}

/// The longest beginning of `token`, but not all of it, that `text` ends with.
fn longest_beginning(text: &str, token: &str) -> Option<usize> {
    let mut lengths = (1..token.len()).rev().filter(|length| token.is_char_boundary(*length));
    lengths.find(|length| text.ends_with(&token[..*length]))
}

/// Collects the private-use characters of a value's strings.
fn private_use(value: &Value, found: &mut Vec<char>) {
    let mut collect = |text: &str| found.extend(text.chars().filter(|c| PRIVATE_USE.contains(c)));
    match value {
        Value::String(text) => collect(text),
        Value::Array(items) => items.iter().for_each(|item| private_use(item, found)),
        Value::Object(fields) => {
            fields.keys().for_each(|key| collect(key));
            fields.values().for_each(|value| private_use(value, found));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
