//! Which kernel multiplies: our own for a few tokens, the fastest of cuBLASLt's, timed at first use, for more.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::PathBuf;

use crate::DeviceError;
use crate::cuda::cublaslt::{Algorithm, CublasLt, Operands, Problem, Shape};
use crate::cuda::kernels::{self, Element, Launch, SkinnyMatmulParams};
use crate::cuda::runtime::{self, Event, Stream};
use crate::tensor::Allocation;

/// cuBLASLt's recommendation for sm_90; also what is written between timings to empty the cache.
const WORKSPACE_BYTES: usize = 64 << 20;
/// Rows of the widest bias.
const MAX_BIAS_ROWS: usize = 1 << 18;
/// Up to here our kernel is not even timed against the library's, and the gate's activation costs nothing beside it: one
/// token 63.4 us with or without, of 1.9 us apart. At eight the library and both apart are faster, 69.1 to 71.1 us (H200)...
const ALWAYS_SKINNY: usize = 4;
/// ... and up to here when the weight is small: a single call's time does not show how much of it overlaps its neighbours.
const SKINNY_WHEN_SMALL: usize = 8;
const SMALL_BYTES: usize = 64 << 20;
/// Up to here it is timed against them.
const MAYBE_SKINNY: usize = 32;
const PROPOSALS: usize = 12;

/// One product's addresses and shape.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Product {
    pub(crate) shape: Shape,
    pub(crate) out: usize,
    pub(crate) x: usize,
    pub(crate) weight: usize,
    /// F32, or 0.
    pub(crate) bias: usize,
}

#[derive(Clone, Copy, Debug)]
enum Choice {
    Skinny,
    Library(Algorithm),
}

/// Shapes with these in common share an algorithm: what is fast hardly changes within a bucket of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Bucket {
    tokens: usize,
    rows: usize,
    columns: usize,
    out_is_float: bool,
    biased: bool,
}

impl Bucket {
    fn of(shape: Shape) -> Self {
        let tokens = match shape.tokens {
            0..=64 => shape.tokens.next_multiple_of(8),
            65..=256 => shape.tokens.next_multiple_of(32),
            257..=1024 => shape.tokens.next_multiple_of(128),
            _ => shape.tokens.next_power_of_two(),
        };
        let Shape { rows, columns, out_is_float, biased, .. } = shape;
        Self { tokens, rows, columns, out_is_float, biased }
    }
}

/// Multiplies, and remembers what was fastest.
pub(crate) struct Matmul {
    // Before the library: they are destroyed through it.
    problems: RefCell<HashMap<Shape, Problem>>,
    choices: RefCell<HashMap<Bucket, Choice>>,
    library: Result<CublasLt, DeviceError>,
    workspace: Allocation,
    /// The bias in the compute type, as cuBLASLt wants it.
    bias: Allocation,
    start: Event,
    end: Event,
    element: Element,
}

impl Matmul {
    /// For this thread's device; without cuBLASLt everything goes through our own kernel.
    pub(crate) fn new(ordinal: usize, element: Element, folders: &[PathBuf]) -> Result<Self, DeviceError> {
        Ok(Self {
            problems: RefCell::default(),
            choices: RefCell::default(),
            library: CublasLt::open(folders, WORKSPACE_BYTES),
            workspace: runtime::allocate(ordinal, WORKSPACE_BYTES)?,
            bias: runtime::allocate(ordinal, MAX_BIAS_ROWS * 4)?,
            start: Event::new(true)?,
            end: Event::new(true)?,
            element,
        })
    }

    /// For people: which library is used, or why none.
    pub(crate) fn describe(&self) -> String {
        match &self.library {
            Ok(library) => format!("cuBLASLt {}", library.version()),
            Err(error) => format!("no cuBLASLt, prompts are slow: {error}"),
        }
    }

    /// Starts a product; the first of a bucket is timed with every candidate, which waits for the device.
    pub(crate) fn run(&self, product: &Product, launch: Launch, stream: &Stream) -> Result<(), DeviceError> {
        let shape = product.shape;
        let Ok(library) = &self.library else { return self.skinny(product, launch) };
        // A bias is only taken in the output's type, which nothing but tests asks for in F32.
        let small = shape.tokens <= SKINNY_WHEN_SMALL && shape.rows * shape.columns * 2 <= SMALL_BYTES;
        if shape.tokens <= ALWAYS_SKINNY || small || (shape.biased && shape.out_is_float) {
            return self.skinny(product, launch);
        }
        if shape.biased {
            self.convert_bias(product, launch)?;
        }
        if !self.problems.borrow().contains_key(&shape) {
            let problem = library.problem(shape, self.element, self.bias.address())?;
            self.problems.borrow_mut().insert(shape, problem);
        }
        let problems = self.problems.borrow();
        let problem = problems.get(&shape).expect("inserted above");
        let known = self.choices.borrow().get(&Bucket::of(shape)).copied();
        let choice = match known {
            Some(choice) => choice,
            None => {
                let choice = self.fastest(library, problem, product, launch, stream)?;
                self.choices.borrow_mut().insert(Bucket::of(shape), choice);
                choice
            }
        };
        match choice {
            Choice::Skinny => self.skinny(product, launch),
            Choice::Library(algorithm) => {
                match library.matmul(problem, &algorithm, self.operands(product, launch)) {
                    Ok(()) => Ok(()),
                    // An algorithm of the bucket need not do every shape in it.
                    Err(_) => self.first_that_works(library, problem, product, launch),
                }
            }
        }
    }

    fn operands(&self, product: &Product, launch: Launch) -> Operands {
        Operands {
            out: product.out,
            x: product.x,
            weight: product.weight,
            workspace: self.workspace.address(),
            workspace_bytes: WORKSPACE_BYTES,
            stream: launch.stream,
        }
    }

    fn skinny_params(product: &Product) -> SkinnyMatmulParams {
        let shape = product.shape;
        SkinnyMatmulParams {
            out: product.out,
            x: product.x,
            weight: product.weight,
            bias: product.bias,
            tokens: shape.tokens as u32,
            rows: shape.rows as u32,
            columns: shape.columns as u32,
            x_stride: shape.x_stride as u32,
            out_stride: shape.out_stride as u32,
            out_is_float: u32::from(shape.out_is_float),
            silu: 0,
            padding: 0,
        }
    }

    fn skinny(&self, product: &Product, launch: Launch) -> Result<(), DeviceError> {
        let params = Self::skinny_params(product);
        // SAFETY: see `kernels`: the addresses are those of views whose shapes were checked.
        runtime::check(unsafe { kernels::launch_skinny_matmul(params, self.element, launch) }, "a product")
    }

    /// `silu(gate) * up` of a product with gate over up, in one kernel; `product.out` is half as wide as the weight is
    /// high. False when the tokens are too many for that to be the fastest way.
    pub(crate) fn silu_mul(&self, product: &Product, launch: Launch) -> Result<bool, DeviceError> {
        if ALWAYS_SKINNY < product.shape.tokens {
            return Ok(false);
        }
        let params = SkinnyMatmulParams { silu: 1, ..Self::skinny_params(product) };
        // SAFETY: as in `skinny`.
        let code = unsafe { kernels::launch_skinny_matmul(params, self.element, launch) };
        runtime::check(code, "a gated product").map(|()| true)
    }

    fn convert_bias(&self, product: &Product, launch: Launch) -> Result<(), DeviceError> {
        let count = product.shape.rows;
        assert!(count <= MAX_BIAS_ROWS, "a bias of {count} values");
        let params =
            kernels::ConvertParams { out: self.bias.address(), from: product.bias, count: count as u64 };
        // SAFETY: see `kernels`.
        let code = unsafe { kernels::launch_convert(params, kernels::Source::F32, self.element, launch) };
        runtime::check(code, "to convert a bias")
    }

    fn first_that_works(
        &self,
        library: &CublasLt,
        problem: &Problem,
        product: &Product,
        launch: Launch,
    ) -> Result<(), DeviceError> {
        for algorithm in library.proposals(problem, PROPOSALS) {
            if library.matmul(problem, &algorithm, self.operands(product, launch)).is_ok() {
                return Ok(());
            }
        }
        self.skinny(product, launch)
    }

    /// Times every candidate on the product at hand, the weight not in the cache: each writes the same result.
    fn fastest(
        &self,
        library: &CublasLt,
        problem: &Problem,
        product: &Product,
        launch: Launch,
        stream: &Stream,
    ) -> Result<Choice, DeviceError> {
        let mut candidates: Vec<Choice> =
            library.proposals(problem, PROPOSALS).into_iter().map(Choice::Library).collect();
        if product.shape.tokens <= MAYBE_SKINNY {
            candidates.push(Choice::Skinny);
        }
        let mut best = (f32::INFINITY, Choice::Skinny);
        for candidate in candidates {
            let us = self.time(library, problem, product, candidate, launch, stream)?;
            if us < best.0 {
                best = (us, candidate);
            }
        }
        Ok(best.1)
    }

    /// Microseconds, the least of three; infinite for an algorithm that does not do this shape.
    #[expect(clippy::too_many_arguments, reason = "the private inner loop of `fastest`")]
    fn time(
        &self,
        library: &CublasLt,
        problem: &Problem,
        product: &Product,
        candidate: Choice,
        launch: Launch,
        stream: &Stream,
    ) -> Result<f32, DeviceError> {
        let mut least = f32::INFINITY;
        for _ in 0..3 {
            stream.fill(self.workspace.address(), 0, WORKSPACE_BYTES)?;
            self.start.record(stream)?;
            let started = match &candidate {
                Choice::Skinny => self.skinny(product, launch),
                Choice::Library(algorithm) => {
                    library.matmul(problem, algorithm, self.operands(product, launch))
                }
            };
            self.end.record(stream)?;
            self.end.wait()?;
            if started.is_err() {
                return Ok(f32::INFINITY);
            }
            least = least.min(self.end.us_since(&self.start)?);
        }
        Ok(least)
    }
}
