//! A message's body on a stream of HTTP/2, whoever sends it.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::Reason;
use http::HeaderMap;
use http::header;
use http_body::{Frame, SizeHint};

use super::inbox::Inbox;

/// The length of a body whose length is not known.
const UNKNOWN: u64 = u64::MAX;

/// A body, of which none is held here.
#[derive(Debug)]
pub(super) struct Streamed {
    inbox: Inbox,
    /// Bytes still to come, or [`UNKNOWN`].
    left: u64,
}

impl Streamed {
    /// What comes into `inbox` after `headers`.
    pub(super) fn new(inbox: Inbox, headers: &HeaderMap) -> Self {
        Self { inbox, left: length(headers).unwrap_or(UNKNOWN) }
    }

    /// As that of `http_body::Body`.
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let frame = ready!(self.inbox.poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
            && self.left != UNKNOWN
        {
            self.left = self.left.saturating_sub(data.len() as u64);
        }
        Poll::Ready(frame.map(|frame| frame.map_err(broken)))
    }

    /// Whether nothing comes any more, not even trailers.
    pub(super) fn is_end_stream(&self) -> bool {
        self.inbox.is_end_stream()
    }

    /// What is known of what is still to come.
    pub(super) fn size_hint(&self) -> SizeHint {
        if self.left == UNKNOWN { SizeHint::default() } else { SizeHint::with_exact(self.left) }
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
