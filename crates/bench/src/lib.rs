//! Measures an engine from the outside: requests in, tokens out, a clock beside them.
//!
//! A [`Load`] is submitted and observed, a [`Figure`] is the median of several such runs with their spread, and a
//! [`Report`] prints figures as a table or as JSON. Prompts are random tokens, new for each run, so that the prefix
//! cache cannot help.

#![forbid(unsafe_code)]

mod load;
mod report;
mod suites;

pub use load::{Load, LoadError, Observed, Prompts, run};
pub use report::{Figure, Report};
pub use suites::{Suite, latency, matrix, prefill, throughput};
