//! Whether kennel is well, and what it counts, for whatever watches it.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
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

/// `GET /metrics`: what Prometheus reads.
pub(super) async fn metrics(State(api): State<Arc<Api>>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], (api.metrics)()).into_response()
}
