//! Several replicas behind one door: each request goes where the fewest tokens are outstanding.

use std::time::Duration;

use crate::handle::EngineHandle;
use crate::output::RequestError;
use crate::request::Request;
use crate::stream::EventStream;

/// Data parallelism: engines that serve the same model, of which there is at least one.
#[derive(Clone, Debug)]
pub struct Router {
    engines: Vec<EngineHandle>,
}

impl From<EngineHandle> for Router {
    fn from(engine: EngineHandle) -> Self {
        Self { engines: vec![engine] }
    }
}

impl Router {
    /// Routes over `engines`, of which there is at least one.
    #[must_use]
    pub fn new(engines: Vec<EngineHandle>) -> Self {
        assert!(!engines.is_empty(), "a router has at least one engine");
        Self { engines }
    }

    /// The engines, for health and metrics, in the order given.
    #[must_use]
    pub fn engines(&self) -> &[EngineHandle] {
        &self.engines
    }

    /// Submits to the living engine with the fewest outstanding tokens; when it is full, to the next.
    ///
    /// # Errors
    /// As [`EngineHandle::submit`]; overloaded when all living engines are.
    pub fn submit(&self, request: Request) -> Result<EventStream, RequestError> {
        let alive = self.engines.iter().filter(|engine| engine.health().alive());
        let mut order: Vec<&EngineHandle> = alive.collect();
        order.sort_by_key(|engine| engine.outstanding_tokens());
        // With no engine alive the first one says why.
        let Some((last, others)) = order.split_last() else { return self.engines[0].submit(request) };
        for engine in others {
            match engine.offer(request.clone()) {
                Err(RequestError::Overloaded(_) | RequestError::EngineGone(_)) => {}
                answer => return answer,
            }
        }
        last.submit(request)
    }

    /// Whether at least one engine is alive.
    #[must_use]
    pub fn alive(&self) -> bool {
        self.engines.iter().any(|engine| engine.health().alive())
    }

    /// Tokens of the longest sequence.
    #[must_use]
    pub fn max_model_len(&self) -> usize {
        self.engines[0].max_model_len()
    }

    /// Shuts all engines down at the same time; see [`EngineHandle::shutdown`].
    pub fn shutdown(&self, grace: Duration) -> bool {
        std::thread::scope(|scope| {
            let engines = self.engines.iter();
            let waiting: Vec<_> = engines.map(|engine| scope.spawn(move || engine.shutdown(grace))).collect();
            waiting.into_iter().all(|thread| thread.join().expect("a shutdown does not panic"))
        })
    }
}
