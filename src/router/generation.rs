//! Connections that are brought to their end together, stage by stage.
//!
//! At the end of the router there are two generations: those that were there, and those that come while what the
//! first have begun is being finished. Each is told in the same way, the second when no more are taken.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::Poll;
use std::time::Duration;

use tokio_util::task::TaskTracker;

use super::Shared;
use super::watch::{Moment, Watch};

/// At the end: how long the beginning of a connection may still take.
const FAREWELL: Duration = Duration::from_secs(1);

/// How far the end of a generation has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// It has not begun.
    Serving,
    /// Answers close their connections.
    Stopping,
    /// Connections close when they have no request.
    Closing,
    /// Connections close.
    Cut,
}

/// Connections that end together.
#[derive(Debug)]
pub(super) struct Generation {
    /// One task for each connection.
    pub(super) tasks: TaskTracker,
    /// As [`Stage`].
    stage: AtomicU8,
}

impl Generation {
    /// One without connections.
    pub(super) fn new(stage: Stage) -> Self {
        Self { tasks: TaskTracker::new(), stage: AtomicU8::new(stage as u8) }
    }

    /// How far its end has come.
    pub(super) fn stage(&self) -> Stage {
        let number = self.stage.load(Ordering::Acquire);
        let stages = [Stage::Serving, Stage::Stopping, Stage::Closing];
        stages.into_iter().find(|stage| *stage as u8 == number).unwrap_or(Stage::Cut)
    }

    /// Waits for the beginning of a connection, a handshake or the like. `None` when it is not over within `limit`, or when
    /// the connection has to end.
    pub(super) async fn begin<T>(
        &self,
        watch: &Watch,
        limit: Duration,
        beginning: impl Future<Output = T>,
    ) -> Option<T> {
        let mut due = Moment::now().after(limit);
        let mut closing = false;
        let mut beginning = pin!(beginning);
        poll_fn(|cx| {
            watch.register(cx);
            if self.stage() >= Stage::Closing && !closing {
                closing = true;
                due = due.min(Moment::now().after(FAREWELL));
            }
            match beginning.as_mut().poll(cx) {
                Poll::Ready(begun) => Poll::Ready(Some(begun)),
                Poll::Pending if Moment::now() >= due || self.stage() == Stage::Cut => Poll::Ready(None),
                Poll::Pending => {
                    watch.until(due);
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Lets what has begun finish, for as long as `finish`; returns when no connection is left.
    ///
    /// Before connections without a request are closed there is some time in which one that is on its way is still
    /// taken, each answer closing its connection.
    pub(super) async fn end(&self, shared: &Shared, finish: Duration) {
        self.enter(Stage::Stopping, shared);
        self.tasks.close();
        if !self.tasks.is_empty() {
            tokio::time::sleep(shared.timeouts.lame_duck).await;
        }
        self.enter(Stage::Closing, shared);
        if tokio::time::timeout(finish, self.tasks.wait()).await.is_err() {
            let left = self.tasks.len();
            tracing::warn!(connections = left, "Cut {left} connections that did not finish in time");
            self.enter(Stage::Cut, shared);
            self.tasks.wait().await;
        }
    }

    /// Takes its connections to this stage.
    pub(super) fn enter(&self, stage: Stage, shared: &Shared) {
        self.stage.store(stage as u8, Ordering::Release);
        shared.rouse();
    }
}
