//! `phalanx bench`: lowers arguments to a suite of `phalanx-bench` and prints its report.

use anyhow::{Result, anyhow, bail};
use phalanx_bench::{
    Capacity, Figure, MatrixRow, ModelWork, Prompts, Report, Roofline, Suite, WARM_UP_RUNS, equal, latency,
    matrix_row, mixed, prefill, throughput,
};
use phalanx_model::layout::choose::Objective;

use crate::args::{BenchArgs, BenchKind};
use crate::launch::Launched;
use crate::layout::{auto, trial};
use crate::{files, launch, limits, terminal};

/// The same prompts in each run of the program.
pub(crate) const PROMPT_SEED: u64 = 1;
/// The lengths of the source's table; the longest leaves room for an answer in the longest context.
const MATRIX_INPUT_LENS: [usize; 4] = [4096, 16_384, 65_536, 131_072 - 512];

pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    check(args)?;
    if args.what == BenchKind::Layouts {
        return trial::run(args);
    }
    let files = files::open(&args.model, args.engine.seed)?;
    let engine = auto::decide(&files, &args.model, &args.engine, usual_objective(args.what))?;
    // Before the engine takes the memory.
    let limits = limits::measure(files.weights.config().dtype, &args.model, &engine)?;
    files.timeline.end("limits");
    let launched = launch::start(&files, &args.model, &engine)?;
    let capacity = capacity(&launched, limits.ranks_of_fullest);
    let roofline = Roofline { devices: limits.devices, work: work(&launched), replicas: capacity.replicas };
    let prompts = Prompts::new(files.tokenizer.vocab_size(), PROMPT_SEED);
    let mut suite = Suite { router: &launched.router, prompts, repeats: args.repeats, roofline: &roofline };
    let mut report = Report {
        model: files.name,
        device: launched.device.clone(),
        limits: roofline.devices.clone(),
        warm_up_runs: WARM_UP_RUNS,
        figures: Vec::new(),
        matrix: Vec::new(),
        left_out: Vec::new(),
    };
    match args.what {
        BenchKind::Matrix => (report.matrix, report.left_out) = matrix(&mut suite, &capacity, args)?,
        _ => (report.figures, report.left_out) = figures(&mut suite, &capacity, args)?,
    }
    match args.json {
        true => terminal::say(&serde_json::to_string_pretty(&report)?),
        false => terminal::say(report.to_string().trim_end()),
    }
    Ok(())
}

/// What the layout is chosen for, unless `--objective` says it.
fn usual_objective(what: BenchKind) -> Objective {
    match what {
        BenchKind::Throughput => Objective::Throughput,
        BenchKind::Latency | BenchKind::Prefill | BenchKind::Matrix | BenchKind::Layouts => {
            Objective::Latency
        }
    }
}

/// Refuses what no bench could measure, before anything is loaded.
fn check(args: &BenchArgs) -> Result<()> {
    if args.what == BenchKind::Layouts {
        return check_layouts(args);
    }
    if !args.layouts.is_empty() || args.crowd.is_some() {
        bail!("--layouts and --crowd are for `bench layouts`: here --tp, --pp and --dp name the one layout");
    }
    if !matches!(args.what, BenchKind::Latency | BenchKind::Matrix) {
        one_at_most("--batch-size", &args.batch_size)?;
    }
    if matches!(args.what, BenchKind::Latency | BenchKind::Throughput) {
        one_at_most("--input-len", &args.input_len)?;
    }
    if args.what == BenchKind::Latency && args.output_len == Some(1) {
        bail!("--output-len 1 has no token after the first to measure: take 2 or more, or `bench prefill`");
    }
    if args.what == BenchKind::Prefill && args.output_len.is_some_and(|output_len| output_len != 1) {
        bail!("`bench prefill` ends at the first token: leave --output-len out, or take `bench latency`");
    }
    if args.what == BenchKind::Prefill && args.batch_size.iter().any(|batch_size| *batch_size != 1) {
        bail!("`bench prefill` asks one prompt at a time: leave --batch-size out, or take `bench matrix`");
    }
    if args.mixed && args.what != BenchKind::Throughput {
        bail!("--mixed is for `bench throughput`: the other benches measure equal requests");
    }
    Ok(())
}

/// The same for all layouts together.
fn check_layouts(args: &BenchArgs) -> Result<()> {
    if args.engine.layout_is_given() || args.engine.objective.is_some() {
        bail!(
            "`bench layouts` tries many: leave --tp, --pp, --dp and --objective out, and name those to try with --layouts \
             tp2,pp2"
        );
    }
    if args.output_len == Some(1) {
        bail!("--output-len 1 has no token after the first to measure: take 2 or more");
    }
    if args.mixed {
        bail!("--mixed is for `bench throughput`: --crowd says what is submitted at once");
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

/// What was asked for, or this bench's own choice.
pub(crate) fn or_default(given: &[usize], default: &[usize]) -> Vec<usize> {
    if given.is_empty() { default.to_vec() } else { given.to_vec() }
}

/// Every bench but the matrix, and what of it failed. A load that does not fit is an error: it is known before anything
/// is measured.
fn figures(
    suite: &mut Suite<'_>,
    capacity: &Capacity,
    args: &BenchArgs,
) -> Result<(Vec<Figure>, Vec<String>)> {
    let fits = |checked: Result<(), String>| checked.map_err(|reason| anyhow!(reason));
    match args.what {
        BenchKind::Latency => {
            let batch_sizes = or_default(&args.batch_size, &[1, 8]);
            let input_len = or_default(&args.input_len, &[32])[0];
            let output_len = args.output_len.unwrap_or(64);
            for &batch_size in &batch_sizes {
                fits(capacity.check_at_once(batch_size, input_len, output_len))?;
            }
            Ok(latency(suite, &batch_sizes, input_len, output_len)?)
        }
        BenchKind::Prefill => {
            let input_lens = or_default(&args.input_len, &[512]);
            for &input_len in &input_lens {
                fits(capacity.check_length(input_len, 1))?;
            }
            Ok(prefill(suite, &input_lens)?)
        }
        BenchKind::Throughput | BenchKind::Matrix | BenchKind::Layouts => {
            let count = or_default(&args.batch_size, &[64])[0];
            let input_len = or_default(&args.input_len, &[256])[0];
            let output_len = args.output_len.unwrap_or(128);
            fits(capacity.check_length(input_len, output_len))?;
            let (load, name) = match args.mixed {
                true => mixed(count, input_len, output_len),
                false => equal(count, input_len, output_len),
            };
            Ok((throughput(suite, &load, &name)?, Vec::new()))
        }
    }
}

/// The source's table; and what of it does not fit or failed, with the reason.
fn matrix(
    suite: &mut Suite<'_>,
    capacity: &Capacity,
    args: &BenchArgs,
) -> Result<(Vec<MatrixRow>, Vec<String>)> {
    let output_len = args.output_len.unwrap_or(512);
    let (mut rows, mut left_out) = (Vec::new(), Vec::new());
    for batch_size in or_default(&args.batch_size, &[1]) {
        for input_len in or_default(&args.input_len, &MATRIX_INPUT_LENS) {
            match capacity.check_at_once(batch_size, input_len, output_len) {
                Ok(()) => {
                    let device_bytes = capacity.bytes_at_once(batch_size, input_len, output_len);
                    match matrix_row(suite, (input_len, output_len), batch_size, device_bytes) {
                        Ok(row) => rows.push(row),
                        // What was measured before is told all the same.
                        Err(error) => left_out.push(format!("{batch_size} of {input_len} tokens: {error}")),
                    }
                }
                Err(reason) if left_out.contains(&reason) => {}
                Err(reason) => left_out.push(reason),
            }
        }
    }
    if rows.is_empty() {
        bail!("nothing of this table could be measured:\n  {}", left_out.join("\n  "));
    }
    Ok((rows, left_out))
}

/// What the engine was sized for, as plain numbers. A device may hold several ranks.
pub(crate) fn capacity(launched: &Launched, ranks_of_device: usize) -> Capacity {
    let sizes = &launched.sizes;
    let of_plans = |value: fn(&phalanx_model::MemoryPlan) -> usize| {
        ranks_of_device * sizes.plans.iter().map(value).max().expect("a layout has a rank")
    };
    Capacity {
        max_model_len: launched.router.max_model_len(),
        max_sequences: sizes.max_sequences,
        num_blocks: sizes.num_blocks,
        block_size: sizes.plans[0].block_size,
        replicas: launched.router.engines().len(),
        fixed_bytes: of_plans(phalanx_model::MemoryPlan::fixed_bytes),
        bytes_per_block: of_plans(|plan| plan.kv_bytes_per_block),
    }
}

/// What the model's tokens cost, as plain numbers.
pub(crate) fn work(launched: &Launched) -> ModelWork {
    let work = launched.sizes.work;
    ModelWork {
        weights_bytes: work.weights_bytes,
        layer_elements: work.layer_elements,
        head_elements: work.head_elements,
        query_width: work.query_width,
        kv_bytes_per_token: work.kv_bytes_per_token,
    }
}
