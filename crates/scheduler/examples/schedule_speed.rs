//! Microseconds for a step of 256 decoding sequences: `cargo run --release --example schedule_speed`.
#![allow(clippy::print_stdout, clippy::disallowed_methods, reason = "it measures, and says what")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use phalanx_scheduler::step::{Sampled, SampledToken, SamplingParams, SequenceId, StepOutput};
use phalanx_scheduler::{Scheduler, SchedulerConfig, Submission};

const SEQUENCES: usize = 256;
const STEPS: usize = 1000;

fn main() {
    let mut scheduler = Scheduler::new(SchedulerConfig {
        num_blocks: 100_000,
        block_size: 16,
        max_batched_tokens: 8192,
        max_sequences: SEQUENCES,
        max_model_len: 32768,
        prefix_cache: true,
        overlap: true,
        stages: 1,
        hash_key: [1; 32],
    })
    .expect("the pool holds the longest sequence");
    for id in 0..SEQUENCES as u64 {
        let submission = Submission {
            sequences: vec![SequenceId(id)],
            prompt: (0..1000).map(|position| (position * 7 + id as u32) % 1000).collect(),
            sampling: vec![Arc::new(SamplingParams::default())],
            max_new_tokens: 10_000,
            stop_token_ids: vec![1_000_000],
            priority: 0,
            cache_salt: None,
        };
        scheduler.submit(submission).expect("the prompt is short");
    }
    let (mut scheduling, mut completing) = (Vec::new(), Vec::new());
    while scheduling.len() < STEPS {
        let began = Instant::now();
        let step = scheduler.schedule().expect("all sequences want their next token");
        let scheduled = began.elapsed();
        let sampled = step.chunks.iter().filter(|chunk| chunk.sample).map(|chunk| Sampled {
            sequence: chunk.sequence,
            outcome: Ok(SampledToken { token: chunk.start as u32, logprobs: None }),
        });
        let output = StepOutput { number: step.number, sampled: sampled.collect() };
        let began = Instant::now();
        let updates = scheduler.complete(&output);
        let completed = began.elapsed();
        if updates.len() == SEQUENCES && step.chunks.iter().all(|chunk| chunk.len() == 1) {
            scheduling.push(scheduled);
            completing.push(completed);
        }
    }
    // Medians: what else the machine does in between is not of interest.
    let median = |mut times: Vec<Duration>| *times.select_nth_unstable(STEPS / 2).1;
    let (schedule, complete) = (median(scheduling), median(completing));
    println!("{SEQUENCES} sequences of 1000 to 2000 tokens: schedule {schedule:?}, complete {complete:?}");
}
