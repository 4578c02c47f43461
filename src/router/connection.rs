//! One visitor's connection: hyper reads his requests, and nothing but the socket is kept while he has none.
//!
//! **Invariant:** every wait for a visitor has a limit: for a head, and for room to write.

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::task::Poll;

use bytes::Bytes;
use futures_util::FutureExt as _;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;

use super::backed::{Backed, Outgoing};
use super::generation::{Generation, Stage};
use super::io::Io;
use super::metrics::Connected;
use super::origin::Origin;
use super::tls::Secured;
use super::watch::{Moment, Watch};
use super::{Shared, dispatch, http2};
use crate::places::{Place, Source};

/// The most that is read of a request before buffers are made for it.
const FIRST: usize = 1024;

/// Who is at the other end of a connection, and how he came in.
#[derive(Debug)]
pub(super) struct Visitor {
    /// His address.
    pub(super) peer: SocketAddr,
    /// What services are told of him.
    pub(super) origin: Arc<Origin>,
    /// Which of the router's threads serves him.
    pub(super) lane: usize,
    /// His connection's TLS, if he came by that.
    pub(super) secured: Option<Arc<Secured>>,
    /// His connection's task; with HTTP/2, the one of a request.
    pub(super) watch: Watch,
    /// Those his connection ends with.
    pub(super) generation: Arc<Generation>,
    /// Requests of his that have begun and whose answers are not over.
    turns: AtomicU32,
    /// Since when a request's head is waited for, as [`Moment`].
    since_ms: AtomicU64,
    /// Whether some of that head has come.
    pub(super) heard: AtomicBool,
    /// Whether he takes nothing of an answer at the moment.
    pub(super) stalled: AtomicBool,
    /// What he is to be sent next, where a file has it too.
    pub(super) outgoing: Outgoing,
    held: Held,
}

/// What a connection takes of what there is.
#[derive(Debug)]
enum Held {
    /// One of the places there are for connections, one of those that an address may have, and its count.
    Places((OwnedSemaphorePermit, Place, Connected)),
    /// Nothing of its own: one of several requests at a time of the connection whose turn this is.
    Turn(Turn),
}

impl Visitor {
    /// A visitor who has just come in.
    pub(super) fn new(
        peer: SocketAddr,
        origin: Origin,
        lane: usize,
        watch: Watch,
        places: (OwnedSemaphorePermit, Place, Connected),
        generation: Arc<Generation>,
    ) -> Self {
        Self {
            peer,
            origin: Arc::new(origin),
            lane,
            secured: None,
            watch,
            generation,
            turns: AtomicU32::new(0),
            since_ms: AtomicU64::new(Moment::now().as_ms()),
            heard: AtomicBool::new(false),
            stalled: AtomicBool::new(false),
            outgoing: Outgoing::default(),
            held: Held::Places(places),
        }
    }

    /// The same, by TLS.
    pub(super) fn secured(self, secured: Secured) -> Self {
        Self { secured: Some(Arc::new(secured)), ..self }
    }

    /// The same visitor, as far as one of several requests at a time on his connection is concerned.
    pub(super) fn in_stream(self: &Arc<Self>, watch: Watch) -> Self {
        Self {
            peer: self.peer,
            origin: Arc::clone(&self.origin),
            lane: self.lane,
            secured: self.secured.clone(),
            watch,
            generation: Arc::clone(&self.generation),
            turns: AtomicU32::new(0),
            since_ms: AtomicU64::new(0),
            heard: AtomicBool::new(false),
            stalled: AtomicBool::new(false),
            outgoing: Outgoing::default(),
            held: Held::Turn(Turn::begin(self)),
        }
    }

    /// Whether this is about one of several requests at a time.
    pub(super) fn is_in_stream(&self) -> bool {
        matches!(self.held, Held::Turn(_))
    }

    /// Requests of his that have begun and whose answers are not over.
    pub(super) fn turns(&self) -> u32 {
        self.turns.load(Ordering::Relaxed)
    }

    /// Whether the operator trusts what he says of others.
    pub(super) fn is_proxy(&self) -> bool {
        match &self.held {
            Held::Places((_, place, _)) => place.source() == Source::Proxy,
            Held::Turn(turn) => turn.0.is_proxy(),
        }
    }

    /// Since when the next request's head is waited for; `None` while an answer is on its way.
    pub(super) fn waits_since(&self) -> Option<Moment> {
        let busy = self.turns.load(Ordering::Relaxed) > 0 || self.stalled.load(Ordering::Relaxed);
        (!busy).then(|| Moment::from_ms(self.since_ms.load(Ordering::Relaxed)))
    }

    /// The next request's head is waited for from now on.
    pub(super) fn wait_anew(&self) {
        self.since_ms.store(Moment::now().as_ms(), Ordering::Relaxed);
    }
}

/// A request being answered. It ends with the last byte of the answer's body.
#[derive(Debug)]
pub(super) struct Turn(Arc<Visitor>);

impl Turn {
    /// `visitor` has asked for something.
    pub(super) fn begin(visitor: &Arc<Visitor>) -> Self {
        visitor.turns.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(visitor))
    }

    /// Whose turn it is.
    pub(super) fn visitor(&self) -> &Arc<Visitor> {
        &self.0
    }

    /// Bytes of `backed` are the answer's next.
    pub(super) fn announce(&self, backed: Arc<Backed>) {
        self.0.outgoing.announce(backed);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.turns.fetch_sub(1, Ordering::Relaxed);
        self.0.heard.store(false, Ordering::Relaxed);
        self.0.wait_anew();
    }
}

/// Serves a connection, which may speak HTTP/2 without having said so, until it ends.
pub(super) async fn serve_either<S>(shared: Arc<Shared>, stream: S, visitor: Arc<Visitor>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut io = Io::new(stream, Arc::clone(&visitor), shared.timeouts.idle);
    if !park(&shared, &mut io).await {
        return;
    }
    while io.first.len() < http2::PREFACE.len() && http2::PREFACE.starts_with(&io.first) {
        let begun = std::mem::take(&mut io.first);
        if !park(&shared, &mut io).await {
            return;
        }
        io.first = [begun, std::mem::take(&mut io.first)].concat().into();
    }
    if io.first.starts_with(http2::PREFACE) {
        http2::serve(shared, io, visitor).await;
    } else {
        serve_http1(shared, io, visitor).await;
    }
}

/// Serves a connection until it ends.
pub(super) async fn serve<S>(shared: Arc<Shared>, stream: S, visitor: Arc<Visitor>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let io = Io::new(stream, Arc::clone(&visitor), shared.timeouts.idle);
    serve_http1(shared, io, visitor).await;
}

async fn serve_http1<S>(shared: Arc<Shared>, mut io: Io<S>, visitor: Arc<Visitor>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let limits = &shared.limits;
    let mut builder = http1::Builder::new();
    builder
        // The limit on heads is kept here: hyper would set a timer for each.
        .header_read_timeout(None)
        .max_headers(limits.headers)
        .max_header_size(limits.head_bytes)
        // hyper panics below 8 KiB.
        .max_buf_size(limits.head_bytes.max(8192));
    loop {
        let service = service_fn(|request| dispatch::answer(&shared, &visitor, request).map(Ok::<_, Infallible>));
        // In a box, so that nothing of it is left once it is parked.
        let mut http = Box::new(builder.serve_connection(TokioIo::new(io), service).with_upgrades());
        let mut closing = false;
        let idle = poll_fn(|cx| {
            visitor.watch.register(cx);
            // A request that has arrived is taken before the connection is told to close.
            while Pin::new(&mut *http).poll(cx).map(|ended| note_end(&visitor, ended)).is_pending() {
                let stage = visitor.generation.stage();
                if stage >= Stage::Closing && !closing {
                    closing = true;
                    Pin::new(&mut *http).graceful_shutdown();
                    continue;
                }
                return match still(&shared, &visitor, stage) {
                    Still::Waiting => Poll::Pending,
                    Still::Idle if visitor.heard.load(Ordering::Relaxed) || closing => Poll::Pending,
                    Still::Idle => Poll::Ready(true),
                    Still::Over => Poll::Ready(false),
                };
            }
            Poll::Ready(false)
        })
        .await;
        if !idle {
            return;
        }
        let Some(parts) = http.into_parts() else { return };
        io = parts.io.into_inner();
        io.first = parts.read_buf;
        if io.first.is_empty() && !park(&shared, &mut io).await {
            return;
        }
    }
}

fn note_end(visitor: &Visitor, ended: hyper::Result<()>) {
    if let Err(err) = ended {
        tracing::debug!(peer = %visitor.peer, error = %err, "A connection of {} broke off", visitor.peer);
    }
}

/// What becomes of a connection on which nothing happens.
enum Still {
    /// Go on waiting.
    Waiting,
    /// There has been no request for a while.
    Idle,
    /// It has to end.
    Over,
}

fn still(shared: &Shared, visitor: &Visitor, stage: Stage) -> Still {
    if stage == Stage::Cut {
        return Still::Over;
    }
    let Some(since) = visitor.waits_since() else { return Still::Waiting };
    let (now, over, idle) =
        (Moment::now(), since.after(shared.timeouts.request_header), since.after(shared.timeouts.park));
    if now >= over {
        Still::Over
    } else if now >= idle {
        visitor.watch.until(over);
        Still::Idle
    } else {
        visitor.watch.until(idle.min(over));
        Still::Waiting
    }
}

/// Waits for the first bytes of a request; false when there will be none.
async fn park<S: AsyncRead + Unpin>(shared: &Shared, io: &mut Io<S>) -> bool {
    poll_fn(|cx| {
        io.visitor.watch.register(cx);
        let mut bytes = [0; FIRST];
        let mut read = ReadBuf::new(&mut bytes);
        match Pin::new(&mut io.stream).poll_read(cx, &mut read) {
            Poll::Ready(Ok(())) if !read.filled().is_empty() => {
                io.first = Bytes::copy_from_slice(read.filled());
                Poll::Ready(true)
            }
            Poll::Ready(_) => Poll::Ready(false),
            Poll::Pending if io.visitor.generation.stage() >= Stage::Closing => Poll::Ready(false),
            Poll::Pending => match still(shared, &io.visitor, Stage::Serving) {
                Still::Over => Poll::Ready(false),
                Still::Waiting | Still::Idle => Poll::Pending,
            },
        }
    })
    .await
}
