//! One growing list of tokens, how far it is computed, and where all of them are kept.

use std::collections::HashMap;
use std::ops::{Index, IndexMut};
use std::sync::Arc;

use crate::prefix::{BlockHash, HashChain};
use crate::step::{BlockId, SamplingParams, SequenceId, TokenId};

/// Who goes first: the lower priority value, then the earlier arrival. No two sequences have the same rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    pub(crate) priority: i32,
    pub(crate) arrival: u64,
}

/// A sequence from its submission to its end.
pub(crate) struct Sequence {
    pub(crate) id: SequenceId,
    pub(crate) rank: Rank,
    /// All sequences of its submission, itself included: they share a prompt.
    pub(crate) family: Arc<[SequenceId]>,
    pub(crate) prompt: Arc<[TokenId]>,
    pub(crate) sampling: Arc<SamplingParams>,
    pub(crate) stop_token_ids: Arc<[TokenId]>,
    /// It ends when it has this many tokens, prompt included.
    pub(crate) max_len: usize,
    /// The tokens that came back from steps; the prompt and these are all that is known.
    pub(crate) output: Vec<TokenId>,
    /// How many positions have keys and values when the next step begins: steps in flight count as done,
    /// because every rank applies steps in order.
    pub(crate) computed: usize,
    /// How many of them another sequence may read: not those that the step in the making computes or copies.
    pub(crate) readable: usize,
    /// How many sampled tokens are in flight: they follow `output`, and only the worker knows them.
    pub(crate) pending: usize,
    /// The block table; empty while it waits.
    pub(crate) blocks: Vec<BlockId>,
    /// Where its chain of block hashes starts.
    pub(crate) root: BlockHash,
    /// The names of its full blocks, as far as anybody asked for them.
    pub(crate) hashes: Vec<BlockHash>,
    /// How many blocks of the table have been offered to the prefix index.
    pub(crate) registered: usize,
    /// The workers have heard of it.
    pub(crate) introduced: bool,
    /// Prompt tokens that had not to be computed when it first ran.
    pub(crate) cached_tokens: Option<usize>,
}

impl Sequence {
    /// How many tokens it could be given now. The one rule of pipelining: a sequence whose next token is in
    /// flight waits for it, unless `overlap` lets the worker feed that token back by itself.
    pub(crate) fn wanted(&self, overlap: bool) -> usize {
        if self.pending == 0 {
            self.known() - self.computed
        } else if overlap && self.known() + self.pending < self.max_len {
            1
        } else {
            // Its token is awaited, or the one in flight is its last.
            0
        }
    }

    /// How many of its tokens are known.
    pub(crate) fn known(&self) -> usize {
        self.prompt.len() + self.output.len()
    }

    /// The known tokens at positions `start .. end`.
    pub(crate) fn tokens(&self, start: usize, end: usize) -> impl Iterator<Item = TokenId> {
        let prompt_len = self.prompt.len();
        let prompt = &self.prompt[start.min(prompt_len)..end.min(prompt_len)];
        let output = &self.output[start.saturating_sub(prompt_len)..end.saturating_sub(prompt_len)];
        prompt.iter().chain(output).copied()
    }

    /// Names the first `count` blocks; their tokens must be known.
    pub(crate) fn name_blocks(&mut self, count: usize, block_size: usize, chain: &mut HashChain) {
        while self.hashes.len() < count {
            let start = self.hashes.len() * block_size;
            let parent = self.hashes.last().copied().unwrap_or(self.root);
            self.hashes.push(chain.next(parent, self.tokens(start, start + block_size)));
        }
    }
}

/// A sequence's place among [`Sequences`]. Places are used again: one kept for later needs its id beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Handle(u32);

/// Every living sequence.
#[derive(Default)]
pub(crate) struct Sequences {
    places: Vec<Option<Box<Sequence>>>,
    vacant: Vec<Handle>,
    by_id: HashMap<SequenceId, Handle>,
}

impl Sequences {
    pub(crate) fn insert(&mut self, sequence: Sequence) -> Handle {
        let id = sequence.id;
        let handle = self.vacant.pop().unwrap_or_else(|| {
            self.places.push(None);
            Handle(u32::try_from(self.places.len() - 1).expect("fewer than 2^32 sequences live at once"))
        });
        self.places[handle.0 as usize] = Some(Box::new(sequence));
        let twin = self.by_id.insert(id, handle);
        assert!(twin.is_none(), "sequence id {} is used twice", id.0);
        handle
    }

    pub(crate) fn remove(&mut self, handle: Handle) -> Sequence {
        let sequence = self.places[handle.0 as usize].take().expect("a handle in hand is a living sequence");
        self.by_id.remove(&sequence.id);
        self.vacant.push(handle);
        *sequence
    }

    pub(crate) fn find(&self, id: SequenceId) -> Option<Handle> {
        self.by_id.get(&id).copied()
    }

    /// Whether the sequence that had this place still has it.
    pub(crate) fn is_alive(&self, handle: Handle, id: SequenceId) -> bool {
        self.places[handle.0 as usize].as_ref().is_some_and(|sequence| sequence.id == id)
    }

    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }
}

impl Index<Handle> for Sequences {
    type Output = Sequence;

    fn index(&self, handle: Handle) -> &Sequence {
        self.places[handle.0 as usize].as_ref().expect("a handle in hand is a living sequence")
    }
}

impl IndexMut<Handle> for Sequences {
    fn index_mut(&mut self, handle: Handle) -> &mut Sequence {
        self.places[handle.0 as usize].as_mut().expect("a handle in hand is a living sequence")
    }
}
