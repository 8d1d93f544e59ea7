//! How fast data gets from each GPU to each other one: measured by copies, for people who wonder about their machine.

use crate::DeviceError;
use crate::cuda::runtime::{self, Event, Stream};
use crate::facts::LinkFacts;

const LARGE_BYTES: usize = 256 << 20;
const SMALL_BYTES: usize = 4 << 10;
const LARGE_COPIES: usize = 4;
const SMALL_COPIES: usize = 200;

/// Copies between each two of `ordinals`, in both directions, one after the other.
#[must_use]
pub fn measure(ordinals: &[usize]) -> Vec<LinkFacts> {
    let pairs = ordinals.iter().flat_map(|from| ordinals.iter().map(move |to| (*from, *to)));
    pairs
        .filter(|(from, to)| from != to)
        .map(|(from, to)| LinkFacts {
            from,
            to,
            // Copies take the direct way only when access is enabled; without it the driver goes through the host.
            peer: [(to, from), (from, to)].iter().all(|(a, b)| runtime::reach(*a, *b) == Ok(true)),
            measured: copy(from, to).map_err(|error| error.to_string()),
        })
        .collect()
}

/// Bytes a second, and microseconds of a small copy.
fn copy(from: usize, to: usize) -> Result<(f64, f64), DeviceError> {
    let target = runtime::allocate(to, LARGE_BYTES)?;
    let source = runtime::allocate(from, LARGE_BYTES)?;
    let stream = Stream::new()?;
    let timed = |bytes: usize, copies: usize| -> Result<f64, DeviceError> {
        let (start, end) = (Event::new(true)?, Event::new(true)?);
        let copy = || stream.copy_to_peer((to, target.address()), (from, source.address()), bytes);
        // The first copy sets the way up.
        copy()?;
        start.record(&stream)?;
        for _ in 0..copies {
            copy()?;
        }
        end.record(&stream)?;
        stream.synchronize()?;
        Ok(f64::from(end.us_since(&start)?) / copies as f64)
    };
    let large_us = timed(LARGE_BYTES, LARGE_COPIES)?;
    let small_us = timed(SMALL_BYTES, SMALL_COPIES)?;
    Ok((LARGE_BYTES as f64 / (large_us * 1e-6), small_us))
}
