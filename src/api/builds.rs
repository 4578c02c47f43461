//! Builds: what was made of which commit, and asking for one to stop.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use tracing::info;

use super::Api;
use super::extract::{Asked, Segments, flag, id, limit};
use super::problem::{Advice, ApiError};
use super::wire::{BuildDetail, CancelAnswer};
use crate::host::disk::shortage;
use crate::model::{BuildId, BuildState};
use crate::store::{BuildView, Scope};

/// How long `?wait=1` waits for a running build to be stopped.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// How often a waiting request looks at the database.
pub(super) const POLL: Duration = Duration::from_millis(200);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Query {
    project: Option<String>,
    #[serde(default, deserialize_with = "flag")]
    current: bool,
    #[serde(default = "limit_default", deserialize_with = "limit")]
    limit: u32,
}

fn limit_default() -> u32 {
    50
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CancelQuery {
    #[serde(default, deserialize_with = "flag")]
    wait: bool,
}

/// `GET /builds`: newest first; with `?current=1` those that have not ended and the newest of each branch.
pub(super) async fn list(
    State(api): State<Arc<Api>>,
    Asked(query): Asked<Query>,
) -> Result<Json<Vec<BuildView>>, ApiError> {
    let project = api.known_project(query.project.as_deref()).await?;
    let scope = if query.current { Scope::Current } else { Scope::All };
    let mut builds = api.store.list_builds(project.as_ref(), scope, query.limit).await?;
    api.explain_waiting(&mut builds).await;
    Ok(Json(builds))
}

/// `GET /builds/<id>`.
pub(super) async fn show(
    State(api): State<Arc<Api>>,
    Segments(text): Segments<String>,
) -> Result<Json<BuildDetail>, ApiError> {
    let mut build = find(&api, id("build", &text)?).await?;
    api.explain_waiting(std::slice::from_mut(&mut build)).await;
    let artifacts = api.store.list_artifacts(build.id).await?;
    let pushes = api.store.list_pushes(build.id).await?;
    let deployments = api.store.list_deployments(None, Scope::OfBuild(build.id), u32::MAX).await?;
    let deployments = deployments.into_iter().map(|deployment| api.locate(deployment)).collect();
    Ok(Json(BuildDetail { build, artifacts, pushes, deployments }))
}

/// `POST /builds/<id>/cancel`: at once for a queued build; a running one is stopped soon, or, with `?wait=1`, by the
/// time of the answer.
pub(super) async fn cancel(
    State(api): State<Arc<Api>>,
    Segments(text): Segments<String>,
    Asked(query): Asked<CancelQuery>,
) -> Result<(StatusCode, Json<CancelAnswer>), ApiError> {
    let build = id("build", &text)?;
    let before = api.store.cancel_build(build, "cancelled by an operator").await?;
    let mut state = match before {
        None => return Err(no_such(build)),
        Some(BuildState::Queued) => BuildState::Cancelled,
        Some(BuildState::Building) => BuildState::Building,
        Some(ended @ (BuildState::Success | BuildState::Failed | BuildState::Cancelled | BuildState::Superseded)) => {
            let advice = Advice::new(format!("build {build} has ended already: it is `{ended}`"));
            return Err(ApiError::Conflict(advice));
        }
    };
    api.builder.ring();
    info!(build.id = %build, "An operator cancelled build {build}");
    let deadline = tokio::time::Instant::now() + WAIT_MAX;
    while query.wait && !state.is_terminal() && tokio::time::Instant::now() < deadline && !api.shutdown.is_cancelled() {
        tokio::time::sleep(POLL / 4).await;
        state = find(&api, build).await?.state;
    }
    Ok((StatusCode::ACCEPTED, Json(CancelAnswer { build, state })))
}

impl Api {
    /// Has queued builds say that they wait for room on disk, when they do.
    async fn explain_waiting(&self, builds: &mut [BuildView]) {
        if !builds.iter().any(|build| build.state == BuildState::Queued) {
            return;
        }
        // A disk that cannot be looked at is the builder's to complain of.
        let Ok(spaces) = self.machine.disk_space().await else { return };
        let Some(shortage) = shortage(&spaces, self.config.load().builder.min_free) else { return };
        for build in builds.iter_mut().filter(|build| build.state == BuildState::Queued) {
            build.reason = Some(format!("it waits for room on disk: {shortage}"));
        }
    }
}

/// The build, or a 404.
pub(super) async fn find(api: &Api, id: BuildId) -> Result<BuildView, ApiError> {
    api.store.view_build(id).await?.ok_or_else(|| no_such(id))
}

fn no_such(id: BuildId) -> ApiError {
    let advice = Advice::new(format!("there is no build {id}"));
    ApiError::NoSuch(advice.hint("`kennel builds` lists them"))
}
