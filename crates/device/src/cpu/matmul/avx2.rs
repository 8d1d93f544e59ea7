//! Block formats on AVX2: the two halves of each plane, eight rows of weights, one after the other.
//!
//! The trick: `vpmaddubsw` makes 32 products and adds pairs to 16 bits. Codes of at most six bits leave room to
//! add two planes before the sums are widened to 32 bits. Eight-bit codes would overflow: they are made signed,
//! and their sign given to `x`, so that two products stay below 2^15.
//!
//! Measured on one core of Zen 4 (3.7 GHz), weights in the cache: one row 15 (Q4_0) to 28 GB/s (Q8_0), many rows
//! 73 (Q8_0) to 137 GFLOP/s (Q4_0). There is no variant with AVX-VNNI, the 256-bit `vpdpbusd` of processors
//! without AVX-512.

use std::arch::x86_64::{
    __m256, __m256i, _MM_HINT_T1, _mm_loadl_epi64, _mm_loadu_si128, _mm_prefetch, _mm256_abs_epi8,
    _mm256_add_epi16, _mm256_add_epi32, _mm256_and_si256, _mm256_cvtepi8_epi32, _mm256_cvtepi32_ps,
    _mm256_cvtepu8_epi32, _mm256_cvtph_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256,
    _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_mul_ps, _mm256_or_si256, _mm256_set1_epi8,
    _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps, _mm256_sign_epi8,
    _mm256_slli_epi16, _mm256_srli_epi16, _mm256_storeu_ps, _mm256_storeu_si256, _mm256_sub_ps,
    _mm256_xor_si256,
};

use super::Sums;
use super::activations::{self, Block};
use super::chunk::{Chunk, Span};
use super::layout::Layout;
use crate::matrix::Format;

/// How far ahead memory is asked for, in bytes.
const AHEAD: usize = 48 << 10;

/// [`activations::quantize_row`], compiled for these instructions.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn quantize_row(format: Format, x: &[f32], out: &mut [Block]) {
    activations::quantize_row(format, x, out);
}

/// Unpacks the tiles and scales of `span` of a group.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn fill(layout: &Layout, group: &[u8], span: Span, chunk: &mut Chunk) {
    assert!(group.len() == layout.group_bytes, "a whole group");
    assert!((span.first + span.blocks) * layout.tile_bytes <= layout.scales_at, "tiles of the group");
    // SAFETY: the span's tiles and scales lie in the group.
    unsafe {
        match layout.tile_bytes {
            512 => fill_tiles::<512>(layout, group, span, chunk),
            384 => fill_tiles::<384>(layout, group, span, chunk),
            320 => fill_tiles::<320>(layout, group, span, chunk),
            _ => fill_tiles::<256>(layout, group, span, chunk),
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn fill_tiles<const TILE: usize>(layout: &Layout, group: &[u8], span: Span, chunk: &mut Chunk) {
    for index in 0..span.blocks {
        let tile = span.first + index;
        for line in 0..TILE.div_ceil(64) {
            // As `avx512::prefetch`. A prefetch of memory that is not ours does nothing.
            let at = group.as_ptr().wrapping_add(AHEAD + tile * TILE + 64 * line);
            _mm_prefetch::<_MM_HINT_T1>(at.cast());
        }
        for half in 0..2 {
            // SAFETY: the tile and its scales lie in the group, the outputs in the chunk's arrays.
            unsafe {
                let planes = unpack::<TILE>(group.as_ptr().add(tile * TILE + 32 * half));
                let out = chunk.codes[index].as_mut_ptr().add(32 * half);
                for (plane, codes) in planes.into_iter().enumerate() {
                    _mm256_storeu_si256(out.add(64 * plane).cast(), codes);
                }
                let (low, high, minimum) = scales(layout, group.as_ptr().add(layout.scales_at), tile, half);
                _mm256_storeu_ps(chunk.scales[2 * index].as_mut_ptr().add(8 * half), low);
                _mm256_storeu_ps(chunk.scales[2 * index + 1].as_mut_ptr().add(8 * half), high);
                _mm256_storeu_ps(chunk.minimums[index].as_mut_ptr().add(8 * half), minimum);
            }
        }
    }
}

/// Sums of products of a chunk with some rows of `x`, of which `rows` holds `stride` blocks each, from the chunk's
/// first.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn dot(
    layout: &Layout,
    chunk: &Chunk,
    span: Span,
    rows: &[Block],
    stride: usize,
    sums: &mut Sums,
) {
    assert!(sums.is_empty() || (sums.len() - 1) * stride + span.blocks <= rows.len(), "rows of x");
    let (mut sums, mut rows) = (sums, rows);
    while !sums.is_empty() {
        let tokens = 1 << sums.len().min(4).ilog2();
        let (now, later) = sums.split_at_mut(tokens);
        // SAFETY: `rows` holds the span's blocks of `tokens` rows.
        unsafe {
            match tokens {
                4 => dot_rows::<4>(layout, chunk, span, rows, stride, now),
                2 => dot_rows::<2>(layout, chunk, span, rows, stride, now),
                _ => dot_rows::<1>(layout, chunk, span, rows, stride, now),
            }
        }
        sums = later;
        rows = rows.get(tokens * stride..).unwrap_or_default();
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dot_rows<const T: usize>(
    layout: &Layout,
    chunk: &Chunk,
    span: Span,
    rows: &[Block],
    stride: usize,
    sums: &mut Sums,
) {
    // SAFETY: the caller's.
    unsafe {
        match (layout.tile_bytes, layout.scale_bytes) {
            (512, _) => dot_chunk::<512, 32, T>(chunk, span, rows, stride, sums),
            (_, 32) => dot_chunk::<256, 32, T>(chunk, span, rows, stride, sums),
            (_, 288) => dot_chunk::<256, 288, T>(chunk, span, rows, stride, sums),
            _ => dot_chunk::<256, 320, T>(chunk, span, rows, stride, sums),
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dot_chunk<const TILE: usize, const SCALES: usize, const T: usize>(
    chunk: &Chunk,
    span: Span,
    rows: &[Block],
    stride: usize,
    sums: &mut Sums,
) {
    for half in 0..2 {
        let mut totals = [_mm256_setzero_ps(); T];
        for index in 0..span.blocks {
            // SAFETY: the chunk's arrays hold the index, `rows` holds block `index` of `T` rows.
            unsafe {
                let codes = chunk.codes[index].as_ptr().add(32 * half);
                let low = _mm256_loadu_ps(chunk.scales[2 * index].as_ptr().add(8 * half));
                let high = _mm256_loadu_ps(chunk.scales[2 * index + 1].as_ptr().add(8 * half));
                let minimum = _mm256_loadu_ps(chunk.minimums[index].as_ptr().add(8 * half));
                for (token, total) in totals.iter_mut().enumerate() {
                    let x = &*rows.as_ptr().add(token * stride + index);
                    *total = product::<TILE, SCALES>(codes, (low, high, minimum), x, *total);
                }
            }
        }
        for (total, sums) in totals.into_iter().zip(sums.iter_mut()) {
            // SAFETY: eight of sixteen floats.
            unsafe { _mm256_storeu_ps(sums.as_mut_ptr().add(8 * half), total) };
        }
    }
}

/// Adds a half tile's product with a block of `x` to `sum`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn product<const TILE: usize, const SCALES: usize>(
    codes: *const u8,
    (low, high, minimum): (__m256, __m256, __m256),
    x: &Block,
    sum: __m256,
) -> __m256 {
    // SAFETY: eight planes 64 bytes apart; four codes of 32 from an array aligned to 16.
    let dot = |from: usize, to: usize, start: i32| unsafe {
        let mut dot = _mm256_set1_epi32(start);
        for plane in (from..to).step_by(2) {
            let pair = pair_sum::<TILE>(codes.add(64 * plane), x.codes.as_ptr().add(4 * plane));
            dot = _mm256_add_epi32(dot, pair);
        }
        _mm256_cvtepi32_ps(dot)
    };
    let x_scale = _mm256_set1_ps(x.scale);
    match (TILE, SCALES) {
        (_, 288) => {
            let sum = _mm256_fmadd_ps(dot(0, 4, x.corrections[0]), _mm256_mul_ps(low, x_scale), sum);
            _mm256_fmadd_ps(dot(4, 8, x.corrections[1]), _mm256_mul_ps(high, x_scale), sum)
        }
        // Signed codes have no zero point to correct.
        (512, _) => _mm256_fmadd_ps(dot(0, 8, 0), _mm256_mul_ps(low, x_scale), sum),
        (_, 32) => _mm256_fmadd_ps(dot(0, 8, x.corrections[0]), _mm256_mul_ps(low, x_scale), sum),
        _ => {
            let sum = _mm256_fmadd_ps(dot(0, 8, 0), _mm256_mul_ps(low, x_scale), sum);
            _mm256_fmadd_ps(minimum, _mm256_set1_ps(x.weighted_sum), sum)
        }
    }
}

/// Two planes' products with eight codes of `x`, summed to 32 bits.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn pair_sum<const TILE: usize>(codes: *const u8, x: *const i8) -> __m256i {
    // SAFETY: planes 64 bytes apart; eight aligned codes of `x`.
    let ((a, b), (x, y)) = unsafe {
        let planes = (_mm256_loadu_si256(codes.cast()), _mm256_loadu_si256(codes.add(64).cast()));
        let x = x.cast::<i32>();
        (planes, (_mm256_set1_epi32(*x), _mm256_set1_epi32(*x.add(1))))
    };
    let ones = _mm256_set1_epi16(1);
    if TILE == 512 {
        let product = |codes: __m256i, x: __m256i| {
            let signed = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
            let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(signed), _mm256_sign_epi8(x, signed));
            _mm256_madd_epi16(pairs, ones)
        };
        return _mm256_add_epi32(product(a, x), product(b, y));
    }
    let pairs = _mm256_add_epi16(_mm256_maddubs_epi16(a, x), _mm256_maddubs_epi16(b, y));
    _mm256_madd_epi16(pairs, ones)
}

/// One half of the planes of a tile of `TILE` bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn unpack<const TILE: usize>(tile: *const u8) -> [__m256i; 8] {
    // SAFETY: half vector `index` is inside the tile.
    let load = |index: usize| unsafe { _mm256_loadu_si256(tile.add(64 * index).cast()) };
    if TILE == 512 {
        return [load(0), load(1), load(2), load(3), load(4), load(5), load(6), load(7)];
    }
    let low = |codes: __m256i| _mm256_and_si256(codes, _mm256_set1_epi8(15));
    let high = |codes: __m256i| low(_mm256_srli_epi16::<4>(codes));
    let (a, b, c, d) = (load(0), load(1), load(2), load(3));
    let mut planes = [low(a), low(b), low(c), low(d), high(a), high(b), high(c), high(d)];
    // Shifts move bits across bytes of a 16-bit lane, too; the mask keeps only those that stayed in their byte.
    let (bits, mask) = match TILE {
        320 => (fifth_bits(load(4)), _mm256_set1_epi8(0x10)),
        384 => (pairs(load(4), load(5)), _mm256_set1_epi8(0x30)),
        _ => return planes,
    };
    for (plane, bits) in planes.iter_mut().zip(bits) {
        *plane = _mm256_or_si256(*plane, _mm256_and_si256(bits, mask));
    }
    planes
}

/// For each plane, its bit of each byte moved to bit 4.
#[inline]
#[target_feature(enable = "avx2")]
fn fifth_bits(bits: __m256i) -> [__m256i; 8] {
    [
        _mm256_slli_epi16::<4>(bits),
        _mm256_slli_epi16::<3>(bits),
        _mm256_slli_epi16::<2>(bits),
        _mm256_slli_epi16::<1>(bits),
        bits,
        _mm256_srli_epi16::<1>(bits),
        _mm256_srli_epi16::<2>(bits),
        _mm256_srli_epi16::<3>(bits),
    ]
}

/// For each plane, its pair of bits of each byte moved to bits 4 and 5.
#[inline]
#[target_feature(enable = "avx2")]
fn pairs(a: __m256i, b: __m256i) -> [__m256i; 8] {
    [
        _mm256_slli_epi16::<4>(a),
        _mm256_slli_epi16::<2>(a),
        a,
        _mm256_srli_epi16::<2>(a),
        _mm256_slli_epi16::<4>(b),
        _mm256_slli_epi16::<2>(b),
        b,
        _mm256_srli_epi16::<2>(b),
    ]
}

/// Scales of eight rows of tile `tile`: of the tile or of its first 16 columns, of its second 16 columns, and
/// minimums.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn scales(layout: &Layout, scales: *const u8, tile: usize, half: usize) -> (__m256, __m256, __m256) {
    // SAFETY: all offsets are inside the block's scales.
    unsafe {
        let float = |at: *const u8| _mm256_cvtph_ps(_mm_loadu_si128(at.add(16 * half).cast()));
        let zero = _mm256_setzero_ps();
        match layout.scale_bytes {
            32 => (float(scales.add(tile * 32)), zero, zero),
            64 => (float(scales.add(tile * 64)), zero, float(scales.add(tile * 64 + 32))),
            320 => {
                let block = scales.add(tile / 8 * 320);
                let at = block.add(64 + tile % 8 * 32 + 8 * half);
                let byte =
                    |at: *const u8| _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(at.cast())));
                let minimum = _mm256_mul_ps(float(block.add(32)), byte(at.add(16)));
                (_mm256_mul_ps(float(block), byte(at)), zero, _mm256_sub_ps(_mm256_set1_ps(-0.0), minimum))
            }
            _ => {
                let block = scales.add(tile / 8 * 288);
                let at = block.add(32 + tile % 8 * 32 + 8 * half);
                let byte =
                    |at: *const u8| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(at.cast())));
                let d = float(block);
                (_mm256_mul_ps(d, byte(at)), _mm256_mul_ps(d, byte(at.add(16))), zero)
            }
        }
    }
}
