//! A step's arrays on their way to the device: written to pinned memory, copied at once, read by every layer.
//!
//! Pinned memory is a ring of places, so that a step can be prepared while those before it run. On the device there is
//! one place: copies and kernels stand in one stream, so a step's arrays come when the step before is done with its own.
//! So their addresses repeat from step to step, and kernels that a graph recorded find the arrays of each later step.

use std::sync::Arc;

use crate::DeviceError;
use crate::backend::Heads;
use crate::batch::{BatchLayout, DevicePlan};
use crate::cuda::items::{self, ITEM_WORDS, Item};
use crate::cuda::rooms::Rooms;
use crate::cuda::runtime::{Event, Pinned, Stream};
use crate::dtype::DType;
use crate::growth::Growth;
use crate::tensor::{Allocation, Arena};

/// Copies that may be on their way at once.
const PLACES: usize = 4;
/// Enough for 256 sequences of 131,072 tokens.
const USUAL_WORDS: usize = 1 << 20;

/// Where a layout's arrays begin, in words; each begins at 16 bytes. Before them stands the count of items; behind the
/// items stand the block tables, each item saying where its own is. So it only depends on the counts of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Offsets {
    pub(crate) num_items: usize,
    pub(crate) ids: usize,
    pub(crate) positions: usize,
    pub(crate) slots: usize,
    pub(crate) sample_rows: usize,
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
            num_items: next(1),
            ids: next(layout.ids.len()),
            positions: next(layout.positions.len()),
            slots: next(layout.slots.len()),
            sample_rows: next(layout.sample_rows.len()),
            items: next(0),
        }
    }
}

/// One step's pinned memory.
#[derive(Debug)]
struct Place {
    pinned: Pinned,
    /// The copy from it is done.
    copied: Event,
}

/// The places.
#[derive(Debug)]
pub(crate) struct Steps {
    rooms: Rooms,
    multiprocessors: usize,
    places: Vec<Place>,
    next: usize,
    /// Where the arrays of all steps lie, as long as they fit...
    usual: Allocation,
    /// ... and those of steps that are larger.
    large: Option<Allocation>,
}

impl Steps {
    pub(crate) fn new(
        ordinal: usize,
        multiprocessors: usize,
        growth: &Arc<Growth>,
    ) -> Result<Self, DeviceError> {
        let rooms = Rooms::new(ordinal, "a step's arrays", growth);
        let place = || -> Result<Place, DeviceError> {
            Ok(Place { pinned: rooms.pinned(USUAL_WORDS * 4)?, copied: Event::new(false)? })
        };
        let places = (0..PLACES).map(|_| place()).collect::<Result<_, _>>()?;
        let usual = rooms.device(USUAL_WORDS * 4)?;
        Ok(Self { rooms, multiprocessors, places, next: 0, usual, large: None })
    }

    /// Copies a layout's arrays and the items of its attention with `heads` to the device.
    pub(crate) fn upload(
        &mut self,
        layout: &BatchLayout,
        heads: Heads,
        stream: &Stream,
    ) -> Result<DevicePlan, DeviceError> {
        let items = items::build(layout, heads, self.multiprocessors);
        let offsets = Offsets::of(layout);
        let (tables, words) = table_starts(layout, offsets.items + items.len() * ITEM_WORDS);
        self.next = (self.next + 1) % PLACES;
        let device = self.room(words)?;
        let place = &mut self.places[self.next];
        place.copied.wait()?;
        self.rooms.grow_pinned(&mut place.pinned, words * 4)?;
        let to = place.pinned.words();
        to[offsets.num_items] = items.len() as i32;
        to[offsets.ids..][..layout.ids.len()].copy_from_slice(&layout.ids);
        to[offsets.positions..][..layout.positions.len()].copy_from_slice(&layout.positions);
        to[offsets.slots..][..layout.slots.len()].copy_from_slice(&layout.slots);
        to[offsets.sample_rows..][..layout.sample_rows.len()].copy_from_slice(&layout.sample_rows);
        for (to, item) in to[offsets.items..].chunks_exact_mut(ITEM_WORDS).zip(&items) {
            to.copy_from_slice(&item.words(&tables));
        }
        for (sequence, start) in tables.iter().enumerate() {
            let table = table(layout, sequence);
            to[*start as usize..][..table.len()].copy_from_slice(table);
        }
        stream.copy_to_device(device.address(), place.pinned.address() as *const u8, words * 4)?;
        place.copied.record(stream)?;
        let arrays = Arena::new(device).tensor(DType::I32, 1, words);
        let many = items.iter().filter(|item| Item::has_many_rows(item)).count();
        Ok(DevicePlan { arrays, heads, many, few: items.len() - many })
    }

    /// The arrays lie where those of nearly every step lie.
    pub(crate) fn is_usual(&self, arrays: usize) -> bool {
        arrays == self.usual.address()
    }

    /// Memory of the device for so many words.
    fn room(&mut self, words: usize) -> Result<Allocation, DeviceError> {
        if words <= USUAL_WORDS {
            return Ok(self.usual.clone());
        }
        let large = match &mut self.large {
            Some(large) => large,
            none => none.insert(self.rooms.device(words.next_power_of_two() * 4)?),
        };
        self.rooms.grow_device(large, words * 4)?;
        Ok(large.clone())
    }
}

/// The blocks that hold a sequence's context.
fn table(layout: &BatchLayout, sequence: usize) -> &[i32] {
    let blocks = (layout.context_lens[sequence] as usize).div_ceil(layout.block_size);
    &layout.block_tables[sequence * layout.blocks_per_row..][..blocks]
}

/// Where each sequence's table begins when the first begins at `start`, and where the last ends.
fn table_starts(layout: &BatchLayout, start: usize) -> (Vec<i32>, usize) {
    let mut end = start;
    let starts = (0..layout.sequences()).map(|sequence| {
        let start = end;
        end += table(layout, sequence).len();
        start as i32
    });
    (starts.collect(), end)
}
