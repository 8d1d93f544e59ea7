//! One rank's memory, its operations and its collectives with other ranks.
//!
//! A [`Device`] is one rank's machine: it checks shapes (a wrong shape is a programmer's error and panics) and
//! delegates to a [`Backend`]. Operations never allocate and never fail; a fault is sticky and comes out of
//! [`Device::collect`] at the end of a step. The CPU back end is the reference for every operation.

pub mod architecture;
pub mod backend;
pub mod batch;
pub mod collective;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod device;
pub mod dtype;
pub mod facts;
pub mod graph;
pub mod growth;
pub mod limits;
pub mod matrix;
pub mod noise;
pub mod sampling;
pub mod source;
pub mod tensor;
pub mod tuning;

pub use backend::Backend;
pub use batch::{BatchLayout, Plan};
pub use collective::Collective;
pub use cpu::quant;
pub use device::Device;
pub use dtype::DType;
pub use graph::Graph;
pub use growth::Growth;
pub use matrix::{Format, Matrix};
pub use noise::Noise;
pub use sampling::{SampleRow, SampledRow};
pub use source::RowSource;
pub use tensor::{Allocation, Arena, Tensor, View, ViewMut};
pub use tuning::Tunings;

/// What a device can report: no memory, a lost library, a fault of the hardware, a peer that went silent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DeviceError(pub String);
