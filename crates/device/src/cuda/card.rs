//! What a GPU is before anything runs on it: its name for ever, its sizes, its clocks.

use std::ffi::c_int;
use std::mem::MaybeUninit;

use crate::DeviceError;
use crate::cuda::runtime;

/// What `card_numbers` (cuda/card.cu) tells.
#[repr(C)]
struct CardNumbers {
    name: [u8; 128],
    uuid: [u8; 16],
    total_bytes: u64,
    capability_major: u32,
    capability_minor: u32,
    multiprocessors: u32,
    clock_khz: u32,
    memory_clock_khz: u32,
    memory_bus_bits: u32,
}
const _: () = assert!(size_of::<CardNumbers>() == 176);

unsafe extern "C" {
    fn card_numbers(ordinal: c_int, numbers: *mut CardNumbers) -> c_int;
}

/// One GPU.
#[derive(Clone, Debug, PartialEq)]
pub struct Card {
    /// What its driver calls it, for example `NVIDIA H200`.
    pub name: String,
    /// The same for ever, for example `GPU-5c89…`.
    pub uuid: String,
    /// Its memory.
    pub total_bytes: usize,
    /// What of it is nobody's now.
    pub free_bytes: usize,
    /// Compute capability, for example 9 and 0.
    pub capability: (u32, u32),
    /// How many there are.
    pub multiprocessors: usize,
    /// Of the multiprocessors at most, in hertz.
    pub clock: f64,
    /// Bytes a second between memory and cores, by the memory's clock and width; two transfers a clock.
    pub memory_bandwidth: f64,
}

/// Looks at GPU `ordinal`. Opens a context on it, for its free memory is told to nobody else.
///
/// # Errors
/// There is no driver or no such GPU.
pub fn look_at(ordinal: usize) -> Result<Card, DeviceError> {
    let mut numbers = MaybeUninit::<CardNumbers>::zeroed();
    // SAFETY: the twin struct in cuda/card.cu has the same size and fields; all zeros are valid.
    let numbers = unsafe {
        runtime::check(card_numbers(ordinal as c_int, numbers.as_mut_ptr()), "to be described")?;
        numbers.assume_init()
    };
    runtime::use_device(ordinal)?;
    let (free_bytes, _) = runtime::memory()?;
    let end = numbers.name.iter().position(|byte| *byte == 0).unwrap_or(numbers.name.len());
    let bus_bytes = f64::from(numbers.memory_bus_bits) / 8.0;
    Ok(Card {
        name: String::from_utf8_lossy(&numbers.name[..end]).into_owned(),
        uuid: uuid(&numbers.uuid),
        total_bytes: numbers.total_bytes as usize,
        free_bytes,
        capability: (numbers.capability_major, numbers.capability_minor),
        multiprocessors: numbers.multiprocessors as usize,
        clock: f64::from(numbers.clock_khz) * 1e3,
        memory_bandwidth: 2.0 * f64::from(numbers.memory_clock_khz) * 1e3 * bus_bytes,
    })
}

/// As NVIDIA's tools write it.
fn uuid(bytes: &[u8; 16]) -> String {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("GPU-{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_reads_as_the_tools_write_it() {
        let bytes = std::array::from_fn(|place| (place * 17) as u8);
        assert_eq!(uuid(&bytes), "GPU-00112233-4455-6677-8899-aabbccddeeff");
    }
}
