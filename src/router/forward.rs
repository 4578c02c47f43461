//! One exchange with a service: send the request, pass on what comes back.
//!
//! **Invariant:** nothing here knows routes, follows a redirect, or holds a body.

use std::sync::Arc;
use std::time::Duration;

use http::header;
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::body::{Body as _, Incoming};
use hyper::upgrade::OnUpgrade;
use tokio::time::Instant;

use super::Timeouts;
use super::body::{Body, Phase, Progress, RequestBody, UpstreamBody};
use super::headers;
use super::pages::Problem;
use super::upstream::{Claim, Lease};

/// What a visitor asks of a service, its head cleaned.
#[derive(Debug)]
pub(super) struct Exchange {
    /// The head, as the service is to see it.
    pub(super) parts: Parts,
    /// The body.
    pub(super) body: Incoming,
    /// The protocol the visitor wants to switch to.
    pub(super) upgrade: Option<HeaderValue>,
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Outcome {
    /// An answer, to be passed on.
    Answer(Response<Body>),
    /// The service switches protocols: once the answer is out, the two connections become one.
    Switch(Response<Body>, Switch),
}

/// Two connections to be joined.
#[derive(Debug)]
pub(super) struct Switch {
    /// Held while they are joined.
    pub(super) claim: Claim,
    /// The service's side.
    pub(super) service: OnUpgrade,
    /// Whether what passes are the frames of RFC 6455.
    pub(super) websocket: bool,
}

/// Sends the exchange to the service that `claim` leads to.
///
/// # Errors
/// When there is no answer to pass on.
pub(super) async fn forward(claim: Claim, exchange: Exchange, timeouts: &Timeouts) -> Result<Outcome, Problem> {
    let Exchange { mut parts, body, upgrade } = exchange;
    // An upgrade with a body would leave open where the body ends and the new protocol begins.
    let upgrade = upgrade.filter(|_| body.is_end_stream());
    if let Some(protocol) = &upgrade {
        parts.headers.insert(header::UPGRADE, protocol.clone());
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
    parts.version = Version::HTTP_11;
    let (body, progress) = RequestBody::new(body, timeouts.idle);
    let replayable = matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS) && body.is_end_stream();

    let mut lease = match claim.reuse(!replayable) {
        Some(lease) => lease,
        None => connect(&claim, timeouts).await?,
    };
    let spare = (replayable && lease.reused).then(|| parts.clone());
    let mut sent = send(&claim, &mut lease, Request::from_parts(parts, body), &progress, timeouts).await;
    if let Err(Failure::Lost(unsent)) = &mut sent
        && lease.reused
        && !lease.heard()
        && progress.phase() != Phase::Broken
    {
        // The service had closed the idle connection. Only what it cannot have acted upon, or what may be
        // repeated, is sent again: once, and over a connection that has not been idle.
        let again =
            unsent.take().or_else(|| spare.map(|parts| Box::new(Request::from_parts(parts, RequestBody::empty()))));
        if let Some(request) = again {
            lease = connect(&claim, timeouts).await?;
            sent = send(&claim, &mut lease, *request, &progress, timeouts).await;
        }
    }
    let response = sent.map_err(|failure| problem(&claim, failure, &progress))?;
    answer(response, claim, lease, upgrade, timeouts)
}

/// Why there is no head of an answer.
#[derive(Debug)]
enum Failure {
    /// The connection broke; with the request, if none of it was sent.
    Lost(Option<Box<Request<RequestBody>>>),
    /// The service was silent for too long.
    Silent,
    /// The drain is over.
    Cut,
}

async fn connect(claim: &Claim, timeouts: &Timeouts) -> Result<Lease, Problem> {
    let deployment = claim.deployment();
    claim.connect(timeouts.connect).await.map_err(|err| {
        tracing::warn!(deployment.id = %deployment, error = %err, "Cannot connect to deployment {deployment}");
        if err.kind() == std::io::ErrorKind::TimedOut { Problem::Silent } else { Problem::Refused }
    })
}

async fn send(
    claim: &Claim,
    lease: &mut Lease,
    request: Request<RequestBody>,
    progress: &Arc<Progress>,
    timeouts: &Timeouts,
) -> Result<Response<Incoming>, Failure> {
    let deployment = claim.deployment();
    tokio::select! {
        biased;
        sent = lease.sender.try_send_request(request) => sent.map_err(|mut err| {
            tracing::debug!(deployment.id = %deployment, error = %err.error(), "Lost the connection to {deployment}");
            Failure::Lost(err.take_message().map(Box::new))
        }),
        () = silence(progress, timeouts) => Err(Failure::Silent),
        () = claim.cut() => Err(Failure::Cut),
    }
}

/// Resolves once the service has kept the visitor waiting for too long: for room to send, or for an answer.
async fn silence(progress: &Progress, timeouts: &Timeouts) {
    loop {
        let deadline = match progress.phase() {
            Phase::Ended => progress.since() + timeouts.response_header,
            Phase::Passing => progress.since() + timeouts.idle,
            Phase::Awaiting | Phase::Broken | Phase::Silent => Instant::now() + timeouts.idle,
        };
        if deadline <= Instant::now() {
            return;
        }
        tokio::time::sleep_until(deadline).await;
    }
}

fn problem(claim: &Claim, failure: Failure, progress: &Progress) -> Problem {
    let deployment = claim.deployment();
    let (problem, what) = match (progress.phase(), failure) {
        // The visitor's fault, though it shows as a request that could not be sent.
        (Phase::Broken, _) => return Problem::BadRequest("The request's body broke off, or is not valid."),
        (Phase::Silent, _) => return Problem::VisitorSilent,
        (_, Failure::Silent) => (Problem::Silent, "gave no answer in time"),
        (_, Failure::Lost(_)) => (Problem::Broken, "broke off before it answered"),
        (_, Failure::Cut) => (Problem::Broken, "was cut before it answered, when its drain ended"),
    };
    tracing::warn!(deployment.id = %deployment, "Deployment {deployment} {what}");
    problem
}

fn answer(
    mut response: Response<Incoming>,
    claim: Claim,
    lease: Lease,
    upgrade: Option<HeaderValue>,
    timeouts: &Timeouts,
) -> Result<Outcome, Problem> {
    let switched = response.headers().get(header::UPGRADE).cloned();
    let service = hyper::upgrade::on(&mut response);
    let (mut parts, body) = response.into_parts();
    headers::clean_response(&mut parts.headers);
    parts.version = Version::HTTP_11;
    if parts.status == StatusCode::SWITCHING_PROTOCOLS {
        let (Some(wanted), Some(switched)) = (upgrade, switched) else {
            return Err(Problem::Broken);
        };
        let websocket = headers::is_websocket(&switched);
        if websocket != headers::is_websocket(&wanted) {
            return Err(Problem::Broken);
        }
        parts.headers.insert(header::UPGRADE, switched);
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        let response = Response::from_parts(parts, Body::Empty);
        return Ok(Outcome::Switch(response, Switch { claim, service, websocket }));
    }
    let idle = patience(&parts.headers, timeouts);
    let body = UpstreamBody::new(body, claim, lease, idle);
    Ok(Outcome::Answer(Response::from_parts(parts, Body::Upstream(body))))
}

/// How long a service may be silent within an answer: long where the answer has no length known beforehand,
/// as with server-sent events, followed logs and long polls.
fn patience(headers: &http::HeaderMap, timeouts: &Timeouts) -> Duration {
    if headers.contains_key(header::CONTENT_LENGTH) { timeouts.idle } else { timeouts.streaming_idle }
}
