//! A piece of a group, unpacked: sixteen rows of up to 512 columns, small enough for the first-level cache.

use super::layout::{LANES, TILE_CODES};

/// Tiles of a chunk. Sums are rounded where a chunk ends, so this is the same everywhere: results depend on it.
pub(super) const CHUNK_TILES: usize = 16;

/// Which tiles of a group a chunk holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    /// The first tile: a multiple of [`CHUNK_TILES`].
    pub(super) first: usize,
    /// How many; [`CHUNK_TILES`] but for the last chunk.
    pub(super) blocks: usize,
}

impl Span {
    /// The chunks of a row of `tiles` tiles.
    pub(super) fn all(tiles: usize) -> impl Iterator<Item = Self> {
        (0..tiles)
            .step_by(CHUNK_TILES)
            .map(move |first| Self { first, blocks: CHUNK_TILES.min(tiles - first) })
    }
}

/// Codes as bytes, scales as f32.
#[repr(C, align(64))]
pub(super) struct Chunk {
    /// Planes; see [`super::layout`].
    pub(super) codes: [[u8; TILE_CODES]; CHUNK_TILES],
    /// Scales of each half tile; formats with one scale a tile use the even ones.
    pub(super) scales: [[f32; LANES]; 2 * CHUNK_TILES],
    /// Minimums of each tile, in formats that have them.
    pub(super) minimums: [[f32; LANES]; CHUNK_TILES],
}

impl Chunk {
    pub(super) fn new() -> Self {
        Self {
            codes: [[0; TILE_CODES]; CHUNK_TILES],
            scales: [[0.0; LANES]; 2 * CHUNK_TILES],
            minimums: [[0.0; LANES]; CHUNK_TILES],
        }
    }
}
