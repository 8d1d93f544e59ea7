//! One rank carrying out Steps.

use std::collections::VecDeque;
use std::sync::Arc;

use phalanx_device::backend::KvLayer;
use phalanx_device::{Arena, DType, Device, DeviceError, Plan, Tensor};
use phalanx_model::{Forward, Limits, Model, Place};
use phalanx_scheduler::step::{ChunkTokens, SequenceId, Step, StepOutput};

use crate::batch::{fill_up, layout, number};
use crate::graphs::{Graphs, SCRATCH_BLOCKS, Size};
use crate::kv_cache::{KvCacheSpec, allocate};
use crate::sampling::Sampler;

/// How many steps' sampled ids the device keeps: a step goes on from those of the step before it, and leaves its own.
const KEPT_STEPS: usize = 2;

/// What a rank is made with, besides its device and model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RankOptions {
    /// The size of the KV cache: with graphs there are [`SCRATCH_BLOCKS`] more.
    pub kv_cache: KvCacheSpec,
    /// Those the model was loaded with.
    pub limits: Limits,
    /// Tokens that exist: that of the tokenizer, at most that of the model. The rows of logits behind them are padding.
    pub vocab_size: usize,
    /// Steps may go on from ids that are not known yet ([`ChunkTokens::LastSampled`]): every rank of a replica without
    /// stages then samples for itself, so that no id has to travel.
    pub overlap: bool,
    /// Steps that decode are filled up to one of few sizes, and started from graphs where the device records them: from
    /// [`Rank::start_recording`] on.
    pub graphs: bool,
}

/// A device with its shard of the model and its part of the KV cache.
///
/// A step is carried out in two halves: [`Self::start`] launches everything, [`Self::finish`] waits for it. Between the
/// two, later steps may be started. A token that is given in a Step ([`ChunkTokens::Given`]) comes with it; one that the
/// step before sampled ([`ChunkTokens::LastSampled`]) is taken from the device's memory. Logits have the same bits on
/// every tensor rank and sampling depends on nothing else, so ranks that sample for themselves choose the same tokens.
pub struct Rank {
    /// Gone before the device's groups: the end of a library's communicator waits for the graphs its calls are in.
    graphs: Option<Graphs>,
    device: Device,
    model: Model,
    /// One a layer of this stage.
    kv: Vec<KvLayer>,
    /// I32 `[max_tokens, 1]`.
    ids: Tensor,
    /// I32 `[KEPT_STEPS * max_samples, 1]`: what the last steps sampled, by step and row.
    sampled: Tensor,
    place: Place,
    options: RankOptions,
    /// Only on ranks that sample.
    sampler: Option<Sampler>,
    /// Steps that were started and not finished, oldest first.
    under_way: VecDeque<Arc<Step>>,
}

impl Rank {
    /// Gives a loaded model its KV cache.
    ///
    /// # Errors
    /// The device has not that much memory.
    pub fn new(device: Device, model: Model, options: RankOptions) -> Result<Self, DeviceError> {
        let place = model.shards().place;
        let mut kv_cache = options.kv_cache;
        kv_cache.num_blocks += if options.graphs { SCRATCH_BLOCKS } else { 0 };
        let kv = allocate(&device, model.shards(), kv_cache)?;
        let Limits { max_tokens, max_samples, .. } = options.limits;
        let column = |rows| -> Result<Tensor, DeviceError> {
            let mut arena = device.arena(Arena::tensor_bytes(DType::I32, rows, 1))?;
            Ok(arena.tensor(DType::I32, rows, 1))
        };
        let ids = column(max_tokens)?;
        let sampled = column(KEPT_STEPS * max_samples)?;
        let for_itself = options.overlap && place.is_first_stage();
        let samples = place.is_last_stage() && (place.tensor_rank == 0 || for_itself);
        let sampler = samples.then(Sampler::default);
        // Steps are filled up on every rank alike, whether or not its own groups can be recorded: all add up the same rows.
        let graphs = options.graphs.then(|| Graphs::new(max_tokens.min(max_samples)));
        let under_way = VecDeque::new();
        Ok(Self { graphs, device, model, kv, ids, sampled, place, options, sampler, under_way })
    }

    /// Where it stands.
    #[must_use]
    pub fn place(&self) -> Place {
        self.place
    }

    /// The number of the oldest step that was started and not finished.
    #[must_use]
    pub fn oldest(&self) -> Option<u64> {
        self.under_way.front().map(|step| step.number)
    }

    /// The oldest step under way is done: [`Self::finish`] would not wait.
    #[must_use]
    pub fn is_done(&self) -> bool {
        !self.under_way.is_empty() && self.device.is_done()
    }

    /// Every step under way must be finished before `step` is started: it needs to know what they sampled.
    #[must_use]
    pub fn must_finish_before(&self, step: &Step) -> bool {
        self.sampler.as_ref().is_some_and(|sampler| sampler.lacks_tokens(step))
    }

    /// From now on decode steps are recorded; until then they are only filled up. What a graph launches is what was
    /// chosen by the time it was recorded.
    pub fn start_recording(&mut self) {
        if let Some(graphs) = &mut self.graphs {
            graphs.start_recording();
        }
    }

    /// Starts the next step: launches all of it, and waits for nothing.
    ///
    /// # Panics
    /// The step contradicts those before it, or exceeds the limits.
    pub fn start(&mut self, step: &Arc<Step>) {
        if let Some(sampler) = &mut self.sampler {
            sampler.start(step);
        }
        self.copy_blocks(step);
        let new = if step.chunks.is_empty() { None } else { self.compute(step) };
        self.device.end_step();
        self.under_way.push_back(Arc::clone(step));
        if let Some((plan, size)) = new
            && let (device, Some(graphs), mut work) = self.forward(&plan)
        {
            graphs.record(device, &plan, size, &mut work);
        }
    }

    /// Waits for the oldest step under way; the output comes from tensor rank 0 of the last stage, from the others
    /// nothing.
    ///
    /// # Errors
    /// A fault of the device or of a group: this rank is lost.
    ///
    /// # Panics
    /// No step is under way.
    pub fn finish(&mut self) -> Result<Option<StepOutput>, DeviceError> {
        let step = self.under_way.pop_front().expect("a step is started before it is finished");
        let rows = self.device.collect()?;
        let Some(sampler) = &mut self.sampler else { return Ok(None) };
        let sampled = sampler.take(&step, rows);
        sampler.finish(&step);
        let reports = self.place.tensor_rank == 0;
        Ok(reports.then_some(StepOutput { number: step.number, sampled }))
    }

    /// Ends the waits of the ranks around this one, which is lost.
    pub fn release_others(&self, cause: &str) {
        self.device.abort(cause);
    }

    /// Waits until nothing runs any more that this rank has started, whatever became of it: what uses its memory, and its
    /// peers'.
    pub(crate) fn wait_idle(&self) {
        self.device.wait_idle();
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

    /// Starts the forward pass, and on ranks that sample sampling. A step that could be recorded comes back.
    fn compute(&mut self, step: &Step) -> Option<(Plan, Size)> {
        let limits = self.options.limits;
        let size = self.graphs.as_ref().and_then(|graphs| graphs.size_of(step));
        let ids = if self.place.is_first_stage() { self.token_ids(step) } else { Vec::new() };
        let KvCacheSpec { block_size, num_blocks, .. } = self.options.kv_cache;
        let mut layout = layout(&step.chunks, ids, block_size);
        let samples = layout.sample_rows.len();
        if let Some(size) = size {
            fill_up(&mut layout, size.rows, num_blocks);
        }
        assert!(
            layout.tokens() <= limits.max_tokens,
            "a step computes no more tokens than there is room for"
        );
        assert!(samples <= limits.max_samples, "a step samples no more rows than there is room for");
        let plan = self.device.plan(layout, self.model.shards().heads);
        let (device, graphs, mut work) = self.forward(&plan);
        let replayed = match (graphs, size) {
            (Some(graphs), Some(size)) => graphs.replay(device, &plan, size),
            _ => false,
        };
        if !replayed {
            work();
        }
        drop(work);
        if let Some(sampler) = self.sampler.as_mut().filter(|_| 0 < samples) {
            let rows = sampler.rows(step);
            let first = first_place(step.number, limits);
            let tokens = self.sampled.view_mut().slice_rows(first..first + samples);
            let logits = self.model.logits(samples);
            self.device.sample(logits, self.options.vocab_size, &rows, tokens);
            sampler.give_back(step, rows);
        }
        size.filter(|_| !replayed).map(|size| (plan, size))
    }

    /// The forward pass of `plan`, to be carried out or recorded, with the device and the graphs it may be recorded in.
    fn forward<'a>(
        &'a mut self,
        plan: &'a Plan,
    ) -> (&'a Device, Option<&'a mut Graphs>, impl FnMut() + use<'a>) {
        let Self { device, model, kv, ids, sampled, place, graphs, .. } = self;
        let (device, place, tokens) = (&*device, *place, plan.layout.tokens());
        let work = move || {
            if place.is_first_stage() {
                device.token_ids(ids.view_mut().slice_rows(0..tokens), plan, sampled.view());
            }
            let cx = Forward { device, plan, ids: ids.view().slice_rows(0..tokens) };
            let _logits = model.forward(&cx, kv);
        };
        (device, graphs.as_mut(), work)
    }

    /// The ids of the step's tokens, as [`phalanx_device::BatchLayout::ids`] wants them.
    fn token_ids(&self, step: &Step) -> Vec<i32> {
        let mut ids = Vec::with_capacity(step.chunks.len());
        for chunk in &step.chunks {
            match &chunk.tokens {
                ChunkTokens::Given(tokens) => ids.extend(tokens.iter().map(|token| number(*token as usize))),
                ChunkTokens::LastSampled => ids.push(-1 - number(self.last_sampled(step, chunk.sequence))),
            }
        }
        ids
    }

    /// Where in `sampled` the token stands that a sequence sampled last.
    fn last_sampled(&self, step: &Step, sequence: SequenceId) -> usize {
        let sampler = self.sampler.as_ref().expect("a rank that does not sample is given its tokens");
        let at = sampler.last_sampled(sequence);
        assert!(step.number < at.step + KEPT_STEPS as u64, "a token older than the last step's is given");
        first_place(at.step, self.options.limits) + at.row
    }
}

/// Where in `sampled` a step's tokens begin.
fn first_place(step: u64, limits: Limits) -> usize {
    (step % KEPT_STEPS as u64) as usize * limits.max_samples
}
