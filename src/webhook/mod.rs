//! Verifies a forge's delivery and records what it asks for, then answers.
//!
//! The signature is checked over the raw bytes before anything of them is parsed, and the answer comes after the
//! commit: what was acknowledged is on the disk.
//!
//! What is cheap comes first: size, form of the signature, and whether its source has sent too much that was not
//! signed. Such a source is told to wait before its bodies are read, unless they are so small that reading them is no
//! dearer than refusing them: a good delivery is never held up for what others send from the same address.
//!
//! **Invariant:** nothing is recorded of a delivery whose signature does not verify.

pub mod headers;
pub mod payload;
pub mod signature;

mod bodies;
mod json;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use axum::body::Body;
use axum::extract::{ConnectInfo, Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, Json};

use secrecy::SecretString;
use tokio::sync::Semaphore;
use tracing::{error, info, warn};

use crate::config::{self, Forks, ProjectConfig};
use crate::crash::{self, Point};
use crate::model::{BranchRef, BuildId, ProjectName};
use crate::places::Source;
use crate::places::offenders::{self, Offenders};
use crate::store::{Accepted, Delivery, Push, Removal, Store, StoreError};
use crate::telemetry::chain;
use crate::wake::Bell;
use bodies::{Bodies, BodyFault, Bounds};
use payload::Ask;

/// What a delivery's body may be like: as large as GitHub sends them, in the time forges wait for an answer.
const BOUNDS: Bounds = Bounds { bytes: 25 * 1024 * 1024, time: Duration::from_secs(10) };
/// The same for a source that is over its allowance.
const SUSPECT_BOUNDS: Bounds = Bounds { bytes: 64 * 1024, time: Duration::from_secs(2) };
/// How many deliveries of such sources are read at a time.
const SUSPECTS_MAX: usize = 64;
/// When a delivery that found no room is to be sent again, in seconds.
const CROWDED_RETRY_SECS: u64 = 5;

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
    UnknownProject,
    Body(BodyFault),
    Limited,
    Signature(signature::SignatureError),
    MediaType,
    Headers(headers::HeaderFault),
    Malformed(payload::PayloadFault),
    Store(StoreError),
}

/// The webhook, and what it remembers of its callers.
struct Door {
    webhook: Webhook,
    offenders: Offenders,
    bodies: Bodies,
    suspects: Semaphore,
}

/// `POST /webhook/<project>`. Whoever serves it puts the caller's address into each request, as a [`ConnectInfo`].
pub fn router(webhook: Webhook) -> axum::Router {
    let door = Door {
        webhook,
        offenders: Offenders::default(),
        bodies: Bodies::default(),
        suspects: Semaphore::new(SUSPECTS_MAX),
    };
    axum::Router::new().route("/webhook/{project}", post(receive)).with_state(Arc::new(door))
}

async fn receive(
    State(door): State<Arc<Door>>,
    peer: Option<Extension<ConnectInfo<SocketAddr>>>,
    Path(project): Path<String>,
    headers: HeaderMap,
    mut body: Body,
) -> Response {
    let source = Source::of(peer.map(|Extension(ConnectInfo(peer))| peer.ip()));
    let answer = match accept(&door, source, &project, &headers, &mut body).await {
        Ok(answer) => answer,
        Err(refusal) => refuse(&door, source, &project, &headers, &refusal),
    };
    if answer.status().is_client_error() && answer.status() != StatusCode::TOO_MANY_REQUESTS {
        door.bodies.throw_away(body);
    }
    answer
}

async fn accept(
    door: &Door,
    source: Source,
    project: &str,
    headers: &HeaderMap,
    body: &mut Body,
) -> Result<Response, Refusal> {
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if length.is_some_and(|length| length > BOUNDS.bytes) {
        return Err(Refusal::Body(BodyFault::TooLarge));
    }
    let webhook = &door.webhook;
    let config = webhook.config.load_full();
    let secrets = webhook.secrets.load_full();
    let known = project.parse::<ProjectName>().ok().and_then(|name| {
        let project = config.projects.get(&name)?;
        Some((project, secrets.get(&name)?))
    });
    let Some((project, secret)) = known else { return Err(Refusal::UnknownProject) };
    signature::read(project.repo_type, headers).map_err(Refusal::Signature)?;

    let is_suspect = door.offenders.limited(source, Instant::now()).is_some();
    let bounds = if is_suspect { SUSPECT_BOUNDS } else { BOUNDS };
    let _place = if is_suspect {
        // A body of unknown length is one more that is not worth reading.
        length.filter(|&length| length <= bounds.bytes).ok_or(Refusal::Limited)?;
        Some(door.suspects.try_acquire().map_err(|_| Refusal::Limited)?)
    } else {
        None
    };
    let body = door.bodies.receive(source, body, bounds).await.map_err(Refusal::Body)?;
    signature::verify(project.repo_type, headers, secret, &body.bytes).map_err(Refusal::Signature)?;

    let encoding = headers::Encoding::of(headers).ok_or(Refusal::MediaType)?;
    let delivery = headers::delivery(project.repo_type, headers).map_err(Refusal::Headers)?;
    let json = encoding.json(&body.bytes).map_err(Refusal::Malformed)?;
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
fn refuse(door: &Door, source: Source, project: &str, headers: &HeaderMap, refusal: &Refusal) -> Response {
    let now = Instant::now();
    let (project, delivery) = (shortened(project), delivery_for_log(headers));
    let unavailable = |secs: u64, detail: &str| {
        ([(header::RETRY_AFTER, secs.to_string())], problem(StatusCode::SERVICE_UNAVAILABLE, detail)).into_response()
    };
    let (status, detail) = match refusal {
        Refusal::UnknownProject => (StatusCode::NOT_FOUND, format!("there is no project {project:?} here")),
        Refusal::Limited => (StatusCode::TOO_MANY_REQUESTS, "too many before it were not signed".to_owned()),
        Refusal::Body(BodyFault::TooLarge) => {
            (StatusCode::PAYLOAD_TOO_LARGE, "the body is larger than 25 MB".to_owned())
        }
        Refusal::Body(BodyFault::Slow) => {
            (StatusCode::REQUEST_TIMEOUT, format!("the body did not arrive within {} s", BOUNDS.time.as_secs()))
        }
        Refusal::Body(BodyFault::Broken) => (StatusCode::BAD_REQUEST, "the body did not arrive whole".to_owned()),
        Refusal::Signature(err) => (StatusCode::UNAUTHORIZED, err.to_string()),
        Refusal::Body(BodyFault::Crowded) => {
            if let Some(untold) = door.offenders.mention(source, now) {
                warn!(
                    project.name = project, delivery.id = delivery, source = %source, untold,
                    "Had no room for delivery {delivery} for {project:?} from {source}"
                );
            }
            return unavailable(CROWDED_RETRY_SECS, "kennel is receiving too much at the moment; send it again");
        }
        Refusal::MediaType => {
            let detail = "the body must be `application/json` or `application/x-www-form-urlencoded`".to_owned();
            return misunderstood(&project, &delivery, StatusCode::UNSUPPORTED_MEDIA_TYPE, &detail);
        }
        Refusal::Headers(fault) => return misunderstood(&project, &delivery, StatusCode::BAD_REQUEST, fault),
        Refusal::Malformed(fault) => return misunderstood(&project, &delivery, StatusCode::BAD_REQUEST, fault),
        Refusal::Store(err) => {
            error!(project.name = project, delivery.id = delivery, error = %chain(err), "Could not record delivery {delivery}");
            return match err.is_out_of_room() {
                true => unavailable(30, "there is no room on disk to record the delivery; send it again"),
                false => unavailable(30, "the delivery could not be recorded; send it again"),
            };
        }
    };
    let charge = door.offenders.charge(source, now);
    if let Some(untold) = charge.log {
        let before = offenders::before(untold);
        warn!(
            project.name = project, delivery.id = delivery, source = %source, untold,
            "Refused delivery {delivery} for {project:?} from {source}: {detail}{before}"
        );
    }
    let Some(limited) = charge.limited else { return problem(status, &detail).into_response() };
    let secs = limited.as_secs() + 1;
    let detail = format!("too many deliveries from {source} were not signed; send this one again in {secs} s");
    let body = problem(StatusCode::TOO_MANY_REQUESTS, &detail);
    ([(header::RETRY_AFTER, secs.to_string())], body).into_response()
}

/// Refuses what was signed as it should be: whoever holds the secret may fill the log.
fn misunderstood(project: &str, delivery: &str, status: StatusCode, detail: &dyn std::fmt::Display) -> Response {
    warn!(project.name = project, delivery.id = delivery, "Refused delivery {delivery} for {project:?}: {detail}");
    problem(status, &detail.to_string()).into_response()
}

/// What an unverified delivery calls itself, cut to what a log line can bear.
fn delivery_for_log(headers: &HeaderMap) -> String {
    let named = ["x-forgejo-delivery", "x-gitea-delivery", "x-github-delivery"];
    let value = named.iter().find_map(|name| headers.get(*name)).and_then(|value| value.to_str().ok());
    shortened(value.unwrap_or("without an id"))
}

fn shortened(text: &str) -> String {
    text.chars().take(64).collect()
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
