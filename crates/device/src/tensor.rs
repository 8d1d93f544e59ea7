//! Dense two-dimensional arrays in one rank's memory, and the views that operations take.

use std::any::Any;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use crate::dtype::DType;

/// A piece of a device's memory; freed when the last tensor in it is dropped.
#[derive(Clone)]
pub struct Allocation {
    address: usize,
    bytes: usize,
    /// Frees the memory when dropped.
    _owner: Arc<dyn Any + Send + Sync>,
}

impl Allocation {
    /// Wraps `bytes` of device memory at `address`, which `owner` frees when it is dropped.
    ///
    /// Only back ends call this. All views rest on its being true: the memory is aligned to 256 bytes, initialised, that
    /// long, and of the device on which its tensors are used.
    #[must_use]
    pub fn new(address: usize, bytes: usize, owner: Arc<dyn Any + Send + Sync>) -> Self {
        Self { address, bytes, _owner: owner }
    }

    /// The first byte's address in the device's address space.
    #[must_use]
    pub fn address(&self) -> usize {
        self.address
    }

    /// Its size.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl fmt::Debug for Allocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at {:#x}", self.bytes, self.address)
    }
}

/// Hands out tensors from one allocation, front to back, each aligned to 256 bytes.
#[derive(Debug)]
pub struct Arena {
    allocation: Allocation,
    used: usize,
}

impl Arena {
    /// Starts handing out `allocation`.
    #[must_use]
    pub fn new(allocation: Allocation) -> Self {
        Self { allocation, used: 0 }
    }

    /// Bytes a tensor takes from an arena.
    ///
    /// # Panics
    /// More than there are addresses: the memory safety of views rests on this product.
    #[must_use]
    pub const fn tensor_bytes(dtype: DType, rows: usize, width: usize) -> usize {
        let elements = rows.checked_mul(width).expect("a tensor's elements can be counted");
        let bytes = elements.checked_mul(dtype.bytes()).expect("a tensor's bytes can be counted");
        bytes.checked_next_multiple_of(256).expect("a tensor's bytes can be counted")
    }

    /// The next tensor `[rows, width]`.
    ///
    /// # Panics
    /// The arena is exhausted: its size was computed wrongly.
    pub fn tensor(&mut self, dtype: DType, rows: usize, width: usize) -> Tensor {
        let bytes = Self::tensor_bytes(dtype, rows, width);
        assert!(self.used + bytes <= self.allocation.bytes(), "the arena holds what was planned");
        let tensor = Tensor { allocation: self.allocation.clone(), offset: self.used, dtype, rows, width };
        self.used += bytes;
        tensor
    }
}

/// A dense, row-major array `[rows, width]`.
#[derive(Debug)]
pub struct Tensor {
    allocation: Allocation,
    offset: usize,
    dtype: DType,
    rows: usize,
    width: usize,
}

impl Tensor {
    /// Element type.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements of a row.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// The whole of it, to read.
    #[must_use]
    pub fn view(&self) -> View<'_> {
        View {
            address: self.allocation.address() + self.offset,
            dtype: self.dtype,
            rows: self.rows,
            width: self.width,
            stride: self.width,
            lifetime: PhantomData,
        }
    }

    /// The whole of it, to write.
    pub fn view_mut(&mut self) -> ViewMut<'_> {
        ViewMut { view: self.view(), exclusive: PhantomData }
    }
}

/// A readable rectangle `[rows, width]`; rows lie `stride` elements apart.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    address: usize,
    dtype: DType,
    rows: usize,
    width: usize,
    stride: usize,
    lifetime: PhantomData<&'a Tensor>,
}

impl<'a> View<'a> {
    /// The first element's address in the device's address space.
    #[must_use]
    pub fn address(&self) -> usize {
        self.address
    }

    /// Element type.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements of a row.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// Elements from one row's start to the next one's.
    #[must_use]
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Some of the rows.
    ///
    /// # Panics
    /// The range ends behind the last row.
    #[must_use]
    pub fn slice_rows(self, range: Range<usize>) -> View<'a> {
        assert!(range.start <= range.end && range.end <= self.rows, "rows {range:?} of {}", self.rows);
        let address = self.address + range.start * self.stride * self.dtype.bytes();
        View { address, rows: range.len(), ..self }
    }

    /// Some of the columns.
    ///
    /// # Panics
    /// The range ends behind the last column.
    #[must_use]
    pub fn slice_columns(self, range: Range<usize>) -> View<'a> {
        assert!(range.start <= range.end && range.end <= self.width, "columns {range:?} of {}", self.width);
        View { address: self.address + range.start * self.dtype.bytes(), width: range.len(), ..self }
    }
}

/// A writable rectangle; see [`View`].
#[derive(Debug)]
pub struct ViewMut<'a> {
    view: View<'a>,
    exclusive: PhantomData<&'a mut Tensor>,
}

impl<'a> ViewMut<'a> {
    /// The same rectangle to read, while this one is borrowed.
    #[must_use]
    pub fn view(&self) -> View<'_> {
        self.view
    }

    /// The same rectangle to write, while this one is borrowed.
    pub fn reborrow(&mut self) -> ViewMut<'_> {
        ViewMut { view: self.view, exclusive: PhantomData }
    }

    /// Some of the rows; see [`View::slice_rows`].
    #[must_use]
    pub fn slice_rows(self, range: Range<usize>) -> ViewMut<'a> {
        ViewMut { view: self.view.slice_rows(range), exclusive: PhantomData }
    }

    /// Some of the columns; see [`View::slice_columns`].
    #[must_use]
    pub fn slice_columns(self, range: Range<usize>) -> ViewMut<'a> {
        ViewMut { view: self.view.slice_columns(range), exclusive: PhantomData }
    }
}
