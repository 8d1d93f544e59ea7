//! One rank's work: a Step becomes device arrays, a forward pass, and sampled ids.
//!
//! Every rank of a replica holds its shard of the weights and its part of the KV cache, and carries out the same
//! [`Step`](phalanx_scheduler::step::Step)s in the same order; ranks talk to each other only through the device's
//! collectives. One rank, tensor rank 0 of the last stage, samples: the logits are whole there, and the state that
//! sampling needs is kept there alone.

#![forbid(unsafe_code)]

mod batch;
mod kv_cache;
mod local;
mod rank;
mod sampling;

pub use kv_cache::KvCacheSpec;
pub use local::{LocalExecutor, Mesh, Seat, StartError};
pub use rank::Rank;
