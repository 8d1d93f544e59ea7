//! A conversation to the prompt its model was trained on, by the Jinja template that comes with the model.

use std::io;
use std::path::Path;
use std::time::SystemTime;

use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind};
use serde_json::{Map, Value, json};

use crate::template_environment::{TEMPLATE_NAME, environment, in_words};
use crate::template_input::{expects_parts, normalised, weight};
use crate::tokenizer::ControlToken;
use crate::untrusted::{Marks, Segment};
use crate::{SpecialTokens, TextError, Tokenizer, strftime::strftime};

/// Names a request may not set: the server's own, and those that other servers were tricked with.
const RESERVED: [&str; 14] = [
    "messages",
    "conversation",
    "tools",
    "bos_token",
    "eos_token",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template",
    "tokenize",
    "return_dict",
    "raise_exception",
    "strftime_now",
    "namespace",
    "range",
];

/// Work allowed: a base any template stays within, and more for every byte of conversation.
const BASE_FUEL: u64 = 1_000_000;
const FUEL_PER_BYTE: u64 = 4;

/// Bytes of prompt allowed beyond eight for every byte of conversation.
const BASE_OUTPUT_BYTES: usize = 1 << 20;

/// What a request may ask of rendering.
#[derive(Clone, Debug, PartialEq)]
pub struct RenderOptions {
    /// End with the opening of the assistant's turn. On by default.
    pub add_generation_prompt: bool,
    /// End inside the last message, for the model to go on with it. Excludes `add_generation_prompt`.
    pub continue_final_message: bool,
    /// More names for the template (`enable_thinking`, `documents`). None may hide a name of the server's.
    pub extra: Map<String, Value>,
    /// The moment templates print with `strftime_now`; the current one when `None`.
    pub now: Option<SystemTime>,
}

impl Default for RenderOptions {
    fn default() -> Self {
        Self { add_generation_prompt: true, continue_final_message: false, extra: Map::new(), now: None }
    }
}

/// A model's chat template, compiled once and shared by `Arc`.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    bos_token: String,
    eos_token: String,
    expects_parts: bool,
}

impl ChatTemplate {
    /// Compiles a template. `bos_token` and `eos_token` are the texts it may print; empty where the model has none.
    ///
    /// # Errors
    /// The template does not parse.
    pub fn new(source: &str, bos_token: &str, eos_token: &str) -> Result<Self, TextError> {
        Ok(Self {
            environment: environment(source)?,
            source: source.to_owned(),
            bos_token: bos_token.to_owned(),
            eos_token: eos_token.to_owned(),
            expects_parts: expects_parts(source),
        })
    }

    /// Reads the template of a model's folder: `chat_template.jinja`, or else the one inside `tokenizer_config.json`.
    /// `None` when there is neither.
    ///
    /// # Errors
    /// A file that is there cannot be read or parsed.
    pub fn from_folder(folder: &Path) -> Result<Option<Self>, TextError> {
        let read = |name: &str| match std::fs::read_to_string(folder.join(name)) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(TextError::Read { path: folder.join(name), source }),
        };
        let config = match read("tokenizer_config.json")? {
            None => Value::Null,
            Some(text) => serde_json::from_str(&text).map_err(|error| TextError::Tokenizer {
                origin: folder.join("tokenizer_config.json").display().to_string(),
                fault: format!("it is not JSON: {error}"),
            })?,
        };
        let source = match read("chat_template.jinja")? {
            Some(source) => source,
            None => match template_in(&config["chat_template"]) {
                Some(source) => source.to_owned(),
                None => return Ok(None),
            },
        };
        Self::new(&source, token_text(&config["bos_token"]), token_text(&config["eos_token"])).map(Some)
    }

    /// The prompt's text. Control tokens' texts that a user wrote stand in it as they are: to encode a chat, call
    /// [`ChatTemplate::encode_chat`], which tells them from the template's.
    ///
    /// A message is an object with `role` and `content`, as OpenAI's API has it; `tools` is its list of tools.
    ///
    /// # Errors
    /// A malformed message, a reserved name in `extra`, a conversation that the template refuses, or a template that
    /// takes more work or text than the conversation deserves.
    pub fn render(
        &self,
        messages: &[Value],
        tools: Option<&Value>,
        options: &RenderOptions,
    ) -> Result<String, TextError> {
        let (prompt, marks) = self.render_marked(messages, tools, options, &[])?;
        Ok(marks.unmarked(&prompt))
    }

    /// The prompt's ids: the template's control tokens are parsed, those in the conversation's strings are letters.
    ///
    /// The ids equal the reference's unless the conversation holds a control token's text, which the reference obeys.
    ///
    /// # Errors
    /// Those of [`ChatTemplate::render`] and of [`Tokenizer::encode`].
    pub fn encode_chat(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Value],
        tools: Option<&Value>,
        options: &RenderOptions,
    ) -> Result<Vec<u32>, TextError> {
        let control = tokenizer.control_tokens();
        let (prompt, marks) = self.render_marked(messages, tools, options, control)?;
        let mut ids = Vec::new();
        for segment in marks.segments(&prompt) {
            match segment {
                Segment::Control(id) => ids.push(id),
                Segment::Text(text) => ids.extend(tokenizer.encode(&text, SpecialTokens::AsText)?),
            }
        }
        Ok(ids)
    }

    /// The prompt with control tokens of the conversation's own strings replaced by marks.
    fn render_marked<'a>(
        &self,
        messages: &[Value],
        tools: Option<&Value>,
        options: &RenderOptions,
        control: &'a [ControlToken],
    ) -> Result<(String, Marks<'a>), TextError> {
        check_options(options)?;
        if tools.is_some_and(|tools| !tools.is_array() && !tools.is_null()) {
            let fault = "tools must be a list of objects".to_owned();
            return Err(TextError::Conversation { field: "tools".to_owned(), fault });
        }
        let mut messages = Value::Array(normalised(messages, self.expects_parts)?);
        let mut tools = tools.cloned().unwrap_or(Value::Null);
        let mut extra = Value::Object(options.extra.clone());
        let mut marks = Marks::new(control, &self.source, &[&messages, &tools, &extra]);
        marks.mark(&mut messages);
        marks.mark(&mut tools);
        // The names of extra variables stay as they are; only their values are printed.
        extra.as_object_mut().into_iter().flat_map(Map::values_mut).for_each(|value| marks.mark(value));
        let end_tag = options.continue_final_message.then(|| append_end_tag(&mut messages)).transpose()?;
        let input_bytes = weight(&messages) + weight(&tools) + weight(&extra);
        // The reference always defines `documents` and `tools`: templates ask whether they are none.
        let mut names =
            json!({ "documents": null, "bos_token": self.bos_token, "eos_token": self.eos_token });
        let names = names.as_object_mut().expect("just made as an object");
        names.extend(extra.as_object_mut().map(std::mem::take).unwrap_or_default());
        names.insert("messages".to_owned(), messages);
        names.insert("tools".to_owned(), tools);
        names.insert("add_generation_prompt".to_owned(), Value::Bool(options.add_generation_prompt));
        let prompt = self.run(names, input_bytes, options.now)?;
        match end_tag {
            None => Ok((prompt, marks)),
            Some(tag) => Ok((cut_at_end_tag(prompt, tag)?, marks)),
        }
    }

    /// Runs the template within limits set by the conversation's size.
    fn run(
        &self,
        names: &Map<String, Value>,
        input_bytes: usize,
        now: Option<SystemTime>,
    ) -> Result<String, TextError> {
        // A copy is cheap, the template inside is shared; fuel is a setting of the environment.
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(BASE_FUEL + FUEL_PER_BYTE * input_bytes as u64));
        environment.add_function("strftime_now", move |format: &str| {
            strftime(now.unwrap_or_else(SystemTime::now), format)
        });
        let mut output = Bounded { text: Vec::new(), limit: BASE_OUTPUT_BYTES + 8 * input_bytes };
        let template = environment.get_template(TEMPLATE_NAME).expect("the constructor added it");
        let rendered = template.render_captured_to(Serde(names), &mut output).map(drop);
        match rendered {
            Ok(()) => Ok(String::from_utf8(output.text).expect("a template writes whole strings")),
            Err(error) => Err(render_error(&error, &output)),
        }
    }
}

/// Refuses options that contradict each other or hide a name the server sets.
fn check_options(options: &RenderOptions) -> Result<(), TextError> {
    if let Some(name) = options.extra.keys().find(|name| RESERVED.contains(&name.as_str())) {
        return Err(TextError::Conversation {
            field: format!("chat_template_kwargs.{name}"),
            fault: "this name belongs to the server and cannot be set by a request".to_owned(),
        });
    }
    if options.add_generation_prompt && options.continue_final_message {
        return Err(TextError::Conversation {
            field: "continue_final_message".to_owned(),
            fault: "the last message cannot be continued when add_generation_prompt opens a new one: set that to false"
                .to_owned(),
        });
    }
    Ok(())
}

/// What a failed rendering is called.
fn render_error(error: &minijinja::Error, output: &Bounded) -> TextError {
    if output.full() {
        return TextError::TemplateLimit(format!("it wrote more than {} bytes", output.limit));
    }
    match error.kind() {
        ErrorKind::OutOfFuel => {
            TextError::TemplateLimit("it did far more work than a conversation of this size takes".to_owned())
        }
        _ => TextError::TemplateRender(in_words(error)),
    }
}

/// A character that marks where a message to be continued ends, followed by a space that tells whether the template
/// trims messages. U+FDD0 is a noncharacter: Unicode keeps it out of text that is exchanged.
const END_TAG: &str = "\u{fdd0} ";

/// Puts the tag behind the last message's text.
fn append_end_tag(messages: &mut Value) -> Result<&'static str, TextError> {
    let fault = |fault: &str| TextError::Conversation {
        field: "continue_final_message".to_owned(),
        fault: fault.to_owned(),
    };
    let last = messages.as_array_mut().and_then(|messages| messages.last_mut());
    let content = match last.map(|last| &mut last["content"]) {
        Some(Value::Array(parts)) => {
            parts.last_mut().and_then(|part| if part.is_string() { Some(part) } else { part.get_mut("text") })
        }
        content => content,
    };
    match content {
        Some(Value::String(text)) if text.contains('\u{fdd0}') => {
            Err(fault("the last message holds the noncharacter U+FDD0, which marks its end here"))
        }
        Some(Value::String(text)) => {
            text.push_str(END_TAG);
            Ok(END_TAG)
        }
        _ => Err(fault("there is no last message with a text to continue")),
    }
}

/// Cuts a prompt where the last message's text ends.
fn cut_at_end_tag(mut prompt: String, tag: &str) -> Result<String, TextError> {
    let Some(end) = prompt.rfind(tag.trim_end()) else {
        return Err(TextError::Conversation {
            field: "continue_final_message".to_owned(),
            fault: "the chat template does not print the last message, so it cannot be continued".to_owned(),
        });
    };
    let trimmed = !prompt[end..].starts_with(tag);
    prompt.truncate(end);
    if trimmed {
        // The template trims messages: what it would have trimmed here, the tag protected.
        prompt.truncate(prompt.trim_end().len());
    }
    Ok(prompt)
}

/// `chat_template` of a tokenizer_config.json: a string, or a list of named ones of which `default` is meant.
fn template_in(value: &Value) -> Option<&str> {
    let named = || value.as_array()?.iter().find(|entry| entry["name"] == "default")?["template"].as_str();
    value.as_str().or_else(named)
}

/// A token named in tokenizer_config.json, as a string or as an object with `content`.
fn token_text(name: &Value) -> &str {
    name.as_str().or_else(|| name["content"].as_str()).unwrap_or_default()
}

/// Takes a template's output as long as it is not too much.
struct Bounded {
    text: Vec<u8>,
    limit: usize,
}

impl Bounded {
    fn full(&self) -> bool {
        self.limit < self.text.len()
    }
}

impl io::Write for Bounded {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(piece);
        if self.full() { Err(io::Error::other("too much output")) } else { Ok(piece.len()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
