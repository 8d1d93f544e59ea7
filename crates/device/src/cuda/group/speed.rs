//! How long sums over the ranks take at Qwen2.5-7B's shapes, every algorithm beside every other in one run.

use std::fmt;
use std::sync::Barrier;

use crate::DeviceError;
use crate::backend::Backend;
use crate::collective::Collective;
use crate::cuda::Cuda;
use crate::cuda::group::Seat;
use crate::cuda::group::form::Formed;
use crate::cuda::group::table::Algorithm;
use crate::cuda::runtime::{Event, Graph};
use crate::dtype::DType;
use crate::tensor::Arena;

/// Rows of hidden states: one sequence, batches, chunks of prompts.
const ROWS: [usize; 8] = [1, 8, 32, 64, 128, 256, 1024, 8192];
const WIDTH: usize = 3584;
const CALLS: usize = 28;
const LONG_CALLS: usize = 4;
const LONG_ROWS: usize = 512;
const REPEATS: usize = 7;

/// One row of the table: microseconds by what was done.
#[derive(Clone, Debug, PartialEq)]
pub struct SumSpeed {
    /// Of `[rows, 3584]` in BF16.
    pub rows: usize,
    /// `one-shot`, ..., `norm: fused`, `norm: apart`.
    pub us: Vec<(String, f32)>,
}

/// The table.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupSpeed {
    /// One a size.
    pub sums: Vec<SumSpeed>,
}

impl fmt::Display for GroupSpeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for SumSpeed { rows, us } in &self.sums {
            write!(f, "{:>6} KB:", rows * WIDTH * 2 / 1000)?;
            us.iter().try_for_each(|(what, us)| write!(f, "  {what} {us:.2}"))?;
            writeln!(f, "  us")?;
        }
        Ok(())
    }
}

/// Times everything on a group that was formed with [`crate::cuda::group::form::Options::compare`].
///
/// # Errors
/// A rank has no room, or faults.
pub fn run(formed: Formed, ordinals: &[usize]) -> Result<GroupSpeed, DeviceError> {
    let barrier = Barrier::new(ordinals.len());
    let algorithms = &formed.algorithms;
    let ranks: Vec<Result<GroupSpeed, DeviceError>> = std::thread::scope(|scope| {
        let start = |(seat, ordinal): (Seat, &usize)| {
            let (barrier, ordinal) = (&barrier, *ordinal);
            scope.spawn(move || time_rank(seat, ordinal, algorithms, barrier))
        };
        let threads: Vec<_> = formed.seats.into_iter().zip(ordinals).map(start).collect();
        threads.into_iter().map(|thread| thread.join().expect("a rank does not panic")).collect()
    });
    let mut ranks = ranks.into_iter().collect::<Result<Vec<_>, _>>()?;
    Ok(ranks.swap_remove(0))
}

fn time_rank(
    seat: Seat,
    ordinal: usize,
    algorithms: &[Algorithm],
    barrier: &Barrier,
) -> Result<GroupSpeed, DeviceError> {
    let cuda = Cuda::new(ordinal, DType::BF16)?;
    let group = seat.take(&cuda);
    let tensor = |dtype, rows, width| -> Result<_, DeviceError> {
        let bytes = Arena::tensor_bytes(dtype, rows, width);
        Ok(Arena::new(cuda.allocate(bytes)?).tensor(dtype, rows, width))
    };
    let mut sums = Vec::new();
    for rows in ROWS {
        let (mut x, mut residual) = (tensor(DType::BF16, rows, WIDTH)?, tensor(DType::BF16, rows, WIDTH)?);
        let (mut out, weight) = (tensor(DType::BF16, rows, WIDTH)?, tensor(DType::F32, 1, WIDTH)?);
        let mut us = Vec::new();
        for algorithm in algorithms.iter().filter(|algorithm| rows * WIDTH * 2 <= algorithm.most_bytes()) {
            let time = time(&cuda, rows, barrier, || group.all_reduce_by(*algorithm, &x.view_mut()))?;
            us.push((algorithm.to_string(), time));
        }
        let mut norm = |fused: bool| {
            time(&cuda, rows, barrier, || {
                let (out, residual, mut x) = (out.view_mut(), residual.view_mut(), x.view_mut());
                if fused {
                    group.all_reduce_add_rms_norm(&cuda, out, residual, x, weight.view(), 1e-6);
                } else {
                    group.all_reduce(x.reborrow());
                    cuda.add_rms_norm(out, residual, x.view(), weight.view(), 1e-6);
                }
            })
        };
        us.push(("norm: fused".to_owned(), norm(true)?));
        us.push(("norm: apart".to_owned(), norm(false)?));
        sums.push(SumSpeed { rows, us });
    }
    group.check_recorded()?;
    match group.fault() {
        Some(fault) => Err(fault),
        None => Ok(GroupSpeed { sums }),
    }
}

/// Median microseconds of one call of a graph of many.
fn time(cuda: &Cuda, rows: usize, barrier: &Barrier, mut work: impl FnMut()) -> Result<f32, DeviceError> {
    let calls = if rows < LONG_ROWS { CALLS } else { LONG_CALLS };
    work();
    cuda.stream.synchronize()?;
    let graph = Graph::capture(&cuda.stream, || (0..calls).for_each(|_| work()))?;
    let (start, end) = (Event::new(true)?, Event::new(true)?);
    let mut times = Vec::new();
    for _ in 0..=REPEATS {
        barrier.wait();
        start.record(&cuda.stream)?;
        graph.start(&cuda.stream)?;
        end.record(&cuda.stream)?;
        end.wait()?;
        times.push(end.us_since(&start)? / calls as f32);
    }
    let times = &mut times[1..];
    times.sort_by(f32::total_cmp);
    Ok(times[REPEATS / 2])
}
