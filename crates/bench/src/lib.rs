//! Measures an engine from the outside: requests in, tokens out, a clock beside them.
//!
//! A [`Load`] is submitted and observed, a [`Figure`] is the median of several such runs with their spread and beside it
//! what the devices' limits would allow ([`Roofline`]), and a [`Report`] prints figures as a table or as JSON. A
//! [`LayoutTable`] puts layouts of one machine beside each other and beside what was predicted of them. Prompts are random
//! tokens, new for each run, so that the prefix cache cannot help.

#![forbid(unsafe_code)]

mod capacity;
mod comparison;
mod layouts;
mod load;
mod matrix;
mod report;
mod roofline;
mod suites;

pub use capacity::Capacity;
pub use comparison::{LayoutSummary, LayoutTable};
pub use layouts::{Compared, Deviation, DeviceMemory, Expectation, LayoutRow, Trial, Winner};
pub use load::{Load, LoadError, Observed, Prompts, run};
pub use matrix::MatrixRow;
pub use report::{Figure, Report};
pub use roofline::{DeviceLimits, ModelWork, Roofline};
pub use suites::{Suite, WARM_UP_RUNS, equal, latency, matrix_row, mixed, prefill, throughput};
