//! A socket to a service that can be looked at while the HTTP machinery owns it.

use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, Shutdown, recv, shutdown};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// The socket, and whether anything came out of it.
#[derive(Debug)]
pub(super) struct Wire {
    stream: TcpStream,
    heard: AtomicBool,
}

impl Wire {
    /// A socket that has said nothing yet.
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { stream, heard: AtomicBool::new(false) }
    }

    /// Whether a byte has been read since [`Self::forget`].
    pub(super) fn heard(&self) -> bool {
        self.heard.load(Ordering::Acquire)
    }

    /// Begins anew: nothing was heard.
    pub(super) fn forget(&self) {
        self.heard.store(false, Ordering::Release);
    }

    /// Whether the kernel holds bytes or an end for us: on an idle connection, either means it is of no more use.
    pub(super) fn has_news(&self) -> bool {
        let peek = recv(self.stream.as_raw_fd(), &mut [0; 1], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT);
        peek != Err(Errno::EAGAIN)
    }
}

/// The reading and writing side of a [`Wire`].
#[derive(Debug)]
pub(super) struct WireIo(Arc<Wire>);

impl WireIo {
    /// There must be only one for each wire: a socket wakes one reader and one writer.
    pub(super) fn new(wire: Arc<Wire>) -> Self {
        Self(wire)
    }

    fn write_with(
        &self,
        cx: &mut Context<'_>,
        mut write: impl FnMut(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.stream.poll_write_ready(cx))?;
            match write(&self.0.stream) {
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }
}

impl AsyncRead for WireIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.stream.poll_read_ready(cx))?;
            match self.0.stream.try_read_buf(buf) {
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
                Err(err) => return Poll::Ready(Err(err)),
                Ok(read) => {
                    if read > 0 {
                        self.0.heard.store(true, Ordering::Release);
                    }
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl AsyncWrite for WireIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.write_with(cx, |stream| stream.try_write(buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write_with(cx, |stream| stream.try_write_vectored(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match shutdown(self.0.stream.as_raw_fd(), Shutdown::Write) {
            Ok(()) | Err(Errno::ENOTCONN) => Poll::Ready(Ok(())),
            Err(errno) => Poll::Ready(Err(errno.into())),
        }
    }
}
