//! Deployments: what is to be done for each, and by whom.

use std::time::Duration;

use super::{RunId, Store, StoreError, Target, during, now};
use crate::model::{
    BranchSlug, BuildId, CommitSha, DeploymentId, DeploymentState, Ending, Kind, ProjectName, ServiceName, Step,
    StorePath, TargetId, TargetTag,
};

/// A deployment as the deployer sees it.
#[derive(Debug, Clone)]
pub struct ClaimedDeployment {
    /// Which.
    pub id: DeploymentId,
    /// Of what.
    pub target: Target,
    /// Made by which build.
    pub build_id: BuildId,
    /// Of which commit.
    pub commit: CommitSha,
    /// What this version is; the target's next may be another kind.
    pub kind: Kind,
    /// Where it stands.
    pub state: DeploymentState,
    /// What is to be done next.
    pub step: Option<Step>,
    /// The end it is on its way to, if it is.
    pub ending: Option<Ending>,
    /// How often its present step has failed.
    pub attempts: i64,
    /// When it began to drain, in milliseconds since 1970.
    pub draining_at: Option<i64>,
}

/// Which deployments to claim.
#[derive(Debug, Clone, Copy)]
pub struct Claims<'a> {
    /// The run of the daemon that claims.
    pub run: &'a RunId,
    /// At most so many.
    pub limit: u32,
}

/// A deployment of a service that has not ended, as far as its unit goes.
#[derive(Debug, Clone)]
pub struct OpenService {
    /// Which.
    pub id: DeploymentId,
    /// The stem of its unit's name.
    pub tag: TargetTag,
    /// Whether it is live, so that its unit has to run.
    pub is_live: bool,
}

/// A site's version that is live and has nothing left to do.
#[derive(Debug, Clone)]
pub struct LiveSite {
    /// Which.
    pub id: DeploymentId,
    /// Whose.
    pub project: ProjectName,
    /// The branch's short name.
    pub slug: BranchSlug,
    /// The site's name.
    pub name: ServiceName,
    /// What is served.
    pub store_path: StorePath,
}

impl Store {
    /// Claims deployments with something to do. Of one target at most one starts at a time; older ones that have
    /// not started when a newer waits are called off.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn claim_deployments(&self, claims: Claims<'_>) -> Result<Vec<DeploymentId>, StoreError> {
        let mut tx = self.begin("claim deployments").await?;
        let at = now();
        let run = claims.run.as_str();
        sqlx::query!(
            "update deployments set state = 'cancelled', step = null, finished_at = ?,
                 reason = 'a newer commit came before it started'
             where state = 'pending' and ending is null and (run_id is null or run_id <> ?) and exists (
                 select 1 from deployments n where n.target_id = deployments.target_id and n.id > deployments.id
                 and n.state = 'pending' and n.ending is null)",
            at,
            run
        )
        .execute(&mut *tx)
        .await
        .map_err(during("call off overtaken deployments"))?;
        let ids = sqlx::query_scalar!(
            r#"update deployments set run_id = ? where id in (
                   select d.id from deployments d
                   where d.step is not null and d.due_at <= ? and (d.run_id is null or d.run_id <> ?)
                     and (d.state <> 'pending' or d.ending is not null or not exists (
                         select 1 from deployments o where o.target_id = d.target_id and o.id <> d.id
                         and (o.state = 'starting' or (o.state = 'live' and o.step is not null)
                              or (o.state = 'pending' and o.run_id = ?))))
                     and (d.state <> 'pending' or d.ending is not null or not exists (
                         select 1 from teardowns td
                         where td.target_id = d.target_id and td.up_to < d.id and td.after_build is null))
                   -- The sign keeps SQLite from looking through all there ever were in this order.
                   order by +d.id limit ?)
               returning id as "id!: DeploymentId""#,
            run,
            at,
            run,
            run,
            claims.limit
        )
        .fetch_all(&mut *tx)
        .await
        .map_err(during("claim deployments"))?;
        tx.commit().await.map_err(during("claim deployments"))?;
        Ok(ids)
    }

    /// How long until the next deployment that was put off falls due, if there is one.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn next_due(&self) -> Result<Option<Duration>, StoreError> {
        let at = now();
        let due = sqlx::query_scalar!(
            r#"select min(due_at) as "due: i64" from deployments where step is not null and due_at > ?"#,
            at
        )
        .fetch_one(&self.readers)
        .await
        .map_err(during("look for what falls due"))?;
        Ok(due.map(|due| Duration::from_millis(u64::try_from(due - at).unwrap_or(0))))
    }

    /// The deployment as it stands now.
    ///
    /// # Errors
    /// When there is no such deployment.
    pub async fn deployment(&self, id: DeploymentId) -> Result<ClaimedDeployment, StoreError> {
        let row = sqlx::query!(
            r#"select d.target_id as "target_id!: TargetId", d.build_id as "build_id!: BuildId",
               b.commit_sha as "commit!: CommitSha", d.state as "state!: DeploymentState", d.step as "step?: Step",
               d.ending as "ending?: Ending", d.attempts, d.draining_at, a.kind as "kind!: Kind"
               from deployments d join builds b on b.id = d.build_id join targets t on t.id = d.target_id
               join artifacts a on a.build_id = d.build_id and a.name = t.name where d.id = ?"#,
            id
        )
        .fetch_one(&self.readers)
        .await
        .map_err(during("read a deployment"))?;
        let target = self.target(row.target_id).await?;
        Ok(ClaimedDeployment {
            id,
            target,
            build_id: row.build_id,
            commit: row.commit,
            kind: row.kind,
            state: row.state,
            step: row.step,
            ending: row.ending,
            attempts: row.attempts,
            draining_at: row.draining_at,
        })
    }

    /// The target's live deployment, and the fingerprint of its settings.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn live_deployment(
        &self,
        target: TargetId,
    ) -> Result<Option<(DeploymentId, Option<String>)>, StoreError> {
        let row = sqlx::query!(
            r#"select id as "id!: DeploymentId", fingerprint from deployments
               where target_id = ? and state = 'live' and ending is null"#,
            target
        )
        .fetch_optional(&self.readers)
        .await
        .map_err(during("read the live deployment"))?;
        Ok(row.map(|row| (row.id, row.fingerprint)))
    }

    /// Services' deployments that have not ended, oldest first.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn open_services(&self) -> Result<Vec<OpenService>, StoreError> {
        sqlx::query_as!(
            OpenService,
            r#"select d.id as "id!: _", t.tag as "tag!: _", d.state = 'live' as "is_live!: bool"
               from deployments d join targets t on t.id = d.target_id
               join artifacts a on a.build_id = d.build_id and a.name = t.name
               where d.state in ('pending', 'starting', 'live', 'draining') and a.kind = 'service' order by d.id"#
        )
        .fetch_all(&self.readers)
        .await
        .map_err(during("read the open services"))
    }

    /// The live sites. One whose switch is not over is about to get its link from the deployer, and left out.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn live_sites(&self) -> Result<Vec<LiveSite>, StoreError> {
        sqlx::query_as!(
            LiveSite,
            r#"select d.id as "id!: _", br.project as "project!: _", br.slug as "slug!: _", t.name as "name!: _",
               a.store_path as "store_path!: _"
               from deployments d join targets t on t.id = d.target_id join branches br on br.id = t.branch_id
               join artifacts a on a.build_id = d.build_id and a.name = t.name
               where d.state = 'live' and d.step is null and a.kind = 'site' order by d.id"#
        )
        .fetch_all(&self.readers)
        .await
        .map_err(during("read the live sites"))
    }

    /// Whether a newer version of its target waits for this one to get out of the way.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn holds_up_another(&self, deployment: DeploymentId) -> Result<bool, StoreError> {
        sqlx::query_scalar!(
            r#"select exists (select 1 from deployments d join deployments n on n.target_id = d.target_id
               where d.id = ? and n.id > d.id and n.state = 'pending' and n.ending is null) as "held!: bool""#,
            deployment
        )
        .fetch_one(&self.readers)
        .await
        .map_err(during("look for newer versions of a target"))
    }
}
