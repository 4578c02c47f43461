//! A visitor's stream: it fails when he takes nothing for too long, and notes on him what comes and goes.

use std::any::Any;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::backed::{self, Backed};
use super::connection::Visitor;
use super::patience::Patience;
use super::watch::Moment;

/// Up to this size the parts of a message are copied together: that costs less than telling the kernel where each is.
const TOGETHER: usize = 1024;

/// A stream, with what was read of it too early.
#[derive(Debug)]
pub(super) struct Io<S> {
    pub(super) stream: S,
    /// What was read of it before.
    pub(super) first: Bytes,
    pub(super) visitor: Arc<Visitor>,
    /// How long he may take nothing.
    patience: Patience,
    /// What is being written to him, where a file has it too.
    sending: Option<Arc<Backed>>,
}

impl<S> Io<S> {
    /// `stream`, of which `visitor` may take nothing for `limit`.
    pub(super) fn new(stream: S, visitor: Arc<Visitor>, limit: Duration) -> Self {
        Self { stream, first: Bytes::new(), visitor, patience: Patience::new(limit), sending: None }
    }

    /// Writes the first of `bufs` that is part of an open file, and what comes before it; `None` when none is, or when
    /// what is written is not what goes out.
    fn poll_write_backed(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
        length: usize,
    ) -> Option<Poll<io::Result<usize>>>
    where
        S: 'static,
    {
        let announced = (length >= backed::LEAST).then(|| self.visitor.outgoing.take()).flatten();
        let socket = (&self.stream as &dyn Any).downcast_ref::<TcpStream>()?;
        self.sending = announced.or_else(|| self.sending.take());
        let backed = self.sending.as_ref()?;
        let (number, place) = backed.find(bufs)?;
        let (before, part) = (&bufs[..number], bufs[number].len());
        let done = backed.poll_send(socket, cx, before, (place, part));
        let all = before.iter().map(|buf| buf.len()).sum::<usize>() + part;
        if matches!(done, Poll::Ready(Ok(sent)) if sent == all) {
            self.sending = None;
        }
        Some(done)
    }

    /// Notes whether he has taken something: so many bytes, if `done` is ready.
    fn watch<T>(&mut self, done: Poll<io::Result<T>>, bytes: impl FnOnce(&T) -> usize) -> Poll<io::Result<T>> {
        if let Poll::Ready(taken) = &done {
            if self.patience.is_used() && self.patience.end(Moment::now(), taken.as_ref().map_or(0, bytes)) {
                self.visitor.wait_anew();
                self.visitor.stalled.store(false, Ordering::Relaxed);
            }
            return done;
        }
        self.visitor.stalled.store(true, Ordering::Relaxed);
        let now = Moment::now();
        let due = self.patience.wait(now);
        if now >= due {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        self.visitor.watch.until(due);
        Poll::Pending
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Io<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.first.is_empty() {
            let before = buf.filled().len();
            let read = Pin::new(&mut this.stream).poll_read(cx, buf);
            if buf.filled().len() > before {
                this.visitor.heard.store(true, Ordering::Relaxed);
            }
            return read;
        }
        let part = this.first.len().min(buf.remaining());
        buf.put_slice(&this.first[..part]);
        this.first.advance(part);
        if this.first.is_empty() {
            // An empty slice would keep the memory it was part of.
            this.first = Bytes::new();
        }
        this.visitor.heard.store(true, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin + 'static> AsyncWrite for Io<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let done = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.watch(done, |bytes| *bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let length = bufs.iter().map(|buf| buf.len()).sum::<usize>();
        let done = match (this.poll_write_backed(cx, bufs, length), bufs) {
            (Some(done), _) => done,
            (None, [one]) => Pin::new(&mut this.stream).poll_write(cx, one),
            (None, _) if length <= TOGETHER => {
                let mut joined = [0; TOGETHER];
                let mut room = &mut joined[..];
                bufs.iter().for_each(|buf| room.put_slice(buf));
                Pin::new(&mut this.stream).poll_write(cx, &joined[..length])
            }
            (None, _) => Pin::new(&mut this.stream).poll_write_vectored(cx, bufs),
        };
        this.watch(done, |bytes| *bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let done = Pin::new(&mut this.stream).poll_flush(cx);
        this.watch(done, |()| 0)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
