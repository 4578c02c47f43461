//! Bodies as they pass through: what kennel answers with, and what it hands the control service.
//!
//! **Invariant:** none of them holds more than one chunk, and an error in one aborts the message
//! instead of ending it.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use super::Timeouts;
use super::backed::{self, Backed};
use super::client::{Answer, Malformed, Piece};
use super::connection::Turn;
use super::h2c::AnswerBody;
use super::metrics::Tally;
use super::site::FileBody;
use super::upstream::Claim;
use super::visitor_body::VisitorBody;
use super::watch::{Moment, Watch};

/// Why a body ended before its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    /// A visitor of HTTP/1.1 broke off, or sent what is not HTTP.
    #[error("the message broke off")]
    Broken(#[source] hyper::Error),
    /// What came by HTTP/2 was taken back, or its connection broke.
    #[error("the message broke off")]
    Reset(#[source] h2::Error),
    /// The service broke off, or sent what is not HTTP.
    #[error("the answer broke off")]
    Service(#[source] Malformed),
    /// The other side sent nothing for too long.
    #[error("nothing came for {} s", .0.as_secs())]
    Silent(Duration),
    /// The drain is over.
    #[error("the service is being stopped")]
    Cut,
    /// A file could not be read.
    #[error("cannot read the file")]
    File(#[source] io::Error),
    /// The control service failed.
    #[error("the control service broke off")]
    Control(#[source] axum::Error),
}

/// An answer's body, and the visitor's turn, which ends with it.
#[derive(Debug)]
pub(super) struct Body {
    kind: Kind,
    turn: Option<(Turn, Tally)>,
}

/// What is long is in a box, since an answer changes hands many times before its body is first polled.
#[derive(Debug)]
enum Kind {
    Empty,
    /// Bytes, which may be part of a file that is open.
    Full(Option<Bytes>, Option<Arc<Backed>>),
    Upstream(Box<UpstreamBody>),
    H2c(Box<AnswerBody>),
    File(FileBody),
    Control(axum::body::Body),
}

impl Body {
    /// Nothing.
    pub(super) fn empty() -> Self {
        Kind::Empty.into()
    }

    /// These bytes, which are part of `backed` if there is one.
    pub(super) fn kept(bytes: Bytes, backed: Option<&Arc<Backed>>) -> Self {
        match backed.filter(|_| bytes.len() >= backed::LEAST) {
            Some(backed) => Kind::Full(Some(bytes), Some(Arc::clone(backed))).into(),
            None => bytes.into(),
        }
    }

    /// From the control service.
    pub(super) fn control(body: axum::body::Body) -> Self {
        Kind::Control(body).into()
    }

    /// The same, of which no more than `room` bytes are read at once.
    pub(super) fn read_at_most(mut self, room: usize) -> Self {
        match &mut self.kind {
            Kind::Upstream(body) => body.answer.read_at_most(room),
            Kind::File(body) => body.read_at_most(room),
            Kind::Empty | Kind::Full(..) | Kind::H2c(_) | Kind::Control(_) => {}
        }
        self
    }

    /// The same, holding the visitor's turn and counted.
    pub(super) fn during(self, turn: Turn, tally: Tally) -> Self {
        Self { turn: Some((turn, tally)), ..self }
    }
}

impl From<Kind> for Body {
    fn from(kind: Kind) -> Self {
        Self { kind, turn: None }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        if bytes.is_empty() { Kind::Empty.into() } else { Kind::Full(Some(bytes), None).into() }
    }
}

impl From<FileBody> for Body {
    fn from(body: FileBody) -> Self {
        Kind::File(body).into()
    }
}

impl From<UpstreamBody> for Body {
    fn from(body: UpstreamBody) -> Self {
        Kind::Upstream(Box::new(body)).into()
    }
}

impl From<AnswerBody> for Body {
    fn from(body: AnswerBody) -> Self {
        Kind::H2c(Box::new(body)).into()
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Self { kind, turn } = self.get_mut();
        let frame = ready!(match kind {
            Kind::Empty => Poll::Ready(None),
            Kind::Full(bytes, backed) => {
                if let (Some((turn, _)), Some(backed)) = (&*turn, backed.take()) {
                    turn.announce(backed);
                }
                Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes))))
            }
            Kind::Upstream(body) => body.poll_frame(cx),
            Kind::H2c(body) => Pin::new(body).poll_frame(cx),
            Kind::File(body) => Pin::new(body).poll_frame(cx),
            Kind::Control(body) => Pin::new(body).poll_frame(cx).map_err(BodyError::Control),
        });
        if let (Some((_, tally)), Some(Ok(frame))) = (turn, &frame) {
            tally.sent(frame.data_ref().map_or(0, Bytes::len));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Empty => true,
            Kind::Full(bytes, _) => bytes.is_none(),
            Kind::Upstream(body) => body.answer.is_over(),
            Kind::H2c(body) => body.is_end_stream(),
            Kind::File(body) => body.is_end_stream(),
            Kind::Control(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Empty | Kind::Full(None, _) => SizeHint::with_exact(0),
            Kind::Full(Some(bytes), _) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Upstream(body) => body.answer.remaining().map_or_else(SizeHint::default, SizeHint::with_exact),
            Kind::H2c(body) => body.size_hint(),
            Kind::File(body) => body.size_hint(),
            Kind::Control(body) => body.size_hint(),
        }
    }
}

/// The service that an answer comes from: the claim on it, held until the last byte has been passed on or the visitor is
/// gone, and how long it may be silent.
#[derive(Debug)]
pub(super) struct Source {
    claim: Claim,
    watch: Watch,
    idle: Duration,
    silent_since: Option<Moment>,
}

impl Source {
    /// The service that `claim` leads to, whose answer of `length` bytes is polled in the task of `watch`.
    ///
    /// It may be silent for long where the answer has no length known beforehand, as with server-sent events, followed
    /// logs and long polls.
    pub(super) fn new(claim: Claim, length: Option<u64>, watch: Watch, timeouts: &Timeouts) -> Self {
        let idle = if length.is_some() { timeouts.idle } else { timeouts.streaming_idle };
        Self { claim, watch, idle, silent_since: None }
    }

    /// What has come of it, unless the drain is over: that ends what goes on without a pause as well.
    pub(super) fn limit<T>(&mut self, polled: Poll<T>) -> Poll<Result<T, BodyError>> {
        if self.claim.is_cut() {
            return Poll::Ready(Err(BodyError::Cut));
        }
        if let Poll::Ready(piece) = polled {
            self.silent_since = None;
            return Poll::Ready(Ok(piece));
        }
        let now = Moment::now();
        let due = self.silent_since.get_or_insert(now).after(self.idle);
        if now >= due {
            return Poll::Ready(Err(BodyError::Silent(self.idle)));
        }
        self.watch.until(due);
        Poll::Pending
    }
}

/// What a service answers.
#[derive(Debug)]
pub(super) struct UpstreamBody {
    answer: Answer,
    source: Source,
    lane: usize,
}

impl UpstreamBody {
    /// The body of `answer`, read by the router's thread `lane`.
    pub(super) fn new(answer: Answer, source: Source, lane: usize) -> Self {
        let mut body = Self { answer, source, lane };
        body.let_go();
        body
    }

    /// Gives the connection back once the answer is over.
    fn let_go(&mut self) {
        if let Some(wire) = self.answer.take_wire() {
            self.source.claim.give_back(self.lane, wire);
        }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = self.answer.poll_piece(cx);
        let piece = ready!(self.source.limit(polled));
        self.let_go();
        Poll::Ready(match piece {
            Ok(Ok(Piece::Data(data))) => Some(Ok(Frame::data(data))),
            Ok(Ok(Piece::Trailers(trailers))) => Some(Ok(Frame::trailers(trailers))),
            Ok(Ok(Piece::End)) => None,
            Ok(Err(err)) => Some(Err(BodyError::Service(err))),
            Err(err) => Some(Err(err)),
        })
    }
}

/// What a visitor sends to the control service, which runs in a task of its own.
#[derive(Debug)]
pub(super) struct RequestBody {
    incoming: VisitorBody,
    limit: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl RequestBody {
    /// The body `incoming`, whose visitor may be silent for `limit`.
    pub(super) fn new(incoming: VisitorBody, limit: Duration) -> Self {
        Self { incoming, limit, sleep: None }
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Self { incoming, limit, sleep } = self.get_mut();
        if let Poll::Ready(frame) = Pin::new(incoming).poll_frame(cx) {
            *sleep = None;
            return Poll::Ready(frame);
        }
        let due = Instant::now() + *limit;
        let sleep = sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        ready!(sleep.as_mut().poll(cx));
        Poll::Ready(Some(Err(BodyError::Silent(*limit))))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{DeploymentId, Protocol};
    use crate::router::upstream::Upstream;
    use crate::router::watch::Watches;

    #[tokio::test]
    async fn what_goes_on_without_a_pause_ends_with_the_drain_too() {
        let upstream = Arc::new(Upstream::new(DeploymentId(1), 18000.try_into().unwrap(), Protocol::Http1, 1));
        let claim = upstream.claim().unwrap();
        let watch = Watches::default().add();
        let mut source = Source::new(claim, None, watch, &Timeouts::default());
        assert!(matches!(source.limit(Poll::Ready("more")), Poll::Ready(Ok("more"))));
        upstream.drain(Duration::ZERO, || ()).await;
        assert!(matches!(source.limit(Poll::Ready("more")), Poll::Ready(Err(BodyError::Cut))));
    }
}
