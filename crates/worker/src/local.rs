//! An executor whose ranks are threads of this process.

use std::any::Any;
use std::collections::VecDeque;
use std::fmt::{self, Display};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use phalanx_device::collective::alone::Alone;
use phalanx_device::collective::threads::{AbortHandle, ThreadGroup, group};
use phalanx_device::{Collective, DeviceError};
use phalanx_model::Place;
use phalanx_scheduler::step::{Executor, ExecutorError, Step, StepOutput};

use crate::parting::{Hold, holds};
use crate::rank::Rank;

/// The ranks of one replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mesh {
    /// Ranks that share each layer.
    pub tensor_size: usize,
    /// Spans of layers.
    pub num_stages: usize,
    /// How long a rank waits for another before it calls it lost.
    pub deadline: Duration,
}

/// What a rank is built from, besides weights: its place, and its ends of the groups it belongs to.
pub struct Seat {
    /// Where it stands.
    pub place: Place,
    /// The ranks that share its layers.
    pub tensor_group: Box<dyn Collective>,
    /// The ranks of the same tensor rank, one a stage.
    pub stage_group: Box<dyn Collective>,
}

/// Why there is no executor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct StartError(pub String);

/// What ranks report.
enum Report {
    /// It is loaded.
    Ready,
    /// The rank that samples has carried out a step.
    Output(StepOutput),
    /// It is lost; the text names it.
    Lost(String),
}

/// What a rank is told.
enum Order {
    /// Record graphs from now on.
    Record,
    /// Start this step.
    Start(Arc<Step>),
    /// Finish the steps up to this one: nothing else will be started before its output is known.
    Finish(u64),
}

/// Carries out Steps on one thread a rank.
///
/// Each rank takes orders from a channel of its own and goes through them at its own pace; what a rank needs of others
/// it waits for inside the collectives. So with S stages and S steps in flight each stage works on a step of its own.
///
/// A rank waits for its device only when the caller waits for the step's output. By then the caller has submitted all
/// that it can, so with two steps in flight the device always has the next one when it is done with one.
///
/// A rank that is lost keeps its memory until the executor is dropped: the others' devices may still write there.
pub struct LocalExecutor {
    ranks: Vec<RankThread>,
    reports: Receiver<Report>,
    groups: Arc<[AbortHandle]>,
    depth: usize,
    /// The numbers of the steps in flight, oldest first.
    in_flight: VecDeque<u64>,
    lost: Option<ExecutorError>,
}

struct RankThread {
    /// Taken when the rank shall end.
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

/// What a rank's thread reports with.
struct Line {
    place: Place,
    reports: Sender<Report>,
    groups: Arc<[AbortHandle]>,
}

impl LocalExecutor {
    /// Starts a thread for each rank of `mesh`, on which `build` makes the rank, all at the same time. Up to `depth` steps
    /// are to be in flight: one, a stage each, or two with overlap.
    ///
    /// # Errors
    /// A rank could not be built: names it and says why. Then all threads have ended.
    pub fn start<E: Display>(
        mesh: Mesh,
        depth: usize,
        build: impl Fn(Seat) -> Result<Rank, E> + Send + Sync + 'static,
    ) -> Result<Self, StartError> {
        let (seats, groups) = seats(mesh);
        let build = Arc::new(build);
        let (sender, reports) = mpsc::channel();
        let (ranks, in_flight) = (Vec::new(), VecDeque::new());
        let mut executor = Self { ranks, reports, groups, depth, in_flight, lost: None };
        let holds = holds(seats.len());
        for (seat, hold) in seats.into_iter().zip(holds) {
            let place = seat.place;
            let line = Line { place, reports: sender.clone(), groups: Arc::clone(&executor.groups) };
            let (orders, received) = mpsc::channel();
            let build = Arc::clone(&build);
            // Fifteen bytes are what the system keeps of a thread's name.
            let name = format!("rank s{} t{}", place.stage, place.tensor_rank);
            let thread = std::thread::Builder::new()
                .name(name)
                .spawn(move || line.live(seat, &*build, &received, hold))
                .map_err(|error| StartError(format!("a rank's thread could not be started: {error}")))?;
            executor.ranks.push(RankThread { orders: Some(orders), thread: Some(thread) });
        }
        for _ in 0..executor.ranks.len() {
            match executor.reports.recv().expect("a thread reports before it ends") {
                Report::Ready => {}
                Report::Lost(cause) => return Err(StartError(cause)),
                Report::Output(_) => unreachable!("no step was submitted yet"),
            }
        }
        Ok(executor)
    }
}

impl Executor for LocalExecutor {
    fn depth(&self) -> usize {
        self.depth
    }

    fn submit(&mut self, step: Arc<Step>) {
        self.in_flight.push_back(step.number);
        self.order(|| Order::Start(Arc::clone(&step)));
    }

    fn wait(&mut self) -> Result<StepOutput, ExecutorError> {
        if let Some(lost) = &self.lost {
            return Err(lost.clone());
        }
        let oldest = self.in_flight.pop_front().expect("a step is submitted before its output is waited for");
        self.order(|| Order::Finish(oldest));
        let cause = match self.reports.recv() {
            Ok(Report::Output(output)) => return Ok(output),
            Ok(Report::Lost(cause)) => cause,
            Ok(Report::Ready) => unreachable!("every rank was ready before the first step"),
            Err(_) => "every rank has ended".to_owned(),
        };
        let lost = ExecutorError(cause);
        self.lost = Some(lost.clone());
        Err(lost)
    }
}

impl LocalExecutor {
    /// From now on ranks with graphs record decode steps: the kernels they launch will not be chosen anew any more.
    pub fn start_recording(&mut self) {
        self.order(|| Order::Record);
    }

    fn order(&self, order: impl Fn() -> Order) {
        for rank in &self.ranks {
            let orders = rank.orders.as_ref().expect("only drop takes it");
            // A rank that is lost has reported it, and `wait` will say so.
            let _lost = orders.send(order());
        }
    }
}

impl Drop for LocalExecutor {
    fn drop(&mut self) {
        for rank in &mut self.ranks {
            rank.orders = None;
        }
        for rank in &mut self.ranks {
            if let Some(thread) = rank.thread.take() {
                // Panics are caught on the thread itself.
                let _ended = thread.join();
            }
        }
    }
}

impl fmt::Debug for LocalExecutor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LocalExecutor({} ranks, {} steps in flight)", self.ranks.len(), self.depth)
    }
}

impl Line {
    /// A rank's whole life.
    fn live<E: Display>(
        self,
        seat: Seat,
        build: &(impl Fn(Seat) -> Result<Rank, E> + Send + Sync),
        orders: &Receiver<Order>,
        hold: Hold,
    ) {
        let mut rank = match catch_unwind(AssertUnwindSafe(|| build(seat))) {
            Ok(Ok(rank)) => rank,
            Ok(Err(error)) => return self.lost(&error.to_string()),
            Err(panic) => return self.lost(&panic_text(&*panic)),
        };
        self.report(Report::Ready);
        self.obey_all(&mut rank, orders);
        // What this rank has started may use the others' memory, and what they have started this one's.
        rank.wait_idle();
        hold.part();
    }

    /// Obeys to the end: until there are no more orders, or the rank is lost.
    fn obey_all(&self, rank: &mut Rank, orders: &Receiver<Order>) {
        while let Ok(order) = orders.recv() {
            // The rank outlives a panic's unwinding, so the others hear of the cause before they miss this one.
            match catch_unwind(AssertUnwindSafe(|| self.obey(rank, order))) {
                Ok(Ok(())) => {}
                Ok(Err(fault)) => return self.give_up(rank, &fault.to_string()),
                Err(panic) => return self.give_up(rank, &panic_text(&*panic)),
            }
        }
        // Nobody waits for the steps under way any more, but the device still uses what is dropped soon.
        while rank.oldest().is_some() && rank.finish().is_ok() {}
    }

    /// The end of a rank that was ready: others may wait for it on their devices, too.
    fn give_up(&self, rank: &Rank, cause: &str) {
        self.lost(cause);
        rank.release_others(cause);
    }

    fn obey(&self, rank: &mut Rank, order: Order) -> Result<(), DeviceError> {
        match order {
            Order::Record => rank.start_recording(),
            Order::Start(step) => {
                if rank.must_finish_before(&step) {
                    self.finish(rank, u64::MAX)?;
                }
                let began = Instant::now();
                rank.start(&step);
                let us = began.elapsed().as_micros() as u64;
                tracing::trace!(us, chunks = step.chunks.len(), "a step is under way");
            }
            Order::Finish(number) => self.finish(rank, number)?,
        }
        // What is done already is reported at once: on a device that computes while it starts, all of it.
        while rank.is_done() {
            self.finish_oldest(rank)?;
        }
        Ok(())
    }

    /// Finishes the steps under way up to `last`.
    fn finish(&self, rank: &mut Rank, last: u64) -> Result<(), DeviceError> {
        while rank.oldest().is_some_and(|oldest| oldest <= last) {
            self.finish_oldest(rank)?;
        }
        Ok(())
    }

    fn finish_oldest(&self, rank: &mut Rank) -> Result<(), DeviceError> {
        if let Some(output) = rank.finish()? {
            self.report(Report::Output(output));
        }
        Ok(())
    }

    /// Reports the end of this rank, then releases the others from waiting for it.
    fn lost(&self, cause: &str) {
        let place = self.place;
        let cause = match (place.num_stages, place.tensor_size) {
            (1, 1) => cause.to_owned(),
            _ => format!("rank (stage {}, tensor rank {}): {cause}", place.stage, place.tensor_rank),
        };
        self.report(Report::Lost(cause.clone()));
        for group in &*self.groups {
            group.abort(&cause);
        }
    }

    fn report(&self, report: Report) {
        // The executor may be gone: it is being dropped, and nobody wants to know.
        let _gone = self.reports.send(report);
    }
}

/// Every rank's seat, stage after stage, and what ends the groups' waits.
fn seats(mesh: Mesh) -> (Vec<Seat>, Arc<[AbortHandle]>) {
    let Mesh { tensor_size, num_stages, deadline } = mesh;
    assert!(0 < tensor_size && 0 < num_stages, "a mesh has a rank");
    let groups = |count: usize, size: usize| -> Vec<_> {
        (0..count).map(|_| group(size, deadline).into_iter()).collect()
    };
    let mut tensor_groups = groups(num_stages, tensor_size);
    let mut stage_groups = groups(tensor_size, num_stages);
    let mut aborts = Vec::new();
    let mut seats = Vec::new();
    for place in Place::all(tensor_size, num_stages) {
        let mut end = |ends: &mut std::vec::IntoIter<ThreadGroup>| -> Box<dyn Collective> {
            let end = ends.next().expect("a group has an end for each of its ranks");
            if end.size() == 1 {
                return Box::new(Alone);
            }
            aborts.push(end.abort_handle());
            Box::new(end)
        };
        let tensor_group = end(&mut tensor_groups[place.stage]);
        let stage_group = end(&mut stage_groups[place.tensor_rank]);
        seats.push(Seat { place, tensor_group, stage_group });
    }
    (seats, aborts.into())
}

/// What a panic said.
fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (_, Some(text)) => text.as_str(),
        _ => "no reason given",
    };
    format!("panicked: {text}")
}
