//! The requests of one connection, polled in its task: what they have to say leaves in one writing.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;

use super::answer::{Answer, Asked};
use crate::router::connection::Visitor;
use crate::router::inbox::Filling;

/// Requests that are being answered.
pub(super) struct Streams {
    streams: FuturesUnordered<Stream>,
    /// What is still to come of requests, and of WebSockets.
    arrivals: FuturesUnordered<Filling>,
    /// How long a visitor may take nothing of an answer.
    idle: Duration,
    /// Whether there are some that have not been polled yet.
    fresh: bool,
}

impl Streams {
    /// None, of a connection whose visitor may take nothing of an answer for `idle`.
    pub(super) fn new(idle: Duration) -> Self {
        Self { streams: FuturesUnordered::new(), arrivals: FuturesUnordered::new(), idle, fresh: false }
    }

    /// `visitor`, who stands for one request, has `asked`.
    pub(super) fn add(&mut self, visitor: Arc<Visitor>, asked: Asked) {
        self.streams.push(Stream { visitor, idle: self.idle, step: Step::Asked(asked) });
        self.fresh = true;
    }

    /// What `arrival` fills is read from now on.
    pub(super) fn expect(&mut self, arrival: Filling) {
        self.arrivals.push(arrival);
    }

    /// Polls what has been woken; true when any of it is new, or over.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        // What has come is there when a request is first looked at.
        while let Poll::Ready(Some(())) = self.arrivals.poll_next_unpin(cx) {}
        let mut moved = std::mem::take(&mut self.fresh);
        while let Poll::Ready(Some(())) = self.streams.poll_next_unpin(cx) {
            moved = true;
        }
        moved
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }
}

/// A request being answered.
struct Stream {
    visitor: Arc<Visitor>,
    idle: Duration,
    step: Step,
}

enum Step {
    Asked(Asked),
    Answered(Answer),
}

impl Future for Stream {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Self { visitor, idle, step } = self.get_mut();
        visitor.watch.register(cx);
        loop {
            match step {
                Step::Asked(asked) => match ready!(asked.poll(cx)) {
                    Some(answer) => *step = Step::Answered(answer),
                    None => return Poll::Ready(()),
                },
                Step::Answered(answer) => return answer.poll(cx, &visitor.watch, *idle),
            }
        }
    }
}
