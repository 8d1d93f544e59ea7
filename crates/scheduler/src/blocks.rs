//! The pool of KV blocks: who holds a block is counted, what a block holds is remembered after nobody does.
//!
//! A block is *used* while a block table refers to it, else *free*. A free block keeps its content, and its
//! name in the prefix index, until it is allocated anew. Free blocks wait in a list linked through the
//! blocks themselves, so that taking any of them out (a prefix hit) costs the same as taking the first.
//!
//! Blocks change hands at once, even while a step in flight still reads or writes them: every rank applies
//! steps in the order they were scheduled, so the next holder's first write comes after the last holder's
//! last access, and a reader of a shared block comes after its writer.

use std::collections::hash_map::Entry;

use crate::interface::Sabotage;
use crate::prefix::{BlockHash, PrefixIndex};
use crate::step::{BlockCopy, BlockId};

/// The end of the free list, in both directions.
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Block {
    /// How many block tables refer to it.
    refs: u32,
    /// The name under which the prefix index knows its content.
    name: Option<BlockHash>,
    /// Neighbours in the free list; meaningless while `refs` is positive.
    before: u32,
    after: u32,
}

/// Every block of one engine.
pub(crate) struct BlockPool {
    blocks: Vec<Block>,
    index: PrefixIndex,
    /// Allocated next: blocks without a name first, then the longest unused.
    first: u32,
    /// Allocated last: the block freed most recently.
    last: u32,
    free: usize,
    pub(crate) sabotage: Option<Sabotage>,
}

impl BlockPool {
    pub(crate) fn new(num_blocks: usize) -> Self {
        let empty = Block { refs: 0, name: None, before: NONE, after: NONE };
        let mut pool = Self {
            blocks: vec![empty; num_blocks],
            index: PrefixIndex::default(),
            first: NONE,
            last: NONE,
            free: 0,
            sabotage: None,
        };
        for block in 0..u32::try_from(num_blocks).expect("block ids are 32 bits wide") {
            pool.link_last(block);
        }
        pool
    }

    /// How many blocks nobody holds, cached content or not.
    pub(crate) fn free(&self) -> usize {
        self.free
    }

    pub(crate) fn used(&self) -> usize {
        self.blocks.len() - self.free
    }

    pub(crate) fn total(&self) -> usize {
        self.blocks.len()
    }

    /// How many blocks the prefix index knows, used or free.
    pub(crate) fn cached(&self) -> usize {
        self.index.len()
    }

    /// Takes the free block whose content is worth least; that content is forgotten.
    pub(crate) fn allocate(&mut self) -> Option<BlockId> {
        if self.first == NONE {
            return None;
        }
        let block = BlockId(self.first);
        self.unlink(block.0);
        if self.sabotage != Some(Sabotage::StaleName) {
            self.forget(block);
        }
        self.entry(block).refs = 1;
        Some(block)
    }

    /// One more block table refers to `block`.
    pub(crate) fn share(&mut self, block: BlockId) {
        if self.refs(block) == 0 {
            self.unlink(block.0);
        } else if self.sabotage == Some(Sabotage::UncountedHolder) {
            return;
        }
        self.entry(block).refs += 1;
    }

    /// One block table less refers to `block`.
    pub(crate) fn release(&mut self, block: BlockId) {
        let entry = self.entry(block);
        assert!(0 < entry.refs, "block {} is released by more tables than hold it", block.0);
        entry.refs -= 1;
        if entry.refs == 0 {
            match entry.name {
                Some(_) => self.link_last(block.0),
                None => self.link_first(block.0),
            }
        }
    }

    pub(crate) fn refs(&self, block: BlockId) -> u32 {
        self.blocks[block.0 as usize].refs
    }

    /// Copy on write: what stands at `place` in a block table is about to change, so it must be nobody
    /// else's. A shared block is replaced by a new one and the copy to make is returned; a block of one's
    /// own only loses its name until it is full again. The caller has made sure that a block is free.
    pub(crate) fn make_writable(&mut self, place: &mut BlockId) -> Option<BlockCopy> {
        let from = *place;
        if self.refs(from) == 1 || self.sabotage == Some(Sabotage::NoCopyOnWrite) {
            self.forget(from);
            return None;
        }
        let to = self.allocate().expect("the caller counted the block that a copy needs");
        self.release(from);
        *place = to;
        Some(BlockCopy { from, to })
    }

    /// From now on a sequence that starts as `name` says may use `block`. When two blocks hold the same,
    /// the first keeps the name: its holders are older, so its content has been asked for more often.
    pub(crate) fn register(&mut self, block: BlockId, name: BlockHash) {
        if let Entry::Vacant(vacant) = self.index.entry(name) {
            vacant.insert(block);
            self.entry(block).name = Some(name);
        }
    }

    pub(crate) fn find(&self, name: &BlockHash) -> Option<BlockId> {
        self.index.get(name).copied()
    }

    /// The name of `block`'s content in the prefix index.
    pub(crate) fn name(&self, block: BlockId) -> Option<BlockHash> {
        self.blocks[block.0 as usize].name
    }

    fn forget(&mut self, block: BlockId) {
        if let Some(name) = self.entry(block).name.take() {
            self.index.remove(&name);
        }
    }

    fn entry(&mut self, block: BlockId) -> &mut Block {
        &mut self.blocks[block.0 as usize]
    }

    fn link_last(&mut self, block: u32) {
        let before = self.last;
        self.blocks[block as usize].before = before;
        self.blocks[block as usize].after = NONE;
        match before {
            NONE => self.first = block,
            _ => self.blocks[before as usize].after = block,
        }
        self.last = block;
        self.free += 1;
    }

    fn link_first(&mut self, block: u32) {
        let after = self.first;
        self.blocks[block as usize].before = NONE;
        self.blocks[block as usize].after = after;
        match after {
            NONE => self.last = block,
            _ => self.blocks[after as usize].before = block,
        }
        self.first = block;
        self.free += 1;
    }

    fn unlink(&mut self, block: u32) {
        let Block { before, after, .. } = self.blocks[block as usize];
        match before {
            NONE => self.first = after,
            _ => self.blocks[before as usize].after = after,
        }
        match after {
            NONE => self.last = before,
            _ => self.blocks[after as usize].before = before,
        }
        self.free -= 1;
    }

    /// Verifies the books against `held`, how many block tables really refer to each block.
    pub(crate) fn check(&self, held: &[u32]) {
        for (id, (block, held)) in self.blocks.iter().zip(held).enumerate() {
            assert!(block.refs == *held, "block {id} counts {} holders and has {held}", block.refs);
            if let Some(name) = &block.name {
                let found = self.find(name).map(|block| block.0 as usize);
                assert!(found == Some(id), "block {id} has a name by which the index finds {found:?}");
            }
        }
        let named = self.blocks.iter().filter(|block| block.name.is_some()).count();
        assert!(named == self.index.len(), "{named} blocks have names, the index knows {}", self.index.len());
        let (mut at, mut before, mut linked) = (self.first, NONE, 0);
        while at != NONE {
            let block = &self.blocks[at as usize];
            assert!(block.refs == 0, "block {at} is in the free list and has {} holders", block.refs);
            assert!(block.before == before, "the free list is torn before block {at}");
            linked += 1;
            assert!(linked <= self.blocks.len(), "the free list runs in a circle");
            (before, at) = (at, block.after);
        }
        assert!(before == self.last, "the free list does not end at its last block");
        assert!(linked == self.free, "{linked} blocks are in the free list, {} are counted", self.free);
        let unheld = held.iter().filter(|&&held| held == 0).count();
        assert!(unheld == self.free, "{unheld} blocks are held by nobody, {} are free", self.free);
    }
}
