//! One version of a service on loopback: who is inside it, and the idle connections to it.
//!
//! **Invariant:** a request reaches a service only through a [`Claim`], and there is no claim on a closed upstream.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::body::RequestBody;
use super::wire::{Wire, WireIo};
use crate::model::{DeploymentId, Port};

/// How long a connection may idle. Node closes after 5 s, and no request may meet that.
const IDLE_LIMIT: Duration = Duration::from_secs(4);
/// How many idle connections are kept.
const IDLE_MAX: usize = 128;
/// How long a drain waits, after the cut, for what was cut to let go.
const CUT_GRACE: Duration = Duration::from_secs(1);
/// How long a connection may take to become ready again after the end of an answer.
const SETTLE_LIMIT: Duration = Duration::from_secs(1);
/// The most headers of an answer.
const MAX_HEADERS: usize = 200;

/// One version of a service.
#[derive(Debug)]
pub(super) struct Upstream {
    deployment: DeploymentId,
    port: Port,
    /// Count of claims and closed bit, in one atomic.
    in_flight: TaskTracker,
    /// Cancelled when the drain is over: what is left is cut.
    cut: CancellationToken,
    /// The most recently used last.
    idle: Mutex<VecDeque<Idle>>,
    /// One task for each connection.
    drivers: TaskTracker,
}

#[derive(Debug)]
struct Idle {
    sender: SendRequest<RequestBody>,
    wire: Arc<Wire>,
    since: Instant,
}

/// The right to have a request in a service. While it lives, the service is not stopped (drains aside).
#[derive(Debug)]
pub(super) struct Claim {
    upstream: Arc<Upstream>,
    _token: TaskTrackerToken,
}

/// A connection, for one exchange.
#[derive(Debug)]
pub(super) struct Lease {
    /// Where requests go in.
    pub(super) sender: SendRequest<RequestBody>,
    wire: Arc<Wire>,
    /// Whether it has carried an exchange before, so that the service may have closed it meanwhile.
    pub(super) reused: bool,
}

impl Upstream {
    /// An upstream that nothing has reached yet.
    pub(super) fn new(deployment: DeploymentId, port: Port) -> Self {
        Self {
            deployment,
            port,
            in_flight: TaskTracker::new(),
            cut: CancellationToken::new(),
            idle: Mutex::default(),
            drivers: TaskTracker::new(),
        }
    }

    /// Which version this is.
    pub(super) fn deployment(&self) -> DeploymentId {
        self.deployment
    }

    /// Where it listens on 127.0.0.1.
    pub(super) fn port(&self) -> Port {
        self.port
    }

    /// Whether a drain has begun.
    pub(super) fn is_closed(&self) -> bool {
        self.in_flight.is_closed()
    }

    /// How many requests are inside.
    pub(super) fn claims(&self) -> usize {
        self.in_flight.len()
    }

    /// Claims a place, or `None` once a drain has begun.
    ///
    /// The place is taken first and the closed bit read after: the other way round, a drain that falls
    /// between the two would count zero and let the service be stopped under this request.
    pub(super) fn claim(self: &Arc<Self>) -> Option<Claim> {
        let token = self.in_flight.token();
        if self.in_flight.is_closed() {
            return None;
        }
        Some(Claim { upstream: Arc::clone(self), _token: token })
    }

    /// Refuses new claims and returns when there are none left; what is left at `deadline` is cut, never before.
    ///
    /// After the cut, the service's side of every connection is closed; a visitor who does not read may hold a
    /// claim a little longer, which this waits for only briefly.
    pub(super) async fn drain(&self, deadline: Duration) {
        self.in_flight.close();
        self.idle().clear();
        let left = tokio::time::timeout(deadline, self.in_flight.wait()).await.is_err();
        self.cut.cancel();
        if left {
            tracing::info!(
                deployment.id = %self.deployment,
                requests = self.in_flight.len(),
                "Cut what was left in deployment {} when its drain ended",
                self.deployment
            );
            // Best effort: see above.
            let _ = tokio::time::timeout(CUT_GRACE, self.in_flight.wait()).await;
        }
    }

    /// Closes connections that have idled for too long.
    pub(super) fn sweep(&self) {
        let mut idle = self.idle();
        while idle.front().is_some_and(|oldest| oldest.since.elapsed() >= IDLE_LIMIT) {
            idle.pop_front();
        }
    }

    fn idle(&self) -> MutexGuard<'_, VecDeque<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn park(&self, sender: SendRequest<RequestBody>, wire: Arc<Wire>) {
        self.sweep();
        let mut idle = self.idle();
        if self.is_closed() || sender.is_closed() {
            return;
        }
        if idle.len() >= IDLE_MAX {
            idle.pop_front();
        }
        idle.push_back(Idle { sender, wire, since: Instant::now() });
    }
}

impl Claim {
    /// Resolves when the drain is over.
    pub(super) async fn cut(&self) {
        self.upstream.cut.cancelled().await;
    }

    /// Cancelled when the drain is over.
    pub(super) fn cut_token(&self) -> CancellationToken {
        self.upstream.cut.clone()
    }

    /// Which version this leads to.
    pub(super) fn deployment(&self) -> DeploymentId {
        self.upstream.deployment
    }

    /// The idle connection used last that still seems alive.
    ///
    /// With `certain`, the kernel is asked too whether the service has closed it: for requests that
    /// cannot be sent twice.
    pub(super) fn reuse(&self, certain: bool) -> Option<Lease> {
        loop {
            let Idle { sender, wire, since } = self.upstream.idle().pop_back()?;
            if since.elapsed() >= IDLE_LIMIT {
                // The others are older still.
                self.upstream.idle().clear();
                return None;
            }
            if sender.is_ready() && !(certain && wire.has_news()) {
                wire.forget();
                return Some(Lease { sender, wire, reused: true });
            }
        }
    }

    /// A new connection.
    ///
    /// # Errors
    /// When the service does not accept it within `limit` (then of kind `TimedOut`).
    pub(super) async fn connect(&self, limit: Duration) -> io::Result<Lease> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.upstream.port.get()));
        let stream = tokio::time::timeout(limit, TcpStream::connect(address)).await??;
        stream.set_nodelay(true)?;
        let wire = Arc::new(Wire::new(stream));
        let (sender, connection) = http1::Builder::new()
            .max_headers(MAX_HEADERS)
            .handshake(TokioIo::new(WireIo::new(Arc::clone(&wire))))
            .await
            .map_err(io::Error::other)?;
        let cut = self.upstream.cut.clone();
        self.upstream.drivers.spawn(async move {
            let mut connection = pin!(connection.with_upgrades());
            tokio::select! {
                // Its error reaches whoever waits for the answer.
                _ = &mut connection => {}
                () = cut.cancelled() => {}
            }
        });
        Ok(Lease { sender, wire, reused: false })
    }

    /// Keeps a connection whose exchange is over for the next one.
    pub(super) fn give_back(&self, lease: Lease) {
        let Lease { mut sender, wire, .. } = lease;
        if sender.is_ready() {
            self.upstream.park(sender, wire);
        } else if !sender.is_closed() {
            let upstream = Arc::downgrade(&self.upstream);
            self.upstream.drivers.spawn(async move {
                if let Ok(Ok(())) = tokio::time::timeout(SETTLE_LIMIT, sender.ready()).await
                    && let Some(upstream) = upstream.upgrade()
                {
                    upstream.park(sender, wire);
                }
            });
        }
    }
}

impl Lease {
    /// Whether the service has said anything since this lease began.
    pub(super) fn heard(&self) -> bool {
        self.wire.heard()
    }
}
