//! What `doctor` says of how GPUs add up: tried with data, and timed.

use std::fmt;

use phalanx_device::facts::Known;
use serde_json::{Value, json};

use super::finding::Finding;

/// How long the sum of an array over the GPUs takes.
pub(crate) struct Sum {
    pub(crate) bytes: usize,
    /// Microseconds, by the way to add up.
    pub(crate) us: Vec<(String, f32)>,
    /// The way that is taken.
    pub(crate) chosen: String,
}

/// What was found out about a group of all GPUs.
pub(crate) struct Sums {
    /// On one line.
    pub(crate) summary: String,
    /// What is not as it should be, for example a link that carries wrong data.
    pub(crate) warnings: Vec<String>,
    /// One a size; none with one GPU.
    pub(crate) table: Vec<Sum>,
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ways: Vec<String> = self.us.iter().map(|(way, us)| format!("{way} {us:.1} us")).collect();
        write!(f, "{} KiB: {}; {} is taken", self.bytes >> 10, ways.join(", "), self.chosen)
    }
}

impl Sum {
    pub(crate) fn json(&self) -> Value {
        let us: serde_json::Map<String, Value> =
            self.us.iter().map(|(way, us)| (way.clone(), json!(us))).collect();
        json!({"bytes": self.bytes, "us": us, "chosen": self.chosen})
    }
}

/// A line for each warning, one for the whole, and one a size.
pub(super) fn findings(sums: &Known<Sums>) -> Vec<Finding> {
    const REMEDY: &str =
        "have the machine looked at; until then ranks add up without what is said to be wrong";
    match sums {
        Err(reason) => vec![Finding::fail("sums", reason.clone(), "see the lines on GPUs and links")],
        Ok(sums) if sums.table.is_empty() && sums.warnings.is_empty() => Vec::new(),
        Ok(Sums { summary, warnings, table }) => {
            let mut lines: Vec<Finding> =
                warnings.iter().map(|warning| Finding::warn("sums", warning.clone(), REMEDY)).collect();
            lines.push(Finding::ok("sums", summary.clone()));
            lines.extend(table.iter().map(|sum| Finding::ok("sums", sum.to_string()).with(sum.json())));
            lines
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    #[test]
    fn every_size_has_its_line_and_what_is_wrong_comes_first() {
        let us = vec![("flagged".to_owned(), 2.5), ("NCCL".to_owned(), 12.0)];
        let sum = Sum { bytes: 8192, us, chosen: "flagged".to_owned() };
        let warnings = vec!["GPU 0 lies".to_owned()];
        let lines =
            findings(&Ok(Sums { summary: "over host memory".to_owned(), warnings, table: vec![sum] }));
        assert_eq!((lines[0].verdict, lines[0].text.as_str()), (Verdict::Warn, "GPU 0 lies"));
        assert_eq!(lines[2].text, "8 KiB: flagged 2.5 us, NCCL 12.0 us; flagged is taken");
        assert_eq!(lines[2].data["us"]["NCCL"], 12.0);
        let nothing = Sums { summary: String::new(), warnings: Vec::new(), table: Vec::new() };
        assert!(findings(&Ok(nothing)).is_empty(), "one GPU adds nothing up");
        assert_eq!(findings(&Err("lost".to_owned()))[0].verdict, Verdict::Fail);
    }
}
