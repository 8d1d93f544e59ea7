//! Cases of what ranks do together: each rank a thread with a back end of its own; and how long sums take.

use std::fmt;
use std::sync::Barrier;
use std::time::Duration;

use super::{Bench, Outcome, Report, decode, encode};
use crate::DeviceError;
use crate::backend::Backend;
use crate::collective::Collective;
use crate::cuda::Cuda;
use crate::cuda::peers::{self, Peers, Seat};
use crate::cuda::runtime::{Event, Graph};
use crate::dtype::DType;

const DEADLINE: Duration = Duration::from_secs(10);
/// Sums of one graph: two a layer of Qwen2.5-7B.
const SUMS: usize = 56;

/// The cases' outcomes, and the times of sums.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupReport {
    /// One a case and rank.
    pub outcomes: Report,
    /// Bytes of an array, and microseconds of its sum over the ranks.
    pub sums: Vec<(usize, f32)>,
}

impl GroupReport {
    /// Every case passed on every rank.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.outcomes.passed()
    }
}

impl fmt::Display for GroupReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.outcomes)?;
        for (bytes, us) in &self.sums {
            writeln!(f, "all_reduce {bytes:10} bytes {us:9.2} us")?;
        }
        Ok(())
    }
}

/// Runs the cases with one rank a GPU of `ordinals`.
///
/// # Errors
/// The GPUs cannot form a group.
pub fn run(ordinals: &[usize]) -> Result<GroupReport, DeviceError> {
    let barrier = Barrier::new(ordinals.len());
    let seats = peers::seats(ordinals, DEADLINE)?;
    let ranks: Vec<Result<GroupReport, DeviceError>> = std::thread::scope(|scope| {
        let start = |(seat, ordinal): (Seat, &usize)| {
            let (barrier, ordinal) = (&barrier, *ordinal);
            scope.spawn(move || rank(seat, ordinal, barrier))
        };
        let threads: Vec<_> = seats.into_iter().zip(ordinals).map(start).collect();
        threads.into_iter().map(|thread| thread.join().expect("a rank does not panic")).collect()
    });
    let mut all = GroupReport { outcomes: Report { outcomes: Vec::new() }, sums: Vec::new() };
    for report in ranks {
        let report = report?;
        all.outcomes.outcomes.extend(report.outcomes.outcomes);
        all.sums = report.sums;
    }
    Ok(all)
}

fn rank(seat: Seat, ordinal: usize, barrier: &Barrier) -> Result<GroupReport, DeviceError> {
    let cuda = Cuda::new(ordinal, DType::BF16)?;
    let mut cases = Cases { peers: seat.take(&cuda), cuda: &cuda, outcomes: Vec::new() };
    barrier.wait();
    // Sizes change from call to call: what is pushed must never meet what was pushed before.
    for elements in [3584, 3, 64 * 3584, 8, 1_000_003, 3584, 21_000_000, 7, 256 * 3584, 3584 * 8] {
        for dtype in [DType::BF16, DType::F16, DType::F32] {
            cases.all_reduce(dtype, elements);
        }
    }
    for (rows, width) in [(1, 76_032), (64, 76_032), (3, 1001), (400, 5000)] {
        cases.gather_columns(rows, width);
    }
    for elements in [3584, 1, 300_000, 64 * 3584, 8_000_000, 2, 3584] {
        cases.hand_over(elements);
    }
    if let Err(error) = cuda.collect() {
        cases.note("device", &error.to_string(), f32::INFINITY);
    }
    if let Some(fault) = cases.peers.fault() {
        cases.note("device", &fault.to_string(), f32::INFINITY);
    }
    let mut sums = Vec::new();
    for rows in [1, 2, 8, 32, 64, 128, 256, 1024, 8192] {
        barrier.wait();
        sums.push((rows * 3584 * 2, time(&cuda, &cases.peers, rows, barrier)?));
    }
    barrier.wait();
    Ok(GroupReport { outcomes: Report { outcomes: cases.outcomes }, sums })
}

struct Cases<'a> {
    cuda: &'a Cuda,
    peers: Peers,
    outcomes: Vec<Outcome>,
}

/// Small whole numbers, whose sums are exact in every type.
fn value(rank: usize, index: usize) -> f32 {
    ((index * 7 + index / 1000 + rank * 13) % 17) as f32 - 8.0
}

fn values(rank: usize, count: usize) -> Vec<f32> {
    (0..count).map(|index| value(rank, index)).collect()
}

impl Cases<'_> {
    fn note(&mut self, operation: &'static str, case: &str, error: f32) {
        let case = format!("rank {} of {}: {case}", self.peers.rank(), self.peers.size());
        self.outcomes.push(Outcome { operation, case, error, limit: 0.0 });
    }

    /// The share of elements that differ.
    fn compare(&mut self, operation: &'static str, case: &str, ours: &[f32], expected: &[f32]) {
        let wrong = ours.iter().zip(expected).filter(|(a, b)| a != b).count();
        self.note(operation, case, wrong as f32 / expected.len() as f32);
    }

    fn all_reduce(&mut self, dtype: DType, count: usize) {
        let mut x = Bench::tensor(self.cuda, dtype, 1, count);
        self.cuda.write(x.view_mut(), &encode(dtype, &values(self.peers.rank(), count)));
        self.peers.all_reduce(x.view_mut());
        let expected: Vec<f32> =
            (0..count).map(|index| (0..self.peers.size()).map(|rank| value(rank, index)).sum()).collect();
        self.compare("all_reduce", &format!("{count} of {dtype:?}"), &decode(self.cuda, &x), &expected);
    }

    /// Rank `r` has `width + r` columns.
    fn gather_columns(&mut self, rows: usize, width: usize) {
        let (rank, size) = (self.peers.rank(), self.peers.size());
        let own = width + rank;
        let all = size * width + size * (size - 1) / 2;
        let mut x = Bench::tensor(self.cuda, DType::F32, rows, own);
        let mut out = Bench::tensor(self.cuda, DType::F32, rows, all);
        self.cuda.write(x.view_mut(), &encode(DType::F32, &values(rank, rows * own)));
        self.peers.gather_columns(out.view_mut(), x.view());
        let mut expected = Vec::with_capacity(rows * all);
        for row in 0..rows {
            for rank in 0..size {
                let own = width + rank;
                expected.extend((0..own).map(|column| value(rank, row * own + column)));
            }
        }
        self.compare("gather_columns", &format!("{rows} x {all}"), &decode(self.cuda, &out), &expected);
    }

    /// Everyone sends to the next rank and receives from the one before, three times.
    fn hand_over(&mut self, count: usize) {
        let (rank, size) = (self.peers.rank(), self.peers.size());
        let (next, before) = ((rank + 1) % size, (rank + size - 1) % size);
        let mut x = Bench::tensor(self.cuda, DType::BF16, 1, count);
        let mut received = Bench::tensor(self.cuda, DType::BF16, 1, count);
        for turn in 0..3 {
            self.cuda.write(x.view_mut(), &encode(DType::BF16, &values(rank + turn, count)));
            self.peers.send(next, x.view());
            self.peers.receive(before, received.view_mut());
            let expected = values(before + turn, count);
            self.compare(
                "send, receive",
                &format!("{count}, turn {turn}"),
                &decode(self.cuda, &received),
                &expected,
            );
        }
    }
}

/// Median microseconds of a sum of `rows` rows of Qwen2.5-7B's activations, of a graph of many.
fn time(cuda: &Cuda, peers: &Peers, rows: usize, barrier: &Barrier) -> Result<f32, DeviceError> {
    let mut x = Bench::tensor(cuda, DType::BF16, rows, 3584);
    let graph = Graph::capture(&cuda.stream, || (0..SUMS).for_each(|_| peers.all_reduce(x.view_mut())))?;
    let (start, end) = (Event::new(true)?, Event::new(true)?);
    let mut times = Vec::new();
    for _ in 0..7 {
        barrier.wait();
        start.record(&cuda.stream)?;
        graph.start(&cuda.stream)?;
        end.record(&cuda.stream)?;
        end.wait()?;
        times.push(end.us_since(&start)? / SUMS as f32);
    }
    times.sort_by(f32::total_cmp);
    Ok(times[3])
}
