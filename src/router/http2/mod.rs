//! HTTP/2 with a visitor (RFC 9113): many requests at a time on one connection, each answered as one of HTTP/1.1 is.
//!
//! `hyper` speaks it; `streams` polls the requests within the connection's own task, `head` makes of each what
//! HTTP/1.1 would have brought, and `guard` ends a connection that is busy with nothing but overhead.
//!
//! **Invariant:** every wait for a visitor has a limit: for a request, for room to write, and for a window to open.

mod guard;
mod head;
mod streams;

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::GracefulConnection;
use tokio::io::{AsyncRead, AsyncWrite};

use self::guard::Guard;
use self::streams::{Fresh, Offered, Running};
use super::connection::Visitor;
use super::generation::Stage;
use super::io::Io;
use super::watch::Moment;
use super::{Limits, Shared, dispatch};

/// What a connection begins with (RFC 9113, section 3.4).
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes of one request's body that a visitor may send before anybody has taken them.
const STREAM_WINDOW: u32 = 256 * 1024;
/// The same for all requests of a connection.
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Bytes of one answer that wait for their turn on the connection before more is read.
const SEND_BUFFER: usize = 16 * 1024;
/// Bytes of all answers of a connection that are read ahead, together, as far as each gets enough to go on.
const READ_AHEAD: usize = 256 * 1024;
/// The least and the most of that for one answer.
const READ_LEAST: usize = 8 * 1024;
const READ_MOST: usize = 64 * 1024;
/// Requests that were taken back before kennel has looked at them, at a time (CVE-2023-44487).
const RESETS: usize = 20;
/// Requests that kennel had to take back since they were malformed, in all of a connection's life.
const ERRORS: usize = 128;
/// At the end: how long the other side has to say that it has understood.
const FAREWELL: Duration = Duration::from_secs(1);

/// Serves a connection of which nothing has been read, but for what `io` holds, until it ends.
pub(super) async fn serve<S>(shared: Arc<Shared>, io: Io<S>, visitor: Arc<Visitor>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let fresh = Fresh::new(shared.timeouts.idle);
    let service = {
        let (shared, visitor, fresh) = (Arc::clone(&shared), Arc::clone(&visitor), fresh.clone());
        service_fn(move |request| {
            let one = Arc::new(visitor.in_stream(shared.workers[visitor.lane].watches.add()));
            fresh.begin(&one);
            let room = READ_AHEAD / visitor.turns().max(1) as usize;
            answer(&shared, one, room.clamp(READ_LEAST, READ_MOST), request)
        })
    };
    let io = TokioIo::new(Guard::new(io, Arc::clone(&visitor)));
    let http = Box::pin(builder(&shared.limits, fresh.clone()).serve_connection(io, service));
    let mut connection = Connection { http, fresh, running: Running::default(), shared, visitor, closing: None };
    if connection.run().await == Ended::ButForTunnels {
        let shared = Arc::clone(&connection.shared);
        shared.tunnels.spawn(async move { connection.outlive().await });
    }
}

fn builder(limits: &Limits, fresh: Fresh) -> http2::Builder<Fresh> {
    let mut builder = http2::Builder::new(fresh);
    builder
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(RESETS)
        .max_local_error_reset_streams(ERRORS)
        .enable_connect_protocol();
    builder
}

/// Answers one request; no more than `room` of the answer is read at once.
fn answer(
    shared: &Arc<Shared>,
    one: Arc<Visitor>,
    room: usize,
    request: Request<Incoming>,
) -> impl Future<Output = Result<http::Response<Offered>, Infallible>> + use<> {
    let (mut parts, body) = request.into_parts();
    let (host, socket) = head::admit(&mut parts, &shared.limits);
    let answering = dispatch::answer_admitted(shared, &one, host, parts, body);
    let socket = socket.map(|socket| (socket, Arc::clone(shared)));
    async move {
        let mut response = answering.await;
        if let Some((socket, shared)) = socket {
            response = socket.answer(response, &shared);
        }
        Ok(response.map(|body| Offered::new(body.read_at_most(room), one)))
    }
}

/// A connection, and what it is busy with.
struct Connection<C> {
    http: Pin<Box<C>>,
    fresh: Fresh,
    running: Running,
    shared: Arc<Shared>,
    visitor: Arc<Visitor>,
    /// Since when the other side knows that no more requests are taken.
    closing: Option<Moment>,
}

/// How a connection came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// It is over.
    Over,
    /// No more requests are taken, and all have been answered; it has WebSockets that go on.
    ButForTunnels,
}

impl<C: GracefulConnection> Connection<C>
where
    C::Error: std::fmt::Display,
{
    async fn run(&mut self) -> Ended {
        poll_fn(|cx| {
            self.visitor.watch.register(cx);
            loop {
                if self.poll_work(cx).is_ready() {
                    return Poll::Ready(Ended::Over);
                }
                let stage = self.visitor.generation.stage();
                let is_due = stage >= Stage::Closing || stage == Stage::Stopping && self.fresh.has_begun();
                if !is_due || self.closing.is_some() {
                    return self.check(stage);
                }
                // Requests that are on their way are still taken: two GOAWAY tell it (RFC 9113, section 6.8).
                self.closing = Some(Moment::now());
                self.http.as_mut().graceful_shutdown();
            }
        })
        .await
    }

    /// Goes on until the last WebSocket has ended.
    async fn outlive(mut self) {
        poll_fn(|cx| {
            self.visitor.watch.register(cx);
            if self.poll_work(cx).is_ready() { Poll::Ready(()) } else { self.check_patience().map(|_| ()) }
        })
        .await;
    }

    /// Polls the connection and its requests until nothing moves; ready when it is over.
    fn poll_work(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Poll::Ready(ended) = self.http.as_mut().poll(cx) {
                if let Err(err) = ended {
                    let peer = self.visitor.peer;
                    tracing::debug!(peer = %peer, error = %err, "A connection of {peer} broke off");
                }
                return Poll::Ready(());
            }
            // What has been answered is written at once, all of it together.
            if !self.running.poll(cx, &self.fresh) {
                return Poll::Pending;
            }
        }
    }

    fn check(&self, stage: Stage) -> Poll<Ended> {
        if stage == Stage::Cut {
            return Poll::Ready(Ended::Over);
        }
        let tunnels = self.running.requests() == 0 && self.visitor.turns() > 0;
        if stage == Stage::Closing && tunnels && !self.shared.away.is_cancelled() {
            return Poll::Ready(Ended::ButForTunnels);
        }
        self.check_patience()
    }

    /// Whether the visitor has asked for nothing, and taken nothing, for too long.
    fn check_patience(&self) -> Poll<Ended> {
        let Some(since) = self.visitor.waits_since() else { return Poll::Pending };
        let timeouts = &self.shared.timeouts;
        // What has been answered may still be on its way: of that, only the connection as a whole knows.
        let limit = if self.fresh.has_begun() { timeouts.idle } else { timeouts.request_header };
        let mut due = since.after(limit);
        if let Some(closing) = self.closing {
            due = due.min(closing.max(since).after(FAREWELL));
        }
        if Moment::now() >= due {
            return Poll::Ready(Ended::Over);
        }
        self.visitor.watch.until(due);
        Poll::Pending
    }
}
