//! In the place of `cards.rs` when the binary is built without the feature `cuda`: there is nothing to look at.

use std::path::PathBuf;

use anyhow::{Result, bail};
use phalanx_device::DType;
use phalanx_device::facts::GpuFacts;

use crate::args::AllReduceArg;
use crate::doctor::gpus::Survey;
use crate::doctor::kernels::Checked;
use crate::layout::auto::{Gpu, Probed};
use crate::no_room::CardRoom;

/// What `phalanx --version` says.
pub(crate) const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\nbuilt without GPUs");

const WITHOUT: &str = "this binary was built without GPUs: build it with `cargo build --release --features cuda` where nvcc is found";

/// None: nobody could look.
pub(crate) fn survey(_folders: &[PathBuf]) -> Option<Survey> {
    None
}

/// Nobody can tell.
pub(crate) fn room(_of_ranks: &[usize]) -> Vec<CardRoom> {
    Vec::new()
}

/// None.
pub(crate) fn at_hand(_ordinals: &[usize]) -> Result<Vec<Gpu>> {
    Ok(Vec::new())
}

/// None.
pub(crate) fn ways(_asked: AllReduceArg, _folders: &[PathBuf]) -> String {
    String::new()
}

/// Says what to do about it.
pub(crate) fn probe(_ordinals: &[usize], _asked: AllReduceArg, _folders: &[PathBuf]) -> Result<Probed> {
    bail!(WITHOUT)
}

/// None.
pub(crate) fn watch() -> Option<Box<dyn Fn() -> Vec<GpuFacts> + Send + Sync>> {
    None
}

/// Says what to do about it.
pub(crate) fn check(_dtypes: &[DType], _planted: bool, _folders: &[PathBuf]) -> Result<Checked> {
    bail!(WITHOUT)
}

/// Says what to do about it.
pub(crate) fn speed(_dtype: DType, _folders: &[PathBuf]) -> Result<String> {
    bail!(WITHOUT)
}
