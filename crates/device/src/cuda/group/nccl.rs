//! NCCL, opened at run time: communicators that never block their caller, end with a deadline, and can be aborted.
//!
//! The library has no deadline of its own, so its calls are marked in host memory before and behind, and a [`Watch`] ends
//! the communicators when a mark does not move.
//!
//! An end waits until the last graph is gone that its communicator's calls were recorded in: whoever has such a graph drops
//! it before its [`crate::cuda::group::Group`].

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::mem::ManuallyDrop;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use libloading::Library;

use crate::DeviceError;
use crate::cuda::group::signals::{BEGUN, ENDED, Signals};
use crate::cuda::library;

type Handle = usize;
type Status = c_int;

const SUCCESS: Status = 0;
const IN_PROGRESS: Status = 7;
/// How long ranks may take to find each other.
const JOIN_WITHIN: Duration = Duration::from_secs(60);
/// How often marks are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Names a communicator to its ranks.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct UniqueId([c_char; 128]);

/// The configuration as of version 2.18; a newer library fills in what it has come to know since.
#[repr(C)]
struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
    cga_cluster_size: c_int,
    min_ctas: c_int,
    max_ctas: c_int,
    net_name: usize,
    split_share: c_int,
}
const _: () = assert!(size_of::<Config>() == 48);

const CONFIG_MAGIC: c_uint = 0xcafe_beef;
const CONFIG_VERSION: c_uint = 21801;
const UNDEFINED: c_int = c_int::MIN;

struct Functions {
    unique_id: unsafe extern "C" fn(*mut UniqueId) -> Status,
    init: unsafe extern "C" fn(*mut Handle, c_int, UniqueId, c_int, *mut Config) -> Status,
    async_error: unsafe extern "C" fn(Handle, *mut Status) -> Status,
    all_reduce: unsafe extern "C" fn(usize, usize, usize, c_int, c_int, Handle, usize) -> Status,
    abort: unsafe extern "C" fn(Handle) -> Status,
    error_string: unsafe extern "C" fn(Status) -> *const c_char,
}

/// The library.
pub(crate) struct Nccl {
    functions: Functions,
    version: c_int,
    /// It starts threads of its own, so it stays loaded to the end of the process.
    _library: ManuallyDrop<Library>,
}

impl Nccl {
    /// Opens the library, in `folders` first. Without `trusts_peers` it will not copy between GPUs directly.
    ///
    /// # Errors
    /// It is not found, or too old.
    pub(crate) fn open(folders: &[PathBuf], trusts_peers: bool) -> Result<Self, DeviceError> {
        // NVLink multicast leaves a whole machine's GPUs unusable when a process dies in it, and the environment is the
        // only switch the library has. So is it for copies between GPUs.
        let mut switches = vec![(c"NCCL_NVLS_ENABLE", c"0")];
        if !trusts_peers {
            switches.push((c"NCCL_P2P_DISABLE", c"1"));
        }
        for (name, value) in switches {
            // SAFETY: both are strings; groups are formed before the threads that serve requests start, and the C
            // library guards its own table of the environment.
            unsafe { libc::setenv(name.as_ptr(), value.as_ptr(), 1) };
        }
        let library = library::open(&library::NCCL, folders)?;
        let missing = |error: libloading::Error| DeviceError(format!("NCCL is too old: {error}"));
        // SAFETY: the types are those of nccl.h since 2.14.
        unsafe {
            let functions = Functions {
                unique_id: *library.get(b"ncclGetUniqueId").map_err(missing)?,
                init: *library.get(b"ncclCommInitRankConfig").map_err(missing)?,
                async_error: *library.get(b"ncclCommGetAsyncError").map_err(missing)?,
                all_reduce: *library.get(b"ncclAllReduce").map_err(missing)?,
                abort: *library.get(b"ncclCommAbort").map_err(missing)?,
                error_string: *library.get(b"ncclGetErrorString").map_err(missing)?,
            };
            let get_version: libloading::Symbol<'_, unsafe extern "C" fn(*mut c_int) -> Status> =
                library.get(b"ncclGetVersion").map_err(missing)?;
            let mut version = 0;
            get_version(&mut version);
            Ok(Self { functions, version, _library: ManuallyDrop::new(library) })
        }
    }

    /// For example `NCCL 2.30.7`.
    pub(crate) fn describe(&self) -> String {
        format!("NCCL {}.{}.{}", self.version / 10_000, self.version / 100 % 100, self.version % 100)
    }

    /// A new name for a communicator.
    pub(crate) fn unique_id(&self) -> Result<UniqueId, DeviceError> {
        let mut id = UniqueId([0; 128]);
        // SAFETY: writes the 128 bytes.
        let status = unsafe { (self.functions.unique_id)(&mut id) };
        self.succeed(status, "to name a group").map(|()| id)
    }

    fn succeed(&self, status: Status, doing: &str) -> Result<(), DeviceError> {
        if status == SUCCESS {
            return Ok(());
        }
        // SAFETY: the library returns a string of its own for every status.
        let text = unsafe { CStr::from_ptr((self.functions.error_string)(status)) };
        Err(DeviceError(format!("NCCL failed {doing}: {} (status {status})", text.to_string_lossy())))
    }
}

/// One rank's end.
pub(crate) struct Communicator {
    nccl: Arc<Nccl>,
    /// None: aborted.
    handle: Mutex<Option<Handle>>,
    rank: usize,
    deadline: Duration,
    signals: Arc<Signals>,
}

/// An array to be summed in place, and the stream to do it in.
#[derive(Clone, Copy)]
pub(crate) struct Sum {
    pub(crate) x: usize,
    pub(crate) count: usize,
    /// 0 BF16, 1 F16, 2 F32, as in all_reduce.cu.
    pub(crate) dtype: u32,
    pub(crate) stream: usize,
}

impl Communicator {
    /// Joins the others; called on a thread of each rank at the same time, its GPU selected.
    ///
    /// # Errors
    /// They do not all come within a minute, or the library cannot connect them.
    pub(crate) fn join(
        nccl: Arc<Nccl>,
        id: UniqueId,
        rank: usize,
        deadline: Duration,
        signals: Arc<Signals>,
    ) -> Result<Self, DeviceError> {
        let size = signals.words.len();
        let mut config = Config {
            size: size_of::<Config>(),
            magic: CONFIG_MAGIC,
            version: CONFIG_VERSION,
            blocking: 0,
            cga_cluster_size: UNDEFINED,
            min_ctas: UNDEFINED,
            max_ctas: UNDEFINED,
            net_name: 0,
            split_share: UNDEFINED,
        };
        let mut handle = 0;
        // SAFETY: the configuration says its size; writes one handle.
        let status =
            unsafe { (nccl.functions.init)(&mut handle, size as c_int, id, rank as c_int, &mut config) };
        let doing = format!("to connect rank {rank} of {size}");
        let communicator = Self { nccl, handle: Mutex::new(Some(handle)), rank, deadline, signals };
        match status {
            SUCCESS | IN_PROGRESS => communicator.settle(handle, JOIN_WITHIN, &doing)?,
            failed => communicator.nccl.succeed(failed, &doing)?,
        }
        Ok(communicator)
    }

    /// Starts a sum.
    ///
    /// # Errors
    /// The communicator was aborted, or has failed: names rank and operation.
    pub(crate) fn all_reduce(&self, sum: Sum) -> Result<(), DeviceError> {
        const SUM: c_int = 0;
        let dtype = [9, 6, 7][sum.dtype as usize];
        let (rank, size) = (self.rank, self.signals.words.len());
        let handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(handle) = *handle else {
            return Err(DeviceError(format!("rank {rank} of {size}: NCCL was aborted")));
        };
        // SAFETY: the array is a view's, summed in place; the handle is live while its lock is held.
        let status = unsafe {
            (self.nccl.functions.all_reduce)(sum.x, sum.x, sum.count, dtype, SUM, handle, sum.stream)
        };
        let doing = format!("all_reduce on rank {rank} of {size}");
        match status {
            SUCCESS => Ok(()),
            IN_PROGRESS => self.settle(handle, self.deadline, &doing),
            failed => self.nccl.succeed(failed, &doing),
        }
    }

    /// Waits until what was begun in the background has been started on the device, or has failed, or the group was ended:
    /// the handle's lock is held here, and whoever aborts waits for it.
    fn settle(&self, handle: Handle, within: Duration, doing: &str) -> Result<(), DeviceError> {
        let end = Instant::now() + within;
        loop {
            let mut state = IN_PROGRESS;
            // SAFETY: the handle is live; writes one integer.
            let status = unsafe { (self.nccl.functions.async_error)(handle, &mut state) };
            self.nccl.succeed(status, doing)?;
            match state {
                IN_PROGRESS if self.signals.is_stopped() => {
                    return Err(DeviceError(format!("NCCL failed {doing}: the group was given up")));
                }
                IN_PROGRESS if Instant::now() < end => std::thread::yield_now(),
                IN_PROGRESS => {
                    return Err(DeviceError(format!("NCCL failed {doing}: not done within {within:?}")));
                }
                state => return self.nccl.succeed(state, doing),
            }
        }
    }

    /// Ends what runs and gives everything back; later calls fail.
    pub(crate) fn abort(&self) {
        let handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(handle) = handle {
            // SAFETY: the handle was live and is taken: nobody uses it again.
            unsafe { (self.nccl.functions.abort)(handle) };
        }
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        // Nothing runs any more, and unlike its orderly end an abort asks nothing of the other ranks.
        self.abort();
    }
}

/// A thread that ends a group's communicators when one of their calls outlasts the deadline, or when the group was stopped
/// in the midst of one. It ends when this is dropped, so that nothing of the group outlives its ranks.
pub(crate) struct Watch {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Starts to watch.
    pub(crate) fn start(
        signals: Arc<Signals>,
        communicators: Arc<[Communicator]>,
        deadline: Duration,
    ) -> Result<Self, DeviceError> {
        let over = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&over);
        let look = move || {
            let mut seen = vec![(0, Instant::now()); communicators.len()];
            while !told.load(Ordering::Acquire) && !has_ended(&signals, &communicators, deadline, &mut seen) {
                std::thread::park_timeout(LOOK_EVERY);
            }
        };
        let started = std::thread::Builder::new().name("nccl watch".to_owned()).spawn(look);
        let thread = started.map_err(|error| DeviceError(format!("no thread to watch NCCL: {error}")))?;
        Ok(Self { over, thread: Some(thread) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // What it would panic with has been written by then.
            let _ended = thread.join();
        }
    }
}

/// Looks once; true when the group's communicators were aborted.
fn has_ended(
    signals: &Signals,
    communicators: &[Communicator],
    deadline: Duration,
    seen: &mut [(i32, Instant)],
) -> bool {
    let mut late = None;
    for (rank, (words, seen)) in signals.words.iter().zip(seen).enumerate() {
        let (begun, ended) = (words.get(BEGUN), words.get(ENDED));
        if seen.0 != ended || begun == ended {
            *seen = (ended, Instant::now());
        }
        if begun != ended && (signals.is_stopped() || deadline < seen.1.elapsed()) {
            late = Some(rank);
        }
    }
    let Some(rank) = late else { return false };
    signals.stop(&format!(
        "all_reduce (NCCL) on rank {rank} of {} did not end within {deadline:?}: another rank did not come to it",
        communicators.len()
    ));
    // All at the same time: an end may wait for another's.
    std::thread::scope(|scope| {
        for communicator in communicators {
            scope.spawn(|| communicator.abort());
        }
    });
    true
}
