//! From a file's rows to the layout of [`super::layout`]. Half a gigabyte takes less than a second on two cores,
//! most of it the system's clearing of fresh pages.

use super::layout::{LANES, Layout, TILE, TILE_CODES};
use crate::cpu::quant::{codes, scale_and_minimum};
use crate::matrix::Format;

/// Fills `out`, a whole number of groups, from `bytes`, which begins with the same row and may go on behind them.
pub(super) fn pack_groups(layout: &Layout, bytes: &[u8], out: &mut [u8]) {
    let group_rows = bytes.chunks(LANES * layout.format.row_bytes(layout.columns));
    for (rows, out) in group_rows.zip(out.chunks_exact_mut(layout.group_bytes)) {
        match layout.format {
            Format::F32 | Format::BF16 => pack_dense::<4>(layout, rows, out),
            Format::F16 => pack_dense::<2>(layout, rows, out),
            _ => pack_blocks(layout, rows, out),
        }
    }
}

/// Interleaves up to sixteen rows of elements of `BYTES` bytes (BF16: of pairs of elements).
fn pack_dense<const BYTES: usize>(layout: &Layout, rows: &[u8], out: &mut [u8]) {
    let row_bytes = layout.format.row_bytes(layout.columns);
    // A cache line of each row at a time.
    for (start, out) in (0..row_bytes).step_by(64).zip(out.chunks_mut(64 * LANES)) {
        for (lane, row) in rows.chunks_exact(row_bytes).enumerate() {
            let (elements, half_pair) = row[start..row_bytes.min(start + 64)].as_chunks::<BYTES>();
            let columns = out.chunks_exact_mut(LANES * BYTES);
            for (element, column) in elements.iter().zip(columns) {
                column[lane * BYTES..][..BYTES].copy_from_slice(element);
            }
            // The last pair of an odd BF16 row is half there; its other half stays zero.
            if !half_pair.is_empty() {
                out[(elements.len() * LANES + lane) * BYTES..][..half_pair.len()].copy_from_slice(half_pair);
            }
        }
    }
}

/// Interleaves up to sixteen rows of blocks.
fn pack_blocks(layout: &Layout, rows: &[u8], out: &mut [u8]) {
    let (block_len, block_bytes) = (layout.format.block_len(), layout.format.block_bytes());
    let row_bytes = layout.format.row_bytes(layout.columns);
    let (tiles, scales) = out.split_at_mut(layout.scales_at);
    let tiles = tiles.chunks_exact_mut(block_len / TILE * layout.tile_bytes);
    // Lanes without a row keep code and scale zero.
    let mut buffer = [[0; 256]; LANES];
    for (index, (tiles, scales)) in tiles.zip(scales.chunks_exact_mut(layout.scale_bytes)).enumerate() {
        for (lane, row) in rows.chunks_exact(row_bytes).enumerate() {
            let block = &row[index * block_bytes..][..block_bytes];
            codes(layout.format, block, &mut buffer[lane][..block_len]);
            pack_scales(layout.format, block, lane, scales);
        }
        for (part, tile) in tiles.chunks_exact_mut(layout.tile_bytes).enumerate() {
            pack_tile(&planes(&buffer, part), tile);
        }
    }
}

/// The planes of a tile, 64 bytes each.
type Planes = [[u8; 64]; 8];

/// Tile `part` of sixteen blocks' codes, as planes.
fn planes(codes: &[[u8; 256]; LANES], part: usize) -> Planes {
    let mut planes = [[[0; 4]; LANES]; 8];
    for (lane, codes) in codes.iter().enumerate() {
        let fours = codes[part * TILE..][..TILE].as_chunks::<4>().0;
        for (plane, four) in planes.iter_mut().zip(fours) {
            plane[lane] = *four;
        }
    }
    planes.map(|plane| *plane.as_flattened().as_array().expect("sixteen times four"))
}

/// Squeezes planes into as many bits as the tile has room for.
fn pack_tile(planes: &Planes, tile: &mut [u8]) {
    if tile.len() == TILE_CODES {
        return tile.copy_from_slice(planes.as_flattened());
    }
    let vectors = tile.as_chunks_mut::<64>().0;
    for (index, nibbles) in vectors[..4].iter_mut().enumerate() {
        for (out, (low, high)) in nibbles.iter_mut().zip(planes[index].iter().zip(&planes[index + 4])) {
            *out = low & 15 | high << 4;
        }
    }
    match &mut vectors[4..] {
        [bits] => {
            *bits = [0; 64];
            for (index, plane) in planes.iter().enumerate() {
                bits.iter_mut().zip(plane).for_each(|(out, code)| *out |= (code >> 4 & 1) << index);
            }
        }
        pairs => {
            for (pairs, planes) in pairs.iter_mut().zip(planes.as_chunks::<4>().0) {
                *pairs = [0; 64];
                for (index, plane) in planes.iter().enumerate() {
                    pairs
                        .iter_mut()
                        .zip(plane)
                        .for_each(|(out, code)| *out |= (code >> 4 & 3) << (2 * index));
                }
            }
        }
    }
}

/// Puts one block's scales in their lane.
fn pack_scales(format: Format, block: &[u8], lane: usize, scales: &mut [u8]) {
    let mut put_half = |index: usize, at: usize| {
        scales[2 * (index * LANES + lane)..][..2].copy_from_slice(&block[at..at + 2]);
    };
    match format {
        Format::Q4_1 | Format::Q5_1 => {
            put_half(0, 0);
            put_half(1, 2);
        }
        Format::Q4K | Format::Q5K => {
            put_half(0, 0);
            put_half(1, 2);
            for (index, scales) in scales[4 * LANES..].chunks_exact_mut(2 * LANES).enumerate() {
                (scales[lane], scales[LANES + lane]) = scale_and_minimum(block, index);
            }
        }
        Format::Q6K => {
            put_half(0, 208);
            for (index, scale) in block[192..208].iter().enumerate() {
                scales[(2 + index) * LANES + lane] = *scale;
            }
        }
        _ => put_half(0, 0),
    }
}
