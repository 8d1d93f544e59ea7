//! `phalanx chat`: a conversation in the terminal.

use anyhow::Result;
use serde_json::{Value, json};

use crate::args::ChatArgs;
use crate::files;
use crate::generate::{answer, chosen, encode_chat, rates};
use crate::layout::auto;
use crate::{launch, terminal};

const HELP: &str = "/new starts a new conversation, /quit (or the end of the input) leaves";

pub(crate) fn run(args: &ChatArgs) -> Result<()> {
    let files = files::open(&args.model, args.engine.seed)?;
    let engine = auto::decide_for_one(&files, &args.model, &args.engine)?;
    let launched = launch::start(&files, &args.model, &engine)?;
    terminal::tell(&format!("{}: {HELP}", files.name));
    let begin = || -> Vec<Value> {
        args.system.iter().map(|text| json!({"role": "system", "content": text})).collect()
    };
    let mut messages = begin();
    while let Some(line) = terminal::ask("> ") {
        match line.trim() {
            "" => {}
            "/quit" | "/exit" => break,
            "/new" => messages = begin(),
            "/help" => terminal::tell(HELP),
            text => {
                messages.push(json!({"role": "user", "content": text}));
                let prompt = encode_chat(&files, &messages)?;
                let how = (chosen(&args.sampling, &files), args.sampling.max_tokens);
                match answer(&launched.router, prompt, how, &mut terminal::say_part) {
                    Ok((reply, usage)) => {
                        terminal::say("");
                        terminal::tell(&rates(&usage));
                        messages.push(json!({"role": "assistant", "content": reply}));
                    }
                    // The conversation is worth more than the question that did not fit.
                    Err(error) => {
                        terminal::complain(&error);
                        messages.pop();
                    }
                }
            }
        }
    }
    Ok(())
}
