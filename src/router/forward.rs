//! One exchange with a service: send the request, pass on what comes back.
//!
//! **Invariant:** nothing here knows routes, follows a redirect, or holds a body.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

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
pub(super) struct Asked {
    call: Call,
    /// Whether the service may be asked twice.
    repeatable: Repeatable,
    /// The protocol the visitor wants to switch to.
    upgrade: Option<HeaderValue>,
}

impl Asked {
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
        Self { call: Call::new(method, Sending::new(head, upload)), repeatable, upgrade }
    }

    /// Whether what the visitor has come by may become one with the service's connection.
    pub(super) fn wants_upgrade(&self) -> bool {
        self.upgrade.is_some()
    }
}

/// An exchange with a service, until the head of its answer has come.
///
/// Thousands of them may wait at a time: it is a state written out, as small as can be, and not what the compiler would
/// make of an `async fn`.
pub(super) struct Exchange {
    claim: Claim,
    asked: Asked,
    /// The connection that is being made.
    connecting: Option<Connecting>,
    /// Whether the connection has been idle before.
    reused: bool,
    /// Since when nothing has been sent.
    still_since: Option<Moment>,
    patience: Patience,
}

type Connecting = Pin<Box<dyn Future<Output = io::Result<Wire>> + Send>>;

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

impl Exchange {
    /// Asks the service that `claim` leads to, from the router's thread `lane`. It begins when it is polled.
    pub(super) fn new(claim: Claim, asked: Asked, lane: usize, timeouts: &Timeouts) -> Self {
        let certainty = match asked.repeatable {
            Repeatable::Yes => Certainty::Likely,
            Repeatable::No => Certainty::Certain,
        };
        let (reused, patience) = (false, Patience::new(timeouts.idle));
        let mut exchange = Self { claim, asked, connecting: None, reused, still_since: None, patience };
        match exchange.claim.reuse(lane, certainty) {
            Some(wire) => {
                exchange.asked.call.go_by(wire);
                exchange.reused = true;
            }
            None => exchange.connect(timeouts),
        }
        exchange
    }

    fn connect(&mut self, timeouts: &Timeouts) {
        self.connecting = Some(Box::pin(Wire::connect(self.claim.port().get(), timeouts.connect)));
    }

    /// Ready when the service has begun to answer.
    ///
    /// # Errors
    /// When there is no answer to pass on.
    pub(super) fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        visitor: &Visitor,
        timeouts: &Timeouts,
    ) -> Poll<Result<AnswerHead, Problem>> {
        loop {
            if let Some(connecting) = &mut self.connecting {
                let connected = ready!(connecting.as_mut().poll(cx));
                self.connecting = None;
                self.asked.call.go_by(connected.map_err(|err| refusal(&self.claim, &err))?);
            }
            let fault = match ready!(self.poll_call(cx, visitor, timeouts)) {
                Ok(head) => return Poll::Ready(Ok(head)),
                Err(fault) => fault,
            };
            // The service had closed the idle connection. Only what it cannot have acted upon, or what may be
            // repeated, is sent again: once, and over a connection that has not been idle.
            let closed = matches!(fault, Fault::Service(Failure::Lost)) && self.reused;
            if !closed || !self.asked.call.again(self.asked.repeatable) {
                return Poll::Ready(Err(problem(&self.claim, fault)));
            }
            self.reused = false;
            (self.still_since, self.patience) = (None, Patience::new(timeouts.idle));
            self.connect(timeouts);
        }
    }

    /// Waits for the answer's head, for as long as each side may keep the other waiting.
    fn poll_call(
        &mut self,
        cx: &mut Context<'_>,
        visitor: &Visitor,
        timeouts: &Timeouts,
    ) -> Poll<Result<AnswerHead, Fault>> {
        let (call, patience) = (&mut self.asked.call, &mut self.patience);
        let before = (call.waiting(), call.sent());
        let received = call.received();
        if let Poll::Ready(head) = call.poll_head(cx) {
            return Poll::Ready(head.map_err(Fault::Service));
        }
        if self.claim.is_cut() {
            return Poll::Ready(Err(Fault::Cut));
        }
        let now = Moment::now();
        let after = (call.waiting(), call.sent());
        let since = match self.still_since {
            Some(since) if before == after => since,
            _ => *self.still_since.insert(now),
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
    }

    /// What is passed on of an answer with this head.
    ///
    /// # Errors
    /// When it must not be.
    pub(super) fn answer(
        self,
        mut head: AnswerHead,
        visitor: &Visitor,
        timeouts: &Timeouts,
    ) -> Result<Outcome, Problem> {
        let Self { claim, asked: Asked { call, upgrade, .. }, .. } = self;
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
            let (Some(wanted), Some(switched), Some(wire)) = (upgrade, switched, call.into_wire()) else {
                return Err(Problem::Broken);
            };
            let websocket = headers::is_websocket(&switched);
            if websocket != headers::is_websocket(&wanted) {
                return Err(Problem::Broken);
            }
            headers.insert(header::UPGRADE, switched);
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            let (service, first) = wire.into_parts();
            let switch = Switch { claim, service, first, websocket };
            return Ok(Outcome::Switch(answered(headers, Body::empty()), switch));
        }
        let answer = call.into_answer(&head);
        let source = Source::new(claim, answer.remaining(), visitor.watch.clone(), timeouts);
        let body = UpstreamBody::new(answer, source, visitor.lane);
        Ok(Outcome::Answer(answered(headers, body.into())))
    }
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
    Wire::connect(claim.port().get(), timeouts.connect).await.map_err(|err| refusal(claim, &err))
}

fn refusal(claim: &Claim, err: &io::Error) -> Problem {
    let deployment = claim.deployment();
    tracing::warn!(deployment.id = %deployment, error = %err, "Cannot connect to deployment {deployment}");
    if err.kind() == io::ErrorKind::TimedOut { Problem::Silent } else { Problem::Refused }
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
