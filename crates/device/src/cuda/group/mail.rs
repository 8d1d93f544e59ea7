//! What the ranks of a group share: mailboxes, counts, fault words, and why the group has ended.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::DeviceError;
use crate::cuda::group::kernels::{self, MAX_RANKS, PeerParams};
use crate::cuda::group::nccl::Communicator;
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

/// Words of host memory that a rank's kernels and the host tell each other with.
pub(crate) const FAULT: usize = 0;
pub(crate) const STOP: usize = 1;
pub(crate) const BEGUN: usize = 2;
pub(crate) const ENDED: usize = 3;

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
    pub(crate) ordinals: Vec<usize>,
    pub(crate) route: Route,
    pub(crate) deadline: Duration,
    /// One a rank, of its own device: see the words above.
    pub(crate) words: Vec<Pinned>,
    /// Which sum is taken for which size.
    pub(crate) table: Table,
    /// One a rank, or none.
    pub(crate) communicators: Vec<Communicator>,
    /// Ranks share GPUs: they take turns on the host.
    pub(crate) turns: Option<Turns>,
    mail: Vec<Memory>,
    counts: Vec<Allocation>,
    /// Why the host has ended the group.
    reason: Mutex<Option<String>>,
}

impl Shared {
    /// Makes room on every GPU, or on the host.
    pub(crate) fn new(
        ordinals: &[usize],
        traffic: Traffic,
        route: Route,
        deadline: Duration,
    ) -> Result<Self, DeviceError> {
        let size = ordinals.len();
        // SAFETY: both take nothing and return a number.
        let (head, count) = unsafe { (kernels::mail_head_bytes(), kernels::counts_bytes()) };
        let places = match traffic {
            Traffic::Sums => 2 * size * (2 * FLAGGED_BYTES + PLACE_BYTES),
            Traffic::Messages => MESSAGE_PLACES * MESSAGE_BYTES,
        };
        let (mut mail, mut counts, mut words) = (Vec::new(), Vec::new(), Vec::new());
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
        }
        Ok(Self {
            ordinals: ordinals.to_vec(),
            route,
            deadline,
            words,
            table: Table::untimed(false),
            communicators: Vec::new(),
            turns: Turns::needed(ordinals, deadline),
            mail,
            counts,
            reason: Mutex::new(None),
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
            words: self.words[rank].address(),
            small_bytes: 2 * FLAGGED_BYTES as u64,
            place_bytes: PLACE_BYTES as u64,
            message_bytes: MESSAGE_BYTES as u64,
            deadline_ns: u64::try_from(self.deadline.as_nanos()).unwrap_or(u64::MAX),
            rank: rank as u32,
            size: self.size() as u32,
        }
    }

    /// Ends all waits of all ranks, on devices and on the host; the first reason is kept.
    pub(crate) fn stop(&self, reason: &str) {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| reason.to_owned());
        for words in &self.words {
            words.set(STOP, 1);
        }
        if let Some(turns) = &self.turns {
            turns.fail(reason);
        }
    }

    /// The host has ended the group.
    pub(crate) fn is_stopped(&self) -> bool {
        self.words[0].get(STOP) != 0
    }

    pub(crate) fn reason(&self) -> Option<String> {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
