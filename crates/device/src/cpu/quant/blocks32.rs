//! The formats with blocks of 32: Q8_0, Q4_0, Q4_1, Q5_0 and Q5_1.

/// Codes of a `Q8_0` block: its signed bytes plus 128.
pub(super) fn codes_q8_0(block: &[u8], codes: &mut [u8]) {
    for (code, byte) in codes.iter_mut().zip(&block[2..34]) {
        *code = byte ^ 0x80;
    }
}

/// Codes of 16 bytes of nibbles: the low ones are elements 0 to 15, the high ones 16 to 31.
pub(super) fn codes_4(nibbles: &[u8], codes: &mut [u8]) {
    let (low, high) = codes.split_at_mut(16);
    for ((low, high), byte) in low.iter_mut().zip(high).zip(nibbles) {
        *low = byte & 15;
        *high = byte >> 4;
    }
}

/// Codes of 32 fifth bits (bit `i` is element `i`'s), then nibbles as in [`codes_4`].
pub(super) fn codes_5(bits_and_nibbles: &[u8], codes: &mut [u8]) {
    let (bits, nibbles) = bits_and_nibbles.split_at(4);
    codes_4(nibbles, codes);
    for (bits, codes) in bits.iter().zip(codes.as_chunks_mut::<8>().0) {
        // Eight copies of the byte, a different bit left in each; adding 127 carries it to the top, from where it
        // goes to its place.
        let each = (u64::from(*bits) * 0x0101_0101_0101_0101) & 0x8040_2010_0804_0201;
        let fifth = ((each + 0x7f7f_7f7f_7f7f_7f7f) >> 3) & 0x1010_1010_1010_1010;
        *codes = (u64::from_le_bytes(*codes) | fifth).to_le_bytes();
    }
}
