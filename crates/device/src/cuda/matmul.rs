//! Which kernel multiplies: our own for a few tokens, the fastest of cuBLASLt's for more, as [`crate::tuning`] remembers;
//! a product that nothing is known of takes the library's first guess.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::DeviceError;
use crate::cuda::cublaslt::{Algorithm, CublasLt, Operands, Problem, Shape};
use crate::cuda::kernels::{self, Element, Launch, SkinnyMatmulParams};
use crate::cuda::runtime::{self, Event, Stream};
use crate::tensor::Allocation;
use crate::tuning::{Advice, Choice, Key, Tunings};

/// cuBLASLt's recommendation for sm_90.
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
    /// As tuned, for good.
    choices: RefCell<HashMap<Bucket, Choice>>,
    /// As guessed, when [`Tunings::changes`] was this.
    guesses: RefCell<HashMap<Bucket, (u64, Choice)>>,
    /// In place of choices that do not do a shape although it is in their bucket.
    exceptions: RefCell<HashMap<Shape, Choice>>,
    tunings: Arc<Tunings>,
    machine: Arc<str>,
    library: Result<CublasLt, DeviceError>,
    /// The library's; also what is written between timings, so that no weight is left in the level-2 cache.
    workspace: Allocation,
    /// The bias in the compute type, as cuBLASLt wants it.
    bias: Allocation,
    start: Event,
    end: Event,
    element: Element,
}

impl Matmul {
    /// For this thread's device, a `kind` of GPU with a level-2 cache of `cache_bytes`; without cuBLASLt everything goes
    /// through our own kernel.
    pub(crate) fn new(
        ordinal: usize,
        (kind, cache_bytes): (&str, usize),
        element: Element,
        folders: &[PathBuf],
        tunings: Arc<Tunings>,
    ) -> Result<Self, DeviceError> {
        let library = CublasLt::open(folders, WORKSPACE_BYTES);
        let version = library.as_ref().map_or(0, CublasLt::version);
        Ok(Self {
            problems: RefCell::default(),
            choices: RefCell::default(),
            guesses: RefCell::default(),
            exceptions: RefCell::default(),
            tunings,
            machine: format!("{kind}, cuBLASLt {version}").into(),
            library,
            workspace: runtime::allocate(ordinal, WORKSPACE_BYTES.max(cache_bytes))?,
            bias: runtime::allocate(ordinal, MAX_BIAS_ROWS * 4)?,
            start: Event::new(true)?,
            end: Event::new(true)?,
            element,
        })
    }

    /// Products are being timed: another choice may stand in a moment.
    pub(crate) fn is_choosing(&self) -> bool {
        self.tunings.is_window_open()
    }

    /// For people: which library is used, or why none.
    pub(crate) fn describe(&self) -> String {
        match &self.library {
            Ok(library) => format!("cuBLASLt {}", library.version()),
            Err(error) => format!("no cuBLASLt, prompts are slow: {error}"),
        }
    }

    /// Starts a product. Inside a window of [`Tunings`] the first of a bucket is timed with every candidate, which waits
    /// for the device; otherwise nothing does.
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
        let at = Place { library, problem: &problems[&shape], product, launch, stream };
        let exception = self.exceptions.borrow().get(&shape).copied();
        let choice = match exception {
            Some(choice) => choice,
            None => self.choice(&at)?,
        };
        if self.start(&at, choice).is_ok() {
            return Ok(());
        }
        // An algorithm of the bucket need not do every shape in it.
        let candidates = library.proposals(at.problem, PROPOSALS).into_iter().map(Choice::Library);
        let works = candidates.chain([Choice::Skinny]).find(|choice| self.start(&at, *choice).is_ok());
        match works {
            Some(choice) => self.exceptions.borrow_mut().insert(shape, choice),
            None => return Err(DeviceError("no kernel does a product".to_owned())),
        };
        Ok(())
    }

    /// What multiplies a product of this bucket.
    fn choice(&self, at: &Place<'_>) -> Result<Choice, DeviceError> {
        let bucket = Bucket::of(at.product.shape);
        if let Some(choice) = self.choices.borrow().get(&bucket) {
            return Ok(*choice);
        }
        let changes = self.tunings.changes();
        match self.guesses.borrow().get(&bucket) {
            Some((guessed, choice)) if *guessed == changes => return Ok(*choice),
            _ => {}
        }
        let key = self.key(bucket);
        // Nothing can be waited for while a graph is captured.
        match self.tunings.advise(&key, !at.stream.is_capturing()?) {
            Advice::Take(choice) => {
                self.choices.borrow_mut().insert(bucket, choice);
                Ok(choice)
            }
            Advice::Time => {
                let choice = self.fastest(at)?;
                self.tunings.found(key, choice);
                self.choices.borrow_mut().insert(bucket, choice);
                Ok(choice)
            }
            Advice::Guess => {
                let first = at.library.proposals(at.problem, 1).into_iter().next();
                let choice = first.map_or(Choice::Skinny, Choice::Library);
                self.guesses.borrow_mut().insert(bucket, (changes, choice));
                Ok(choice)
            }
        }
    }

    fn key(&self, bucket: Bucket) -> Key {
        let Bucket { tokens, rows, columns, out_is_float, biased } = bucket;
        let (machine, dtype) = (Arc::clone(&self.machine), self.element.dtype());
        Key { machine, dtype, tokens, rows, columns, out_is_float, biased }
    }

    /// Starts a product with a certain kernel.
    fn start(&self, at: &Place<'_>, choice: Choice) -> Result<(), DeviceError> {
        match choice {
            Choice::Skinny => self.skinny(at.product, at.launch),
            Choice::Library(words) => {
                at.library.matmul(at.problem, &Algorithm { words }, self.operands(at.product, at.launch))
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

    /// Times every candidate on the product at hand, the weight not in the cache: each writes the same result.
    fn fastest(&self, at: &Place<'_>) -> Result<Choice, DeviceError> {
        let mut candidates: Vec<Choice> =
            at.library.proposals(at.problem, PROPOSALS).into_iter().map(Choice::Library).collect();
        if at.product.shape.tokens <= MAYBE_SKINNY {
            candidates.push(Choice::Skinny);
        }
        let mut best = (f32::INFINITY, Choice::Skinny);
        for candidate in candidates {
            let us = self.time(at, candidate)?;
            if us < best.0 {
                best = (us, candidate);
            }
        }
        Ok(best.1)
    }

    /// Microseconds, the least of three; infinite for an algorithm that does not do this shape.
    fn time(&self, at: &Place<'_>, candidate: Choice) -> Result<f32, DeviceError> {
        let mut least = f32::INFINITY;
        for _ in 0..3 {
            at.stream.fill(self.workspace.address(), 0, self.workspace.bytes())?;
            self.start.record(at.stream)?;
            let started = self.start(at, candidate);
            self.end.record(at.stream)?;
            self.end.wait()?;
            if started.is_err() {
                return Ok(f32::INFINITY);
            }
            least = least.min(self.end.us_since(&self.start)?);
        }
        Ok(least)
    }
}

/// A product on its way: what is multiplied, and where.
struct Place<'a> {
    library: &'a CublasLt,
    problem: &'a Problem,
    product: &'a Product,
    launch: Launch,
    stream: &'a Stream,
}
