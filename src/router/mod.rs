//! The front door: takes every visitor's request and sends it to the right service, site, or to kennel itself.
//!
//! One immutable `table::RouteTable` holds everything a request needs; it is rebuilt whole from the rows and
//! swapped in one store. `table` routes and knows no HTTP; `forward` knows HTTP and no routes.
//!
//! **Invariant:** a request reaches a service only with a claim on it, and none is given once its drain has
//! begun, so nothing lands on a service that is being stopped.

mod accept;
mod body;
mod forward;
mod headers;
mod pages;
mod site;
mod table;
mod tunnel;
mod upstream;
mod wire;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::header::{self, HeaderValue};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

pub use self::headers::host_of;

use self::accept::Visitor;
use self::body::{Body, RequestBody};
use self::forward::{Exchange, Outcome, Switch};
use self::pages::Problem;
use self::table::{Entry, RouteTable};
use crate::model::{DeploymentId, HostName, Route, TargetId};
use crate::places::Places;
use crate::store::{Store, StoreError};
use crate::telemetry::chain;

/// How often a claim that was refused is tried on a newer table.
const CLAIMS: usize = 8;
/// How often idle connections that are too old are looked for.
const SWEEP: Duration = Duration::from_secs(5);
/// How often it is written down who was asked for.
const REQUESTS_TICK: Duration = Duration::from_secs(60);

/// What the router needs to know.
#[derive(Debug, Clone)]
pub struct RouterConfig {
    /// Where store paths lie: `/nix/store`, but for tests.
    pub store_dir: PathBuf,
    /// The host that is kennel's own, and what answers there, in process.
    pub control: Option<(HostName, axum::Router)>,
    /// How long things may take.
    pub timeouts: Timeouts,
    /// How much there may be.
    pub limits: Limits,
}

impl Default for RouterConfig {
    fn default() -> Self {
        Self {
            store_dir: PathBuf::from("/nix/store"),
            control: None,
            timeouts: Timeouts::default(),
            limits: Limits::default(),
        }
    }
}

/// How long things may take. Nothing limits a whole exchange: that would kill long uploads.
#[derive(Debug, Clone)]
pub struct Timeouts {
    /// Connecting to a service: 2 s.
    pub connect: Duration,
    /// From the end of a request to the head of its answer: 60 s.
    pub response_header: Duration,
    /// Silence of either side within a message, or a visitor taking nothing: 60 s.
    pub idle: Duration,
    /// Silence of a service within an answer of unknown length, such as server-sent events: 1 h.
    pub streaming_idle: Duration,
    /// Silence of both sides after a switch of protocols: 1 h.
    pub upgraded_idle: Duration,
    /// From a visitor's connecting, or the end of the last answer, to the end of a request's head: 10 s.
    pub request_header: Duration,
    /// At the end: how long open connections still get answers as usual: 300 ms.
    pub lame_duck: Duration,
    /// At the end: how long what has begun may take after that: 30 s.
    pub finish: Duration,
    /// How often the table is rebuilt unasked: 30 s.
    pub tick: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            response_header: Duration::from_secs(60),
            idle: Duration::from_secs(60),
            streaming_idle: Duration::from_secs(3600),
            upgraded_idle: Duration::from_secs(3600),
            request_header: Duration::from_secs(10),
            lame_duck: Duration::from_millis(300),
            finish: Duration::from_secs(30),
            tick: Duration::from_secs(30),
        }
    }
}

/// How much there may be.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections of visitors, upgraded ones included: 8192. More wait in the kernel's queue.
    pub connections: usize,
    /// Of these, with one address (IPv6: one /64): 4096. More are turned away, so that there is room for others.
    pub connections_of_one: usize,
    /// Headers of a request: 100.
    pub headers: usize,
    /// Bytes of a request's head: 64 KiB.
    pub head_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 8192, connections_of_one: 4096, headers: 100, head_bytes: 64 * 1024 }
    }
}

/// On every request handed to the control service: it came from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FromOutside {
    /// The visitor's address.
    pub peer: SocketAddr,
}

/// The router, not running yet.
#[derive(Debug)]
pub struct Router {
    shared: Arc<Shared>,
}

/// How the deployer tells the router of changes. Clones speak to the same router.
#[derive(Debug, Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

/// Where routes come from.
#[derive(Debug)]
enum Source {
    Store(Store),
    #[cfg(test)]
    Given(std::sync::Mutex<Vec<Route>>),
}

impl Source {
    async fn routes(&self) -> Result<Vec<Route>, StoreError> {
        match self {
            Self::Store(store) => store.routes().await,
            #[cfg(test)]
            Self::Given(routes) => Ok(routes.lock().expect("no test panics while it holds the routes").clone()),
        }
    }

    async fn note_requests(&self, targets: &[TargetId]) -> Result<(), StoreError> {
        match self {
            Self::Store(store) => store.note_requests(targets, jiff::Timestamp::now().as_millisecond()).await,
            #[cfg(test)]
            Self::Given(_) => Ok(()),
        }
    }
}

/// What all connections share.
#[derive(Debug)]
struct Shared {
    source: Source,
    store_dir: PathBuf,
    control: Option<(HostName, axum::Router)>,
    timeouts: Timeouts,
    limits: Limits,
    table: ArcSwap<RouteTable>,
    /// Held from reading the rows to the swap: an older reading must not replace a newer one.
    reloading: Mutex<()>,
    /// Places for connections.
    places: Arc<Semaphore>,
    /// The same, by address.
    places_of_one: Places,
    /// One task for each connection, and for each after a switch of protocols.
    tasks: TaskTracker,
    /// No new connections; answers close theirs.
    stopping: CancellationToken,
    /// Connections close when they have no request.
    closing: CancellationToken,
    /// Connections close.
    cut: CancellationToken,
}

impl Router {
    /// A router and its handle. Its table is empty until the first [`Handle::reload`].
    #[must_use]
    pub fn new(config: RouterConfig, store: Store) -> (Self, Handle) {
        Self::with_source(config, Source::Store(store))
    }

    fn with_source(config: RouterConfig, source: Source) -> (Self, Handle) {
        let RouterConfig { store_dir, control, timeouts, limits } = config;
        let shared = Arc::new(Shared {
            source,
            store_dir,
            control,
            timeouts,
            places: Arc::new(Semaphore::new(limits.connections)),
            places_of_one: Places::new(limits.connections_of_one),
            limits,
            table: ArcSwap::default(),
            reloading: Mutex::default(),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
            closing: CancellationToken::new(),
            cut: CancellationToken::new(),
        });
        (Self { shared: Arc::clone(&shared) }, Handle { shared })
    }

    /// Serves plain HTTP on `listeners` until `shutdown`; returns when everything that had begun has ended, or
    /// [`Timeouts::finish`] is over.
    ///
    /// Connections that the kernel had queued by then are still served; the listeners are closed, so that, where
    /// the service manager holds them too, later ones wait for the next process.
    pub async fn run(self, listeners: Vec<TcpListener>, shutdown: CancellationToken) {
        tokio::select! {
            () = accept::serve(&self.shared, listeners, &shutdown) => {}
            () = keep_house(Handle { shared: Arc::clone(&self.shared) }) => {}
        }
        Handle { shared: self.shared }.note_requests().await;
    }
}

/// Rebuilds the table on the tick, and closes connections that have idled for too long.
async fn keep_house(handle: Handle) {
    let mut tick = tokio::time::interval(handle.shared.timeouts.tick);
    tick.reset();
    let mut sweep = tokio::time::interval(SWEEP);
    let mut requests = tokio::time::interval(REQUESTS_TICK);
    requests.reset();
    loop {
        tokio::select! {
            _ = tick.tick() => {
                if let Err(err) = handle.reload().await {
                    tracing::error!(error = %err, "Could not rebuild the route table; the old one stays");
                }
            }
            _ = requests.tick() => handle.note_requests().await,
            _ = sweep.tick() => handle.shared.table.load().upstreams().for_each(|upstream| upstream.sweep()),
        }
    }
}

impl Handle {
    /// Rebuilds the table from the rows; returns when the new one is live. Connections of visitors stay.
    ///
    /// # Errors
    /// When the rows cannot be read; the old table stays.
    pub async fn reload(&self) -> Result<(), StoreError> {
        let _one_at_a_time = self.shared.reloading.lock().await;
        let routes = self.shared.source.routes().await?;
        let previous = self.shared.table.load_full();
        let table = RouteTable::build(&routes, &previous, &self.shared.store_dir);
        self.shared.table.store(Arc::new(table));
        Ok(())
    }

    /// Writes down which targets were asked for since the last time. What cannot be written is kept for the next.
    pub async fn note_requests(&self) {
        let table = self.shared.table.load_full();
        let asked = table.take_asked();
        if asked.is_empty() {
            return;
        }
        let targets: Vec<_> = asked.iter().copied().collect();
        if let Err(err) = self.shared.source.note_requests(&targets).await {
            table.put_back(&asked);
            tracing::warn!(error = %chain(&err), "Could not write down which services and sites were asked for");
        }
    }

    /// Lets no new request into `deployment`, and returns when none is left in it; what is left at `deadline` is
    /// cut, WebSockets with a close frame, and never before.
    ///
    /// Returns at once when nothing is in it, when it is a site (whose open files outlive it), or unknown.
    /// Call it after the [`Self::reload`] that took the deployment's routes away.
    pub async fn drain(&self, deployment: DeploymentId, deadline: Duration) {
        let upstreams = self.shared.table.load().upstreams_of(deployment);
        futures_util::future::join_all(upstreams.iter().map(|upstream| upstream.drain(deadline))).await;
    }
}

/// Answers one request.
async fn answer(shared: &Arc<Shared>, visitor: Arc<Visitor>, request: Request<Incoming>) -> Response<Body> {
    let (mut parts, body) = request.into_parts();
    let json = pages::prefers_json(&parts.headers);
    let mut response = match headers::admit(&mut parts) {
        Err(problem) => problem.page(None, json),
        Ok(host) => match dispatch(shared, visitor, &host, Request::from_parts(parts, body)).await {
            Ok(response) => response,
            Err(problem) => problem.page(Some(&host), json),
        },
    };
    if shared.stopping.is_cancelled() && response.status() != http::StatusCode::SWITCHING_PROTOCOLS {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// A request whose host is known, to whoever answers for it.
async fn dispatch(
    shared: &Arc<Shared>,
    visitor: Arc<Visitor>,
    host: &str,
    request: Request<Incoming>,
) -> Result<Response<Body>, Problem> {
    let (mut parts, body) = request.into_parts();
    let on_upgrade = parts.extensions.remove::<OnUpgrade>();
    let upgrade = headers::upgrade(&parts);
    headers::clean_request(&mut parts.headers, host, &visitor);
    if let Some((control_host, control)) = &shared.control
        && control_host.as_str() == host
    {
        parts.extensions.insert(FromOutside { peer: visitor.peer });
        // What the visitor says of himself in headers counts for nothing.
        parts.extensions.insert(axum::extract::ConnectInfo(visitor.peer));
        let (body, _) = RequestBody::new(body, shared.timeouts.idle);
        let request = Request::from_parts(parts, axum::body::Body::new(body));
        let Ok(response) = control.clone().oneshot(request).await;
        return Ok(response.map(Body::Control));
    }
    for _ in 0..CLAIMS {
        let entry = shared.table.load().find(host).map(|(entry, seen)| {
            seen.note();
            entry.clone()
        });
        let upstream = match entry {
            None => return Err(Problem::UnknownHost),
            Some(Entry::Site(site)) => return site.answer(&parts).await,
            Some(Entry::Service(upstream)) => upstream,
        };
        let Some(claim) = upstream.claim() else {
            // It is draining, so a newer table is on its way or there.
            tokio::task::yield_now().await;
            continue;
        };
        let exchange = Exchange { parts, body, upgrade };
        return match forward::forward(claim, exchange, &shared.timeouts).await? {
            Outcome::Answer(response) => Ok(response),
            Outcome::Switch(response, switch) => {
                let on_upgrade = on_upgrade.ok_or(Problem::Broken)?;
                shared.tasks.spawn(tunnel(Arc::clone(shared), visitor, on_upgrade, switch));
                Ok(response)
            }
        };
    }
    Err(Problem::Switching)
}

/// Joins a visitor and a service that have switched protocols.
async fn tunnel(shared: Arc<Shared>, visitor: Arc<Visitor>, on_upgrade: OnUpgrade, switch: Switch) {
    let Switch { claim, service, websocket } = switch;
    // The one is ready when the answer is out, the other is ready already.
    let (Ok(client), Ok(service)) = tokio::join!(on_upgrade, service) else { return };
    let stop = CancellationToken::new();
    let cut = claim.cut_token();
    let mut joined = pin!(tunnel::join(client, service, websocket, shared.timeouts.upgraded_idle, &stop, claim));
    tokio::select! {
        () = &mut joined => return,
        () = cut.cancelled() => {}
        () = shared.closing.cancelled() => {}
    }
    stop.cancel();
    joined.await;
    // His place counts until here.
    drop(visitor);
}
