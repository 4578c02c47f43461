//! One version of a service on loopback: who is inside it, and the idle connections to it.
//!
//! **Invariant:** a request reaches a service only through a [`Claim`], and there is no claim on a closed upstream.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::client::Wire;
use super::h2c::Links;
use super::watch::Moment;
use crate::model::{DeploymentId, Port, Protocol};

/// How long a connection may idle. Node closes after 5 s, and no request may meet that.
const IDLE_LIMIT: Duration = Duration::from_secs(4);
/// How many idle connections each thread keeps. What is more than the visitors need goes with [`IDLE_LIMIT`].
const IDLE_MAX: usize = 1024;
/// How long a drain waits, after the cut, for what was cut to let go.
const CUT_GRACE: Duration = Duration::from_secs(1);

/// One version of a service.
#[derive(Debug)]
pub(super) struct Upstream {
    deployment: DeploymentId,
    port: Port,
    /// Count of claims and closed bit, in one atomic.
    in_flight: TaskTracker,
    /// Cancelled when the drain is over: what is left is cut.
    cut: CancellationToken,
    /// For each of the router's threads, its idle connections, the most recently used last.
    idle: Box<[Mutex<VecDeque<Idle>>]>,
    /// Connections to a service that speaks HTTP/2.
    links: Option<Links>,
}

#[derive(Debug)]
struct Idle {
    wire: Wire,
    since: Moment,
}

/// The right to have a request in a service. While it lives, the service is not stopped (drains aside).
#[derive(Debug)]
pub(super) struct Claim {
    upstream: Arc<Upstream>,
    _token: TaskTrackerToken,
}

/// How sure one has to be that an idle connection is still open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Certainty {
    /// What the runtime has noticed will do.
    Likely,
    /// The kernel is asked: for requests that cannot be sent twice.
    Certain,
}

impl Upstream {
    /// An upstream that nothing has reached yet, for so many threads.
    pub(super) fn new(deployment: DeploymentId, port: Port, protocol: Protocol, lanes: usize) -> Self {
        Self {
            deployment,
            port,
            in_flight: TaskTracker::new(),
            cut: CancellationToken::new(),
            idle: (0..lanes).map(|_| Mutex::default()).collect(),
            links: (protocol == Protocol::H2c).then(|| Links::new(lanes)),
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

    /// What it speaks.
    pub(super) fn protocol(&self) -> Protocol {
        if self.links.is_some() { Protocol::H2c } else { Protocol::Http1 }
    }

    /// Whether a drain has begun.
    pub(super) fn is_closed(&self) -> bool {
        self.in_flight.is_closed()
    }

    /// How many requests are inside.
    pub(super) fn claims(&self) -> usize {
        self.in_flight.len()
    }

    /// Claims a place, or `None` once a drain has begun. Every request to the service passes here.
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
    /// `rouse` wakes whoever may hold a claim, so that he sees the cut. After it, the service's side of every
    /// connection is closed; a visitor who does not read may hold a claim a little longer, which this waits for
    /// only briefly.
    pub(super) async fn drain(&self, deadline: Duration, rouse: impl Fn()) {
        self.in_flight.close();
        self.empty();
        let left = tokio::time::timeout(deadline, self.in_flight.wait()).await.is_err();
        self.cut.cancel();
        if left {
            rouse();
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
        let now = Moment::now();
        for lane in 0..self.idle.len() {
            let mut idle = self.idle(lane);
            while idle.front().is_some_and(|oldest| now >= oldest.since.after(IDLE_LIMIT)) {
                idle.pop_front();
            }
        }
    }

    fn empty(&self) {
        (0..self.idle.len()).for_each(|lane| self.idle(lane).clear());
        self.links.iter().for_each(Links::empty);
    }

    fn idle(&self, lane: usize) -> MutexGuard<'_, VecDeque<Idle>> {
        self.idle[lane].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claim {
    /// Whether the drain is over.
    pub(super) fn is_cut(&self) -> bool {
        // The closed bit is an atomic of its own: most requests need not ask further.
        self.upstream.is_closed() && self.upstream.cut.is_cancelled()
    }

    /// Whether a drain has begun.
    pub(super) fn is_closing(&self) -> bool {
        self.upstream.is_closed()
    }

    /// The connections to a service that speaks HTTP/2.
    pub(super) fn links(&self) -> Option<&Links> {
        self.upstream.links.as_ref()
    }

    /// Cancelled when the drain is over.
    pub(super) fn cut_token(&self) -> CancellationToken {
        self.upstream.cut.clone()
    }

    /// Which version this leads to.
    pub(super) fn deployment(&self) -> DeploymentId {
        self.upstream.deployment
    }

    /// Where the service listens on 127.0.0.1.
    pub(super) fn port(&self) -> Port {
        self.upstream.port
    }

    /// The idle connection that this thread used last and that still seems open.
    pub(super) fn reuse(&self, lane: usize, certainty: Certainty) -> Option<Wire> {
        let now = Moment::now();
        loop {
            let Idle { wire, since } = self.upstream.idle(lane).pop_back()?;
            if now >= since.after(IDLE_LIMIT) {
                // The others are older still.
                self.upstream.idle(lane).clear();
                return None;
            }
            let open = match certainty {
                Certainty::Likely => wire.seems_idle(),
                Certainty::Certain => wire.is_idle(),
            };
            if open {
                return Some(wire);
            }
        }
    }

    /// Keeps a connection whose exchange is over for this thread's next one.
    pub(super) fn give_back(&self, lane: usize, wire: Wire) {
        let now = Moment::now();
        let mut idle = self.upstream.idle(lane);
        // Under the lock: a drain empties the pools after it has closed the upstream.
        if self.upstream.is_closed() {
            return;
        }
        let stale = |oldest: &Idle| now >= oldest.since.after(IDLE_LIMIT);
        if idle.len() >= IDLE_MAX || idle.front().is_some_and(stale) {
            idle.pop_front();
        }
        idle.push_back(Idle { wire, since: now });
    }
}
