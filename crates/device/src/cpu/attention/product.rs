//! The small matrix product that attention is made of, with its sums in registers.

use crate::cpu::lanes::{Kernel, LANES, Lanes, Registers};

/// A row-major matrix: its elements, and how many lie from one row's start to the next one's.
#[derive(Clone, Copy)]
pub(super) struct Operand<'a> {
    pub(super) elements: &'a [f32],
    pub(super) stride: usize,
}

/// `out = a * b`, or `out += a * b`; `columns` is a multiple of 16.
///
/// Each element of `out` is one chain of multiply-adds over the depth, first to last: its bits depend neither on where
/// its row lies nor on how many rows there are.
pub(super) struct Product<'a> {
    /// `[rows, depth]`.
    pub(super) a: Operand<'a>,
    /// `[depth, columns]`.
    pub(super) b: Operand<'a>,
    pub(super) rows: usize,
    pub(super) depth: usize,
    pub(super) columns: usize,
    /// Add to what is there.
    pub(super) accumulate: bool,
    /// `[rows, columns]`, densely packed.
    pub(super) out: &'a mut [f32],
}

impl Kernel for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(mut self, lanes: L) {
        assert!(self.columns.is_multiple_of(LANES), "whole vectors");
        let most = match L::REGISTERS {
            Registers::Many => 6,
            Registers::Few => 3,
        };
        // Even parts: 7 rows are 4 + 3, not 6 + 1.
        let parts = self.rows.div_ceil(most);
        let mut row = 0;
        for part in 0..parts {
            let count = (self.rows - row).div_ceil(parts - part);
            // The register count is a constant: the arms that it rules out are never compiled.
            match (L::REGISTERS, count) {
                (Registers::Many, 6) => self.rows::<L, 6>(lanes, row),
                (Registers::Many, 5) => self.rows::<L, 5>(lanes, row),
                (Registers::Many, 4) => self.rows::<L, 4>(lanes, row),
                (_, 3) => self.rows::<L, 3>(lanes, row),
                (_, 2) => self.rows::<L, 2>(lanes, row),
                _ => self.rows::<L, 1>(lanes, row),
            }
            row += count;
        }
    }
}

impl Product<'_> {
    #[inline(always)]
    fn rows<L: Lanes, const ROWS: usize>(&mut self, lanes: L, row: usize) {
        let mut column = 0;
        while column < self.columns {
            column += match (L::REGISTERS, (self.columns - column) / LANES) {
                (Registers::Many, 4..) => self.tile::<L, ROWS, 4>(lanes, row, column),
                (_, 2..) => self.tile::<L, ROWS, 2>(lanes, row, column),
                _ => self.tile::<L, ROWS, 1>(lanes, row, column),
            };
        }
    }

    /// `ROWS` rows by `VECTORS` vectors, all sums in registers; returns the columns done.
    #[inline(always)]
    #[expect(clippy::needless_range_loop, reason = "constant bounds, unrolled: arrays become registers")]
    fn tile<L: Lanes, const ROWS: usize, const VECTORS: usize>(
        &mut self,
        lanes: L,
        row: usize,
        column: usize,
    ) -> usize {
        let mut a = [&self.a.elements[..0]; ROWS];
        for r in 0..ROWS {
            a[r] = &self.a.elements[(row + r) * self.a.stride..][..self.depth];
        }
        let mut sums = [[lanes.splat(0.0); VECTORS]; ROWS];
        if self.accumulate {
            for r in 0..ROWS {
                let from = &self.out[(row + r) * self.columns + column..];
                for c in 0..VECTORS {
                    sums[r][c] = lanes.load(vector(&from[c * LANES..]));
                }
            }
        }
        for k in 0..self.depth {
            let b = &self.b.elements[k * self.b.stride + column..][..VECTORS * LANES];
            let mut vectors = [lanes.splat(0.0); VECTORS];
            for c in 0..VECTORS {
                vectors[c] = lanes.load(vector(&b[c * LANES..]));
            }
            for r in 0..ROWS {
                let x = lanes.splat(a[r][k]);
                for c in 0..VECTORS {
                    sums[r][c] = lanes.mul_add(x, vectors[c], sums[r][c]);
                }
            }
        }
        for r in 0..ROWS {
            let to = &mut self.out[(row + r) * self.columns + column..][..VECTORS * LANES];
            for c in 0..VECTORS {
                let to = to[c * LANES..].first_chunk_mut().expect("whole vectors");
                lanes.store(to, sums[r][c]);
            }
        }
        VECTORS * LANES
    }
}

/// The first sixteen elements.
#[inline(always)]
fn vector(from: &[f32]) -> &[f32; LANES] {
    from.first_chunk().expect("whole vectors")
}
