//! An executor without a model, and an engine around it.
//!
//! Its answer to a prompt is the prompt, token by token, then the end token. A token is a byte of text.

use std::collections::{HashMap, VecDeque};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};

use phalanx_engine::{
    Delta, Engine, EngineHandle, EngineOptions, Event, EventStream, Request, RequestError, Sampling, Stop,
    Usage,
};
use phalanx_scheduler::SchedulerConfig;
use phalanx_scheduler::step::{
    Chunk, ChunkTokens, Executor, ExecutorError, Sampled, SampledToken, SequenceFault, SequenceId, Started,
    Step, StepOutput, TokenLogprobs,
};
use phalanx_text::Tokenizer;
use serde_json::json;

pub(crate) const END: u32 = 256;
pub(crate) const OTHER_END: u32 = 257;
pub(crate) const VOCAB: usize = 258;
/// In a prompt: the answer's token at this place is the sequence's seed modulo 200.
pub(crate) const SEED: u32 = 252;
/// In a prompt: the logits at this place of the answer are not finite.
pub(crate) const NOT_FINITE: u32 = 253;
/// In a prompt: the executor fails at this place of the answer.
pub(crate) const BREAK: u32 = 254;
/// In a prompt: the executor panics at this place of the answer.
pub(crate) const PANIC: u32 = 255;

#[derive(Default)]
pub(crate) struct Fake {
    depth: usize,
    in_flight: VecDeque<Arc<Step>>,
    sequences: HashMap<SequenceId, Started>,
    /// Each `wait` takes one permit; none: never waits.
    permits: Option<Receiver<()>>,
    /// Hears of every step submitted.
    submitted: Option<Sender<Arc<Step>>>,
    /// The number of the step that cannot be submitted, counted from 1; none: all can.
    pub(crate) broken_step: Option<usize>,
    num_submitted: usize,
    /// Dropped with the executor.
    _life: Option<Sender<()>>,
}

/// A test's hands on a [`Fake`].
pub(crate) struct Gate {
    permits: Sender<()>,
    submitted: Mutex<Receiver<Arc<Step>>>,
    life: Mutex<Receiver<()>>,
}

impl Gate {
    pub(crate) fn permit(&self, steps: usize) {
        for _ in 0..steps {
            let _ended = self.permits.send(());
        }
    }

    /// The next step the engine submitted; waits for it.
    pub(crate) fn next_step(&self) -> Arc<Step> {
        self.submitted.lock().expect("one test, one thread").recv().expect("the executor is alive")
    }

    /// Waits until the executor is dropped.
    pub(crate) fn wait_for_drop(&self) {
        assert!(self.life.lock().expect("one test, one thread").recv().is_err());
    }
}

impl Fake {
    pub(crate) fn free_running(depth: usize) -> Self {
        Self { depth, ..Self::default() }
    }

    pub(crate) fn gated(depth: usize) -> (Self, Gate) {
        let (permits, permitted) = mpsc::channel();
        let (announce, submitted) = mpsc::channel();
        let (life, death) = mpsc::channel();
        let fake = Self {
            depth,
            permits: Some(permitted),
            submitted: Some(announce),
            _life: Some(life),
            ..Self::default()
        };
        (fake, Gate { permits, submitted: Mutex::new(submitted), life: Mutex::new(death) })
    }

    fn token_at(&self, sequence: SequenceId, place: usize) -> u32 {
        let started = &self.sequences[&sequence];
        match started.prompt.get(place).copied() {
            None => END,
            Some(SEED) => (started.sampling.seed % 200) as u32,
            Some(token) => token,
        }
    }

    fn compute(&self, chunk: &Chunk) -> Result<Option<Sampled>, ExecutorError> {
        let sequence = chunk.sequence;
        let prompt = &self.sequences[&sequence].prompt;
        let ChunkTokens::Given(tokens) = &chunk.tokens else { panic!("no overlap was asked for") };
        for (position, token) in (chunk.start..).zip(tokens) {
            let expected = match position.checked_sub(prompt.len()) {
                None => prompt[position],
                Some(place) => self.token_at(sequence, place),
            };
            assert_eq!(*token, expected, "position {position} of {sequence:?}");
        }
        if !chunk.sample {
            return Ok(None);
        }
        let token = self.token_at(sequence, chunk.start + tokens.len() - prompt.len());
        let asked = self.sequences[&sequence].sampling.logprobs;
        let logprobs = asked.map(|_| TokenLogprobs { chosen: -0.5, top: vec![(token, -0.5)] });
        let outcome = match token {
            NOT_FINITE => Err(SequenceFault::NonFiniteLogits),
            BREAK => return Err(ExecutorError("rank 1 is lost".to_owned())),
            PANIC => panic!("the executor panics"),
            token => Ok(SampledToken { token, logprobs }),
        };
        Ok(Some(Sampled { sequence, outcome }))
    }
}

impl Executor for Fake {
    fn depth(&self) -> usize {
        self.depth
    }

    fn submit(&mut self, step: Arc<Step>) {
        self.num_submitted += 1;
        assert!(self.broken_step != Some(self.num_submitted), "the executor panics");
        self.in_flight.push_back(Arc::clone(&step));
        assert!(self.in_flight.len() <= self.depth, "no more steps than the executor takes");
        if let Some(submitted) = &self.submitted {
            let _nobody_listens = submitted.send(step);
        }
    }

    fn wait(&mut self) -> Result<StepOutput, ExecutorError> {
        if let Some(permits) = &self.permits {
            permits.recv().map_err(|_| ExecutorError("the test is over".to_owned()))?;
        }
        let step = self.in_flight.pop_front().expect("a step is in flight");
        for started in &step.started {
            self.sequences.insert(started.sequence, started.clone());
        }
        let mut sampled = Vec::new();
        for chunk in &step.chunks {
            sampled.extend(self.compute(chunk)?);
        }
        for sequence in &step.finished {
            self.sequences.remove(sequence);
        }
        Ok(StepOutput { number: step.number, sampled })
    }
}

/// 256 byte tokens and two end tokens.
pub(crate) fn tokenizer() -> Arc<Tokenizer> {
    // Byte-level BPE writes printable bytes as themselves and the others as the letters from U+0100 on.
    let mut next = 0x100;
    let mut vocab = serde_json::Map::new();
    for byte in 0..=255_u8 {
        let printable = matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        let letter = if printable { u32::from(byte) } else { next };
        next += u32::from(!printable);
        vocab.insert(char::from_u32(letter).expect("below the surrogates").to_string(), json!(byte));
    }
    let added = |id: u32, content: &str| {
        json!({ "id": id, "content": content, "special": true, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false })
    };
    let description = json!({
        "version": "1.0",
        "added_tokens": [added(END, "<|im_end|>"), added(OTHER_END, "<|endoftext|>")],
        "normalizer": null,
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false },
        "post_processor": null,
        "decoder": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false },
        "model": { "type": "BPE", "vocab": vocab, "merges": [] },
    });
    Arc::new(Tokenizer::from_json(description).expect("the description is well formed"))
}

/// 64 blocks of 4 tokens, contexts of 128 tokens.
pub(crate) fn options() -> EngineOptions {
    EngineOptions {
        name: "engine".to_owned(),
        scheduler: SchedulerConfig {
            num_blocks: 64,
            block_size: 4,
            max_batched_tokens: 64,
            max_sequences: 16,
            max_model_len: 128,
            prefix_cache: true,
            overlap: false,
            stages: 1,
            hash_key: [7; 32],
        },
        vocab_size: VOCAB,
        eos_token_ids: vec![END],
        max_queue: 256,
    }
}

pub(crate) fn start(options: EngineOptions, executor: Fake) -> EngineHandle {
    Engine::start(options, tokenizer(), Box::new(executor)).expect("the options are sound")
}

pub(crate) fn request(prompt: &[u32]) -> Request {
    Request {
        id: "test".to_owned(),
        prompt: prompt.into(),
        n: 1,
        max_new_tokens: None,
        sampling: Sampling::default(),
        stop: Stop::default(),
        priority: 0,
        cache_salt: None,
        skip_special_tokens: true,
    }
}

/// A request for this text: it is the prompt, and hence the answer.
pub(crate) fn say(text: &str) -> Request {
    request(&text.bytes().map(u32::from).collect::<Vec<_>>())
}

/// A completed request: its deltas and its usage.
pub(crate) fn complete(stream: EventStream) -> Result<(Vec<Delta>, Usage), RequestError> {
    let mut deltas = Vec::new();
    for event in stream.blocking() {
        match event {
            Event::Delta(delta) => deltas.push(delta),
            Event::Done(usage) => return Ok((deltas, usage)),
            Event::Failed(error) => return Err(error),
        }
    }
    panic!("the stream ended without a last event");
}

pub(crate) fn text_of(deltas: &[Delta], index: usize) -> String {
    deltas.iter().filter(|delta| delta.index == index).map(|delta| delta.text.as_str()).collect()
}
