//! How the GPUs stand, as NVIDIA's management library (NVML) tells it. The library comes with the driver.
//!
//! What a card or driver does not tell is absent with a reason. Critical errors (Xid) are only told as they happen, so
//! [`Nvml::watch`] keeps a thread that counts them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enum_wrappers::device::{
    Clock, EccCounter, MemoryError, PcieUtilCounter, TemperatureSensor,
};
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::device::ProcessInfo;
use nvml_wrapper_sys::bindings::{field_id, nvmlFieldValue_t};

use crate::DeviceError;
use crate::cuda::runtime;
use crate::facts::{
    DriverFacts, EccFacts, GpuFacts, Holder, Known, Load, MemoryFacts, NvLinkFacts, PcieFacts, Traffic,
};

/// Links a GPU has at most (NVML_NVLINK_MAX_LINKS).
const MOST_NVLINKS: u32 = 18;
/// How long the watching thread waits for an event before it looks whether it is still wanted.
const EVENT_WAIT_MS: u32 = 200;

/// The library, opened.
pub struct Nvml {
    library: Arc<nvml_wrapper::Nvml>,
    /// PCI address of each GPU this program can use, by its ordinal.
    visible: Vec<String>,
    watch: Option<Watch>,
}

/// The thread that counts critical errors.
struct Watch {
    counts: Arc<Mutex<Xids>>,
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Critical errors by a GPU's uuid, or why they are not counted.
type Xids = BTreeMap<String, Known<u64>>;

impl Drop for Watch {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

impl Nvml {
    /// Opens the library.
    ///
    /// # Errors
    /// It is not there, or it does not find its driver.
    pub fn open() -> Result<Self, DeviceError> {
        let library = nvml_wrapper::Nvml::init().map_err(|error| {
            DeviceError(match error {
                NvmlError::LibloadingError(_) => {
                    "libnvidia-ml.so.1 is not found: it comes with NVIDIA's driver".to_owned()
                }
                other => format!("NVML does not start: {other}"),
            })
        })?;
        // Without CUDA there are no ordinals, and the library has yet much to tell.
        let visible = runtime::device_count().unwrap_or(0);
        let visible = (0..visible).filter_map(|ordinal| runtime::pci_address(ordinal).ok()).collect();
        Ok(Self { library: Arc::new(library), visible, watch: None })
    }

    /// As [`Nvml::open`], and counts critical errors from now on.
    ///
    /// # Errors
    /// As [`Nvml::open`].
    pub fn watch() -> Result<Self, DeviceError> {
        let mut nvml = Self::open()?;
        nvml.watch = Some(Watch::start(Arc::clone(&nvml.library)));
        Ok(nvml)
    }

    /// The driver's versions.
    #[must_use]
    pub fn driver(&self) -> DriverFacts {
        let cuda = self.library.sys_cuda_driver_version().map_err(reason);
        DriverFacts {
            version: self.library.sys_driver_version().map_err(reason),
            cuda: cuda.map(|version| (version as u32 / 1000, version as u32 % 1000 / 10)),
        }
    }

    /// All GPUs the driver knows, also those this program may not use.
    ///
    /// # Errors
    /// The driver does not say how many there are.
    pub fn gpus(&self) -> Result<Vec<GpuFacts>, DeviceError> {
        let count = self.library.device_count().map_err(|error| DeviceError(error.to_string()))?;
        // Traffic is watched for some milliseconds: by one thread a card, they all pass at the same time.
        Ok(std::thread::scope(|scope| {
            let cards: Vec<_> = (0..count).map(|index| scope.spawn(move || self.gpu(index))).collect();
            cards.into_iter().map(|card| card.join().expect("reading a card does not panic")).collect()
        }))
    }

    fn gpu(&self, index: u32) -> GpuFacts {
        // A card that fell off the bus has no handle: each of its fields says so.
        let handle = self.library.device_by_index(index).map_err(reason);
        let handle = handle.as_ref();
        let pci = ask(handle, |gpu| Ok(short_address(&gpu.pci_info()?.bus_id)));
        let uuid = ask(handle, nvml_wrapper::Device::uuid);
        GpuFacts {
            index: index as usize,
            ordinal: pci.as_ref().ok().and_then(|pci| self.visible.iter().position(|seen| seen == pci)),
            name: ask(handle, nvml_wrapper::Device::name),
            capability: ask(handle, |gpu| {
                let version = gpu.cuda_compute_capability()?;
                Ok((version.major as u32, version.minor as u32))
            }),
            memory: ask(handle, |gpu| {
                let memory = gpu.memory_info()?;
                Ok(MemoryFacts {
                    total: memory.total,
                    used: memory.used,
                    reserved: memory.reserved,
                    free: memory.free,
                })
            }),
            holders: ask(handle, holders),
            load: ask(handle, |gpu| {
                let rates = gpu.utilization_rates()?;
                Ok(Load { compute: f64::from(rates.gpu) / 100.0, memory: f64::from(rates.memory) / 100.0 })
            }),
            power_watts: ask(handle, |gpu| Ok(f64::from(gpu.power_usage()?) / 1e3)),
            power_limit_watts: ask(handle, |gpu| Ok(f64::from(gpu.enforced_power_limit()?) / 1e3)),
            temperature: ask(handle, |gpu| gpu.temperature(TemperatureSensor::Gpu).map(f64::from)),
            sm_clock: ask(handle, |gpu| Ok(f64::from(gpu.clock_info(Clock::SM)?) * 1e6)),
            memory_clock: ask(handle, |gpu| Ok(f64::from(gpu.clock_info(Clock::Memory)?) * 1e6)),
            slowed_by: ask(handle, |gpu| Ok(slowed_by(gpu.current_throttle_reasons()?))),
            pcie: ask(handle, |gpu| {
                Ok(PcieFacts {
                    generation: gpu.current_pcie_link_gen()?,
                    width: gpu.current_pcie_link_width()?,
                    max_generation: gpu.max_pcie_link_gen()?,
                    max_width: gpu.max_pcie_link_width()?,
                })
            }),
            nvlinks: handle.map_or_else(|_| Vec::new(), nvlinks),
            nvlink_traffic: handle.map_err(Clone::clone).and_then(|gpu| self.nvlink_traffic(gpu)),
            pcie_rate: ask(handle, pcie_rate),
            ecc: ask(handle, |gpu| {
                let count = |kind| gpu.total_ecc_errors(kind, EccCounter::Volatile);
                Ok(EccFacts {
                    corrected: count(MemoryError::Corrected)?,
                    uncorrected: count(MemoryError::Uncorrected)?,
                })
            }),
            xids: uuid.clone().and_then(|uuid| self.xids(&uuid)),
            persistent: ask(handle, nvml_wrapper::Device::is_in_persistent_mode),
            uuid,
            pci,
        }
    }

    fn xids(&self, uuid: &str) -> Known<u64> {
        match &self.watch {
            None => Err("nobody counts them".to_owned()),
            Some(watch) => lock(&watch.counts)
                .get(uuid)
                .cloned()
                .unwrap_or_else(|| Err("the card is not watched".to_owned())),
        }
    }

    /// Sums over all links; the counters are kibibytes.
    fn nvlink_traffic(&self, gpu: &nvml_wrapper::Device<'_>) -> Known<Traffic> {
        let of = |field| {
            let values = self.fields(gpu, &(0..MOST_NVLINKS).map(|link| (field, link)).collect::<Vec<_>>());
            let known: Vec<u64> = values?.into_iter().flatten().collect();
            match known.is_empty() {
                true => Err("this GPU does not count it".to_owned()),
                false => Ok(known.iter().sum::<u64>() * 1024),
            }
        };
        Ok(Traffic {
            sent: of(field_id::NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX)?,
            received: of(field_id::NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX)?,
        })
    }

    /// Counters by field and scope (a link's number). The wrapper's own call knows no scopes.
    fn fields(&self, gpu: &nvml_wrapper::Device<'_>, wanted: &[(u32, u32)]) -> Known<Vec<Option<u64>>> {
        let function = self.library.lib().nvmlDeviceGetFieldValues.as_ref().map_err(ToString::to_string)?;
        let blank = |(field, scope): &(u32, u32)| {
            // SAFETY: a struct of numbers, and of a union of numbers: all zeros are valid.
            let mut value: nvmlFieldValue_t = unsafe { std::mem::zeroed() };
            value.fieldId = *field;
            value.scopeId = *scope;
            value
        };
        let mut values: Vec<nvmlFieldValue_t> = wanted.iter().map(blank).collect();
        // SAFETY: the handle lives as long as `gpu`; the call writes the elements of `values`, whose count it is given.
        let code = unsafe { function(gpu.handle(), values.len() as i32, values.as_mut_ptr()) };
        match code {
            0 => Ok(values.iter().map(whole).collect()),
            code => Err(format!("NVML refuses (code {code})")),
        }
    }
}

/// Who holds memory of a GPU, in words for an error; empty where nobody can tell.
pub(crate) fn who_holds(ordinal: usize) -> String {
    let gpus = Nvml::open().and_then(|nvml| nvml.gpus()).unwrap_or_default();
    let gpu = gpus.into_iter().find(|gpu| gpu.ordinal == Some(ordinal));
    let holders = gpu.and_then(|gpu| gpu.holders.ok()).unwrap_or_default();
    holders.iter().map(|holder| format!("; {holder} holds memory of it")).collect()
}

/// A counter's value, when it was read and is a whole number.
fn whole(value: &nvmlFieldValue_t) -> Option<u64> {
    const UNSIGNED_INT: u32 = 1;
    const UNSIGNED_LONG: u32 = 2;
    const UNSIGNED_LONG_LONG: u32 = 3;
    if value.nvmlReturn != 0 {
        return None;
    }
    // SAFETY: the type's number says which member the library wrote.
    unsafe {
        match value.valueType {
            UNSIGNED_INT => Some(u64::from(value.value.uiVal)),
            UNSIGNED_LONG | UNSIGNED_LONG_LONG => Some(value.value.ullVal),
            _ => None,
        }
    }
}

fn reason(error: NvmlError) -> String {
    match error {
        NvmlError::NotSupported => "this GPU does not tell".to_owned(),
        other => other.to_string(),
    }
}

/// One question to a GPU that may have no handle.
fn ask<'a, T>(
    gpu: Result<&nvml_wrapper::Device<'a>, &String>,
    question: impl FnOnce(&nvml_wrapper::Device<'a>) -> Result<T, NvmlError>,
) -> Known<T> {
    question(gpu.map_err(Clone::clone)?).map_err(reason)
}

/// The driver writes eight digits of domain, the runtime four.
fn short_address(address: &str) -> String {
    let (domain, rest) = address.split_once(':').unwrap_or(("0", address));
    let domain = u32::from_str_radix(domain, 16).unwrap_or(0);
    format!("{domain:04x}:{}", rest.to_ascii_lowercase())
}

/// The driver watches each direction for 20 ms and tells kilobytes a second.
fn pcie_rate(gpu: &nvml_wrapper::Device<'_>) -> Result<Traffic, NvmlError> {
    let of = |way| Ok::<u64, NvmlError>(u64::from(gpu.pcie_throughput(way)?) * 1000);
    Ok(Traffic { sent: of(PcieUtilCounter::Send)?, received: of(PcieUtilCounter::Receive)? })
}

/// Computing and drawing processes; one that does both is counted once.
fn holders(gpu: &nvml_wrapper::Device<'_>) -> Result<Vec<Holder>, NvmlError> {
    let mut bytes: BTreeMap<u32, Option<u64>> = BTreeMap::new();
    let drawing = gpu.running_graphics_processes().unwrap_or_default();
    for ProcessInfo { pid, used_gpu_memory, .. } in
        gpu.running_compute_processes()?.into_iter().chain(drawing)
    {
        let held = match used_gpu_memory {
            UsedGpuMemory::Used(bytes) => Some(bytes),
            UsedGpuMemory::Unavailable => None,
        };
        let known = bytes.entry(pid).or_default();
        *known = (*known).max(held);
    }
    let mut holders: Vec<Holder> =
        bytes.into_iter().map(|(pid, bytes)| Holder { pid, name: process_name(pid), bytes }).collect();
    holders.sort_by_key(|holder| std::cmp::Reverse(holder.bytes));
    Ok(holders)
}

/// A process's program, and for interpreters also what they run: `python3 train.py`.
fn process_name(pid: u32) -> Option<String> {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let line = String::from_utf8_lossy(&line);
    let mut words = line.split('\0').filter(|word| !word.is_empty());
    let base = |word: &str| word.rsplit('/').next().unwrap_or(word).to_owned();
    let program = base(words.next()?);
    match words.next() {
        Some(script) if program.starts_with("python") => Some(format!("{program} {}", base(script))),
        _ => Some(program),
    }
}

fn slowed_by(reasons: ThrottleReasons) -> Vec<&'static str> {
    // An idle GPU, and one whose clocks someone set, are not slowed.
    const NAMES: [(ThrottleReasons, &str); 6] = [
        (ThrottleReasons::SW_POWER_CAP, "power limit"),
        (ThrottleReasons::HW_SLOWDOWN, "hardware slowdown"),
        (ThrottleReasons::SYNC_BOOST, "sync boost"),
        (ThrottleReasons::SW_THERMAL_SLOWDOWN, "heat"),
        (ThrottleReasons::HW_THERMAL_SLOWDOWN, "overheating"),
        (ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN, "power brake"),
    ];
    NAMES.iter().filter(|(reason, _)| reasons.contains(*reason)).map(|(_, name)| *name).collect()
}

fn nvlinks(gpu: &nvml_wrapper::Device<'_>) -> Vec<NvLinkFacts> {
    (0..MOST_NVLINKS)
        .map_while(|link| {
            let link = gpu.link_wrapper_for(link);
            Some(NvLinkFacts { active: link.is_active().ok()?, version: link.version().ok() })
        })
        .collect()
}

fn lock(counts: &Mutex<Xids>) -> MutexGuard<'_, Xids> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watch {
    fn start(library: Arc<nvml_wrapper::Nvml>) -> Self {
        let counts = Arc::new(Mutex::new(Xids::new()));
        let done = Arc::new(AtomicBool::new(false));
        let (told, wanted) = (Arc::clone(&counts), Arc::clone(&done));
        let thread = std::thread::Builder::new()
            .name("gpu errors".to_owned())
            .spawn(move || count_xids(&library, &told, &wanted))
            .ok();
        Self { counts, done, thread }
    }
}

/// Counts until `done`. A GPU whose driver tells no errors is noted as such.
fn count_xids(library: &nvml_wrapper::Nvml, counts: &Mutex<Xids>, done: &AtomicBool) {
    let Ok(mut events) = library.create_event_set() else { return };
    for index in 0..library.device_count().unwrap_or(0) {
        let Ok(gpu) = library.device_by_index(index) else { continue };
        let Ok(uuid) = gpu.uuid() else { continue };
        let told =
            gpu.supported_event_types().is_ok_and(|kinds| kinds.contains(EventTypes::CRITICAL_XID_ERROR));
        if !told {
            lock(counts).insert(uuid, Err("this GPU does not tell".to_owned()));
            continue;
        }
        // A set that refuses a GPU is lost, and those registered before with it.
        events = match gpu.register_events(EventTypes::CRITICAL_XID_ERROR, events) {
            Ok(events) => events,
            Err(error) => {
                let error = error.to_string();
                lock(counts).values_mut().for_each(|count| *count = Err(error.clone()));
                return;
            }
        };
        lock(counts).insert(uuid, Ok(0));
    }
    while !done.load(Ordering::Relaxed) {
        match events.wait(EVENT_WAIT_MS) {
            Ok(event) => {
                let uuid = event.device.uuid().unwrap_or_default();
                if let Some(Ok(count)) = lock(counts).get_mut(&uuid) {
                    *count += 1;
                }
            }
            Err(NvmlError::Timeout) => {}
            // The driver is going away, or a GPU is: what was counted stays.
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(EVENT_WAIT_MS.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_driver_and_runtime_are_the_same() {
        assert_eq!(short_address("00000000:3B:00.0"), "0000:3b:00.0");
        assert_eq!(short_address("0001:3b:00.0"), "0001:3b:00.0");
    }

    #[test]
    fn a_slow_clock_has_names() {
        let reasons = ThrottleReasons::GPU_IDLE | ThrottleReasons::SW_POWER_CAP;
        assert_eq!(slowed_by(reasons), ["power limit"]);
    }

    #[test]
    fn this_process_has_a_name() {
        assert!(process_name(std::process::id()).is_some_and(|name| name.starts_with("phalanx_device")));
        assert_eq!(process_name(u32::MAX), None);
    }
}
