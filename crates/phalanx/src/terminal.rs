//! The terminal: the one place that prints.

use std::io::{BufRead, ErrorKind, IsTerminal, Write};

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

/// Prints part of a line of output, at once. When nobody reads any more (`phalanx plan | head`) the program is done; when
/// the output cannot be kept (a full disk) it has failed.
pub(crate) fn say_part(text: &str) {
    let mut out = std::io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => {
            tell(&format!("error: the output cannot be written: {error}"));
            std::process::exit(1);
        }
    }
}

/// Prints what a person should know beside the output. Where nobody listens it is nobody's loss: `eprintln!` would panic.
pub(crate) fn tell(line: &str) {
    let _heard = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// Prints an error, the cause last.
pub(crate) fn complain(error: &anyhow::Error) {
    let mut told = "error".to_owned();
    for cause in error.chain().map(ToString::to_string) {
        // Some errors have their cause's words in their own.
        if !told.ends_with(&cause) {
            told = format!("{told}: {cause}");
        }
    }
    tell(&told);
}

/// Reads a line a person typed; `None` at the end of the input. Bytes that are no text become U+FFFD.
pub(crate) fn ask(prompt: &str) -> Option<String> {
    if std::io::stdin().is_terminal() {
        let _heard = std::io::stderr().write_all(prompt.as_bytes());
    }
    let mut line = Vec::new();
    match std::io::stdin().lock().read_until(b'\n', &mut line) {
        Ok(0) | Err(_) => None,
        Ok(_) => Some(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned()),
    }
}
