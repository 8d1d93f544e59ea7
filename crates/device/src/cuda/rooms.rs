//! Memory that may have to grow while a rank serves: it is counted, told, and what it takes the place of is kept.
//!
//! To give memory back the driver waits until nothing runs on the device, and a kernel there may be waiting for a peer. Sizes
//! at least double, so all that was outgrown is no more than what is in use.

use std::sync::Arc;

use crate::DeviceError;
use crate::cuda::runtime::{self, Pinned};
use crate::growth::Growth;
use crate::tensor::Allocation;

/// Where one part of a rank gets its memory from.
#[derive(Debug)]
pub(crate) struct Rooms {
    ordinal: usize,
    /// What the memory is for, in the log.
    what: &'static str,
    growth: Arc<Growth>,
    /// Held, never read: for the last copies from it, and to the end.
    outgrown: Vec<Outgrown>,
}

#[derive(Debug)]
#[expect(dead_code, reason = "what is outgrown is kept, and no more")]
enum Outgrown {
    Device(Allocation),
    Host(Pinned),
}

impl Rooms {
    pub(crate) fn new(ordinal: usize, what: &'static str, growth: &Arc<Growth>) -> Self {
        Self { ordinal, what, growth: Arc::clone(growth), outgrown: Vec::new() }
    }

    /// Memory of the device.
    pub(crate) fn device(&self, bytes: usize) -> Result<Allocation, DeviceError> {
        self.tell(bytes, "device");
        runtime::allocate(self.ordinal, bytes)
    }

    /// Memory of the host that the device copies from and to.
    pub(crate) fn pinned(&self, bytes: usize) -> Result<Pinned, DeviceError> {
        self.tell(bytes, "host");
        runtime::use_device(self.ordinal)?;
        Pinned::new(bytes)
    }

    /// Puts at least `bytes` in the place of what is there. What is there stays where it is for whoever uses it still.
    pub(crate) fn grow_device(&mut self, there: &mut Allocation, bytes: usize) -> Result<(), DeviceError> {
        if there.bytes() < bytes {
            let outgrown = std::mem::replace(there, self.device(bytes.next_power_of_two())?);
            self.outgrown.push(Outgrown::Device(outgrown));
        }
        Ok(())
    }

    /// The same with the host's memory.
    pub(crate) fn grow_pinned(&mut self, there: &mut Pinned, bytes: usize) -> Result<(), DeviceError> {
        if there.bytes() < bytes {
            let outgrown = std::mem::replace(there, self.pinned(bytes.next_power_of_two())?);
            self.outgrown.push(Outgrown::Host(outgrown));
        }
        Ok(())
    }

    fn tell(&self, bytes: usize, place: &'static str) {
        if self.growth.add(bytes) {
            let Self { ordinal, what, .. } = self;
            tracing::debug!(gpu = ordinal, bytes, place, what, "memory is allocated while serving");
        }
    }
}
