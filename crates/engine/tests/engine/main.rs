//! The engine against an executor that needs no model: what callers see, whatever happens.

mod fake;
mod lifecycle;
mod load;
mod streaming;
mod validation;
