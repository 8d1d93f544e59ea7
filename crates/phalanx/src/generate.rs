//! `phalanx generate`: one prompt, one answer, printed as it comes.

use anyhow::{Context, Result, bail};
use phalanx_engine::{Event, Request, Router, Sampling, Stop, Usage};
use phalanx_text::{RenderOptions, SpecialTokens};
use serde_json::{Value, json};

use crate::args::{GenerateArgs, SamplingArgs};
use crate::files::{self, ModelFiles};
use crate::layout::auto;
use crate::{launch, terminal};

pub(crate) fn run(args: &GenerateArgs) -> Result<()> {
    let files = files::open(&args.model, args.engine.seed)?;
    let prompt = match args.chat {
        true => encode_chat(&files, &[json!({"role": "user", "content": args.prompt})])?,
        false => files.tokenizer.encode(&args.prompt, SpecialTokens::Parse)?,
    };
    let engine = auto::decide_for_one(&files, &args.model, &args.engine)?;
    let launched = launch::start(&files, &args.model, &engine)?;
    let sampling = chosen(&args.sampling, &files);
    let (_, usage) =
        answer(&launched.router, prompt, (sampling, args.sampling.max_tokens), &mut terminal::say_part)?;
    terminal::say("");
    terminal::tell(&rates(&usage));
    Ok(())
}

/// A conversation in the model's own form.
pub(crate) fn encode_chat(files: &ModelFiles, messages: &[Value]) -> Result<Vec<u32>> {
    let template = files.template.as_ref().context(
        "this model has no chat template: give one with --chat-template, or complete plain text with `phalanx generate`",
    )?;
    Ok(template.encode_chat(&files.tokenizer, messages, None, &RenderOptions::default())?)
}

/// The model's own sampling, with what was given in its place.
pub(crate) fn chosen(args: &SamplingArgs, files: &ModelFiles) -> Sampling {
    let own = &files.sampling;
    Sampling {
        temperature: args.temperature.unwrap_or(own.temperature),
        top_p: args.top_p.unwrap_or(own.top_p),
        top_k: args.top_k.unwrap_or(own.top_k),
        seed: args.seed,
        ..own.clone()
    }
}

/// Submits a prompt and hands out the answer's text piece by piece; returns it whole.
pub(crate) fn answer(
    router: &Router,
    prompt: Vec<u32>,
    (sampling, max_new_tokens): (Sampling, Option<usize>),
    show: &mut dyn FnMut(&str),
) -> Result<(String, Usage)> {
    let request = Request {
        id: "terminal".to_owned(),
        prompt: prompt.into(),
        n: 1,
        max_new_tokens,
        sampling,
        stop: Stop::default(),
        priority: 0,
        cache_salt: None,
        skip_special_tokens: true,
    };
    let mut text = String::new();
    for event in router.submit(request)?.blocking() {
        match event {
            Event::Delta(delta) => {
                show(&delta.text);
                text.push_str(&delta.text);
            }
            Event::Done(usage) => return Ok((text, usage)),
            Event::Failed(error) => return Err(error.into()),
        }
    }
    bail!("the engine ended before the answer did")
}

/// A line about an answer's speed.
pub(crate) fn rates(usage: &Usage) -> String {
    let timing = &usage.timing;
    let decoding = timing.total_seconds - timing.first_token_seconds;
    let rate = usage.completion_tokens.saturating_sub(1) as f64 / decoding.max(1e-9);
    format!(
        "{} tokens in, {} out, first after {:.2} s, then {rate:.1} tokens/s",
        usage.prompt_tokens, usage.completion_tokens, timing.first_token_seconds
    )
}
