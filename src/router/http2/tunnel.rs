//! A stream of HTTP/2 that carries bytes both ways, as a connection would: what a WebSocket is sent by (RFC 8441).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use h2::{Reason, SendStream};
use http_body::Frame;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::router::inbox::Inbox;

/// Both halves of a stream whose request has been granted. What is dropped ends, as a connection does.
#[derive(Debug)]
pub(in crate::router) struct Tunnel {
    sends: SendStream<Bytes>,
    receives: Inbox,
    /// What has been taken and has not been read.
    unread: Bytes,
    /// Whether the visitor has been told that nothing more comes.
    ended: bool,
}

impl Tunnel {
    /// The stream with these halves.
    pub(super) fn new(sends: SendStream<Bytes>, receives: Inbox) -> Self {
        Self { sends, receives, unread: Bytes::new(), ended: false }
    }

    fn end(&mut self) -> io::Result<()> {
        if self.ended {
            return Ok(());
        }
        self.ended = true;
        self.sends.send_data(Bytes::new(), true).map_err(broken)
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        // Fails when the visitor has reset it.
        let _ = self.end();
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.unread.is_empty() {
            match ready!(this.receives.poll_frame(cx)).map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => this.unread = data,
                // Trailers say nothing here.
                Some(Ok(Err(_))) | None => return Poll::Ready(Ok(())),
                // That is how it is closed by who has nothing more to say nor to hear (RFC 8441, section 5).
                Some(Err(err)) if matches!(err.reason(), Some(Reason::NO_ERROR | Reason::CANCEL)) => {
                    return Poll::Ready(Ok(()));
                }
                Some(Err(err)) => return Poll::Ready(Err(broken(err))),
            }
        }
        let part = this.unread.len().min(buf.remaining());
        buf.put_slice(&this.unread[..part]);
        this.unread.advance(part);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        // As soon as there is any room, all of `buf` is queued: no more than that waits here for its turn.
        this.sends.reserve_capacity(1);
        while this.sends.capacity() == 0 {
            match ready!(this.sends.poll_capacity(cx)) {
                Some(room) => room.map_err(broken)?,
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            };
        }
        this.sends.send_data(Bytes::copy_from_slice(buf), false).map_err(broken)?;
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The connection writes what is queued as soon as it can.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.get_mut().end())
    }
}

fn broken(err: h2::Error) -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, err)
}
