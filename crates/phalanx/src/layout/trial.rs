//! `phalanx bench layouts`: an engine for each layout of this machine's devices, one after the other, and what it gives
//! beside what was predicted of it.

use std::thread::available_parallelism;
use std::time::Instant;

use anyhow::{Result, bail};
use phalanx_bench::{
    DeviceLimits, DeviceMemory, Expectation, LayoutRow, LayoutSummary, LayoutTable, Prompts, Roofline, Suite,
    Trial,
};
use phalanx_model::MemoryPlan;
use phalanx_model::layout::choose::Objective;
use phalanx_model::layout::loads::{Loads, expect};
use phalanx_model::layout::{BATCH_SIZES, DECODE_CONTEXT, Layout, PROMPT_LENS, SINGLE, TRAFFIC};
use serde_json::json;

use crate::args::{BenchArgs, EngineArgs};
use crate::bench::{PROMPT_SEED, capacity, or_default, work};
use crate::files::ModelFiles;
use crate::launch::Launched;
use crate::layout::auto::{self, AtHand};
use crate::layout::spelt;
use crate::limits::Measured;
use crate::parse::Crowd;
use crate::plan::gib;
use crate::{files, gpu, launch, limits, terminal};

/// Ranks of a CPU's layouts at most, unless they are named: more of them only take turns.
const MOST_CPU_RANKS: usize = 4;
/// Tokens of an answer where decoding is measured.
const ANSWER_LEN: usize = 64;
/// Requests at once on GPUs: enough to fill a replica's seats twice.
const GPU_REQUESTS: usize = 512;
/// What a CPU is asked in place of a GPU's loads, which would take it hours.
const CPU_CROWD: Crowd = Crowd { requests: 16, input_len: 64, output_len: 32 };

/// Measures each layout, tells each as soon as it is measured, and then all of them.
///
/// # Errors
/// No layout could be measured, or the model cannot be found.
pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    let on_gpus = launch::on_gpus(&args.engine);
    let files = files::open(&args.model, args.engine.seed)?;
    let ordinals = if on_gpus { auto::ordinals(&args.engine.gpus.gpus, gpu::count())? } else { Vec::new() };
    let ranks = if on_gpus { ordinals.len() } else { cpu_ranks(args) };
    let layouts = candidates(&args.layouts, ranks);
    let most = layouts.iter().map(Layout::num_gpus).max().unwrap_or(1);
    let all =
        Layout { replicas: if on_gpus { most.min(ranks) } else { most }, num_stages: 1, tensor_size: 1 };
    let of_all = auto::with_layout(&args.engine, all);
    let at_hand = look(&ordinals, &files, args);
    if let Err(reason) = &at_hand {
        tracing::info!("nothing is predicted: {reason}");
    }
    let measured = limits::measure(files.weights.config().dtype, &args.model, &of_all)?;
    let trials =
        Trials { args, files: &files, trial: trial(args, on_gpus), at_hand: at_hand.as_ref().ok(), measured };
    let before = trials.held(&of_all);
    let mut rows = Vec::new();
    for layout in layouts {
        let row = trials.row(layout);
        tell(&row, args.json)?;
        rows.push(row);
        trials.warn_of_what_is_left(&of_all, &before);
    }
    let auto = at_hand.as_ref().map_or([None, None], taken);
    let summary = LayoutSummary {
        model: files.name.clone(),
        limits: trials.measured.devices,
        trial: trials.trial,
        answer_len: SINGLE.1,
        unpredicted: at_hand.err(),
        fastest: Vec::new(),
        worst: None,
        worst_memory: None,
    };
    let summary = summary.conclude(&rows, auto);
    match args.json {
        true => terminal::say(&json!({ "summary": summary }).to_string()),
        false => terminal::say(LayoutTable { rows: &rows, summary: &summary }.to_string().trim_end()),
    }
    match rows.iter().any(LayoutRow::is_measured) {
        true => Ok(()),
        false => bail!("no layout could be measured: each has its reason above"),
    }
}

/// For programs at once and whole; for people that something happens.
fn tell(row: &LayoutRow, as_json: bool) -> Result<()> {
    match (as_json, row.start_seconds) {
        (true, _) => terminal::say(&serde_json::to_string(row)?),
        (false, Some(seconds)) => tracing::info!("{}: started in {seconds:.1} s, measured", row.layout),
        (false, None) => tracing::warn!("{}: {}", row.layout, row.left_out.join("; ")),
    }
    Ok(())
}

/// Ranks by threads that are worth comparing.
fn cpu_ranks(args: &BenchArgs) -> usize {
    let threads = args.engine.threads.unwrap_or_else(|| available_parallelism().map_or(1, usize::from));
    threads.min(MOST_CPU_RANKS)
}

/// The layouts that were named, each once; or all of up to so many ranks.
fn candidates(named: &[Layout], ranks: usize) -> Vec<Layout> {
    if named.is_empty() {
        return Layout::candidates(ranks);
    }
    let first = |(place, layout): &(usize, &Layout)| !named[..*place].contains(layout);
    named.iter().enumerate().filter(first).map(|(_, layout)| *layout).collect()
}

/// What is asked of each layout.
fn trial(args: &BenchArgs, on_gpus: bool) -> Trial {
    let output_len = args.output_len.unwrap_or(ANSWER_LEN);
    let (prompt_lens, batch_sizes, usual): (&[usize], &[usize], Crowd) = match on_gpus {
        true => {
            let (input_len, output_len) = TRAFFIC;
            (&PROMPT_LENS[..2], &BATCH_SIZES, Crowd { requests: GPU_REQUESTS, input_len, output_len })
        }
        false => (&[512], &BATCH_SIZES[..2], CPU_CROWD),
    };
    let Crowd { requests, input_len, output_len: request_output_len } = args.crowd.unwrap_or(usual);
    Trial {
        prompt_lens: or_default(&args.input_len, prompt_lens),
        batch_sizes: or_default(&args.batch_size, batch_sizes),
        // So that the context in the mean is the one that `plan --gpus` tells of.
        decode_lens: (DECODE_CONTEXT.saturating_sub(output_len / 2).max(1), output_len),
        requests,
        request_lens: (input_len, request_output_len),
    }
}

/// What predictions are made from, or why there are none.
fn look<'a>(ordinals: &[usize], files: &'a ModelFiles, args: &BenchArgs) -> Result<AtHand<'a>, String> {
    if ordinals.is_empty() {
        return Err("the constants of the predictor are those of GPUs, and this is a CPU".to_owned());
    }
    if ordinals.iter().enumerate().any(|(place, gpu)| ordinals[..place].contains(gpu)) {
        return Err("--gpus names a GPU more than once, and nobody predicts ranks that share one".to_owned());
    }
    AtHand::look(ordinals, files, &args.model, &args.engine).map_err(|error| format!("{error:#}"))
}

/// What `auto` takes for latency and for throughput.
fn taken(at_hand: &AtHand<'_>) -> [Option<String>; 2] {
    [Objective::Latency, Objective::Throughput].map(|objective| {
        let comparison = at_hand.compared(objective, usize::MAX);
        comparison.choice.ok().map(|choice| spelt(choice.layout))
    })
}

/// What all layouts are measured with.
struct Trials<'a> {
    args: &'a BenchArgs,
    files: &'a ModelFiles,
    trial: Trial,
    at_hand: Option<&'a AtHand<'a>>,
    measured: Measured,
}

impl Trials<'_> {
    /// One layout; what goes wrong with it is its own.
    fn row(&self, layout: Layout) -> LayoutRow {
        let name = spelt(layout);
        tracing::info!("{name}: starts");
        match self.measure(layout) {
            Ok(row) => row,
            Err(error) => {
                let reason = format!("{error:#}").split_whitespace().collect::<Vec<_>>().join(" ");
                LayoutRow::absent(name, &self.trial, reason)
            }
        }
    }

    /// Starts an engine, asks it everything, and waits until it has let go of its devices.
    fn measure(&self, layout: Layout) -> Result<LayoutRow> {
        let engine = auto::with_layout(&self.args.engine, layout);
        let began = Instant::now();
        let launched = launch::start(&self.files.again(), &self.args.model, &engine)?;
        let start_seconds = began.elapsed().as_secs_f64();
        let of_ranks =
            if launched.on_gpus { gpu::of_ranks(layout.num_gpus(), &engine.gpus)? } else { Vec::new() };
        let holds = |gpu: &usize| of_ranks.iter().filter(|of_rank| *of_rank == gpu).count();
        let ranks_of_fullest = of_ranks.iter().map(holds).max().unwrap_or(layout.num_gpus());
        let capacity = capacity(&launched, ranks_of_fullest);
        let roofline =
            Roofline { devices: self.devices(&of_ranks), work: work(&launched), replicas: capacity.replicas };
        let prompts = Prompts::new(self.files.tokenizer.vocab_size(), PROMPT_SEED);
        let mut suite =
            Suite { router: &launched.router, prompts, repeats: self.args.repeats, roofline: &roofline };
        let expected = self.expected(layout);
        let row = LayoutRow::measure(spelt(layout), &mut suite, &capacity, &self.trial, expected.as_ref());
        Ok(LayoutRow { memory: memory(&launched, layout), start_seconds: Some(start_seconds), ..row })
    }

    /// The limits of the devices that take part.
    fn devices(&self, of_ranks: &[usize]) -> Vec<DeviceLimits> {
        let takes_part = |device: &&DeviceLimits| {
            of_ranks.is_empty() || of_ranks.iter().any(|gpu| device.name == limits::name_of_gpu(*gpu))
        };
        self.measured.devices.iter().filter(takes_part).cloned().collect()
    }

    fn expected(&self, layout: Layout) -> Option<Expectation> {
        let (at_hand, trial) = (self.at_hand?, &self.trial);
        let loads = Loads {
            prompt_lens: trial.prompt_lens.clone(),
            batch_sizes: trial.batch_sizes.clone(),
            context: trial.context(),
            requests: trial.requests,
            request_lens: trial.request_lens,
        };
        let expected = expect(&at_hand.machine, &at_hand.subject(), layout, &loads).ok()?;
        Some(Expectation {
            first_token_seconds: expected.first_token_seconds,
            step_seconds: expected.step_seconds,
            tokens_per_second: expected.tokens_per_second,
        })
    }

    /// Bytes in use on each GPU of the layout `engine`, by its number; nothing where nobody can tell.
    fn held(&self, engine: &EngineArgs) -> Vec<(usize, usize)> {
        let of_ranks = match self.at_hand {
            Some(_) => gpu::of_ranks(engine.replicas(), &engine.gpus).unwrap_or_default(),
            None => Vec::new(),
        };
        of_ranks.into_iter().filter_map(|ordinal| Some((ordinal, gpu::used(ordinal).ok()?))).collect()
    }

    /// An engine that is gone and still holds memory would spoil all that is measured after it.
    fn warn_of_what_is_left(&self, engine: &EngineArgs, before: &[(usize, usize)]) {
        for ((ordinal, before), (_, now)) in before.iter().zip(self.held(engine)) {
            let left = now.saturating_sub(*before);
            if launch::GPU_RESERVE_BYTES < left {
                tracing::warn!("GPU {ordinal} holds {} more than before the first layout", gib(left));
            }
        }
    }
}

/// What each device was planned to hold, and holds now.
fn memory(launched: &Launched, layout: Layout) -> Vec<DeviceMemory> {
    if !launched.on_gpus {
        let of_rank = |plan: &MemoryPlan| plan.fixed_bytes() + plan.kv_bytes(launched.sizes.num_blocks);
        let planned_bytes = layout.replicas * launched.sizes.plans.iter().map(of_rank).sum::<usize>();
        return vec![DeviceMemory { device: "CPU".to_owned(), planned_bytes, used_bytes: None }];
    }
    let of_gpu = launched.held.iter().map(|held| DeviceMemory {
        device: limits::name_of_gpu(held.gpu),
        planned_bytes: held.planned,
        // Graphs and kernels that were met while measuring are held as well by now.
        used_bytes: Some(gpu::used(held.gpu).unwrap_or(held.used)),
    });
    of_gpu.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Command, parsed};

    fn args(arguments: &str) -> BenchArgs {
        let Command::Bench(args) = parsed(&format!("bench layouts {arguments}")) else { panic!("bench") };
        args
    }

    #[test]
    fn layouts_are_those_that_were_named_each_once_or_all() {
        let named = |arguments: &str| {
            candidates(&args(arguments).layouts, 2).into_iter().map(spelt).collect::<Vec<_>>()
        };
        assert_eq!(named(""), ["tp1", "tp2", "pp2", "dp2"]);
        assert_eq!(named("--layouts tp4,pp2tp2,tp4"), ["tp4", "tp2pp2"]);
    }

    #[test]
    fn what_is_measured_is_what_plans_tell_of() {
        let usual = trial(&args(""), true);
        assert_eq!((usual.context(), usual.batch_sizes.as_slice()), (DECODE_CONTEXT, BATCH_SIZES.as_slice()));
        assert_eq!((usual.prompt_lens, usual.request_lens), (vec![4096, 16_384], TRAFFIC));
        let given = trial(&args("--input-len 64k --batch-size 4 --output-len 10 --crowd 3x20+5"), false);
        let expected = Trial {
            prompt_lens: vec![65_536],
            batch_sizes: vec![4],
            decode_lens: (295, 10),
            requests: 3,
            request_lens: (20, 5),
        };
        assert_eq!(given, expected);
        assert_eq!(trial(&args("--output-len 4000"), true).decode_lens, (1, 4000));
    }
}
