//! The log: lines go to standard error on a thread of their own, so that whoever does not read them keeps nobody waiting.
//!
//! A pipe holds 64 KiB. A server that wrote into it from the threads of its connections would stand still when a log
//! collector hangs or a terminal is halted with Ctrl-S, and one whose collector went away would fail at each line.

use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

use crate::terminal;

/// Lines that wait for a slow reader; those after them are counted and dropped. Some megabytes.
const MOST_WAITING: usize = 16_384;

/// The log's end: when this is dropped, the lines that wait are written, or a second has passed in which nobody read them.
pub(crate) struct Log {
    dropped: ErrorCounter,
    _thread: WorkerGuard,
}

impl Log {
    /// Starts to log what the filter `level` lets through. People get lines, programs get JSON.
    pub(crate) fn start(level: &str) -> Self {
        let builder = NonBlockingBuilder::default().thread_name("log").buffered_lines_limit(MOST_WAITING);
        let (writer, thread) = builder.lossy(true).finish(std::io::stderr());
        let dropped = writer.error_counter();
        let filter = EnvFilter::try_new(level).unwrap_or_else(|_| EnvFilter::new("info"));
        let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
        match terminal::is_attended() {
            true => subscriber.with_target(false).compact().init(),
            false => subscriber.json().init(),
        }
        Self { dropped, _thread: thread }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let lines = self.dropped.dropped_lines();
        if 0 < lines {
            tracing::warn!(lines, "the log was not read fast enough, and lines of it are missing");
        }
    }
}
