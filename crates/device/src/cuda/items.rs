//! Cuts a step's attention into work items of about equal cost, for blocks of the attention kernel to take.

use crate::backend::Heads;
use crate::batch::BatchLayout;

/// Keys a block takes at a time; ranges of keys begin at multiples of it.
pub(crate) const TILE_KEYS: usize = 64;
/// Packed query rows of a tile when a sequence has many of them.
pub(crate) const MANY_ROWS: usize = 128;
/// A sequence with at most this many packed rows (one token's group, mostly) is a tile of its own.
pub(crate) const FEW_ROWS: usize = 16;
/// Blocks of the kernel that run on a multiprocessor at once.
const BLOCKS_PER_MULTIPROCESSOR: usize = 2;

/// Some packed query rows of one sequence against a range of its keys; the twin is in cuda/common/attention.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) sequence: i32,
    pub(crate) first_row: i32,
    pub(crate) num_rows: i32,
    pub(crate) first_key: i32,
    pub(crate) end_key: i32,
    pub(crate) split: i32,
    pub(crate) num_splits: i32,
    pub(crate) partial_row: i32,
    pub(crate) counter: i32,
    pub(crate) first_token: i32,
    pub(crate) computed: i32,
}
/// Words of an item.
pub(crate) const ITEM_WORDS: usize = 11;
const _: () = assert!(size_of::<Item>() == ITEM_WORDS * 4);

impl Item {
    /// As words, in the order of the twin's fields: in the place of the sequence stands where its block table begins.
    pub(crate) fn words(&self, tables: &[i32]) -> [i32; ITEM_WORDS] {
        [
            tables[self.sequence as usize],
            self.first_row,
            self.num_rows,
            self.first_key,
            self.end_key,
            self.split,
            self.num_splits,
            self.partial_row,
            self.counter,
            self.first_token,
            self.computed,
        ]
    }

    /// It is a tile of up to [`MANY_ROWS`] rows.
    pub(crate) fn has_many_rows(&self) -> bool {
        FEW_ROWS < self.num_rows as usize
    }

    /// What the item takes, in units of a key tile for few rows.
    fn cost(&self) -> usize {
        tiles(self.end_key as usize - self.first_key as usize) * weight(self.num_rows as usize)
    }
}

/// Rows of partial results, for all KV heads, that any step needs at most.
pub(crate) fn max_partial_rows(multiprocessors: usize) -> usize {
    // A tile is only split when it is longer than a block's fair share, so there are at most twice as many pieces as
    // blocks.
    2 * multiprocessors * BLOCKS_PER_MULTIPROCESSOR * MANY_ROWS
}

/// Counters, for all KV heads, that any step needs at most: one for each tile that is split.
pub(crate) fn max_counters(multiprocessors: usize) -> usize {
    2 * multiprocessors * BLOCKS_PER_MULTIPROCESSOR
}

/// How many items `sequences` of few rows each have at most: a tile is only cut into pieces as long as a block's fair
/// share, so there are as many as there are blocks, and the last piece of each sequence.
pub(crate) fn max_few_items(sequences: usize, heads: Heads, multiprocessors: usize) -> usize {
    sequences + multiprocessors * BLOCKS_PER_MULTIPROCESSOR / heads.num_kv_heads
}

/// The items of a step: those of many rows before those of few (they are different kernels on some devices), in
/// each part the costliest first, so that what is left at the end is small.
pub(crate) fn build(layout: &BatchLayout, heads: Heads, multiprocessors: usize) -> Vec<Item> {
    let mut whole = Vec::new();
    for sequence in 0..layout.sequences() {
        push_tiles(&mut whole, layout, sequence, heads.group_size);
    }
    let total: usize = whole.iter().map(Item::cost).sum::<usize>() * heads.num_kv_heads;
    let share = total.div_ceil(multiprocessors * BLOCKS_PER_MULTIPROCESSOR);
    let mut items = Vec::with_capacity(whole.len());
    let mut room = Room {
        rows: max_partial_rows(multiprocessors) / heads.num_kv_heads,
        counters: (max_counters(multiprocessors) / heads.num_kv_heads) as i32,
        partial_row: 0,
        counter: 0,
    };
    for item in whole {
        push_splits(&mut items, item, share, &mut room);
    }
    items.sort_by_key(|item| std::cmp::Reverse((item.has_many_rows(), item.cost())));
    items
}

/// What there is for partial results, and what they have taken, for one KV head.
struct Room {
    rows: usize,
    counters: i32,
    partial_row: usize,
    counter: i32,
}

fn tiles(keys: usize) -> usize {
    keys.div_ceil(TILE_KEYS)
}

/// How much longer a key tile takes with so many rows.
fn weight(rows: usize) -> usize {
    if rows <= FEW_ROWS { 1 } else { 4 }
}

/// The sequence's query rows in tiles, each with all the keys its last row sees.
fn push_tiles(items: &mut Vec<Item>, layout: &BatchLayout, sequence: usize, group_size: usize) {
    let tokens = (layout.query_starts[sequence + 1] - layout.query_starts[sequence]) as usize;
    let context = layout.context_lens[sequence] as usize;
    assert!(0 < tokens && tokens <= context, "a context holds the tokens of the step");
    let computed = context - tokens;
    let rows = tokens * group_size;
    let tile_rows = if rows <= FEW_ROWS { FEW_ROWS } else { MANY_ROWS };
    for first_row in (0..rows).step_by(tile_rows) {
        let num_rows = tile_rows.min(rows - first_row);
        let last_token = (first_row + num_rows - 1) / group_size;
        items.push(Item {
            sequence: sequence as i32,
            first_row: first_row as i32,
            num_rows: num_rows as i32,
            end_key: (computed + last_token + 1) as i32,
            num_splits: 1,
            first_token: layout.query_starts[sequence],
            computed: computed as i32,
            ..Item::default()
        });
    }
}

/// Cuts a tile's keys into ranges of about `share`, if there is room for their partial results.
fn push_splits(items: &mut Vec<Item>, item: Item, share: usize, room: &mut Room) {
    let rows = item.num_rows as usize;
    let key_tiles = tiles(item.end_key as usize);
    let shortest = if rows <= FEW_ROWS { 2 } else { 8 };
    let longest = share.div_ceil(weight(rows)).max(shortest);
    let pieces = key_tiles.div_ceil(longest);
    if pieces <= 1 || room.rows < room.partial_row + pieces * rows || room.counters <= room.counter {
        items.push(item);
        return;
    }
    let piece_tiles = key_tiles.div_ceil(pieces);
    let pieces = key_tiles.div_ceil(piece_tiles);
    for split in 0..pieces {
        items.push(Item {
            first_key: (split * piece_tiles * TILE_KEYS) as i32,
            end_key: item.end_key.min(((split + 1) * piece_tiles * TILE_KEYS) as i32),
            split: split as i32,
            num_splits: pieces as i32,
            partial_row: room.partial_row as i32,
            counter: room.counter,
            ..item
        });
    }
    room.partial_row += pieces * rows;
    room.counter += 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADS: Heads =
        Heads { num_heads: 28, num_kv_heads: 4, head_dim: 128, group_size: 7, group_offset: 0 };

    /// Sequences of (computed before, tokens in this step).
    fn layout(sequences: &[(i32, i32)]) -> BatchLayout {
        let mut layout = BatchLayout { query_starts: vec![0], block_size: 64, ..BatchLayout::default() };
        for (computed, tokens) in sequences {
            layout.query_starts.push(layout.query_starts.last().unwrap() + tokens);
            layout.context_lens.push(computed + tokens);
            layout.positions.extend(*computed..computed + tokens);
        }
        layout
    }

    /// Every row must meet each of its keys once, and partial results must lie apart.
    fn check(sequences: &[(i32, i32)], multiprocessors: usize) -> Vec<Item> {
        let layout = layout(sequences);
        let items = build(&layout, HEADS, multiprocessors);
        if items.iter().all(|item| !item.has_many_rows()) {
            assert!(items.len() <= max_few_items(sequences.len(), HEADS, multiprocessors));
        }
        for (sequence, (computed, tokens)) in sequences.iter().enumerate() {
            for row in 0..tokens * 7 {
                let mut ranges: Vec<(i32, i32)> = items
                    .iter()
                    .filter(|item| item.sequence == sequence as i32)
                    .filter(|item| (item.first_row..item.first_row + item.num_rows).contains(&row))
                    .map(|item| (item.first_key, item.end_key))
                    .collect();
                ranges.sort_unstable();
                assert_eq!(ranges[0].0, 0);
                assert!(ranges.windows(2).all(|pair| pair[0].1 == pair[1].0), "{ranges:?}");
                assert!(
                    computed + row / 7 < ranges.last().unwrap().1,
                    "row {row} of {sequences:?}: {ranges:?}"
                );
            }
        }
        let mut rows: Vec<i32> = items
            .iter()
            .filter(|item| 1 < item.num_splits)
            .flat_map(|item| {
                let first = item.partial_row + item.split * item.num_rows;
                first..first + item.num_rows
            })
            .collect();
        let all = rows.len();
        rows.sort_unstable();
        rows.dedup();
        assert_eq!(rows.len(), all, "partial results overlap");
        assert!(rows.last().is_none_or(|last| (last + 1) as usize * 4 <= max_partial_rows(multiprocessors)));
        items
    }

    #[test]
    fn one_long_context_is_spread_over_all_multiprocessors() {
        let items = check(&[(131_071, 1)], 132);
        assert!(60 <= items.len() && items.len() <= 66, "{}", items.len());
    }

    #[test]
    fn a_prompt_is_not_split() {
        assert!(check(&[(0, 4096)], 132).iter().all(|item| item.num_splits == 1));
    }

    #[test]
    fn every_row_meets_every_key_once() {
        check(&[(0, 1)], 132);
        check(&[(63, 1), (64, 1), (65, 2)], 132);
        check(&[(100_000, 8), (5, 3), (0, 777), (16_384, 1)], 132);
        check(&[(30_000, 300), (1, 1)], 1);
        for count in [3, 8, 65, 256] {
            let decode: Vec<(i32, i32)> = (0..count).map(|i| (i * 37 % 5000, 1)).collect();
            check(&decode, 132);
            check(&decode, 128);
        }
    }
}
