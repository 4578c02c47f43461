//! The connections to one version of a service that speaks HTTP/2: for each of the router's threads, its own.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use h2::RecvStream;
use h2::client::{Builder, SendRequest};
use http::HeaderMap;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use crate::router::frames::{self, Paced};
use crate::router::inbox::Inbox;
use crate::router::streamed::Streamed;
use crate::router::upstream::Claim;

/// Requests on one connection before there is another. Many servers allow a hundred.
const REQUESTS_MAX: usize = 100;
/// Bytes of one answer that a service may send before the visitor has taken them.
const STREAM_WINDOW: u32 = 128 * 1024;
/// The same for all of a connection: as much as there is (RFC 9113, section 6.9.1), so that those who take nothing do
/// not use up what the others need.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// Bytes of one request that wait for the service.
const SEND_BUFFER: usize = 64 * 1024;
/// Bytes of an answer's head, as RFC 9113, section 6.5.2, counts them.
const HEAD_MAX: u32 = 256 * 1024;

/// The connections to one version of a service.
#[derive(Debug)]
pub(in crate::router) struct Links {
    lanes: Box<[Lane]>,
    /// The tasks that read and write, which end with the connections.
    tasks: TaskTracker,
}

/// The connections of one thread.
#[derive(Debug, Default)]
struct Lane {
    open: Mutex<Vec<Link>>,
    /// Held while there is to be another: those who want one meanwhile wait for it.
    opening: tokio::sync::Mutex<()>,
}

/// One connection: held by each request on it, and once by its [`Lane`].
#[derive(Debug, Clone)]
pub(super) struct Link {
    send: SendRequest<Bytes>,
    /// Whether it takes no more requests.
    is_over: Arc<AtomicBool>,
}

impl Links {
    /// None yet, for so many threads.
    pub(in crate::router) fn new(lanes: usize) -> Self {
        Self { lanes: (0..lanes).map(|_| Lane::default()).collect(), tasks: TaskTracker::new() }
    }

    /// Lets go of the connections: each closes after its last request.
    pub(in crate::router) fn empty(&self) {
        (0..self.lanes.len()).for_each(|lane| self.lane(lane).clear());
    }

    fn lane(&self, lane: usize) -> MutexGuard<'_, Vec<Link>> {
        self.lanes[lane].open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One that has room.
    pub(super) fn find(&self, lane: usize) -> Option<Link> {
        let mut links = self.lane(lane);
        links.retain(|link| !link.is_over.load(Ordering::Relaxed));
        links.iter().find(|link| Arc::strong_count(&link.is_over) <= REQUESTS_MAX).cloned()
    }

    /// The right to open another.
    pub(super) async fn opening(&self, lane: usize) -> impl Drop {
        self.lanes[lane].opening.lock().await
    }

    /// Another, by `stream`, on which nothing has been sent; kept, unless `claim` says that there is to be none.
    ///
    /// # Errors
    /// When nothing can be sent.
    pub(super) async fn open(&self, lane: usize, stream: TcpStream, claim: &Claim) -> Result<Link, h2::Error> {
        let (reads, writes) = stream.into_split();
        let mut builder = Builder::new();
        builder
            .enable_push(false)
            .initial_max_send_streams(REQUESTS_MAX)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .data_frame_budget(frames::RECORDS)
            .max_header_list_size(HEAD_MAX)
            .max_send_buffer_size(SEND_BUFFER);
        let (send, connection) = builder.handshake(tokio::io::join(Paced::new(reads), writes)).await?;
        let link = Link { send, is_over: Arc::default() };
        let (deployment, is_over) = (claim.deployment(), Arc::downgrade(&link.is_over));
        self.tasks.spawn(async move {
            if let Err(err) = connection.await {
                tracing::debug!(deployment.id = %deployment, error = %err, "A connection to {deployment} broke off");
            }
            if let Some(is_over) = is_over.upgrade() {
                is_over.store(true, Ordering::Relaxed);
            }
        });
        let mut kept = self.lane(lane);
        // Under the lock: a drain empties them after it has closed the upstream.
        if !claim.is_closing() {
            kept.push(link.clone());
        }
        Ok(link)
    }

    /// What comes on `stream` after `headers`.
    pub(super) fn receive(&self, stream: RecvStream, headers: &HeaderMap) -> Streamed {
        let (inbox, filling) = Inbox::new(stream);
        self.tasks.spawn(filling);
        Streamed::new(inbox, headers)
    }

    /// Runs `task`, which ends with its connection.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        self.tasks.spawn(task)
    }
}

impl Link {
    /// What a request is sent by, once one can be.
    ///
    /// # Errors
    /// When it takes no more requests.
    pub(super) async fn ready(&self) -> Result<SendRequest<Bytes>, h2::Error> {
        let ready = self.send.clone().ready().await;
        if ready.is_err() {
            self.is_over.store(true, Ordering::Relaxed);
        }
        ready
    }
}
