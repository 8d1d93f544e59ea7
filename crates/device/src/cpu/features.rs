//! What this processor's vector units can do, found at run time.

/// A set of instructions that kernels are written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// No more than the compiler's target has.
    Portable,
    /// x86-64 with AVX2, FMA and F16C (Haswell, Zen and later).
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ, VL and VNNI (Ice Lake, Zen 4 and later).
    Avx512,
}

/// What kernels may use. A value can only be had for instructions the machine has, so kernels may trust it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    level: Level,
    bf16: bool,
}

impl Features {
    /// The best this machine has.
    #[must_use]
    pub fn detect() -> Self {
        Self::available().pop().expect("the portable set is always there")
    }

    /// Every set this machine can run, best last; tests run them all.
    #[must_use]
    pub fn available() -> Vec<Self> {
        #[allow(unused_mut)]
        let mut sets = vec![Self { level: Level::Portable, bf16: false }];
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            let avx512 = avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni");
            sets.extend(avx2.then_some(Self { level: Level::Avx2, bf16: false }));
            sets.extend(avx512.then_some(Self { level: Level::Avx512, bf16: false }));
            let bf16 = avx512 && is_x86_feature_detected!("avx512bf16");
            sets.extend(bf16.then_some(Self { level: Level::Avx512, bf16: true }));
        }
        sets
    }

    /// The instructions.
    #[must_use]
    pub fn level(self) -> Level {
        self.level
    }

    /// Whether `Level::Avx512` comes with products of bfloat16 pairs.
    #[must_use]
    pub fn bf16(self) -> bool {
        self.bf16
    }

    /// For people.
    #[must_use]
    pub fn describe(self) -> &'static str {
        match (self.level, self.bf16) {
            (Level::Portable, _) => "portable",
            (Level::Avx2, _) => "AVX2",
            (Level::Avx512, false) => "AVX-512 VNNI",
            (Level::Avx512, true) => "AVX-512 VNNI + BF16",
        }
    }
}
