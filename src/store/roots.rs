//! The ledger of GC roots: which artifact each keeps, and why; and what kennel has let go of.

use serde::{Deserialize, Serialize};

use super::{Store, StoreError, during, now};
use crate::model::{BranchRef, BuildId, ProjectName, RootReason, ServiceName, StorePath};

/// A GC root, for people.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RootView {
    /// Of what which build made.
    pub build: BuildId,
    /// The service's or site's name.
    pub service: ServiceName,
    /// Whose.
    pub project: ProjectName,
    /// The branch's name, or `pr-<number>`.
    pub branch: String,
    /// What it keeps.
    pub store_path: StorePath,
    /// Why.
    pub reason: RootReason,
}

impl Store {
    /// Every root, by project, branch, service and build.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn list_roots(&self) -> Result<Vec<RootView>, StoreError> {
        let rows = sqlx::query!(
            r#"select build_id as "build!: BuildId", name as "name!: ServiceName", project as "project!: ProjectName",
               ref as "branch!: BranchRef", store_path as "store_path!: StorePath", reason as "reason!: RootReason"
               from gc_roots order by project, ref, name, build_id desc"#
        )
        .fetch_all(&self.readers)
        .await
        .map_err(during("list the roots"))?;
        let view = rows.into_iter().map(|row| RootView {
            build: row.build,
            service: row.name,
            project: row.project,
            branch: row.branch.name(),
            store_path: row.store_path,
            reason: row.reason,
        });
        Ok(view.collect())
    }

    /// Rooted artifacts that nobody needs: of builds that have ended, neither in use nor kept for a rollback.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn surplus_roots(&self) -> Result<Vec<(BuildId, ServiceName)>, StoreError> {
        let rows = sqlx::query!(
            r#"select build_id as "build!: BuildId", name as "name!: ServiceName" from gc_roots
               where reason = 'surplus'"#
        )
        .fetch_all(&self.readers)
        .await
        .map_err(during("look for surplus roots"))?;
        Ok(rows.into_iter().map(|row| (row.build, row.name)).collect())
    }

    /// Artifacts that a GC root keeps.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn rooted_artifacts(&self) -> Result<Vec<(BuildId, ServiceName)>, StoreError> {
        let rows = sqlx::query!(
            r#"select build_id as "build!: BuildId", name as "name!: ServiceName" from artifacts where rooted = 1"#
        )
        .fetch_all(&self.readers)
        .await
        .map_err(during("read the rooted artifacts"))?;
        Ok(rows.into_iter().map(|row| (row.build, row.name)).collect())
    }

    /// Notes that the GC root of an artifact is gone, and what it kept with it.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn forget_root(&self, build: BuildId, name: &ServiceName) -> Result<(), StoreError> {
        let mut tx = self.begin("forget a root").await?;
        let at = now();
        sqlx::query!(
            "insert into released_paths (store_path, released_at)
             select store_path, ? from artifacts where build_id = ? and name = ? and rooted = 1
             on conflict (store_path) do update set released_at = excluded.released_at",
            at,
            build,
            name
        )
        .execute(&mut *tx)
        .await
        .map_err(during("note what a root kept"))?;
        sqlx::query!("update artifacts set rooted = 0 where build_id = ? and name = ?", build, name)
            .execute(&mut *tx)
            .await
            .map_err(during("forget a root"))?;
        tx.commit().await.map_err(during("forget a root"))
    }

    /// Store paths that kennel has let go of and no root of its own keeps, the longest first.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn released_paths(&self) -> Result<Vec<StorePath>, StoreError> {
        sqlx::query_scalar!(
            r#"select store_path as "path!: StorePath" from released_paths rp
               where not exists (select 1 from artifacts a where a.store_path = rp.store_path and a.rooted = 1)
               order by released_at"#
        )
        .fetch_all(&self.readers)
        .await
        .map_err(during("read what was let go of"))
    }

    /// Notes that store paths are not in the store any more.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn forget_released(&self, paths: &[StorePath]) -> Result<(), StoreError> {
        let mut tx = self.begin("forget what is gone").await?;
        for path in paths {
            sqlx::query!("delete from released_paths where store_path = ?", path)
                .execute(&mut *tx)
                .await
                .map_err(during("forget what is gone"))?;
        }
        tx.commit().await.map_err(during("forget what is gone"))
    }
}
