//! Files that are too large to be kept: read off the runtime's threads, one chunk at a time.

use std::fs::File;
use std::future::Future as _;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::task::JoinHandle;

use crate::router::body::BodyError;

/// The most of a file in memory for one answer, in bytes.
const CHUNK: u64 = 256 * 1024;

/// Reads the bytes from `start` up to but not including `end`. Blocks.
pub(super) fn read(file: &File, start: u64, end: u64) -> io::Result<Bytes> {
    let length = usize::try_from(end - start).map_err(io::Error::other)?;
    let mut chunk = vec![0; length];
    file.read_exact_at(&mut chunk, start)?;
    Ok(chunk.into())
}

/// Part of a file.
#[derive(Debug)]
pub(in crate::router) struct FileBody {
    file: Arc<File>,
    at: u64,
    end: u64,
    /// The most that is read at once.
    chunk: u64,
    reading: Option<JoinHandle<io::Result<Bytes>>>,
}

impl FileBody {
    /// The bytes from `start` up to but not including `end`.
    pub(super) fn new(file: Arc<File>, start: u64, end: u64) -> Self {
        Self { file, at: start, end, chunk: CHUNK, reading: None }
    }

    /// Reads no more than `room` bytes at once from now on.
    pub(in crate::router) fn read_at_most(&mut self, room: usize) {
        self.chunk = CHUNK.min(room as u64);
    }
}

impl HttpBody for FileBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if this.at >= this.end {
            return Poll::Ready(None);
        }
        let reading = this.reading.get_or_insert_with(|| {
            let (file, start) = (Arc::clone(&this.file), this.at);
            let end = this.end.min(start + this.chunk);
            tokio::task::spawn_blocking(move || read(&file, start, end))
        });
        let done = ready!(Pin::new(reading).poll(cx));
        this.reading = None;
        let chunk = done.map_err(io::Error::other).flatten().map_err(BodyError::File);
        match &chunk {
            Ok(chunk) => this.at += chunk.len() as u64,
            Err(_) => this.at = this.end,
        }
        Poll::Ready(Some(chunk.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.at >= self.end
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.end - self.at)
    }
}
