//! Cases of what ranks do together: each rank a thread with a back end of its own.

use std::sync::Barrier;
use std::time::Duration;

use super::{Bench, Outcome, Report, decode, encode};
use crate::DeviceError;
use crate::backend::Backend;
use crate::collective::Collective;
use crate::cuda::Cuda;
use crate::cuda::group::form::{Options, form};
use crate::cuda::group::mail::Traffic;
use crate::cuda::group::table::Algorithm;
use crate::cuda::group::{Group, Seat};
use crate::dtype::DType;

/// Sizes change from call to call: what is pushed must never meet what was pushed before.
const ELEMENTS: [usize; 12] =
    [3584, 1, 3, 64 * 3584, 8, 1_000_003, 3584, 33_554_431, 7, 256 * 3584, 3584 * 8, 17];

/// Runs the cases with one rank a GPU of `ordinals`; a GPU may have several.
///
/// # Errors
/// The GPUs cannot form a group.
pub fn run(ordinals: &[usize], options: &Options) -> Result<Report, DeviceError> {
    let sums = form(ordinals, Traffic::Sums, options)?;
    let messages = form(ordinals, Traffic::Messages, options)?;
    let algorithms = sums.algorithms.clone();
    let barrier = Barrier::new(ordinals.len());
    let ranks: Vec<Result<Vec<Outcome>, DeviceError>> = std::thread::scope(|scope| {
        let start = |((sums, messages), ordinal): ((Seat, Seat), &usize)| {
            let (barrier, ordinal, algorithms) = (&barrier, *ordinal, &algorithms);
            scope.spawn(move || rank((sums, messages), ordinal, algorithms, barrier))
        };
        let threads: Vec<_> = sums.seats.into_iter().zip(messages.seats).zip(ordinals).map(start).collect();
        threads.into_iter().map(|thread| thread.join().expect("a rank does not panic")).collect()
    });
    let mut all = Report { outcomes: Vec::new() };
    for outcomes in ranks {
        all.outcomes.extend(outcomes?);
    }
    all.outcomes.extend(lost_rank(ordinals, options)?);
    Ok(all)
}

fn rank(
    (sums, messages): (Seat, Seat),
    ordinal: usize,
    algorithms: &[Algorithm],
    barrier: &Barrier,
) -> Result<Vec<Outcome>, DeviceError> {
    let opened = Cuda::new(ordinal, DType::BF16);
    barrier.wait();
    // A rank whose GPU does not open is missed by the others, within the deadline.
    let outcomes = match &opened {
        Ok(cuda) => Ok(run_cases((sums.take(cuda), messages.take(cuda)), cuda, algorithms)),
        Err(error) => Err(error.clone()),
    };
    barrier.wait();
    outcomes
}

fn run_cases((sums, messages): (Group, Group), cuda: &Cuda, algorithms: &[Algorithm]) -> Vec<Outcome> {
    let mut cases = Cases { sums, messages, cuda, outcomes: Vec::new() };
    for elements in ELEMENTS {
        for dtype in [DType::BF16, DType::F16, DType::F32] {
            cases.all_reduce(algorithms, dtype, elements);
        }
    }
    for (rows, width) in [(1, 3584), (1, 8), (7, 3584), (64, 3584), (65, 896), (3, 1001), (16, 16_384)] {
        cases.all_reduce_add_rms_norm(rows, width);
    }
    for (rows, width) in [(1, 76_032), (64, 76_032), (3, 1001), (400, 5000)] {
        cases.gather_columns(rows, width);
    }
    // The last but two is a whole chunk of a prompt: everyone has sent it before anyone receives.
    for elements in [3584, 1, 300_000, 64 * 3584, 8192 * 3584, 2, 3584] {
        cases.hand_over(elements);
    }
    if let Err(error) = cuda.collect() {
        cases.note("device", &error.to_string(), f32::INFINITY);
    }
    for fault in [cases.sums.fault(), cases.messages.fault()].into_iter().flatten() {
        cases.note("device", &fault.to_string(), f32::INFINITY);
    }
    cases.outcomes
}

/// The last rank never comes: the others must have its name in a fault soon, and be released at once by an abort.
fn lost_rank(ordinals: &[usize], options: &Options) -> Result<Vec<Outcome>, DeviceError> {
    let mut outcomes = Vec::new();
    for (case, deadline, aborts) in [
        ("a rank does not come", Duration::from_millis(200), false),
        ("a rank is lost", Duration::from_secs(60), true),
    ] {
        let options = Options { deadline, compare: false, ..options.clone() };
        let mut seats = form(ordinals, Traffic::Sums, &options)?.seats;
        let lost = seats.pop().expect("a group has a rank");
        let barrier = Barrier::new(ordinals.len());
        let started = std::time::Instant::now();
        let faults: Vec<Result<String, DeviceError>> = std::thread::scope(|scope| {
            let wait = |(seat, ordinal): (Seat, &usize)| {
                let (barrier, ordinal) = (&barrier, *ordinal);
                scope.spawn(move || wait_for_lost(seat, ordinal, barrier))
            };
            let threads: Vec<_> = seats.into_iter().zip(ordinals).map(wait).collect();
            let cuda = Cuda::new(ordinals[ordinals.len() - 1], DType::BF16);
            barrier.wait();
            if aborts {
                cuda.map(|cuda| lost.take(&cuda).abort("the rank panicked")).ok();
            }
            threads.into_iter().map(|thread| thread.join().expect("a rank does not panic")).collect()
        });
        let late = Duration::from_secs(20) < started.elapsed();
        let missing = ordinals.len() - 1;
        let wanted = if aborts { "the rank panicked".to_owned() } else { format!("rank {missing} of") };
        for (rank, fault) in faults.into_iter().enumerate() {
            let fault = fault?;
            // Of three ranks and more one may hear first that another was given up; NCCL names nobody, and may still be at
            // connecting.
            let unnamed = ["did not come", "not done within"].into_iter().any(|text| fault.contains(text));
            let named = fault.contains(&wanted) || (!aborts && unnamed);
            let error = if late || !named { f32::INFINITY } else { 0.0 };
            let case = format!("rank {rank} of {}: {case}: {fault}", ordinals.len());
            outcomes.push(Outcome { operation: "fault", case, error, limit: 0.0 });
        }
    }
    Ok(outcomes)
}

/// A sum that one rank does not come to; what the fault says.
fn wait_for_lost(seat: Seat, ordinal: usize, barrier: &Barrier) -> Result<String, DeviceError> {
    let cuda = Cuda::new(ordinal, DType::BF16);
    barrier.wait();
    let cuda = cuda?;
    let group = seat.take(&cuda);
    let mut x = Bench::tensor(&cuda, DType::BF16, 1, 3584);
    group.all_reduce(x.view_mut());
    cuda.collect()?;
    Ok(group.fault().map_or_else(|| "no fault".to_owned(), |fault| fault.to_string()))
}

struct Cases<'a> {
    cuda: &'a Cuda,
    sums: Group,
    messages: Group,
    outcomes: Vec<Outcome>,
}

/// Small whole numbers, whose sums are exact in every type.
fn value(rank: usize, index: usize) -> f32 {
    ((index * 7 + index / 1000 + rank * 13) % 17) as f32 - 8.0
}

fn values(rank: usize, count: usize) -> Vec<f32> {
    (0..count).map(|index| value(rank, index)).collect()
}

fn summed(size: usize, count: usize) -> Vec<f32> {
    (0..count).map(|index| (0..size).map(|rank| value(rank, index)).sum()).collect()
}

impl Cases<'_> {
    fn note(&mut self, operation: &'static str, case: &str, error: f32) {
        let case = format!("rank {} of {}: {case}", self.sums.rank(), self.sums.size());
        self.outcomes.push(Outcome { operation, case, error, limit: 0.0 });
    }

    /// The share of elements that differ.
    fn compare(&mut self, operation: &'static str, case: &str, ours: &[f32], expected: &[f32]) {
        let wrong = ours.iter().zip(expected).filter(|(a, b)| a != b).count();
        self.note(operation, case, wrong as f32 / expected.len() as f32);
    }

    /// As the group chooses, then in every way there is.
    fn all_reduce(&mut self, algorithms: &[Algorithm], dtype: DType, count: usize) {
        let bytes = encode(dtype, &values(self.sums.rank(), count));
        let expected = summed(self.sums.size(), count);
        let mut x = Bench::tensor(self.cuda, dtype, 1, count);
        self.cuda.write(x.view_mut(), &bytes);
        self.sums.all_reduce(x.view_mut());
        let case = format!("{count} of {dtype:?}");
        self.compare("all_reduce", &format!("{case}, as chosen"), &decode(self.cuda, &x), &expected);
        for algorithm in algorithms.iter().filter(|algorithm| bytes.len() <= algorithm.most_bytes()) {
            self.cuda.write(x.view_mut(), &bytes);
            self.sums.all_reduce_by(*algorithm, &x.view_mut());
            let ours = decode(self.cuda, &x);
            self.compare("all_reduce", &format!("{case}, {algorithm}"), &ours, &expected);
        }
    }

    /// Against the two operations one after the other, bit by bit.
    fn all_reduce_add_rms_norm(&mut self, rows: usize, width: usize) {
        let dtype = DType::BF16;
        let count = rows * width;
        let mut results = Vec::new();
        for fused in [true, false] {
            let mut x = Bench::tensor(self.cuda, dtype, rows, width);
            let mut residual = Bench::tensor(self.cuda, dtype, rows, width);
            let mut out = Bench::tensor(self.cuda, dtype, rows, width);
            let mut weight = Bench::tensor(self.cuda, DType::F32, 1, width);
            self.cuda.write(x.view_mut(), &encode(dtype, &values(self.sums.rank(), count)));
            self.cuda.write(residual.view_mut(), &encode(dtype, &values(11, count)));
            self.cuda.write(out.view_mut(), &encode(dtype, &vec![f32::NAN; count]));
            self.cuda.write(weight.view_mut(), &encode(DType::F32, &values(5, width)));
            let (out_view, residual_view) = (out.view_mut(), residual.view_mut());
            if fused {
                let x = x.view_mut();
                self.sums.all_reduce_add_rms_norm(self.cuda, out_view, residual_view, x, weight.view(), 1e-6);
            } else {
                self.sums.all_reduce(x.view_mut());
                self.cuda.add_rms_norm(out_view, residual_view, x.view(), weight.view(), 1e-6);
            }
            results.push((decode(self.cuda, &residual), decode(self.cuda, &out)));
        }
        let operation = "all_reduce, norm";
        let case = format!("{rows} x {width}");
        let sums = summed(self.sums.size(), count);
        let expected: Vec<f32> = values(11, count).iter().zip(&sums).map(|(a, b)| a + b).collect();
        self.compare(operation, &format!("{case}, residual"), &results[0].0, &expected);
        let ours = std::mem::take(&mut results[0].1);
        self.compare(operation, &format!("{case}, out"), &ours, &results[1].1);
    }

    /// Rank `r` has `width + r` columns.
    fn gather_columns(&mut self, rows: usize, width: usize) {
        let (rank, size) = (self.sums.rank(), self.sums.size());
        let own = width + rank;
        let all = size * width + size * (size - 1) / 2;
        let mut x = Bench::tensor(self.cuda, DType::F32, rows, own);
        let mut out = Bench::tensor(self.cuda, DType::F32, rows, all);
        self.cuda.write(x.view_mut(), &encode(DType::F32, &values(rank, rows * own)));
        self.sums.gather_columns(out.view_mut(), x.view());
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
        let (rank, size) = (self.messages.rank(), self.messages.size());
        let (next, before) = ((rank + 1) % size, (rank + size - 1) % size);
        let mut x = Bench::tensor(self.cuda, DType::BF16, 1, count);
        let mut received = Bench::tensor(self.cuda, DType::BF16, 1, count);
        for turn in 0..3 {
            self.cuda.write(x.view_mut(), &encode(DType::BF16, &values(rank + turn, count)));
            self.messages.send(next, x.view());
            self.messages.receive(before, received.view_mut());
            let expected = values(before + turn, count);
            let ours = decode(self.cuda, &received);
            self.compare("send, receive", &format!("{count}, turn {turn}"), &ours, &expected);
        }
    }
}
