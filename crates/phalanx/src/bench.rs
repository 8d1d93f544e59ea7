//! `phalanx bench`: lowers arguments to a suite of `phalanx-bench` and prints its report.

use anyhow::{Result, bail};
use phalanx_bench::{Prompts, Report, Suite, latency, matrix, prefill, throughput};

use crate::args::{BenchArgs, BenchKind};
use crate::{files, launch, terminal};

/// The same prompts in each run of the program.
const PROMPT_SEED: u64 = 1;

pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    let files = files::open(&args.model, args.engine.seed)?;
    let launched = launch::start(&files, &args.model, &args.engine)?;
    let prompts = Prompts::new(files.tokenizer.vocab_size(), PROMPT_SEED);
    let mut suite = Suite { router: &launched.router, prompts, repeats: args.repeats };
    let lens =
        |default: &[usize]| if args.input_len.is_empty() { default.to_vec() } else { args.input_len.clone() };
    let batches = |default: &[usize]| {
        if args.batch_size.is_empty() { default.to_vec() } else { args.batch_size.clone() }
    };
    let output_len = |default| args.output_len.unwrap_or(default);
    if args.what != BenchKind::Latency {
        one_at_most("--batch-size", &args.batch_size)?;
    }
    if matches!(args.what, BenchKind::Latency | BenchKind::Throughput) {
        one_at_most("--input-len", &args.input_len)?;
    }
    let figures = match args.what {
        BenchKind::Latency => latency(&mut suite, &batches(&[1, 8]), lens(&[32])[0], output_len(64))?,
        BenchKind::Prefill => prefill(&mut suite, &lens(&[512]))?,
        BenchKind::Throughput => throughput(&mut suite, batches(&[64])[0], lens(&[256])[0], output_len(128))?,
        BenchKind::Matrix => {
            let output_len = output_len(512);
            let room = launched.router.max_model_len().saturating_sub(output_len);
            let (fit, beyond): (Vec<_>, Vec<_>) =
                lens(&[4096, 16_384, 65_536, 131_072 - 512]).into_iter().partition(|len| *len <= room);
            for len in beyond {
                tracing::warn!("{len} tokens in and {output_len} out do not fit: raise --max-model-len");
            }
            matrix(&mut suite, &fit, output_len, batches(&[1])[0])?
        }
    };
    let report = Report { model: files.name, device: launched.device.clone(), figures };
    match args.json {
        true => terminal::say(&serde_json::to_string_pretty(&report)?),
        false => terminal::say(report.to_string().trim_end()),
    }
    Ok(())
}

/// A list where the suite takes one value would be measured in part only.
fn one_at_most(flag: &str, values: &[usize]) -> Result<()> {
    match values {
        [] | [_] => Ok(()),
        _ => bail!("this bench takes one {flag}, not {}: run it once for each", values.len()),
    }
}
