//! `/v1/models`: the one model there is, under each of its names.

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::state::{ModelCard, Shared};

/// `GET /v1/models`.
pub(crate) async fn list(State(state): State<Shared>) -> Json<Value> {
    let names = std::iter::once(&state.model.id).chain(&state.model.aliases);
    let cards: Vec<Value> = names.map(|name| card(&state.model, name)).collect();
    Json(json!({ "object": "list", "data": cards }))
}

/// `GET /v1/models/{id}`; ids hold slashes, which clients encode or do not.
pub(crate) async fn get(
    State(state): State<Shared>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    state.check_model(Some(&id))?;
    Ok(Json(card(&state.model, &id)))
}

/// OpenAI's model object with vLLM's additions.
fn card(model: &ModelCard, name: &str) -> Value {
    json!({
        "id": name, "object": "model", "created": model.created, "owned_by": "phalanx",
        "root": model.id, "parent": null, "max_model_len": model.max_model_len,
    })
}
