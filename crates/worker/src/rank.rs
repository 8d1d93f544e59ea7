//! One rank carrying out Steps.

use phalanx_device::backend::KvLayer;
use phalanx_device::{Arena, DType, Device, DeviceError, Tensor};
use phalanx_model::{Forward, Limits, Model, Place};
use phalanx_scheduler::step::{ChunkTokens, Step, StepOutput};

use crate::batch::{layout, number};
use crate::kv_cache::{KvCacheSpec, allocate};
use crate::sampling::Sampler;

/// A device with its shard of the model and its part of the KV cache.
///
/// A chunk's tokens are given in the Step. [`ChunkTokens::LastSampled`] is only carried out where the first stage is
/// the rank that samples, a replica of one rank: nobody else knows the token, and to guess would be to compute
/// nonsense, so it panics. Executors of more ranks run with the scheduler's overlap off, until sampled ids travel.
pub struct Rank {
    device: Device,
    model: Model,
    /// One a layer of this stage.
    kv: Vec<KvLayer>,
    /// I32 `[max_tokens, 1]`.
    ids: Tensor,
    place: Place,
    limits: Limits,
    block_size: usize,
    /// Tokens that exist: the rows of logits behind them are padding.
    vocab_size: usize,
    /// Only on the rank that samples.
    sampler: Option<Sampler>,
}

impl Rank {
    /// Gives a loaded model its KV cache. `limits` are those it was loaded with; `vocab_size` is that of the
    /// tokenizer, at most that of the model.
    ///
    /// # Errors
    /// The device has not that much memory.
    pub fn new(
        device: Device,
        model: Model,
        kv_cache: KvCacheSpec,
        limits: Limits,
        vocab_size: usize,
    ) -> Result<Self, DeviceError> {
        let place = model.shards().place;
        let kv = allocate(&device, model.shards(), kv_cache)?;
        let ids = device.arena(Arena::tensor_bytes(DType::I32, limits.max_tokens, 1))?.tensor(
            DType::I32,
            limits.max_tokens,
            1,
        );
        let sampler = (place.is_last_stage() && place.tensor_rank == 0).then(Sampler::default);
        let block_size = kv_cache.block_size;
        Ok(Self { device, model, kv, ids, place, limits, block_size, vocab_size, sampler })
    }

    /// Where it stands.
    #[must_use]
    pub fn place(&self) -> Place {
        self.place
    }

    /// Carries out the next step; the output comes from the rank that samples, from the others nothing.
    ///
    /// # Errors
    /// A fault of the device or of a group: this rank is lost.
    ///
    /// # Panics
    /// The step contradicts those before it, or exceeds the limits.
    pub fn apply(&mut self, step: &Step) -> Result<Option<StepOutput>, DeviceError> {
        if let Some(sampler) = &mut self.sampler {
            sampler.start(step);
        }
        self.copy_blocks(step);
        if !step.chunks.is_empty() {
            self.compute(step);
        }
        let rows = self.device.collect()?;
        let output = self.sampler.as_mut().map(|sampler| {
            let sampled = sampler.take(step, rows);
            sampler.finish(step);
            StepOutput { number: step.number, sampled }
        });
        Ok(output)
    }

    fn copy_blocks(&mut self, step: &Step) {
        if step.copies.is_empty() {
            return;
        }
        let copies: Vec<(u32, u32)> = step.copies.iter().map(|copy| (copy.from.0, copy.to.0)).collect();
        for layer in &mut self.kv {
            self.device.copy_blocks(layer, &copies);
        }
    }

    /// The forward pass, and on the rank that samples the start of sampling.
    fn compute(&mut self, step: &Step) {
        let plan = self.device.plan(layout(&step.chunks, self.block_size));
        let (tokens, samples) = (plan.layout.tokens(), plan.layout.sample_rows.len());
        assert!(tokens <= self.limits.max_tokens, "a step computes no more tokens than there is room for");
        assert!(samples <= self.limits.max_samples, "a step samples no more rows than there is room for");
        if self.place.is_first_stage() {
            let ids = self.token_ids(step, tokens);
            self.device.write_i32(self.ids.view_mut().slice_rows(0..tokens), &ids);
        }
        let ids = self.ids.view().slice_rows(0..tokens);
        let cx = Forward { device: &self.device, plan: &plan, ids };
        let logits = self.model.forward(&cx, &mut self.kv);
        if let (Some(sampler), Some(logits)) = (&mut self.sampler, logits) {
            let rows = sampler.rows(step);
            self.device.sample(logits, self.vocab_size, &rows);
            sampler.give_back(step, rows);
        }
    }

    fn token_ids(&self, step: &Step, tokens: usize) -> Vec<i32> {
        let mut ids = Vec::with_capacity(tokens);
        for chunk in &step.chunks {
            match &chunk.tokens {
                ChunkTokens::Given(tokens) => ids.extend(tokens.iter().map(|token| number(*token as usize))),
                ChunkTokens::LastSampled => {
                    assert!(
                        self.place.tensor_size == 1,
                        "a rank beside the one that samples is given its tokens"
                    );
                    let sampler = self
                        .sampler
                        .as_ref()
                        .expect("a first stage that is not the last is given its tokens");
                    ids.push(number(sampler.last_sampled(chunk.sequence) as usize));
                }
            }
        }
        ids
    }
}
