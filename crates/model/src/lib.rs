//! From a folder or file of weights to logits: configuration, weights, sharding, layers, architectures, and how much
//! memory all of it takes.
//!
//! [`Weights::open`] checks every header before anything is loaded, [`memory::plan`] says what a rank will need, to the
//! byte, and [`Model::load`] takes one rank's slices into its device. After that nothing fails: [`Model::forward`]
//! returns logits, and a fault of the device comes out at the end of the step.

pub mod architectures;
pub mod catalogue;
pub mod config;
pub mod error;
mod features;
mod fields;
pub mod layers;
pub mod layout;
pub mod memory;
pub mod place;
pub mod rope;
pub mod weights;
pub mod work;

pub use architectures::{LoadOptions, Model};
pub use config::{Architecture, ModelConfig, Notice};
pub use error::LoadError;
pub use layers::Forward;
pub use memory::{Limits, MemoryPlan, MemoryRequest};
pub use place::Place;
pub use weights::convert::WeightType;
pub use weights::shard::Shards;
pub use weights::vocabulary::GgufVocabulary;
pub use weights::{LoadFormat, WeightFormats, Weights};
