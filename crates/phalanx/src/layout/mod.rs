//! Which layout to take on several GPUs: predicted for every candidate, printed as one table, taken for an objective.

pub(crate) mod auto;
mod remembered;
pub(crate) mod trial;

use anyhow::{Result, bail};
use phalanx_model::layout::choose::{Objective, choose};
use phalanx_model::layout::table::Comparison;
use phalanx_model::layout::{
    BATCH_SIZES, DECODE_CONTEXT, Layout, Machine, PROMPT_LENS, Prediction, Subject, TRAFFIC, compare,
};
use serde_json::{Value, json};

use crate::args::{ObjectiveArg, PlanArgs};
use crate::plan::{self, gib};
use crate::terminal;

/// What `plan --gpus` plans for unless told otherwise.
pub(crate) const MODEL: &str = "Qwen2.5-7B-Instruct";

/// `phalanx plan --gpus`: every layout on a machine that need not be there.
pub(crate) fn plan(args: &PlanArgs, model: &plan::Subject, machine: &Machine) -> Result<()> {
    let (config, notice) = model.config.with_context(args.max_model_len)?;
    let request = model.request(args, &config);
    let subject = model.on_gpus(args, &config, &request, machine.card.memory_bytes);
    let comparison = compared(machine, &subject, objective(args.objective), usize::MAX);
    if args.json {
        let report = as_json(&model.name, machine, &comparison);
        terminal::say(&serde_json::to_string_pretty(&report)?);
        return fits(&comparison, model, machine);
    }
    terminal::say(&format!(
        "{} on {}: sequences of {} tokens, {} of each GPU's {} for the plan, {} at {:.0} GB/s and {:.0} TFLOP/s",
        model.name,
        count_of(machine),
        config.max_model_len,
        gib(subject.budget_bytes),
        gib(machine.card.memory_bytes),
        machine.card.name,
        machine.card.memory_bandwidth / 1e9,
        machine.card.tensor_flops / 1e12,
    ));
    if let Some(notice) = notice {
        terminal::say(&notice.to_string());
    }
    terminal::say(&comparison.to_string());
    terminal::say(LEGEND);
    fits(&comparison, model, machine)
}

/// An error when nothing fits, so that a script hears it as well.
fn fits(comparison: &Comparison, model: &plan::Subject, machine: &Machine) -> Result<()> {
    match comparison.choice {
        Ok(_) => Ok(()),
        Err(_) => bail!("{} does not fit on {}", model.name, count_of(machine)),
    }
}

/// What the table's columns mean.
const LEGEND: &str = "dp: replicas, pp: stages, tp: ranks of a layer. Decoding behind 300 tokens; in + out: a crowd of \
                      requests of 1,024 tokens in and 256 out, shorter ones where the context is. All figures are \
                      predicted.";

/// Predicts all layouts of up to `most_replicas` replicas and takes one.
fn compared(
    machine: &Machine,
    subject: &Subject<'_>,
    objective: Objective,
    most_replicas: usize,
) -> Comparison {
    let mut predictions = compare(machine, subject);
    predictions.retain(|prediction| prediction.layout.replicas <= most_replicas);
    let choice = choose(&predictions, objective, subject.config.max_model_len);
    Comparison { predictions, objective, choice }
}

pub(crate) fn objective(arg: ObjectiveArg) -> Objective {
    match arg {
        ObjectiveArg::Latency => Objective::Latency,
        ObjectiveArg::Throughput => Objective::Throughput,
    }
}

/// `4 x H200`.
fn count_of(machine: &Machine) -> String {
    format!("{} x {}", machine.num_gpus, machine.card.name)
}

fn as_json(model: &str, machine: &Machine, comparison: &Comparison) -> Value {
    let chosen = comparison.choice.as_ref();
    json!({
        "model": model,
        "gpus": machine.num_gpus,
        "card": machine.card.name,
        "objective": comparison.objective.to_string(),
        "chosen": chosen.ok().map(|choice| sizes(choice.layout)),
        "reason": chosen.map_or_else(Clone::clone, |choice| choice.reason.clone()),
        "decode_context": DECODE_CONTEXT,
        "traffic": {"input_len": TRAFFIC.0, "output_len": TRAFFIC.1},
        "layouts": comparison.predictions.iter().map(layout_as_json).collect::<Vec<_>>(),
    })
}

/// As [`crate::parse::parse_layout`] reads it: `tp2pp2`, and `tp1` for a single rank.
pub(crate) fn spelt(layout: Layout) -> String {
    let sizes = [("dp", layout.replicas), ("tp", layout.tensor_size), ("pp", layout.num_stages)];
    let text: String =
        sizes.iter().filter(|(_, size)| 1 < *size).map(|(name, size)| format!("{name}{size}")).collect();
    if text.is_empty() { "tp1".to_owned() } else { text }
}

fn sizes(layout: Layout) -> Value {
    json!({
        "data_parallel_size": layout.replicas,
        "pipeline_parallel_size": layout.num_stages,
        "tensor_parallel_size": layout.tensor_size,
    })
}

fn layout_as_json(prediction: &Prediction) -> Value {
    let mut value = sizes(prediction.layout);
    let figures = match &prediction.outcome {
        Ok(figures) => figures,
        Err(misfit) => {
            plan::tell_misfit(misfit, &mut value);
            return value;
        }
    };
    let ms = |seconds: Option<f64>| seconds.map(|seconds| seconds * 1e3);
    let first = PROMPT_LENS.iter().zip(figures.first_token_seconds);
    let steps = BATCH_SIZES.iter().zip(figures.step_seconds).zip(figures.decode_rates());
    value["weights_bytes"] = figures.weights_bytes.into();
    value["workspace_bytes"] = figures.other_bytes.into();
    value["kv_bytes_per_token"] = figures.kv_bytes_per_token.into();
    value["cached_tokens_per_replica"] = figures.cached_tokens.into();
    value["first_token_ms"] = first.map(|(len, seconds)| (len.to_string(), json!(ms(seconds)))).collect();
    value["decode"] = steps
        .map(|((batch, seconds), rate)| {
            (batch.to_string(), json!({"step_ms": ms(seconds), "tokens_per_second": rate}))
        })
        .collect();
    value["single_request_seconds"] = figures.single_seconds.into();
    value["total_tokens_per_second"] = figures.tokens_per_second.into();
    value
}
