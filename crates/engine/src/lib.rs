//! The loop of one replica: requests in, events out.
//!
//! [`Engine::start`] puts a scheduler and an executor on a thread of their own and returns an [`EngineHandle`].
//! Everything a client sends is validated by [`EngineHandle::submit`], on the client's thread; what comes back is an
//! [`EventStream`], and dropping that stream is how a client leaves. The clock lives here: the scheduler has none.
//!
//! ```text
//! submit ── validate ──> commands ──> loop: scheduler.schedule ──> executor.submit
//!   EventStream <── Delta, Done <── answer: detokenize, cut at stop strings <── executor.wait
//! ```

#![forbid(unsafe_code)]

mod answer;
mod handle;
mod histogram;
mod known;
mod metrics;
mod options;
mod output;
mod request;
mod requests;
mod router;
mod run;
mod shared;
mod stream;
mod validate;

pub use handle::{Engine, EngineHandle};
pub use histogram::Histogram;
pub use metrics::{Finished, Snapshot};
pub use options::{EngineError, EngineOptions};
pub use output::{Delta, Event, Finish, RequestError, Timing, TokenLogprobs, Usage};
pub use request::{Request, Sampling, Stop};
pub use router::Router;
pub use shared::{Health, Lifecycle};
pub use stream::EventStream;
