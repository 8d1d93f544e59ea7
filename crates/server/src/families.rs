//! Figures in `/metrics` that are not the server's own: whoever starts it gives them, for example those of GPUs.

/// Asked at each scrape, where waiting is allowed.
pub type Families = Box<dyn Fn() -> Vec<Family> + Send + Sync>;

/// One name, and its series.
#[derive(Clone, Debug, PartialEq)]
pub struct Family {
    /// For example `phalanx:gpu_power_watts`.
    pub name: &'static str,
    /// One sentence.
    pub help: &'static str,
    /// Whether it only grows.
    pub kind: FamilyKind,
    /// One a thing; labels tell them apart.
    pub series: Vec<Series>,
}

/// What kind of figure it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FamilyKind {
    /// It only grows.
    Counter,
    /// It says how things stand.
    Gauge,
}

impl FamilyKind {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
        }
    }
}

/// One figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Names and values, as `("gpu", "0")`.
    pub labels: Vec<(&'static str, String)>,
    /// In the unit of the family's name.
    pub value: f64,
}
