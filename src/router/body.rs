//! Bodies as they pass through: what a visitor sends, and what kennel answers with.
//!
//! **Invariant:** none of them holds more than one chunk, and an error in one aborts the message
//! instead of ending it.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use super::site::FileBody;
use super::upstream::{Claim, Lease};

/// Why a body ended before its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    /// The other side broke off, or sent what is not HTTP.
    #[error("the message broke off")]
    Broken(#[source] hyper::Error),
    /// The other side sent nothing for too long.
    #[error("nothing came for {} s", .0.as_secs())]
    Silent(Duration),
    /// A file could not be read.
    #[error("cannot read the file")]
    File(#[source] io::Error),
    /// The control service failed.
    #[error("the control service broke off")]
    Control(#[source] axum::Error),
}

/// An answer's body.
#[derive(Debug)]
pub(super) enum Body {
    /// Nothing.
    Empty,
    /// A whole body at hand.
    Full(Option<Bytes>),
    /// From a service.
    Upstream(UpstreamBody),
    /// From a file.
    File(FileBody),
    /// From the control service.
    Control(axum::body::Body),
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        if bytes.is_empty() { Self::Empty } else { Self::Full(Some(bytes)) }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Upstream(body) => Pin::new(body).poll_frame(cx),
            Self::File(body) => Pin::new(body).poll_frame(cx),
            Self::Control(body) => Pin::new(body).poll_frame(cx).map_err(BodyError::Control),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_none(),
            Self::Upstream(body) => body.incoming.is_end_stream(),
            Self::File(body) => body.is_end_stream(),
            Self::Control(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty | Self::Full(None) => SizeHint::with_exact(0),
            Self::Full(Some(bytes)) => SizeHint::with_exact(bytes.len() as u64),
            Self::Upstream(body) => body.incoming.size_hint(),
            Self::File(body) => body.size_hint(),
            Self::Control(body) => body.size_hint(),
        }
    }
}

/// A limit on how long nothing may come. Costs nothing while something comes at once.
#[derive(Debug)]
struct Patience {
    limit: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
    waiting: bool,
}

impl Patience {
    fn new(limit: Duration) -> Self {
        Self { limit, sleep: None, waiting: false }
    }

    /// Something came.
    fn reset(&mut self) {
        self.waiting = false;
    }

    /// Ready once nothing came for the limit.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let limit = self.limit;
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        if !self.waiting {
            self.waiting = true;
            sleep.as_mut().reset(Instant::now() + limit);
        }
        sleep.as_mut().poll(cx)
    }
}

/// What a service answers. Holds the claim until the last byte has been passed on, or the visitor is gone.
#[derive(Debug)]
pub(super) struct UpstreamBody {
    incoming: Incoming,
    patience: Patience,
    ended: bool,
    /// `None` once given back; before the claim, which must outlive it.
    lease: Option<Lease>,
    claim: Claim,
}

impl UpstreamBody {
    /// The body of an answer that came over `lease`; `idle` is how long the service may be silent.
    pub(super) fn new(incoming: Incoming, claim: Claim, lease: Lease, idle: Duration) -> Self {
        Self { incoming, patience: Patience::new(idle), ended: false, lease: Some(lease), claim }
    }
}

impl HttpBody for UpstreamBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        match Pin::new(&mut this.incoming).poll_frame(cx) {
            Poll::Ready(frame) => {
                this.patience.reset();
                this.ended |= frame.is_none();
                Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Broken)))
            }
            Poll::Pending => {
                ready!(this.patience.poll(cx));
                Poll::Ready(Some(Err(BodyError::Silent(this.patience.limit))))
            }
        }
    }
}

impl Drop for UpstreamBody {
    fn drop(&mut self) {
        if (self.ended || self.incoming.is_end_stream())
            && let Some(lease) = self.lease.take()
        {
            self.claim.give_back(lease);
        }
    }
}

/// What a visitor sends.
#[derive(Debug)]
pub(super) struct RequestBody(Option<Sending>);

#[derive(Debug)]
struct Sending {
    incoming: Incoming,
    patience: Patience,
    progress: Arc<Progress>,
}

/// Where a request's body is, for whoever waits for the answer.
#[derive(Debug)]
pub(super) struct Progress {
    begun: Instant,
    changed_ms: AtomicU64,
    phase: AtomicU8,
}

/// Whose turn it is while a request is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The service is to read on.
    Passing,
    /// The visitor is to send on; the body itself limits that.
    Awaiting,
    /// All of the request has been passed on.
    Ended,
    /// The visitor broke off, or sent what is not HTTP.
    Broken,
    /// The visitor sent nothing for too long.
    Silent,
}

impl Progress {
    fn new(phase: Phase) -> Self {
        Self { begun: Instant::now(), changed_ms: AtomicU64::new(0), phase: AtomicU8::new(phase as u8) }
    }

    fn enter(&self, phase: Phase) {
        let ms = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.changed_ms.store(ms, Ordering::Release);
        self.phase.store(phase as u8, Ordering::Release);
    }

    /// Whose turn it is.
    pub(super) fn phase(&self) -> Phase {
        let number = self.phase.load(Ordering::Acquire);
        [Phase::Passing, Phase::Awaiting, Phase::Ended, Phase::Broken, Phase::Silent]
            .into_iter()
            .find(|phase| *phase as u8 == number)
            .expect("only phases are stored")
    }

    /// Since when.
    pub(super) fn since(&self) -> Instant {
        self.begun + Duration::from_millis(self.changed_ms.load(Ordering::Acquire))
    }
}

impl RequestBody {
    /// No body.
    pub(super) fn empty() -> Self {
        Self(None)
    }

    /// The body `incoming`, whose visitor may be silent for `idle`.
    pub(super) fn new(incoming: Incoming, idle: Duration) -> (Self, Arc<Progress>) {
        if incoming.is_end_stream() {
            return (Self(None), Arc::new(Progress::new(Phase::Ended)));
        }
        let progress = Arc::new(Progress::new(Phase::Passing));
        let sending = Sending { incoming, patience: Patience::new(idle), progress: Arc::clone(&progress) };
        (Self(Some(sending)), progress)
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(Sending { incoming, patience, progress }) = &mut self.get_mut().0 else {
            return Poll::Ready(None);
        };
        match Pin::new(&mut *incoming).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                patience.reset();
                progress.enter(if incoming.is_end_stream() { Phase::Ended } else { Phase::Passing });
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(err))) => {
                progress.enter(Phase::Broken);
                Poll::Ready(Some(Err(BodyError::Broken(err))))
            }
            Poll::Ready(None) => {
                progress.enter(Phase::Ended);
                Poll::Ready(None)
            }
            Poll::Pending => {
                if progress.phase() != Phase::Awaiting {
                    progress.enter(Phase::Awaiting);
                }
                ready!(patience.poll(cx));
                progress.enter(Phase::Silent);
                Poll::Ready(Some(Err(BodyError::Silent(patience.limit))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|sending| sending.incoming.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or_else(|| SizeHint::with_exact(0), |sending| sending.incoming.size_hint())
    }
}
