//! Who waits for which of systemd's jobs.
//!
//! systemd tells a job's path in its answer and the job's end in a signal, and the signal may come first.
//! So a caller says beforehand that it is about to ask, and what ends meanwhile is kept.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Callers and the jobs they wait for, by the job's object path.
#[derive(Debug, Default)]
pub(super) struct Jobs(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// How many callers do not know their job's path yet.
    asking: usize,
    /// How jobs ended while somebody was asking.
    early: HashMap<String, String>,
    waiting: HashMap<String, oneshot::Sender<String>>,
}

impl Jobs {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be called before systemd is asked for a job.
    pub(super) fn ask(&self) -> Asking<'_> {
        self.state().asking += 1;
        Asking(self)
    }

    /// Takes note of the end of a job, anybody's.
    pub(super) fn ended(&self, path: &str, result: &str) {
        let mut state = self.state();
        if let Some(waiter) = state.waiting.remove(path) {
            let _ = waiter.send(result.to_owned());
        } else if state.asking > 0 {
            state.early.insert(path.to_owned(), result.to_owned());
        }
    }
}

/// A caller that does not know its job's path yet.
#[derive(Debug)]
pub(super) struct Asking<'a>(&'a Jobs);

impl<'a> Asking<'a> {
    /// The caller knows the path now.
    pub(super) fn job(self, path: &str) -> Waiting<'a> {
        let (sender, receiver) = oneshot::channel();
        let mut state = self.0.state();
        match state.early.remove(path) {
            Some(result) => {
                let _ = sender.send(result);
            }
            None => {
                state.waiting.insert(path.to_owned(), sender);
            }
        }
        Waiting { jobs: self.0, path: path.to_owned(), receiver }
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.asking -= 1;
        if state.asking == 0 {
            state.early.clear();
        }
    }
}

/// A caller that waits for the end of its job.
#[derive(Debug)]
pub(super) struct Waiting<'a> {
    jobs: &'a Jobs,
    path: String,
    receiver: oneshot::Receiver<String>,
}

impl Waiting<'_> {
    /// How the job ended. May be asked again after being dropped half-way.
    pub(super) async fn result(&mut self) -> String {
        match (&mut self.receiver).await {
            Ok(result) => result,
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.jobs.state().waiting.remove(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_end_told_before_the_path_is_known_is_not_lost() {
        let jobs = Jobs::default();
        let asking = jobs.ask();
        jobs.ended("/job/1", "done");
        assert_eq!(asking.job("/job/1").result().await, "done");
    }

    #[tokio::test]
    async fn an_end_told_later_reaches_its_own_caller_only() {
        let jobs = Jobs::default();
        let (mut one, mut two) = (jobs.ask().job("/job/1"), jobs.ask().job("/job/2"));
        jobs.ended("/job/2", "failed");
        jobs.ended("/job/1", "done");
        assert_eq!((one.result().await, two.result().await), ("done".to_owned(), "failed".to_owned()));
    }

    #[test]
    fn nothing_is_kept_for_callers_that_are_gone() {
        let jobs = Jobs::default();
        let asking = jobs.ask();
        jobs.ended("/job/1", "done");
        drop(asking);
        drop(jobs.ask().job("/job/2"));
        jobs.ended("/job/2", "done");
        let state = jobs.state();
        assert_eq!((state.asking, state.early.len(), state.waiting.len()), (0, 0, 0));
    }
}
