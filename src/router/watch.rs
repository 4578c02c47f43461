//! Time limits for very many tasks: each says until when it is willing to wait, and is woken soon after.
//!
//! A timer of its own for each would cost more than the waiting it limits. Here, setting a limit is a store into an
//! atomic; one pass over all of them every [`TICK`] finds those that are due.
//!
//! **Invariant:** a task is woken at its limit or up to a [`TICK`] later, never given up here: it looks itself.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::Context;
use std::time::Duration;

use futures_util::task::AtomicWaker;
use nix::time::{ClockId, clock_gettime};
use tokio::sync::Notify;

/// How late a limit may be noticed.
const TICK: Duration = Duration::from_millis(50);
const NEVER: u64 = u64::MAX;

/// A moment, to within some milliseconds. Reading the clock costs next to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment(u64);

impl Moment {
    /// This moment.
    pub(super) fn now() -> Self {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).expect("Linux has this clock");
        let ms = now.tv_sec() * 1000 + now.tv_nsec() / 1_000_000;
        Self(u64::try_from(ms).expect("the clock begins at zero"))
    }

    /// This much later.
    pub(super) fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(NEVER)))
    }

    /// In milliseconds since some fixed moment, for an atomic.
    pub(super) fn as_ms(self) -> u64 {
        self.0
    }

    /// The moment of that number.
    pub(super) fn from_ms(ms: u64) -> Self {
        Self(ms)
    }
}

/// The watched tasks of one thread.
#[derive(Debug, Default)]
pub(super) struct Watches {
    slots: Mutex<Vec<Weak<Slot>>>,
    /// Rung when there is a first one.
    first: Notify,
}

#[derive(Debug)]
struct Slot {
    due: AtomicU64,
    waker: AtomicWaker,
}

/// One watched task. Clones watch the same.
#[derive(Debug, Clone)]
pub(super) struct Watch(Arc<Slot>);

impl Watches {
    /// Watches one more task.
    pub(super) fn add(&self) -> Watch {
        let slot = Arc::new(Slot { due: AtomicU64::new(NEVER), waker: AtomicWaker::new() });
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.is_empty() {
            self.first.notify_one();
        }
        slots.push(Arc::downgrade(&slot));
        Watch(slot)
    }

    /// Wakes every task whose limit has passed, for ever.
    pub(super) async fn run(&self) {
        loop {
            if self.wake_due() == 0 {
                self.first.notified().await;
            }
            tokio::time::sleep(TICK).await;
        }
    }

    /// Wakes all tasks, so that they look at what has changed around them.
    pub(super) fn wake_all(&self) {
        let slots: Vec<_> = self.slots.lock().unwrap_or_else(PoisonError::into_inner).clone();
        slots.iter().filter_map(Weak::upgrade).for_each(|slot| slot.waker.wake());
    }

    /// Returns how many tasks there are.
    fn wake_due(&self) -> usize {
        let now = Moment::now().0;
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.retain(|slot| {
            let Some(slot) = slot.upgrade() else { return false };
            if slot.due.load(Ordering::Relaxed) <= now {
                slot.due.store(NEVER, Ordering::Relaxed);
                slot.waker.wake();
            }
            true
        });
        slots.len()
    }
}

impl Watch {
    /// Tells who is to be woken: once in every polling of the task, before it looks at what may change.
    pub(super) fn register(&self, cx: &Context<'_>) {
        self.0.waker.register(cx.waker());
    }

    /// Has the task woken now.
    pub(super) fn wake(&self) {
        self.0.waker.wake();
    }

    /// Has the task woken once `due` has passed, or earlier.
    pub(super) fn until(&self, due: Moment) {
        self.0.due.fetch_min(due.0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use super::*;

    async fn wait(watch: &Watch, limit: Duration) {
        let due = Moment::now().after(limit);
        poll_fn(|cx| {
            watch.register(cx);
            if Moment::now() >= due {
                return Poll::Ready(());
            }
            watch.until(due);
            Poll::Pending
        })
        .await;
    }

    #[tokio::test]
    async fn a_task_is_woken_once_its_limit_has_passed() {
        let watches = Watches::default();
        let begun = std::time::Instant::now();
        tokio::select! {
            () = watches.run() => {}
            () = async {
                // The second begins when nothing has been watched for a while.
                for _ in 0..2 {
                    let watch = watches.add();
                    wait(&watch, Duration::from_millis(100)).await;
                    drop(watch);
                    tokio::time::sleep(TICK * 3).await;
                }
            } => {}
        }
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(190) && took < Duration::from_secs(5), "{took:?}");
    }

    #[tokio::test]
    async fn an_earlier_limit_is_not_put_off_by_a_later_one() {
        let watches = Watches::default();
        let watch = watches.add();
        watch.until(Moment::now().after(Duration::from_secs(3600)));
        watch.until(Moment::now());
        watch.until(Moment::now().after(Duration::from_secs(3600)));
        assert_eq!(watch.0.due.load(Ordering::Relaxed).saturating_sub(Moment::now().0), 0);
        watches.wake_due();
        assert_eq!(watch.0.due.load(Ordering::Relaxed), NEVER);
    }
}
