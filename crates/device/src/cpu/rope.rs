//! Rotary position embedding in place, then keys and values into their slots.

use half::{bf16, f16};

use super::Cpu;
use super::lanes::{self, Kernel, LANES, Lanes, Stored};
use super::parallel;
use super::views::{Rows, RowsMut};
use crate::backend::{Heads, KvLayer};
use crate::batch::BatchLayout;
use crate::dtype::DType;
use crate::tensor::{View, ViewMut};

/// See [`crate::Backend::rope_and_store`].
pub(super) fn rope_and_store(
    cpu: &Cpu,
    mut qkv: ViewMut<'_>,
    rope: View<'_>,
    kv: &mut KvLayer,
    layout: &BatchLayout,
    heads: Heads,
) {
    let rotated = (heads.num_heads + heads.num_kv_heads) * heads.head_dim;
    let rope = Rows::<f32>::new(rope);
    let rows = RowsMut::<f32>::new(qkv.reborrow());
    let features = cpu.features;
    parallel::bands(&cpu.pool, rows, rotated, |first, mut rows| {
        for row in 0..rows.rows() {
            let angles = rope.row(super::index(layout.positions[first + row]));
            let x = &mut rows.row(row)[..rotated];
            lanes::run(features, Rotate { x, angles, head_dim: heads.head_dim });
        }
    });
    // Storing is little beside rotating, and slots lie anywhere: one thread does it.
    match kv.keys.dtype() {
        DType::F32 => store::<f32>(cpu, qkv.view(), kv, layout, heads),
        DType::F16 => store::<f16>(cpu, qkv.view(), kv, layout, heads),
        DType::BF16 => store::<bf16>(cpu, qkv.view(), kv, layout, heads),
        DType::I32 => panic!("keys are numbers with fractions"),
    }
}

/// Copies k and v of each row of `qkv` into its slot.
fn store<T: Stored>(cpu: &Cpu, qkv: View<'_>, kv: &mut KvLayer, layout: &BatchLayout, heads: Heads) {
    let KvLayer { keys, values, block_size, .. } = kv;
    let qkv = Rows::<f32>::new(qkv);
    let mut caches = [RowsMut::<T>::new(keys.view_mut()), RowsMut::<T>::new(values.view_mut())];
    for (token, &slot) in layout.slots.iter().enumerate() {
        let slot = super::index(slot);
        let (block, offset) = (slot / *block_size, slot % *block_size);
        let kv_columns = &qkv.row(token)[heads.num_heads * heads.head_dim..];
        let width = heads.num_kv_heads * heads.head_dim;
        for (cache, columns) in caches.iter_mut().zip(kv_columns.chunks_exact(width)) {
            for (head, x) in columns.chunks_exact(heads.head_dim).enumerate() {
                let to = cache.row((block * heads.num_kv_heads + head) * *block_size + offset);
                lanes::run(cpu.features, Store { to, x });
            }
        }
    }
}

/// Rounds `[head_dim]` numbers to the cache's type.
struct Store<'a, T> {
    to: &'a mut [T],
    x: &'a [f32],
}

impl<T: Stored> Kernel for Store<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let (to, to_rest) = self.to.as_chunks_mut::<LANES>();
        let (x, x_rest) = self.x.as_chunks::<LANES>();
        for (to, x) in to.iter_mut().zip(x) {
            T::store(lanes, to, lanes.load(x));
        }
        let mut last = [T::default(); LANES];
        T::store(lanes, &mut last, lanes.load(&lanes::padded(x_rest, 0.0)));
        to_rest.copy_from_slice(&last[..to_rest.len()]);
    }
}

/// Rotates heads side by side by one position's angles, as Hugging Face's `rotate_half`: element `i` with `i + half`.
struct Rotate<'a> {
    x: &'a mut [f32],
    /// `[head_dim]`: cosines, then sines.
    angles: &'a [f32],
    head_dim: usize,
}

impl Kernel for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, _: L) {
        let (cosines, sines) = self.angles.split_at(self.head_dim / 2);
        for head in self.x.chunks_exact_mut(self.head_dim) {
            let (first, second) = head.split_at_mut(self.head_dim / 2);
            for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cosines).zip(sines) {
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }
}
