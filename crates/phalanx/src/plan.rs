//! `phalanx plan`: what a model needs on each device and what fits, from the function that the worker uses.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use phalanx_device::{DType, Format};
use phalanx_model::layout::{Fit, Machine, Misfit, Subject as LayoutSubject};
use phalanx_model::{
    LoadError, LoadFormat, MemoryRequest, ModelConfig, WeightFormats, WeightType, Weights, catalogue,
};
use phalanx_worker::SCRATCH_BLOCKS;
use serde_json::{Value, json};

use crate::args::PlanArgs;
use crate::files::NoModel;
use crate::launch::{gpu_budget, gpu_types_of};
use crate::steps::GpuSteps;
use crate::{layout, terminal};

/// A model to plan for.
pub(crate) struct Subject {
    pub(crate) name: String,
    pub(crate) config: ModelConfig,
    /// The files, where they are at hand: they say in what blocks each matrix is stored.
    weights: Option<Weights>,
    /// What a GPU computes in, and keeps weights in.
    types: (DType, WeightType),
    steps: GpuSteps,
}

impl Subject {
    fn new(name: String, config: ModelConfig, weights: Option<Weights>, args: &PlanArgs) -> Result<Self> {
        let types = gpu_types_of(config.dtype, args.dtype)?;
        let steps = GpuSteps::new((args.max_num_batched_tokens, args.max_num_seqs))?;
        Ok(Self { name, config, weights, types, steps })
    }

    /// What its memory is planned by for the context of `config`, on GPUs.
    pub(crate) fn request(&self, args: &PlanArgs, config: &ModelConfig) -> MemoryRequest<'_> {
        let (dtype, weight_type) = self.types;
        let formats = match (&self.weights, dtype) {
            (Some(weights), _) => WeightFormats::Of(weights, weight_type),
            (None, DType::F16) => WeightFormats::Uniform(Format::F16),
            (None, _) => WeightFormats::Uniform(Format::BF16),
        };
        MemoryRequest {
            formats,
            activation_dtype: dtype,
            kv_dtype: dtype,
            block_size: args.block_size,
            limits: self.steps.limits(config.max_model_len),
        }
    }

    /// The `request` for the context of `config` on GPUs of `memory` bytes that nobody else uses.
    pub(crate) fn on_gpus<'a>(
        &self,
        args: &PlanArgs,
        config: &'a ModelConfig,
        request: &'a MemoryRequest<'a>,
        memory: usize,
    ) -> LayoutSubject<'a> {
        LayoutSubject {
            config,
            request,
            staged_tokens: self.steps.staged_tokens,
            budget_bytes: gpu_budget(memory, 0, args.gpu_memory_utilization),
            scratch_blocks: SCRATCH_BLOCKS,
        }
    }
}

/// One layout of one model.
struct Row {
    model: String,
    tensor_size: usize,
    num_stages: usize,
    /// The rank that needs the most beside its KV cache, or why the layout cannot be.
    outcome: Result<Fit, Misfit>,
}

pub(crate) fn run(args: &PlanArgs) -> Result<()> {
    let written = args.model.as_deref().or(args.positional_model.as_deref());
    if let Some((count, card)) = &args.gpus {
        let model = models(Some(written.unwrap_or(layout::MODEL)), args)?.remove(0);
        return layout::plan(args, &model, &Machine::listed(*count, card.clone()));
    }
    let models = models(written, args)?;
    let mut rows = Vec::new();
    for model in &models {
        rows.extend(layouts(args.devices).map(|layout| row(args, model, layout)));
    }
    match args.json {
        true => terminal::say(&serde_json::to_string_pretty(&rows.iter().map(as_json).collect::<Vec<_>>())?),
        false => print(args, &models[0].steps, &rows),
    }
    Ok(())
}

/// The models asked about: one on this disk, one of Qwen2.5 by name, or all of Qwen2.5.
fn models(written: Option<&str>, args: &PlanArgs) -> Result<Vec<Subject>> {
    let known = catalogue::qwen2_5();
    let by_name = |(name, config): (&str, ModelConfig)| Subject::new(name.to_owned(), config, None, args);
    match written {
        None => known.into_iter().map(by_name).collect(),
        Some(path) if Path::new(path).exists() => {
            let path = Path::new(path);
            // A folder may hold nothing but a configuration: then only the sizes are known.
            let weights = match Weights::open(path, LoadFormat::Auto) {
                Ok(weights) => Ok(weights),
                Err(error) => Weights::open(path, LoadFormat::Dummy { seed: 0 }).map_err(|_| error),
            };
            let weights = weights.context(NoModel)?;
            let name = path
                .file_name()
                .map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned());
            Ok(vec![Subject::new(name, weights.config().clone(), Some(weights), args)?])
        }
        Some(name) => {
            let bare = name.rsplit('/').next().unwrap_or(name);
            let found = known.into_iter().find(|(known, _)| {
                known.eq_ignore_ascii_case(bare)
                    || known.trim_end_matches("-Instruct").eq_ignore_ascii_case(bare)
            });
            match found {
                Some(found) => Ok(vec![by_name(found)?]),
                None => {
                    let error = anyhow!(
                        "{name} is no folder or file here and none of Qwen2.5's six sizes; fetch it first with `phalanx pull {name}`"
                    );
                    Err(error.context(NoModel))
                }
            }
        }
    }
}

/// Every split of `devices` into ranks of a layer times stages.
fn layouts(devices: usize) -> impl Iterator<Item = (usize, usize)> {
    (1..=devices)
        .rev()
        .filter(move |size| devices.is_multiple_of(*size))
        .map(move |size| (size, devices / size))
}

fn row(args: &PlanArgs, model: &Subject, layout: (usize, usize)) -> Row {
    let (tensor_size, num_stages) = layout;
    let outcome = fit(args, model, layout);
    Row { model: model.name.clone(), tensor_size, num_stages, outcome }
}

/// What fits, or why nothing does.
fn fit(args: &PlanArgs, model: &Subject, (tensor_size, num_stages): (usize, usize)) -> Result<Fit, Misfit> {
    let impossible = |error: LoadError| Misfit::Impossible(error.to_string());
    let (config, _) = model.config.with_context(args.max_model_len).map_err(impossible)?;
    let request = model.request(args, &config);
    model.on_gpus(args, &config, &request, args.device_memory).fit(tensor_size, num_stages)
}

fn print(args: &PlanArgs, steps: &GpuSteps, rows: &[Row]) {
    terminal::say(&format!(
        "{} devices of {}, {} of each used; steps of {} tokens, {} through several stages; what the fullest device holds:",
        args.devices,
        gib(args.device_memory),
        percent(args.gpu_memory_utilization),
        steps.tokens,
        steps.staged_tokens
    ));
    terminal::say(&format!(
        "{:24} {:>7}  {:>10} {:>10} {:>10}  {:>14} {:>9}",
        "model", "TP x PP", "weights", "workspace", "KV/token", "tokens cached", "context"
    ));
    for row in rows {
        let layout = format!("{} x {}", row.tensor_size, row.num_stages);
        let rest = match &row.outcome {
            Ok(fit) => format!(
                "{:>10} {:>10} {:>8} B  {:>14} {:>9}",
                gib(fit.weights_bytes),
                gib(fit.other_bytes),
                fit.kv_bytes_per_token,
                fit.cached_tokens,
                fit.longest
            ),
            Err(reason) => reason.to_string(),
        };
        terminal::say(&format!("{:24} {layout:>7}  {rest}", row.model));
    }
    terminal::say("All running sequences share the tokens cached; context is the longest one of them.");
}

fn as_json(row: &Row) -> Value {
    let mut layout = json!({"model": row.model, "tensor_parallel_size": row.tensor_size, "pipeline_parallel_size": row.num_stages});
    match &row.outcome {
        Ok(fit) => {
            layout["weights_bytes"] = fit.weights_bytes.into();
            layout["workspace_bytes"] = fit.other_bytes.into();
            layout["kv_bytes_per_token"] = fit.kv_bytes_per_token.into();
            layout["cached_tokens"] = fit.cached_tokens.into();
            layout["context"] = fit.longest.into();
        }
        Err(misfit) => tell_misfit(misfit, &mut layout),
    }
    layout
}

/// Why a layout cannot be, for programs: too small GPUs are another matter than a model that cannot be dealt so.
pub(crate) fn tell_misfit(misfit: &Misfit, layout: &mut Value) {
    let key = match misfit {
        Misfit::Memory { .. } => "does_not_fit",
        Misfit::Impossible(_) => "impossible",
    };
    layout[key] = misfit.to_string().into();
}

/// `13.4 GiB`.
pub(crate) fn gib(bytes: usize) -> String {
    match bytes as f64 / f64::from(1 << 30) {
        size if size < 1.0 => format!("{:.0} MiB", size * 1024.0),
        size => format!("{size:.1} GiB"),
    }
}

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::args::{Command, DtypeArg, parsed};

    fn plan_args(arguments: &str) -> PlanArgs {
        let Command::Plan(args) = parsed(&format!("plan {arguments}")) else { panic!("plan") };
        args
    }

    #[test]
    fn a_plan_has_the_steps_that_serving_has() {
        let steps = |arguments: &str| -> Result<_> {
            let steps = models(None, &plan_args(arguments))?[0].steps;
            Ok([steps.tokens, steps.staged_tokens, steps.sequences])
        };
        assert_eq!(steps("").unwrap(), [8192, 2048, 256]);
        assert_eq!(steps("--max-num-seqs 4000").unwrap(), [8192, 4000, 4000]);
        assert_eq!(steps("--max-num-batched-tokens 64").unwrap(), [64; 3]);
        let refused = steps("--max-num-batched-tokens 64 --max-num-seqs 65").unwrap_err().to_string();
        assert!(refused.contains("--max-num-seqs 65"), "{refused}");
    }

    #[test]
    fn what_is_stored_in_32_bits_or_quantised_is_planned_in_the_16_that_gpus_hold() {
        let (_, config) = catalogue::qwen2_5().remove(0);
        let of = |dtype, asked| {
            Subject::new(
                "model".to_owned(),
                ModelConfig { dtype, ..config.clone() },
                None,
                &PlanArgs { dtype: asked, ..plan_args("") },
            )
        };
        let cases = [
            (Format::F32, DtypeArg::Auto, DType::BF16, WeightType::BF16),
            (Format::F16, DtypeArg::Auto, DType::F16, WeightType::F16),
            (Format::BF16, DtypeArg::Half, DType::F16, WeightType::F16),
        ];
        for (stored, asked, computed, kept) in cases {
            assert_eq!(of(stored, asked).unwrap().types, (computed, kept), "{stored:?} {asked:?}");
            for quantised in [Format::Q4K, Format::Q8_0] {
                assert_eq!(kept.applied_to(quantised).row_bytes(32), 64, "{quantised:?}");
            }
        }
        let refused = of(Format::BF16, DtypeArg::Float32).err().unwrap().to_string();
        assert!(refused.contains("GPUs compute in 16 bits"), "{refused}");
    }
}
