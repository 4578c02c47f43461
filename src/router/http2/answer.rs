//! One request's way to its answer, and the answer's way to the visitor, as his windows open.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use h2::server::SendResponse;
use http::header;
use http::request::Parts;
use http::{Method, Response, StatusCode};
use http_body::Body as _;
use tokio::sync::oneshot;

use super::tunnel::Tunnel;
use super::{date, head};
use crate::router::Shared;
use crate::router::body::Body;
use crate::router::connection::Visitor;
use crate::router::dispatch::{self, Upgrade};
use crate::router::inbox::Inbox;
use crate::router::outbox::Outbox;
use crate::router::streamed::Streamed;
use crate::router::visitor_body::{Expectation, VisitorBody};
use crate::router::watch::{Moment, Watch};

/// A request whose answer has not begun.
pub(super) struct Asked {
    answering: Pin<Box<dyn Future<Output = Response<Body>> + Send>>,
    respond: SendResponse<Bytes>,
    /// What the visitor waits for before he sends the body.
    expectation: Option<Arc<Expectation>>,
    /// With a request for a WebSocket: what else it needs, and who waits for it.
    opening: Option<(Inbox, oneshot::Sender<Tunnel>)>,
    /// Whether the answer is to be a head alone.
    is_head: bool,
    /// Bytes of the answer that are read at once.
    room: usize,
}

impl Asked {
    /// What `visitor` asks for, with what comes after its head if anything does; no more than `room` bytes of its answer
    /// are read at once.
    pub(super) fn new(
        shared: &Arc<Shared>,
        visitor: &Arc<Visitor>,
        room: usize,
        (mut parts, inbox): (Parts, Option<Inbox>),
        respond: SendResponse<Bytes>,
    ) -> Self {
        let is_head = parts.method == Method::HEAD;
        let expects = parts.headers.contains_key(header::EXPECT) && inbox.is_some();
        let expectation = expects.then(|| Arc::new(Expectation::new(visitor.watch.clone())));
        let (host, socket) = head::admit(&mut parts, &shared.limits);
        let (body, upgrade, opening) = match (inbox, &socket) {
            (None, _) => (VisitorBody::Empty, None, None),
            (Some(inbox), None) => {
                (VisitorBody::on_stream(Streamed::new(inbox, &parts.headers), expectation.clone()), None, None)
            }
            (Some(inbox), Some(_)) => {
                let (opened, tunnel) = oneshot::channel();
                (VisitorBody::Empty, Some(Upgrade::Stream(tunnel)), Some((inbox, opened)))
            }
        };
        let answering = dispatch::answer_admitted(shared, visitor, host, parts, body, upgrade);
        let answering: Pin<Box<dyn Future<Output = _> + Send>> = match socket {
            None => Box::pin(answering),
            Some(socket) => {
                let shared = Arc::clone(shared);
                Box::pin(async move { socket.answer(answering.await, &shared) })
            }
        };
        Self { answering, respond, expectation, opening, is_head, room }
    }

    /// Ready when the answer has begun, with what follows its head, or when nobody wants it any more.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Answer>> {
        if let Poll::Ready(response) = self.answering.as_mut().poll(cx) {
            return Poll::Ready(self.begin(response));
        }
        if self.respond.poll_reset(cx).is_ready() {
            return Poll::Ready(None);
        }
        if self.expectation.take_if(|expectation| expectation.is_due()).is_some() {
            let mut go_on = Response::new(());
            *go_on.status_mut() = StatusCode::CONTINUE;
            if let Err(err) = self.respond.send_informational(go_on) {
                tracing::debug!(error = %err, "Could not tell a visitor to go on");
            }
        }
        Poll::Pending
    }

    fn begin(&mut self, response: Response<Body>) -> Option<Answer> {
        let (mut head, body) = response.into_parts();
        // Some refusals close a connection of HTTP/1.1. From others' answers it has been removed.
        head.headers.remove(header::CONNECTION);
        head.headers.entry(header::DATE).or_insert_with(date::now);
        let opening = self.opening.take().filter(|_| head.status.is_success());
        let mut ends = body.is_end_stream();
        if opening.is_some() {
            head.headers.remove(header::CONTENT_LENGTH);
            ends = false;
        } else if !ends {
            if let Some(length) = body.size_hint().exact() {
                head.headers.entry(header::CONTENT_LENGTH).or_insert_with(|| length.into());
            }
            ends = self.is_head;
        }
        let stream = match self.respond.send_response(Response::from_parts(head, ()), ends) {
            Ok(stream) => stream,
            Err(err) => {
                tracing::debug!(error = %err, "Could not send the head of an answer");
                self.respond.send_reset(Reason::INTERNAL_ERROR);
                return None;
            }
        };
        if let Some((receives, opened)) = opening {
            // Who waits for it may have gone: then it is dropped, and ends.
            let _ = opened.send(Tunnel::new(stream, receives));
            return None;
        }
        (!ends).then(|| Answer { rest: Outbox::new(body.read_at_most(self.room), stream), stuck: None })
    }
}

/// An answer whose head has been sent.
#[derive(Debug)]
pub(super) struct Answer {
    rest: Outbox<Body>,
    /// Since when the visitor opens no window, and after how many pieces.
    stuck: Option<(Moment, u64)>,
}

impl Answer {
    /// Ready when all of it is queued, when the visitor wants no more of it, or when he has taken nothing for `limit`.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, watch: &Watch, limit: Duration) -> Poll<()> {
        if let Poll::Ready(ended) = self.rest.poll(cx) {
            if let Err(err) = ended {
                tracing::debug!(error = %err, "An answer broke off");
            }
            return Poll::Ready(());
        }
        if !self.rest.is_stuck() {
            return Poll::Pending;
        }
        let (now, sent) = (Moment::now(), self.rest.sent);
        let since = self.stuck.filter(|(_, after)| *after == sent).map_or(now, |(since, _)| since);
        self.stuck = Some((since, sent));
        let due = since.after(limit);
        if now >= due {
            return Poll::Ready(());
        }
        watch.until(due);
        Poll::Pending
    }
}
