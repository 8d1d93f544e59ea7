//! The CUDA runtime calls we use, and their results as errors a person can act on.

use std::ffi::{CStr, c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use crate::DeviceError;
use crate::cuda::code::Code;
use crate::cuda::kernels::Element;
use crate::cuda::nvml;
use crate::tensor::Allocation;

/// What `device_facts` (cuda/device.cu) tells.
#[repr(C)]
pub(crate) struct DeviceFacts {
    name: [u8; 128],
    /// Memory of the card.
    pub(crate) total_bytes: u64,
    pub(crate) capability_major: u32,
    pub(crate) capability_minor: u32,
    pub(crate) multiprocessors: u32,
    pub(crate) l2_bytes: u32,
    pub(crate) driver_version: u32,
    pub(crate) runtime_version: u32,
}
const _: () = assert!(size_of::<DeviceFacts>() == 160);

const TO_DEVICE: c_int = 1;
const TO_HOST: c_int = 2;
const ON_DEVICE: c_int = 3;
/// Does not wait for the legacy default stream.
const NON_BLOCKING: u32 = 1;
const NO_TIMING: u32 = 2;
/// Not done yet, which is no failure.
const NOT_READY: c_int = 600;
/// What the runtime says when there is no driver, too.
const INSUFFICIENT_DRIVER: c_int = 35;
/// Other threads may go on using the runtime while this one captures.
const THREAD_LOCAL: c_int = 1;
/// cudaDevP2PAttrNativeAtomicSupported.
const NATIVE_ATOMICS: c_int = 3;

unsafe extern "C" {
    fn device_facts(ordinal: c_int, facts: *mut DeviceFacts) -> c_int;
    fn cudaGetDeviceCount(count: *mut c_int) -> c_int;
    fn cudaSetDevice(ordinal: c_int) -> c_int;
    fn cudaMemGetInfo(free: *mut usize, total: *mut usize) -> c_int;
    fn cudaMalloc(address: *mut usize, bytes: usize) -> c_int;
    fn cudaFree(address: usize) -> c_int;
    fn cudaMallocHost(address: *mut usize, bytes: usize) -> c_int;
    fn cudaFreeHost(address: usize) -> c_int;
    fn cudaMemcpyAsync(to: usize, from: usize, bytes: usize, kind: c_int, stream: usize) -> c_int;
    fn cudaMemcpyPeerAsync(
        to: usize,
        to_ordinal: c_int,
        from: usize,
        from_ordinal: c_int,
        bytes: usize,
        stream: usize,
    ) -> c_int;
    fn cudaMemsetAsync(to: usize, value: c_int, bytes: usize, stream: usize) -> c_int;
    fn cudaStreamCreateWithFlags(stream: *mut usize, flags: u32) -> c_int;
    fn cudaStreamSynchronize(stream: usize) -> c_int;
    fn cudaStreamDestroy(stream: usize) -> c_int;
    fn cudaEventCreateWithFlags(event: *mut usize, flags: u32) -> c_int;
    fn cudaEventRecord(event: usize, stream: usize) -> c_int;
    fn cudaEventSynchronize(event: usize) -> c_int;
    fn cudaEventQuery(event: usize) -> c_int;
    fn cudaEventElapsedTime(ms: *mut f32, start: usize, end: usize) -> c_int;
    fn cudaEventDestroy(event: usize) -> c_int;
    fn cudaStreamBeginCapture(stream: usize, mode: c_int) -> c_int;
    fn cudaStreamIsCapturing(stream: usize, status: *mut c_int) -> c_int;
    fn cudaStreamEndCapture(stream: usize, graph: *mut usize) -> c_int;
    fn cudaGraphInstantiate(executable: *mut usize, graph: usize, flags: u64) -> c_int;
    fn cudaGraphDestroy(graph: usize) -> c_int;
    fn cudaGraphLaunch(executable: usize, stream: usize) -> c_int;
    fn cudaGraphUpload(executable: usize, stream: usize) -> c_int;
    fn cudaGraphExecDestroy(executable: usize) -> c_int;
    fn cudaDeviceGetPCIBusId(text: *mut c_char, bytes: c_int, ordinal: c_int) -> c_int;
    fn cudaDeviceCanAccessPeer(can: *mut c_int, ordinal: c_int, peer: c_int) -> c_int;
    fn cudaDeviceGetP2PAttribute(value: *mut c_int, attribute: c_int, ordinal: c_int, peer: c_int) -> c_int;
    fn cudaDeviceEnablePeerAccess(peer: c_int, flags: u32) -> c_int;
    fn cudaGetLastError() -> c_int;
    fn cudaGetErrorString(code: c_int) -> *const c_char;
}

/// A call's result; `doing` completes `the GPU failed ...`.
pub(crate) fn check(code: c_int, doing: &str) -> Result<(), DeviceError> {
    match code {
        0 => Ok(()),
        _ => {
            // SAFETY: the runtime returns a string of its own for every code.
            let text = unsafe { CStr::from_ptr(cudaGetErrorString(code)) };
            Err(DeviceError(format!(
                "the GPU failed {doing}: {} (CUDA error {code})",
                text.to_string_lossy()
            )))
        }
    }
}

/// How many GPUs there are; an error says why there are none (no driver, an old driver).
///
/// # Errors
/// There is no driver, or no GPU, or the driver is older than this binary's runtime.
pub(super) fn device_count() -> Result<usize, DeviceError> {
    let mut count = 0;
    // SAFETY: writes one integer.
    match unsafe { cudaGetDeviceCount(&mut count) } {
        INSUFFICIENT_DRIVER => Err(DeviceError(
            "there is no NVIDIA driver, or one older than 580 (CUDA 13.0), which this program needs"
                .to_owned(),
        )),
        code => {
            check(code, "to be found")?;
            Ok(usize::try_from(count).unwrap_or(0))
        }
    }
}

/// Makes `ordinal` this thread's device: a call on a stream needs its device to be that.
pub(crate) fn use_device(ordinal: usize) -> Result<(), DeviceError> {
    // SAFETY: takes a number.
    check(unsafe { cudaSetDevice(ordinal as c_int) }, "to be selected")
}

/// Lets kernels of GPU `from` use the memory of GPU `to`; false when the machine does not connect the two that way.
pub(crate) fn reach(from: usize, to: usize) -> Result<bool, DeviceError> {
    if from == to {
        return Ok(true);
    }
    use_device(from)?;
    let mut can = 0;
    // SAFETY: writes one integer.
    let code = unsafe { cudaDeviceCanAccessPeer(&mut can, from as c_int, to as c_int) };
    check(code, "to be asked about its peers")?;
    if can == 0 {
        return Ok(false);
    }
    // SAFETY: takes numbers.
    match unsafe { cudaDeviceEnablePeerAccess(to as c_int, 0) } {
        // It was enabled before; the runtime remembers that as an error.
        704 => {
            // SAFETY: returns a number.
            unsafe { cudaGetLastError() };
            Ok(true)
        }
        code => check(code, "to reach a peer's memory").map(|()| true),
    }
}

/// Where a GPU sits, for example `0000:3b:00.0`; the driver's tools know it by that.
pub(crate) fn pci_address(ordinal: usize) -> Result<String, DeviceError> {
    let mut text = [0_u8; 32];
    // SAFETY: writes at most the stated bytes, the last of them zero.
    let code =
        unsafe { cudaDeviceGetPCIBusId(text.as_mut_ptr().cast(), text.len() as c_int, ordinal as c_int) };
    check(code, "to tell where it sits")?;
    let end = text.iter().position(|byte| *byte == 0).unwrap_or(0);
    Ok(String::from_utf8_lossy(&text[..end]).to_ascii_lowercase())
}

/// The link between two GPUs carries atomics, as NVLink does and PCIe does not: reads over it are as fast as writes.
pub(crate) fn is_close(from: usize, to: usize) -> Result<bool, DeviceError> {
    let mut atomics = 0;
    // SAFETY: writes one integer.
    let code = unsafe { cudaDeviceGetP2PAttribute(&mut atomics, NATIVE_ATOMICS, from as c_int, to as c_int) };
    check(code, "to be asked about its peers")?;
    Ok(atomics != 0)
}

/// What the device is.
pub(crate) fn facts(ordinal: usize) -> Result<DeviceFacts, DeviceError> {
    let mut facts = std::mem::MaybeUninit::<DeviceFacts>::zeroed();
    // SAFETY: the twin struct in cuda/device.cu has the same size and fields; all zeros are valid.
    let facts = unsafe {
        check(device_facts(ordinal as c_int, facts.as_mut_ptr()), "to be described")?;
        facts.assume_init()
    };
    Ok(facts)
}

impl DeviceFacts {
    /// For people, for example `NVIDIA H200`.
    pub(crate) fn name(&self) -> String {
        let end = self.name.iter().position(|byte| *byte == 0).unwrap_or(self.name.len());
        String::from_utf8_lossy(&self.name[..end]).into_owned()
    }

    /// All of it on a line, with what it computes in and what its `products` go through.
    pub(crate) fn describe(&self, ordinal: usize, code: Code, element: Element, products: &str) -> String {
        format!(
            "GPU {ordinal}: {}, sm_{}{} with kernels of {}, {} multiprocessors, {:.1} GiB, driver {}.{}, {:?}, {}",
            self.name(),
            self.capability_major,
            self.capability_minor,
            code.describe(),
            self.multiprocessors,
            self.total_bytes as f64 / f64::from(1 << 30),
            self.driver_version / 1000,
            self.driver_version % 1000 / 10,
            element,
            products
        )
    }
}

/// Bytes free and bytes there are on this thread's device.
pub(crate) fn memory() -> Result<(usize, usize), DeviceError> {
    let (mut free, mut total) = (0, 0);
    // SAFETY: writes two integers.
    check(unsafe { cudaMemGetInfo(&mut free, &mut total) }, "to tell its free memory")?;
    Ok((free, total))
}

/// Device memory that is freed when dropped.
struct DeviceMemory {
    ordinal: usize,
    address: usize,
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        // SAFETY: `address` came from cudaMalloc on this device and is freed once. An error here has no reader.
        unsafe {
            cudaSetDevice(self.ordinal as c_int);
            cudaFree(self.address);
        }
    }
}

/// Memory on `ordinal`, not cleared.
pub(crate) fn allocate(ordinal: usize, bytes: usize) -> Result<Allocation, DeviceError> {
    use_device(ordinal)?;
    let mut address = 0;
    // SAFETY: writes one address. A request for nothing still has an owner.
    let code = unsafe { cudaMalloc(&mut address, bytes.max(256)) };
    if code == 2 {
        let (free, total) = memory()?;
        let gib = |bytes: usize| bytes as f64 / f64::from(1 << 30);
        return Err(DeviceError(format!(
            "GPU {ordinal} has no room for {:.2} GiB: {:.2} of its {:.2} GiB are free{}",
            gib(bytes),
            gib(free),
            gib(total),
            nvml::who_holds(ordinal)
        )));
    }
    check(code, "to allocate memory")?;
    Ok(Allocation::new(address, bytes, Arc::new(DeviceMemory { ordinal, address })))
}

/// Host memory the device copies from on its own time.
#[derive(Debug)]
pub(crate) struct Pinned {
    address: usize,
    bytes: usize,
}

impl Pinned {
    pub(crate) fn new(bytes: usize) -> Result<Self, DeviceError> {
        let mut address = 0;
        // SAFETY: writes one address.
        check(unsafe { cudaMallocHost(&mut address, bytes) }, "to pin host memory")?;
        // SAFETY: `bytes` fresh bytes lie at `address`.
        unsafe { std::ptr::write_bytes(address as *mut u8, 0, bytes) };
        Ok(Self { address, bytes })
    }

    pub(crate) fn address(&self) -> usize {
        self.address
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// A word that the device may write at any time.
    pub(crate) fn get(&self, word: usize) -> i32 {
        self.word(word).load(Ordering::Acquire)
    }

    /// Writes a word that the device may read at any time.
    pub(crate) fn set(&self, word: usize, value: i32) {
        self.word(word).store(value, Ordering::Release);
    }

    fn word(&self, word: usize) -> &AtomicI32 {
        assert!((word + 1) * 4 <= self.bytes, "a word of the memory");
        // SAFETY: the memory is ours, aligned, initialised, long enough, and only used through atomics by those who
        // call this.
        unsafe { AtomicI32::from_ptr((self.address as *mut i32).add(word)) }
    }

    /// The memory as bytes. The device must not be copying to or from it.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the memory is ours, initialised, and borrowed mutably here.
        unsafe { std::slice::from_raw_parts_mut(self.address as *mut u8, self.bytes) }
    }

    /// The memory as floats. The device must not be copying to or from it.
    pub(crate) fn floats_mut(&mut self) -> &mut [f32] {
        // SAFETY: the memory is ours, initialised (every bit pattern is a float), page-aligned, and borrowed mutably here.
        unsafe { std::slice::from_raw_parts_mut(self.address as *mut f32, self.bytes / 4) }
    }

    /// The memory as words. The device must not be copying to or from it.
    pub(crate) fn words(&mut self) -> &mut [i32] {
        // SAFETY: the memory is ours, initialised, page-aligned, and borrowed mutably here.
        unsafe { std::slice::from_raw_parts_mut(self.address as *mut i32, self.bytes / 4) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: from cudaMallocHost, freed once.
        unsafe { cudaFreeHost(self.address) };
    }
}

/// Work in order on one device.
#[derive(Debug)]
pub(crate) struct Stream {
    handle: usize,
}

impl Stream {
    /// A stream of this thread's device.
    pub(crate) fn new() -> Result<Self, DeviceError> {
        let mut handle = 0;
        // SAFETY: writes one handle.
        check(unsafe { cudaStreamCreateWithFlags(&mut handle, NON_BLOCKING) }, "to make a stream")?;
        Ok(Self { handle })
    }

    pub(crate) fn handle(&self) -> usize {
        self.handle
    }

    /// Copies from host memory. Pageable memory may be reused at once; pinned memory when the stream got there.
    pub(crate) fn copy_to_device(&self, to: usize, from: *const u8, bytes: usize) -> Result<(), DeviceError> {
        // SAFETY: callers pass an allocation's range and a slice's or pinned range of that length.
        check(unsafe { cudaMemcpyAsync(to, from as usize, bytes, TO_DEVICE, self.handle) }, "a copy to it")
    }

    /// Starts copying to host memory.
    pub(crate) fn copy_to_host(&self, to: *mut u8, from: usize, bytes: usize) -> Result<(), DeviceError> {
        // SAFETY: as above, the other way.
        check(unsafe { cudaMemcpyAsync(to as usize, from, bytes, TO_HOST, self.handle) }, "a copy from it")
    }

    pub(crate) fn copy_on_device(&self, to: usize, from: usize, bytes: usize) -> Result<(), DeviceError> {
        // SAFETY: callers pass ranges of allocations.
        check(unsafe { cudaMemcpyAsync(to, from, bytes, ON_DEVICE, self.handle) }, "a copy within it")
    }

    /// Starts a copy from one GPU's memory to another's; each end is an ordinal and an address there.
    pub(crate) fn copy_to_peer(
        &self,
        to: (usize, usize),
        from: (usize, usize),
        bytes: usize,
    ) -> Result<(), DeviceError> {
        let ((to_ordinal, to), (from_ordinal, from)) = (to, from);
        // SAFETY: callers pass ranges of allocations of these GPUs.
        let code = unsafe {
            cudaMemcpyPeerAsync(to, to_ordinal as c_int, from, from_ordinal as c_int, bytes, self.handle)
        };
        check(code, "a copy to a peer")
    }

    pub(crate) fn fill(&self, to: usize, value: u8, bytes: usize) -> Result<(), DeviceError> {
        // SAFETY: callers pass an allocation's range.
        check(unsafe { cudaMemsetAsync(to, c_int::from(value), bytes, self.handle) }, "to fill memory")
    }

    /// A graph is being recorded.
    pub(crate) fn is_capturing(&self) -> Result<bool, DeviceError> {
        let mut status = 0;
        // SAFETY: the handle is ours; writes one number.
        check(unsafe { cudaStreamIsCapturing(self.handle, &mut status) }, "to tell about a graph")?;
        Ok(status != 0)
    }

    /// Waits until everything in the stream is done.
    pub(crate) fn synchronize(&self) -> Result<(), DeviceError> {
        // SAFETY: the handle is ours.
        check(unsafe { cudaStreamSynchronize(self.handle) }, "a kernel or a copy")
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: the handle is ours, destroyed once.
        unsafe { cudaStreamDestroy(self.handle) };
    }
}

/// A point in a stream.
#[derive(Debug)]
pub(crate) struct Event {
    handle: usize,
}

impl Event {
    pub(crate) fn new(timing: bool) -> Result<Self, DeviceError> {
        let mut handle = 0;
        let flags = if timing { 0 } else { NO_TIMING };
        // SAFETY: writes one handle.
        check(unsafe { cudaEventCreateWithFlags(&mut handle, flags) }, "to make an event")?;
        Ok(Self { handle })
    }

    pub(crate) fn record(&self, stream: &Stream) -> Result<(), DeviceError> {
        // SAFETY: both handles are live.
        check(unsafe { cudaEventRecord(self.handle, stream.handle) }, "to record an event")
    }

    /// Waits until the stream got there; at once when never recorded.
    pub(crate) fn wait(&self) -> Result<(), DeviceError> {
        // SAFETY: the handle is live.
        check(unsafe { cudaEventSynchronize(self.handle) }, "a kernel or a copy")
    }

    /// The stream got there, or has failed: [`Self::wait`] would return at once.
    pub(crate) fn is_done(&self) -> bool {
        // SAFETY: the handle is live; the other call takes nothing.
        unsafe {
            let done = cudaEventQuery(self.handle) != NOT_READY;
            if !done {
                // The runtime remembers that as the last error, and a library's check would find it.
                cudaGetLastError();
            }
            done
        }
    }

    /// Microseconds from `start` to this; both must have timing and be done.
    pub(crate) fn us_since(&self, start: &Event) -> Result<f32, DeviceError> {
        let mut ms = 0.0;
        // SAFETY: writes one float.
        check(unsafe { cudaEventElapsedTime(&mut ms, start.handle, self.handle) }, "to tell a time")?;
        Ok(ms * 1000.0)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: the handle is ours, destroyed once.
        unsafe { cudaEventDestroy(self.handle) };
    }
}

/// Work recorded once, to be started as a whole.
#[derive(Debug)]
pub(crate) struct Graph {
    executable: usize,
}

impl Graph {
    /// Records what `work` starts in `stream`; nothing of it runs now. It must neither wait nor allocate.
    pub(crate) fn capture(stream: &Stream, work: impl FnOnce()) -> Result<Self, DeviceError> {
        let (mut graph, mut executable) = (0, 0);
        // SAFETY: the stream is live; each call writes one handle; the graph is destroyed once it is instantiated.
        unsafe {
            check(cudaStreamBeginCapture(stream.handle, THREAD_LOCAL), "to begin a graph")?;
            // A stream that is left recording can neither be waited for nor used again.
            let worked = catch_unwind(AssertUnwindSafe(work));
            let ended = check(cudaStreamEndCapture(stream.handle, &mut graph), "to end a graph");
            // A call that may not be recorded leaves its error behind, too.
            cudaGetLastError();
            if let Err(panic) = worked {
                cudaGraphDestroy(graph);
                resume_unwind(panic);
            }
            ended?;
            let made = check(cudaGraphInstantiate(&mut executable, graph, 0), "to make a graph");
            cudaGraphDestroy(graph);
            made?;
        }
        Ok(Self { executable })
    }

    /// Brings it to the device before it is first started.
    pub(crate) fn upload(&self, stream: &Stream) -> Result<(), DeviceError> {
        // SAFETY: both handles are live.
        check(unsafe { cudaGraphUpload(self.executable, stream.handle) }, "to take a graph")
    }

    /// Starts the recorded work; the memory it was recorded with must still be there.
    pub(crate) fn start(&self, stream: &Stream) -> Result<(), DeviceError> {
        // SAFETY: both handles are live.
        check(unsafe { cudaGraphLaunch(self.executable, stream.handle) }, "to start a graph")
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: the handle is ours, destroyed once.
        unsafe { cudaGraphExecDestroy(self.executable) };
    }
}
