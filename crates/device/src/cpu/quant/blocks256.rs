//! The formats with blocks of 256: Q4_K, Q5_K and Q6_K.

/// Sub-block `index`'s 6-bit scale and minimum. The twelve bytes behind the two super-scales hold the low six bits
/// of scales 0 to 3, of minimums 0 to 3, then nibbles of scales and minimums 4 to 7, whose upper two bits are the
/// upper two of the first eight bytes.
pub(super) fn scale_and_minimum(block: &[u8], index: usize) -> (u8, u8) {
    let packed = &block[4..16];
    match index {
        0..4 => (packed[index] & 63, packed[index + 4] & 63),
        _ => {
            let nibbles = packed[index + 4];
            (nibbles & 15 | packed[index - 4] >> 6 << 4, nibbles >> 4 | packed[index] >> 6 << 4)
        }
    }
}

/// Codes of a `Q4K` block: each 32 bytes of nibbles are 32 low ones, then 32 high ones.
pub(super) fn codes_q4(block: &[u8], codes: &mut [u8]) {
    nibbles(&block[16..144], codes);
}

/// Codes of a `Q5K` block: bit `s` of fifth-bit byte `i` belongs to element `i` of sub-block `s`.
pub(super) fn codes_q5(block: &[u8], codes: &mut [u8]) {
    nibbles(&block[48..176], codes);
    let bits = &block[16..48];
    for (sub_block, codes) in codes.chunks_exact_mut(32).enumerate() {
        for (code, byte) in codes.iter_mut().zip(bits) {
            *code |= (byte >> sub_block & 1) << 4;
        }
    }
}

/// Codes of a `Q6K` block, in two halves of 128: 64 bytes of nibbles (64 low ones, then 64 high ones) and 32 bytes
/// of bit pairs (pair `s` of byte `i` belongs to element `i` of sub-block `s` of 32).
pub(super) fn codes_q6(block: &[u8], codes: &mut [u8]) {
    for (half, codes) in codes.chunks_exact_mut(128).enumerate() {
        let pairs = &block[128 + 32 * half..160 + 32 * half];
        for (sub_block, codes) in codes.chunks_exact_mut(32).enumerate() {
            let low = &block[64 * half + sub_block % 2 * 32..][..32];
            for ((code, low), pair) in codes.iter_mut().zip(low).zip(pairs) {
                *code = low >> (sub_block / 2 * 4) & 15 | (pair >> (2 * sub_block) & 3) << 4;
            }
        }
    }
}

fn nibbles(bytes: &[u8], codes: &mut [u8]) {
    for (bytes, codes) in bytes.chunks_exact(32).zip(codes.chunks_exact_mut(64)) {
        for (index, byte) in bytes.iter().enumerate() {
            codes[index] = byte & 15;
            codes[index + 32] = byte >> 4;
        }
    }
}
