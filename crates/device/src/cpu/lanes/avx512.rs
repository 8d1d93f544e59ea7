//! Sixteen lanes as one AVX-512 register.

#[allow(clippy::wildcard_imports, reason = "intrinsics say what they are by their names")]
use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{Kernel, LANES, Lanes, Registers};
use crate::cpu::features::{Features, Level};

/// Only where the processor has AVX-512 F.
#[derive(Clone, Copy)]
pub(super) struct Avx512(());

/// Runs `kernel` compiled for AVX-512.
pub(super) fn run<K: Kernel>(features: Features, kernel: K) -> K::Output {
    assert!(features.level() == Level::Avx512, "this processor has AVX-512");
    // SAFETY: `Features` of this level are only made where these instructions were detected.
    unsafe { compiled(kernel) }
}

#[target_feature(enable = "avx512f,avx2,fma,f16c")]
fn compiled<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx512(()))
}

/// Methods whose bodies are intrinsics.
macro_rules! methods {
    ($($name:ident($($argument:ident: $kind:ty),*) -> $out:ty = $body:expr;)*) => {$(
        #[inline(always)]
        fn $name(self, $($argument: $kind),*) -> $out {
            // SAFETY: a token exists only inside `compiled`, so the processor has the instructions; loads and stores
            // go through references to arrays of 16 elements, and need no alignment.
            unsafe { $body }
        }
    )*};
}

impl Lanes for Avx512 {
    type V = __m512;
    const REGISTERS: Registers = Registers::Many;

    methods! {
        splat(x: f32) -> __m512 = _mm512_set1_ps(x);
        load(from: &[f32; LANES]) -> __m512 = _mm512_loadu_ps(from.as_ptr());
        store(to: &mut [f32; LANES], v: __m512) -> () = _mm512_storeu_ps(to.as_mut_ptr(), v);
        load_f16(from: &[f16; LANES]) -> __m512 = _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast()));
        store_f16(to: &mut [f16; LANES], v: __m512) -> () = _mm256_storeu_si256(
            to.as_mut_ptr().cast(),
            _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v),
        );
        load_bf16(from: &[bf16; LANES]) -> __m512 = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(
            _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast())),
        ));
        add(a: __m512, b: __m512) -> __m512 = _mm512_add_ps(a, b);
        sub(a: __m512, b: __m512) -> __m512 = _mm512_sub_ps(a, b);
        mul(a: __m512, b: __m512) -> __m512 = _mm512_mul_ps(a, b);
        div(a: __m512, b: __m512) -> __m512 = _mm512_div_ps(a, b);
        mul_add(a: __m512, b: __m512, c: __m512) -> __m512 = _mm512_fmadd_ps(a, b, c);
        max(a: __m512, b: __m512) -> __m512 = _mm512_max_ps(a, b);
        min(a: __m512, b: __m512) -> __m512 = _mm512_min_ps(a, b);
        power_of_two(magic_plus_n: __m512) -> __m512 = _mm512_castsi512_ps(_mm512_slli_epi32::<23>(
            _mm512_add_epi32(_mm512_castps_si512(magic_plus_n), _mm512_set1_epi32(127)),
        ));
        any_reaches(a: __m512, b: __m512) -> bool = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(a, b) != 0;
        transpose(rows: [__m512; LANES]) -> [__m512; LANES] = transpose(rows);
    }
}

/// 16 x 16 by 64 shuffles: pairs, quadruples, then 128-bit quarters twice.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(r: [__m512; LANES]) -> [__m512; LANES] {
    let mut t = r;
    // Quarters of t[4 k + i] hold columns i, 4 + i, 8 + i, 12 + i of rows 4 k .. 4 k + 4.
    for k in 0..4 {
        let [a, b, c, d] = [r[4 * k], r[4 * k + 1], r[4 * k + 2], r[4 * k + 3]];
        let (ab_low, ab_high) = (_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        let (cd_low, cd_high) = (_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
        let join_low = |x, y| _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(x), _mm512_castps_pd(y)));
        let join_high = |x, y| _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(x), _mm512_castps_pd(y)));
        t[4 * k] = join_low(ab_low, cd_low);
        t[4 * k + 1] = join_high(ab_low, cd_low);
        t[4 * k + 2] = join_low(ab_high, cd_high);
        t[4 * k + 3] = join_high(ab_high, cd_high);
    }
    let mut out = r;
    for i in 0..4 {
        let even_low = _mm512_shuffle_f32x4::<0x88>(t[i], t[4 + i]);
        let even_high = _mm512_shuffle_f32x4::<0x88>(t[8 + i], t[12 + i]);
        let odd_low = _mm512_shuffle_f32x4::<0xdd>(t[i], t[4 + i]);
        let odd_high = _mm512_shuffle_f32x4::<0xdd>(t[8 + i], t[12 + i]);
        out[i] = _mm512_shuffle_f32x4::<0x88>(even_low, even_high);
        out[8 + i] = _mm512_shuffle_f32x4::<0xdd>(even_low, even_high);
        out[4 + i] = _mm512_shuffle_f32x4::<0x88>(odd_low, odd_high);
        out[12 + i] = _mm512_shuffle_f32x4::<0xdd>(odd_low, odd_high);
    }
    out
}
