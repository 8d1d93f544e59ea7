//! Plays the scripts of `tests/cases/`: commands above the line, what the scheduler answers below.
//!
//! ```text
//! config blocks=8 block_size=4 tokens=16 sequences=4 len=32      see `config` for the defaults
//! submit 1,2 prompt=1..10,7 new=3 stop=9 priority=-1 salt=a      `n = 2`; 1..10 means 1 to 10
//! step                                                           schedule
//! complete 1=9 2=fault                                           the oldest step; others sample 100 id + count
//! round                                                          step, then complete
//! abort 1
//! stats
//! ----
//! ```

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "Clippy sees tests only in functions marked so")]

use std::collections::{HashMap, VecDeque};
use std::fmt::Write;
use std::sync::Arc;

use phalanx_scheduler::step::{
    Chunk, ChunkTokens, Sampled, SampledToken, SamplingParams, SequenceFault, SequenceId, Step, StepOutput,
    TokenId,
};
use phalanx_scheduler::{FinishReason, Scheduler, SchedulerConfig, Stats, Submission, Update};

#[test]
fn cases() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cases");
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{folder} has no cases");
    let wrong: Vec<_> = paths
        .iter()
        .filter(|path| {
            let text = std::fs::read_to_string(path).unwrap();
            let (input, expected) =
                text.split_once("\n----\n").expect("a line ---- parts input and expected");
            check(input, expected).inspect_err(|actual| println!("== {}\n{actual}", path.display())).is_err()
        })
        .collect();
    assert!(wrong.is_empty(), "these cases answer otherwise than expected (see above): {wrong:#?}");
}

/// Plays `input`; what was answered is the error when it is not `expected`. Comments count in neither.
fn check(input: &str, expected: &str) -> Result<(), String> {
    let mut stage = Stage::default();
    for line in meaningful(input) {
        stage.play(line);
        if let Some(scheduler) = &stage.scheduler {
            scheduler.check();
        }
    }
    let same = meaningful(&stage.answers).eq(meaningful(expected));
    if same { Ok(()) } else { Err(stage.answers) }
}

fn meaningful(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim_end).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// One script being played.
#[derive(Default)]
struct Stage {
    scheduler: Option<Scheduler>,
    in_flight: VecDeque<Step>,
    /// How many tokens each sequence has sampled.
    sampled: HashMap<SequenceId, u32>,
    answers: String,
}

impl Stage {
    fn play(&mut self, line: &str) {
        let mut words = line.split_whitespace();
        let command = words.next().unwrap();
        let words: Vec<&str> = words.collect();
        if command == "config" {
            match Scheduler::new(config(&words)) {
                Ok(scheduler) => self.scheduler = Some(scheduler),
                Err(error) => self.answer(&format!("refused: {error}")),
            }
            return;
        }
        if command == "round" {
            self.play("step");
            return self.play(&line.replace("round", "complete"));
        }
        let mut scheduler = self.scheduler.take().expect("a script begins with config");
        match command {
            "submit" => {
                if let Err(error) = scheduler.submit(submission(&words)) {
                    self.answer(&format!("refused: {error}"));
                }
            }
            "step" => match scheduler.schedule() {
                Some(step) => {
                    self.answer(&show_step(&step));
                    self.in_flight.push_back(step);
                }
                None => self.answer("no step"),
            },
            "complete" => {
                let output = self.output(&words);
                for update in scheduler.complete(&output) {
                    self.answer(&show_update(&update));
                }
            }
            "abort" => words.iter().for_each(|word| scheduler.abort(SequenceId(word.parse().unwrap()))),
            "stats" => {
                let Stats { running, waiting, used_blocks, total_blocks, cached_blocks, .. } =
                    scheduler.stats();
                let Stats { preemptions, prefix_queries, prefix_hits, .. } = scheduler.stats();
                self.answer(&format!("{running} running, {waiting} waiting, {preemptions} preemptions"));
                self.answer(&format!("{used_blocks} of {total_blocks} blocks used, {cached_blocks} cached"));
                self.answer(&format!("{prefix_hits} of {prefix_queries} prompt tokens found"));
                self.answer(if scheduler.has_work() { "busy" } else { "idle" });
            }
            _ => panic!("no such command: {line}"),
        }
        self.scheduler = Some(scheduler);
    }

    fn answer(&mut self, text: &str) {
        writeln!(self.answers, "{text}").unwrap();
    }

    /// The output of the oldest step in flight, with the tokens that `words` say.
    fn output(&mut self, words: &[&str]) -> StepOutput {
        let step = self.in_flight.pop_front().expect("a step is in flight");
        let told: HashMap<&str, &str> = words.iter().map(|word| word.split_once('=').unwrap()).collect();
        let mut sampled = Vec::new();
        for chunk in step.chunks.iter().filter(|chunk| chunk.sample) {
            let count = self.sampled.entry(chunk.sequence).or_default();
            *count += 1;
            let token = Ok(100 * chunk.sequence.0 as TokenId + *count);
            let outcome = match told.get(chunk.sequence.0.to_string().as_str()) {
                Some(&"fault") => Err(SequenceFault::NonFiniteLogits),
                Some(word) => Ok(word.parse().unwrap()),
                None => token,
            };
            let outcome = outcome.map(|token| SampledToken { token, logprobs: None });
            sampled.push(Sampled { sequence: chunk.sequence, outcome });
        }
        StepOutput { number: step.number, sampled }
    }
}

fn config(words: &[&str]) -> SchedulerConfig {
    let mut config = SchedulerConfig {
        num_blocks: 16,
        block_size: 4,
        max_batched_tokens: 16,
        max_sequences: 8,
        max_model_len: 64,
        prefix_cache: true,
        overlap: false,
        stages: 1,
        hash_key: [7; 32],
    };
    for word in words {
        let (name, value) = word.split_once('=').unwrap_or((word, "1"));
        let value = value.parse().unwrap();
        match name {
            "blocks" => config.num_blocks = value,
            "block_size" => config.block_size = value,
            "tokens" => config.max_batched_tokens = value,
            "sequences" => config.max_sequences = value,
            "len" => config.max_model_len = value,
            "prefix_cache" => config.prefix_cache = value == 1,
            "overlap" => config.overlap = value == 1,
            "stages" => config.stages = value,
            _ => panic!("config has no {name}"),
        }
    }
    config
}

fn submission(words: &[&str]) -> Submission {
    let sequences: Vec<_> = words[0].split(',').map(|id| SequenceId(id.parse().unwrap())).collect();
    let mut sampling = SamplingParams::default();
    let mut submission = Submission {
        sequences,
        prompt: Arc::from([]),
        sampling: Vec::new(),
        max_new_tokens: 100,
        stop_token_ids: Vec::new(),
        priority: 0,
        cache_salt: None,
    };
    for word in &words[1..] {
        let (name, value) = word.split_once('=').unwrap();
        match name {
            "prompt" => submission.prompt = tokens(value).into(),
            "new" => submission.max_new_tokens = value.parse().unwrap(),
            "stop" => submission.stop_token_ids = tokens(value),
            "min" => sampling.min_tokens = value.parse().unwrap(),
            "priority" => submission.priority = value.parse().unwrap(),
            "salt" => submission.cache_salt = Some(value.as_bytes().to_vec()),
            _ => panic!("submit has no {name}"),
        }
    }
    let sampling = Arc::new(sampling);
    submission.sampling = vec![sampling; submission.sequences.len()];
    submission
}

/// `1..4,9` is 1 2 3 4 9; nothing is the empty list.
fn tokens(text: &str) -> Vec<TokenId> {
    text.split(',')
        .filter(|part| !part.is_empty())
        .flat_map(|part| {
            let (first, last) = part.split_once("..").unwrap_or((part, part));
            first.parse::<TokenId>().unwrap()..=last.parse().unwrap()
        })
        .collect()
}

fn show_step(step: &Step) -> String {
    let mut text = format!("step {}", step.number);
    for started in &step.started {
        write!(text, "\n  start {}, prompt of {}", started.sequence.0, started.prompt.len()).unwrap();
    }
    for copy in &step.copies {
        write!(text, "\n  copy block {} to {}", copy.from.0, copy.to.0).unwrap();
    }
    for chunk in &step.chunks {
        write!(text, "\n  {}", show_chunk(chunk)).unwrap();
    }
    for sequence in &step.finished {
        write!(text, "\n  finished {}", sequence.0).unwrap();
    }
    text
}

fn show_chunk(chunk: &Chunk) -> String {
    let tokens = match &chunk.tokens {
        ChunkTokens::Given(tokens) => show_tokens(tokens),
        ChunkTokens::LastSampled => "last sampled".to_owned(),
    };
    let blocks: Vec<String> = chunk.blocks.iter().map(|block| block.0.to_string()).collect();
    let sample = if chunk.sample { ", sample" } else { "" };
    format!("{} from {}: {tokens} in [{}]{sample}", chunk.sequence.0, chunk.start, blocks.join(" "))
}

/// As [`tokens`] reads them.
fn show_tokens(tokens: &[TokenId]) -> String {
    let runs = tokens.chunk_by(|a, b| a + 1 == *b);
    let shown: Vec<String> = runs
        .map(|run| match run {
            [token] => token.to_string(),
            _ => format!("{}..{}", run[0], run[run.len() - 1]),
        })
        .collect();
    shown.join(",")
}

fn show_update(update: &Update) -> String {
    let mut text = format!("{}:", update.sequence.0);
    match update.token {
        Some(token) => write!(text, " {token}").unwrap(),
        None => text.push_str(" no token"),
    }
    match update.finish {
        None => {}
        Some(FinishReason::Stop) => text.push_str(", stop"),
        Some(FinishReason::Length) => text.push_str(", length"),
        Some(FinishReason::Fault(fault)) => write!(text, ", {fault:?}").unwrap(),
    }
    if 0 < update.cached_tokens {
        write!(text, " ({} prompt tokens cached)", update.cached_tokens).unwrap();
    }
    text
}
