//! The requests of one connection, polled in its task: what they have to say leaves in one writing.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::rt::Executor;

use crate::router::body::{Body, BodyError};
use crate::router::connection::Visitor;
use crate::router::watch::Moment;

/// Requests that have begun and are not polled yet. Clones hold the same.
#[derive(Debug, Clone)]
pub(super) struct Fresh(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    waiting: Mutex<Waiting>,
    begun: AtomicBool,
    /// How long a visitor may take nothing of an answer.
    idle: Duration,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Whose the next one is: hyper first asks for the answer, then says what is to be polled for it.
    next: Option<Arc<Visitor>>,
    streams: Vec<Stream>,
}

impl Fresh {
    /// None, of a connection whose visitor may take nothing of an answer for `idle`.
    pub(super) fn new(idle: Duration) -> Self {
        Self(Arc::new(Shared { waiting: Mutex::default(), begun: AtomicBool::new(false), idle }))
    }

    /// `one` is about to begin.
    pub(super) fn begin(&self, one: &Arc<Visitor>) {
        self.0.begun.store(true, Ordering::Relaxed);
        self.waiting().next = Some(Arc::clone(one));
    }

    /// Whether there has been a request.
    pub(super) fn has_begun(&self) -> bool {
        self.0.begun.load(Ordering::Relaxed)
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Fresh {
    fn execute(&self, future: F) {
        let mut waiting = self.waiting();
        let visitor = waiting.next.take();
        waiting.streams.push(Stream { future: Box::pin(future), visitor, idle: self.0.idle });
    }
}

/// A request being answered; or, without a visitor, the sending half of a WebSocket.
struct Stream {
    future: Pin<Box<dyn Future<Output = ()> + Send>>,
    visitor: Option<Arc<Visitor>>,
    idle: Duration,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("visitor", &self.visitor).finish_non_exhaustive()
    }
}

impl Future for Stream {
    /// Whether it was a request.
    type Output = bool;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<bool> {
        let this = self.get_mut();
        let Some(visitor) = &this.visitor else { return this.future.as_mut().poll(cx).map(|()| false) };
        visitor.watch.register(cx);
        if this.future.as_mut().poll(cx).is_ready() {
            return Poll::Ready(true);
        }
        let Some(since) = visitor.offered_since() else { return Poll::Pending };
        let due = since.after(this.idle);
        if Moment::now() >= due {
            // What is dropped unfinished is reset.
            return Poll::Ready(true);
        }
        visitor.watch.until(due);
        Poll::Pending
    }
}

/// Requests that are polled.
#[derive(Debug, Default)]
pub(super) struct Running {
    streams: FuturesUnordered<Stream>,
    requests: usize,
}

impl Running {
    /// Polls what has been woken, and what is `fresh`; true when any of it is new, or over.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, fresh: &Fresh) -> bool {
        let mut moved = false;
        loop {
            for stream in std::mem::take(&mut fresh.waiting().streams) {
                self.requests += usize::from(stream.visitor.is_some());
                self.streams.push(stream);
                moved = true;
            }
            let Poll::Ready(Some(was_request)) = self.streams.poll_next_unpin(cx) else { return moved };
            self.requests -= usize::from(was_request);
            moved = true;
        }
    }

    /// How many requests are being answered.
    pub(super) fn requests(&self) -> usize {
        self.requests
    }
}

/// An answer's body that notes whether the visitor takes what he is offered.
#[derive(Debug)]
pub(super) struct Offered {
    body: Body,
    visitor: Arc<Visitor>,
}

impl Offered {
    /// `body`, offered to `visitor`.
    pub(super) fn new(body: Body, visitor: Arc<Visitor>) -> Self {
        Self { body, visitor }
    }
}

impl HttpBody for Offered {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        // hyper asks for more when it has got rid of what it had.
        this.visitor.note_taken();
        let frame = Pin::new(&mut this.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(_))) = &frame {
            this.visitor.note_offered();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
