//! Which engine has computed which beginnings of prompts: a bounded record, right often enough to route by.
//!
//! It is no mirror of the engines' caches and need not be: a beginning that it forgot is computed again, one that an
//! engine forgot is looked for in vain. It holds as many blocks of each engine as that engine's pool has, and drops the
//! least recently routed ones first, which is about what the pool does.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};

use phalanx_scheduler::step::TokenId;

/// The name of a full block and of everything before it, keyed at random: nobody can aim at a collision, and one would
/// cost a detour, not an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct BlockName(u64);

/// Names blocks. Long prompts take a while, so it stands beside the record that all submissions share.
#[derive(Clone, Debug)]
pub(crate) struct Namer {
    key: RandomState,
    block_size: usize,
}

impl Namer {
    pub(crate) fn new(block_size: usize) -> Self {
        assert!(0 < block_size, "a block has tokens");
        Self { key: RandomState::new(), block_size }
    }

    /// The names of the full blocks of `prompt`, first to last. Different salts share none.
    pub(crate) fn names(&self, prompt: &[TokenId], salt: Option<&str>) -> Vec<BlockName> {
        let mut name = self.key.hash_one(salt);
        let full = prompt.chunks_exact(self.block_size);
        full.map(|block| {
            name = self.key.hash_one((name, block));
            BlockName(name)
        })
        .collect()
    }

    /// The tokens of so many blocks.
    pub(crate) fn tokens(&self, blocks: usize) -> usize {
        blocks * self.block_size
    }
}

/// What the engines of one router are thought to hold.
#[derive(Debug)]
pub(crate) struct Known {
    engines: Vec<Blocks>,
}

/// One engine's blocks and when they were last routed to.
#[derive(Debug)]
struct Blocks {
    most: usize,
    used_at: HashMap<BlockName, u64>,
    /// Oldest first. An entry whose time is not the block's own any more says nothing.
    by_age: VecDeque<(u64, BlockName)>,
    clock: u64,
}

impl Known {
    /// `pools` says how many blocks each engine has; 0 for one without a prefix cache.
    pub(crate) fn new(pools: &[usize]) -> Self {
        Self { engines: pools.iter().map(|most| Blocks::new(*most)).collect() }
    }

    /// How many of a prompt's blocks `engine` need not compute.
    pub(crate) fn blocks(&self, engine: usize, names: &[BlockName]) -> usize {
        let used_at = &self.engines[engine].used_at;
        names.iter().take_while(|name| used_at.contains_key(*name)).count()
    }

    /// Notes that `engine` is about to have computed these blocks.
    pub(crate) fn note(&mut self, engine: usize, names: &[BlockName]) {
        self.engines[engine].note(names);
    }

    #[cfg(test)]
    fn len(&self, engine: usize) -> (usize, usize) {
        (self.engines[engine].used_at.len(), self.engines[engine].by_age.len())
    }
}

impl Blocks {
    fn new(most: usize) -> Self {
        Self { most, used_at: HashMap::new(), by_age: VecDeque::new(), clock: 0 }
    }

    fn note(&mut self, names: &[BlockName]) {
        // The last block is the oldest: a chain is worth nothing without its start.
        for name in names.iter().take(self.most).rev() {
            self.clock += 1;
            self.used_at.insert(*name, self.clock);
            self.by_age.push_back((self.clock, *name));
        }
        while self.most < self.used_at.len() {
            let (time, name) = self.by_age.pop_front().expect("every block has an entry");
            if self.used_at.get(&name) == Some(&time) {
                self.used_at.remove(&name);
            }
        }
        if 2 * self.used_at.len() + 16 < self.by_age.len() {
            let used_at = &self.used_at;
            self.by_age.retain(|(time, name)| used_at.get(name) == Some(time));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_known_beginning_counts() {
        let (namer, mut known) = (Namer::new(4), Known::new(&[100, 100]));
        let prompt: Vec<TokenId> = (0..18).collect();
        let names = namer.names(&prompt, None);
        assert_eq!(names.len(), 4, "the fifth block is not full");
        known.note(1, &names[..3]);
        assert_eq!((known.blocks(0, &names), known.blocks(1, &names)), (0, 3));
        let other = [&prompt[..7], &[99], &prompt[8..]].concat();
        assert_eq!(
            known.blocks(1, &namer.names(&other, None)),
            1,
            "blocks behind a difference are different"
        );
    }

    #[test]
    fn salts_share_nothing() {
        let (namer, mut known) = (Namer::new(2), Known::new(&[100]));
        let names = namer.names(&[1, 2, 3, 4], Some("mine"));
        known.note(0, &names);
        assert_eq!(known.blocks(0, &namer.names(&[1, 2, 3, 4], Some("mine"))), 2);
        for salt in [None, Some(""), Some("theirs")] {
            assert_eq!(known.blocks(0, &namer.names(&[1, 2, 3, 4], salt)), 0);
        }
    }

    #[test]
    fn it_holds_no_more_than_a_pool_and_drops_ends_before_beginnings() {
        let (namer, mut known) = (Namer::new(1), Known::new(&[8]));
        let names = |first: TokenId, len: usize| namer.names(&[vec![first], vec![7; len - 1]].concat(), None);
        let (a, b) = (names(1, 6), names(2, 5));
        known.note(0, &a);
        known.note(0, &b);
        assert_eq!((known.blocks(0, &a), known.blocks(0, &b)), (3, 5));
        // Longer than the pool: its beginning.
        let long = names(3, 20);
        known.note(0, &long);
        assert_eq!((known.blocks(0, &long), known.blocks(0, &a)), (8, 0));
        for turn in 0..1000 {
            known.note(0, if turn % 2 == 0 { &a } else { &b });
            let (blocks, entries) = known.len(0);
            assert!(blocks <= 8 && entries <= 40, "{blocks} blocks, {entries} entries");
        }
        let mut none = Known::new(&[0]);
        none.note(0, &a);
        assert_eq!(none.blocks(0, &a), 0);
    }
}
