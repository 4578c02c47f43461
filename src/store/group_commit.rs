//! Group commit: what many deliveries ask for becomes durable with one commit, and only then is any of them answered.
//!
//! Callers put a request into a bounded queue and wait for its answer. One task takes all that have come, records each
//! in a savepoint of its own and commits them together, so that the disk is waited for once and not once each.
//!
//! **Invariant:** a request that was not answered may be lost, one that was is on the disk; and none fails because of
//! another in its group.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt as _;
use sqlx::sqlite::SqlitePool;
use sqlx::{Acquire as _, Sqlite, Transaction};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::deliveries::{record_push, record_removal};
use super::{Accepted, Delivery, Push, Removal, StoreError, begin, during};

/// How many requests wait for a commit; callers beyond wait for room.
const QUEUE_MAX: usize = 1024;
/// How many requests one commit takes, so that the other writers get their turn soon.
const GROUP_MAX: usize = 128;
/// What all of this does, for errors.
const ACTION: &str = "record a delivery";

/// What one delivery asks to be recorded.
#[derive(Debug)]
pub(super) enum Request {
    /// A commit to build.
    Push(Option<Delivery>, Push),
    /// A branch that goes.
    Removal(Option<Delivery>, Removal),
}

impl Request {
    async fn record(&self, tx: &mut Transaction<'_, Sqlite>) -> Result<Accepted, StoreError> {
        match self {
            Self::Push(delivery, push) => record_push(tx, delivery.as_ref(), push).await,
            Self::Removal(delivery, removal) => record_removal(tx, delivery.as_ref(), removal).await,
        }
    }
}

/// A request, and who waits for it.
#[derive(Debug)]
struct Waiting {
    request: Request,
    answer: oneshot::Sender<Result<Accepted, StoreError>>,
}

/// The queue and the task that empties it. Clones share both.
#[derive(Debug, Clone)]
pub(super) struct GroupCommit {
    queue: mpsc::Sender<Waiting>,
    closing: CancellationToken,
    /// The task ends with the last clone.
    task: Arc<Mutex<JoinSet<()>>>,
}

impl GroupCommit {
    /// Begins to take requests, to be written by `writer`.
    pub(super) fn start(writer: SqlitePool) -> Self {
        let (queue, requests) = mpsc::channel(QUEUE_MAX);
        let closing = CancellationToken::new();
        let mut task = JoinSet::new();
        task.spawn(run(writer, requests, closing.clone()));
        Self { queue, closing, task: Arc::new(Mutex::new(task)) }
    }

    /// Has a request recorded; returns once it is on the disk. It goes on when the caller stops waiting.
    ///
    /// # Errors
    /// When the database refuses; then nothing of it was recorded.
    pub(super) async fn record(&self, request: Request) -> Result<Accepted, StoreError> {
        let closed = || during(ACTION)(sqlx::Error::PoolClosed);
        let (answer, answered) = oneshot::channel();
        self.queue.send(Waiting { request, answer }).await.map_err(|_| closed())?;
        answered.await.map_err(|_| closed())?
    }

    /// Takes no more requests, and returns when those that wait are answered.
    pub(super) async fn close(&self) {
        self.closing.cancel();
        let mut task = std::mem::take(&mut *self.task.lock().unwrap_or_else(PoisonError::into_inner));
        while task.join_next().await.is_some() {}
    }
}

async fn run(writer: SqlitePool, mut requests: mpsc::Receiver<Waiting>, closing: CancellationToken) {
    let mut group = Vec::with_capacity(GROUP_MAX);
    loop {
        tokio::select! {
            () = closing.cancelled(), if !requests.is_closed() => requests.close(),
            taken = requests.recv_many(&mut group, GROUP_MAX) => {
                if taken == 0 {
                    return;
                }
                // Whoever waited for a group that panicked hears that it was not recorded; the next one goes on.
                let recorded = record(&writer, std::mem::take(&mut group));
                let _ = AssertUnwindSafe(recorded).catch_unwind().await;
            }
        }
    }
}

/// Records a group and answers each of it.
async fn record(writer: &SqlitePool, group: Vec<Waiting>) {
    if group.len() > 1
        && let Ok(outcomes) = together(writer, &group).await
    {
        for (waiting, outcome) in group.into_iter().zip(outcomes) {
            // Whoever does not wait any more has lost an answer, not a delivery.
            let _ = waiting.answer.send(outcome);
        }
        return;
    }
    // One alone needs no savepoint. And a group that cannot be committed, since what failed in one of them ended the
    // transaction of all, is recorded one by one: those that are not to blame succeed.
    for waiting in group {
        let outcome = alone(writer, &waiting.request).await;
        let _ = waiting.answer.send(outcome);
    }
}

/// The outcome of each, or `Err` when nothing was recorded of any.
async fn together(writer: &SqlitePool, group: &[Waiting]) -> Result<Vec<Result<Accepted, StoreError>>, StoreError> {
    let mut tx = begin(writer, ACTION).await?;
    let mut outcomes = Vec::with_capacity(group.len());
    for waiting in group {
        let mut savepoint = tx.begin().await.map_err(during(ACTION))?;
        let outcome = waiting.request.record(&mut savepoint).await;
        let ended = match &outcome {
            Ok(_) => savepoint.commit().await,
            Err(_) => savepoint.rollback().await,
        };
        ended.map_err(during(ACTION))?;
        outcomes.push(outcome);
    }
    tx.commit().await.map_err(during(ACTION))?;
    Ok(outcomes)
}

async fn alone(writer: &SqlitePool, request: &Request) -> Result<Accepted, StoreError> {
    let mut tx = begin(writer, ACTION).await?;
    let accepted = request.record(&mut tx).await?;
    tx.commit().await.map_err(during(ACTION))?;
    Ok(accepted)
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;
    use rstest::rstest;

    use super::*;
    use crate::model::{BuildState, Environment};
    use crate::store::{Scope, Store};

    fn push(branch: &str, n: usize) -> Push {
        Push {
            project: "shop".parse().unwrap(),
            branch: crate::model::BranchRef::head(branch).unwrap(),
            commit: format!("{n:040x}").parse().unwrap(),
            title: None,
            environment: Environment::Dev,
        }
    }

    fn delivery(n: usize) -> Delivery {
        Delivery { id: format!("delivery-{n}").parse().unwrap(), event: "push".to_owned() }
    }

    async fn open() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("kennel.db")).await.unwrap();
        (dir, store)
    }

    /// Has requests come while somebody else writes, so that they wait together.
    async fn all_at_once(
        store: &Store,
        requests: impl IntoIterator<Item = (Delivery, Push)>,
    ) -> Vec<Result<Accepted, StoreError>> {
        let other = store.begin("be in the way").await.unwrap();
        let requests: Vec<_> = requests.into_iter().collect();
        let queued = store.deliveries.queue.capacity() - requests.len();
        let answers = join_all(requests.iter().map(|(delivery, push)| store.accept_push(Some(delivery), push)));
        let release = async {
            // The task has taken what came first, and waits for its turn; the others are in the queue.
            while store.deliveries.queue.capacity() < queued {
                tokio::task::yield_now().await;
            }
            other.rollback().await.unwrap();
        };
        tokio::join!(answers, release).0
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn every_delivery_of_a_group_gets_its_own_answer_and_the_last_of_a_branch_stays_queued() {
        let (_dir, store) = open().await;
        let requests = (1..=200).map(|n| (delivery(n), push(&format!("branch-{}", n % 4), n)));
        let answers = all_at_once(&store, requests).await;
        let mut builds: Vec<_> = answers
            .into_iter()
            .map(|answer| match answer.unwrap() {
                Accepted::Queued(build) => build,
                other => panic!("{other:?}"),
            })
            .collect();
        builds.sort_unstable();
        builds.dedup();
        assert_eq!(builds.len(), 200);
        let rows = store.list_builds(None, Scope::All, 1000).await.unwrap();
        assert_eq!(rows.len(), 200);
        for branch in 0..4 {
            let mut states = rows.iter().filter(|row| row.branch == format!("branch-{branch}")).map(|row| row.state);
            assert_eq!(states.next(), Some(BuildState::Queued), "the newest");
            assert!(states.all(|state| state == BuildState::Superseded));
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_delivery_that_comes_twice_in_a_group_is_recorded_once() {
        let (_dir, store) = open().await;
        let answers = all_at_once(&store, (0..20).map(|n| (delivery(n / 2), push("main", n / 2)))).await;
        let answers: Vec<_> = answers.into_iter().map(Result::unwrap).collect();
        for pair in answers.chunks(2) {
            let Accepted::Queued(build) = pair[0] else { panic!("{pair:?}") };
            assert_eq!(pair[1], Accepted::Redelivered(Some(build)));
        }
        assert_eq!(store.list_builds(None, Scope::All, 100).await.unwrap().len(), 10);
    }

    // What a full disk does to a statement, and what it does to a transaction.
    #[rstest]
    #[case::its_statement("abort")]
    #[case::the_transaction_of_all("rollback")]
    #[tokio::test(flavor = "multi_thread")]
    async fn a_delivery_that_cannot_be_recorded_fails_alone(#[case] ends: &str) {
        let (_dir, store) = open().await;
        let trigger = format!(
            "create trigger bad before insert on builds when new.commit_sha like '%7' begin select raise({ends}, 'no'); end"
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(trigger)).execute(&store.writer).await.unwrap();
        let answers = all_at_once(&store, (0..16).map(|n| (delivery(n), push(&format!("branch-{n}"), n)))).await;
        let failed: Vec<_> = (0..16).filter(|&n| answers[n].is_err()).collect();
        assert_eq!(failed, [7]);
        let rows = store.list_builds(None, Scope::All, 100).await.unwrap();
        assert_eq!(rows.len(), 15);
        let known = store.known_branches(&"shop".parse().unwrap()).await.unwrap();
        assert_eq!(known.len(), 15, "nothing is left of the one that failed");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_waits_when_the_store_closes_is_still_recorded() {
        let (dir, store) = open().await;
        let requests: Vec<_> = (0..50).map(|n| (delivery(n), push(&format!("branch-{n}"), n))).collect();
        let answers = join_all(requests.iter().map(|(delivery, push)| store.accept_push(Some(delivery), push)));
        let (answers, ()) = tokio::join!(answers, store.close());
        let recorded = answers.iter().filter(|answer| answer.is_ok()).count();
        let again = Store::open(&dir.path().join("kennel.db")).await.unwrap();
        assert_eq!(again.list_builds(None, Scope::All, 100).await.unwrap().len(), recorded);
        let late = store.accept_push(Some(&delivery(99)), &push("late", 99)).await;
        assert!(late.is_err(), "a closed store says so");
    }
}
