//! A step's arrays on their way to the device: written to pinned memory, copied once, read by every layer.
//!
//! A ring of places, so that a step can be prepared while the ones before it run.

use std::cell::Cell;

use crate::DeviceError;
use crate::backend::Heads;
use crate::batch::BatchLayout;
use crate::cuda::items::{self, ITEM_WORDS};
use crate::cuda::runtime::{self, Event, Pinned, Stream};
use crate::dtype::DType;
use crate::tensor::{Allocation, Arena, Tensor};

/// Plans that may be in use at once.
const PLACES: usize = 4;
const FIRST_WORDS: usize = 1 << 20;

/// Where a layout's arrays begin, in words; each begins at 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Offsets {
    pub(crate) positions: usize,
    pub(crate) slots: usize,
    pub(crate) sample_rows: usize,
    pub(crate) block_tables: usize,
    pub(crate) items: usize,
}

impl Offsets {
    pub(crate) fn of(layout: &BatchLayout) -> Self {
        let mut end = 0;
        let mut next = |words: usize| {
            let start = end;
            end = (start + words).next_multiple_of(4);
            start
        };
        Self {
            positions: next(layout.positions.len()),
            slots: next(layout.slots.len()),
            sample_rows: next(layout.sample_rows.len()),
            block_tables: next(layout.block_tables.len()),
            items: next(0),
        }
    }
}

/// One plan's memory.
#[derive(Debug)]
struct Place {
    pinned: Pinned,
    device: Allocation,
    /// The copy from `pinned` is done.
    copied: Event,
    /// The items that lie behind the arrays, and the heads they were made for.
    items: Cell<Option<(Heads, Counts)>>,
}

/// How many items a plan has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Of many rows: these come first.
    pub(crate) many: usize,
    /// Of few rows.
    pub(crate) few: usize,
}

impl Place {
    fn new(ordinal: usize, words: usize) -> Result<Self, DeviceError> {
        Ok(Self {
            pinned: Pinned::new(words * 4)?,
            device: runtime::allocate(ordinal, words * 4)?,
            copied: Event::new(false)?,
            items: Cell::new(None),
        })
    }

    fn copy(&self, stream: &Stream, words: std::ops::Range<usize>) -> Result<(), DeviceError> {
        let from = (self.pinned.address() + words.start * 4) as *const u8;
        stream.copy_to_device(self.device.address() + words.start * 4, from, words.len() * 4)?;
        self.copied.record(stream)
    }
}

/// The ring.
#[derive(Debug)]
pub(crate) struct Steps {
    ordinal: usize,
    multiprocessors: usize,
    places: Vec<Place>,
    next: usize,
}

impl Steps {
    pub(crate) fn new(ordinal: usize, multiprocessors: usize) -> Result<Self, DeviceError> {
        let places = (0..PLACES).map(|_| Place::new(ordinal, FIRST_WORDS)).collect::<Result<_, _>>()?;
        Ok(Self { ordinal, multiprocessors, places, next: 0 })
    }

    /// Copies a layout's arrays to the device; the tensor keeps its place's memory alive.
    pub(crate) fn upload(&mut self, layout: &BatchLayout, stream: &Stream) -> Result<Tensor, DeviceError> {
        let offsets = Offsets::of(layout);
        let words = offsets.items + items::max_items(layout, self.multiprocessors) * ITEM_WORDS;
        self.next = (self.next + 1) % PLACES;
        let place = &mut self.places[self.next];
        place.copied.wait()?;
        if place.pinned.bytes() / 4 < words {
            // Rare, and before anything of this step runs: the largest step so far was far smaller.
            stream.synchronize()?;
            *place = Place::new(self.ordinal, words.next_power_of_two())?;
        }
        let to = place.pinned.words();
        to[offsets.positions..][..layout.positions.len()].copy_from_slice(&layout.positions);
        to[offsets.slots..][..layout.slots.len()].copy_from_slice(&layout.slots);
        to[offsets.sample_rows..][..layout.sample_rows.len()].copy_from_slice(&layout.sample_rows);
        to[offsets.block_tables..][..layout.block_tables.len()].copy_from_slice(&layout.block_tables);
        place.items.set(None);
        place.copy(stream, 0..offsets.items)?;
        Ok(Arena::new(place.device.clone()).tensor(DType::I32, 1, place.device.bytes() / 4))
    }

    /// How many items the plan at `address` has for `heads`; made and copied when a step's first layer asks.
    pub(crate) fn items(
        &mut self,
        address: usize,
        layout: &BatchLayout,
        heads: Heads,
        stream: &Stream,
    ) -> Result<Counts, DeviceError> {
        let place = self
            .places
            .iter_mut()
            .find(|place| place.device.address() == address)
            .expect("a plan is used before four newer ones are made");
        if let Some((made_for, counts)) = place.items.get()
            && made_for == heads
        {
            return Ok(counts);
        }
        place.copied.wait()?;
        let items = items::build(layout, heads, self.multiprocessors);
        let start = Offsets::of(layout).items;
        for (to, item) in place.pinned.words()[start..].chunks_exact_mut(ITEM_WORDS).zip(&items) {
            to.copy_from_slice(&item.words());
        }
        place.copy(stream, start..start + items.len() * ITEM_WORDS)?;
        let many = items.iter().filter(|item| item.has_many_rows()).count();
        let counts = Counts { many, few: items.len() - many };
        place.items.set(Some((heads, counts)));
        Ok(counts)
    }
}
