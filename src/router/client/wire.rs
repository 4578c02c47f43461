//! A connection to a service, with what has been read of it and not yet understood.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::BytesMut;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use tokio::io::AsyncWrite as _;
use tokio::net::TcpStream;

/// The room made for an answer's head, which is also enough for most answers.
const SMALL: usize = 8 * 1024;
/// The most that is read at once of a long answer.
const LARGE: usize = 256 * 1024;

thread_local! {
    /// The room of an answer that is over, for the next one on this thread: that memory is at hand, and that of a
    /// connection which has waited for its answer is not.
    static SPARE: Cell<BytesMut> = Cell::default();
}

/// A connection to a service.
#[derive(Debug)]
pub(in crate::router) struct Wire {
    stream: TcpStream,
    /// What has been read and not yet taken. It has no room of its own while nothing comes.
    pub(super) buffer: BytesMut,
    /// How much room the next reading gets, where the length is not known.
    room: usize,
    /// The most that the next reading gets.
    most: usize,
    /// Whether the buffer has grown beyond what a parked connection may keep.
    grown: bool,
}

impl Wire {
    /// Connects to a port on loopback.
    ///
    /// # Errors
    /// When that does not succeed within `limit` (then of kind `TimedOut`).
    pub(in crate::router) async fn connect(port: u16, limit: Duration) -> io::Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let stream = tokio::time::timeout(limit, TcpStream::connect(address)).await??;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: BytesMut::new(), room: SMALL, most: LARGE, grown: false })
    }

    /// The connection itself, and what has been read of it.
    pub(in crate::router) fn into_parts(self) -> (TcpStream, BytesMut) {
        (self.stream, self.buffer)
    }

    /// Whether nothing has come since the last answer, as far as the runtime has noticed: no system call.
    pub(in crate::router) fn seems_idle(&self) -> bool {
        let noticed = self.stream.poll_read_ready(&mut Context::from_waker(Waker::noop()));
        noticed.is_pending() || self.is_idle()
    }

    /// Whether nothing has come since the last answer: asks the kernel.
    pub(in crate::router) fn is_idle(&self) -> bool {
        let peek = recv(self.stream.as_raw_fd(), &mut [0; 1], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT);
        peek == Err(Errno::EAGAIN)
    }

    /// Reads no more than `room` bytes at once, until the next exchange.
    pub(super) fn read_at_most(&mut self, room: usize) {
        self.most = room.clamp(SMALL, LARGE);
    }

    /// Gets ready for the next exchange; a long answer's room is given back.
    pub(super) fn reset(&mut self) {
        self.spare();
        self.buffer = BytesMut::new();
        (self.room, self.most, self.grown) = (SMALL, LARGE, false);
    }

    /// Leaves the room, unless it is a long answer's, to whoever reads next.
    fn spare(&mut self) {
        if self.buffer.is_empty() && !self.grown && self.buffer.capacity() > 0 {
            SPARE.set(std::mem::take(&mut self.buffer));
        }
    }

    /// Reads more; zero at the end. `expected` is how many bytes are still wanted, if that is known.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>, expected: Option<u64>) -> Poll<io::Result<usize>> {
        let room = match expected.map(usize::try_from) {
            Some(Ok(expected)) => expected.clamp(SMALL, self.most),
            Some(Err(_)) => self.most,
            None => self.room,
        };
        if self.buffer.capacity() == 0 {
            self.buffer = SPARE.take();
        }
        // Takes the old room again where nobody holds any of it.
        let again = self.buffer.is_empty() && self.buffer.try_reclaim(room);
        if !again && self.buffer.capacity() - self.buffer.len() < room / 2 {
            self.buffer.reserve(room);
            self.grown |= room > SMALL;
        }
        let read = tokio_util::io::poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.buffer);
        match read {
            Poll::Ready(Ok(read)) if read >= self.room => self.room = (self.room * 4).min(self.most),
            Poll::Ready(_) => {}
            Poll::Pending => self.spare(),
        }
        read
    }

    /// Writes as much of `parts` as the kernel takes.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let stream = Pin::new(&mut self.stream);
        match parts {
            [one] => stream.poll_write(cx, one),
            several => stream.poll_write_vectored(cx, several),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    use super::*;

    /// A connection, and its other end.
    async fn pair() -> (Wire, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let wire = Wire::connect(listener.local_addr().unwrap().port(), Duration::from_secs(5)).await.unwrap();
        (wire, listener.accept().await.unwrap().0)
    }

    async fn fill(wire: &mut Wire) {
        poll_fn(|cx| wire.poll_fill(cx, None)).await.unwrap();
    }

    #[tokio::test]
    async fn who_waits_has_no_room_of_his_own() {
        let (mut wire, mut service) = pair().await;
        assert!(wire.poll_fill(&mut Context::from_waker(Waker::noop()), None).is_pending());
        assert_eq!(wire.buffer.capacity(), 0);
        service.write_all(b"an answer").await.unwrap();
        fill(&mut wire).await;
        assert_eq!(wire.buffer.split(), "an answer");
        assert!(wire.poll_fill(&mut Context::from_waker(Waker::noop()), None).is_pending());
        assert_eq!(wire.buffer.capacity(), 0);
    }

    #[tokio::test]
    async fn room_is_shared_and_what_is_in_it_is_not() {
        let (mut one, mut first) = pair().await;
        let (mut other, mut second) = pair().await;
        first.write_all(b"one").await.unwrap();
        fill(&mut one).await;
        let held = one.buffer.split().freeze();
        one.reset();
        second.write_all(b"two").await.unwrap();
        fill(&mut other).await;
        assert_eq!(held, "one", "it is not written over while somebody holds it");
        assert_eq!(other.buffer.split(), "two");
        drop(held);
        other.reset();
        first.write_all(b"three").await.unwrap();
        fill(&mut one).await;
        let again = one.buffer.as_ptr();
        one.buffer.clear();
        one.reset();
        second.write_all(b"four").await.unwrap();
        fill(&mut other).await;
        assert_eq!(other.buffer.as_ptr(), again, "the next takes the room of the last");
    }

    #[tokio::test]
    async fn half_an_answer_is_kept_while_others_read() {
        let (mut one, mut first) = pair().await;
        let (mut other, mut second) = pair().await;
        first.write_all(b"half ").await.unwrap();
        fill(&mut one).await;
        assert!(one.poll_fill(&mut Context::from_waker(Waker::noop()), None).is_pending());
        second.write_all(b"all").await.unwrap();
        fill(&mut other).await;
        first.write_all(b"an answer").await.unwrap();
        fill(&mut one).await;
        assert_eq!(one.buffer, "half an answer");
        assert_eq!(other.buffer, "all");
    }
}
