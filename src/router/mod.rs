//! The front door: takes every visitor's request and sends it to the right service, site, or to kennel itself.
//!
//! One immutable `table::RouteTable` holds everything a request needs; it is rebuilt whole from the rows and
//! swapped in one store. `table` routes and knows no HTTP; `forward` knows HTTP and no routes.
//!
//! **Invariant:** a request reaches a service only with a claim on it, and none is given once its drain has
//! begun, so nothing lands on a service that is being stopped.

mod accept;
mod access_log;
mod backed;
mod body;
mod client;
mod connection;
mod dispatch;
mod forward;
mod frames;
mod generation;
mod h2c;
mod headers;
mod http2;
mod https;
mod inbox;
mod io;
mod metrics;
mod origin;
mod outbox;
mod pages;
mod patience;
mod proxied;
mod replaced;
mod settings;
mod site;
mod streamed;
mod table;
mod tls;
mod tunnel;
mod upstream;
mod visitor_body;
mod watch;
mod worker;

#[cfg(test)]
pub(crate) use self::tls::testing;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use ipnet::IpNet;
use tokio::net::TcpListener;
use tokio::runtime;
use tokio::sync::{Mutex, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::generation::{Generation, Stage};
pub use self::headers::host_of;
pub use self::metrics::Metrics;
use self::metrics::Series;
pub use self::replaced::{Pages, PagesError};
pub use self::settings::{Https, Limits, RouterConfig, Timeouts};
use self::site::Files;
use self::table::RouteTable;
pub use self::tls::{Certificate, CertificateError, Certificates, Challenge, Offer};
use self::worker::Worker;
use crate::config::AccessLog;
use crate::model::{DeploymentId, HostName, Route, TargetId};
use crate::places::{self, Places};
use crate::store::{Store, StoreError};
use crate::telemetry::chain;
use crate::wake::Bell;

/// How often idle connections that are too old are looked for.
const SWEEP: Duration = Duration::from_secs(5);
/// How often it is written down who was asked for.
const REQUESTS_TICK: Duration = Duration::from_secs(60);

/// On every request handed to the control service: it came from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FromOutside {
    /// The visitor's address.
    pub peer: SocketAddr,
}

/// Where visitors come in.
#[derive(Debug, Default)]
pub struct Listeners {
    /// For plain HTTP.
    pub http: Vec<TcpListener>,
    /// For HTTP within TLS.
    pub https: Vec<TcpListener>,
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
    /// All of them, or those of one target.
    async fn routes(&self, target: Option<TargetId>) -> Result<Vec<Route>, StoreError> {
        match self {
            Self::Store(store) => store.routes_of(target).await,
            #[cfg(test)]
            Self::Given(routes) => {
                let routes = routes.lock().expect("no test panics while it holds the routes");
                Ok(routes.iter().filter(|route| target.is_none_or(|target| route.target == target)).cloned().collect())
            }
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
    files: Arc<Files>,
    metrics: Metrics,
    access_log: AccessLog,
    pages: Pages,
    /// Where what kennel answers itself is counted.
    own: Arc<Series>,
    control: Option<(HostName, axum::Router)>,
    timeouts: Timeouts,
    limits: Limits,
    trusted: Vec<IpNet>,
    /// Whether connections of those begin by saying whose they are.
    proxy_protocol: bool,
    https: Https,
    tls: tls::Front,
    hosts_changed: Vec<Bell>,
    table: ArcSwap<RouteTable>,
    /// Held from reading the rows to the swap: an older reading must not replace a newer one.
    reloading: Mutex<()>,
    /// Places for connections.
    places: Arc<Semaphore>,
    /// The same, by address.
    places_of_one: Places,
    /// What connections that come in now belong to.
    generation: ArcSwap<Generation>,
    /// One task for each connection after a switch of protocols.
    tunnels: TaskTracker,
    /// Cancelled when no more connections are taken.
    closed: CancellationToken,
    /// Cancelled when connections after a switch of protocols have to end.
    away: CancellationToken,
    /// Requests to kennel itself that have begun.
    control_requests: TaskTracker,
    /// Cancelled when another process takes the router's place.
    leaving: CancellationToken,
    /// Cancelled when that one may: only what has begun is still here, and none of it is for kennel itself.
    left: CancellationToken,
    /// The threads that serve visitors.
    workers: Box<[Worker]>,
    /// Where [`Router::run`] runs, and kennel's own work with it.
    home: OnceLock<runtime::Handle>,
}

impl Shared {
    /// Who a connection from that address is charged to. A proxy brings many visitors.
    fn charged(&self, address: IpAddr) -> places::Source {
        if origin::is_trusted(address, &self.trusted) {
            places::Source::Proxy
        } else {
            places::Source::of(Some(address))
        }
    }

    /// Has every connection look at what has changed around it.
    fn rouse(&self) {
        self.workers.iter().for_each(|worker| worker.watches.wake_all());
    }
}

impl Router {
    /// A router and its handle. Its table is empty until the first [`Handle::reload`].
    #[must_use]
    pub fn new(config: RouterConfig, store: Store) -> (Self, Handle) {
        Self::with_source(config, Source::Store(store))
    }

    fn with_source(config: RouterConfig, source: Source) -> (Self, Handle) {
        let RouterConfig {
            store_dir,
            control,
            https,
            hosts_changed,
            trusted,
            proxy_protocol,
            workers,
            timeouts,
            limits,
            metrics,
            access_log,
            pages,
        } = config;
        let shared = Arc::new(Shared {
            source,
            files: Files::new(store_dir, limits.site_memory_bytes),
            own: metrics.series(None, workers.get()),
            tls: tls::Front::new(Arc::clone(metrics.tls())),
            metrics,
            access_log,
            pages,
            control,
            trusted,
            proxy_protocol,
            timeouts,
            places: Arc::new(Semaphore::new(limits.connections)),
            places_of_one: Places::new(limits.connections_of_one),
            limits,
            https,
            hosts_changed,
            table: ArcSwap::default(),
            reloading: Mutex::default(),
            generation: ArcSwap::from_pointee(Generation::new(Stage::Serving)),
            tunnels: TaskTracker::new(),
            closed: CancellationToken::new(),
            away: CancellationToken::new(),
            control_requests: TaskTracker::new(),
            leaving: CancellationToken::new(),
            left: CancellationToken::new(),
            workers: (0..workers.get()).map(|_| Worker::default()).collect(),
            home: OnceLock::new(),
        });
        (Self { shared: Arc::clone(&shared) }, Handle { shared })
    }

    /// Serves visitors on `listeners` until `shutdown`; returns when everything that had begun has ended, or
    /// [`Timeouts::finish`] is over.
    ///
    /// Connections are taken until those from before `shutdown` have finished; then the listeners are closed, so that,
    /// where the service manager holds them too, later ones wait for the next process, and WebSockets are told.
    pub async fn run(self, listeners: Listeners, shutdown: CancellationToken) {
        // Of a second run there is none: this one takes the router.
        let _ = self.shared.home.set(runtime::Handle::current());
        tokio::select! {
            () = worker::serve(&self.shared, listeners, &shutdown) => {}
            () = keep_house(Handle { shared: Arc::clone(&self.shared) }) => {}
        }
        if !self.shared.left.is_cancelled() {
            Handle { shared: self.shared }.note_requests().await;
        }
    }
}

/// Rebuilds the table on the tick, and closes connections that have idled for too long.
async fn keep_house(handle: Handle) {
    let mut tick = tokio::time::interval(handle.shared.timeouts.tick);
    tick.reset();
    let mut sweep = tokio::time::interval(SWEEP);
    let mut requests = tokio::time::interval(REQUESTS_TICK);
    requests.reset();
    let rows = handle.shared.leaving.clone();
    loop {
        tokio::select! {
            // What has begun may go on for long after the rows are another's.
            _ = tick.tick(), if !rows.is_cancelled() => {
                if let Err(err) = handle.reload().await {
                    tracing::error!(error = %err, "Could not rebuild the route table; the old one stays");
                }
            }
            _ = requests.tick(), if !rows.is_cancelled() => handle.note_requests().await,
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
        self.read_again(None).await
    }

    /// The same, of one target's rows: the others stay as they are.
    ///
    /// # Errors
    /// As [`Self::reload`].
    pub async fn reload_target(&self, target: TargetId) -> Result<(), StoreError> {
        self.read_again(Some(target)).await
    }

    async fn read_again(&self, target: Option<TargetId>) -> Result<(), StoreError> {
        let _one_at_a_time = self.shared.reloading.lock().await;
        let routes = self.shared.source.routes(target).await?;
        let previous = self.shared.table.load_full();
        let kept = |other| target.is_some_and(|target| other != target);
        let Shared { files, metrics, workers, .. } = &*self.shared;
        let table = RouteTable::build(&routes, &previous, kept, files, metrics, workers.len());
        let hosts_changed = !table.has_hosts_of(&previous);
        self.shared.table.store(Arc::new(table));
        if hosts_changed {
            self.shared.hosts_changed.iter().for_each(Bell::ring);
        }
        Ok(())
    }

    /// Shows these certificates from now on. Connections that are open keep theirs.
    pub fn show(&self, certificates: Certificates) {
        self.shared.tls.show(certificates);
    }

    /// Answers a certificate authority's challenge for `host`, until the offer is dropped.
    pub fn offer(&self, host: &HostName, challenge: Challenge) -> Offer {
        self.shared.tls.challenges.offer(host.as_str(), challenge)
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

    /// Cancelled once the router takes no more connections, at its end.
    #[must_use]
    pub fn closed(&self) -> CancellationToken {
        self.shared.closed.clone()
    }

    /// Takes no more connections, and lets those that are there do nothing but finish what they have begun, WebSockets
    /// included; returns when none of it needs the rows any more. [`Router::run`] goes on until all has ended.
    pub async fn leave(&self) {
        self.shared.leaving.cancel();
        self.shared.left.cancelled().await;
        self.note_requests().await;
    }

    /// Lets no new request into `deployment`, and returns when none is left in it; what is left at `deadline` is
    /// cut, WebSockets with a close frame, and never before.
    ///
    /// Returns at once when nothing is in it, when it is a site (whose open files outlive it), or unknown.
    /// Call it after the [`Self::reload`] that took the deployment's routes away.
    pub async fn drain(&self, deployment: DeploymentId, deadline: Duration) {
        let upstreams = self.shared.table.load().upstreams_of(deployment);
        futures_util::future::join_all(
            upstreams.iter().map(|upstream| upstream.drain(deadline, || self.shared.rouse())),
        )
        .await;
    }
}
