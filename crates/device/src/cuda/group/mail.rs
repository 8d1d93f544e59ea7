//! What the ranks of a group share: mailboxes, counts, a library's communicators, and what ends their waits.

use std::sync::Arc;
use std::time::Duration;

use crate::DeviceError;
use crate::cuda::group::form::Options;
use crate::cuda::group::kernels::{self, MAX_RANKS, PeerParams};
use crate::cuda::group::nccl::{Communicator, Watch};
use crate::cuda::group::signals::Signals;
use crate::cuda::group::table::Table;
use crate::cuda::group::turns::Turns;
use crate::cuda::runtime::{self, Pinned, Stream};
use crate::tensor::Allocation;

/// Arrays this long still travel as flagged words; each takes twice its bytes.
pub(crate) const FLAGGED_BYTES: usize = 1 << 20;
/// What a rank pushes to another at once; longer arrays take several turns.
pub(crate) const PLACE_BYTES: usize = 8 << 20;
/// A ring of places for messages: a prompt's hidden states (8,192 rows of 3,584 numbers of 16 bits are 56 MiB) fit, so
/// that a stage hands over and goes on while the next one is still busy.
pub(crate) const MESSAGE_BYTES: usize = 4 << 20;
pub(crate) const MESSAGE_PLACES: usize = 16;

/// What a group is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// Ranks that share layers: sums, and columns side by side.
    Sums,
    /// Stages: each rank sends to the next one and receives from the one before.
    Messages,
}

/// Where mailboxes lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// In each GPU's memory: peers write it directly.
    Peer,
    /// In pinned host memory, which every GPU reaches.
    Host,
}

/// A mailbox's memory.
enum Memory {
    Device(Allocation),
    Host(Pinned),
}

impl Memory {
    fn address(&self) -> usize {
        match self {
            Self::Device(allocation) => allocation.address(),
            Self::Host(pinned) => pinned.address(),
        }
    }
}

/// A group's shared part; it outlives the last rank that may still write to a peer.
pub(crate) struct Shared {
    /// Ends before anything else goes: it looks at the communicators.
    pub(crate) watch: Option<Watch>,
    /// One a rank, or none.
    pub(crate) communicators: Arc<[Communicator]>,
    pub(crate) ordinals: Vec<usize>,
    pub(crate) route: Route,
    pub(crate) deadline: Duration,
    /// Of the GPU that has the fewest.
    pub(crate) multiprocessors: usize,
    /// Which sum is taken for which size.
    pub(crate) table: Table,
    pub(crate) signals: Arc<Signals>,
    mail: Vec<Memory>,
    counts: Vec<Allocation>,
}

impl Shared {
    /// Makes room on every GPU, or on the host.
    pub(crate) fn new(
        ordinals: &[usize],
        traffic: Traffic,
        route: Route,
        options: &Options,
    ) -> Result<Self, DeviceError> {
        let (size, deadline) = (ordinals.len(), options.deadline);
        // SAFETY: both take nothing and return a number.
        let (head, count) = unsafe { (kernels::mail_head_bytes(), kernels::counts_bytes()) };
        let places = match traffic {
            Traffic::Sums => 2 * size * (2 * FLAGGED_BYTES + PLACE_BYTES),
            Traffic::Messages => MESSAGE_PLACES * MESSAGE_BYTES,
        };
        let (mut mail, mut counts, mut words) = (Vec::new(), Vec::new(), Vec::new());
        let mut multiprocessors = usize::MAX;
        for ordinal in ordinals {
            let allocation = runtime::allocate(*ordinal, count as usize)?;
            let stream = Stream::new()?;
            stream.fill(allocation.address(), 0, count as usize)?;
            let bytes = head as usize + places;
            mail.push(match route {
                Route::Peer => {
                    let allocation = runtime::allocate(*ordinal, bytes)?;
                    // Flags beside words must not be taken for a call's number: all of it is cleared.
                    stream.fill(allocation.address(), 0, bytes)?;
                    Memory::Device(allocation)
                }
                Route::Host => Memory::Host(Pinned::new(bytes)?),
            });
            stream.synchronize()?;
            counts.push(allocation);
            words.push(Pinned::new(256)?);
            multiprocessors = multiprocessors.min(runtime::facts(*ordinal)?.multiprocessors as usize);
        }
        let signals =
            Arc::new(Signals::new(words, Turns::needed(ordinals, deadline, options.floor.as_ref())));
        Ok(Self {
            watch: None,
            communicators: Arc::default(),
            ordinals: ordinals.to_vec(),
            route,
            deadline,
            multiprocessors,
            table: Table::untimed(false),
            signals,
            mail,
            counts,
        })
    }

    pub(crate) fn size(&self) -> usize {
        self.ordinals.len()
    }

    /// How many ranks the fullest GPU has.
    pub(crate) fn ranks_on_one_gpu(&self) -> usize {
        let on = |ordinal| self.ordinals.iter().filter(|other| *other == ordinal).count();
        self.ordinals.iter().map(on).max().unwrap_or(1)
    }

    /// What `rank`'s kernels need of the group.
    pub(crate) fn params(&self, rank: usize) -> PeerParams {
        let mut mail = [0; MAX_RANKS];
        mail.iter_mut().zip(&self.mail).for_each(|(address, mail)| *address = mail.address());
        PeerParams {
            mail,
            counts: self.counts[rank].address(),
            words: self.signals.words[rank].address(),
            small_bytes: 2 * FLAGGED_BYTES as u64,
            place_bytes: PLACE_BYTES as u64,
            message_bytes: MESSAGE_BYTES as u64,
            deadline_ns: u64::try_from(self.deadline.as_nanos()).unwrap_or(u64::MAX),
            rank: rank as u32,
            size: self.size() as u32,
        }
    }
}
