//! Sampling on the device: rows' parameters there in one copy, tokens back in one copy, collected when a step is done.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::DeviceError;
use crate::cpu::philox;
use crate::cuda::kernels::{self, Launch, SampleParams, SampleResult};
use crate::cuda::rooms::Rooms;
use crate::cuda::runtime::{self, Event, Pinned, Stream};
use crate::growth::Growth;
use crate::sampling::{SampleRow, SampledRow};
use crate::tensor::{Allocation, View};

/// Likeliest tokens that a row can return.
const MAX_TOP: usize = 128;
/// 2^40: the likeliest token's weight in the kernel's fixed point.
const ONE: f64 = (1_u64 << 40) as f64;
const FIRST_WORDS: usize = 1 << 18;
/// Steps that are usually under way at once at most: one a stage, or two.
const UNDER_WAY: usize = 8;
const ROW_WORDS: usize = size_of::<kernels::SampleRow>() / 4;
const RESULT_WORDS: usize = size_of::<SampleResult>() / 4;

/// Where a call's arrays lie, in words: rows, edits, seen (copied there), originals, then results and tops (copied back).
#[derive(Clone, Copy, Debug, Default)]
struct Offsets {
    edits: usize,
    seen: usize,
    originals: usize,
    results: usize,
    tops: usize,
    end: usize,
}

/// The sampling of the step at hand, and of those that have ended.
#[derive(Debug)]
pub(crate) struct Sampler {
    ordinal: usize,
    growth: Arc<Growth>,
    now: Sampling,
    /// Oldest first.
    ended: VecDeque<Sampling>,
    /// Collected: their memory is used again, so there are only ever as many as steps were under way at once.
    free: Vec<Sampling>,
}

impl Sampler {
    pub(crate) fn new(ordinal: usize, growth: &Arc<Growth>) -> Result<Self, DeviceError> {
        let new = || Sampling::new(ordinal, growth);
        let free = (0..UNDER_WAY).map(|_| new()).collect::<Result<_, _>>()?;
        Ok(Self { ordinal, growth: Arc::clone(growth), now: new()?, ended: VecDeque::new(), free })
    }

    /// Where the step at hand samples.
    pub(crate) fn now(&mut self) -> &mut Sampling {
        &mut self.now
    }

    /// Ends the step at hand.
    pub(crate) fn end_step(&mut self, stream: &Stream) -> Result<(), DeviceError> {
        let next = match self.free.pop() {
            Some(next) => next,
            None => Sampling::new(self.ordinal, &self.growth)?,
        };
        let ended = std::mem::replace(&mut self.now, next);
        let recorded = ended.done.record(stream);
        self.ended.push_back(ended);
        recorded
    }

    /// The oldest ended step's results are there.
    pub(crate) fn is_done(&self) -> bool {
        self.ended.front().is_some_and(|oldest| oldest.done.is_done())
    }

    /// Waits for the oldest ended step, and returns what it chose.
    pub(crate) fn collect(&mut self, stream: &Stream) -> Result<Vec<SampledRow>, DeviceError> {
        if self.ended.is_empty() {
            self.end_step(stream)?;
        }
        let mut oldest = self.ended.pop_front().expect("one has ended");
        oldest.done.wait()?;
        let rows = oldest.take();
        self.free.push(oldest);
        Ok(rows)
    }
}

/// One step's memory of sampling, and what it asked.
#[derive(Debug)]
pub(crate) struct Sampling {
    rooms: Rooms,
    pinned: Pinned,
    device: Allocation,
    offsets: Offsets,
    /// Each row's count of likeliest tokens, when its log probability was asked for.
    logprobs: Vec<Option<usize>>,
    max_top: usize,
    /// Results are on their way to pinned memory.
    pending: bool,
    /// The step is done.
    done: Event,
}

impl Sampling {
    fn new(ordinal: usize, growth: &Arc<Growth>) -> Result<Self, DeviceError> {
        let rooms = Rooms::new(ordinal, "sampling", growth);
        Ok(Self {
            pinned: rooms.pinned(FIRST_WORDS * 4)?,
            device: rooms.device(FIRST_WORDS * 4)?,
            rooms,
            offsets: Offsets::default(),
            logprobs: Vec::new(),
            max_top: 0,
            pending: false,
            done: Event::new(false)?,
        })
    }

    /// Starts sampling, of which the ids go to `tokens`, too; the results are in pinned memory once the stream got there.
    pub(crate) fn sample(
        &mut self,
        logits: View<'_>,
        vocab: usize,
        rows: &[SampleRow],
        tokens: View<'_>,
        (launch, stream): (Launch, &Stream),
    ) -> Result<(), DeviceError> {
        let num_edits = rows.iter().map(|row| row.edits.len()).sum();
        let num_seen = rows.iter().map(|row| row.seen.len()).sum();
        self.logprobs =
            rows.iter().map(|row| row.logprobs.map(|count| (count as usize).min(MAX_TOP))).collect();
        self.max_top = self.logprobs.iter().flatten().copied().max().unwrap_or(0);
        self.place(rows.len(), num_edits, num_seen, stream)?;
        self.encode(rows);
        let Offsets { edits, seen, originals, results, tops, end } = self.offsets;
        let (device, pinned) = (self.device.address(), self.pinned.address());
        stream.copy_to_device(device, pinned as *const u8, originals * 4)?;
        let params = SampleParams {
            logits: logits.address(),
            rows: device,
            edits: device + edits * 4,
            seen: device + seen * 4,
            originals: device + originals * 4,
            results: device + results * 4,
            tops: device + tops * 4,
            tokens: tokens.address(),
            count: rows.len() as u32,
            stride: logits.stride() as u32,
            vocab: vocab as u32,
            max_top: self.max_top as u32,
            num_edits: num_edits as u32,
            padding: 0,
        };
        // SAFETY: see `kernels`; `place` made room for every array.
        runtime::check(unsafe { kernels::launch_sample(params, launch) }, "sample")?;
        stream.copy_to_host((pinned + results * 4) as *mut u8, device + results * 4, (end - results) * 4)
    }

    /// What the last call chose, once; the stream must have got there.
    fn take(&mut self) -> Vec<SampledRow> {
        self.pending = false;
        let (offsets, max_top) = (self.offsets, self.max_top);
        let words = self.pinned.words();
        let asked = std::mem::take(&mut self.logprobs);
        let row = |(index, asked): (usize, Option<usize>)| {
            let result = &words[offsets.results + index * RESULT_WORDS..][..RESULT_WORDS];
            let tops = &words[offsets.tops + index * max_top * 2..];
            decode(result, tops, asked)
        };
        asked.into_iter().enumerate().map(row).collect()
    }

    /// Lays the arrays out, in larger memory if need be.
    fn place(&mut self, rows: usize, edits: usize, seen: usize, stream: &Stream) -> Result<(), DeviceError> {
        let mut end = 0;
        let mut next = |words: usize| {
            let start = end;
            end = (start + words).next_multiple_of(4);
            start
        };
        next(rows * ROW_WORDS);
        let edits_at = next(edits * 2);
        let seen_at = next(seen * 2);
        let originals = next(edits + seen);
        let results = next(rows * RESULT_WORDS);
        let tops = next(rows * self.max_top * 2);
        let end = next(0);
        self.offsets = Offsets { edits: edits_at, seen: seen_at, originals, results, tops, end };
        if self.pending {
            // Its results were never taken; they are still being copied to this memory.
            stream.synchronize()?;
        }
        self.pending = true;
        self.rooms.grow_pinned(&mut self.pinned, end * 4)?;
        self.rooms.grow_device(&mut self.device, end * 4)
    }

    /// Writes rows, edits and seen tokens as the kernel reads them.
    fn encode(&mut self, rows: &[SampleRow]) {
        let Offsets { edits, seen, .. } = self.offsets;
        let words = self.pinned.words();
        let (mut first_edit, mut first_seen) = (0, 0);
        for (index, row) in rows.iter().enumerate() {
            let uniform = philox::uniform(row.seed, row.position).to_bits();
            let to = &mut words[index * ROW_WORDS..][..ROW_WORDS];
            to.copy_from_slice(&[
                uniform as i32,
                (uniform >> 32) as i32,
                bits(row.temperature),
                bits(row.top_p),
                bits(row.min_p),
                bits(row.repetition_penalty),
                bits(row.presence_penalty),
                bits(row.frequency_penalty),
                row.top_k.cast_signed(),
                row.logprobs.map_or(-1, u32::cast_signed),
                first_edit as i32,
                row.edits.len() as i32,
                first_seen as i32,
                row.seen.len() as i32,
            ]);
            for (to, (token, added)) in words[edits + first_edit * 2..].chunks_exact_mut(2).zip(&row.edits) {
                to.copy_from_slice(&[token.cast_signed(), bits(*added)]);
            }
            for (to, token) in words[seen + first_seen * 2..].chunks_exact_mut(2).zip(&row.seen) {
                to.copy_from_slice(&[token.token.cast_signed(), token.output_count.cast_signed()]);
            }
            first_edit += row.edits.len();
            first_seen += row.seen.len();
        }
    }
}

fn bits(x: f32) -> i32 {
    x.to_bits().cast_signed()
}

fn float(word: i32) -> f32 {
    f32::from_bits(word.cast_unsigned())
}

/// A row's result: `[token, finite, logit, largest, mass, mass]`, and its likeliest tokens.
fn decode(result: &[i32], tops: &[i32], asked: Option<usize>) -> SampledRow {
    let finite = result[1] != 0;
    let Some(count) = asked.filter(|_| finite) else {
        return SampledRow { token: result[0].cast_unsigned(), finite, logprob: 0.0, top: Vec::new() };
    };
    let mass = u64::from(result[5].cast_unsigned()) << 32 | u64::from(result[4].cast_unsigned());
    let normalizer = f64::from(float(result[3])) + (mass as f64 / ONE).ln();
    let logprob = |logit: f32| (f64::from(logit) - normalizer) as f32;
    let top = tops.chunks_exact(2).take(count);
    SampledRow {
        token: result[0].cast_unsigned(),
        finite,
        logprob: logprob(float(result[2])),
        top: top.map(|pair| (pair[0].cast_unsigned(), logprob(float(pair[1])))).collect(),
    }
}
