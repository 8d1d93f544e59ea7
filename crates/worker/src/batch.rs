//! From a Step's chunks to the arrays that kernels read.

use phalanx_device::BatchLayout;
use phalanx_scheduler::step::Chunk;

/// The arrays of one step: the chunks' tokens row after row, in the chunks' order.
///
/// Ids are given for all of them or, on later stages, for none.
pub(crate) fn layout(chunks: &[Chunk], ids: Vec<i32>, block_size: usize) -> BatchLayout {
    let tokens = chunks.iter().map(Chunk::len).sum();
    let blocks_per_row = chunks.iter().map(|chunk| chunk.blocks.len()).max().unwrap_or(0);
    let mut layout = BatchLayout {
        ids,
        positions: Vec::with_capacity(tokens),
        slots: Vec::with_capacity(tokens),
        query_starts: Vec::with_capacity(chunks.len() + 1),
        context_lens: Vec::with_capacity(chunks.len()),
        block_tables: Vec::with_capacity(chunks.len() * blocks_per_row),
        blocks_per_row,
        block_size,
        sample_rows: Vec::with_capacity(chunks.len()),
    };
    layout.query_starts.push(0);
    for chunk in chunks {
        let end = chunk.start + chunk.len();
        assert!(end <= chunk.blocks.len() * block_size, "the block table holds the chunk's last position");
        for position in chunk.start..end {
            layout.positions.push(number(position));
            let block = chunk.blocks[position / block_size].0 as usize;
            layout.slots.push(number(block * block_size + position % block_size));
        }
        let rows = layout.positions.len();
        layout.query_starts.push(number(rows));
        layout.context_lens.push(number(end));
        layout.block_tables.extend(chunk.blocks.iter().map(|block| number(block.0 as usize)));
        let padding = blocks_per_row - chunk.blocks.len();
        layout.block_tables.extend(std::iter::repeat_n(0, padding));
        if chunk.sample {
            layout.sample_rows.push(number(rows - 1));
        }
    }
    layout
}

/// Adds sequences of one token that nobody asked for, so that there are `rows`; block `scratch` is all they have.
pub(crate) fn fill_up(layout: &mut BatchLayout, rows: usize, scratch: usize) {
    for row in layout.sequences()..rows {
        if !layout.ids.is_empty() {
            layout.ids.push(0);
        }
        layout.positions.push(0);
        layout.slots.push(number(scratch * layout.block_size));
        layout.query_starts.push(number(row + 1));
        layout.context_lens.push(1);
        layout.block_tables.push(number(scratch));
        layout.block_tables.extend(std::iter::repeat_n(0, layout.blocks_per_row - 1));
        layout.sample_rows.push(number(row));
    }
}

/// A count or index in the width that kernels read.
pub(crate) fn number(value: usize) -> i32 {
    i32::try_from(value).expect("a pool has fewer than 2^31 slots, and a vocabulary fewer tokens")
}

#[cfg(test)]
mod tests {
    use phalanx_device::BatchLayout;
    use phalanx_scheduler::step::{BlockId, Chunk, ChunkTokens, SequenceId};

    use super::{fill_up, layout};

    fn chunk(start: usize, len: usize, blocks: &[u32], sample: bool) -> Chunk {
        let tokens = if len == 0 { ChunkTokens::LastSampled } else { ChunkTokens::Given(vec![9; len]) };
        let blocks = blocks.iter().map(|&block| BlockId(block)).collect();
        Chunk { sequence: SequenceId(0), start, tokens, blocks, sample }
    }

    /// Arrays as text, one a line: positions, slots, query starts, context lengths, block tables, sample rows.
    fn check(chunks: &[Chunk], expected: [&str; 6]) {
        let layout = layout(chunks, Vec::new(), 4);
        let BatchLayout { positions, slots, query_starts, context_lens, block_tables, .. } = &layout;
        let arrays = [positions, slots, query_starts, context_lens, block_tables, &layout.sample_rows];
        for (array, expected) in arrays.into_iter().zip(expected) {
            let text: Vec<String> = array.iter().map(ToString::to_string).collect();
            assert_eq!(text.join(" "), expected, "{layout:?}");
        }
        assert_eq!(
            (layout.tokens(), layout.sequences(), layout.block_size),
            (positions.len(), chunks.len(), 4)
        );
    }

    #[test]
    fn arrays_follow_from_chunks() {
        check(&[], ["", "", "0", "", "", ""]);
        // A whole prompt of five tokens in two blocks.
        check(&[chunk(0, 5, &[7, 2], true)], ["0 1 2 3 4", "28 29 30 31 8", "0 5", "5", "7 2", "4"]);
        // The middle of a prompt: not sampled.
        check(&[chunk(3, 2, &[7, 2], false)], ["3 4", "31 8", "0 2", "5", "7 2", ""]);
        // One token each, in tables of different lengths, one of them known to the worker alone.
        check(
            &[chunk(4, 1, &[1, 0], true), chunk(2, 0, &[3], true)],
            ["4 2", "0 14", "0 1 2", "5 3", "1 0 3 0", "0 1"],
        );
        // A prompt's chunk between two that decode.
        check(
            &[chunk(0, 1, &[5], true), chunk(4, 3, &[9, 8], false), chunk(3, 1, &[6], true)],
            ["0 4 5 6 3", "20 32 33 34 27", "0 1 4 5", "1 7 4", "5 0 9 8 6 0", "0 4"],
        );
    }

    #[test]
    fn rows_that_fill_up_keep_to_their_block() {
        let chunks = [chunk(4, 1, &[1, 0], true), chunk(2, 0, &[3], true)];
        let mut filled = layout(&chunks, vec![50, -1], 4);
        fill_up(&mut filled, 4, 9);
        let expected = BatchLayout {
            ids: vec![50, -1, 0, 0],
            positions: vec![4, 2, 0, 0],
            slots: vec![0, 14, 36, 36],
            query_starts: vec![0, 1, 2, 3, 4],
            context_lens: vec![5, 3, 1, 1],
            block_tables: vec![1, 0, 3, 0, 9, 0, 9, 0],
            blocks_per_row: 2,
            block_size: 4,
            sample_rows: vec![0, 1, 2, 3],
        };
        assert_eq!(filled, expected);
    }

    #[test]
    #[should_panic(expected = "the block table holds the chunk's last position")]
    fn a_table_too_short_is_a_programmers_error() {
        let _layout = layout(&[chunk(3, 2, &[7], true)], Vec::new(), 4);
    }
}
