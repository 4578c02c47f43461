//! Ends a connection that is busy with overhead: frames that ask for nothing cost their sender next to nothing.
//!
//! Pings, settings, priorities, windows and cancelled requests are all of use, in bounds. Each costs some credit,
//! which comes back with time, with requests, and with what the visitor is sent.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::PREFACE;
use crate::router::connection::Visitor;
use crate::router::frames::{DATA, Frames, Read};
use crate::router::io::Io;
use crate::router::watch::Moment;

/// The most credit there is, and what a connection begins with.
const CREDIT: u64 = 2_000;
/// The credit that comes back in each second.
const EACH_SECOND: u64 = 100;
/// What a frame costs that only says something about the connection.
const OVERHEAD: u64 = 1;
/// What settings cost, which have to be answered.
const SETTINGS: u64 = 5;
/// What cancelling a request costs: by then, a service has been asked.
const RESET: u64 = 24;
/// What a request earns: some frames come with it.
const REQUEST: u64 = 4;
/// Bytes written that earn credit of one: windows are opened for them.
const BYTES: u64 = 1024;

/// The last word: GOAWAY with `ENHANCE_YOUR_CALM` (RFC 9113, sections 6.8 and 7).
const CALM: [u8; 17] = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 11];

/// A stream whose frames are counted as they come.
#[derive(Debug)]
pub(super) struct Guard<S> {
    io: Io<S>,
    visitor: Arc<Visitor>,
    frames: Frames,
    credit: Credit,
}

impl<S> Guard<S> {
    /// `io`, of which nothing has been read.
    pub(super) fn new(io: Io<S>, visitor: Arc<Visitor>) -> Self {
        Self { io, visitor, frames: Frames::after(PREFACE), credit: Credit::new() }
    }

    fn note_written(&mut self, written: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(bytes)) = written {
            self.credit.written += *bytes as u64;
            // He takes what he is sent.
            self.visitor.wait_anew();
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + 'static> AsyncRead for Guard<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let Self { io, frames, credit, .. } = this;
        let Read::Refused = ready!(frames.poll_read(io, cx, buf, |kind, flags| credit.note(kind, flags)))? else {
            return Poll::Ready(Ok(()));
        };
        tracing::info!(
            peer = %this.visitor.peer,
            "Closed a connection of {}, which was busy with overhead only",
            this.visitor.peer
        );
        // Best effort: he is not waited for.
        let _ = Pin::new(&mut this.io).poll_write(cx, &CALM);
        let _ = Pin::new(&mut this.io).poll_flush(cx);
        Poll::Ready(Err(io::ErrorKind::InvalidData.into()))
    }
}

impl<S: AsyncWrite + Unpin + 'static> AsyncWrite for Guard<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.io).poll_write(cx, buf);
        this.note_written(&written);
        written
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.io).poll_write_vectored(cx, bufs);
        this.note_written(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

/// What a visitor may still spend.
#[derive(Debug)]
struct Credit {
    left: u64,
    since: Moment,
    /// Bytes written since it was last reckoned up.
    written: u64,
}

impl Credit {
    fn new() -> Self {
        Self { left: CREDIT, since: Moment::now(), written: 0 }
    }

    /// Takes note of a frame; false when there is no credit left for it.
    fn note(&mut self, kind: u8, flags: u8) -> bool {
        const ACK: u8 = 1;
        // RFC 9113, section 6.
        let cost = match kind {
            // h2 counts what is empty or tiny.
            DATA => return true,
            // HEADERS
            1 => {
                self.left = (self.left + REQUEST).min(CREDIT);
                return true;
            }
            // RST_STREAM
            3 => RESET,
            // SETTINGS
            4 if flags & ACK == 0 => SETTINGS,
            _ => OVERHEAD,
        };
        if self.left < cost {
            self.reckon();
        }
        self.left.checked_sub(cost).map(|left| self.left = left).is_some()
    }

    fn reckon(&mut self) {
        let now = Moment::now();
        let passed = now.as_ms().saturating_sub(self.since.as_ms()).saturating_mul(EACH_SECOND) / 1000;
        if passed > 0 {
            self.since = now;
        }
        let earned = passed + self.written / BYTES;
        self.written %= BYTES;
        self.left = (self.left + earned).min(CREDIT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_pays_for_windows_and_requests_pay_for_themselves() {
        let (mut sent, mut asking, mut spent) = (Credit::new(), Credit::new(), Credit::new());
        for _ in 0..20_000 {
            sent.written += 2 * BYTES;
            assert!(sent.note(8, 0) && sent.note(8, 0));
            assert!(asking.note(1, 5) && asking.note(8, 0) && asking.note(8, 0));
        }
        let pings = (0..20_000).take_while(|_| spent.note(6, 0)).count();
        assert!((2_000..4_000).contains(&pings), "{pings}");
    }
}
