//! What is sent on a stream of HTTP/2, as its windows open.
//!
//! **Invariant:** of a body, no more than one piece waits here for a window.

use std::error::Error;
use std::iter::successors;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::{Body as HttpBody, Frame};

use super::body::BodyError;

/// A body on its way. What is dropped unfinished is reset.
#[derive(Debug)]
pub(super) struct Outbox<B> {
    body: B,
    stream: SendStream<Bytes>,
    /// What waits for a window to open, and whether nothing follows it.
    waiting: Option<(Bytes, bool)>,
    /// Pieces that have gone.
    pub(super) sent: u64,
}

impl<B: HttpBody<Data = Bytes, Error = BodyError> + Unpin> Outbox<B> {
    /// `body`, to be sent on `stream`.
    pub(super) fn new(body: B, stream: SendStream<Bytes>) -> Self {
        Self { body, stream, waiting: None, sent: 0 }
    }

    /// Whether the other side has opened no window for what is there.
    pub(super) fn is_stuck(&self) -> bool {
        self.waiting.is_some()
    }

    /// Ready when all of it is queued, or when the other side wants no more of it.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        loop {
            if self.waiting.is_some() {
                while self.stream.capacity() == 0 {
                    match ready!(self.stream.poll_capacity(cx)) {
                        Some(room) => room?,
                        // The other side has reset it.
                        None => return Poll::Ready(Ok(())),
                    };
                }
            }
            if let Some((piece, is_last)) = self.waiting.take() {
                self.sent += 1;
                self.stream.send_data(piece, is_last)?;
                if is_last {
                    return Poll::Ready(Ok(()));
                }
            }
            let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
                // Whoever the body comes from may be silent for long: the other side need not wait for that.
                return self.stream.poll_reset(cx).map_ok(|_| ());
            };
            match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(piece))) if piece.is_empty() => {}
                Some(Ok(Ok(piece))) => {
                    // No more than a byte, and not before there is something to send: what is reserved is kept from
                    // other streams. All of the piece is reserved by sending it.
                    self.stream.reserve_capacity(1);
                    self.waiting = Some((piece, self.body.is_end_stream()));
                }
                Some(Ok(Err(other))) => {
                    if let Ok(trailers) = other.into_trailers() {
                        self.stream.reserve_capacity(0);
                        return Poll::Ready(self.stream.send_trailers(trailers));
                    }
                }
                Some(Err(err)) => {
                    self.stream.send_reset(reason(&err));
                    return Poll::Ready(Ok(()));
                }
                None => return Poll::Ready(self.stream.send_data(Bytes::new(), true)),
            }
        }
    }
}

/// Why a body breaks off: what whoever sent it by HTTP/2 has said, if one did.
fn reason(err: &BodyError) -> Reason {
    let first: &(dyn Error + 'static) = err;
    successors(Some(first), |err| (*err).source())
        .find_map(|err| err.downcast_ref::<h2::Error>().and_then(h2::Error::reason))
        .unwrap_or(Reason::INTERNAL_ERROR)
}
