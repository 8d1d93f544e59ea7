//! The Jinja environment chat templates are written for: the reference's (Hugging Face transformers), with bounds.

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind};

use crate::{TextError, python};

/// The one template's name, as it stands in error messages.
pub(crate) const TEMPLATE_NAME: &str = "chat_template";

/// A template this long is not a template.
const MAX_SOURCE_BYTES: usize = 1 << 20;

/// Nested blocks, calls and macros. Real templates stay below 20.
const MAX_RECURSION: usize = 100;

/// Compiles a template into an environment that knows what the reference's knows.
///
/// # Errors
/// The template does not parse, or is longer than 1 MiB.
pub(crate) fn environment(source: &str) -> Result<Environment<'static>, TextError> {
    if MAX_SOURCE_BYTES < source.len() {
        let fault = format!("it is {} bytes long, more than the {MAX_SOURCE_BYTES} allowed", source.len());
        return Err(TextError::TemplateSyntax(fault));
    }
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    let mut environment = Environment::new();
    environment.set_syntax(syntax.expect("the default delimiters are valid"));
    environment.set_recursion_limit(MAX_RECURSION);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_formatter(python::print);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.add_filter("tojson", python::tojson);
    environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment
        .add_template_owned(TEMPLATE_NAME, without_generation_tags(source))
        .map_err(|error| TextError::TemplateSyntax(in_words(&error)))?;
    Ok(environment)
}

/// One sentence of an error and its causes, without the template's text.
pub(crate) fn in_words(error: &Error) -> String {
    let mut text = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    match error.line() {
        Some(line) => format!("{text} (line {line})"),
        None => text,
    }
}

/// Makes `{% generation %}` blocks, which only mark text for training, blocks that are always rendered.
fn without_generation_tags(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        text.push_str(before);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let (tag, after) = tag.split_at(end);
        let name = tag.trim_matches(['{', '%', '}', '-', '+', ' ', '\n', '\t', '\r']);
        match name {
            "generation" => text.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => text.push_str(&tag.replace("endgeneration", "endif")),
            _ => text.push_str(tag),
        }
        rest = after;
    }
    text + rest
}
