//! Checks every operation of GPU 0 against the CPU, shows that a planted mistake is found, and prints a speed table.
//!
//! `kernels [check] [planted] [group] [speed] [f16]`: without a word, everything in bfloat16.
#![allow(clippy::print_stdout)]

#[cfg(feature = "cuda")]
fn main() -> Result<(), phalanx_device::DeviceError> {
    use phalanx_device::DType;
    use phalanx_device::cpu::Cpu;
    use phalanx_device::cuda::parity::{self, Planted};
    use phalanx_device::cuda::{Cuda, speed};

    let words: Vec<String> = std::env::args().skip(1).collect();
    let says = |word: &str| words.iter().any(|said| said == word);
    let asked = |word: &str| says(word) || !["check", "planted", "speed", "group"].into_iter().any(says);
    let cuda = Cuda::new(0, if says("f16") { DType::F16 } else { DType::BF16 })?;
    println!("{}", phalanx_device::Backend::describe(&cuda));
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut failed = false;
    if asked("check") {
        let report = parity::run(&cuda, &Cpu::new(threads)?, Planted::Nothing);
        println!("{report}");
        failed |= !report.passed();
    }
    if asked("planted") {
        let report = parity::run(&cuda, &Cpu::new(threads)?, Planted::OffByOne);
        let missed: Vec<_> = report.outcomes.iter().filter(|outcome| outcome.passed()).collect();
        println!(
            "planted off-by-one: found in {} of {} cases",
            report.outcomes.len() - missed.len(),
            report.outcomes.len()
        );
        missed.iter().for_each(|outcome| println!("not found: {} {}", outcome.operation, outcome.case));
    }
    if says("group") {
        let count = phalanx_device::cuda::device_count()?;
        // With one GPU its ranks are two on it: slower, but as right.
        let ordinals: Vec<usize> = (0..count.max(2)).map(|rank| rank % count).collect();
        let report = phalanx_device::cuda::parity::group::run(&ordinals)?;
        println!("{report}");
        failed |= !report.passed();
    }
    if asked("speed") {
        println!("{}", speed::run(&cuda)?);
    }
    std::process::exit(i32::from(failed));
}

#[cfg(not(feature = "cuda"))]
fn main() {
    println!("this program needs the feature cuda");
}
