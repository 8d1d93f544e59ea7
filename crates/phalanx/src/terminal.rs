//! The terminal: the one place that prints.

#![expect(clippy::print_stderr, reason = "the binary talks to people here, and nowhere else")]

use std::io::{IsTerminal, Write};

/// A person reads standard error.
pub(crate) fn is_attended() -> bool {
    std::io::stderr().is_terminal()
}

/// A person reads standard output, on a terminal that knows colours.
pub(crate) fn is_watched() -> bool {
    std::io::stdout().is_terminal()
}

/// Prints a line of output.
pub(crate) fn say(line: &str) {
    say_part(&format!("{line}\n"));
}

/// Prints part of a line of output, at once. When nobody reads any more (`phalanx plan | head`) the program is done.
pub(crate) fn say_part(text: &str) {
    let mut out = std::io::stdout();
    if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

/// Prints what a person should know beside the output.
pub(crate) fn tell(line: &str) {
    eprintln!("{line}");
}

/// Prints an error, the cause last.
pub(crate) fn complain(error: &anyhow::Error) {
    let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
    eprintln!("error: {}", causes.join(": "));
}

/// Reads a line a person typed; `None` at the end of the input.
pub(crate) fn ask(prompt: &str) -> Option<String> {
    if std::io::stdin().is_terminal() {
        eprint!("{prompt}");
    }
    let mut line = String::new();
    match std::io::stdin().read_line(&mut line) {
        Ok(0) | Err(_) => None,
        Ok(_) => Some(line.trim_end_matches(['\r', '\n']).to_owned()),
    }
}
