//! The log: lines go to standard error on a thread of their own, so that whoever does not read them keeps nobody waiting.
//!
//! A pipe holds 64 KiB. A server that wrote into it from the threads of its connections would stand still when a log
//! collector hangs or a terminal is halted with Ctrl-S, and one whose collector went away would fail at each line.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use crate::terminal;

/// Lines that wait for a slow reader; those after them are counted and dropped. Some megabytes.
const MOST_WAITING: usize = 16_384;
/// How long the end of the program waits for its last lines.
const LAST_LINES: Duration = Duration::from_secs(1);

/// What the thread that writes is told.
enum Message {
    Line(Vec<u8>),
    /// Everything before this is to be written when the sender is dropped.
    Flush(#[expect(dead_code, reason = "dropping it is the message")] Sender<()>),
}

/// The way to the thread that writes.
#[derive(Clone)]
pub(crate) struct Log {
    messages: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
}

impl Log {
    /// Starts to log what the filter `level` lets through. People get lines, programs get JSON.
    ///
    /// # Errors
    /// The system has no thread left.
    pub(crate) fn start(level: &str) -> io::Result<Self> {
        let (messages, waiting) = sync_channel(MOST_WAITING);
        let log = Self { messages, dropped: Arc::default() };
        let dropped = Arc::clone(&log.dropped);
        std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || write(&waiting, &dropped, &mut io::stderr()))?;
        let filter = EnvFilter::try_new(level).unwrap_or_else(|_| EnvFilter::new("info"));
        let writer = log.clone();
        let subscriber =
            tracing_subscriber::fmt().with_env_filter(filter).with_writer(move || writer.clone());
        match terminal::is_attended() {
            true => subscriber.with_target(false).compact().init(),
            false => subscriber.json().init(),
        }
        Ok(log)
    }

    /// Waits until all lines so far are written, or a moment where nobody reads them.
    pub(crate) fn flush(&self) {
        let (done, written) = channel();
        if self.messages.try_send(Message::Flush(done)).is_ok() {
            // Nothing is ever sent: either the other end is dropped, or this takes too long.
            let _dropped = written.recv_timeout(LAST_LINES);
        }
    }
}

/// A line each, as the subscriber writes them. It never fails: nobody could be told.
impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.messages.try_send(Message::Line(line.to_vec())).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes lines until nobody can send any.
fn write(waiting: &Receiver<Message>, dropped: &AtomicU64, out: &mut dyn Write) {
    for message in waiting {
        let Message::Line(line) = message else { continue };
        // A reader that went away may have been replaced by the next line, as a log's rotation does.
        let _read = out.write_all(&line);
        let lines = dropped.swap(0, Ordering::Relaxed);
        if 0 < lines {
            tracing::warn!(lines, "the log was not read fast enough, and lines of it are missing");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_nobody_reads_takes_every_line_and_keeps_the_first() {
        let (messages, waiting) = sync_channel(2);
        let mut log = Log { messages, dropped: Arc::default() };
        for line in ["one\n", "two\n", "three\n", "four\n"] {
            assert!(log.write_all(line.as_bytes()).is_ok());
        }
        assert_eq!(log.dropped.load(Ordering::Relaxed), 2);
        let dropped = Arc::clone(&log.dropped);
        drop(log);
        let mut written = Vec::new();
        write(&waiting, &dropped, &mut written);
        assert_eq!(String::from_utf8_lossy(&written), "one\ntwo\n");
        assert_eq!(dropped.load(Ordering::Relaxed), 0, "what is missing was told");
    }
}
