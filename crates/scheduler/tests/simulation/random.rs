//! Seeded numbers, and the fake model made of them.

use phalanx_scheduler::step::TokenId;

/// Tokens below this exist. So few that prompts often begin alike and stop tokens often come.
pub(crate) const VOCABULARY: u64 = 7;

/// SplitMix64 (Steele, Lea, Flood 2014).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// One of `low ..= high`.
    pub(crate) fn range(&mut self, low: usize, high: usize) -> usize {
        low + (self.next() % (high - low + 1) as u64) as usize
    }

    /// True in `percent` of a hundred cases.
    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// What a slot holds: it depends on its token and on all tokens before it, as keys and values do.
pub(crate) fn slot_content(before: Option<u64>, token: TokenId) -> u64 {
    mix(before.unwrap_or(1).wrapping_mul(31).wrapping_add(u64::from(token) + 1))
}

/// The next token, or none for a fault: a function of all tokens so far and of the sequence's own seed.
pub(crate) fn next_token(last_slot: u64, seed: u64) -> Option<TokenId> {
    let drawn = mix(last_slot ^ seed.rotate_left(32));
    (!drawn.is_multiple_of(301)).then_some(((drawn >> 32) % VOCABULARY) as TokenId)
}
