//! In the place of `gpu.rs` when the binary is built without the feature `cuda`: there are no GPUs.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, bail};
use phalanx_device::{DType, Device, Growth, Tunings};
use phalanx_model::Place;
use phalanx_worker::Mesh;

use crate::args::GpuArgs;

const NONE: &str = "this binary was built without GPUs: build it with `cargo build --release --features cuda` where nvcc is found";

/// None.
pub(crate) fn count() -> usize {
    0
}

/// Never called.
pub(crate) fn alone(_gpu: usize, _dtype: DType, _args: &GpuArgs) -> Result<Device> {
    bail!(NONE)
}

/// Says what to do about it.
pub(crate) fn of_ranks(_ranks: usize, _args: &GpuArgs) -> Result<Vec<usize>> {
    bail!(NONE)
}

/// Never called.
pub(crate) fn used(_ordinal: usize) -> Result<usize> {
    bail!(NONE)
}

/// No value of this type exists.
pub(crate) enum Gpus {}

impl Gpus {
    /// Says what to do about it.
    pub(crate) fn claim(
        _mesh: Mesh,
        _replicas: usize,
        _dtype: DType,
        _args: &GpuArgs,
        _measurements: &Path,
    ) -> Result<Self> {
        bail!(NONE)
    }

    /// Never called.
    pub(crate) fn tunings(&self) -> &Tunings {
        match *self {}
    }

    /// Never called.
    pub(crate) fn growth(&self) -> Vec<(usize, Arc<Growth>)> {
        match *self {}
    }

    /// Never called.
    pub(crate) fn used(&self) -> Result<Vec<(usize, usize, usize)>> {
        match *self {}
    }

    /// Never called.
    pub(crate) fn budget(&self, _share: f64) -> Result<usize> {
        match *self {}
    }

    /// Never called.
    pub(crate) fn device(&self, _replica: usize, _place: Place) -> Result<Device> {
        match *self {}
    }
}
