//! Counts by size, in fixed buckets.

/// Observations sorted into buckets whose bounds never change.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    /// Each bucket's upper bound, inclusive, ascending; one more bucket holds what is larger.
    bounds: Vec<f64>,
    /// One a bound, and the one above.
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    /// Starts empty.
    #[must_use]
    pub fn new(bounds: &[f64]) -> Self {
        assert!(bounds.windows(2).all(|pair| pair[0] < pair[1]), "bounds ascend");
        Self { bounds: bounds.to_vec(), counts: vec![0; bounds.len() + 1], sum: 0.0 }
    }

    /// Starts empty, with the bounds 1, 2, 5, 10, 20, 50 … up to `most`.
    #[must_use]
    pub fn one_two_five(most: usize) -> Self {
        let powers = std::iter::successors(Some(1_usize), |power| power.checked_mul(10));
        let bounds = powers.flat_map(|power| [1, 2, 5].map(|digit| digit * power as u128));
        let bounds = bounds.take_while(|bound| *bound <= most as u128);
        Self::new(&bounds.map(|bound| bound as f64).collect::<Vec<_>>())
    }

    /// Counts one value.
    pub fn observe(&mut self, value: f64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        self.counts[bucket] += 1;
        self.sum += value;
    }

    /// Each bound with how many values were at most that; Prometheus' `le`, without the last, `+Inf`.
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        let mut total = 0;
        self.bounds.iter().zip(&self.counts).map(move |(bound, count)| {
            total += count;
            (*bound, total)
        })
    }

    /// How many values were observed.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Their sum.
    #[must_use]
    pub fn sum(&self) -> f64 {
        self.sum
    }
}

#[cfg(test)]
mod tests {
    use super::Histogram;

    #[test]
    fn a_value_on_a_bound_belongs_to_it() {
        let mut histogram = Histogram::new(&[1.0, 2.0]);
        for value in [0.5, 1.0, 1.5, 2.0, 3.0] {
            histogram.observe(value);
        }
        assert_eq!(histogram.cumulative().collect::<Vec<_>>(), [(1.0, 2), (2.0, 4)]);
        assert_eq!((histogram.count(), histogram.sum()), (5, 8.0));
    }

    #[test]
    fn one_two_five_ends_at_the_largest_length() {
        let bounds =
            |most| Histogram::one_two_five(most).cumulative().map(|(bound, _)| bound).collect::<Vec<_>>();
        assert_eq!(bounds(60), [1.0, 2.0, 5.0, 10.0, 20.0, 50.0]);
        assert_eq!(bounds(1), [1.0]);
    }
}
