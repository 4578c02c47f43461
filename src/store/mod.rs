//! All SQL. Each method is one statement or one transaction with a name of the domain.
//!
//! SQLite in WAL mode with `synchronous=FULL`: what a method has returned from is on the disk. One connection
//! writes, and every write begins with `BEGIN IMMEDIATE`, so writers wait for each other instead of failing.
//!
//! **Invariant:** no bell is rung here, and nothing but the database is touched.

mod allocations;
mod artifacts;
mod builds;
mod certificates;
mod databases;
mod deliveries;
mod deployments;
mod group_commit;
mod overview;
mod projects;
mod pushes;
mod retention;
mod roots;
mod routes;
mod secrets;
mod steps;
mod targets;
mod upkeep;

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection as _, Sqlite, Transaction};

use group_commit::GroupCommit;

pub use artifacts::{Artifact, NewArtifact};
pub use builds::{BuildOutcome, ClaimedBuild};
pub use certificates::{AuthorityAway, CertificateRow, FailedTry, Issued};
pub use databases::{PostgresDatabase, ValkeyNumber};
pub use deliveries::{Accepted, Delivery, Push, Removal};
pub use deployments::{ClaimedDeployment, Claims, LiveSite, OpenService};
pub use overview::{ArtifactView, BuildView, DeploymentView, EventView, Scope};
pub use projects::{KnownBranch, KnownCommit, ProjectView};
pub use pushes::{PendingPush, PushView};
pub use retention::{Sweep, Swept};
pub use roots::RootView;
pub use secrets::GivenSecret;
pub use steps::Switch;
pub use targets::{Target, Teardown, TeardownAsked};
pub use upkeep::LastUse;

/// To what size SQLite's write-ahead log is cut back, in bytes.
const WAL_BYTES: &str = "16777216";

/// One start of the daemon: what it claims carries this.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunId(String);

impl RunId {
    /// A run unlike any before: the time in nanoseconds and the process.
    #[must_use]
    pub fn fresh() -> Self {
        Self(format!("{:x}-{:x}", Timestamp::now().as_nanosecond(), std::process::id()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// A database operation that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite said no.
    #[error("cannot {action} in the database")]
    Database {
        /// What was to be done.
        action: &'static str,
        /// What it said.
        #[source]
        source: sqlx::Error,
    },
    /// The database cannot be opened.
    #[error("cannot open the database {path}")]
    Open {
        /// The file.
        path: String,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The row is not in the state the caller saw.
    #[error("{thing} is not {expected} any more")]
    Moved {
        /// Such as `deployment 7`.
        thing: String,
        /// What it was expected to be.
        expected: String,
    },
    /// A rule of the model forbids it.
    #[error("cannot change {thing}")]
    Illegal {
        /// Such as `build 7`.
        thing: String,
        /// Which rule.
        #[source]
        source: crate::model::IllegalMove,
    },
    /// No name could be made.
    #[error("cannot name {thing}")]
    Unnameable {
        /// Such as `service api`.
        thing: String,
        /// Why not.
        #[source]
        source: crate::model::InvalidName,
    },
    /// All ports are given out.
    #[error("no port between 18000 and 19999 is free")]
    NoPort,
}

impl StoreError {
    /// Whether there is no room left to write: the disk is full, or it fails. What is there can still be read.
    #[must_use]
    pub fn is_out_of_room(&self) -> bool {
        let Self::Database { source: sqlx::Error::Database(err), .. } = self else { return false };
        // Extended codes have the primary one in their low byte: `SQLITE_IOERR`, `SQLITE_FULL`, `SQLITE_CANTOPEN`.
        let code = err.code().and_then(|code| code.parse::<u32>().ok());
        code.is_some_and(|code| matches!(code & 0xff, 10 | 13 | 14))
    }
}

/// Turns an `sqlx::Error` into one that says what was being done.
fn during(action: &'static str) -> impl FnOnce(sqlx::Error) -> StoreError {
    move |source| StoreError::Database { action, source }
}

/// The current time as the rows keep it.
fn now() -> i64 {
    Timestamp::now().as_millisecond()
}

/// kennel's database. Clones share it.
///
/// When a write fails for want of room, SQLite takes the whole transaction back by itself; sqlx does not notice, and
/// would never begin another on that connection. So a connection that comes back within a transaction is closed.
#[derive(Debug, Clone)]
pub struct Store {
    writer: SqlitePool,
    readers: SqlitePool,
    deliveries: GroupCommit,
}

impl Store {
    /// Opens the database file, making or upgrading it as needed.
    ///
    /// # Errors
    /// When the file cannot be opened, is not kennel's, or was written by a newer kennel.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        let open_error =
            |source| StoreError::Open { path: path.display().to_string(), source: Box::<sqlx::Error>::from(source) };
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(10))
            // What a burst of writes made of the log is given back at the next checkpoint.
            .pragma("journal_size_limit", WAL_BYTES);
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .max_lifetime(None)
            .idle_timeout(None)
            .after_release(|connection, _| {
                Box::pin(async move {
                    // After whatever a dropped transaction has left to do.
                    connection.ping().await?;
                    Ok(!connection.is_in_transaction())
                })
            })
            .connect_with(options.clone())
            .await
            .map_err(open_error)?;
        sqlx::migrate!("src/store/migrations")
            .run(&writer)
            .await
            .map_err(|source| StoreError::Open { path: path.display().to_string(), source: Box::new(source) })?;
        let readers = SqlitePoolOptions::new()
            .max_connections(4)
            // One always holds the database open: the last to close it would remove its log, and on a full disk
            // there may be no room to make that again.
            .min_connections(1)
            .max_lifetime(None)
            .idle_timeout(Duration::from_secs(60))
            .connect_with(options.read_only(true))
            .await
            .map_err(open_error)?;
        let deliveries = GroupCommit::start(writer.clone());
        Ok(Self { writer, readers, deliveries })
    }

    /// Waits for what is under way and closes the file.
    pub async fn close(&self) {
        self.deliveries.close().await;
        self.readers.close().await;
        self.writer.close().await;
    }

    /// Returns when the database can be read.
    ///
    /// # Errors
    /// When it cannot.
    pub async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query_scalar!(r#"select count(*) as "n!: i64" from projects"#)
            .fetch_one(&self.readers)
            .await
            .map_err(during("read anything"))?;
        Ok(())
    }

    /// Begins a transaction that may write, waiting for its turn.
    async fn begin(&self, action: &'static str) -> Result<Transaction<'static, Sqlite>, StoreError> {
        begin(&self.writer, action).await
    }
}

async fn begin(writer: &SqlitePool, action: &'static str) -> Result<Transaction<'static, Sqlite>, StoreError> {
    writer.begin_with("BEGIN IMMEDIATE").await.map_err(during(action))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{BranchRef, Environment};

    fn push(n: usize) -> Push {
        Push {
            project: "shop".parse().unwrap(),
            branch: BranchRef::head(&format!("branch-{n}")).unwrap(),
            commit: "0123456789abcdef0123456789abcdef01234567".parse().unwrap(),
            title: Some("x".repeat(1000)),
            environment: Environment::Dev,
        }
    }

    #[tokio::test]
    async fn a_write_for_which_there_was_no_room_leaves_the_next_one_its_chance() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("kennel.db")).await.unwrap();
        let pages: i64 = sqlx::query_scalar("pragma page_count").fetch_one(&store.writer).await.unwrap();
        // For this connection alone, as a disk that is full for a while.
        let limit = sqlx::AssertSqlSafe(format!("pragma max_page_count = {}", pages + 2));
        sqlx::query(limit).execute(&store.writer).await.unwrap();
        let mut accepted = 0;
        let refused = loop {
            match store.accept_push(None, &push(accepted)).await {
                Ok(_) => accepted += 1,
                Err(err) => break err,
            }
        };
        assert!(refused.is_out_of_room(), "{refused:?}");
        store.ping().await.unwrap();
        sqlx::query("pragma max_page_count = 1000000").execute(&store.writer).await.unwrap();
        store.accept_push(None, &push(accepted)).await.unwrap();
        let builds = store.list_builds(None, Scope::All, 1000).await.unwrap();
        assert_eq!(builds.len(), accepted + 1, "what was refused has left nothing, what came after is there");
    }

    /// As SQLite does when a commit finds the disk full; `tests/lab/upkeep.rs` has a disk that is.
    #[tokio::test]
    async fn a_transaction_that_sqlite_took_back_by_itself_does_not_end_all_writing() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("kennel.db")).await.unwrap();
        for n in 0..2 {
            let mut tx = store.begin("be taken back").await.unwrap();
            let twice = "insert or rollback into projects (name, configured) values ('shop', 1), ('shop', 1)";
            sqlx::query(twice).execute(&mut *tx).await.unwrap_err();
            drop(tx);
            store.accept_push(None, &push(n)).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_transaction_that_is_given_up_keeps_its_connection() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("kennel.db")).await.unwrap();
        sqlx::query("create temp table kept (x)").execute(&store.writer).await.unwrap();
        drop(store.begin("give up").await.unwrap());
        sqlx::query("insert into kept values (1)").execute(&store.writer).await.unwrap();
    }
}
