//! What `doctor` says of the machine around the GPUs: processor, memory, limits, disk, port.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use phalanx_device::cpu::features::{Features, Level};
use rustix::fs::OFlags;
use rustix::process::{Resource, getrlimit};
use serde_json::json;

use super::finding::Finding;
use crate::plan::gib;

/// A connection takes a file, and so do a model's shards.
const FEW_FILES: u64 = 4096;
/// Qwen2.5-7B in 16 bits, with room for a second download.
const LITTLE_SPACE: u64 = 20 << 30;
const LITTLE_MEMORY: usize = 4 << 30;
/// Below this, loading takes longer than everything else of a start.
const SLOW_DISK: f64 = 500e6;
/// What a probe of the disk reads at most, and for how long.
const PROBE_BYTES: u64 = 512 << 20;
const PROBE_TIME: Duration = Duration::from_secs(2);
const PROBE_CHUNK: usize = 4 << 20;
const PROBE_THREADS: u64 = 4;
/// Reads past the page cache must begin and end on such a border, on disk and in memory.
const SECTOR: usize = 4096;

/// Cores, instructions, and memory.
pub(crate) fn processor() -> Vec<Finding> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    vec![
        cpu(cores, Features::detect().level(), Features::detect().describe()),
        memory(phalanx_device::cpu::memory::available()),
    ]
}

fn cpu(cores: usize, level: Level, instructions: &str) -> Finding {
    let text = format!("{cores} cores, {instructions}");
    let finding = match level {
        Level::Portable if cfg!(target_arch = "x86_64") => Finding::warn(
            "cpu",
            format!("{cores} cores, without AVX2"),
            "models run many times slower on this CPU: if it is a virtual machine, let it pass the host's CPU on",
        ),
        Level::Portable | Level::Avx2 | Level::Avx512 => Finding::ok("cpu", text),
    };
    finding.with(json!({"cores": cores, "instructions": instructions}))
}

fn memory(available: Option<usize>) -> Finding {
    let finding = match available {
        None => Finding::ok("memory", "the system does not say what is free"),
        Some(free) if free < LITTLE_MEMORY => Finding::warn(
            "memory",
            format!("{} free", gib(free)),
            "end what else runs, or raise the container's limit: the smallest model wants 2 GiB, the cache more",
        ),
        Some(free) => Finding::ok("memory", format!("{} free", gib(free))),
    };
    finding.with(json!({"available_bytes": available}))
}

/// What the system allows this process.
pub(crate) fn limits() -> Vec<Finding> {
    let (files, locked) = (getrlimit(Resource::Nofile), getrlimit(Resource::Memlock));
    // A server raises its own limit to the most that is allowed.
    vec![open_files(files.maximum), locked_memory(locked.current)]
}

fn open_files(limit: Option<u64>) -> Finding {
    let finding = match limit {
        Some(limit) if limit < FEW_FILES => Finding::warn(
            "limit",
            format!("{limit} open files: about as many clients at once"),
            "raise it with `ulimit -n 65536`, LimitNOFILE= of systemd, or --ulimit nofile=65536 of docker",
        ),
        Some(limit) => Finding::ok("limit", format!("{limit} open files")),
        None => Finding::ok("limit", "any number of open files"),
    };
    finding.with(json!({"open_files": limit}))
}

/// Said, not judged: the driver's pinned buffers do not count, only those of network cards between nodes do.
fn locked_memory(limit: Option<u64>) -> Finding {
    let text = match limit {
        Some(limit) => format!("{} of locked memory (enough on one node)", gib(limit as usize)),
        None => "any amount of locked memory".to_owned(),
    };
    Finding::ok("limit", text).with(json!({"locked_memory_bytes": limit}))
}

/// Whether the server could listen there.
pub(crate) fn port(address: SocketAddr) -> Finding {
    let bound = TcpListener::bind(address).and_then(|listener| listener.local_addr());
    let finding = match bound {
        Ok(bound) => Finding::ok("port", format!("{bound} is free")),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Finding::fail(
            "port",
            format!("{address} is in use"),
            format!(
                "end what serves there (`ss -ltnp 'sport = :{}'` names it), or give another --port",
                address.port()
            ),
        ),
        Err(error) => Finding::fail(
            "port",
            format!("{address} cannot be listened on: {error}"),
            "give another --port (above 1024 without rights) or a --host of this machine",
        ),
    };
    finding.with(json!({"address": address.to_string()}))
}

/// Space where models are kept. `folder` need not exist yet.
pub(crate) fn space(folder: &Path) -> Finding {
    let there = folder.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
    // An empty path is the current folder.
    let there = if there.as_os_str().is_empty() { Path::new(".") } else { there };
    match rustix::fs::statvfs(there) {
        Ok(disk) => space_left(folder, disk.f_bavail.saturating_mul(disk.f_frsize)),
        Err(error) => Finding::fail(
            "disk",
            format!("{} cannot be looked at: {error}", there.display()),
            "give a readable folder with --cache-dir",
        ),
    }
}

fn space_left(folder: &Path, free: u64) -> Finding {
    let text = format!("{} free for models in {}", gib(free as usize), folder.display());
    let finding = match free < LITTLE_SPACE {
        true => Finding::warn(
            "disk",
            text,
            "a 7B model takes 15 GB: make room, or give a folder of a larger disk with --cache-dir",
        ),
        false => Finding::ok("disk", text),
    };
    finding.with(json!({"folder": folder.display().to_string(), "free_bytes": free}))
}

/// How fast this file is read from its disk.
pub(crate) fn reading(file: &Path) -> Finding {
    match probe(file) {
        Ok((rate, cached)) => read_rate(file, rate, cached),
        Err(error) => Finding::fail(
            "disk",
            format!("{} cannot be read: {error}", file.display()),
            "look at its rights, and at the disk (`dmesg`)",
        ),
    }
}

fn read_rate(file: &Path, rate: f64, cached: bool) -> Finding {
    let manner = if cached { " (perhaps from memory)" } else { "" };
    let text = format!("{:.2} GB/s read{manner} from {}", rate / 1e9, file.display());
    let finding = match rate < SLOW_DISK {
        true => Finding::warn(
            "disk",
            text,
            format!("a 15 GB model takes {:.0} s to load from here: keep models on a local SSD", 15e9 / rate),
        ),
        false => Finding::ok("disk", text),
    };
    finding
        .with(json!({"file": file.display().to_string(), "bytes_per_second": rate, "may_be_cached": cached}))
}

/// Bytes a second, and whether the page cache may have had a part in it.
fn probe(path: &Path) -> std::io::Result<(f64, bool)> {
    let direct = File::options().read(true).custom_flags(OFlags::DIRECT.bits() as i32).open(path);
    match direct.and_then(|file| read(&file)) {
        Ok(rate) => Ok((rate, false)),
        // Not every file system can do without its cache.
        Err(_) => Ok((read(&File::open(path)?)?, true)),
    }
}

/// Several threads, as loading has them, each in its own part of the file.
fn read(file: &File) -> std::io::Result<f64> {
    let bytes = file.metadata()?.len().min(PROBE_BYTES);
    let share = (bytes / PROBE_THREADS).next_multiple_of(PROBE_CHUNK as u64);
    let start = Instant::now();
    let read = std::thread::scope(|scope| {
        let part = |index: u64| scope.spawn(move || read_part(file, index * share, share, start));
        let parts: Vec<_> = (0..PROBE_THREADS).map(part).collect();
        parts
            .into_iter()
            .map(|part| part.join().expect("reading does not panic"))
            .sum::<std::io::Result<usize>>()
    })?;
    match read {
        0 => Err(std::io::Error::other("it is empty")),
        read => Ok(read as f64 / start.elapsed().as_secs_f64().max(1e-9)),
    }
}

fn read_part(file: &File, first: u64, bytes: u64, start: Instant) -> std::io::Result<usize> {
    let mut memory = vec![0_u8; PROBE_CHUNK + SECTOR];
    let border = memory.as_ptr().align_offset(SECTOR);
    let chunk = &mut memory[border..border + PROBE_CHUNK];
    let (mut read, mut at) = (0, first);
    while at < first + bytes && start.elapsed() < PROBE_TIME {
        match file.read_at(chunk, at)? {
            0 => break,
            count => read += count,
        }
        at += PROBE_CHUNK as u64;
    }
    Ok(read)
}

/// NVIDIA's GPUs on the machine's bus, which shows them without any driver.
pub(crate) fn cards_on_the_bus() -> usize {
    cards_in(Path::new("/sys/bus/pci/devices"))
}

fn cards_in(bus: &Path) -> usize {
    let devices = std::fs::read_dir(bus).into_iter().flatten();
    let is_card = |device: &PathBuf| {
        let says = |name: &str| std::fs::read_to_string(device.join(name)).unwrap_or_default();
        // Vendor NVIDIA, class display (0x03): its bridges and sound devices are of other classes.
        says("vendor").trim() == "0x10de" && says("class").starts_with("0x03")
    };
    devices.filter_map(|device| Some(device.ok()?.path())).filter(is_card).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::Verdict;

    #[test]
    fn what_is_short_is_told_with_a_remedy() {
        let folder = Path::new("/models");
        let poor = [
            cpu(2, Level::Portable, "portable"),
            memory(Some(1 << 30)),
            open_files(Some(1024)),
            space_left(folder, 1 << 30),
            read_rate(folder, 90e6, false),
        ];
        for finding in poor {
            assert_eq!(finding.verdict, Verdict::Warn, "{finding:?}");
            assert!(finding.fix.is_some(), "{finding:?}");
        }
        let rich = [
            cpu(64, Level::Avx512, "AVX-512 VNNI"),
            memory(Some(64 << 30)),
            memory(None),
            open_files(None),
            locked_memory(Some(8 << 20)),
            space_left(folder, 1 << 40),
            read_rate(folder, 3e9, true),
        ];
        for finding in rich {
            assert_eq!((finding.verdict, finding.fix.clone()), (Verdict::Ok, None), "{finding:?}");
        }
    }

    #[test]
    fn a_port_in_use_fails_and_a_free_one_does_not() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let finding = port(taken.local_addr().unwrap());
        assert_eq!(finding.verdict, Verdict::Fail);
        assert!(finding.fix.is_some_and(|fix| fix.contains("--port")));
        assert_eq!(port("127.0.0.1:0".parse().unwrap()).verdict, Verdict::Ok);
    }

    #[test]
    fn reading_a_file_has_a_rate_and_an_absent_one_fails() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        std::fs::write(&path, vec![1; 3_000_001]).unwrap();
        assert!(0.0 < probe(&path).unwrap().0);
        assert_eq!(reading(&folder.path().join("absent")).verdict, Verdict::Fail);
    }

    #[test]
    fn cards_are_counted_by_vendor_and_class() {
        let bus = tempfile::tempdir().unwrap();
        for (name, vendor, class) in
            [("a", "0x10de", "0x030200"), ("b", "0x10de", "0x040300"), ("c", "0x1002", "0x030000")]
        {
            let device = bus.path().join(name);
            std::fs::create_dir(&device).unwrap();
            std::fs::write(device.join("vendor"), format!("{vendor}\n")).unwrap();
            std::fs::write(device.join("class"), format!("{class}\n")).unwrap();
        }
        assert_eq!(cards_in(bus.path()), 1);
        assert_eq!(cards_in(&bus.path().join("absent")), 0);
    }
}
