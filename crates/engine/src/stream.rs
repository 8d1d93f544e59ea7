//! A request's events, for tasks that poll and for threads that wait.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::task::{Context, Poll};

use futures_channel::mpsc::UnboundedReceiver;
use futures_core::Stream;
use futures_executor::block_on_stream;

use crate::output::Event;
use crate::run::{Command, RequestKey};
use crate::shared::Shared;

/// What happens to one request, ending with [`Event::Done`] or [`Event::Failed`].
///
/// Dropping it before that aborts the request: its blocks are free before the next step is scheduled. The channel
/// behind it has no bound of its own: it can never hold more than `n * max_new_tokens` deltas.
pub struct EventStream {
    pub(crate) key: RequestKey,
    pub(crate) events: UnboundedReceiver<Event>,
    pub(crate) commands: Sender<Command>,
    pub(crate) shared: Arc<Shared>,
    /// The last event was handed out.
    pub(crate) ended: bool,
}

impl EventStream {
    /// The events one after the other, waiting for each; for threads, never for tasks of an async runtime.
    pub fn blocking(self) -> impl Iterator<Item = Event> {
        block_on_stream(self)
    }
}

impl Stream for EventStream {
    type Item = Event;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        let stream = self.get_mut();
        if stream.ended {
            return Poll::Ready(None);
        }
        let event = match Pin::new(&mut stream.events).poll_next(context) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Some(event)) => event,
            // The loop let go of the request without a last word: it ended before it could read the submission.
            Poll::Ready(None) => Event::Failed(stream.shared.gone()),
        };
        stream.ended = matches!(event, Event::Done(_) | Event::Failed(_));
        Poll::Ready(Some(event))
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        if !self.ended {
            // A loop that is gone has nothing left to abort.
            let _gone = self.commands.send(Command::Abort(self.key));
        }
    }
}

impl fmt::Debug for EventStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EventStream({:?})", self.key)
    }
}
