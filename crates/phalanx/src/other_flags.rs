//! Flags that people bring from other servers: a command line written for vLLM is told what each of them becomes here.

use clap::Error;
use clap::error::{ContextKind, ContextValue, ErrorKind};

/// Names as vLLM 0.25 has them, and what to do in their place.
const OTHERS: [(&[&str], &str); 17] = [
    (
        &["--trust-remote-code"],
        "leave it out: no code that comes with a model is ever run, and Qwen2.5 needs none",
    ),
    (
        &["--quantization", "--load-in-4bit"],
        "leave it out: files say themselves how they are quantised; give a GGUF file as --model",
    ),
    (
        &["--swap-space", "--cpu-offload-gb", "--kv-offloading-size"],
        "leave it out: nothing is moved to the host's memory, requests that do not fit wait and lose nothing",
    ),
    (
        &[
            "--disable-log-requests",
            "--enable-log-requests",
            "--no-enable-log-requests",
            "--disable-log-stats",
        ],
        "leave it out: prompts and answers are never logged, --log chooses the level, and figures are at /metrics",
    ),
    (&["--uvicorn-log-level", "--disable-uvicorn-access-log"], "use --log"),
    (
        &["--distributed-executor-backend", "--worker-cls"],
        "leave it out: ranks are threads of this process, there is nothing to choose",
    ),
    (
        &["--nnodes", "--node-rank", "--master-addr", "--master-port", "--data-parallel-address"],
        "leave it out: one process serves the GPUs of one machine",
    ),
    (&["--disable-custom-all-reduce"], "use --all-reduce nccl"),
    (
        &["--rope-scaling", "--rope-theta", "--hf-overrides"],
        "use --max-model-len: beyond the trained length it turns YaRN on; other changes belong in the model's config.json",
    ),
    (
        &["--compilation-config", "--max-seq-len-to-capture", "--cuda-graph-sizes"],
        "leave it out: graphs of all sizes are recorded by themselves; --enforce-eager turns them off",
    ),
    (&["--scheduling-policy"], "use --enable-client-priorities: requests then may have a `priority`"),
    (
        &["--preemption-mode", "--num-scheduler-steps", "--max-parallel-loading-workers"],
        "leave it out: there is one way, and it is on",
    ),
    (
        &[
            "--enable-auto-tool-choice",
            "--tool-call-parser",
            "--guided-decoding-backend",
            "--structured-outputs-config",
        ],
        "leave it out: tools and JSON schemas are not supported yet, and a request that asks for them gets a 400",
    ),
    (&["--enable-lora", "--lora-modules", "--speculative-config"], "leave it out: it is not supported yet"),
    (&["--ssl-keyfile", "--ssl-certfile"], "leave it out: put a proxy with TLS in front"),
    (&["--kv-cache-memory-bytes"], "use --kv-cache-memory"),
    (&["--tokenizer-mode", "--tokenizer-revision"], "leave it out; --tokenizer names another tokenizer.json"),
];

/// Adds what to do to an error about a flag that another server has.
pub(crate) fn explained(mut error: Error) -> Error {
    if error.kind() != ErrorKind::UnknownArgument {
        return error;
    }
    let Some(ContextValue::String(flag)) = error.get(ContextKind::InvalidArg) else { return error };
    // As it was written: `--name` or `--name=value`.
    let name = flag.split('=').next().unwrap_or(flag);
    let Some((_, instead)) = OTHERS.iter().find(|(names, _)| names.contains(&name)) else { return error };
    // A flag of ours that is merely spelt alike would lead astray.
    error.remove(ContextKind::SuggestedArg);
    error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![(*instead).into()]));
    error
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;
    use crate::args::Cli;

    fn refused(arguments: &str) -> String {
        let line = format!("phalanx serve --model m {arguments}");
        explained(Cli::try_parse_from(line.split_whitespace()).unwrap_err()).to_string()
    }

    #[test]
    fn a_flag_of_another_server_is_told_what_it_becomes() {
        let text = refused("--trust-remote-code");
        assert!(text.contains("unexpected argument '--trust-remote-code'"), "{text}");
        assert!(text.contains("no code that comes with a model is ever run"), "{text}");
        let text = refused("--kv-cache-memory-bytes=1G");
        assert_eq!(text.matches("tip:").count(), 1, "{text}");
        assert!(text.contains("use --kv-cache-memory"), "{text}");
        assert!(!refused("--nonsense").contains("leave it out"));
    }

    /// A flag that we have is no other's any more.
    #[test]
    fn none_of_them_is_ours_and_those_named_instead_are() {
        let mut cli = Cli::command();
        let serve = cli.find_subcommand_mut("serve").unwrap();
        let ours: Vec<String> = serve
            .get_arguments()
            .filter_map(|flag| flag.get_long())
            .map(|long| format!("--{long}"))
            .collect();
        for (names, instead) in OTHERS {
            for name in names {
                assert!(!ours.iter().any(|flag| flag == name), "{name}");
            }
            let words = instead.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '-');
            for word in words.filter(|word| word.starts_with("--") && *word != "--log") {
                assert!(ours.iter().any(|flag| flag == word), "{word}");
            }
        }
    }
}
