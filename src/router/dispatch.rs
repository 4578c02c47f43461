//! One request, from its visitor to whoever answers for its host: a service, a site, or kennel itself.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;

use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tower::ServiceExt as _;

use super::body::{Body, RequestBody};
use super::connection::{Turn, Visitor};
use super::forward::{self, Exchange, Outcome, Switch};
use super::pages::{self, Problem};
use super::table::Entry;
use super::{FromOutside, Shared, Stage, headers, tunnel};

/// How often a claim that was refused is tried on a newer table.
const CLAIMS: usize = 8;

/// Answers one request.
pub(super) async fn answer(shared: &Arc<Shared>, visitor: Arc<Visitor>, request: Request<Incoming>) -> Response<Body> {
    let turn = Turn::begin(&visitor);
    let (mut parts, body) = request.into_parts();
    let mut response = match headers::admit(&mut parts) {
        Err(problem) => problem.page(None, pages::prefers_json(&parts.headers)),
        Ok(host) => match dispatch(shared, visitor, &host, &mut parts, body).await {
            Ok(response) => response,
            Err(problem) => problem.page(Some(&host), pages::prefers_json(&parts.headers)),
        },
    };
    if shared.stage() >= Stage::Stopping && response.status() != StatusCode::SWITCHING_PROTOCOLS {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response.map(|body| body.during(turn))
}

/// A request whose host is known, to whoever answers for it.
async fn dispatch(
    shared: &Arc<Shared>,
    visitor: Arc<Visitor>,
    host: &str,
    parts: &mut Parts,
    body: Incoming,
) -> Result<Response<Body>, Problem> {
    if let Some((control_host, control)) = &shared.control
        && control_host.as_str() == host
    {
        return Box::pin(ask_control(shared, control.clone(), &visitor, host, parts, body)).await;
    }
    for _ in 0..CLAIMS {
        let entry = shared.table.load().find(host).cloned();
        let upstream = match entry {
            None => return Err(Problem::UnknownHost),
            Some(Entry::Site(site)) => return Box::pin(site.answer(parts)).await,
            Some(Entry::Service(upstream)) => upstream,
        };
        let Some(claim) = upstream.claim() else {
            // It is draining, so a newer table is on its way or there.
            tokio::task::yield_now().await;
            continue;
        };
        let upgrade = headers::upgrade(parts);
        let on_upgrade = if upgrade.is_some() { parts.extensions.remove::<OnUpgrade>() } else { None };
        let exchange = Exchange { parts, host, body, upgrade };
        return match forward::forward(claim, exchange, &visitor, &shared.timeouts).await? {
            Outcome::Answer(response) => Ok(response),
            Outcome::Switch(response, switch) => {
                let on_upgrade = on_upgrade.ok_or(Problem::Broken)?;
                shared.tasks.spawn(join(Arc::clone(shared), visitor, on_upgrade, switch));
                Ok(response)
            }
        };
    }
    Err(Problem::Switching)
}

/// Has kennel itself answer, on the daemon's own threads: its work is not to hold up visitors of services.
async fn ask_control(
    shared: &Arc<Shared>,
    control: axum::Router,
    visitor: &Visitor,
    host: &str,
    parts: &mut Parts,
    body: Incoming,
) -> Result<Response<Body>, Problem> {
    let mut parts = parts.clone();
    headers::clean_request(&mut parts.headers, host, &visitor.origin);
    parts.extensions.insert(FromOutside { peer: visitor.peer });
    let body = axum::body::Body::new(RequestBody::new(body, shared.timeouts.idle));
    let answering = control.oneshot(Request::from_parts(parts, body));
    let answered = match shared.home.get() {
        Some(home) => AbortOnDropHandle::new(home.spawn(answering)).await,
        None => Ok(answering.await),
    };
    match answered {
        Ok(Ok(response)) => Ok(response.map(Body::control)),
        Err(panic) => {
            tracing::error!(error = %panic, "Answering a request to the control domain panicked");
            Err(Problem::SiteBroken)
        }
    }
}

/// Joins a visitor and a service that have switched protocols.
async fn join(shared: Arc<Shared>, visitor: Arc<Visitor>, on_upgrade: OnUpgrade, switch: Switch) {
    let Switch { claim, service, first, websocket } = switch;
    // Ready when the answer is out.
    let Ok(client) = on_upgrade.await else { return };
    let stop = CancellationToken::new();
    let (cut, idle) = (claim.cut_token(), shared.timeouts.upgraded_idle);
    let joined = tunnel::join(TokioIo::new(client), (service, first), websocket, idle, &stop, claim);
    let mut joined = pin!(joined);
    // The visitor's limits wake this task from now on.
    let mut joined = pin!(poll_fn(|cx| {
        visitor.watch.register(cx);
        joined.as_mut().poll(cx)
    }));
    tokio::select! {
        () = &mut joined => return,
        () = cut.cancelled() => {}
        () = shared.closing.cancelled() => {}
    }
    stop.cancel();
    joined.await;
}
