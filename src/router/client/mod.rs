//! The side of HTTP/1.1 that asks: sends a request to a service and reads its answer, within the asking task.
//!
//! `head` and `decode` read answers, `send` writes requests, `wire` is the connection, and `call` puts one exchange
//! together. What a service sends is judged as hyper would, or more strictly.
//!
//! **Invariant:** nothing here knows routes or visitors' headers, and nothing runs in a task of its own.

mod call;
mod decode;
mod head;
mod send;
mod wire;

pub(super) use self::call::{Answer, Call, Failure};
pub(super) use self::decode::Piece;
pub(super) use self::head::{AnswerHead, HOP_BY_HOP};
pub(super) use self::send::{Framing, Repeatable, Sending, Upload, Waiting};
pub(super) use self::wire::Wire;

/// What a service sent is not HTTP/1.1, or can be read in two ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the service sent what is not HTTP: {0}")]
pub(super) struct Malformed(pub(super) &'static str);
