//! The GPUs of this machine as ranks' devices. Without the feature `cuda` its place is taken by `no_gpu.rs`.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use phalanx_device::collective::alone::Alone;
use phalanx_device::cuda::peers::{self, Seat};
use phalanx_device::cuda::{Cuda, device_count, memory};
use phalanx_device::{Backend, Collective, DType, Device, Tunings};
use phalanx_model::Place;
use phalanx_worker::Mesh;

/// GPUs that this binary can use; 0 when there is no driver.
pub(crate) fn count() -> usize {
    device_count().unwrap_or(0)
}

/// One GPU as a device without a group.
///
/// # Errors
/// It cannot be opened.
pub(crate) fn alone(gpu: usize, dtype: DType) -> Result<Device> {
    Ok(Device::new(Box::new(Cuda::new(gpu, dtype)?), Box::new(Alone), Box::new(Alone)))
}

/// The GPUs of all replicas, with the groups they form.
pub(crate) struct Gpus {
    mesh: Mesh,
    /// By replica, stage and tensor rank: the rank's ends of its tensor and its stage group, until it takes them.
    seats: Mutex<Vec<(Option<Seat>, Option<Seat>)>>,
    /// The same way: the rank's GPU, opened, until it takes it.
    opened: Mutex<Vec<Option<Cuda>>>,
    tunings: Arc<Tunings>,
    /// Bytes in use on each GPU, whoever holds them, before weights were loaded.
    used_before: Vec<usize>,
}

impl Gpus {
    /// Deals GPUs to replicas, stages and tensor ranks in that order, one each. What is measured on them is remembered
    /// in the folder `measurements`.
    ///
    /// # Errors
    /// There are too few, or two that must exchange data cannot.
    pub(crate) fn claim(mesh: Mesh, replicas: usize, dtype: DType, measurements: &Path) -> Result<Self> {
        let there = device_count()?;
        let ranks = mesh.tensor_size * mesh.num_stages;
        if there < ranks * replicas {
            bail!(
                "the layout needs {} GPUs and there are {there}: lower the parallel sizes",
                ranks * replicas
            );
        }
        let tunings = Arc::new(Tunings::remembered(&measurements.join("matmul.txt")));
        let opened = open(ranks * replicas, dtype, &tunings)?;
        let mut seats: Vec<(Option<Seat>, Option<Seat>)> =
            (0..ranks * replicas).map(|_| (None, None)).collect();
        for first in (0..replicas).map(|replica| replica * ranks) {
            for stage in (0..mesh.num_stages).filter(|_| 1 < mesh.tensor_size) {
                let group: Vec<usize> =
                    (0..mesh.tensor_size).map(|rank| first + stage * mesh.tensor_size + rank).collect();
                for (gpu, seat) in group.iter().zip(peers::seats(&group, mesh.deadline)?) {
                    seats[*gpu].0 = Some(seat);
                }
            }
            for rank in (0..mesh.tensor_size).filter(|_| 1 < mesh.num_stages) {
                let group: Vec<usize> =
                    (0..mesh.num_stages).map(|stage| first + stage * mesh.tensor_size + rank).collect();
                for (gpu, seat) in group.iter().zip(peers::seats(&group, mesh.deadline)?) {
                    seats[*gpu].1 = Some(seat);
                }
            }
        }
        let used_before = (0..ranks * replicas).map(used).collect::<Result<_>>()?;
        Ok(Self { mesh, seats: Mutex::new(seats), opened: Mutex::new(opened), tunings, used_before })
    }

    /// Which kernels multiply.
    pub(crate) fn tunings(&self) -> &Tunings {
        &self.tunings
    }

    /// Bytes in use on each GPU, whoever holds them: before weights were loaded, and now.
    ///
    /// # Errors
    /// A device is lost.
    pub(crate) fn used(&self) -> Result<Vec<(usize, usize)>> {
        self.used_before.iter().enumerate().map(|(gpu, before)| Ok((*before, used(gpu)?))).collect()
    }

    /// Bytes that one rank may use: this share of the fullest card, less what others hold of it.
    ///
    /// # Errors
    /// A GPU cannot be opened.
    pub(crate) fn budget(&self, share: f64) -> Result<usize> {
        let opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        let of_each = opened.iter().flatten().map(|cuda| {
            let (free, total) = cuda.memory()?;
            Ok(((total as f64 * share) as usize).saturating_sub(total - free))
        });
        of_each
            .min_by_key(|budget: &Result<usize>| *budget.as_ref().unwrap_or(&0))
            .context("a layout has a rank")?
    }

    /// The device of one rank; called once for each.
    ///
    /// # Errors
    /// The GPU cannot be opened.
    pub(crate) fn device(&self, replica: usize, place: Place) -> Result<Device> {
        let ranks = self.mesh.tensor_size * self.mesh.num_stages;
        let gpu = replica * ranks + place.stage * self.mesh.tensor_size + place.tensor_rank;
        let opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner)[gpu].take();
        let cuda = opened.context("each rank takes its GPU once")?;
        let (tensor, stage) = {
            let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
            let (tensor, stage) = &mut seats[gpu];
            (tensor.take(), stage.take())
        };
        let group = |seat: Option<Seat>| -> Box<dyn Collective> {
            match seat {
                Some(seat) => Box::new(seat.take(&cuda)),
                None => Box::new(Alone),
            }
        };
        let (tensor, stage) = (group(tensor), group(stage));
        tracing::info!(
            "rank (stage {}, tensor rank {}): {}",
            place.stage,
            place.tensor_rank,
            cuda.describe()
        );
        Ok(Device::new(Box::new(cuda), tensor, stage))
    }
}

/// Opens the first `count` GPUs, all at the same time: each takes the driver some tenths of a second.
fn open(count: usize, dtype: DType, tunings: &Arc<Tunings>) -> Result<Vec<Option<Cuda>>> {
    let cuda = |ordinal| Cuda::with_tunings(ordinal, dtype, &[], Arc::clone(tunings));
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count).map(|ordinal| scope.spawn(move || cuda(ordinal))).collect();
        let opened = threads.into_iter().map(|thread| {
            let cuda = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            Ok(Some(cuda?))
        });
        opened.collect()
    })
}

fn used(ordinal: usize) -> Result<usize> {
    let (free, total) = memory(ordinal)?;
    Ok(total - free)
}
