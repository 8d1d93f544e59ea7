//! Microseconds of the engine's own work between two steps of 256 decoding sequences, with readers of three kinds:
//! `cargo run --release -p phalanx-engine --example host_work`.
//!
//! The device is a thread that takes its time; two steps are in flight, as on a GPU. On two cores of a Zen 4 server, at
//! steps of 0.8 ms: the next step is submitted after 80 to 120 us and waited for after 110 to 170 (a task each on two
//! threads; 1,200 to 1,600 a thread each). At steps of 8 ms the caches have gone cold: 230 to 360 and 430 to 590 (3,000).
#![allow(clippy::print_stdout, clippy::disallowed_methods, reason = "it measures, and says what")]

use std::path::Path;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::SelectAll;
use phalanx_engine::{Engine, EngineHandle, EngineOptions, EventStream, Request, Sampling, Stop};
use phalanx_scheduler::SchedulerConfig;
use phalanx_scheduler::step::{Executor, ExecutorError, Sampled, SampledToken, Step, StepOutput};
use phalanx_text::Tokenizer;

const SEQUENCES: usize = 256;
const STEPS: usize = 400;
/// What GPUs take for such a step: 8 ms is one H200 with 7B.
const STEP_TIMES: [Duration; 2] = [Duration::from_micros(800), Duration::from_millis(8)];

/// Answers every step with the same token for all, some time after it was begun.
struct Device {
    steps: Sender<Arc<Step>>,
    outputs: Receiver<StepOutput>,
    came: Option<Instant>,
    times: Arc<Mutex<Times>>,
}

/// What was seen of each step, counted from the output of the one before.
#[derive(Default)]
struct Times {
    /// Until it was submitted.
    submitted: Vec<Duration>,
    /// Until it was waited for: what the device's time has to hide.
    waited: Vec<Duration>,
}

impl Device {
    fn new(step_time: Duration, times: Arc<Mutex<Times>>) -> Self {
        let (steps, submitted) = mpsc::channel::<Arc<Step>>();
        let (done, outputs) = mpsc::channel();
        std::thread::spawn(move || {
            for step in submitted {
                std::thread::sleep(step_time);
                let outcome = Ok(SampledToken { token: 262, logprobs: None });
                let sampling = step.chunks.iter().filter(|chunk| chunk.sample);
                let sampled =
                    sampling.map(|chunk| Sampled { sequence: chunk.sequence, outcome: outcome.clone() });
                let _engine_gone = done.send(StepOutput { number: step.number, sampled: sampled.collect() });
            }
        });
        Self { steps, outputs, came: None, times }
    }
}

impl Executor for Device {
    fn depth(&self) -> usize {
        2
    }

    fn submit(&mut self, step: Arc<Step>) {
        if let Some(came) = self.came {
            self.times.lock().expect("nobody panics").submitted.push(came.elapsed());
        }
        self.steps.send(step).expect("the device lives as long as its engine");
    }

    fn wait(&mut self) -> Result<StepOutput, ExecutorError> {
        if let Some(came) = self.came {
            self.times.lock().expect("nobody panics").waited.push(came.elapsed());
        }
        let output = self.outputs.recv().expect("the device lives as long as its engine");
        self.came = Some(Instant::now());
        Ok(output)
    }
}

fn main() {
    for step_time in STEP_TIMES {
        println!("{SEQUENCES} sequences, {step_time:?} a step");
        measure(step_time, "a thread each", read_by_threads);
        measure(step_time, "one task", read_by_one_task);
        measure(step_time, "a task each on two threads", read_by_tasks);
    }
}

fn measure(step_time: Duration, name: &str, read: fn(Vec<EventStream>)) {
    let times = Arc::default();
    let engine = engine(Device::new(step_time, Arc::clone(&times)));
    let streams = (0..SEQUENCES as u32).map(|index| engine.submit(request(index)).expect("it fits"));
    read(streams.collect());
    engine.shutdown(Duration::from_secs(5));
    let times = times.lock().expect("nobody panics");
    let [submitted, waited] = [&times.submitted, &times.waited].map(|times| {
        // The first steps carry prompts, the last ones ends.
        let mut steady = times[40..STEPS].to_vec();
        steady.sort_unstable();
        [50, 90].map(|percent| steady[steady.len() * percent / 100].as_micros())
    });
    println!(
        "  read by {name}: next step submitted after {} us (p90 {}), waited for after {} us (p90 {})",
        submitted[0], submitted[1], waited[0], waited[1]
    );
}

fn read_by_threads(streams: Vec<EventStream>) {
    std::thread::scope(|scope| {
        for stream in streams {
            scope.spawn(|| stream.blocking().count());
        }
    });
}

fn read_by_one_task(streams: Vec<EventStream>) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime starts");
    runtime.block_on(streams.into_iter().collect::<SelectAll<_>>().count());
}

fn read_by_tasks(streams: Vec<EventStream>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build();
    runtime.expect("a runtime starts").block_on(async {
        let tasks: Vec<_> = streams.into_iter().map(|stream| tokio::spawn(stream.count())).collect();
        for task in tasks {
            task.await.expect("no reader panics");
        }
    });
}

fn engine(device: Device) -> EngineHandle {
    let scheduler = SchedulerConfig {
        num_blocks: 20_000,
        block_size: 64,
        max_batched_tokens: 8192,
        max_sequences: SEQUENCES,
        max_model_len: 8192,
        prefix_cache: true,
        overlap: true,
        stages: 1,
        hash_key: [1; 32],
    };
    let options = EngineOptions {
        name: "engine".to_owned(),
        scheduler,
        vocab_size: 300,
        eos_token_ids: vec![],
        max_queue: SEQUENCES,
    };
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../text/tests/data/tiny_tokenizer.json");
    let tokenizer = Tokenizer::from_file(&file).expect("the tokenizer is whole");
    Engine::start(options, Arc::new(tokenizer), Box::new(device)).expect("the options are sound")
}

fn request(index: u32) -> Request {
    Request {
        id: "host".to_owned(),
        prompt: (0..1000).map(|position| (position * 7 + index) % 256).collect(),
        n: 1,
        max_new_tokens: Some(STEPS + 40),
        sampling: Sampling::default(),
        stop: Stop { ignore_eos: true, ..Stop::default() },
        priority: 0,
        cache_salt: None,
        skip_special_tokens: true,
    }
}
