//! A request's body as its visitor sends it, in whichever version of HTTP he speaks.
//!
//! **Invariant:** none of it is held here.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::Reason;
use http::HeaderMap;
use http::header;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;

use super::body::BodyError;
use super::inbox::Inbox;
use super::watch::Watch;

/// The length of a body whose length is not known.
const UNKNOWN: u64 = u64::MAX;

/// What a visitor sends after a request's head.
#[derive(Debug)]
pub(super) enum VisitorBody {
    /// Nothing.
    Empty,
    /// On a connection of HTTP/1.1.
    Http1(Incoming),
    /// On a stream of HTTP/2.
    Http2(Streamed),
}

impl VisitorBody {
    /// What comes into `inbox` after `headers`; the visitor may want to be told to go on by `expectation`.
    pub(super) fn on_stream(inbox: Inbox, headers: &HeaderMap, expectation: Option<Arc<Expectation>>) -> Self {
        Self::Http2(Streamed { inbox, left: length(headers).unwrap_or(UNKNOWN), expectation })
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
            Self::Http2(body) => body.inbox.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Http1(body) => body.size_hint(),
            Self::Http2(body) if body.left == UNKNOWN => SizeHint::default(),
            Self::Http2(body) => SizeHint::with_exact(body.left),
        }
    }
}

/// The receiving half of a stream of HTTP/2.
#[derive(Debug)]
pub(super) struct Streamed {
    inbox: Inbox,
    /// Bytes still to come, or [`UNKNOWN`].
    left: u64,
    expectation: Option<Arc<Expectation>>,
}

impl Streamed {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let frame = self.inbox.poll_frame(cx);
        if let Some(expectation) = self.expectation.take()
            && frame.is_pending()
        {
            expectation.meet();
        }
        let frame = ready!(frame);
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
            && self.left != UNKNOWN
        {
            self.left = self.left.saturating_sub(data.len() as u64);
        }
        Poll::Ready(frame.map(|frame| frame.map_err(broken)))
    }
}

/// What is reset without an error is not whole either, and must not pass for it.
fn broken(err: h2::Error) -> h2::Error {
    if err.reason() == Some(Reason::NO_ERROR) { Reason::CANCEL.into() } else { err }
}

/// The length that `headers` announce. `h2` has reset what has one that is no number.
fn length(headers: &HeaderMap) -> Option<u64> {
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let first = lengths.next()?;
    if lengths.any(|length| length != first) {
        return None;
    }
    first.to_str().ok()?.parse().ok()
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
