//! One request, from its visitor to whoever answers for its host: a service, a site, or kennel itself.

use std::future::{poll_fn, ready};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Instant;

use futures_util::future::Either;
use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tower::ServiceExt as _;

use super::access_log::Line;
use super::body::{Body, RequestBody};
use super::connection::{Turn, Visitor};
use super::forward::{self, Exchange, Outcome, Switch};
use super::generation::Stage;
use super::http2::Tunnel;
use super::io::Io;
use super::metrics::Series;
use super::origin::Origin;
use super::pages::{self, Problem};
use super::site::Site;
use super::table::Entry;
use super::upstream::Claim;
use super::visitor_body::VisitorBody;
use super::{FromOutside, Shared, h2c, headers, https, tunnel};
use crate::model::Protocol;

/// How often a claim that was refused is tried on a newer table.
const CLAIMS: usize = 8;

/// What a visitor has come by, which is his and a service's alone once they have switched protocols.
#[derive(Debug)]
pub(super) enum Upgrade {
    /// A connection of HTTP/1.1.
    Connection(OnUpgrade),
    /// One stream of a connection of HTTP/2.
    Stream(oneshot::Receiver<Tunnel>),
}

/// Who is to answer.
#[expect(clippy::large_enum_variant, reason = "an answer in a box of its own would cost more than it saves")]
enum Found {
    /// Nobody any more: it is a refusal, a site's answer, or one for which nobody need be asked.
    Answered(Result<Response<Body>, Problem>),
    /// kennel itself.
    Control,
    /// A site.
    Site(Arc<Site>),
    /// A service that speaks this, unless it is draining.
    Service(Protocol, Option<Claim>),
}

/// Who is asked.
enum Asking {
    /// A service that speaks HTTP/1.1; and what is joined with its connection should it switch protocols.
    Service(Box<Exchange>, Option<Upgrade>),
    /// Whoever else.
    Other(Pin<Box<dyn Future<Output = Result<Response<Body>, Problem>> + Send>>),
}

/// A request on its way to its answer.
struct Course {
    turn: Turn,
    begun: Instant,
    host: Option<String>,
    json: bool,
    series: Arc<Series>,
    line: Option<Box<Line>>,
}

/// Answers one request of HTTP/1.1.
pub(super) fn answer(
    shared: &Arc<Shared>,
    visitor: &Arc<Visitor>,
    request: Request<Incoming>,
) -> impl Future<Output = Response<Body>> + use<> {
    let (mut parts, body) = request.into_parts();
    let host = headers::admit(&mut parts);
    answer_admitted(shared, visitor, host, parts, VisitorBody::Http1(body), None)
}

/// Answers one request, whose head is for `host` or may not pass.
///
/// Its head is dealt with before the future that is returned is first polled: hyper then reads on into the memory
/// that the head was in, instead of taking new memory for every request.
pub(super) fn answer_admitted(
    shared: &Arc<Shared>,
    visitor: &Arc<Visitor>,
    host: Result<String, Problem>,
    mut parts: Parts,
    body: VisitorBody,
    upgrade: Option<Upgrade>,
) -> impl Future<Output = Response<Body>> + use<> {
    let (turn, begun) = (Turn::begin(visitor), Instant::now());
    let named = visitor.is_proxy().then(|| Box::new(visitor.origin.named(&parts.headers, &shared.trusted)));
    let origin = named.as_deref().unwrap_or(&visitor.origin);
    let line = Line::of(shared.access_log, &parts, host.as_deref().unwrap_or("-"), origin.address());
    let course = |host, json, series| Course { turn, begun, host, json, series, line };
    let host = match host {
        Ok(host) => host,
        Err(problem) => {
            let course = course(None, pages::prefers_json(&parts.headers), Arc::clone(&shared.own));
            return Either::Left(ready(course.end(shared, Err(problem))));
        }
    };
    let (found, series) = find(shared, visitor, origin, &host, &parts);
    let series = series.unwrap_or_else(|| Arc::clone(&shared.own));
    // Only kennel's own pages go by it.
    let json = !matches!(found, Found::Answered(Ok(_))) && pages::prefers_json(&parts.headers);
    let owned = || (Arc::clone(shared), Arc::clone(visitor), host.clone());
    let asking = match found {
        Found::Answered(answered) => {
            return Either::Left(ready(course(Some(host), json, series).end(shared, answered)));
        }
        Found::Control => {
            let (shared, visitor, host) = owned();
            Asking::other(async move { ask_control(&shared, &visitor, named, &host, (parts, body)).await })
        }
        Found::Site(site) => Asking::other(async move { site.answer(&parts).await }),
        Found::Service(Protocol::H2c, claim) => {
            let asked = h2c::Asked::new(parts, &host, origin, body, &shared.timeouts);
            let (shared, visitor, host) = owned();
            Asking::other(async move { ask_by_http2(&shared, &visitor, &host, claim, asked).await })
        }
        Found::Service(Protocol::Http1, claim) => {
            let asked = forward::Asked::new(&parts, &host, origin, body);
            let connection = || parts.extensions.remove().map(Upgrade::Connection);
            let upgrade = asked.wants_upgrade().then(|| upgrade.or_else(connection)).flatten();
            match claim {
                Some(claim) => {
                    let exchange = Exchange::new(claim, asked, visitor.lane, &shared.timeouts);
                    Asking::Service(Box::new(exchange), upgrade)
                }
                None => {
                    let (shared, visitor, host) = owned();
                    Asking::other(async move { ask_anew(&shared, &visitor, &host, asked, upgrade).await })
                }
            }
        }
    };
    let (shared, course) = (Arc::clone(shared), course(Some(host), json, series));
    Either::Right(async move {
        let answered = match asking {
            Asking::Service(exchange, upgrade) => ask_service(&shared, course.turn.visitor(), exchange, upgrade).await,
            Asking::Other(asking) => asking.await,
        };
        course.end(&shared, answered)
    })
}

/// Finds out who is to answer, and where that is counted unless kennel does.
fn find(
    shared: &Shared,
    visitor: &Visitor,
    origin: &Origin,
    host: &str,
    request: &Parts,
) -> (Found, Option<Arc<Series>>) {
    if let Some(answered) = https::begin(shared, visitor, origin, host, request) {
        return (Found::Answered(answered), None);
    }
    if shared.control.as_ref().is_some_and(|(control_host, _)| control_host.as_str() == host) {
        return (Found::Control, None);
    }
    let table = shared.table.load();
    let Some((entry, seen)) = table.find(host) else { return (Found::Answered(Err(Problem::UnknownHost)), None) };
    seen.note();
    let found = match entry {
        Entry::Site(site) => match site.answer_at_once(request) {
            Some(answered) => Found::Answered(answered),
            None => Found::Site(Arc::clone(site)),
        },
        Entry::Unhealthy => Found::Answered(Err(Problem::Unhealthy)),
        Entry::Service(upstream) => Found::Service(upstream.protocol(), upstream.claim()),
    };
    (found, Some(seen.series()))
}

impl Asking {
    fn other(asking: impl Future<Output = Result<Response<Body>, Problem>> + Send + 'static) -> Self {
        Self::Other(Box::pin(asking))
    }
}

impl Course {
    /// Makes of an answer what the visitor gets, and has it counted once it is out.
    fn end(self, shared: &Shared, answered: Result<Response<Body>, Problem>) -> Response<Body> {
        let Self { turn, begun, host, json, series, line } = self;
        let visitor = turn.visitor();
        let mut response = answered.unwrap_or_else(|problem| {
            series.note_problem(visitor.lane, &problem);
            problem.page(host.as_deref(), json, &shared.pages)
        });
        https::mark(shared, visitor, &mut response);
        if visitor.generation.stage() >= Stage::Stopping
            && response.status() != StatusCode::SWITCHING_PROTOCOLS
            && !visitor.is_in_stream()
        {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        let tally = series.tally(visitor.lane, begun, response.status(), line);
        response.map(|body| body.during(turn, tally))
    }
}

/// Has a service answer. If it and the visitor switch protocols, they are joined.
async fn ask_service(
    shared: &Arc<Shared>,
    visitor: &Arc<Visitor>,
    mut exchange: Box<Exchange>,
    upgrade: Option<Upgrade>,
) -> Result<Response<Body>, Problem> {
    let head = poll_fn(|cx| exchange.poll_head(cx, visitor, &shared.timeouts)).await?;
    match exchange.answer(head, visitor, &shared.timeouts)? {
        Outcome::Answer(response) => Ok(response),
        Outcome::Switch(response, switch) => {
            let upgrade = upgrade.ok_or(Problem::Broken)?;
            shared.tunnels.spawn(join(Arc::clone(shared), Arc::clone(visitor), upgrade, switch));
            Ok(response)
        }
    }
}

/// Has the service answer that `host` leads to now: the one it led to at first is draining.
async fn ask_anew(
    shared: &Arc<Shared>,
    visitor: &Arc<Visitor>,
    host: &str,
    asked: forward::Asked,
    upgrade: Option<Upgrade>,
) -> Result<Response<Body>, Problem> {
    let claim = claim_anew(shared, host, Protocol::Http1).await?;
    let exchange = Exchange::new(claim, asked, visitor.lane, &shared.timeouts);
    ask_service(shared, visitor, Box::new(exchange), upgrade).await
}

/// Has the service answer, by HTTP/2, that `host` leads to now; `claim` is on the one it led to at first.
async fn ask_by_http2(
    shared: &Shared,
    visitor: &Visitor,
    host: &str,
    claim: Option<Claim>,
    asked: h2c::Asked,
) -> Result<Response<Body>, Problem> {
    let claim = match claim {
        Some(claim) => claim,
        None => claim_anew(shared, host, Protocol::H2c).await?,
    };
    h2c::forward(claim, asked, visitor, &shared.timeouts).await
}

/// Claims the service that `host` leads to now, since the one it led to is draining, if that speaks `protocol` too.
async fn claim_anew(shared: &Shared, host: &str, protocol: Protocol) -> Result<Claim, Problem> {
    for _ in 0..CLAIMS {
        // A newer table is on its way or there.
        tokio::task::yield_now().await;
        let claim = match shared.table.load().find(host).map(|(entry, _)| entry.clone()) {
            None => return Err(Problem::UnknownHost),
            Some(Entry::Unhealthy) => return Err(Problem::Unhealthy),
            Some(Entry::Service(upstream)) if upstream.protocol() == protocol => upstream.claim(),
            Some(Entry::Site(_) | Entry::Service(_)) => return Err(Problem::Switching),
        };
        if let Some(claim) = claim {
            return Ok(claim);
        }
    }
    Err(Problem::Switching)
}

/// Has kennel itself answer, on the daemon's own threads: its work is not to hold up visitors of services.
async fn ask_control(
    shared: &Shared,
    visitor: &Visitor,
    named: Option<Box<Origin>>,
    host: &str,
    (mut parts, body): (Parts, VisitorBody),
) -> Result<Response<Body>, Problem> {
    let Some((_, control)) = &shared.control else { return Err(Problem::UnknownHost) };
    let origin = named.as_deref().unwrap_or(&visitor.origin);
    let running = shared.control_requests.token();
    headers::clean_request(&mut parts.headers, host, origin);
    // What the visitor says of himself in headers counts for nothing.
    let peer = SocketAddr::new(origin.address(), visitor.peer.port());
    parts.extensions.insert(FromOutside { peer });
    parts.extensions.insert(axum::extract::ConnectInfo(peer));
    let body = axum::body::Body::new(RequestBody::new(body, shared.timeouts.idle));
    let answering = control.clone().oneshot(Request::from_parts(parts, body));
    let answered = match shared.home.get() {
        Some(home) => AbortOnDropHandle::new(home.spawn(answering)).await,
        None => Ok(answering.await),
    };
    match answered {
        Ok(Ok(mut response)) => {
            headers::clean_response(response.headers_mut());
            Ok(response.map(|body| {
                let body = body.map_frame(move |frame| {
                    let _until_the_last = &running;
                    frame
                });
                Body::control(axum::body::Body::new(body))
            }))
        }
        Err(panic) => {
            tracing::error!(error = %panic, "Answering a request to the control domain panicked");
            Err(Problem::SiteBroken)
        }
    }
}

/// Joins a visitor and a service that have switched protocols.
async fn join(shared: Arc<Shared>, visitor: Arc<Visitor>, upgrade: Upgrade, switch: Switch) {
    let Switch { claim, service, first, websocket } = switch;
    let stop = CancellationToken::new();
    let (cut, idle) = (claim.cut_token(), shared.timeouts.upgraded_idle);
    // Either is ready when the answer is out.
    let joined = match upgrade {
        Upgrade::Connection(connection) => {
            let Ok(client) = connection.await else { return };
            Either::Left(tunnel::join(TokioIo::new(client), (service, first), websocket, idle, &stop, claim))
        }
        Upgrade::Stream(stream) => {
            let Ok(client) = stream.await else { return };
            // The limits of the connection are not those of what is one of many things on it.
            let client = Io::new(client, Arc::clone(&visitor), shared.timeouts.idle);
            Either::Right(tunnel::join(client, (service, first), websocket, idle, &stop, claim))
        }
    };
    let mut joined = pin!(joined);
    // The visitor's limits wake this task from now on.
    let mut joined = pin!(poll_fn(|cx| {
        visitor.watch.register(cx);
        joined.as_mut().poll(cx)
    }));
    tokio::select! {
        () = &mut joined => return,
        () = cut.cancelled() => {}
        () = shared.away.cancelled() => {}
    }
    stop.cancel();
    joined.await;
}
