//! Server-sent events: a generation turned into an API's chunks, one event each, ended by `[DONE]`.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::http::HeaderValue;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, Stream};
use phalanx_engine::{Delta, Usage};
use serde_json::Value;

use crate::generation::{Generation, Progress, total};

/// One API's wording of a stream.
pub(crate) trait Chunks: Send + 'static {
    /// The chunks that tell of one delta, which may be none.
    fn delta(&mut self, delta: Delta, out: &mut VecDeque<Value>);
    /// The chunks after the last delta.
    fn done(&mut self, usage: &Usage, out: &mut VecDeque<Value>);
}

/// Header that names fields without effect, for streams, whose chunks have no room for it.
const WARNINGS: &str = "x-phalanx-warnings";

/// The streamed response. A client that goes away drops it, and with it the generation, which aborts the requests.
pub(crate) fn respond(
    generation: Generation,
    chunks: impl Chunks,
    warnings: &[String],
    ping: Duration,
) -> Response {
    let keep_alive = KeepAlive::new().interval(ping).text("ping");
    let mut response = Sse::new(events(generation, chunks)).keep_alive(keep_alive).into_response();
    let headers = response.headers_mut();
    // Proxies of nginx's kind hold a response back to fill a buffer, unless told.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    if !warnings.is_empty() {
        // Escaped, because a field's name may hold any character and a header may not; cut, because a client may
        // send any number of fields.
        let ascii: String = warnings.join("; ").chars().flat_map(char::escape_default).take(4096).collect();
        if let Ok(value) = HeaderValue::from_str(&ascii) {
            headers.insert(WARNINGS, value);
        }
    }
    response
}

/// The events of a stream.
fn events(generation: Generation, chunks: impl Chunks) -> impl Stream<Item = Result<Event, Infallible>> {
    let running = Running { generation: Some(generation), chunks, pending: VecDeque::new(), done: false };
    stream::unfold(running, |mut running| async move {
        let data = running.next().await?;
        Some((Ok(Event::default().data(data)), running))
    })
}

/// A stream on its way.
struct Running<C> {
    /// Gone as soon as nothing more can come.
    generation: Option<Generation>,
    chunks: C,
    pending: VecDeque<Value>,
    done: bool,
}

impl<C: Chunks> Running<C> {
    /// The next event's data.
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(chunk) = self.pending.pop_front() {
                return Some(chunk.to_string());
            }
            let Some(generation) = &mut self.generation else {
                let first_time = !std::mem::replace(&mut self.done, true);
                return first_time.then(|| "[DONE]".to_owned());
            };
            match generation.next().await {
                Progress::Delta(delta) => self.chunks.delta(delta, &mut self.pending),
                Progress::Done(usages) => {
                    self.chunks.done(&total(&usages), &mut self.pending);
                    self.generation = None;
                }
                Progress::Failed(error) => {
                    // The status is long sent, so the error is an event, and the last one.
                    self.pending.push_back(error.body());
                    self.generation = None;
                    self.done = true;
                }
            }
        }
    }
}
