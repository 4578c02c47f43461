//! Builds: claimed by a worker, ended together with the hand-over to the deployer.

use sqlx::{Sqlite, Transaction};

use super::deliveries::close_branch_if_empty;
use super::targets::{ask_teardown_of_unnamed, ensure_target};
use super::{RunId, Store, StoreError, during, now, pushes};
use crate::crash::{self, Point};
use crate::model::settings::Manifest;
use crate::model::{
    BranchId, BranchRef, BranchSlug, BuildEvent, BuildId, BuildState, CommitSha, Environment, HostName, ProjectName,
    ServiceName, TargetId,
};

/// A build that this run of the daemon works on.
#[derive(Debug, Clone)]
pub struct ClaimedBuild {
    /// Which.
    pub id: BuildId,
    /// Of which branch.
    pub branch_id: BranchId,
    /// Whose.
    pub project: ProjectName,
    /// The branch's ref.
    pub branch: BranchRef,
    /// The branch's short name.
    pub slug: BranchSlug,
    /// What to build.
    pub commit: CommitSha,
    /// Where the branch belongs.
    pub environment: Environment,
}

/// How a build ended.
#[derive(Debug, Clone)]
pub enum BuildOutcome {
    /// The worker read kennel.toml; each artifact has its row.
    Finished(Manifest),
    /// Nothing of it could be built.
    Failed(String),
    /// It was asked to stop, and did.
    Cancelled,
}

impl Store {
    /// Claims the next build, if there is one that may run: projects take turns, prod first within each, then the
    /// branch that has waited longest. A branch that is pushed to again keeps its place.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn claim_build(&self, run: &RunId) -> Result<Option<ClaimedBuild>, StoreError> {
        let mut tx = self.begin("claim a build").await?;
        let at = now();
        let run = run.as_str();
        let id = sqlx::query_scalar!(
            r#"update builds set state = 'building', run_id = ?, started_at = ?
               where id = (
                   select b.id from builds b
                   join branches br on br.id = b.branch_id
                   join projects p on p.name = br.project
                   where b.state = 'queued'
                     and not exists (select 1 from builds r where r.branch_id = b.branch_id and r.state = 'building')
                   order by p.claimed_at, br.environment <> 'prod',
                       (select min(w.id) from builds w where w.branch_id = b.branch_id and w.id > coalesce((
                           select c.id from builds c
                           where c.branch_id = b.branch_id and c.state not in ('queued', 'superseded')
                           order by c.id desc limit 1), 0))
                   limit 1)
               returning id as "id!: BuildId""#,
            run,
            at
        )
        .fetch_optional(&mut *tx)
        .await
        .map_err(during("claim a build"))?;
        let Some(id) = id else { return Ok(None) };
        let build = read_claimed(&mut tx, id).await?;
        // Later than any other, whatever the clock says: one that was put back must not cost a project its turns.
        sqlx::query!(
            "update projects set claimed_at = max(?, (select max(claimed_at) + 1 from projects)) where name = ?",
            at,
            build.project
        )
        .execute(&mut *tx)
        .await
        .map_err(during("note a project's turn"))?;
        tx.commit().await.map_err(during("claim a build"))?;
        Ok(Some(build))
    }

    /// Builds that an earlier run of the daemon had claimed and did not end.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn stale_builds(&self, run: &RunId) -> Result<Vec<BuildId>, StoreError> {
        let run = run.as_str();
        sqlx::query_scalar!(
            r#"select id as "id!: BuildId" from builds where state = 'building' and run_id <> ? order by id"#,
            run
        )
        .fetch_all(&self.readers)
        .await
        .map_err(during("read stale builds"))
    }

    /// Takes over a build of an earlier run.
    ///
    /// # Errors
    /// When it does not run any more.
    pub async fn reattach_build(&self, id: BuildId, run: &RunId) -> Result<ClaimedBuild, StoreError> {
        let mut tx = self.begin("take over a build").await?;
        let run = run.as_str();
        sqlx::query!("update builds set run_id = ? where id = ? and state = 'building'", run, id)
            .execute(&mut *tx)
            .await
            .map_err(during("take over a build"))?;
        let build = read_claimed(&mut tx, id).await?;
        tx.commit().await.map_err(during("take over a build"))?;
        Ok(build)
    }

    /// Puts a build of an earlier run back into the queue; superseded if its branch has a newer one by now.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn requeue_build(&self, id: BuildId) -> Result<BuildState, StoreError> {
        let mut tx = self.begin("requeue a build").await?;
        let row = sqlx::query!(
            r#"select state as "state!: BuildState", branch_id as "branch_id!: BranchId", cancel_requested_at,
               exists (select 1 from builds n where n.branch_id = b.branch_id and n.id > b.id) as "newer!: bool"
               from builds b where id = ?"#,
            id
        )
        .fetch_one(&mut *tx)
        .await
        .map_err(during("read a build"))?;
        let mut state = apply(id, row.state, BuildEvent::Requeue)?;
        if row.cancel_requested_at.is_some() {
            state = apply(id, state, BuildEvent::Cancel)?;
        } else if row.newer {
            state = apply(id, state, BuildEvent::Supersede)?;
        }
        let finished_at = state.is_terminal().then(now);
        sqlx::query!(
            "update builds set state = ?, run_id = null, started_at = null, finished_at = ? where id = ?",
            state,
            finished_at,
            id
        )
        .execute(&mut *tx)
        .await
        .map_err(during("requeue a build"))?;
        close_branch_if_empty(&mut tx, row.branch_id).await?;
        tx.commit().await.map_err(during("requeue a build"))?;
        Ok(state)
    }

    /// Builds that have not ended.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn open_builds(&self) -> Result<Vec<BuildId>, StoreError> {
        sqlx::query_scalar!(r#"select id as "id!: BuildId" from builds where state in ('queued', 'building')"#)
            .fetch_all(&self.readers)
            .await
            .map_err(during("read the open builds"))
    }

    /// Whether a build waits for its turn.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn has_queued_builds(&self) -> Result<bool, StoreError> {
        sqlx::query_scalar!(r#"select exists (select 1 from builds where state = 'queued') as "queued!: bool""#)
            .fetch_one(&self.readers)
            .await
            .map_err(during("look for queued builds"))
    }

    /// Running builds that somebody wants stopped.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn builds_to_cancel(&self) -> Result<Vec<BuildId>, StoreError> {
        sqlx::query_scalar!(
            r#"select id as "id!: BuildId" from builds where state = 'building' and cancel_requested_at is not null"#
        )
        .fetch_all(&self.readers)
        .await
        .map_err(during("read what is to be cancelled"))
    }

    /// Asks for a build to be cancelled: a queued one is at once. Returns its state before, or `None` for no such build.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn cancel_build(&self, id: BuildId, reason: &str) -> Result<Option<BuildState>, StoreError> {
        let mut tx = self.begin("cancel a build").await?;
        let row = sqlx::query!(
            r#"select state as "state!: BuildState", branch_id as "branch_id!: BranchId" from builds where id = ?"#,
            id
        )
        .fetch_optional(&mut *tx)
        .await
        .map_err(during("read a build"))?;
        let Some(row) = row else { return Ok(None) };
        let at = now();
        match row.state {
            BuildState::Queued => {
                let state = apply(id, row.state, BuildEvent::Cancel)?;
                sqlx::query!(
                    "update builds set state = ?, reason = ?, finished_at = ? where id = ?",
                    state,
                    reason,
                    at,
                    id
                )
                .execute(&mut *tx)
                .await
                .map_err(during("cancel a build"))?;
                close_branch_if_empty(&mut tx, row.branch_id).await?;
            }
            BuildState::Building => {
                sqlx::query!(
                    "update builds set cancel_requested_at = coalesce(cancel_requested_at, ?), reason = ? where id = ?",
                    at,
                    reason,
                    id
                )
                .execute(&mut *tx)
                .await
                .map_err(during("ask a build to stop"))?;
            }
            BuildState::Success | BuildState::Failed | BuildState::Cancelled | BuildState::Superseded => {}
        }
        tx.commit().await.map_err(during("cancel a build"))?;
        Ok(Some(row.state))
    }

    /// Ends a build and, in the same transaction, hands over to the deployer: a deployment for every artifact that
    /// was made, unless the branch is not wanted any more. Returns the state it ended in.
    ///
    /// # Errors
    /// When it does not run any more, or the database refuses.
    pub async fn finish_build(
        &self,
        build: &ClaimedBuild,
        base_domain: &HostName,
        outcome: &BuildOutcome,
    ) -> Result<BuildState, StoreError> {
        let mut tx = self.begin("finish a build").await?;
        let row = sqlx::query!(
            r#"select b.state as "state!: BuildState", b.cancel_requested_at, b.reason, br.wanted as "wanted!: bool"
               from builds b join branches br on br.id = b.branch_id where b.id = ?"#,
            build.id
        )
        .fetch_one(&mut *tx)
        .await
        .map_err(during("read a build"))?;
        let cancelled = row.cancel_requested_at.is_some() || matches!(outcome, BuildOutcome::Cancelled);
        let (event, reason) = match outcome {
            _ if cancelled => (BuildEvent::Cancel, row.reason),
            BuildOutcome::Failed(reason) => (BuildEvent::Fail, Some(reason.clone())),
            BuildOutcome::Finished(_) | BuildOutcome::Cancelled => match first_failure(&mut tx, build.id).await? {
                Some(reason) => (BuildEvent::Fail, Some(reason)),
                None => (BuildEvent::Succeed, None),
            },
        };
        let state = apply(build.id, row.state, event)?;
        if let BuildOutcome::Finished(manifest) = outcome
            && !cancelled
            && row.wanted
        {
            insert_deployments(&mut tx, build, base_domain).await?;
            ask_teardown_of_unnamed(&mut tx, build, manifest).await?;
            pushes::insert(&mut tx, build.id, manifest).await?;
        }
        let at = now();
        sqlx::query!(
            "update builds set state = ?, reason = ?, finished_at = ? where id = ?",
            state,
            reason,
            at,
            build.id
        )
        .execute(&mut *tx)
        .await
        .map_err(during("finish a build"))?;
        close_branch_if_empty(&mut tx, build.branch_id).await?;
        crash::point(Point::BuildUncommitted);
        tx.commit().await.map_err(during("finish a build"))?;
        Ok(state)
    }

    /// Notes how long a build was inside git or nix; what is not known yet stays as it is.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn note_build_times(
        &self,
        id: BuildId,
        fetch_ms: Option<i64>,
        nix_ms: Option<i64>,
    ) -> Result<(), StoreError> {
        sqlx::query!(
            "update builds set fetch_ms = coalesce(?, fetch_ms), nix_ms = coalesce(?, nix_ms) where id = ?",
            fetch_ms,
            nix_ms,
            id
        )
        .execute(&self.writer)
        .await
        .map_err(during("note a build's times"))?;
        Ok(())
    }
}

fn apply(id: BuildId, state: BuildState, event: BuildEvent) -> Result<BuildState, StoreError> {
    state.apply(event).map_err(|source| StoreError::Illegal { thing: format!("build {id}"), source })
}

async fn read_claimed(tx: &mut Transaction<'_, Sqlite>, id: BuildId) -> Result<ClaimedBuild, StoreError> {
    sqlx::query_as!(
        ClaimedBuild,
        r#"select b.id as "id!: _", b.branch_id as "branch_id!: _", br.project as "project!: _", br.ref as "branch!: _",
           br.slug as "slug!: _", b.commit_sha as "commit!: _", br.environment as "environment!: _"
           from builds b join branches br on br.id = b.branch_id where b.id = ?"#,
        id
    )
    .fetch_one(&mut **tx)
    .await
    .map_err(during("read a build"))
}

async fn first_failure(tx: &mut Transaction<'_, Sqlite>, id: BuildId) -> Result<Option<String>, StoreError> {
    let row = sqlx::query!(
        r#"select name, reason as "reason!" from artifacts where build_id = ? and state = 'failed' order by name"#,
        id
    )
    .fetch_all(&mut **tx)
    .await
    .map_err(during("read a build's failures"))?;
    let all: Vec<String> = row.into_iter().map(|row| format!("{}: {}", row.name, row.reason)).collect();
    Ok((!all.is_empty()).then(|| all.join("\n")))
}

async fn insert_deployments(
    tx: &mut Transaction<'_, Sqlite>,
    build: &ClaimedBuild,
    base_domain: &HostName,
) -> Result<(), StoreError> {
    let made = sqlx::query!(
        r#"select name as "name!: ServiceName", kind as "kind!: crate::model::Kind" from artifacts
           where build_id = ? and state <> 'failed' order by name"#,
        build.id
    )
    .fetch_all(&mut **tx)
    .await
    .map_err(during("read a build's artifacts"))?;
    let at = now();
    for artifact in made {
        let target: TargetId = ensure_target(tx, build, base_domain, &artifact.name, artifact.kind).await?;
        sqlx::query!(
            "insert into deployments (target_id, build_id, created_at) values (?, ?, ?)",
            target,
            build.id,
            at
        )
        .execute(&mut **tx)
        .await
        .map_err(during("hand a deployment over"))?;
    }
    Ok(())
}
