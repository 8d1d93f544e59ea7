//! Is the server alive, and would a request sent now be answered?

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use phalanx_engine::{EngineHandle, Lifecycle};
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::state::{Inner, Shared};

/// `GET /health`, as vLLM has it: 200 without a body, or 503.
pub(crate) async fn health(State(state): State<Shared>) -> Response {
    match readiness(&state) {
        Ok(()) => StatusCode::OK.into_response(),
        Err(reason) => ApiError::unavailable(reason).into_response(),
    }
}

/// `GET /health/ready`: 503 while nothing new is taken, so that balancers send requests elsewhere.
pub(crate) async fn ready(State(state): State<Shared>) -> Response {
    match readiness(&state) {
        Ok(()) => Json(json!({ "status": "ready" })).into_response(),
        Err(reason) => ApiError::unavailable(reason).into_response(),
    }
}

/// `GET /health/live`: 503 when only a restart helps.
pub(crate) async fn live(State(state): State<Shared>) -> Response {
    match liveness(&state) {
        Ok(()) => Json(json!({ "status": "alive" })).into_response(),
        Err(reason) => ApiError::unavailable(reason).into_response(),
    }
}

/// `GET` and `POST /ping`, as load balancers of clouds ask.
pub(crate) async fn ping() -> StatusCode {
    StatusCode::OK
}

/// `GET /version`.
pub(crate) async fn version() -> Json<Value> {
    Json(json!({ "version": env!("CARGO_PKG_VERSION") }))
}

/// Why the server is not ready, if it is not.
fn readiness(state: &Inner) -> Result<(), String> {
    match state.draining() {
        true => Err("The server is shutting down.".to_owned()),
        false => liveness(state),
    }
}

/// Why the server is not alive, if it is not: every engine has ended, or waits for a step that does not come.
fn liveness(state: &Inner) -> Result<(), String> {
    let faults: Option<Vec<String>> =
        state.engine.engines().iter().map(|engine| fault(engine, state)).collect();
    match faults {
        None => Ok(()),
        Some(faults) => Err(faults.join(" ")),
    }
}

/// What is wrong with an engine.
fn fault(engine: &EngineHandle, state: &Inner) -> Option<String> {
    let health = engine.health();
    match health.lifecycle {
        Lifecycle::Dead(reason) => Some(format!("The engine ended: {reason}.")),
        Lifecycle::Stopped => Some("The engine was stopped.".to_owned()),
        Lifecycle::Running | Lifecycle::Draining => {
            let hangs = health.busy && state.options.hang_after < health.last_step_age;
            let seconds = health.last_step_age.as_secs();
            hangs.then(|| format!("The engine has waited for one step for {seconds} seconds."))
        }
    }
}
