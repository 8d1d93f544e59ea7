//! The routes, and the life of a listening server: open, draining, closed.

use std::future::Future;
use std::io;
use std::time::Duration;

use axum::Router;
use axum::extract::OriginalUri;
use axum::http::{Method, StatusCode};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::auth::require_key;
use crate::connection::Patient;
use crate::error::ApiError;
use crate::openai::{chat, completions, models};
use crate::state::{Inner, ServerState, Shared};
use crate::{generate, health, metrics, observe, tokenize, ui};

/// How long to wait before accepting again when the system has no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// A request's head may be as long, and a connection buffers no more than this of its body or answer.
const HEAD_LIMIT_BYTES: usize = 64 << 10;
/// How often a draining server looks whether its requests are complete.
const DRAIN_POLL: Duration = Duration::from_millis(20);
/// How long connections may take to send what is left when all requests are complete.
const LAST_BYTES: Duration = Duration::from_secs(2);

/// A server that is not listening yet.
pub struct Server {
    state: Shared,
}

impl Server {
    /// A server for one model.
    #[must_use]
    pub fn new(state: ServerState) -> Self {
        Self { state: Inner::new(state) }
    }

    /// All routes.
    pub fn router(&self) -> Router {
        let key = from_fn_with_state(Shared::clone(&self.state), require_key);
        let observe = from_fn_with_state(Shared::clone(&self.state), observe::observe);
        guarded_routes()
            // What is not ours is guarded too: a stranger learns nothing from 404 and 405.
            .fallback(not_found)
            .method_not_allowed_fallback(method_not_allowed)
            .layer(key)
            .merge(open_routes().method_not_allowed_fallback(method_not_allowed))
            .layer(observe)
            .with_state(Shared::clone(&self.state))
    }

    /// Serves until `shutdown` completes and running requests have ended, or have had their time and failed.
    ///
    /// While it drains the server still listens, so that probes and balancers hear 503 rather than nothing.
    ///
    /// # Errors
    /// The listener is not bound. Once it listens, what goes wrong with one connection is no end for the others.
    pub async fn serve(self, listener: TcpListener, shutdown: impl Future<Output = ()>) -> io::Result<()> {
        tracing::info!(address = %listener.local_addr()?, "listening");
        let connections = GracefulShutdown::new();
        let drained = async {
            shutdown.await;
            self.state.drain().await;
        };
        tokio::select! {
            () = self.accept(&listener, &connections) => {}
            () = drained => {}
        }
        drop(listener);
        // Idle connections close at once, the others after the response they are in.
        if timeout(LAST_BYTES, connections.shutdown()).await.is_err() {
            tracing::warn!("connections were cut before their responses were complete");
        }
        Ok(())
    }

    /// Accepts connections for ever, each on a task of its own.
    async fn accept(&self, listener: &TcpListener, connections: &GracefulShutdown) {
        let mut http = http1::Builder::new();
        // Also how long a connection may be idle between two requests.
        http.timer(TokioTimer::new()).header_read_timeout(self.state.options.idle_timeout);
        http.max_buf_size(HEAD_LIMIT_BYTES);
        let service = TowerToHyperService::new(self.router());
        loop {
            let connection = match listener.accept().await {
                Ok((connection, _)) => connection,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            // A token is a small packet, and waiting for a second one to fill it is what Nagle's algorithm does.
            if let Err(error) = connection.set_nodelay(true) {
                tracing::debug!(%error, "a connection keeps Nagle's algorithm");
            }
            let connection = Patient::new(connection, self.state.options.write_timeout);
            let serving = http.serve_connection(TokioIo::new(connection), service.clone());
            let serving = connections.watch(serving);
            tokio::spawn(async move {
                if let Err(error) = serving.await {
                    tracing::debug!(%error, "a connection ended early");
                }
            });
        }
    }
}

impl Inner {
    /// Takes nothing new, and waits for what is there, but not forever.
    async fn drain(&self) {
        self.start_draining();
        let deadline = Instant::now() + self.options.drain_timeout;
        // A dead engine's requests have failed already, also those it never got to see.
        let engines = self.engine.engines();
        let live =
            || engines.iter().any(|engine| engine.health().alive() && 0 < engine.metrics().live_requests);
        while live() && Instant::now() < deadline {
            sleep_until(deadline.min(Instant::now() + DRAIN_POLL)).await;
        }
        if live() {
            // Whoever still waits is told why its answer ends, while its connection is open.
            let engine = self.engine.clone();
            let _ended = spawn_blocking(move || engine.shutdown(Duration::ZERO)).await;
        }
    }
}

/// The routes that want an API key, when there are keys.
fn guarded_routes() -> Router<Shared> {
    Router::new()
        .route("/generate", post(generate::generate))
        .route("/v1/completions", post(completions::create))
        .route("/v1/chat/completions", post(chat::create))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::get))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .route("/version", get(health::version))
        .route("/metrics", get(metrics::metrics))
}

/// The routes for everyone: probes, and the page, which asks its user for the key.
fn open_routes() -> Router<Shared> {
    Router::new()
        .route("/", get(ui::page))
        .route("/assets/{name}", get(ui::asset))
        .route("/health", get(health::health))
        .route("/health/live", get(health::live))
        .route("/health/ready", get(health::ready))
        .route("/ping", get(health::ping).post(health::ping))
}

/// 404 for paths that are none of ours.
async fn not_found(OriginalUri(uri): OriginalUri) -> ApiError {
    ApiError::transport(StatusCode::NOT_FOUND, format!("There is nothing at `{}`.", uri.path()))
}

/// What is not a route's method: `OPTIONS` is answered with the methods that are (axum adds `Allow`), others by 405.
async fn method_not_allowed(method: Method, OriginalUri(uri): OriginalUri) -> Response {
    if method == Method::OPTIONS {
        return StatusCode::NO_CONTENT.into_response();
    }
    let message = format!("`{}` does not take {method}; the header `Allow` says what it takes.", uri.path());
    ApiError::transport(StatusCode::METHOD_NOT_ALLOWED, message).into_response()
}
