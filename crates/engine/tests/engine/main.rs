//! The engine against an executor that needs no model: what callers see, whatever happens.

mod fake;
mod lifecycle;
mod load;
mod routing;
mod streaming;
mod validation;
