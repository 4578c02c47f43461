//! Rows that are over: removed in small batches once they are old and nothing refers to them.
//!
//! **Invariant:** nothing that is queued, runs, is live or is kept for a rollback loses a row; neither does what the
//! newest build or deployment of something that is there says of itself.

use sqlx::{Sqlite, Transaction};

use super::{Store, StoreError, during};
use crate::crash::{self, Point};
use crate::model::{BranchId, BuildId, DeploymentId, TargetId};

/// Which rows are old, and how many of a kind one transaction may remove.
#[derive(Debug, Clone, Copy)]
pub struct Sweep {
    /// What ended before this is old; in milliseconds since 1970.
    pub before: i64,
    /// Deliveries that came before this are not sent again; in milliseconds since 1970.
    pub delivered_before: i64,
    /// At most so many of each kind: whoever writes meanwhile waits for that.
    pub limit: u32,
}

/// How many rows were removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Deployments, each with its events.
    pub deployments: u64,
    /// Builds, each with its artifacts and deliveries.
    pub builds: u64,
    /// Deliveries that made no build.
    pub deliveries: u64,
    /// Targets.
    pub targets: u64,
    /// Branches.
    pub branches: u64,
}

impl Swept {
    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.deployments + self.builds + self.deliveries + self.targets + self.branches
    }
}

impl Store {
    /// Removes a batch of old deployments, builds and deliveries. When it removed nothing, there is nothing left.
    ///
    /// # Errors
    /// When the database refuses; then the batch is still there.
    pub async fn sweep_work(&self, sweep: Sweep) -> Result<Swept, StoreError> {
        let mut tx = self.begin("remove old rows").await?;
        let deployments = remove_deployments(&mut tx, sweep).await?;
        let builds = remove_builds(&mut tx, sweep).await?;
        let deliveries = sqlx::query!(
            "delete from deliveries where build_id is null and (project, id) in (
                 select project, id from deliveries where build_id is null and received_at < ? limit ?)",
            sweep.delivered_before,
            sweep.limit
        )
        .execute(&mut *tx)
        .await
        .map_err(during("remove old deliveries"))?
        .rows_affected();
        crash::point(Point::SweepUncommitted);
        tx.commit().await.map_err(during("remove old rows"))?;
        Ok(Swept { deployments, builds, deliveries, ..Swept::default() })
    }

    /// Removes a batch of targets and branches that are long gone. When it removed nothing, there is nothing left.
    ///
    /// # Errors
    /// When the database refuses; then the batch is still there.
    pub async fn sweep_places(&self, sweep: Sweep) -> Result<Swept, StoreError> {
        let mut tx = self.begin("remove old targets").await?;
        let targets = remove_targets(&mut tx, sweep).await?;
        let branches = remove_branches(&mut tx, sweep).await?;
        tx.commit().await.map_err(during("remove old targets"))?;
        Ok(Swept { targets, branches, ..Swept::default() })
    }

    /// Every build of which there is a row.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn build_ids(&self) -> Result<Vec<BuildId>, StoreError> {
        sqlx::query_scalar!(r#"select id as "id!: BuildId" from builds order by id"#)
            .fetch_all(&self.readers)
            .await
            .map_err(during("read the builds"))
    }
}

async fn remove_deployments(tx: &mut Transaction<'_, Sqlite>, sweep: Sweep) -> Result<u64, StoreError> {
    let ids = sqlx::query_scalar!(
        r#"select d.id as "id!: DeploymentId" from deployments d join targets t on t.id = d.target_id
           where d.finished_at < ? and d.state in ('retired', 'failed', 'cancelled', 'noop')
             and (t.gone_at is not null
                  or (d.id <> (select max(n.id) from deployments n where n.target_id = d.target_id)
                      and (d.live_at is null
                           or (select count(*) from deployments n
                               where n.target_id = d.target_id and n.live_at is not null and n.id > d.id) >= 5)))
             and not exists (select 1 from teardowns td where td.target_id = d.target_id)
             and not exists (select 1 from ports p where p.deployment_id = d.id)
             and not exists (select 1 from routes r where r.deployment_id = d.id)
             and not exists (select 1 from artifacts a
                             where a.build_id = d.build_id and a.name = t.name and a.rooted = 1)
           order by d.id limit ?"#,
        sweep.before,
        sweep.limit
    )
    .fetch_all(&mut **tx)
    .await
    .map_err(during("look for old deployments"))?;
    for id in &ids {
        sqlx::query!("delete from deployment_events where deployment_id = ?", id)
            .execute(&mut **tx)
            .await
            .map_err(during("remove old events"))?;
        sqlx::query!("delete from deployments where id = ?", id)
            .execute(&mut **tx)
            .await
            .map_err(during("remove an old deployment"))?;
    }
    Ok(ids.len() as u64)
}

/// A branch with something there keeps its newest build, and the newest that the forge asked for: `kennel deploy`
/// goes by them.
async fn remove_builds(tx: &mut Transaction<'_, Sqlite>, sweep: Sweep) -> Result<u64, StoreError> {
    let ids = sqlx::query_scalar!(
        r#"select b.id as "id!: BuildId" from builds b
           where b.finished_at < ? and b.state not in ('queued', 'building')
             and not exists (select 1 from deployments d where d.build_id = b.id)
             and not exists (select 1 from artifacts a where a.build_id = b.id and a.rooted = 1)
             and not exists (select 1 from teardowns td where td.after_build = b.id)
             and not exists (select 1 from targets t where t.unnamed_by = b.id and t.gone_at is null)
             and not exists (select 1 from deliveries dl where dl.build_id = b.id and dl.received_at >= ?)
             and not (exists (select 1 from targets t where t.branch_id = b.branch_id and t.gone_at is null)
                      and (b.id = (select max(n.id) from builds n where n.branch_id = b.branch_id)
                           or b.id = (select max(n.id) from builds n join deliveries dl on dl.build_id = n.id
                                      where n.branch_id = b.branch_id)))
           order by b.id limit ?"#,
        sweep.before,
        sweep.delivered_before,
        sweep.limit
    )
    .fetch_all(&mut **tx)
    .await
    .map_err(during("look for old builds"))?;
    for id in &ids {
        sqlx::query!("update targets set unnamed_by = null where unnamed_by = ?", id)
            .execute(&mut **tx)
            .await
            .map_err(during("take a flag of an old build away"))?;
        sqlx::query!("delete from deliveries where build_id = ?", id)
            .execute(&mut **tx)
            .await
            .map_err(during("remove the deliveries of an old build"))?;
        sqlx::query!("delete from artifacts where build_id = ?", id)
            .execute(&mut **tx)
            .await
            .map_err(during("remove the artifacts of an old build"))?;
        sqlx::query!("delete from builds where id = ?", id)
            .execute(&mut **tx)
            .await
            .map_err(during("remove an old build"))?;
    }
    Ok(ids.len() as u64)
}

async fn remove_targets(tx: &mut Transaction<'_, Sqlite>, sweep: Sweep) -> Result<u64, StoreError> {
    let ids = sqlx::query_scalar!(
        r#"select t.id as "id!: TargetId" from targets t
           where t.gone_at < ?
             and not exists (select 1 from deployments d where d.target_id = t.id)
             and not exists (select 1 from teardowns td where td.target_id = t.id)
             and not exists (select 1 from routes r where r.target_id = t.id)
           limit ?"#,
        sweep.before,
        sweep.limit
    )
    .fetch_all(&mut **tx)
    .await
    .map_err(during("look for old targets"))?;
    for id in &ids {
        sqlx::query!("delete from last_requests where target_id = ?", id)
            .execute(&mut **tx)
            .await
            .map_err(during("remove the last request of an old target"))?;
        sqlx::query!("delete from expiries where target_id = ?", id)
            .execute(&mut **tx)
            .await
            .map_err(during("remove the expiry of an old target"))?;
        sqlx::query!("delete from targets where id = ?", id)
            .execute(&mut **tx)
            .await
            .map_err(during("remove an old target"))?;
    }
    Ok(ids.len() as u64)
}

/// A branch nobody has said is gone goes as well, once nothing is left of it: a push makes it anew.
async fn remove_branches(tx: &mut Transaction<'_, Sqlite>, sweep: Sweep) -> Result<u64, StoreError> {
    let ids = sqlx::query_scalar!(
        r#"select br.id as "id!: BranchId" from branches br
           where br.pushed_at < ?1 and coalesce(br.gone_at, 0) < ?1
             and not exists (select 1 from targets t where t.branch_id = br.id)
             and not exists (select 1 from builds b where b.branch_id = br.id)
           limit ?2"#,
        sweep.before,
        sweep.limit
    )
    .fetch_all(&mut **tx)
    .await
    .map_err(during("look for old branches"))?;
    for id in &ids {
        sqlx::query!("delete from branches where id = ?", id)
            .execute(&mut **tx)
            .await
            .map_err(during("remove an old branch"))?;
    }
    Ok(ids.len() as u64)
}
