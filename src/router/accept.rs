//! Connections of visitors: taken, limited, served, and at the end let finish.

use std::convert::Infallible;
use std::future::Future as _;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;

use super::Shared;
use crate::places::Place;

/// How long to wait for a descriptor or memory to become free.
const SHORTAGE: Duration = Duration::from_millis(100);

/// Who is at the other end of a connection, and how he came in.
#[derive(Debug)]
pub(super) struct Visitor {
    /// His address.
    pub(super) peer: SocketAddr,
    /// The address he came in by.
    pub(super) local: SocketAddr,
    /// `http` or `https`.
    pub(super) scheme: &'static str,
    /// One of the places there are for connections.
    _place: OwnedSemaphorePermit,
    /// One of those that an address may have.
    _of_one: Place,
}

/// Serves visitors until `shutdown`, then lets what has begun finish, within bounds.
pub(super) async fn serve(shared: &Arc<Shared>, listeners: Vec<TcpListener>, shutdown: &CancellationToken) {
    let mut loops = JoinSet::new();
    for listener in listeners {
        loops.spawn(accept(Arc::clone(shared), listener, shutdown.clone()));
    }
    shutdown.cancelled().await;
    shared.stopping.cancel();
    while loops.join_next().await.is_some() {}
    // Requests that are on their way on connections we hold are still taken, each answer closing its connection.
    tokio::time::sleep(shared.timeouts.lame_duck).await;
    shared.closing.cancel();
    shared.tasks.close();
    if tokio::time::timeout(shared.timeouts.finish, shared.tasks.wait()).await.is_err() {
        let left = shared.tasks.len();
        tracing::warn!(connections = left, "Cut {left} connections that did not finish in time");
        shared.cut.cancel();
        shared.tasks.wait().await;
    }
}

async fn accept(shared: Arc<Shared>, listener: TcpListener, shutdown: CancellationToken) {
    let mut short = false;
    loop {
        let place = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            place = Arc::clone(&shared.places).acquire_owned() => place.expect("the semaphore is never closed"),
        };
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                short = false;
                start(&shared, stream, peer, place);
            }
            Err(err) if is_of_one_connection(&err) => {}
            Err(err) => {
                if !short {
                    short = true;
                    tracing::error!(error = %err, "Cannot accept connections; trying again until it works");
                }
                tokio::time::sleep(SHORTAGE).await;
            }
        }
    }
    // The kernel has completed the handshake of these: they would be reset.
    let Ok(listener) = listener.into_std() else { return };
    while let Ok(place) = Arc::clone(&shared.places).try_acquire_owned() {
        match listener.accept() {
            Ok((stream, peer)) => {
                if stream.set_nonblocking(true).is_ok()
                    && let Ok(stream) = TcpStream::from_std(stream)
                {
                    start(&shared, stream, peer, place);
                }
            }
            Err(err) if is_of_one_connection(&err) => {}
            Err(_) => break,
        }
    }
}

/// Whether an error is about the connection, and not about accepting (`accept(2)`).
fn is_of_one_connection(err: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(err.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
        || err.raw_os_error() == Some(nix::libc::EPROTO)
}

fn start(shared: &Arc<Shared>, stream: TcpStream, peer: SocketAddr, place: OwnedSemaphorePermit) {
    let Some(of_one) = shared.places_of_one.take(Some(peer)) else { return };
    let (Ok(local), Ok(())) = (stream.local_addr(), stream.set_nodelay(true)) else {
        // It is gone already.
        return;
    };
    let visitor = Arc::new(Visitor { peer, local, scheme: "http", _place: place, _of_one: of_one });
    let stream = Impatient::new(stream, shared.timeouts.idle);
    shared.tasks.spawn(connection(Arc::clone(shared), stream, visitor));
}

async fn connection<I>(shared: Arc<Shared>, io: I, visitor: Arc<Visitor>)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request| {
        let (shared, visitor) = (Arc::clone(&shared), Arc::clone(&visitor));
        async move { Ok::<_, Infallible>(super::answer(&shared, visitor, request).await) }
    });
    let connection = http1::Builder::new()
        // Without a timer, hyper's time limits are silently inert.
        .timer(TokioTimer::new())
        .header_read_timeout(shared.timeouts.request_header)
        .max_headers(shared.limits.headers)
        .max_header_size(shared.limits.head_bytes)
        // hyper panics below 8 KiB.
        .max_buf_size(shared.limits.head_bytes.max(8192))
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let mut closing = false;
    loop {
        tokio::select! {
            // First: a request that has arrived is taken before the connection is told to close.
            biased;
            ended = connection.as_mut() => {
                if let Err(err) = ended {
                    tracing::debug!(peer = %visitor.peer, error = %err, "A connection of {} broke off", visitor.peer);
                }
                return;
            }
            () = shared.cut.cancelled() => return,
            () = shared.closing.cancelled(), if !closing => {
                closing = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// A stream that fails when the other side takes nothing for too long.
#[derive(Debug)]
struct Impatient<S> {
    stream: S,
    limit: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
    waiting: bool,
}

impl<S> Impatient<S> {
    fn new(stream: S, limit: Duration) -> Self {
        Self { stream, limit, stalled: None, waiting: false }
    }

    fn watch<T>(&mut self, cx: &mut Context<'_>, done: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if done.is_ready() {
            self.waiting = false;
            return done;
        }
        let limit = self.limit;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        if !self.waiting {
            self.waiting = true;
            stalled.as_mut().reset(Instant::now() + limit);
        }
        match stalled.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Impatient<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Impatient<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let done = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.watch(cx, done)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let done = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.watch(cx, done)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let done = Pin::new(&mut this.stream).poll_flush(cx);
        this.watch(cx, done)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
