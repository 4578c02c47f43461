//! Verifies a forge's delivery and records what it asks for, then answers.
//!
//! The signature is checked over the raw bytes before anything of them is parsed, and the answer comes after the
//! commit: what was acknowledged is on the disk.
//!
//! **Invariant:** nothing is recorded of a delivery whose signature does not verify.

pub mod headers;
pub mod payload;
pub mod signature;

mod json;

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use secrecy::SecretString;
use tracing::{error, info, warn};

use crate::config::{self, Forks, ProjectConfig};
use crate::crash::{self, Point};
use crate::model::{BranchRef, BuildId, ProjectName};
use crate::store::{Accepted, Delivery, Push, Removal, Store, StoreError};
use crate::telemetry::chain;
use crate::wake::Bell;
use payload::Ask;

/// The largest delivery, in bytes: what GitHub sends at most.
const BODY_MAX: usize = 25 * 1024 * 1024;

/// The webhook secrets in use, by project; replaced whole on reload.
pub type Secrets = Arc<ArcSwap<HashMap<ProjectName, SecretString>>>;

/// What the webhook works with.
#[derive(Clone)]
pub struct Webhook {
    /// The rows.
    pub store: Store,
    /// The daemon's file.
    pub config: config::Shared,
    /// What deliveries are signed with.
    pub secrets: Secrets,
    /// The builder's bell.
    pub builder: Bell,
    /// The deployer's bell.
    pub deployer: Bell,
}

/// Why a delivery was not accepted.
enum Refusal {
    UnknownProject(String),
    TooLarge,
    Unreadable,
    Signature(signature::SignatureError),
    MediaType,
    Headers(headers::HeaderFault),
    Malformed(payload::PayloadFault),
    Store(StoreError),
}

/// `POST /webhook/<project>`.
pub fn router(webhook: Webhook) -> axum::Router {
    axum::Router::new().route("/webhook/{project}", post(receive)).with_state(webhook)
}

async fn receive(
    State(webhook): State<Webhook>,
    Path(project): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    match accept(&webhook, &project, &headers, body).await {
        Ok(answer) => answer,
        Err(refusal) => refuse(&project, &headers, &refusal),
    }
}

async fn accept(webhook: &Webhook, project: &str, headers: &HeaderMap, body: Body) -> Result<Response, Refusal> {
    let config = webhook.config.load_full();
    let secrets = webhook.secrets.load();
    let known = project.parse::<ProjectName>().ok().and_then(|name| {
        let project = config.projects.get(&name)?;
        Some((project, secrets.get(&name)?))
    });
    let Some((project, secret)) = known else { return Err(Refusal::UnknownProject(project.to_owned())) };

    let body = match Limited::new(body, BODY_MAX).collect().await {
        Ok(body) => body.to_bytes(),
        Err(err) if err.downcast_ref::<LengthLimitError>().is_some() => return Err(Refusal::TooLarge),
        Err(_) => return Err(Refusal::Unreadable),
    };
    signature::verify(project.repo_type, headers, secret, &body).map_err(Refusal::Signature)?;

    let encoding = headers::Encoding::of(headers).ok_or(Refusal::MediaType)?;
    let delivery = headers::delivery(project.repo_type, headers).map_err(Refusal::Headers)?;
    let json = encoding.json(&body).map_err(Refusal::Malformed)?;
    let ask = payload::parse(&delivery.event, &json).map_err(Refusal::Malformed)?;
    let delivery = Delivery { id: delivery.id, event: delivery.event };
    crash::point(Point::DeliveryVerified);
    carry_out(webhook, project, &delivery, ask).await.map_err(Refusal::Store)
}

async fn carry_out(
    webhook: &Webhook,
    project: &ProjectConfig,
    delivery: &Delivery,
    ask: Ask,
) -> Result<Response, StoreError> {
    let (branch, reason) = match ask {
        Ask::Nothing { why } => return Ok(nothing(&why)),
        Ask::Build { branch, commit, title, author: _, from_fork } => {
            if from_fork && project.forks == Forks::Deny {
                return Ok(nothing("pull requests from forks do not build here; the operator has not allowed them"));
            }
            if !project.wants(&branch) {
                return Ok(nothing(&format!("`{}` is not among the branches that deploy", branch.name())));
            }
            let environment = project.environment(&branch);
            let push = Push { project: project.name.clone(), branch, commit, title, environment };
            let accepted = webhook.store.accept_push(Some(delivery), &push).await?;
            crash::point(Point::DeliveryStored);
            webhook.builder.ring();
            return Ok(queued(accepted, &push));
        }
        Ask::BranchGone { branch } => (branch, "its branch was deleted"),
        Ask::PullClosed { branch } => (branch, "its pull request was closed"),
    };
    if is_default(project, &branch) {
        return Ok(nothing("the default branch is torn down by the operator only"));
    }
    let removal = Removal { project: project.name.clone(), branch, reason: reason.to_owned() };
    let accepted = webhook.store.accept_removal(Some(delivery), &removal).await?;
    crash::point(Point::RemovalStored);
    webhook.builder.ring();
    webhook.deployer.ring();
    Ok(match accepted {
        Accepted::Removing => {
            info!(
                project.name = %project.name, branch.name = %removal.branch.name(),
                "Tearing {} of {} down: {reason}", removal.branch.name(), project.name
            );
            answer(StatusCode::ACCEPTED, None, &format!("tearing `{}` down", removal.branch.name()))
        }
        Accepted::Redelivered(_) => nothing("this delivery came before"),
        Accepted::NothingThere | Accepted::Queued(_) | Accepted::AlreadyBuilding(_) => {
            nothing(&format!("kennel has nothing of `{}`", removal.branch.name()))
        }
    })
}

fn is_default(project: &ProjectConfig, branch: &BranchRef) -> bool {
    !branch.is_pull() && branch.name() == project.default_branch
}

fn queued(accepted: Accepted, push: &Push) -> Response {
    let branch = push.branch.name();
    match accepted {
        Accepted::Queued(build) => {
            info!(
                project.name = %push.project, branch.name = %branch, build.id = %build, commit.sha = %push.commit,
                "Queued build {build} of {} from {branch}", push.project
            );
            answer(StatusCode::ACCEPTED, Some(build), "queued")
        }
        Accepted::AlreadyBuilding(build) => answer(StatusCode::OK, Some(build), "this commit is being built already"),
        Accepted::Redelivered(Some(build)) => answer(StatusCode::OK, Some(build), "this delivery came before"),
        Accepted::Redelivered(None) | Accepted::Removing | Accepted::NothingThere => {
            nothing("this delivery came before")
        }
    }
}

fn nothing(why: &str) -> Response {
    answer(StatusCode::OK, None, why)
}

fn answer(status: StatusCode, build: Option<BuildId>, message: &str) -> Response {
    let mut body = serde_json::json!({ "message": message });
    if let Some(build) = build {
        body["build"] = build.0.into();
    }
    (status, Json(body)).into_response()
}

/// One status and one sentence for each refusal; the log gets who and why.
fn refuse(project: &str, headers: &HeaderMap, refusal: &Refusal) -> Response {
    let delivery = delivery_for_log(headers);
    let (status, detail) = match refusal {
        Refusal::UnknownProject(name) => (StatusCode::NOT_FOUND, format!("there is no project {name:?} here")),
        Refusal::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "the body is larger than 25 MB".to_owned()),
        Refusal::Unreadable => (StatusCode::BAD_REQUEST, "the body did not arrive whole".to_owned()),
        Refusal::Signature(err) => (StatusCode::UNAUTHORIZED, err.to_string()),
        Refusal::MediaType => (
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "the body must be `application/json` or `application/x-www-form-urlencoded`".to_owned(),
        ),
        Refusal::Headers(fault) => (StatusCode::BAD_REQUEST, fault.to_string()),
        Refusal::Malformed(fault) => (StatusCode::BAD_REQUEST, fault.to_string()),
        Refusal::Store(err) => {
            error!(project.name = project, delivery.id = delivery, error = %chain(err), "Could not record delivery {delivery}");
            let body = problem(StatusCode::SERVICE_UNAVAILABLE, "the delivery could not be recorded; send it again");
            return ([(header::RETRY_AFTER, "30")], body).into_response();
        }
    };
    warn!(project.name = project, delivery.id = delivery, "Refused delivery {delivery} for {project:?}: {detail}");
    problem(status, &detail).into_response()
}

/// What an unverified delivery calls itself, cut to what a log line can bear.
fn delivery_for_log(headers: &HeaderMap) -> String {
    let named = ["x-forgejo-delivery", "x-gitea-delivery", "x-github-delivery"];
    let value = named.iter().find_map(|name| headers.get(*name)).and_then(|value| value.to_str().ok());
    value.unwrap_or("without an id").chars().take(64).collect()
}

/// RFC 9457.
fn problem(status: StatusCode, detail: &str) -> impl IntoResponse {
    let body = serde_json::json!({
        "type": "about:blank",
        "title": status.canonical_reason().unwrap_or("Error"),
        "status": status.as_u16(),
        "detail": detail,
    });
    (status, [(header::CONTENT_TYPE, "application/problem+json")], body.to_string())
}
