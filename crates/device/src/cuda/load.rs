//! Takes weights in: several threads read rows into pinned memory while what they read before is copied to the device,
//! in a stream of each thread's own. Dense weights of another type are converted there, block formats are dequantised by
//! the threads; made-up weights never leave the device.

use std::ops::Range;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::DeviceError;
use crate::cpu::quant;
use crate::cuda::kernels::{self, ConvertParams, Element, Launch, NoiseParams, Source};
use crate::cuda::runtime::{self, Event, Pinned, Stream};
use crate::cuda::{Cuda, dim};
use crate::matrix::{Format, Matrix};
use crate::noise::Noise;
use crate::source::RowSource;
use crate::tensor::Allocation;

/// What a thread reads, and has copied, at once.
const PIECE_BYTES: usize = 4 << 20;
/// More threads than this read no faster from memory, and disks are content with fewer.
const MOST_THREADS: usize = 8;

/// The threads' pinned memory; it is made for the first weight and given up before the first step.
pub(super) struct Loaders {
    lanes: Vec<Lane>,
}

/// One thread's: it reads into one place while the other is copied from.
struct Lane {
    stream: Stream,
    places: [Place; 2],
}

struct Place {
    pinned: Pinned,
    /// Where elements of another type wait on the device to be converted; made when there are some.
    staging: Option<Allocation>,
    /// The copy from here is done.
    done: Event,
}

impl Loaders {
    /// For as many threads as this machine's cores give each of its GPUs.
    pub(super) fn new(ordinal: usize) -> Result<Self, DeviceError> {
        runtime::use_device(ordinal)?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = (cores / runtime::device_count()?.max(1)).clamp(2, MOST_THREADS);
        let place =
            || Ok(Place { pinned: Pinned::new(PIECE_BYTES)?, staging: None, done: Event::new(false)? });
        let lane = |_| Ok(Lane { stream: Stream::new()?, places: [place()?, place()?] });
        Ok(Self { lanes: (0..threads).map(lane).collect::<Result<_, DeviceError>>()? })
    }
}

/// What the threads share while they take in one weight.
struct Task<'a> {
    ordinal: usize,
    source: &'a dyn RowSource,
    format: Format,
    rows: usize,
    columns: usize,
    rows_at_once: usize,
    /// What lies in pinned memory, and whether it has to be converted.
    pinned: Source,
    converted: bool,
    element: Element,
    multiprocessors: u32,
    /// Where the weight lies on the device.
    to: usize,
    /// The next rows nobody has taken, counted in pieces.
    next: AtomicUsize,
}

/// See [`crate::Backend::load_matrix`].
pub(super) fn matrix(
    cuda: &Cuda,
    format: Format,
    rows: usize,
    columns: usize,
    source: &dyn RowSource,
) -> Result<Matrix, DeviceError> {
    assert!(columns.is_multiple_of(8), "a weight's columns ({columns}) are read eight at a time");
    let pinned = dense(format).unwrap_or(Source::F32);
    let row_bytes = columns * bytes_of(pinned);
    if PIECE_BYTES < row_bytes {
        return Err(DeviceError(format!("a weight has rows of {columns} elements: more than any model's")));
    }
    let data = runtime::allocate(cuda.ordinal, rows * columns * 2)?;
    let task = Task {
        ordinal: cuda.ordinal,
        source,
        format,
        rows,
        columns,
        rows_at_once: PIECE_BYTES / row_bytes,
        pinned,
        converted: format != own_format(cuda.element),
        element: cuda.element,
        multiprocessors: cuda.launch().multiprocessors,
        to: data.address(),
        next: AtomicUsize::new(0),
    };
    let mut loaders = cuda.loaders.borrow_mut();
    let loaders = match &mut *loaders {
        Some(loaders) => loaders,
        none => none.insert(Loaders::new(cuda.ordinal)?),
    };
    let lanes = loaders.lanes.iter_mut().take(rows.div_ceil(task.rows_at_once));
    std::thread::scope(|scope| {
        let threads: Vec<_> = lanes.map(|lane| scope.spawn(|| lane.load(&task))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })?;
    Ok(Matrix { format: own_format(cuda.element), rows, columns, data, layout: 0 })
}

impl Lane {
    /// Takes piece after piece until there are none. No copy is under way when it returns.
    fn load(&mut self, task: &Task<'_>) -> Result<(), DeviceError> {
        runtime::use_device(task.ordinal)?;
        let taken = self.take_pieces(task);
        let copied = self.stream.synchronize();
        taken.and(copied)
    }

    fn take_pieces(&mut self, task: &Task<'_>) -> Result<(), DeviceError> {
        let mut blocks = Vec::new();
        for turn in 0.. {
            let start = task.next.fetch_add(1, Ordering::Relaxed) * task.rows_at_once;
            if task.rows <= start {
                break;
            }
            let rows = start..(start + task.rows_at_once).min(task.rows);
            let place = &mut self.places[turn % 2];
            place.done.wait()?;
            task.read(rows.clone(), place, &mut blocks)?;
            task.send(rows, place, &self.stream)?;
            place.done.record(&self.stream)?;
        }
        Ok(())
    }
}

impl Task<'_> {
    /// Rows into pinned memory; block formats as F32.
    fn read(&self, rows: Range<usize>, place: &mut Place, blocks: &mut Vec<u8>) -> Result<(), DeviceError> {
        let elements = rows.len() * self.columns;
        if self.format.is_dense() {
            return self.source.read(rows, &mut place.pinned.bytes_mut()[..self.format.row_bytes(elements)]);
        }
        blocks.resize(self.format.row_bytes(elements), 0);
        self.source.read(rows, blocks)?;
        quant::dequantize(self.format, blocks, &mut place.pinned.floats_mut()[..elements]);
        Ok(())
    }

    /// Starts the copy to the device, and the conversion there.
    fn send(&self, rows: Range<usize>, place: &mut Place, stream: &Stream) -> Result<(), DeviceError> {
        let elements = rows.len() * self.columns;
        let (from, bytes) = (place.pinned.address() as *const u8, elements * bytes_of(self.pinned));
        let to = self.to + rows.start * self.columns * 2;
        if !self.converted {
            return stream.copy_to_device(to, from, bytes);
        }
        let staging = match &place.staging {
            Some(staging) => staging.address(),
            None => place.staging.insert(runtime::allocate(self.ordinal, PIECE_BYTES)?).address(),
        };
        stream.copy_to_device(staging, from, bytes)?;
        let params = ConvertParams { out: to, from: staging, count: elements as u64 };
        let launch = Launch { stream: stream.handle(), overlaps: 0, multiprocessors: self.multiprocessors };
        // SAFETY: see `kernels`: `to` spans the rows, `staging` what was copied.
        let code = unsafe { kernels::launch_convert(params, self.pinned, self.element, launch) };
        runtime::check(code, "to convert a weight")
    }
}

/// See [`crate::Backend::make_matrix`].
pub(super) fn noise(cuda: &Cuda, pieces: &[Noise]) -> Result<Matrix, DeviceError> {
    let columns = pieces[0].columns.len();
    assert!(columns.is_multiple_of(8), "a weight's columns ({columns}) are read eight at a time");
    let rows = pieces.iter().map(|piece| piece.rows.len()).sum();
    let data = runtime::allocate(cuda.ordinal, rows * columns * 2)?;
    let mut out = data.address();
    for piece in pieces {
        let params = NoiseParams {
            out,
            key: piece.key,
            first: piece.first(),
            tensor_columns: piece.tensor_columns as u64,
            rows: dim(piece.rows.len()),
            columns: dim(columns),
            spread: piece.spread,
            stored: dense(piece.stored).expect("made-up weights are dense"),
        };
        // SAFETY: see `kernels`: the rectangles lie one after the other in the matrix.
        let code = unsafe { kernels::launch_noise(params, cuda.element, cuda.launch()) };
        runtime::check(code, "to make a weight up")?;
        out += piece.rows.len() * columns * 2;
    }
    cuda.stream.synchronize()?;
    Ok(Matrix { format: own_format(cuda.element), rows, columns, data, layout: 0 })
}

/// What a dense format is to the kernels.
fn dense(format: Format) -> Option<Source> {
    match format {
        Format::F32 => Some(Source::F32),
        Format::F16 => Some(Source::F16),
        Format::BF16 => Some(Source::BF16),
        _ => None,
    }
}

fn bytes_of(source: Source) -> usize {
    match source {
        Source::F32 => 4,
        Source::F16 | Source::BF16 => 2,
    }
}

/// What weights are kept in.
fn own_format(element: Element) -> Format {
    match element {
        Element::BF16 => Format::BF16,
        Element::F16 => Format::F16,
    }
}
