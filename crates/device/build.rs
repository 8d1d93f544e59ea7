//! Compiles `cuda/*.cu` into one static library when the feature `cuda` is on; does nothing otherwise.
//!
//! nvcc is taken from `PHALANX_NVCC_DIR` (a site-packages folder that NVIDIA's wheels are installed in, or a toolkit),
//! `CUDA_HOME`, `PATH`, or the wheels of `python3`, in this order. Objects are cached under the target folder by the
//! content of what they are made of. `PHALANX_CUDA_ARCHITECTURES` names what to build for, in place of the default.

#[allow(dead_code, unreachable_pub, reason = "the program asks more of it, and from elsewhere")]
#[path = "src/architecture.rs"]
mod architecture;

use std::collections::VecDeque;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use architecture::Architecture;

/// Machine code for every GPU from Ampere on that the toolkit knows, and PTX for those that come after it.
///
/// This takes 85 s of processor time and makes a library of 19 MB, of which sm_100 and sm_120 are 21 s and 8 MB. As PTX alone
/// they would be compiled by the driver at the first start, and from sm_80's have no overlapping launches; PTX of sm_90 takes
/// the compiler as long as both. sm_86 runs sm_80's code. PTX of sm_80 is made on the way to sm_80 and costs nothing.
const ARCHITECTURES: &str = "80,89,90a,100,120,80-ptx";
/// Installs NVIDIA's wheels where there is no toolkit.
const SCRIPT: &str = "PHALANX_NVCC_DIR=$(scripts/cuda-toolkit)";

struct Toolkit {
    nvcc: PathBuf,
    /// Folders that may hold `libcudart_static.a`: `lib64` in a toolkit, `lib` in the wheels.
    libraries: Vec<PathBuf>,
    found: String,
}

fn main() {
    for name in ["PHALANX_NVCC_DIR", "PHALANX_CUDA_ARCHITECTURES", "CUDA_HOME", "PATH"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/architecture.rs");
    println!("cargo::rerun-if-changed=cuda");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    match build() {
        Ok(text) => println!("cargo::warning=CUDA kernels {text}"),
        Err(message) => {
            println!("cargo::error={message}");
            std::process::exit(1);
        }
    }
}

fn build() -> Result<String, String> {
    let toolkit = find_toolkit()?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    // target/<profile>/build/<package>/out: the kernels are the same in every profile.
    let target = out.ancestors().nth(4).ok_or("OUT_DIR lies in the target folder")?;
    let cache = target.join("phalanx-cuda");
    fs::create_dir_all(&cache).map_err(|error| format!("cannot create {}: {error}", cache.display()))?;

    let headers = files_in(Path::new("cuda/common"), "cuh")?;
    let units = files_in(Path::new("cuda"), "cu")?;
    let architectures = architectures(&toolkit.nvcc)?;
    let flags = flags(&architectures);
    let mut objects = Vec::new();
    let mut missing = VecDeque::new();
    for unit in &units {
        let object = cache.join(object_name(unit, &headers, &flags, &toolkit.nvcc)?);
        if !object.exists() {
            missing.push_back((unit.clone(), object.clone()));
        }
        objects.push(object);
    }
    compile(&toolkit.nvcc, &flags, missing)?;
    archive(&out.join("libphalanx_cuda.a"), &objects)?;

    println!("cargo::rustc-link-search=native={}", out.display());
    for folder in &toolkit.libraries {
        println!("cargo::rustc-link-search=native={}", folder.display());
    }
    println!("cargo::rustc-link-lib=static=phalanx_cuda");
    println!("cargo::rustc-link-lib=static=cudart_static");
    for library in ["stdc++", "dl", "rt", "pthread"] {
        println!("cargo::rustc-link-lib={library}");
    }
    let names: Vec<String> = architectures.iter().map(ToString::to_string).collect();
    println!("cargo::rustc-env=PHALANX_CUDA_BUILT={}", names.join(","));
    Ok(format!("for {} compiled by {}", architecture::names(&architectures), toolkit.found))
}

/// What to build for: what was asked for, or of the default what this compiler knows.
fn architectures(nvcc: &Path) -> Result<Vec<Architecture>, String> {
    let known = known_numbers(nvcc)?;
    let knows = |architecture: &Architecture| known.contains(&architecture.capability);
    let Ok(asked) = env::var("PHALANX_CUDA_ARCHITECTURES") else {
        let all = Architecture::parse_list(ARCHITECTURES)?;
        return Ok(all.into_iter().filter(knows).collect());
    };
    let choice = || {
        let names: Vec<String> = known.iter().map(|(major, minor)| format!("{major}{minor}")).collect();
        format!(
            "{} can build for {}; 90a is Hopper with all it has, and each with -ptx behind it is PTX, such as 80-ptx",
            nvcc.display(),
            names.join(", ")
        )
    };
    let refuse = |why: String| format!("PHALANX_CUDA_ARCHITECTURES={asked}: {why}. {}", choice());
    let list = Architecture::parse_list(&asked).map_err(&refuse)?;
    match list.iter().find(|architecture| !knows(architecture)) {
        Some(unknown) => Err(refuse(format!("this compiler does not know {unknown}"))),
        None => Ok(list),
    }
}

/// Compute capabilities that the compiler knows and the kernels can use.
fn known_numbers(nvcc: &Path) -> Result<Vec<(u32, u32)>, String> {
    let output = Command::new(nvcc)
        .arg("--list-gpu-code")
        .output()
        .map_err(|error| format!("cannot start {}: {error}", nvcc.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    // Those that are too old are no names.
    let mut numbers: Vec<(u32, u32)> = text
        .split_whitespace()
        .filter_map(|name| Some(name.parse::<Architecture>().ok()?.capability))
        .collect();
    numbers.sort_unstable();
    match numbers.is_empty() {
        true => Err(format!("{} does not list the GPUs it compiles for", nvcc.display())),
        false => Ok(numbers),
    }
}

fn flags(architectures: &[Architecture]) -> Vec<String> {
    let mut flags: Vec<String> =
        ["-O3", "-std=c++17", "-lineinfo", "-Xcompiler=-fPIC"].iter().map(ToString::to_string).collect();
    flags.extend(Architecture::arguments(architectures));
    flags
}

fn find_toolkit() -> Result<Toolkit, String> {
    let mut tried = Vec::new();
    for (source, root) in candidates() {
        let nvcc = root.join("bin/nvcc");
        if !nvcc.is_file() {
            tried.push(format!("{} ({source})", root.display()));
            continue;
        }
        let libraries: Vec<PathBuf> = ["lib64", "lib", "targets/x86_64-linux/lib"]
            .iter()
            .map(|folder| root.join(folder))
            .filter(|folder| folder.join("libcudart_static.a").is_file())
            .collect();
        if libraries.is_empty() {
            return Err(format!(
                "{} has no libcudart_static.a beside it: install the runtime too, or build with {SCRIPT}",
                nvcc.display()
            ));
        }
        let found = format!("{} ({source})", nvcc.display());
        return Ok(Toolkit { nvcc, libraries, found });
    }
    Err(format!(
        "the feature cuda needs nvcc, and it is in none of: {}. Install the CUDA toolkit, or build with {SCRIPT}, which \
         installs NVIDIA's compiler from Python wheels",
        tried.join(", ")
    ))
}

/// Folders that may have `bin/nvcc`, and why.
fn candidates() -> Vec<(&'static str, PathBuf)> {
    let mut found = Vec::new();
    if let Some(folder) = env::var_os("PHALANX_NVCC_DIR") {
        found.extend(wheel_folders("PHALANX_NVCC_DIR", Path::new(&folder)));
        found.push(("PHALANX_NVCC_DIR", PathBuf::from(folder)));
    }
    if let Some(folder) = env::var_os("CUDA_HOME") {
        found.push(("CUDA_HOME", PathBuf::from(folder)));
    }
    for folder in env::split_paths(&env::var_os("PATH").unwrap_or_default()) {
        if folder.join("nvcc").is_file() {
            found.extend(folder.parent().map(|root| ("PATH", root.to_owned())));
        }
    }
    found.push(("default", PathBuf::from("/usr/local/cuda")));
    let script = "import sysconfig; print(sysconfig.get_paths()['purelib'])";
    if let Ok(output) = Command::new("python3").args(["-c", script]).output() {
        let folder = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        found.extend(wheel_folders("python3's wheels", Path::new(&folder)));
    }
    found
}

fn wheel_folders(source: &'static str, site_packages: &Path) -> [(&'static str, PathBuf); 2] {
    [(source, site_packages.join("nvidia/cu13")), (source, site_packages.join("nvidia/cuda_nvcc"))]
}

fn files_in(folder: &Path, extension: &str) -> Result<Vec<PathBuf>, String> {
    let entries =
        fs::read_dir(folder).map_err(|error| format!("cannot list {}: {error}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    files.sort();
    Ok(files)
}

/// The unit's name and a hash (FNV-1a) of everything its object depends on.
fn object_name(unit: &Path, headers: &[PathBuf], flags: &[String], nvcc: &Path) -> Result<String, String> {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut add = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    };
    add(nvcc.as_os_str().as_encoded_bytes());
    add(flags.join(" ").as_bytes());
    for path in headers.iter().map(PathBuf::as_path).chain([unit]) {
        add(path.as_os_str().as_encoded_bytes());
        add(&fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?);
    }
    let stem = unit.file_stem().map(OsString::from).unwrap_or_default();
    Ok(format!("{}-{hash:016x}.o", stem.to_string_lossy()))
}

fn compile(nvcc: &Path, flags: &[String], mut missing: VecDeque<(PathBuf, PathBuf)>) -> Result<(), String> {
    // A unit takes 200 MB at most, so as many at once as cargo may run.
    let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(2);
    let mut running: VecDeque<(PathBuf, PathBuf, Child)> = VecDeque::new();
    while !missing.is_empty() || !running.is_empty() {
        while running.len() < jobs
            && let Some((unit, object)) = missing.pop_front()
        {
            let child = Command::new(nvcc)
                .args(flags)
                .arg("-c")
                .arg(&unit)
                .arg("-o")
                .arg(object.with_extension("part"))
                .spawn()
                .map_err(|error| format!("cannot start {}: {error}", nvcc.display()))?;
            running.push_back((unit, object, child));
        }
        if let Some((unit, object, mut child)) = running.pop_front() {
            let status = child.wait().map_err(|error| format!("nvcc was lost: {error}"))?;
            if !status.success() {
                return Err(format!("nvcc could not compile crates/device/{} ({status})", unit.display()));
            }
            // A unit that was being written when the build was stopped never has an object's name.
            fs::rename(object.with_extension("part"), &object)
                .map_err(|error| format!("cannot name {}: {error}", object.display()))?;
        }
    }
    Ok(())
}

fn archive(library: &Path, objects: &[PathBuf]) -> Result<(), String> {
    // `ar` adds to an archive that exists.
    if library.exists() {
        fs::remove_file(library).map_err(|error| format!("cannot replace {}: {error}", library.display()))?;
    }
    let status = Command::new("ar")
        .arg("crs")
        .arg(library)
        .args(objects)
        .status()
        .map_err(|error| format!("cannot start ar (package binutils): {error}"))?;
    match status.success() {
        true => Ok(()),
        false => Err(format!("ar could not make {} ({status})", library.display())),
    }
}
