//! Passes over a whole row of logits, and the walk that ends in a token.

use crate::cpu::lanes::{self, Kernel, LANES, Lanes};

/// Logits between two looks at the sums: lanes add up few enough numbers to stay exact to f32's last bits.
const BLOCK: usize = 256;

/// Finds the largest logit, and whether all are finite.
pub(super) struct Peak<'a> {
    pub(super) x: &'a [f32],
}

/// The largest logit.
pub(super) struct Found {
    pub(super) value: f32,
    /// The first that has it.
    pub(super) token: usize,
    /// No NaN and no infinity was there.
    pub(super) finite: bool,
}

impl Kernel for Peak<'_> {
    type Output = Found;

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> Found {
        // A number times zero is zero, NaN or infinity times zero is NaN and stays in the sum.
        let (mut poison, zero) = (lanes.splat(0.0), lanes.splat(0.0));
        let (mut value, mut first) = (f32::NEG_INFINITY, 0);
        for (index, block) in self.x.chunks(BLOCK).enumerate() {
            let mut largest = lanes.splat(f32::NEG_INFINITY);
            let (vectors, rest) = block.as_chunks::<LANES>();
            for v in vectors {
                let v = lanes.load(v);
                poison = lanes.mul_add(v, zero, poison);
                largest = lanes.max(v, largest);
            }
            if !rest.is_empty() {
                let v = lanes.load(&lanes::padded(rest, rest[0]));
                poison = lanes.mul_add(v, zero, poison);
                largest = lanes.max(v, largest);
            }
            let largest = lanes::largest(lanes, largest);
            if value < largest {
                (value, first) = (largest, index * BLOCK);
            }
        }
        let offset = self.x[first..].iter().position(|&x| x == value).unwrap_or(0);
        Found { value, token: first + offset, finite: lanes::sum(lanes, poison) == 0.0 }
    }
}

/// How logits become weights: `exp((x - largest) / temperature)`, the largest's being 1.
#[derive(Clone, Copy)]
pub(super) struct Scale {
    pub(super) largest: f32,
    pub(super) temperature: f32,
}

impl Scale {
    /// Weights of a vector; a forbidden token's is exactly zero.
    #[inline(always)]
    fn weigh<L: Lanes>(self, lanes: L, x: L::V) -> L::V {
        let z = lanes.div(lanes.sub(x, lanes.splat(self.largest)), lanes.splat(self.temperature));
        // `exp` never reaches zero, so what it makes of minus infinity (1e-38) is taken off every weight.
        let least = lanes::exp(lanes, lanes.splat(f32::NEG_INFINITY));
        lanes.max(lanes.splat(0.0), lanes.sub(lanes::exp(lanes, z), least))
    }

    /// Weights of a block's rest, fewer than sixteen; the others are zero.
    #[inline(always)]
    fn weigh_rest<L: Lanes>(self, lanes: L, rest: &[f32]) -> L::V {
        self.weigh(lanes, lanes.load(&lanes::padded(rest, f32::NEG_INFINITY)))
    }
}

/// Sums the weights of all logits, block by block.
pub(super) struct Mass<'a> {
    pub(super) x: &'a [f32],
    pub(super) scale: Scale,
}

impl Kernel for Mass<'_> {
    type Output = Vec<f64>;

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> Vec<f64> {
        let mut blocks = Vec::with_capacity(self.x.len().div_ceil(BLOCK));
        for block in self.x.chunks(BLOCK) {
            let (pairs, rest) = block.as_chunks::<{ 2 * LANES }>();
            let mut sums = [lanes.splat(0.0); 2];
            for pair in pairs {
                for (sum, v) in sums.iter_mut().zip(pair.as_chunks::<LANES>().0) {
                    *sum = lanes.add(*sum, self.scale.weigh(lanes, lanes.load(v)));
                }
            }
            for rest in rest.chunks(LANES) {
                sums[0] = lanes.add(sums[0], self.scale.weigh_rest(lanes, rest));
            }
            let [a, b] = sums.map(|sum| lanes::to_array(lanes, sum));
            let mut total = 0.0;
            for lane in 0..LANES {
                total += f64::from(a[lane]) + f64::from(b[lane]);
            }
            blocks.push(total);
        }
        blocks
    }
}

/// Replaces logits by their weights.
pub(super) struct Weigh<'a> {
    pub(super) x: &'a mut [f32],
    pub(super) scale: Scale,
}

impl Kernel for Weigh<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let (vectors, rest) = self.x.as_chunks_mut::<LANES>();
        for v in vectors {
            let weights = self.scale.weigh(lanes, lanes.load(v));
            lanes.store(v, weights);
        }
        let weights = lanes::to_array(lanes, self.scale.weigh_rest(lanes, rest));
        rest.copy_from_slice(&weights[..rest.len()]);
    }
}

/// The token at which the running sum of all weights passes `target`, given what [`Mass`] found.
pub(super) struct Walk<'a> {
    pub(super) x: &'a [f32],
    pub(super) scale: Scale,
    pub(super) blocks: &'a [f64],
    pub(super) target: f64,
}

impl Kernel for Walk<'_> {
    type Output = usize;

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> usize {
        let blocks = (0..).zip(self.blocks.iter().copied());
        let (block, before) = walk(blocks, self.target);
        let first = block as usize * BLOCK;
        let mut weights = [0.0; BLOCK];
        let end = (first + BLOCK).min(self.x.len());
        weights[..end - first].copy_from_slice(&self.x[first..end]);
        Weigh { x: &mut weights[..end - first], scale: self.scale }.run(lanes);
        let tokens = (0..).zip(weights[..end - first].iter().map(|&weight| f64::from(weight)));
        first + walk(tokens, self.target - before).0 as usize
    }
}

/// Where the running sum passes `target`: the key, and the sum before it.
///
/// Should rounding leave the sum short of the target, it is the last key that weighs anything.
pub(super) fn walk(weights: impl Iterator<Item = (u32, f64)>, target: f64) -> (u32, f64) {
    let (mut sum, mut last) = (0.0, (0, 0.0));
    for (key, weight) in weights {
        if 0.0 < weight {
            last = (key, sum);
        }
        sum += weight;
        if target < sum {
            break;
        }
    }
    last
}
