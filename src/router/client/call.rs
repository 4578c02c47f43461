//! One exchange over one connection: the request goes out while the answer, which may come early, is read.

use std::task::{Context, Poll, ready};

use http::Method;

use super::Malformed;
use super::decode::{Decoder, Piece};
use super::head::AnswerHead;
use super::send::{Repeatable, SendError, Sending, Waiting};
use super::wire::Wire;

/// A request on its way, until the head of its answer has come.
#[derive(Debug)]
pub(in crate::router) struct Call {
    /// `None` until there is one.
    wire: Option<Wire>,
    method: Method,
    sending: Sending,
    waiting: Option<Waiting>,
    /// Whether the service takes no more of the request; it may have answered before.
    deaf: bool,
    heard: bool,
}

/// Why there is no head of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::router) enum Failure {
    /// The connection broke.
    Lost,
    /// What came is not HTTP.
    Malformed(Malformed),
    /// The visitor broke off, or sent what is not HTTP.
    Visitor,
}

impl Call {
    /// Sends `sending`, a request with this method, once there is a connection.
    pub(in crate::router) fn new(method: Method, sending: Sending) -> Self {
        Self { wire: None, method, sending, waiting: Some(Waiting::Service), deaf: false, heard: false }
    }

    /// Sends it over `wire`.
    pub(in crate::router) fn go_by(&mut self, wire: Wire) {
        self.wire = Some(wire);
    }

    /// Who is to go on with the request; nobody once all of it has been sent.
    pub(in crate::router) fn waiting(&self) -> Option<Waiting> {
        self.waiting
    }

    /// Grows with every piece of the request that goes.
    pub(in crate::router) fn sent(&self) -> u64 {
        self.sending.steps
    }

    /// How many bytes of the request's body have come.
    pub(in crate::router) fn received(&self) -> usize {
        self.sending.received
    }

    /// Ready with the head of the final answer.
    pub(in crate::router) fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<AnswerHead, Failure>> {
        let Some(wire) = &mut self.wire else { return Poll::Ready(Err(Failure::Lost)) };
        if self.waiting.is_some() && !self.deaf {
            match self.sending.poll(cx, wire) {
                Ok(waiting) => self.waiting = waiting,
                Err(SendError::Visitor) => return Poll::Ready(Err(Failure::Visitor)),
                Err(SendError::Service) => {
                    self.deaf = true;
                    self.waiting = Some(Waiting::Service);
                }
            }
        }
        loop {
            if !wire.buffer.is_empty() {
                match AnswerHead::take(&mut wire.buffer, &self.method) {
                    // Interim; 101 ends HTTP on this connection.
                    Ok(Some(head)) if head.status.is_informational() && head.status != 101 => continue,
                    Ok(Some(head)) => return Poll::Ready(Ok(head)),
                    Ok(None) => {}
                    Err(malformed) => return Poll::Ready(Err(Failure::Malformed(malformed))),
                }
            }
            match ready!(wire.poll_fill(cx, None)) {
                Ok(1..) => self.heard = true,
                Ok(0) | Err(_) => return Poll::Ready(Err(Failure::Lost)),
            }
        }
    }

    /// Gets ready for another connection; false if the service may have acted upon the request, and may not do so twice.
    pub(in crate::router) fn again(&mut self, repeatable: Repeatable) -> bool {
        if self.heard {
            return false;
        }
        (self.wire, self.waiting, self.deaf) = (None, Some(Waiting::Service), false);
        self.sending.again(repeatable)
    }

    /// Goes on to the body that `head` announces.
    pub(in crate::router) fn into_answer(self, head: &AnswerHead) -> Answer {
        let sending = self.waiting.is_some().then(|| Box::new(self.sending)).filter(|_| !self.deaf);
        Answer { wire: self.wire, decoder: head.decoder, keeps: head.keeps && !self.deaf, sending }
    }

    /// The connection, for another protocol.
    pub(in crate::router) fn into_wire(self) -> Option<Wire> {
        self.wire
    }
}

/// An answer whose head has come.
#[derive(Debug)]
pub(in crate::router) struct Answer {
    /// `None` once it has been handed back, or broke.
    wire: Option<Wire>,
    decoder: Decoder,
    keeps: bool,
    /// What of the request is still on its way.
    sending: Option<Box<Sending>>,
}

impl Answer {
    /// Whether all of it has been taken.
    pub(in crate::router) fn is_over(&self) -> bool {
        self.decoder.is_over()
    }

    /// How many bytes of its body are still to come, if that is known.
    pub(in crate::router) fn remaining(&self) -> Option<u64> {
        self.decoder.remaining()
    }

    /// Reads no more than `room` bytes at once from now on.
    pub(in crate::router) fn read_at_most(&mut self, room: usize) {
        if let Some(wire) = &mut self.wire {
            wire.read_at_most(room);
        }
    }

    /// Ready with the next piece of its body.
    pub(in crate::router) fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, Malformed>> {
        if self.decoder.is_over() {
            return Poll::Ready(Ok(Piece::End));
        }
        let Some(wire) = &mut self.wire else { return Poll::Ready(Err(Malformed("the connection broke"))) };
        if let Some(sending) = &mut self.sending {
            match sending.poll(cx, wire) {
                Ok(Some(_)) => {}
                Ok(None) => self.sending = None,
                Err(_) => {
                    // The answer may still be whole; but nothing can follow it.
                    self.sending = None;
                    self.keeps = false;
                }
            }
        }
        loop {
            if let Some(piece) = self.decoder.next(&mut wire.buffer)? {
                return Poll::Ready(Ok(piece));
            }
            match ready!(wire.poll_fill(cx, self.decoder.remaining())) {
                Ok(1..) => {}
                Ok(0) => self.decoder.close()?,
                Err(_) => return Poll::Ready(Err(Malformed("the connection broke"))),
            }
        }
    }

    /// The connection, once, when the answer is over and another exchange may follow on it.
    pub(in crate::router) fn take_wire(&mut self) -> Option<Wire> {
        if !self.decoder.is_over() || !self.keeps || self.sending.is_some() {
            return None;
        }
        let mut wire = self.wire.take()?;
        // What follows an answer unasked would be taken for the next one.
        if !wire.buffer.is_empty() {
            return None;
        }
        wire.reset();
        Some(wire)
    }
}
