//! Who was asked for when, and whom nobody asks for any more.

use super::{Store, StoreError, during, now};
use crate::model::{BranchRef, Environment, ProjectName, ServiceName, TargetId};

/// When a target was last of use to somebody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastUse {
    /// Which.
    pub target: TargetId,
    /// Whose.
    pub project: ProjectName,
    /// Of which branch.
    pub branch: BranchRef,
    /// The service's or site's name.
    pub name: ServiceName,
    /// Where the branch belongs.
    pub environment: Environment,
    /// The last request or push, or when a version of it last went live; in milliseconds since 1970.
    pub at: i64,
}

impl Store {
    /// Notes that these targets had requests, the last of them at `at`, in milliseconds since 1970.
    ///
    /// # Errors
    /// When the database refuses; then nothing was noted.
    pub async fn note_requests(&self, targets: &[TargetId], at: i64) -> Result<(), StoreError> {
        let mut tx = self.begin("note requests").await?;
        for target in targets {
            // A target may have gone meanwhile, with its row.
            sqlx::query!(
                "insert into last_requests (target_id, at) select id, ? from targets where id = ?
                 on conflict (target_id) do update set at = max(at, excluded.at)",
                at,
                target
            )
            .execute(&mut *tx)
            .await
            .map_err(during("note a request"))?;
        }
        tx.commit().await.map_err(during("note requests"))
    }

    /// When each target that is there, and not on its way out, was last of use.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn last_uses(&self) -> Result<Vec<LastUse>, StoreError> {
        sqlx::query_as!(
            LastUse,
            r#"select t.id as "target!: _", br.project as "project!: _", br.ref as "branch!: _", t.name as "name!: _",
               br.environment as "environment!: _",
               max(br.pushed_at, coalesce(lr.at, 0),
                   coalesce((select max(d.live_at) from deployments d where d.target_id = t.id), 0)) as "at!: i64"
               from targets t join branches br on br.id = t.branch_id left join last_requests lr on lr.target_id = t.id
               where t.gone_at is null and not exists (select 1 from teardowns td where td.target_id = t.id)
               order by t.id"#
        )
        .fetch_all(&self.readers)
        .await
        .map_err(during("read when targets were last of use"))
    }

    /// Asks that a target be torn down because it was last of use at `unused_since`, in milliseconds since 1970.
    /// Returns `false`, and asks for nothing, when that is not so any more or something is on its way to it.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn expire(&self, target: TargetId, unused_since: i64, reason: &str) -> Result<bool, StoreError> {
        let mut tx = self.begin("expire a target").await?;
        let at = now();
        let asked = sqlx::query!(
            "insert into teardowns (target_id, up_to, reason, requested_at)
             select t.id, (select coalesce(max(id), 0) from deployments), ?2, ?3
             from targets t join branches br on br.id = t.branch_id
             where t.id = ?1 and t.gone_at is null and br.pushed_at <= ?4
               and br.environment not in ('prod', 'staging')
               and not exists (select 1 from last_requests lr where lr.target_id = t.id and lr.at > ?4)
               and not exists (select 1 from builds b where b.branch_id = br.id and b.state in ('queued', 'building'))
               and not exists (select 1 from deployments d where d.target_id = t.id
                               and (d.state in ('pending', 'starting') or d.live_at > ?4))
             on conflict (target_id) do nothing",
            target,
            reason,
            at,
            unused_since
        )
        .execute(&mut *tx)
        .await
        .map_err(during("expire a target"))?
        .rows_affected();
        if asked == 0 {
            return Ok(false);
        }
        sqlx::query!(
            "insert into expiries (target_id, expired_at) values (?, ?)
             on conflict (target_id) do update set expired_at = excluded.expired_at",
            target,
            at
        )
        .execute(&mut *tx)
        .await
        .map_err(during("note an expiry"))?;
        tx.commit().await.map_err(during("expire a target"))?;
        Ok(true)
    }
}
