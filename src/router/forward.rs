//! One exchange with a service: send the request, pass on what comes back.
//!
//! **Invariant:** nothing here knows routes, follows a redirect, or holds a body.

use std::future::poll_fn;
use std::task::Poll;

use bytes::BytesMut;
use http::header;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Version};
use http_body::Body as _;
use tokio::net::TcpStream;

use super::Timeouts;
use super::body::{Body, Source, UpstreamBody};
use super::client::{AnswerHead, Call, Failure, Framing, Repeatable, Sending, Upload, Waiting, Wire};
use super::connection::Visitor;
use super::headers;
use super::origin::Origin;
use super::pages::Problem;
use super::patience::Patience;
use super::upstream::{Certainty, Claim};
use super::visitor_body::VisitorBody;
use super::watch::Moment;

/// What a visitor asks of a service, written out as the service is to see it.
#[derive(Debug)]
pub(super) struct Exchange {
    method: Method,
    sending: Sending,
    /// Whether the service may be asked twice.
    repeatable: Repeatable,
    /// The protocol the visitor wants to switch to.
    upgrade: Option<HeaderValue>,
}

impl Exchange {
    /// What the visitor described by `origin` asks of `host`. Holds nothing of the head's memory but a protocol's name.
    pub(super) fn new(parts: &Parts, host: &str, origin: &Origin, body: VisitorBody) -> Self {
        let upload = upload(parts, body);
        // An upgrade with a body would leave open where the body ends and the new protocol begins.
        let upgrade = headers::upgrade(parts).filter(|_| upload.is_none());
        let framing = upload.as_ref().map_or_else(|| no_body(parts), Upload::framing);
        let head = headers::request_head(parts, host, origin, framing, upgrade.as_ref());
        let method = parts.method.clone();
        let safe = matches!(method, Method::GET | Method::HEAD | Method::OPTIONS) && upload.is_none();
        let repeatable = if safe { Repeatable::Yes } else { Repeatable::No };
        Self { method, sending: Sending::new(head, upload), repeatable, upgrade }
    }

    /// Whether what the visitor has come by may become one with the service's connection.
    pub(super) fn wants_upgrade(&self) -> bool {
        self.upgrade.is_some()
    }
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
    pub(super) service: TcpStream,
    /// What the service has said already.
    pub(super) first: BytesMut,
    /// Whether what passes are the frames of RFC 6455.
    pub(super) websocket: bool,
}

/// Sends the exchange to the service that `claim` leads to.
///
/// # Errors
/// When there is no answer to pass on.
pub(super) async fn forward(
    claim: Claim,
    exchange: Box<Exchange>,
    visitor: &Visitor,
    timeouts: &Timeouts,
) -> Result<Outcome, Problem> {
    let Exchange { method, sending, repeatable, upgrade } = *exchange;
    let certainty = match repeatable {
        Repeatable::Yes => Certainty::Likely,
        Repeatable::No => Certainty::Certain,
    };
    let (wire, reused) = match claim.reuse(visitor.lane, certainty) {
        Some(wire) => (wire, true),
        None => (connect(&claim, timeouts).await?, false),
    };
    let mut call = Call::new(wire, method, sending);
    let mut outcome = answer_head(&claim, &mut call, visitor, timeouts).await;
    if matches!(outcome, Err(Fault::Service(Failure::Lost))) && reused {
        // The service had closed the idle connection. Only what it cannot have acted upon, or what may be
        // repeated, is sent again: once, and over a connection that has not been idle.
        let Some((method, sending)) = call.again(repeatable) else {
            return Err(problem(&claim, Fault::Service(Failure::Lost)));
        };
        call = Call::new(connect(&claim, timeouts).await?, method, sending);
        outcome = answer_head(&claim, &mut call, visitor, timeouts).await;
    }
    let head = outcome.map_err(|fault| problem(&claim, fault))?;
    answer(head, call, claim, upgrade, visitor, timeouts)
}

/// The body of a request, if it has one.
fn upload(parts: &Parts, body: VisitorBody) -> Option<Upload> {
    if body.is_end_stream() {
        return None;
    }
    let framing = body.size_hint().exact().map_or(Framing::Chunked, Framing::Length);
    Some(Upload::new(body, framing, headers::announced_trailers(&parts.headers)))
}

/// A request without body says so if the visitor's did.
fn no_body(parts: &Parts) -> Framing {
    if parts.headers.contains_key(header::CONTENT_LENGTH) { Framing::Length(0) } else { Framing::None }
}

/// Why there is no head of an answer.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// What the exchange came to.
    Service(Failure),
    /// The service was silent for too long.
    Silent,
    /// The visitor was silent for too long.
    VisitorSilent,
    /// The drain is over.
    Cut,
}

/// A new connection to the service that `claim` leads to.
pub(super) async fn connect(claim: &Claim, timeouts: &Timeouts) -> Result<Wire, Problem> {
    let deployment = claim.deployment();
    // In a box of its own: it is rare, and would make room in every exchange.
    let connecting = Box::pin(Wire::connect(claim.port().get(), timeouts.connect));
    connecting.await.map_err(|err| {
        tracing::warn!(deployment.id = %deployment, error = %err, "Cannot connect to deployment {deployment}");
        if err.kind() == std::io::ErrorKind::TimedOut { Problem::Silent } else { Problem::Refused }
    })
}

/// Waits for the answer's head, for as long as each side may keep the other waiting.
async fn answer_head(
    claim: &Claim,
    call: &mut Call,
    visitor: &Visitor,
    timeouts: &Timeouts,
) -> Result<AnswerHead, Fault> {
    let mut state = None;
    let mut patience = Patience::new(timeouts.idle);
    poll_fn(|cx| {
        let before = (call.waiting(), call.sent());
        let received = call.received();
        if let Poll::Ready(head) = call.poll_head(cx) {
            return Poll::Ready(head.map_err(Fault::Service));
        }
        if claim.is_cut() {
            return Poll::Ready(Err(Fault::Cut));
        }
        let now = Moment::now();
        let after = (call.waiting(), call.sent());
        let since = match state {
            Some(since) if before == after => since,
            _ => *state.insert(now),
        };
        if call.waiting() != Some(Waiting::Visitor) || call.received() > received {
            patience.end(now, call.received() - received);
        }
        let (due, fault) = match call.waiting() {
            Some(Waiting::Service) => (since.after(timeouts.idle), Fault::Silent),
            Some(Waiting::Visitor) => (patience.wait(now), Fault::VisitorSilent),
            None => (since.after(timeouts.response_header), Fault::Silent),
        };
        if now >= due {
            return Poll::Ready(Err(fault));
        }
        visitor.watch.until(due);
        Poll::Pending
    })
    .await
}

fn problem(claim: &Claim, fault: Fault) -> Problem {
    let deployment = claim.deployment();
    let (problem, what) = match fault {
        // The visitor's fault, though it shows as a request that could not be sent.
        Fault::Service(Failure::Visitor) => {
            return Problem::BadRequest("The request's body broke off, or is not valid.");
        }
        Fault::VisitorSilent => return Problem::VisitorSilent,
        Fault::Silent => (Problem::Silent, "gave no answer in time"),
        Fault::Service(Failure::Lost) => (Problem::Broken, "broke off before it answered"),
        Fault::Service(Failure::Malformed(why)) => {
            tracing::warn!(deployment.id = %deployment, error = %why, "Deployment {deployment} gave no proper answer");
            return Problem::Broken;
        }
        Fault::Cut => (Problem::Broken, "was cut before it answered, when its drain ended"),
    };
    tracing::warn!(deployment.id = %deployment, "Deployment {deployment} {what}");
    problem
}

fn answer(
    mut head: AnswerHead,
    call: Call,
    claim: Claim,
    upgrade: Option<HeaderValue>,
    visitor: &Visitor,
    timeouts: &Timeouts,
) -> Result<Outcome, Problem> {
    let mut headers = std::mem::take(&mut head.headers);
    let mut switched = None;
    if head.has_hop_by_hop {
        switched = headers.get(header::UPGRADE).cloned();
        headers::clean_response(&mut headers);
    }
    let answered = |headers: HeaderMap, body: Body| {
        let mut response = Response::new(body);
        *response.status_mut() = head.status;
        *response.version_mut() = Version::HTTP_11;
        *response.headers_mut() = headers;
        response
    };
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        let (Some(wanted), Some(switched)) = (upgrade, switched) else {
            return Err(Problem::Broken);
        };
        let websocket = headers::is_websocket(&switched);
        if websocket != headers::is_websocket(&wanted) {
            return Err(Problem::Broken);
        }
        headers.insert(header::UPGRADE, switched);
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        let (service, first) = call.into_wire().into_parts();
        let switch = Switch { claim, service, first, websocket };
        return Ok(Outcome::Switch(answered(headers, Body::empty()), switch));
    }
    let answer = call.into_answer(&head);
    let source = Source::new(claim, answer.remaining(), visitor.watch.clone(), timeouts);
    let body = UpstreamBody::new(answer, source, visitor.lane);
    Ok(Outcome::Answer(answered(headers, body.into())))
}
