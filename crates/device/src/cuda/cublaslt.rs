//! cuBLASLt, opened at run time: `out = x * weight^T (+ bias)` with one of the algorithms it proposes for a shape.

use std::ffi::{c_int, c_void};
use std::path::PathBuf;

use libloading::Library;

use crate::DeviceError;
use crate::cuda::kernels::Element;
use crate::cuda::library;

/// An algorithm for a shape, as the library encodes it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Algorithm {
    pub(crate) words: [u64; 8],
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Proposal {
    algorithm: Algorithm,
    workspace_bytes: usize,
    status: c_int,
    waves: f32,
    reserved: [c_int; 4],
}
const _: () = assert!(size_of::<Proposal>() == 96);

type Handle = usize;
type Status = c_int;

/// Numbers of cublasLt.h and library_types.h.
mod number {
    pub(super) const COMPUTE_32F: i32 = 68;
    pub(super) const R_32F: i32 = 0;
    pub(super) const R_16F: i32 = 2;
    pub(super) const R_16BF: i32 = 14;
    pub(super) const DESC_TRANSA: i32 = 3;
    pub(super) const DESC_EPILOGUE: i32 = 7;
    pub(super) const DESC_BIAS_POINTER: i32 = 8;
    pub(super) const OP_T: i32 = 1;
    pub(super) const EPILOGUE_BIAS: i32 = 4;
    pub(super) const PREFERENCE_WORKSPACE: i32 = 1;
}

struct Functions {
    matmul_desc_create: unsafe extern "C" fn(*mut Handle, i32, i32) -> Status,
    matmul_desc_destroy: unsafe extern "C" fn(Handle) -> Status,
    matmul_desc_set: unsafe extern "C" fn(Handle, i32, *const c_void, usize) -> Status,
    layout_create: unsafe extern "C" fn(*mut Handle, i32, u64, u64, i64) -> Status,
    layout_destroy: unsafe extern "C" fn(Handle) -> Status,
    heuristic: unsafe extern "C" fn(
        Handle,
        Handle,
        Handle,
        Handle,
        Handle,
        Handle,
        Handle,
        c_int,
        *mut Proposal,
        *mut c_int,
    ) -> Status,
    matmul: unsafe extern "C" fn(
        Handle,
        Handle,
        *const f32,
        usize,
        Handle,
        usize,
        Handle,
        *const f32,
        usize,
        Handle,
        usize,
        Handle,
        *const Algorithm,
        usize,
        usize,
        usize,
    ) -> Status,
}

/// The library, with one handle on this thread's device.
pub(crate) struct CublasLt {
    functions: Functions,
    handle: Handle,
    preference: Handle,
    destroy: unsafe extern "C" fn(Handle) -> Status,
    version: usize,
    /// Keeps the functions loaded.
    _library: Library,
}

/// What a product depends on besides its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Shape {
    /// Rows of x and out.
    pub(crate) tokens: usize,
    /// Rows of the weight.
    pub(crate) rows: usize,
    /// Columns of the weight.
    pub(crate) columns: usize,
    pub(crate) x_stride: usize,
    pub(crate) out_stride: usize,
    pub(crate) out_is_float: bool,
    pub(crate) biased: bool,
}

/// A shape's descriptors. Column-major as the library is, they state `out^T = weight * x^T`.
#[derive(Debug)]
pub(crate) struct Problem {
    desc: Handle,
    weight: Handle,
    x: Handle,
    out: Handle,
    destroy_desc: unsafe extern "C" fn(Handle) -> Status,
    destroy_layout: unsafe extern "C" fn(Handle) -> Status,
}

impl Drop for Problem {
    fn drop(&mut self) {
        // SAFETY: the handles are ours, and the library outlives its problems (`Matmul` drops them first).
        unsafe {
            (self.destroy_layout)(self.weight);
            (self.destroy_layout)(self.x);
            (self.destroy_layout)(self.out);
            (self.destroy_desc)(self.desc);
        }
    }
}

/// Addresses of one product, all on the device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operands {
    pub(crate) out: usize,
    pub(crate) x: usize,
    pub(crate) weight: usize,
    pub(crate) workspace: usize,
    pub(crate) workspace_bytes: usize,
    pub(crate) stream: usize,
}

fn succeed(status: Status, doing: &str) -> Result<(), DeviceError> {
    match status {
        0 => Ok(()),
        _ => Err(DeviceError(format!("cuBLASLt failed {doing} (status {status})"))),
    }
}

impl CublasLt {
    /// Opens the library and makes a handle for this thread's device.
    ///
    /// # Errors
    /// The library or a function of it is not found.
    pub(crate) fn open(folders: &[PathBuf], workspace_bytes: usize) -> Result<Self, DeviceError> {
        let library = library::open(&library::CUBLASLT, folders)?;
        let missing = |error: libloading::Error| DeviceError(format!("cuBLASLt is too old: {error}"));
        // SAFETY: the types are those of cublasLt.h, the same in versions 12 and 13.
        unsafe {
            let functions = Functions {
                matmul_desc_create: *library.get(b"cublasLtMatmulDescCreate").map_err(missing)?,
                matmul_desc_destroy: *library.get(b"cublasLtMatmulDescDestroy").map_err(missing)?,
                matmul_desc_set: *library.get(b"cublasLtMatmulDescSetAttribute").map_err(missing)?,
                layout_create: *library.get(b"cublasLtMatrixLayoutCreate").map_err(missing)?,
                layout_destroy: *library.get(b"cublasLtMatrixLayoutDestroy").map_err(missing)?,
                heuristic: *library.get(b"cublasLtMatmulAlgoGetHeuristic").map_err(missing)?,
                matmul: *library.get(b"cublasLtMatmul").map_err(missing)?,
            };
            let create: libloading::Symbol<'_, unsafe extern "C" fn(*mut Handle) -> Status> =
                library.get(b"cublasLtCreate").map_err(missing)?;
            let preference_create: libloading::Symbol<'_, unsafe extern "C" fn(*mut Handle) -> Status> =
                library.get(b"cublasLtMatmulPreferenceCreate").map_err(missing)?;
            let preference_set: libloading::Symbol<
                '_,
                unsafe extern "C" fn(Handle, i32, *const c_void, usize) -> Status,
            > = library.get(b"cublasLtMatmulPreferenceSetAttribute").map_err(missing)?;
            let version: libloading::Symbol<'_, unsafe extern "C" fn() -> usize> =
                library.get(b"cublasLtGetVersion").map_err(missing)?;
            let destroy = *library.get(b"cublasLtDestroy").map_err(missing)?;
            let (mut handle, mut preference) = (0, 0);
            succeed(create(&mut handle), "to start")?;
            succeed(preference_create(&mut preference), "to start")?;
            let bytes: *const usize = &workspace_bytes;
            succeed(preference_set(preference, number::PREFERENCE_WORKSPACE, bytes.cast(), 8), "to start")?;
            let version = version();
            Ok(Self { functions, handle, preference, destroy, version, _library: library })
        }
    }

    /// For example 130002.
    pub(crate) fn version(&self) -> usize {
        self.version
    }

    /// Describes a shape. `bias` is where its bias will always lie.
    pub(crate) fn problem(
        &self,
        shape: Shape,
        element: Element,
        bias: usize,
    ) -> Result<Problem, DeviceError> {
        let element = match element {
            Element::BF16 => number::R_16BF,
            Element::F16 => number::R_16F,
        };
        let out_type = if shape.out_is_float { number::R_32F } else { element };
        let f = &self.functions;
        let mut problem = Problem {
            desc: 0,
            weight: 0,
            x: 0,
            out: 0,
            destroy_desc: f.matmul_desc_destroy,
            destroy_layout: f.layout_destroy,
        };
        let (rows, columns, tokens) = (shape.rows as u64, shape.columns as u64, shape.tokens as u64);
        // SAFETY: each call writes one handle or reads one value of the stated size. Destroying the handle 0, should
        // one of the calls fail, is allowed.
        unsafe {
            let doing = "to describe a product";
            succeed((f.matmul_desc_create)(&mut problem.desc, number::COMPUTE_32F, number::R_32F), doing)?;
            let set = |attribute: i32, value: *const c_void, bytes: usize| {
                succeed((f.matmul_desc_set)(problem.desc, attribute, value, bytes), doing)
            };
            set(number::DESC_TRANSA, std::ptr::from_ref(&number::OP_T).cast(), 4)?;
            if shape.biased {
                set(number::DESC_EPILOGUE, std::ptr::from_ref(&number::EPILOGUE_BIAS).cast(), 4)?;
                set(number::DESC_BIAS_POINTER, std::ptr::from_ref(&bias).cast(), 8)?;
            }
            succeed((f.layout_create)(&mut problem.weight, element, columns, rows, columns as i64), doing)?;
            succeed(
                (f.layout_create)(&mut problem.x, element, columns, tokens, shape.x_stride as i64),
                doing,
            )?;
            succeed(
                (f.layout_create)(&mut problem.out, out_type, rows, tokens, shape.out_stride as i64),
                doing,
            )?;
        }
        Ok(problem)
    }

    /// The algorithms the library would try, best first by its own guess.
    pub(crate) fn proposals(&self, problem: &Problem, most: usize) -> Vec<[u64; 8]> {
        let nothing = Proposal {
            algorithm: Algorithm { words: [0; 8] },
            workspace_bytes: 0,
            status: 0,
            waves: 0.0,
            reserved: [0; 4],
        };
        let mut found = vec![nothing; most];
        let mut count = 0;
        // SAFETY: the handles are live; the library writes at most `most` proposals.
        let status = unsafe {
            (self.functions.heuristic)(
                self.handle,
                problem.desc,
                problem.weight,
                problem.x,
                problem.out,
                problem.out,
                self.preference,
                most as c_int,
                found.as_mut_ptr(),
                &mut count,
            )
        };
        found.truncate(if status == 0 { count as usize } else { 0 });
        found
            .iter()
            .filter(|proposal| proposal.status == 0)
            .map(|proposal| proposal.algorithm.words)
            .collect()
    }

    /// Starts a product.
    ///
    /// # Errors
    /// The algorithm does not do this shape.
    pub(crate) fn matmul(
        &self,
        problem: &Problem,
        algorithm: &Algorithm,
        at: Operands,
    ) -> Result<(), DeviceError> {
        let (one, zero) = (1.0_f32, 0.0_f32);
        // SAFETY: the operands span the shapes the problem describes, and the workspace is ours alone.
        let status = unsafe {
            (self.functions.matmul)(
                self.handle,
                problem.desc,
                &one,
                at.weight,
                problem.weight,
                at.x,
                problem.x,
                &zero,
                at.out,
                problem.out,
                at.out,
                problem.out,
                algorithm,
                at.workspace,
                at.workspace_bytes,
                at.stream,
            )
        };
        succeed(status, "a product")
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        // SAFETY: the handle is ours, destroyed once.
        unsafe { (self.destroy)(self.handle) };
    }
}
