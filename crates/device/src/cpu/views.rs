//! Rows of host memory behind the untyped views: the one place where a view becomes slices.
#![allow(unsafe_code)]

use std::marker::PhantomData;

use half::{bf16, f16};

use crate::dtype::DType;
use crate::tensor::{View, ViewMut};

/// A type that may be read from any bytes a view of `DTYPE` covers.
pub(crate) trait Element: Copy + Send + Sync + 'static {
    /// The element type of views that hold it.
    const DTYPE: DType;
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
}

impl Element for f16 {
    const DTYPE: DType = DType::F16;
}

impl Element for bf16 {
    const DTYPE: DType = DType::BF16;
}

impl Element for i32 {
    const DTYPE: DType = DType::I32;
}

/// Rows `[rows, width]` to read.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a, T> {
    start: *const T,
    rows: usize,
    width: usize,
    stride: usize,
    lifetime: PhantomData<&'a [T]>,
}

// SAFETY: a `Rows` is a bundle of shared slices, and shared slices of `T: Sync` may go to other threads.
unsafe impl<T: Sync> Send for Rows<'_, T> {}
// SAFETY: as above; it has no interior mutability.
unsafe impl<T: Sync> Sync for Rows<'_, T> {}

impl<'a, T: Element> Rows<'a, T> {
    /// Reads `view` as rows of `T`.
    ///
    /// # Panics
    /// The view holds another element type.
    pub(crate) fn new(view: View<'a>) -> Self {
        assert!(view.dtype() == T::DTYPE, "a view of {:?} read as {:?}", view.dtype(), T::DTYPE);
        Self {
            start: std::ptr::with_exposed_provenance(view.address()),
            rows: view.rows(),
            width: view.width(),
            stride: view.stride(),
            lifetime: PhantomData,
        }
    }
}

impl<'a> Rows<'a, u8> {
    /// Reads `view` as rows of bytes, whatever its elements are.
    pub(crate) fn bytes(view: View<'a>) -> Self {
        let size = view.dtype().bytes();
        Self {
            start: std::ptr::with_exposed_provenance(view.address()),
            rows: view.rows(),
            width: view.width() * size,
            stride: view.stride() * size,
            lifetime: PhantomData,
        }
    }
}

impl<'a, T> Rows<'a, T> {
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Row `index`, `[width]`.
    #[inline(always)]
    pub(crate) fn row(&self, index: usize) -> &'a [T] {
        assert!(index < self.rows, "row {index} of {}", self.rows);
        // SAFETY: a view lies inside a tensor of host memory, zeroed when allocated, aligned to 256 bytes, with every
        // row inside it; a `View` borrows the tensor, so nobody writes there while `'a` lasts; every bit pattern of `T`
        // (floats, integers, bytes) is a value.
        unsafe { std::slice::from_raw_parts(self.start.add(index * self.stride), self.width) }
    }
}

/// Rows `[rows, width]` to write, divisible into disjoint rectangles.
pub(crate) struct RowsMut<'a, T> {
    start: *mut T,
    rows: usize,
    width: usize,
    stride: usize,
    exclusive: PhantomData<&'a mut [T]>,
}

// SAFETY: a `RowsMut` is a bundle of exclusive slices, which may go to another thread when `T` may.
unsafe impl<T: Send> Send for RowsMut<'_, T> {}
// SAFETY: through a shared `RowsMut` nothing can be written, and reading needs `T: Sync`.
unsafe impl<T: Sync> Sync for RowsMut<'_, T> {}

impl<'a, T: Element> RowsMut<'a, T> {
    /// Writes `view` as rows of `T`.
    ///
    /// # Panics
    /// The view holds another element type.
    #[expect(clippy::needless_pass_by_value, reason = "taking the view is what makes the rows exclusive")]
    pub(crate) fn new(view: ViewMut<'a>) -> Self {
        let view = view.view();
        assert!(view.dtype() == T::DTYPE, "a view of {:?} written as {:?}", view.dtype(), T::DTYPE);
        Self {
            start: std::ptr::with_exposed_provenance_mut(view.address()),
            rows: view.rows(),
            width: view.width(),
            stride: view.stride(),
            exclusive: PhantomData,
        }
    }
}

impl<'a> RowsMut<'a, u8> {
    /// Writes `view` as rows of bytes, whatever its elements are.
    #[expect(clippy::needless_pass_by_value, reason = "taking the view is what makes the rows exclusive")]
    pub(crate) fn bytes(view: ViewMut<'a>) -> Self {
        let view = view.view();
        let size = view.dtype().bytes();
        Self {
            start: std::ptr::with_exposed_provenance_mut(view.address()),
            rows: view.rows(),
            width: view.width() * size,
            stride: view.stride() * size,
            exclusive: PhantomData,
        }
    }

    /// Copies `count` rows from row `from` on to row `to` on; the two ranges may overlap.
    pub(crate) fn copy_rows(&mut self, from: usize, to: usize, count: usize) {
        assert!(self.stride == self.width, "only unstrided rows are copied as one run");
        assert!(from + count <= self.rows && to + count <= self.rows, "rows of this view");
        // SAFETY: both ranges lie inside the view, which is exclusively ours, and `copy` allows overlap.
        unsafe {
            let (from, to) = (self.start.add(from * self.stride), self.start.add(to * self.stride));
            std::ptr::copy(from, to, count * self.width);
        }
    }
}

impl<'a, T> RowsMut<'a, T> {
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Row `index`, `[width]`.
    #[inline(always)]
    pub(crate) fn row(&mut self, index: usize) -> &mut [T] {
        assert!(index < self.rows, "row {index} of {}", self.rows);
        // SAFETY: as in `Rows::row`; that nobody else reads or writes there is what `ViewMut` and the disjoint
        // divisions below give, and the borrow of `self` keeps rows from being handed out twice.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(index * self.stride), self.width) }
    }

    /// The first `count` rows, and the others.
    pub(crate) fn split_rows(self, count: usize) -> (Self, Self) {
        assert!(count <= self.rows, "{count} rows of {}", self.rows);
        // Wrapping, for behind the last row there may be no stride's worth of memory left to point into.
        let rest = self.start.wrapping_add(count * self.stride);
        (Self { rows: count, ..self }, Self { start: rest, rows: self.rows - count, ..self })
    }

    /// The first `count` columns, and the others.
    pub(crate) fn split_columns(self, count: usize) -> (Self, Self) {
        assert!(count <= self.width, "{count} columns of {}", self.width);
        let rest = self.start.wrapping_add(count);
        (Self { width: count, ..self }, Self { start: rest, width: self.width - count, ..self })
    }

    /// The rows in bands of `count` (the last may have fewer), first to last.
    pub(crate) fn bands(self, count: usize) -> Bands<'a, T> {
        Bands { rest: Some(self), count: count.max(1) }
    }
}

/// See [`RowsMut::bands`].
pub(crate) struct Bands<'a, T> {
    rest: Option<RowsMut<'a, T>>,
    count: usize,
}

impl<'a, T> Iterator for Bands<'a, T> {
    type Item = RowsMut<'a, T>;

    fn next(&mut self) -> Option<RowsMut<'a, T>> {
        let rest = self.rest.take()?;
        let count = self.count.min(rest.rows());
        if count == 0 {
            return None;
        }
        let (band, rest) = rest.split_rows(count);
        self.rest = Some(rest);
        Some(band)
    }
}

/// An F32 view to write from several threads, each to its own part.
#[derive(Clone, Copy)]
pub(crate) struct Output {
    address: usize,
    stride: usize,
    rows: usize,
    width: usize,
}

impl Output {
    /// The borrow ends with this call, so whoever keeps an `Output` keeps the view, too.
    pub(crate) fn new(view: &mut ViewMut<'_>) -> Self {
        let view = view.view();
        assert!(view.dtype() == DType::F32, "an F32 view");
        Self { address: view.address(), stride: view.stride(), rows: view.rows(), width: view.width() }
    }

    /// Columns `start..end` of a row.
    ///
    /// # Safety
    /// The view is still borrowed, and nobody else reads or writes this part meanwhile.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn row<'a>(&self, index: usize, start: usize, end: usize) -> &'a mut [f32] {
        assert!(index < self.rows && start <= end && end <= self.width, "a part of a row of the view");
        // SAFETY: inside the view; the rest is the caller's promise.
        unsafe {
            let first = (self.address as *mut f32).add(index * self.stride + start);
            std::slice::from_raw_parts_mut(first, end - start)
        }
    }
}
