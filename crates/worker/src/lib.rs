//! One rank's work: a Step becomes device arrays, a forward pass, and sampled ids.
//!
//! Every rank of a replica holds its shard of the weights and its part of the KV cache, and carries out the same
//! [`Step`](phalanx_scheduler::step::Step)s in the same order; ranks talk to each other only through the device's
//! collectives. Logits are whole on the tensor ranks of the last stage, and tensor rank 0 of them samples and reports. With
//! overlap the others sample, too, each for itself: then the next step can start from ids that no host has seen.

#![forbid(unsafe_code)]

mod batch;
mod graphs;
mod kv_cache;
mod local;
mod parting;
mod rank;
mod rehearsal;
mod sampling;

pub use graphs::SCRATCH_BLOCKS;
pub use kv_cache::KvCacheSpec;
pub use local::{LocalExecutor, Mesh, Seat, StartError};
pub use rank::{Rank, RankOptions};
pub use rehearsal::{Scene, rehearse};
