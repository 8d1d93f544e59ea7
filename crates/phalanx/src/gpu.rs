//! The GPUs of this machine as ranks' devices. Without the feature `cuda` its place is taken by `no_gpu.rs`.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use phalanx_device::collective::alone::Alone;
use phalanx_device::cuda::group::Seat;
use phalanx_device::cuda::group::form::{AllReduce, Options, form};
use phalanx_device::cuda::group::mail::Traffic;
use phalanx_device::cuda::{Cuda, device_count, memory};
use phalanx_device::{Backend, Collective, DType, Device, Growth, Tunings};
use phalanx_model::Place;
use phalanx_worker::Mesh;

use crate::args::{AllReduceArg, GpuArgs};

/// GPUs that this binary can use; 0 when there is no driver.
pub(crate) fn count() -> usize {
    device_count().unwrap_or(0)
}

/// One GPU as a device without a group.
///
/// # Errors
/// It cannot be opened.
pub(crate) fn alone(gpu: usize, dtype: DType, args: &GpuArgs) -> Result<Device> {
    let cuda = Cuda::with_libraries(gpu, dtype, &args.libraries.folders())?;
    Ok(Device::new(Box::new(cuda), Box::new(Alone), Box::new(Alone)))
}

/// The GPU of each of `ranks` ranks; one may stand there more than once.
///
/// # Errors
/// There are too few, or one that was named is not there.
pub(crate) fn of_ranks(ranks: usize, args: &GpuArgs) -> Result<Vec<usize>> {
    deal(ranks, device_count()?, &args.gpus)
}

/// The GPUs of all replicas, with the groups they form.
pub(crate) struct Gpus {
    mesh: Mesh,
    /// By replica, stage and tensor rank, as below: the rank's GPU.
    ordinals: Vec<usize>,
    /// The rank's ends of its tensor and its stage group, until it takes them.
    seats: Mutex<Vec<(Option<Seat>, Option<Seat>)>>,
    /// The same way: the rank's GPU, opened, until it takes it.
    opened: Mutex<Vec<Option<Cuda>>>,
    tunings: Arc<Tunings>,
    /// The same way: what the rank allocates while it serves.
    growth: Vec<Arc<Growth>>,
    /// Bytes in use on each GPU, whoever holds them, before weights were loaded.
    used_before: Vec<usize>,
}

impl Gpus {
    /// Deals GPUs to replicas, stages and tensor ranks in that order. What is measured on them is remembered in the folder
    /// `measurements`.
    ///
    /// # Errors
    /// There are too few, one that was named is not there, or they cannot add up in the way that was asked for.
    pub(crate) fn claim(
        mesh: Mesh,
        replicas: usize,
        dtype: DType,
        args: &GpuArgs,
        measurements: &Path,
    ) -> Result<Self> {
        let ranks = mesh.tensor_size * mesh.num_stages;
        let ordinals = of_ranks(ranks * replicas, args)?;
        let folders = args.libraries.folders();
        let tunings = Arc::new(Tunings::remembered(&measurements.join("matmul.txt")));
        let opened = open(&ordinals, dtype, &folders, &tunings)?;
        let growth = opened.iter().flatten().map(Cuda::growth).collect();
        let options = Options {
            deadline: mesh.deadline,
            all_reduce: match args.all_reduce {
                AllReduceArg::Auto => AllReduce::Auto,
                AllReduceArg::Peer => AllReduce::Peer,
                AllReduceArg::Nccl => AllReduce::Nccl,
                AllReduceArg::Host => AllReduce::Host,
            },
            folders,
            compare: false,
            floor: is_crowded(&ordinals).then(Arc::default),
        };
        let mut seats: Vec<(Option<Seat>, Option<Seat>)> = ordinals.iter().map(|_| (None, None)).collect();
        for first in (0..replicas).map(|replica| replica * ranks) {
            for stage in (0..mesh.num_stages).filter(|_| 1 < mesh.tensor_size) {
                let start = first + stage * mesh.tensor_size;
                let group: Vec<usize> = (start..start + mesh.tensor_size).collect();
                for (rank, seat) in group.iter().zip(seats_of(&group, &ordinals, Traffic::Sums, &options)?) {
                    seats[*rank].0 = Some(seat);
                }
            }
            for column in (0..mesh.tensor_size).filter(|_| 1 < mesh.num_stages) {
                let group: Vec<usize> =
                    (0..mesh.num_stages).map(|stage| first + stage * mesh.tensor_size + column).collect();
                for (rank, seat) in
                    group.iter().zip(seats_of(&group, &ordinals, Traffic::Messages, &options)?)
                {
                    seats[*rank].1 = Some(seat);
                }
            }
        }
        let used_before = ordinals.iter().map(|gpu| used(*gpu)).collect::<Result<_>>()?;
        let (seats, opened) = (Mutex::new(seats), Mutex::new(opened));
        Ok(Self { mesh, ordinals, seats, opened, tunings, growth, used_before })
    }

    /// Which kernels multiply.
    pub(crate) fn tunings(&self) -> &Tunings {
        &self.tunings
    }

    /// The GPU of each rank, and what the rank allocates while it serves.
    pub(crate) fn growth(&self) -> Vec<(usize, Arc<Growth>)> {
        self.ordinals.iter().copied().zip(self.growth.iter().cloned()).collect()
    }

    /// The GPU of each rank, and the bytes in use on it, whoever holds them: before weights were loaded, and now.
    ///
    /// # Errors
    /// A device is lost.
    pub(crate) fn used(&self) -> Result<Vec<(usize, usize, usize)>> {
        let ranks = self.ordinals.iter().zip(&self.used_before);
        ranks.map(|(gpu, before)| Ok((*gpu, *before, used(*gpu)?))).collect()
    }

    /// Bytes that one rank may use: this share of the fullest card, less what others hold of it.
    ///
    /// # Errors
    /// A GPU cannot be opened.
    pub(crate) fn budget(&self, share: f64) -> Result<usize> {
        let opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        let of_each = opened.iter().flatten().map(|cuda| {
            let (free, total) = cuda.memory()?;
            let sharers = self.ordinals.iter().filter(|gpu| **gpu == cuda.ordinal()).count();
            Ok(((total as f64 * share) as usize).saturating_sub(total - free) / sharers)
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
        let rank = replica * ranks + place.stage * self.mesh.tensor_size + place.tensor_rank;
        let opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner)[rank].take();
        let cuda = opened.context("each rank takes its GPU once")?;
        if 1 < self.ordinals.iter().filter(|gpu| **gpu == cuda.ordinal()).count() {
            cuda.start_in_turn();
        }
        let (tensor, stage) = {
            let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
            let (tensor, stage) = &mut seats[rank];
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

/// Some GPU has several ranks.
fn is_crowded(ordinals: &[usize]) -> bool {
    (1..ordinals.len()).any(|i| ordinals[..i].contains(&ordinals[i]))
}

/// Opens each rank's GPU, all at the same time: each takes the driver some tenths of a second.
fn open(
    ordinals: &[usize],
    dtype: DType,
    folders: &[PathBuf],
    tunings: &Arc<Tunings>,
) -> Result<Vec<Option<Cuda>>> {
    let cuda = |ordinal| Cuda::with_tunings(ordinal, dtype, folders, Arc::clone(tunings));
    std::thread::scope(|scope| {
        let threads: Vec<_> = ordinals.iter().map(|gpu| scope.spawn(move || cuda(*gpu))).collect();
        let opened = threads.into_iter().map(|thread| {
            let cuda = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            Ok(Some(cuda?))
        });
        opened.collect()
    })
}

/// Bytes in use on a GPU, whoever holds them.
///
/// # Errors
/// The device is lost.
pub(crate) fn used(ordinal: usize) -> Result<usize> {
    let (free, total) = memory(ordinal)?;
    Ok(total - free)
}

/// The GPU of each of `ranks` ranks: those `named`, or the first ones.
fn deal(ranks: usize, there: usize, named: &[usize]) -> Result<Vec<usize>> {
    let ordinals: Vec<usize> = if named.is_empty() { (0..ranks).collect() } else { named.to_vec() };
    if ordinals.len() != ranks {
        bail!("--gpus names {} GPUs and the layout has {ranks} ranks: name one for each", ordinals.len());
    }
    match ordinals.iter().max() {
        Some(highest) if there <= *highest && named.is_empty() => bail!(
            "the layout needs {ranks} GPUs and there are {there}: lower the parallel sizes, or let ranks share GPUs with --gpus"
        ),
        Some(highest) if there <= *highest => {
            bail!("--gpus names GPU {highest} and there are {there}, numbered from 0: see nvidia-smi")
        }
        _ => Ok(ordinals),
    }
}

/// Forms the group of `ranks` and says what is worth knowing about it.
fn seats_of(ranks: &[usize], ordinals: &[usize], traffic: Traffic, options: &Options) -> Result<Vec<Seat>> {
    let gpus: Vec<usize> = ranks.iter().map(|rank| ordinals[*rank]).collect();
    let formed = form(&gpus, traffic, options)?;
    formed.links.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    if traffic == Traffic::Sums {
        tracing::info!("GPUs {gpus:?} add up: {}", formed.links.summary());
    }
    tracing::debug!("GPUs {gpus:?}:\n{}", formed.links);
    Ok(formed.seats)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_of_different_groups_can_crowd_a_gpu() {
        assert!(!is_crowded(&[]) && !is_crowded(&[2, 0, 1]));
        assert!(is_crowded(&[0, 1, 0, 1]) && is_crowded(&[0, 0]));
    }

    #[test]
    fn gpus_are_dealt_in_order_or_as_named() {
        assert_eq!(deal(3, 4, &[]).unwrap(), [0, 1, 2]);
        assert_eq!(deal(4, 2, &[0, 0, 1, 1]).unwrap(), [0, 0, 1, 1]);
        let refused = |ranks, there, named: &[usize]| deal(ranks, there, named).unwrap_err().to_string();
        assert!(refused(3, 2, &[]).contains("needs 3 GPUs and there are 2"));
        assert!(refused(2, 2, &[0, 2]).contains("GPU 2 and there are 2"));
        assert!(refused(2, 2, &[0]).contains("names 1 GPUs and the layout has 2 ranks"));
    }
}
