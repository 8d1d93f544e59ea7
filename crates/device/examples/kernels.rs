//! Checks every operation of GPU 0 against the CPU, shows that a planted mistake is found, and prints a speed table.
//!
//! `kernels [check] [planted] [group [host | library] [nccl]] [speed] [f16] [lib=FOLDER]`: without a word, everything of one
//! GPU in bfloat16. `group`: what ranks do together, on all GPUs and with two ranks on each; `host`: over host memory;
//! `nccl`: NCCL, too; `library`: NCCL chosen for everything, also for the sum that a rank does not come to.
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
        failed |= !group(says, folders(&words))?;
    }
    if asked("speed") {
        println!("{}", speed::run(&cuda)?);
    }
    std::process::exit(i32::from(failed));
}

/// Where NVIDIA's libraries are looked for first.
#[cfg(feature = "cuda")]
fn folders(words: &[String]) -> Vec<std::path::PathBuf> {
    words.iter().filter_map(|word| word.strip_prefix("lib=")).map(Into::into).collect()
}

/// What ranks do together: one a GPU, then two a GPU, then how fast.
#[cfg(feature = "cuda")]
fn group(
    says: impl Fn(&str) -> bool,
    folders: Vec<std::path::PathBuf>,
) -> Result<bool, phalanx_device::DeviceError> {
    use phalanx_device::cuda::group::form::{AllReduce, Options, form};
    use phalanx_device::cuda::group::mail::Traffic;
    use phalanx_device::cuda::group::speed;
    use phalanx_device::cuda::{device_count, parity};

    let count = device_count()?;
    let options = Options {
        deadline: std::time::Duration::from_secs(10),
        all_reduce: match (says("library"), says("host")) {
            (true, _) => AllReduce::Nccl,
            (_, true) => AllReduce::Host,
            _ => AllReduce::Auto,
        },
        folders,
        compare: says("nccl"),
        floor: None,
    };
    let each: Vec<usize> = (0..count).collect();
    let twice: Vec<usize> = (0..count).flat_map(|gpu| [gpu, gpu]).collect();
    // NCCL wants a GPU for each rank.
    let groups = if says("library") { vec![&each] } else { vec![&each, &twice] };
    let mut passed = true;
    for ordinals in groups.into_iter().filter(|ordinals| 1 < ordinals.len()) {
        let report = parity::group::run(ordinals, &options)?;
        report.outcomes.iter().filter(|outcome| !outcome.passed()).for_each(|outcome| {
            println!("MISS {} {} {}", outcome.operation, outcome.case, outcome.error);
        });
        report.outcomes.iter().filter(|outcome| outcome.operation == "fault").for_each(|outcome| {
            println!("{}", outcome.case);
        });
        let good = report.outcomes.iter().filter(|outcome| outcome.passed()).count();
        println!("ranks on GPUs {ordinals:?}: {good} of {} cases passed", report.outcomes.len());
        passed &= report.passed();
    }
    if 1 < count {
        let started = std::time::Instant::now();
        let formed = form(&each, Traffic::Sums, &options)?;
        println!("{}formed in {:?}", formed.links, started.elapsed());
        println!("{}", speed::run(formed, &each)?);
    }
    Ok(passed)
}

#[cfg(not(feature = "cuda"))]
fn main() {
    println!("this program needs the feature cuda");
}
