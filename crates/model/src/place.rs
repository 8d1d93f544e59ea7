//! Where a rank stands in the mesh, and how things are dealt to ranks.

use std::ops::Range;

/// A rank's coordinates inside one replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which share of each layer, from 0.
    pub tensor_rank: usize,
    /// How many ranks share a layer.
    pub tensor_size: usize,
    /// Which span of layers, from 0.
    pub stage: usize,
    /// How many spans there are.
    pub num_stages: usize,
}

impl Place {
    /// The only rank of its replica.
    pub const ALONE: Self = Self { tensor_rank: 0, tensor_size: 1, stage: 0, num_stages: 1 };

    /// Every place of a replica of `tensor_size` times `num_stages` ranks, stage after stage.
    pub fn all(tensor_size: usize, num_stages: usize) -> impl Iterator<Item = Self> {
        (0..num_stages).flat_map(move |stage| {
            (0..tensor_size).map(move |tensor_rank| Self { tensor_rank, tensor_size, stage, num_stages })
        })
    }

    /// This rank's stage embeds the tokens.
    #[must_use]
    pub const fn is_first_stage(&self) -> bool {
        self.stage == 0
    }

    /// This rank's stage ends in logits.
    #[must_use]
    pub const fn is_last_stage(&self) -> bool {
        self.stage + 1 == self.num_stages
    }
}

/// The contiguous run of `0 .. total` that rank `rank` of `size` gets when whole units of `unit` are dealt as evenly as
/// they go, earlier ranks first: 28 over 3 is 10, 9, 9. The last unit may be a part of one.
#[must_use]
pub fn deal(total: usize, unit: usize, size: usize, rank: usize) -> Range<usize> {
    assert!(rank < size, "rank {rank} of {size}");
    let units = total.div_ceil(unit);
    let start = |rank: usize| (rank * (units / size) + rank.min(units % size)) * unit;
    start(rank).min(total)..start(rank + 1).min(total)
}

/// The largest power of two up to `unit` of which every one of `size` ranks gets at least one out of `total`.
#[must_use]
pub fn unit_that_serves_all(total: usize, unit: usize, size: usize) -> usize {
    let mut unit = unit.next_power_of_two();
    while 1 < unit && total / unit < size {
        unit /= 2;
    }
    unit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_contiguous_and_as_even_as_they_go() {
        let lengths = |total, unit, size| -> Vec<usize> {
            (0..size).map(|rank| deal(total, unit, size, rank).len()).collect()
        };
        assert_eq!(lengths(28, 1, 3), [10, 9, 9]);
        assert_eq!(lengths(28, 1, 8), [4, 4, 4, 4, 3, 3, 3, 3]);
        assert_eq!(lengths(4864, 256, 4), [1280, 1280, 1280, 1024]);
        assert_eq!(lengths(151_936, 64, 7), [21_760, 21_696, 21_696, 21_696, 21_696, 21_696, 21_696]);
        assert_eq!(lengths(100, 64, 2), [64, 36]);
        for size in 1..9 {
            for rank in 1..size {
                assert_eq!(deal(1000, 32, size, rank - 1).end, deal(1000, 32, size, rank).start);
            }
            assert_eq!(deal(1000, 32, size, size - 1).end, 1000);
        }
    }

    #[test]
    fn a_unit_shrinks_until_each_rank_gets_one() {
        assert_eq!(unit_that_serves_all(4864, 256, 8), 256);
        assert_eq!(unit_that_serves_all(512, 256, 4), 128);
        assert_eq!(unit_that_serves_all(96, 32, 8), 8);
        assert_eq!(unit_that_serves_all(3, 32, 8), 1);
    }
}
