//! Versions: what runs, what ran, and asking for one to go.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use tracing::info;

use super::Api;
use super::extract::{Asked, Segments, flag, id, limit};
use super::problem::{Advice, ApiError};
use super::wire::{DeploymentDetail, DeploymentInfo, TeardownAnswer};
use crate::model::DeploymentId;
use crate::store::{DeploymentView, Scope, TeardownAsked};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Query {
    project: Option<String>,
    #[serde(default, deserialize_with = "flag")]
    all: bool,
    #[serde(default = "limit_default", deserialize_with = "limit")]
    limit: u32,
}

fn limit_default() -> u32 {
    1000
}

/// `GET /deployments`.
pub(super) async fn list(
    State(api): State<Arc<Api>>,
    Asked(query): Asked<Query>,
) -> Result<Json<Vec<DeploymentInfo>>, ApiError> {
    let project = api.known_project(query.project.as_deref()).await?;
    let scope = if query.all { Scope::All } else { Scope::Current };
    let deployments = api.store.list_deployments(project.as_ref(), scope, query.limit).await?;
    Ok(Json(deployments.into_iter().map(|deployment| api.locate(deployment)).collect()))
}

/// `GET /deployments/<id>`.
pub(super) async fn show(
    State(api): State<Arc<Api>>,
    Segments(text): Segments<String>,
) -> Result<Json<DeploymentDetail>, ApiError> {
    let deployment = find(&api, id("deployment", &text)?).await?;
    let events = api.store.list_events(deployment.id).await?;
    let secrets = api.store.given_secrets(deployment.id).await?;
    Ok(Json(DeploymentDetail { info: api.locate(deployment), events, secrets }))
}

/// `POST /deployments/<id>/teardown`.
pub(super) async fn teardown(
    State(api): State<Arc<Api>>,
    Segments(text): Segments<String>,
) -> Result<(StatusCode, Json<TeardownAnswer>), ApiError> {
    let deployment = find(&api, id("deployment", &text)?).await?;
    let DeploymentView { id, project, branch, service, .. } = deployment;
    match api.store.ask_teardown(id, "an operator asked for it").await? {
        TeardownAsked::Asked => {}
        TeardownAsked::Unknown => return Err(no_such(id)),
        TeardownAsked::Ended => {
            let advice = Advice::new(format!("deployment {id} has ended already"));
            return Err(ApiError::Conflict(advice.hint("`kennel status` lists those that have not")));
        }
    }
    api.deployer.ring();
    info!(project.name = %project, deployment.id = %id, "An operator asked to tear {project}/{branch}/{service} down");
    Ok((StatusCode::ACCEPTED, Json(TeardownAnswer { deployment: id, project, branch, service })))
}

async fn find(api: &Api, id: DeploymentId) -> Result<DeploymentView, ApiError> {
    api.store.view_deployment(id).await?.ok_or_else(|| no_such(id))
}

fn no_such(id: DeploymentId) -> ApiError {
    let advice = Advice::new(format!("there is no deployment {id}"));
    ApiError::NoSuch(advice.hint("`kennel status` lists them"))
}

impl Api {
    /// The deployment with its URL.
    pub(super) fn locate(&self, deployment: DeploymentView) -> DeploymentInfo {
        let host = &deployment.host;
        let url = match self.config.load().router.http.port() {
            80 => format!("http://{host}"),
            port => format!("http://{host}:{port}"),
        };
        DeploymentInfo { deployment, url }
    }
}
