//! Work that a back end recorded once, to be started as a whole.

use std::any::Any;
use std::fmt;

/// What [`crate::Backend::record`] made; of use to that back end alone. The memory it was recorded with must outlive it.
pub struct Graph {
    /// None but the back end knows its type.
    #[allow(dead_code, reason = "the CPU records nothing")]
    pub(crate) recorded: Box<dyn Any>,
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Graph")
    }
}
