//! The way of a request to a service: a head that is ready, then the visitor's body as it comes.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use http::header::{HeaderMap, HeaderName};
use http_body::{Body as _, Frame};

use super::wire::Wire;
use crate::router::visitor_body::VisitorBody;

/// How the service is told where a request's body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::router) enum Framing {
    /// There is none, and no header says so.
    None,
    /// By its length.
    Length(u64),
    /// By chunks.
    Chunked,
}

/// A request's body, as the visitor sends it.
#[derive(Debug)]
pub(in crate::router) struct Upload {
    body: VisitorBody,
    framing: Framing,
    /// The fields that may follow the last chunk: those that were announced.
    trailers: Vec<HeaderName>,
}

impl Upload {
    /// `body`, delimited by `framing`; of its trailers, only `trailers` are passed on.
    pub(in crate::router) fn new(body: VisitorBody, framing: Framing, trailers: Vec<HeaderName>) -> Self {
        Self { body, framing, trailers }
    }

    /// How its end is told.
    pub(in crate::router) fn framing(&self) -> Framing {
        self.framing
    }
}

/// A request on its way.
#[derive(Debug)]
pub(in crate::router) struct Sending {
    head: Vec<u8>,
    /// How much of the head has been written.
    written: usize,
    /// What of the body is to be written next.
    queue: VecDeque<Bytes>,
    upload: Option<Box<Upload>>,
    /// Bytes of the body that were announced and have not come yet.
    left: u64,
    /// Grows with every piece that goes.
    pub(super) steps: u64,
    /// Bytes of the body that have come.
    pub(super) received: usize,
}

/// Whether a request without body may reach a service twice (RFC 9110, section 9.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::router) enum Repeatable {
    /// It changes nothing.
    Yes,
    /// It may change something.
    No,
}

/// Why a request could not be sent.
#[derive(Debug)]
pub(super) enum SendError {
    /// The service's connection broke.
    Service,
    /// The visitor broke off, or sent what is not HTTP.
    Visitor,
}

/// Who is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::router) enum Waiting {
    /// For the service to read on.
    Service,
    /// For the visitor to send on.
    Visitor,
}

impl Sending {
    /// A request with this head, and this body if any.
    pub(in crate::router) fn new(head: Vec<u8>, upload: Option<Upload>) -> Self {
        let left = match upload.as_ref().map(|upload| upload.framing) {
            Some(Framing::Length(length)) => length,
            _ => 0,
        };
        Self { head, written: 0, queue: VecDeque::new(), upload: upload.map(Box::new), left, steps: 0, received: 0 }
    }

    /// Begins once more, for another connection, if none of it was taken by this one, or `repeatable` and all at hand.
    pub(super) fn again(&mut self, repeatable: Repeatable) -> bool {
        let unsent = self.written == 0;
        let whole = repeatable == Repeatable::Yes && self.upload.is_none() && self.queue.is_empty();
        self.written = 0;
        unsent || whole
    }

    /// Ready once all of it has been handed to the kernel; else says who is waited for.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, wire: &mut Wire) -> Result<Option<Waiting>, SendError> {
        loop {
            // The body is asked first, so that head and body leave in one writing where both are there.
            let more = self.poll_body(cx)?;
            match self.poll_queue(cx, wire) {
                Poll::Pending => return Ok(Some(Waiting::Service)),
                Poll::Ready(Err(_)) => return Err(SendError::Service),
                Poll::Ready(Ok(())) if self.upload.is_none() => return Ok(None),
                Poll::Ready(Ok(())) if more.is_pending() => return Ok(Some(Waiting::Visitor)),
                Poll::Ready(Ok(())) => {}
            }
        }
    }

    fn poll_queue(&mut self, cx: &mut Context<'_>, wire: &mut Wire) -> Poll<io::Result<()>> {
        while self.written < self.head.len() || !self.queue.is_empty() {
            let mut parts = [IoSlice::new(&[]); 8];
            let head = (self.written < self.head.len()).then(|| &self.head[self.written..]);
            let mut count = 0;
            for (part, bytes) in parts.iter_mut().zip(head.into_iter().chain(self.queue.iter().map(|part| &part[..]))) {
                *part = IoSlice::new(bytes);
                count += 1;
            }
            let mut written = ready!(wire.poll_write(cx, &parts[..count]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.steps += 1;
            let of_head = written.min(self.head.len() - self.written);
            self.written += of_head;
            written -= of_head;
            while let Some(first) = self.queue.front_mut() {
                let taken = written.min(first.len());
                first.advance(taken);
                written -= taken;
                if !first.is_empty() {
                    break;
                }
                self.queue.pop_front();
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Queues what the visitor has sent, one piece at a time; pending while he has sent nothing new.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, SendError> {
        // One piece beside the head: more would hold the visitor's bytes while the service reads none.
        if !self.queue.is_empty() {
            return Ok(Poll::Ready(()));
        }
        let Some(upload) = &mut self.upload else { return Ok(Poll::Ready(())) };
        match Pin::new(&mut upload.body).poll_frame(cx) {
            Poll::Pending => return Ok(Poll::Pending),
            Poll::Ready(Some(Err(_))) => return Err(SendError::Visitor),
            Poll::Ready(Some(Ok(frame))) => {
                self.received += frame.data_ref().map_or(0, Bytes::len);
                self.queue_frame(frame)?;
            }
            Poll::Ready(None) => self.end(None)?,
        }
        if self.upload.as_ref().is_some_and(|upload| upload.body.is_end_stream()) {
            self.end(None)?;
        }
        Ok(Poll::Ready(()))
    }

    fn queue_frame(&mut self, frame: Frame<Bytes>) -> Result<(), SendError> {
        let Some(upload) = &self.upload else { return Ok(()) };
        match frame.into_data() {
            Ok(data) if data.is_empty() => {}
            Ok(data) if upload.framing == Framing::Chunked => {
                let line = Bytes::from(format!("{:x}\r\n", data.len()));
                self.queue.extend([line, data, Bytes::from_static(b"\r\n")]);
            }
            Ok(data) => {
                self.left = self.left.checked_sub(data.len() as u64).ok_or(SendError::Visitor)?;
                self.queue.push_back(data);
            }
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    self.end(Some(&trailers))?;
                }
            }
        }
        Ok(())
    }

    fn end(&mut self, trailers: Option<&HeaderMap>) -> Result<(), SendError> {
        let Some(upload) = self.upload.take() else { return Ok(()) };
        if upload.framing == Framing::Chunked {
            let mut end = b"0\r\n".to_vec();
            for (name, value) in trailers.into_iter().flatten().filter(|(name, _)| upload.trailers.contains(*name)) {
                end.extend_from_slice(name.as_str().as_bytes());
                end.extend_from_slice(b": ");
                end.extend_from_slice(value.as_bytes());
                end.extend_from_slice(b"\r\n");
            }
            end.extend_from_slice(b"\r\n");
            self.queue.push_back(end.into());
        } else if self.left > 0 {
            return Err(SendError::Visitor);
        }
        Ok(())
    }
}
