//! Sixteen lanes as two AVX registers.

#[allow(clippy::wildcard_imports, reason = "intrinsics say what they are by their names")]
use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{Kernel, LANES, Lanes, Registers};
use crate::cpu::features::{Features, Level};

/// Only where the processor has AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

/// Runs `kernel` compiled for AVX2.
pub(super) fn run<K: Kernel>(features: Features, kernel: K) -> K::Output {
    assert!(Level::Avx2 <= features.level(), "this processor has AVX2");
    // SAFETY: `Features` of this level are only made where these instructions were detected.
    unsafe { compiled(kernel) }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn compiled<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx2(()))
}

/// Methods whose bodies are intrinsics.
macro_rules! methods {
    ($($name:ident($($argument:ident: $kind:ty),*) -> $out:ty = $body:expr;)*) => {$(
        #[inline(always)]
        fn $name(self, $($argument: $kind),*) -> $out {
            // SAFETY: a token exists only inside `compiled`, so the processor has the instructions; loads and stores
            // go through references to arrays of 16 elements, touch only these, and need no alignment.
            unsafe { $body }
        }
    )*};
}

/// Lanes 0 to 7, lanes 8 to 15.
type Pair = [__m256; 2];

impl Lanes for Avx2 {
    type V = Pair;
    const REGISTERS: Registers = Registers::Few;

    methods! {
        splat(x: f32) -> Pair = [_mm256_set1_ps(x); 2];
        load(from: &[f32; LANES]) -> Pair = [_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from[8..].as_ptr())];
        store(to: &mut [f32; LANES], v: Pair) -> () = {
            _mm256_storeu_ps(to.as_mut_ptr(), v[0]);
            _mm256_storeu_ps(to[8..].as_mut_ptr(), v[1]);
        };
        load_f16(from: &[f16; LANES]) -> Pair = [
            _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast())),
            _mm256_cvtph_ps(_mm_loadu_si128(from[8..].as_ptr().cast())),
        ];
        store_f16(to: &mut [f16; LANES], v: Pair) -> () = {
            let halves = v.map(|v| _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v));
            _mm_storeu_si128(to.as_mut_ptr().cast(), halves[0]);
            _mm_storeu_si128(to[8..].as_mut_ptr().cast(), halves[1]);
        };
        load_bf16(from: &[bf16; LANES]) -> Pair = [widen(from.as_ptr().cast()), widen(from[8..].as_ptr().cast())];
        add(a: Pair, b: Pair) -> Pair = [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])];
        sub(a: Pair, b: Pair) -> Pair = [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])];
        mul(a: Pair, b: Pair) -> Pair = [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])];
        div(a: Pair, b: Pair) -> Pair = [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])];
        mul_add(a: Pair, b: Pair, c: Pair) -> Pair =
            [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])];
        max(a: Pair, b: Pair) -> Pair = [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])];
        min(a: Pair, b: Pair) -> Pair = [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])];
        power_of_two(magic_plus_n: Pair) -> Pair = [exponent(magic_plus_n[0]), exponent(magic_plus_n[1])];
        any_reaches(a: Pair, b: Pair) -> bool = {
            let low = _mm256_cmp_ps::<_CMP_GE_OQ>(a[0], b[0]);
            let high = _mm256_cmp_ps::<_CMP_GE_OQ>(a[1], b[1]);
            _mm256_movemask_ps(_mm256_or_ps(low, high)) != 0
        };
        transpose(rows: [Pair; LANES]) -> [Pair; LANES] = {
            let quarter = |first: usize, half: usize| {
                transpose([0, 1, 2, 3, 4, 5, 6, 7].map(|row| rows[first + row][half]))
            };
            let (q00, q01, q10, q11) = (quarter(0, 0), quarter(0, 1), quarter(8, 0), quarter(8, 1));
            std::array::from_fn(|i| if i < 8 { [q00[i], q10[i]] } else { [q01[i - 8], q11[i - 8]] })
        };
    }
}

/// Eight bfloat16 at `from`, which the caller vouches for.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn widen(from: *const __m128i) -> __m256 {
    // SAFETY: the caller's reference covers these 16 bytes.
    let halves = unsafe { _mm_loadu_si128(from) };
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves)))
}

#[inline]
#[target_feature(enable = "avx2")]
fn exponent(magic_plus_n: __m256) -> __m256 {
    let biased = _mm256_add_epi32(_mm256_castps_si256(magic_plus_n), _mm256_set1_epi32(127));
    _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
}

/// 8 x 8 by 24 shuffles: pairs, quadruples, then 128-bit halves.
#[inline]
#[target_feature(enable = "avx2")]
fn transpose(r: [__m256; 8]) -> [__m256; 8] {
    let mut t = r;
    // Halves of t[4 k + i] hold columns i and 4 + i of rows 4 k .. 4 k + 4.
    for k in 0..2 {
        let [a, b, c, d] = [r[4 * k], r[4 * k + 1], r[4 * k + 2], r[4 * k + 3]];
        let (ab_low, ab_high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
        let (cd_low, cd_high) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
        t[4 * k] = _mm256_shuffle_ps::<0x44>(ab_low, cd_low);
        t[4 * k + 1] = _mm256_shuffle_ps::<0xee>(ab_low, cd_low);
        t[4 * k + 2] = _mm256_shuffle_ps::<0x44>(ab_high, cd_high);
        t[4 * k + 3] = _mm256_shuffle_ps::<0xee>(ab_high, cd_high);
    }
    let mut out = r;
    for i in 0..4 {
        out[i] = _mm256_permute2f128_ps::<0x20>(t[i], t[4 + i]);
        out[4 + i] = _mm256_permute2f128_ps::<0x31>(t[i], t[4 + i]);
    }
    out
}
