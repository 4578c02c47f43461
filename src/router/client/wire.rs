//! A connection to a service, with what has been read of it and not yet understood.

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

/// A connection to a service.
#[derive(Debug)]
pub(in crate::router) struct Wire {
    stream: TcpStream,
    /// What has been read and not yet taken.
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
        if self.grown {
            self.buffer = BytesMut::new();
        }
        (self.room, self.most, self.grown) = (SMALL, LARGE, false);
    }

    /// Reads more; zero at the end. `expected` is how many bytes are still wanted, if that is known.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>, expected: Option<u64>) -> Poll<io::Result<usize>> {
        let room = match expected.map(usize::try_from) {
            Some(Ok(expected)) => expected.clamp(SMALL, self.most),
            Some(Err(_)) => self.most,
            None => self.room,
        };
        // Takes the old room again where nobody holds any of it: that memory is at hand, and what follows it is not.
        let again = self.buffer.is_empty() && self.buffer.try_reclaim(room);
        if !again && self.buffer.capacity() - self.buffer.len() < room / 2 {
            self.buffer.reserve(room);
            self.grown |= room > SMALL;
        }
        let read = tokio_util::io::poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.buffer);
        if let Poll::Ready(Ok(read)) = read
            && read >= self.room
        {
            self.room = (self.room * 4).min(self.most);
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
