//! What the GPUs of a machine are and how they stand: plain data, for those who print it. Filled by `cuda::nvml`.

use std::fmt;

/// A figure, or why there is none: a driver that is missing, a card that does not count this.
pub type Known<T> = Result<T, String>;

/// The driver and what it can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverFacts {
    /// For example `580.95.05`.
    pub version: Known<String>,
    /// The newest CUDA it runs: major and minor.
    pub cuda: Known<(u32, u32)>,
}

/// One GPU at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct GpuFacts {
    /// Its number for the driver's tools (`nvidia-smi`).
    pub index: usize,
    /// Its number for this program; none when `CUDA_VISIBLE_DEVICES` hides it.
    pub ordinal: Option<usize>,
    /// For example `NVIDIA H200`.
    pub name: Known<String>,
    /// The same for ever, for example `GPU-5c89…`.
    pub uuid: Known<String>,
    /// Where it sits: domain, bus, device and function.
    pub pci: Known<String>,
    /// Compute capability, for example 9 and 0.
    pub capability: Known<(u32, u32)>,
    /// Its memory.
    pub memory: Known<MemoryFacts>,
    /// Processes that hold memory of it, the largest first.
    pub holders: Known<Vec<Holder>>,
    /// How busy it is.
    pub load: Known<Load>,
    /// Watts drawn.
    pub power_watts: Known<f64>,
    /// Watts it may draw.
    pub power_limit_watts: Known<f64>,
    /// Of the chip, in degrees Celsius.
    pub temperature: Known<f64>,
    /// Of the multiprocessors, in hertz.
    pub sm_clock: Known<f64>,
    /// Of its memory, in hertz.
    pub memory_clock: Known<f64>,
    /// Why its clock is lower than it could be; empty when it is not.
    pub slowed_by: Known<Vec<&'static str>>,
    /// The link to the host.
    pub pcie: Known<PcieFacts>,
    /// The links to other GPUs; empty when it has none.
    pub nvlinks: Vec<NvLinkFacts>,
    /// Bytes over all NVLinks since the driver was loaded.
    pub nvlink_traffic: Known<Traffic>,
    /// Bytes a second over PCIe in some 20 ms just now. (The cards count bytes, too, but in 32 bits: a busy link is
    /// through with those in a tenth of a second.)
    pub pcie_rate: Known<Traffic>,
    /// Errors of its memory.
    pub ecc: Known<EccFacts>,
    /// Critical errors (Xid) since this program began to watch; none when it does not, or the card does not tell.
    pub xids: Known<u64>,
    /// The driver stays loaded between programs.
    pub persistent: Known<bool>,
}

/// A card's memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryFacts {
    /// All of it.
    pub total: u64,
    /// Held by processes.
    pub used: u64,
    /// Kept by the driver for itself.
    pub reserved: u64,
    /// Nobody's.
    pub free: u64,
}

/// A process that holds memory of a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its number, as this process sees it.
    pub pid: u32,
    /// What it is called; none when it may not be looked at.
    pub name: Option<String>,
    /// What it holds; none when the driver does not say.
    pub bytes: Option<u64>,
}

impl fmt::Display for Holder {
    /// `process 4711 (python3 train.py, 99.8 GiB)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({}", self.pid, self.name.as_deref().unwrap_or("name unknown"))?;
        match self.bytes {
            Some(bytes) => write!(f, ", {:.1} GiB)", bytes as f64 / f64::from(1 << 30)),
            None => f.write_str(")"),
        }
    }
}

/// Shares of the last sampling period, from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// In which some kernel ran.
    pub compute: f64,
    /// In which memory was read or written.
    pub memory: f64,
}

/// The link to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PcieFacts {
    /// As the link runs now; an idle one slows down.
    pub generation: u32,
    /// Lanes in use.
    pub width: u32,
    /// The most that card and slot can do together.
    pub max_generation: u32,
    /// The same in lanes.
    pub max_width: u32,
}

/// A link to another GPU or to a switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NvLinkFacts {
    /// It is up.
    pub active: bool,
    /// Its generation, as the driver counts them; none when it does not say.
    pub version: Option<u32>,
}

/// Bytes, since the driver was loaded or in a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// Sent by this GPU.
    pub sent: u64,
    /// Received by it.
    pub received: u64,
}

/// Errors of a card's memory since the driver was loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EccFacts {
    /// Found and mended.
    pub corrected: u64,
    /// Found only.
    pub uncorrected: u64,
}

/// One of NVIDIA's libraries that this program opens at run time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LibraryFacts {
    /// For example `cuBLASLt`.
    pub name: &'static str,
    /// What happens without it.
    pub without: &'static str,
    /// How to come by it.
    pub remedy: &'static str,
    /// The file and its version, or why it cannot be used.
    pub found: Known<(String, String)>,
}

/// How data gets from one GPU to another.
#[derive(Clone, Debug, PartialEq)]
pub struct LinkFacts {
    /// The GPU that sends.
    pub from: usize,
    /// The GPU that receives.
    pub to: usize,
    /// One's kernels can use the other's memory.
    pub peer: bool,
    /// Bytes a second of a large copy, and microseconds of a small one.
    pub measured: Known<(f64, f64)>,
}
