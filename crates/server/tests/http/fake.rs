//! A model that costs nothing: its answer to a prompt is the prompt, token by token, then the end token.
//!
//! A token is a byte of text. Bytes that no UTF-8 text holds are orders to misbehave; a prompt of ids can hold them.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use phalanx_scheduler::step::{
    Chunk, Executor, ExecutorError, Sampled, SampledToken, SequenceFault, SequenceId, Started, Step,
    StepOutput, TokenLogprobs,
};
use phalanx_server::{Family, FamilyKind, Series};
use phalanx_text::Tokenizer;
use serde_json::json;

pub(crate) const END: u32 = 256;
pub(crate) const VOCAB: usize = 257;
/// From here on the answer repeats the letter `a` for as long as the context lasts.
pub(crate) const ENDLESS: u32 = 251;
/// The logits at this place of the answer are not finite.
pub(crate) const NOT_FINITE: u32 = 253;
/// The executor fails at this place of the answer.
pub(crate) const BREAK: u32 = 254;

/// Carries out steps at once.
#[derive(Default)]
pub(crate) struct Fake {
    in_flight: VecDeque<Arc<Step>>,
    sequences: HashMap<SequenceId, Started>,
}

impl Fake {
    fn compute(&self, chunk: &Chunk) -> Result<Sampled, ExecutorError> {
        let sequence = chunk.sequence;
        let started = &self.sequences[&sequence];
        let place = chunk.start + chunk.len() - started.prompt.len();
        let endless = started.prompt.iter().position(|token| *token == ENDLESS);
        let token = match started.prompt.get(place).copied() {
            _ if endless.is_some_and(|from| from <= place) => u32::from(b'a'),
            None => END,
            Some(token) => token,
        };
        let asked = started.sampling.logprobs;
        let likeliest = |count: u32| (0..count).map(|rank| (rank + 97, -0.5 - rank as f32)).collect();
        let logprobs = asked.map(|count| TokenLogprobs { chosen: -0.25, top: likeliest(count) });
        let outcome = match token {
            NOT_FINITE => Err(SequenceFault::NonFiniteLogits),
            BREAK => return Err(ExecutorError("rank 1 is lost".to_owned())),
            token => Ok(SampledToken { token, logprobs }),
        };
        Ok(Sampled { sequence, outcome })
    }
}

impl Executor for Fake {
    fn depth(&self) -> usize {
        1
    }

    fn submit(&mut self, step: Arc<Step>) {
        self.in_flight.push_back(step);
    }

    fn wait(&mut self) -> Result<StepOutput, ExecutorError> {
        // An endless answer must not keep the server's threads from their turn.
        std::thread::yield_now();
        let step = self.in_flight.pop_front().expect("a step is in flight");
        for started in &step.started {
            self.sequences.insert(started.sequence, started.clone());
        }
        let sampling = step.chunks.iter().filter(|chunk| chunk.sample);
        let sampled = sampling.map(|chunk| self.compute(chunk)).collect::<Result<_, _>>()?;
        for sequence in &step.finished {
            self.sequences.remove(sequence);
        }
        Ok(StepOutput { number: step.number, sampled })
    }
}

/// 256 byte tokens and an end token.
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
    let byte_level =
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false });
    let description = json!({
        "version": "1.0",
        "added_tokens": [{
            "id": END, "content": "<|im_end|>", "special": true, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false,
        }],
        "normalizer": null, "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": { "type": "BPE", "vocab": vocab, "merges": [] },
    });
    Arc::new(Tokenizer::from_json(description).expect("the description is well formed"))
}

/// Figures that someone other than the server counts, with a label that has to be escaped.
pub(crate) fn families() -> Vec<Family> {
    let series = vec![Series { labels: vec![("fan", "a\"b".to_owned())], value: 7.5 }];
    vec![Family { name: "phalanx:fans_turns_total", help: "Turns.", kind: FamilyKind::Counter, series }]
}
