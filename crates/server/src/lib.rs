//! The door: HTTP in, the engine's events out.
//!
//! ```text
//! request ── observe ── key ── Fields (JSON taken apart) ── prompt ids ── Generation ──> engine
//!   response <── Chunks (one event each) or one object <── Progress <──────┘
//! ```
//! Three APIs generate: `/generate`, `/v1/completions`, `/v1/chat/completions`. They share the sampling fields
//! (`sampling.rs`), the way to the engine and back (`generation.rs`) and the stream (`stream.rs`); each file of its own
//! holds only its API's wording.

#![forbid(unsafe_code)]

mod auth;
mod connection;
mod error;
mod families;
mod fields;
mod generate;
mod generation;
mod health;
mod metrics;
mod observe;
mod openai;
mod prompt;
mod sampling;
mod serve;
mod state;
mod stream;
mod tokenize;
mod ui;

pub use error::ApiError;
pub use families::{Families, Family, FamilyKind, Series};
pub use serve::Server;
pub use state::{Cors, ModelCard, ServerOptions, ServerState};
