//! Philox4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC11).
//!
//! A draw is a function of (seed, position) and of nothing else: no state, no order, no batch.

/// Rounds of the mixing function.
const ROUNDS: usize = 10;
/// The paper's multipliers.
const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// What the key grows by from round to round: the golden ratio's fraction, and that of the square root of 3.
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// 128 random bits for a counter under a key.
#[must_use]
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let ([mut c0, mut c1, mut c2, mut c3], [mut k0, mut k1]) = (counter, key);
    for _ in 0..ROUNDS {
        let a = u64::from(MULTIPLIERS[0]) * u64::from(c0);
        let b = u64::from(MULTIPLIERS[1]) * u64::from(c2);
        (c0, c1, c2, c3) = ((b >> 32) as u32 ^ c1 ^ k0, b as u32, (a >> 32) as u32 ^ c3 ^ k1, a as u32);
        (k0, k1) = (k0.wrapping_add(WEYL[0]), k1.wrapping_add(WEYL[1]));
    }
    [c0, c1, c2, c3]
}

/// A number in [0, 1) with 53 random bits: the `position`th of stream `seed`.
#[must_use]
pub fn uniform(seed: u64, position: u64) -> f64 {
    let low_high = |x: u64| [x as u32, (x >> 32) as u32];
    let [low, high] = low_high(position);
    let bits = philox([low, high, 0, 0], low_high(seed));
    let bits = u64::from(bits[1]) << 32 | u64::from(bits[0]);
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers of the authors' Random123 (kat_vectors, philox4x32 10).
    #[test]
    fn known_answers() {
        let check = |counter, key, expected: [u32; 4]| assert_eq!(philox(counter, key), expected);
        check([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        check([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        check(
            [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
            [0xa409_3822, 0x299f_31d0],
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
        );
    }

    #[test]
    fn uniform_numbers_are_below_one() {
        let sum: f64 = (0..10_000).map(|position| uniform(7, position)).sum();
        assert!((4_900.0..5_100.0).contains(&sum), "{sum}");
        assert!((0..10_000).all(|position| (0.0..1.0).contains(&uniform(u64::MAX, position))));
    }
}
