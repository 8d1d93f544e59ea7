//! Where the time goes between a command and the first token it can take: told in the log, and kept for `/metrics`.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use phalanx_server::{Families, Family, FamilyKind, Series};

/// The phases of a start, one after the other. Ranks go through theirs at the same time: the last one ends a phase.
pub(crate) struct Timeline {
    start: Instant,
    /// In the order in which they were first ended, with how long after the start they were ended last.
    ends: Mutex<Vec<(&'static str, Duration)>>,
}

impl Timeline {
    /// Begins now.
    pub(crate) fn start() -> Self {
        Self { start: Instant::now(), ends: Mutex::new(Vec::new()) }
    }

    /// A phase ends; several ranks may say so, and the last one counts.
    pub(crate) fn end(&self, phase: &'static str) {
        let now = self.start.elapsed();
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        match ends.iter_mut().find(|(name, _)| *name == phase) {
            Some(end) => end.1 = now,
            None => ends.push((phase, now)),
        }
    }

    /// Each phase's seconds, from the end of the one before it to its own.
    pub(crate) fn phases(&self) -> Vec<(&'static str, f64)> {
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // A fast rank may begin a phase before a slow one ends the phase before.
        ends.sort_by_key(|(_, end)| *end);
        let starts = [Duration::ZERO].into_iter().chain(ends.iter().map(|(_, end)| *end));
        ends.iter().zip(starts).map(|((name, end), start)| (*name, (*end - start).as_secs_f64())).collect()
    }

    /// The phases until now, for `/metrics`.
    pub(crate) fn families(&self) -> Families {
        let series =
            |(phase, value): (&str, f64)| Series { labels: vec![("phase", phase.to_owned())], value };
        let family = Family {
            name: "phalanx:startup_seconds",
            help: "Seconds of each phase of the start.",
            kind: FamilyKind::Gauge,
            series: self.phases().into_iter().map(series).collect(),
        };
        Box::new(move || vec![family.clone()])
    }

    /// One phase's seconds, 0 when it never was.
    pub(crate) fn seconds(&self, phase: &str) -> f64 {
        self.phases().iter().find(|(name, _)| *name == phase).map_or(0.0, |(_, seconds)| *seconds)
    }
}

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let phases = self.phases();
        let all: f64 = phases.iter().map(|(_, seconds)| seconds).sum();
        write!(f, "ready in {all:.2} s:")?;
        for (index, (name, seconds)) in phases.iter().enumerate() {
            write!(f, "{} {name} {seconds:.2}", if index == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeline(ends: &[(&'static str, u64)]) -> Timeline {
        let ends = ends.iter().map(|(name, ms)| (*name, Duration::from_millis(*ms))).collect();
        Timeline { start: Instant::now(), ends: Mutex::new(ends) }
    }

    #[test]
    fn phases_add_up_to_the_whole() {
        let timeline = timeline(&[("files", 250), ("driver", 1250), ("weights", 3000)]);
        assert_eq!(timeline.phases(), [("files", 0.25), ("driver", 1.0), ("weights", 1.75)]);
        assert_eq!(timeline.to_string(), "ready in 3.00 s: files 0.25, driver 1.00, weights 1.75");
        let family = timeline.families()().remove(0);
        assert_eq!(family.name, "phalanx:startup_seconds");
        assert_eq!(family.series[2], Series { labels: vec![("phase", "weights".to_owned())], value: 1.75 });
        assert_eq!((timeline.seconds("driver"), timeline.seconds("lunch")), (1.0, 0.0));
    }

    #[test]
    fn the_last_rank_ends_a_phase() {
        let timeline = timeline(&[("weights", 0)]);
        timeline.end("weights");
        timeline.end("KV cache");
        timeline.end("weights");
        let names: Vec<_> = timeline.phases().iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["KV cache", "weights"]);
    }
}
