//! What `phalanx bench` is told.

use clap::{Args, ValueEnum};
use phalanx_model::layout::Layout;

use super::{EngineArgs, ModelArgs};
use crate::parse::{Crowd, parse_count, parse_crowd, parse_layout, parse_tokens};

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// What to measure.
    #[arg(value_enum)]
    pub(crate) what: BenchKind,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    /// Prompt lengths, in tokens.
    #[arg(long, value_delimiter = ',', value_parser = parse_tokens, value_name = "TOKENS")]
    pub(crate) input_len: Vec<usize>,
    /// Tokens of each answer.
    #[arg(long, value_parser = parse_tokens, value_name = "TOKENS")]
    pub(crate) output_len: Option<usize>,
    /// Requests at once.
    #[arg(long, value_delimiter = ',', value_parser = parse_count, value_name = "N")]
    pub(crate) batch_size: Vec<usize>,
    /// Throughput over requests of lengths from an eighth to the whole of what is given, rather than equal ones.
    #[arg(long)]
    pub(crate) mixed: bool,
    /// The layouts that `bench layouts` tries, such as tp4,pp4,tp2pp2,dp2 [default: each that `auto` considers; on the CPU
    /// those of up to as many ranks as it has threads, four at most].
    #[arg(long, value_delimiter = ',', value_parser = parse_layout, value_name = "LAYOUT")]
    pub(crate) layouts: Vec<Layout>,
    /// The requests that `bench layouts` submits at once: how many, of how many tokens in and out [default: 512x1024+256 on
    /// GPUs, 16x64+32 on the CPU].
    #[arg(long, value_parser = parse_crowd, value_name = "NxIN+OUT")]
    pub(crate) crowd: Option<Crowd>,
    /// Measurements of each figure, after one to warm up; the median is reported, and the spread.
    #[arg(long, default_value_t = 3, value_parser = parse_count, value_name = "N")]
    pub(crate) repeats: usize,
    /// Print JSON; of layouts a line for each as soon as it is measured, and a last one with what follows from them.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BenchKind {
    /// Seconds a token, for several batch sizes.
    Latency,
    /// Tokens of prompt a second, for several lengths.
    Prefill,
    /// Tokens a second over many requests submitted at once.
    Throughput,
    /// The source's table: prompts of several lengths, 512 tokens out.
    Matrix,
    /// Every layout of this machine's devices, measured and beside it predicted: which is fastest here?
    Layouts,
}
