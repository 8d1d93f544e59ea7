//! What sampling must know of each sequence, on the ranks that sample.

use std::collections::HashMap;
use std::sync::Arc;

use phalanx_device::sampling::SeenToken;
use phalanx_device::{SampleRow, SampledRow};
use phalanx_scheduler::step::{
    Chunk, Sampled, SampledToken, SamplingParams, SequenceFault, SequenceId, Started, Step, TokenId,
    TokenLogprobs,
};

/// The sampling state of every sequence that is not finished.
#[derive(Debug, Default)]
pub(crate) struct Sampler {
    sequences: HashMap<SequenceId, SequenceState>,
}

#[derive(Debug)]
struct SequenceState {
    params: Arc<SamplingParams>,
    prompt_len: usize,
    /// How many tokens it has sampled, those of steps under way included.
    num_sampled: usize,
    /// How many of them are under way: the host does not know them yet.
    under_way: usize,
    /// Which step sampled last, and in which of its rows.
    last: Option<SampledAt>,
    /// Only kept when a penalty is on; knows no token that is under way.
    seen: Option<Seen>,
    /// What is added to logits now: the bias, then the tokens that are suppressed until enough are sampled.
    edits: Vec<(TokenId, f32)>,
}

/// Where a token was sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SampledAt {
    /// The step's number.
    pub(crate) step: u64,
    /// Which of the rows it sampled.
    pub(crate) row: usize,
}

/// The tokens that occurred in a sequence, each once, in the order of their first occurrence.
#[derive(Debug, Default)]
struct Seen {
    tokens: Vec<SeenToken>,
    places: HashMap<TokenId, usize>,
}

impl Seen {
    fn add(&mut self, token: TokenId, output_count: u32) {
        let place = *self.places.entry(token).or_insert_with(|| {
            self.tokens.push(SeenToken { token, output_count: 0 });
            self.tokens.len() - 1
        });
        self.tokens[place].output_count += output_count;
    }
}

impl SequenceState {
    fn new(started: &Started) -> Self {
        let params = &started.sampling;
        let penalised = params.repetition_penalty != 1.0
            || params.presence_penalty != 0.0
            || params.frequency_penalty != 0.0;
        let seen = penalised.then(|| {
            let mut seen = Seen::default();
            for token in started.prompt.iter() {
                seen.add(*token, 0);
            }
            seen
        });
        let suppressed = params.suppressed_until_min.iter().map(|token| (*token, f32::NEG_INFINITY));
        Self {
            params: Arc::clone(params),
            prompt_len: started.prompt.len(),
            num_sampled: 0,
            under_way: 0,
            last: None,
            seen,
            edits: params.logit_bias.iter().copied().chain(suppressed).collect(),
        }
    }

    /// Lends its lists to the row: they are as long as the context, and copying them each step would show.
    fn row(&mut self, at: SampledAt) -> SampleRow {
        let params = &*self.params;
        if params.min_tokens <= self.num_sampled {
            self.edits.truncate(params.logit_bias.len());
        }
        let position = self.num_sampled as u64;
        self.num_sampled += 1;
        self.under_way += 1;
        self.last = Some(at);
        SampleRow {
            temperature: params.temperature,
            top_k: params.top_k,
            top_p: params.top_p,
            min_p: params.min_p,
            repetition_penalty: params.repetition_penalty,
            presence_penalty: params.presence_penalty,
            frequency_penalty: params.frequency_penalty,
            seen: self.seen.as_mut().map_or_else(Vec::new, |seen| std::mem::take(&mut seen.tokens)),
            edits: std::mem::take(&mut self.edits),
            seed: params.seed,
            position,
            logprobs: params.logprobs,
        }
    }

    /// Takes back what [`Self::row`] lent.
    fn give_back(&mut self, row: SampleRow) {
        if let Some(seen) = &mut self.seen {
            seen.tokens = row.seen;
        }
        self.edits = row.edits;
    }

    fn take(&mut self, row: SampledRow) -> Result<SampledToken, SequenceFault> {
        self.under_way -= 1;
        if !row.finite {
            return Err(SequenceFault::NonFiniteLogits);
        }
        if let Some(seen) = &mut self.seen {
            seen.add(row.token, 1);
        }
        let logprobs = self.params.logprobs.map(|_| TokenLogprobs { chosen: row.logprob, top: row.top });
        Ok(SampledToken { token: row.token, logprobs })
    }
}

impl Sampler {
    /// Hears of the step's new sequences.
    pub(crate) fn start(&mut self, step: &Step) {
        for started in &step.started {
            self.sequences.insert(started.sequence, SequenceState::new(started));
        }
    }

    /// A row of the step needs to know a token that is under way: penalties count what was sampled.
    pub(crate) fn lacks_tokens(&self, step: &Step) -> bool {
        sampling_chunks(step)
            .filter_map(|chunk| self.sequences.get(&chunk.sequence))
            .any(|state| state.seen.is_some() && 0 < state.under_way)
    }

    /// A row for each of the step's chunks that samples, on loan: [`Self::give_back`] wants them at once. From now on
    /// their tokens are under way.
    pub(crate) fn rows(&mut self, step: &Step) -> Vec<SampleRow> {
        sampling_chunks(step)
            .enumerate()
            .map(|(row, chunk)| {
                let state = self.state_mut(chunk.sequence);
                assert!(
                    chunk.start + chunk.len() == state.prompt_len + state.num_sampled,
                    "a sequence samples behind the last of its tokens"
                );
                state.row(SampledAt { step: step.number, row })
            })
            .collect()
    }

    /// Takes the step's rows back.
    pub(crate) fn give_back(&mut self, step: &Step, rows: Vec<SampleRow>) {
        for (chunk, row) in sampling_chunks(step).zip(rows) {
            self.state_mut(chunk.sequence).give_back(row);
        }
    }

    /// Takes in what came of the rows of the oldest step under way.
    pub(crate) fn take(&mut self, step: &Step, rows: Vec<SampledRow>) -> Vec<Sampled> {
        assert!(rows.len() == sampling_chunks(step).count(), "a result for each sampled row");
        let take = |(chunk, row): (&Chunk, SampledRow)| Sampled {
            sequence: chunk.sequence,
            outcome: self.state_mut(chunk.sequence).take(row),
        };
        sampling_chunks(step).zip(rows).map(take).collect()
    }

    /// Forgets the step's finished sequences. Some may never have started.
    pub(crate) fn finish(&mut self, step: &Step) {
        for sequence in &step.finished {
            self.sequences.remove(sequence);
        }
    }

    /// Where a sequence sampled last.
    pub(crate) fn last_sampled(&self, sequence: SequenceId) -> SampledAt {
        let state = self.sequences.get(&sequence).expect("a sequence starts before it computes");
        state.last.expect("a sequence that goes on from its last token has sampled one")
    }

    fn state_mut(&mut self, sequence: SequenceId) -> &mut SequenceState {
        self.sequences.get_mut(&sequence).expect("a sequence starts before it computes")
    }
}

fn sampling_chunks(step: &Step) -> impl Iterator<Item = &Chunk> {
    step.chunks.iter().filter(|chunk| chunk.sample)
}

#[cfg(test)]
mod tests {
    use phalanx_scheduler::step::{BlockId, ChunkTokens};

    use super::*;

    const SEQUENCE: SequenceId = SequenceId(3);

    /// A step whose one chunk samples behind `len` tokens.
    fn step(len: usize, started: Vec<Started>) -> Step {
        let tokens = ChunkTokens::Given(vec![0; len]);
        let chunk = Chunk { sequence: SEQUENCE, start: 0, tokens, blocks: vec![BlockId(0)], sample: true };
        Step { started, chunks: vec![chunk], ..Step::default() }
    }

    fn started(sampling: SamplingParams) -> Vec<Started> {
        vec![Started { sequence: SEQUENCE, prompt: [5, 6, 5].into(), sampling: Arc::new(sampling) }]
    }

    fn sampled(token: u32, finite: bool) -> SampledRow {
        SampledRow { token, finite, logprob: -1.5, top: vec![(token, -1.5)] }
    }

    /// The only row of a step, lent and given back.
    fn row(sampler: &mut Sampler, step: &Step) -> SampleRow {
        let rows = sampler.rows(step);
        let row = rows[0].clone();
        sampler.give_back(step, rows);
        row
    }

    fn seen(row: &SampleRow) -> Vec<(u32, u32)> {
        row.seen.iter().map(|seen| (seen.token, seen.output_count)).collect()
    }

    #[test]
    fn penalties_count_prompt_and_output() {
        let mut sampler = Sampler::default();
        let first = step(3, started(SamplingParams { presence_penalty: 0.5, ..SamplingParams::default() }));
        sampler.start(&first);
        assert_eq!(seen(&row(&mut sampler, &first)), [(5, 0), (6, 0)]);
        sampler.take(&first, vec![sampled(6, true)]);
        let second = step(4, Vec::new());
        assert_eq!(seen(&row(&mut sampler, &second)), [(5, 0), (6, 1)]);
        sampler.take(&second, vec![sampled(9, true)]);
        let third = step(5, Vec::new());
        assert!(!sampler.lacks_tokens(&third));
        let row = row(&mut sampler, &third);
        assert_eq!((seen(&row), row.position), (vec![(5, 0), (6, 1), (9, 1)], 2));
        assert!(sampler.lacks_tokens(&step(6, Vec::new())), "the third token is under way, and counts");
    }

    #[test]
    fn without_penalties_steps_need_not_wait() {
        let mut sampler = Sampler::default();
        let first = step(3, started(SamplingParams { min_tokens: 1, ..SamplingParams::default() }));
        sampler.start(&first);
        let mut second = step(4, Vec::new());
        second.number = 1;
        let positions = [&first, &second].map(|step| row(&mut sampler, step).position);
        assert_eq!(positions, [0, 1], "the first token is under way, and has its place");
        assert!(!sampler.lacks_tokens(&step(5, Vec::new())));
        assert_eq!(sampler.last_sampled(SEQUENCE), SampledAt { step: 1, row: 0 });
        for (step, token) in [(&first, 6), (&second, 9)] {
            let taken = sampler.take(step, vec![sampled(token, true)]).remove(0).outcome.unwrap();
            assert_eq!(taken.token, token);
        }
    }

    #[test]
    fn without_penalties_nothing_is_counted() {
        let mut sampler = Sampler::default();
        let first = step(3, started(SamplingParams::default()));
        sampler.start(&first);
        assert_eq!(seen(&row(&mut sampler, &first)), []);
    }

    #[test]
    fn end_tokens_are_suppressed_until_enough_tokens_are_out() {
        let sampling = SamplingParams {
            logit_bias: vec![(1, 2.0)],
            suppressed_until_min: vec![7],
            min_tokens: 1,
            ..SamplingParams::default()
        };
        let mut sampler = Sampler::default();
        let first = step(3, started(sampling));
        sampler.start(&first);
        assert_eq!(row(&mut sampler, &first).edits, [(1, 2.0), (7, f32::NEG_INFINITY)]);
        sampler.take(&first, vec![sampled(2, true)]);
        assert_eq!(row(&mut sampler, &step(4, Vec::new())).edits, [(1, 2.0)]);
    }

    #[test]
    fn a_fault_is_one_sequences_and_logprobs_come_when_asked_for() {
        let mut sampler = Sampler::default();
        let first = step(3, started(SamplingParams { logprobs: Some(1), ..SamplingParams::default() }));
        sampler.start(&first);
        row(&mut sampler, &first);
        row(&mut sampler, &step(4, Vec::new()));
        let outcome = |sampler: &mut Sampler, row| sampler.take(&first, vec![row]).remove(0).outcome;
        let logprobs = Some(TokenLogprobs { chosen: -1.5, top: vec![(2, -1.5)] });
        assert_eq!(outcome(&mut sampler, sampled(2, true)), Ok(SampledToken { token: 2, logprobs }));
        assert_eq!(outcome(&mut sampler, sampled(2, false)), Err(SequenceFault::NonFiniteLogits));
        sampler.finish(&Step { finished: vec![SEQUENCE, SequenceId(99)], ..Step::default() });
        assert!(sampler.sequences.is_empty());
    }
}
