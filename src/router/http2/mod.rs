//! HTTP/2 with a visitor (RFC 9113): many requests at a time on one connection, each answered as one of HTTP/1.1 is.
//!
//! `h2` keeps the streams and their windows. Here, `streams` polls the requests within the connection's own task, `head`
//! makes of each what HTTP/1.1 would have brought, `answer` sends what comes back, and `guard` ends a connection that is
//! busy with nothing but overhead.
//!
//! **Invariant:** every wait for a visitor has a limit: for a request, for room to write, and for a window to open.

mod answer;
mod date;
mod guard;
mod head;
mod streams;
mod tunnel;

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::{self, SendResponse};
use http::{Method, Request};
use tokio::io::{AsyncRead, AsyncWrite};

use self::answer::Asked;
use self::guard::Guard;
use self::streams::Streams;
pub(super) use self::tunnel::Tunnel;
use super::connection::Visitor;
use super::generation::Stage;
use super::inbox::Inbox;
use super::io::Io;
use super::watch::Moment;
use super::{Limits, Shared, frames};

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
    let handshake = builder(&shared.limits).handshake(Guard::new(io, Arc::clone(&visitor)));
    let streams = Streams::new(shared.timeouts.idle);
    let http = Http::Greeting(Box::new(handshake));
    let mut connection = Connection { http, streams, shared, visitor, begun: false, closing: None };
    if connection.run().await == Ended::ButForTunnels {
        let shared = Arc::clone(&connection.shared);
        shared.tunnels.spawn(async move { connection.outlive().await });
    }
}

fn builder(limits: &Limits) -> server::Builder {
    let mut builder = server::Builder::new();
    builder
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .data_frame_budget(frames::RECORDS)
        .max_send_buffer_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(RESETS)
        .max_local_error_reset_streams(Some(ERRORS))
        .enable_connect_protocol();
    builder
}

/// A connection, and what it is busy with.
struct Connection<S> {
    http: Http<S>,
    streams: Streams,
    shared: Arc<Shared>,
    visitor: Arc<Visitor>,
    /// Whether there has been a request.
    begun: bool,
    /// Since when the other side knows that no more requests are taken.
    closing: Option<Moment>,
}

/// How far the two sides have come.
enum Http<S> {
    /// They say hello.
    Greeting(Box<server::Handshake<Guard<S>, Bytes>>),
    /// They have.
    Open(Box<server::Connection<Guard<S>, Bytes>>),
}

/// How a connection came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// It is over.
    Over,
    /// No more requests are taken, and all have been answered; it has WebSockets that go on.
    ButForTunnels,
}

impl<S: AsyncRead + AsyncWrite + Unpin + 'static> Connection<S> {
    async fn run(&mut self) -> Ended {
        poll_fn(|cx| {
            self.visitor.watch.register(cx);
            loop {
                if self.poll_work(cx).is_ready() {
                    return Poll::Ready(Ended::Over);
                }
                let stage = self.visitor.generation.stage();
                let is_due = stage >= Stage::Closing || stage == Stage::Stopping && self.begun;
                if !is_due || self.closing.is_some() {
                    return self.check(stage);
                }
                // Requests that are on their way are still taken: two GOAWAY tell it (RFC 9113, section 6.8).
                self.closing = Some(Moment::now());
                if let Http::Open(http) = &mut self.http {
                    http.graceful_shutdown();
                }
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
            if let Poll::Ready(ended) = self.poll_http(cx) {
                if let Err(err) = ended {
                    let peer = self.visitor.peer;
                    tracing::debug!(peer = %peer, error = %err, "A connection of {peer} broke off");
                }
                return Poll::Ready(());
            }
            // What has been answered is written at once, all of it together.
            if !self.streams.poll(cx) {
                return Poll::Pending;
            }
        }
    }

    /// Reads and writes, and takes the requests that have come; ready when it is over.
    fn poll_http(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        loop {
            match &mut self.http {
                Http::Greeting(greeting) => {
                    let mut http = ready!(Pin::new(&mut **greeting).poll(cx))?;
                    if self.closing.is_some() {
                        http.graceful_shutdown();
                    }
                    self.http = Http::Open(Box::new(http));
                }
                Http::Open(http) => match ready!(http.poll_accept(cx)).transpose()? {
                    Some((request, respond)) => self.begin(request, respond),
                    None => return Poll::Ready(Ok(())),
                },
            }
        }
    }

    fn begin(&mut self, request: Request<RecvStream>, respond: SendResponse<Bytes>) {
        self.begun = true;
        let one = Arc::new(self.visitor.in_stream(self.shared.workers[self.visitor.lane].watches.add()));
        let room = READ_AHEAD / self.visitor.turns().max(1) as usize;
        let (head, stream) = request.into_parts();
        let has_more = !stream.is_end_stream() || head.method == Method::CONNECT;
        let inbox = has_more.then(|| {
            let (inbox, filling) = Inbox::new(stream);
            self.streams.expect(filling);
            inbox
        });
        let asked = Asked::new(&self.shared, &one, room.clamp(READ_LEAST, READ_MOST), (head, inbox), respond);
        self.streams.add(one, asked);
    }

    fn check(&self, stage: Stage) -> Poll<Ended> {
        if stage == Stage::Cut {
            return Poll::Ready(Ended::Over);
        }
        let tunnels = self.streams.is_empty() && self.visitor.turns() > 0;
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
        let limit = if self.begun { timeouts.idle } else { timeouts.request_header };
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
