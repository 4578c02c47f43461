//! Lets the operator see everything, and ask for things by writing rows.
//!
//! One file per noun; [`wire`] is what goes over the line, [`problem`] what does when something is wrong, [`access`]
//! who may ask at all.
//!
//! **Invariant:** nothing here moves a build or a deployment that somebody works on: it writes requests and rings.

pub mod access;
pub mod problem;
pub mod wire;

mod builds;
mod certificates;
mod deployments;
mod extract;
mod gc;
mod health;
mod logs;
mod operator;
mod projects;
mod serve;

use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::Router;
use axum::extract::Request;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use tokio_util::sync::CancellationToken;

pub use access::{Access, Caller, GROUP};
pub use serve::{listen_unix, serve_tcp, serve_unix};

use crate::config::Config;
use crate::host::Machine;
use crate::store::Store;
use crate::wake::Bell;
use problem::ApiError;

/// Writes out what Prometheus reads.
pub type Metrics = Arc<dyn Fn() -> String + Send + Sync>;

/// What the API works with.
#[derive(Clone)]
pub struct Api {
    /// The rows.
    pub store: Store,
    /// The machine: its disk is looked at, and what nothing keeps is freed.
    pub machine: Arc<dyn Machine>,
    /// The daemon's file; a reload swaps it.
    pub config: Arc<ArcSwap<Config>>,
    /// Where each build has a directory of its logs: `<state_dir>/logs`.
    pub logs: PathBuf,
    /// Who may ask.
    pub access: Arc<Access>,
    /// Rung when a build is queued or to be cancelled.
    pub builder: Bell,
    /// Rung when a target is to be torn down.
    pub deployer: Bell,
    /// What `/metrics` shows.
    pub metrics: Metrics,
    /// Ends what follows a log.
    pub shutdown: CancellationToken,
}

/// The operator's API. Whoever serves it puts a [`Caller`] into each request; without one it came from outside.
pub fn router(api: Api) -> Router {
    let door = Arc::new(access::Door::new(api.access.clone()));
    Router::new()
        .route("/builds", get(builds::list))
        .route("/builds/{id}", get(builds::show))
        .route("/builds/{id}/cancel", post(builds::cancel))
        .route("/builds/{id}/logs", get(logs::list))
        .route("/builds/{id}/logs/{name}", get(logs::show))
        .route("/deployments", get(deployments::list))
        .route("/deployments/{id}", get(deployments::show))
        .route("/deployments/{id}/teardown", post(deployments::teardown))
        .route("/certificates", get(certificates::list))
        .route("/projects", get(projects::list))
        .route("/projects/{name}/deploy", post(projects::deploy))
        .route("/gc", get(gc::plan).post(gc::free))
        .route("/metrics", get(health::metrics))
        .route("/healthz", get(health::show))
        .fallback(async |request: Request| ApiError::NoPage(format!("`{}`", request.uri().path())))
        .method_not_allowed_fallback(async |request: Request| ApiError::WrongMethod(request.method().to_string()))
        .layer(from_fn_with_state(door, access::guard))
        .with_state(Arc::new(api))
}

#[cfg(test)]
mod tests;
