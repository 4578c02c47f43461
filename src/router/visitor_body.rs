//! A request's body as its visitor sends it, in whichever version of HTTP he speaks.
//!
//! **Invariant:** none of it is held here.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;

use super::body::BodyError;
use super::streamed::Streamed;
use super::watch::Watch;

/// What a visitor sends after a request's head.
#[derive(Debug)]
pub(super) enum VisitorBody {
    /// Nothing.
    Empty,
    /// On a connection of HTTP/1.1.
    Http1(Incoming),
    /// On a stream of HTTP/2.
    Http2(Expected),
}

impl VisitorBody {
    /// The body that comes on a stream; the visitor may want to be told to go on by `expectation`.
    pub(super) fn on_stream(streamed: Streamed, expectation: Option<Arc<Expectation>>) -> Self {
        Self::Http2(Expected { streamed, expectation })
    }
}

impl HttpBody for VisitorBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Http1(body) => Pin::new(body).poll_frame(cx).map_err(BodyError::Broken),
            Self::Http2(body) => body.poll_frame(cx).map_err(BodyError::Reset),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Http1(body) => body.is_end_stream(),
            Self::Http2(body) => body.streamed.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Http1(body) => body.size_hint(),
            Self::Http2(body) => body.streamed.size_hint(),
        }
    }
}

/// What comes on a stream, and who waits to be told to send it.
#[derive(Debug)]
pub(super) struct Expected {
    streamed: Streamed,
    expectation: Option<Arc<Expectation>>,
}

impl Expected {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let frame = self.streamed.poll_frame(cx);
        if let Some(expectation) = self.expectation.take()
            && frame.is_pending()
        {
            expectation.meet();
        }
        frame
    }
}

/// A visitor of HTTP/2 who wants to be told to go on before he sends a body (RFC 9110, section 10.1.1).
#[derive(Debug)]
pub(super) struct Expectation {
    is_due: AtomicBool,
    watch: Watch,
}

impl Expectation {
    /// One that the task of `watch` meets.
    pub(super) fn new(watch: Watch) -> Self {
        Self { is_due: AtomicBool::new(false), watch }
    }

    /// The body is wanted now, and none of it is there.
    fn meet(&self) {
        self.is_due.store(true, Ordering::Release);
        self.watch.wake();
    }

    /// Whether the visitor is to be told.
    pub(super) fn is_due(&self) -> bool {
        self.is_due.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It is part of every request on its way.
    #[test]
    fn a_body_takes_no_more_room_than_one_of_http_1_1() {
        assert_eq!(size_of::<VisitorBody>(), size_of::<Incoming>());
    }
}
