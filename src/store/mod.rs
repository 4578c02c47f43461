//! All SQL. Each method is one statement or one transaction with a name of the domain.
//!
//! SQLite in WAL mode with `synchronous=FULL`: what a method has returned from is on the disk. One connection
//! writes, and every write begins with `BEGIN IMMEDIATE`, so writers wait for each other instead of failing.
//!
//! **Invariant:** no bell is rung here, and nothing but the database is touched.

mod allocations;
mod artifacts;
mod builds;
mod databases;
mod deliveries;
mod deployments;
mod overview;
mod projects;
mod routes;
mod secrets;
mod steps;
mod targets;

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Sqlite, Transaction};

pub use artifacts::{Artifact, NewArtifact};
pub use builds::{BuildOutcome, ClaimedBuild};
pub use databases::{PostgresDatabase, ValkeyNumber};
pub use deliveries::{Accepted, Delivery, Push, Removal};
pub use deployments::{ClaimedDeployment, Claims};
pub use overview::{ArtifactView, BuildView, DeploymentView, EventView, Scope};
pub use projects::{KnownBranch, KnownCommit, ProjectView};
pub use secrets::GivenSecret;
pub use steps::Switch;
pub use targets::{Target, Teardown, TeardownAsked};

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

/// Turns an `sqlx::Error` into one that says what was being done.
fn during(action: &'static str) -> impl FnOnce(sqlx::Error) -> StoreError {
    move |source| StoreError::Database { action, source }
}

/// The current time as the rows keep it.
fn now() -> i64 {
    Timestamp::now().as_millisecond()
}

/// kennel's database. Clones share it.
#[derive(Debug, Clone)]
pub struct Store {
    writer: SqlitePool,
    readers: SqlitePool,
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
            .busy_timeout(Duration::from_secs(10));
        let writer =
            SqlitePoolOptions::new().max_connections(1).connect_with(options.clone()).await.map_err(open_error)?;
        sqlx::migrate!("src/store/migrations")
            .run(&writer)
            .await
            .map_err(|source| StoreError::Open { path: path.display().to_string(), source: Box::new(source) })?;
        let readers = SqlitePoolOptions::new()
            .max_connections(4)
            .min_connections(0)
            .idle_timeout(Duration::from_secs(60))
            .connect_with(options.read_only(true))
            .await
            .map_err(open_error)?;
        Ok(Self { writer, readers })
    }

    /// Waits for what is under way and closes the file.
    pub async fn close(&self) {
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
        self.writer.begin_with("BEGIN IMMEDIATE").await.map_err(during(action))
    }
}
