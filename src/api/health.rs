//! Whether kennel is well, for whatever watches it.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};

use super::Api;
use super::wire::Health;

/// `GET /healthz`: 200 when the database answers within 2 s.
pub(super) async fn show(State(api): State<Arc<Api>>) -> Response {
    let (status, word) = match tokio::time::timeout(Duration::from_secs(2), api.store.ping()).await {
        Ok(Ok(())) => (StatusCode::OK, "ok"),
        Ok(Err(_)) | Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the database does not answer"),
    };
    (status, Json(Health { status: word.to_owned() })).into_response()
}
