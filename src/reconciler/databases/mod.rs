//! Compares the rows of preview databases with the operator's servers: users and roles are set up again, what branches
//! have left is given back.
//!
//! A loop of its own, so that a server that hangs holds up nothing but its own databases. It runs at start, when a
//! branch may have ended, when Valkey was started again (its users are gone then), and every 10 minutes.
//!
//! **Invariant:** only what bears kennel's own names is ever changed, and nothing that a row says a branch has is
//! emptied, renamed or dropped.

mod plan;
mod watch;

use std::time::Duration;

use tokio::time::{Instant, interval};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::crash::{self, Point};
use crate::deployer::{self, databases};
use crate::host::services::postgres::Postgres;
use crate::host::services::valkey::Valkey;
use crate::host::services::{ServerError, ServerKind};
use crate::telemetry::chain;
use plan::{DatabaseAction, NumberAction, plan_databases, plan_numbers};
use watch::ValkeyWatch;

/// How often it looks when nothing rings.
const TICK: Duration = Duration::from_secs(600);
/// How soon it looks again after something went wrong; twice as long each time, up to [`AGAIN_MAX`].
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(8);
/// How long the PostgreSQL database of a branch that is gone is kept.
const KEEP_TIME: Duration = Duration::from_secs(7 * 24 * 3600);

/// The loop that keeps servers and rows equal.
pub struct DatabaseKeeper {
    ctx: deployer::Context,
}

impl DatabaseKeeper {
    /// A keeper over the deployer's rows and servers.
    #[must_use]
    pub fn new(ctx: deployer::Context) -> Self {
        Self { ctx }
    }

    /// Keeps until shutdown.
    pub async fn run(self, shutdown: CancellationToken) {
        let bell = self.ctx.databases.clone();
        let mut watch = ValkeyWatch::new(self.ctx.clone());
        let mut tick = interval(TICK);
        let mut again = AGAIN;
        loop {
            tokio::select! {
                () = bell.rung() => {}
                _ = tick.tick() => {}
                () = watch.restarted() => {}
                () = shutdown.cancelled() => return,
            }
            tokio::select! {
                well = self.run_once(KEEP_TIME) => if well {
                    again = AGAIN;
                } else {
                    tick.reset_at(Instant::now() + again);
                    again = (again * 2).min(AGAIN_MAX);
                },
                // A server that hangs must not hold up the end.
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// Makes servers and rows equal once; drops renamed databases whose branch ended longer ago than `keep`. Returns
    /// whether all went well: what did not is logged, and planned again next time.
    pub async fn run_once(&self, keep: Duration) -> bool {
        let (numbers, databases) = tokio::join!(self.keep_numbers(), self.keep_databases(keep));
        let mut well = true;
        for err in [numbers, databases].into_iter().filter_map(Result::err) {
            warn!(error = %chain(&*err), "Could not put the preview databases in order: {}", chain(&*err));
            well = false;
        }
        well
    }

    async fn keep_numbers(&self) -> anyhow::Result<()> {
        let Some(url) = databases::server(&self.ctx, ServerKind::Valkey).await? else { return Ok(()) };
        let mut valkey = Valkey::connect(&url).await?;
        // The server first: whatever user is there by then had its row before.
        let users = valkey.own_users().await?;
        let rows = self.ctx.store.valkey_numbers().await?;
        for action in plan_numbers(&rows, &users) {
            self.execute_number(&mut valkey, &action).await?;
        }
        Ok(())
    }

    async fn execute_number(&self, valkey: &mut Valkey, action: &NumberAction) -> anyhow::Result<()> {
        let store = &self.ctx.store;
        match action {
            NumberAction::Ensure(number, (project, branch)) => {
                let password = databases::password(&self.ctx.key, ServerKind::Valkey, project, branch);
                valkey.ensure_user(*number, &password).await?;
                crash::point(Point::RestoreValkeyUserSet);
            }
            NumberAction::Adopt(number) => {
                store.adopt_valkey_number(*number).await?;
                crash::point(Point::OrphanNumberAdopted);
                self.ctx.databases.ring();
            }
            NumberAction::GiveBack(number) => {
                valkey.remove(*number).await?;
                crash::point(Point::NumberFlushed);
                store.free_valkey_number(*number).await?;
                info!("Emptied and freed Valkey database {number}");
            }
        }
        Ok(())
    }

    async fn keep_databases(&self, keep: Duration) -> anyhow::Result<()> {
        let Some(url) = databases::server(&self.ctx, ServerKind::Postgres).await? else { return Ok(()) };
        let mut postgres = Postgres::connect(&url).await?;
        let own = postgres.own().await?;
        let rows = self.ctx.store.postgres_databases().await?;
        let expired = self.ctx.store.expired_databases(keep).await?;
        let mut trouble = None;
        for action in plan_databases(&rows, &own, &expired) {
            match self.execute_database(&mut postgres, &action).await {
                Ok(()) => {}
                // One database that is in somebody's hands is no reason to leave the others.
                Err(err) if is_refusal(&err) => trouble = Some(err),
                Err(err) => return Err(err),
            }
        }
        trouble.map_or(Ok(()), Err)
    }

    async fn execute_database(&self, postgres: &mut Postgres, action: &DatabaseAction) -> anyhow::Result<()> {
        let store = &self.ctx.store;
        match action {
            DatabaseAction::Ensure(name, (project, branch)) => {
                let password = databases::password(&self.ctx.key, ServerKind::Postgres, project, branch);
                postgres.ensure(name, &password).await?;
                crash::point(Point::RestoreDatabaseSet);
            }
            DatabaseAction::Adopt(name) => {
                store.adopt_postgres_database(name).await?;
                crash::point(Point::OrphanDatabaseAdopted);
                self.ctx.databases.ring();
            }
            DatabaseAction::Rename(name) => {
                postgres.rename(name).await?;
                crash::point(Point::DatabaseRenamed);
                store.note_renamed_database(name).await?;
                info!("Renamed PostgreSQL database `{name}` to `{}`; it is dropped in 7 days", name.renamed());
            }
            DatabaseAction::Drop(name) => {
                postgres.drop(name).await?;
                crash::point(Point::RoleDropped);
                store.forget_postgres_database(name).await?;
                info!("Dropped PostgreSQL database `{}`", name.renamed());
            }
        }
        Ok(())
    }
}

fn is_refusal(err: &anyhow::Error) -> bool {
    matches!(err.downcast_ref(), Some(ServerError::Refused { .. }))
}
