//! How long things take, shown: a bar on a terminal, plain lines elsewhere.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use phalanx_hub::Progress;

use crate::terminal;

const BETWEEN_LINES: Duration = Duration::from_secs(5);
/// Why no lock here is ever poisoned.
const CALM: &str = "showing progress does not panic";

/// A byte count with a name: the bar and the lines look the same for downloads and for loading.
pub(crate) struct Bar {
    bar: Mutex<Option<ProgressBar>>,
    what: Mutex<String>,
    total: AtomicU64,
    /// When the last line was told: without a terminal one comes every few seconds.
    told: Mutex<Instant>,
}

impl Bar {
    pub(crate) fn new() -> Self {
        Self {
            bar: Mutex::new(None),
            what: Mutex::new(String::new()),
            total: AtomicU64::new(0),
            told: Mutex::new(Instant::now()),
        }
    }

    /// Begins to show `what`, of `total` bytes.
    pub(crate) fn begin(&self, what: &str, total: u64) {
        self.total.store(total.max(1), Ordering::Relaxed);
        *self.told.lock().expect(CALM) = Instant::now();
        what.clone_into(&mut self.what.lock().expect(CALM));
        let style = ProgressStyle::with_template(
            "{msg} {bar:30} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta}",
        );
        let bar = terminal::is_attended().then(|| {
            let bar = ProgressBar::new(total).with_message(what.to_owned());
            bar.with_style(style.expect("the template above is well formed"))
        });
        *self.bar.lock().expect(CALM) = bar;
    }

    /// So many bytes are done.
    pub(crate) fn reach(&self, done: u64) {
        match &*self.bar.lock().expect(CALM) {
            Some(bar) => bar.set_position(done),
            None => self.tell_now_and_then(done),
        }
    }

    pub(crate) fn end(&self) {
        if let Some(bar) = self.bar.lock().expect(CALM).take() {
            bar.finish_and_clear();
        }
    }

    fn tell_now_and_then(&self, done: u64) {
        let mut told = self.told.lock().expect(CALM);
        if BETWEEN_LINES <= told.elapsed() {
            *told = Instant::now();
            let percent = done * 100 / self.total.load(Ordering::Relaxed);
            tracing::info!("{}: {percent} %", self.what.lock().expect(CALM));
        }
    }
}

impl Progress for Bar {
    fn start(&self, file: &str, source: &str, done: u64, total: u64) {
        self.begin(&format!("{file} from {source}"), total);
        self.reach(done);
    }

    fn advance(&self, done: u64) {
        self.reach(done);
    }

    fn finish(&self) {
        self.end();
    }

    fn notice(&self, line: &str) {
        self.end();
        tracing::warn!("{line}");
    }
}
