//! Deployments: what is to be done for each, by whom, and what was.

use std::time::Duration;

use super::{RunId, Store, StoreError, Target, during, now};
use crate::model::deployment::Next;
use crate::model::{
    BuildId, CommitSha, DeploymentEvent, DeploymentId, DeploymentState, Ending, HostName, Kind, Step, TargetId,
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

/// How an attempt at a step went, for the record.
#[derive(Debug, Clone)]
pub enum EventOutcome {
    /// It is done.
    Done,
    /// It did not succeed, and why.
    Failed(String),
}

/// What became of the attempt to go live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Switch {
    /// It is live; this one was before, and drains now.
    Live(Option<DeploymentId>),
    /// It must not: why.
    Refused(&'static str),
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
                   order by d.id limit ?)
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

    /// Live deployments, oldest first.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn live_deployments(&self) -> Result<Vec<DeploymentId>, StoreError> {
        sqlx::query_scalar!(r#"select id as "id!: DeploymentId" from deployments where state = 'live' order by id"#)
            .fetch_all(&self.readers)
            .await
            .map_err(during("read the live deployments"))
    }

    /// Deployments that may have something on the machine: started, and not ended.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn open_deployments(&self) -> Result<Vec<DeploymentId>, StoreError> {
        sqlx::query_scalar!(
            r#"select id as "id!: DeploymentId" from deployments
               where state in ('pending', 'starting', 'live', 'draining') order by id"#
        )
        .fetch_all(&self.readers)
        .await
        .map_err(during("read the open deployments"))
    }

    /// Begins a deployment: from now on something of it may exist.
    ///
    /// # Errors
    /// When it is not pending any more.
    pub async fn start_deployment(&self, id: DeploymentId, fingerprint: &str) -> Result<(), StoreError> {
        let at = now();
        self.change(
            id,
            DeploymentState::Pending,
            DeploymentEvent::Start,
            sqlx::query!(
                "update deployments set state = 'starting', started_at = ?, fingerprint = ?
                 where id = ? and state = 'pending'",
                at,
                fingerprint,
                id
            ),
        )
        .await
    }

    /// Records that a deployment would be the running version once more.
    ///
    /// # Errors
    /// When it is not pending any more.
    pub async fn skip_deployment(&self, id: DeploymentId, reason: &str) -> Result<(), StoreError> {
        let at = now();
        self.change(
            id,
            DeploymentState::Pending,
            DeploymentEvent::Skip,
            sqlx::query!(
                "update deployments set state = 'noop', step = null, reason = ?, finished_at = ?
                 where id = ? and state = 'pending'",
                reason,
                at,
                id
            ),
        )
        .await
    }

    /// Records that a step is done, and what comes next.
    ///
    /// # Errors
    /// When the row is at another step.
    pub async fn advance(
        &self,
        deployment: &ClaimedDeployment,
        from: Step,
        next: Next,
        duration_ms: i64,
    ) -> Result<(), StoreError> {
        let mut tx = self.begin("advance a deployment").await?;
        let at = now();
        let id = deployment.id;
        let changed = match next {
            Next::Step(to) => sqlx::query!(
                "update deployments set step = ?, attempts = 0, due_at = 0 where id = ? and step = ?",
                to,
                id,
                from
            )
            .execute(&mut *tx)
            .await
            .map_err(during("advance a deployment"))?
            .rows_affected(),
            Next::Live => sqlx::query!(
                "update deployments set step = null, attempts = 0, due_at = 0, run_id = null
                 where id = ? and step = ? and state = 'live'",
                id,
                from
            )
            .execute(&mut *tx)
            .await
            .map_err(during("settle a deployment"))?
            .rows_affected(),
            Next::Ended => {
                let ending = deployment.ending.unwrap_or(Ending::Retired);
                let state = apply(id, deployment.state, ending.event())?;
                let before = deployment.state;
                sqlx::query!(
                    "update deployments set state = ?, step = null, run_id = null, finished_at = ?
                     where id = ? and step = ? and state = ?",
                    state,
                    at,
                    id,
                    from,
                    before
                )
                .execute(&mut *tx)
                .await
                .map_err(during("end a deployment"))?
                .rows_affected()
            }
        };
        one_row(id, changed, || format!("at step `{from}`"))?;
        sqlx::query!(
            "insert into deployment_events (deployment_id, at, step, outcome, duration_ms) values (?, ?, ?, 'done', ?)",
            id,
            at,
            from,
            duration_ms
        )
        .execute(&mut *tx)
        .await
        .map_err(during("note a step"))?;
        tx.commit().await.map_err(during("advance a deployment"))
    }

    /// Records that a step failed and will be done again at `due_at`; gives up the claim.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn retry_later(
        &self,
        id: DeploymentId,
        step: Step,
        detail: &str,
        delay: Duration,
    ) -> Result<(), StoreError> {
        let mut tx = self.begin("put a step off").await?;
        let at = now();
        let due = at.saturating_add(i64::try_from(delay.as_millis()).unwrap_or(i64::MAX));
        sqlx::query!(
            "update deployments set attempts = attempts + 1, due_at = ?, run_id = null where id = ? and step = ?",
            due,
            id,
            step
        )
        .execute(&mut *tx)
        .await
        .map_err(during("put a step off"))?;
        sqlx::query!(
            "insert into deployment_events (deployment_id, at, step, outcome, duration_ms, detail)
             values (?, ?, ?, 'failed', 0, ?)",
            id,
            at,
            step,
            detail
        )
        .execute(&mut *tx)
        .await
        .map_err(during("note a failed step"))?;
        tx.commit().await.map_err(during("put a step off"))
    }

    /// Gives up the claim on a deployment whose job ended before its time.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn release_deployment(&self, id: DeploymentId) -> Result<(), StoreError> {
        sqlx::query!("update deployments set run_id = null where id = ?", id)
            .execute(&self.writer)
            .await
            .map_err(during("give a claim up"))?;
        Ok(())
    }

    /// Turns a deployment that is not live round: from now on it only gives back what it has.
    ///
    /// # Errors
    /// When it is not pending or starting any more.
    pub async fn turn_back(
        &self,
        id: DeploymentId,
        step: Step,
        ending: Ending,
        reason: &str,
    ) -> Result<(), StoreError> {
        let mut tx = self.begin("turn a deployment back").await?;
        let at = now();
        let changed = sqlx::query!(
            "update deployments set step = 'stop', ending = coalesce(ending, ?), reason = coalesce(reason, ?), attempts = 0
             where id = ? and state in ('pending', 'starting')",
            ending,
            reason,
            id
        )
        .execute(&mut *tx)
        .await
        .map_err(during("turn a deployment back"))?
        .rows_affected();
        one_row(id, changed, || "pending or starting".to_owned())?;
        sqlx::query!(
            "insert into deployment_events (deployment_id, at, step, outcome, duration_ms, detail)
             values (?, ?, ?, 'failed', 0, ?)",
            id,
            at,
            step,
            reason
        )
        .execute(&mut *tx)
        .await
        .map_err(during("note a failed step"))?;
        tx.commit().await.map_err(during("turn a deployment back"))
    }

    /// Makes a deployment the live one of its target, in one transaction: its hostnames lead to it, and the one
    /// before begins to drain. Doing it twice is doing it once.
    ///
    /// # Errors
    /// When the database refuses; then nothing has changed.
    pub async fn switch_route(
        &self,
        deployment: &ClaimedDeployment,
        custom_domain: Option<&HostName>,
    ) -> Result<Switch, StoreError> {
        let mut tx = self.begin("switch a route").await?;
        let at = now();
        let (id, target) = (deployment.id, deployment.target.id);
        let row = sqlx::query!(
            r#"select d.state as "state!: DeploymentState", d.ending as "ending?: Ending",
               br.wanted as "wanted!: bool",
               exists (select 1 from deployments n where n.target_id = d.target_id and n.state = 'live'
                       and n.build_id > d.build_id) as "overtaken!: bool"
               from deployments d join targets t on t.id = d.target_id join branches br on br.id = t.branch_id
               where d.id = ?"#,
            id
        )
        .fetch_one(&mut *tx)
        .await
        .map_err(during("read a deployment"))?;
        if row.state == DeploymentState::Live {
            return Ok(Switch::Live(None));
        }
        if row.ending.is_some() || !row.wanted {
            return Ok(Switch::Refused("its branch is not wanted any more"));
        }
        if row.overtaken {
            return Ok(Switch::Refused("a newer commit of its branch is live"));
        }
        apply(id, row.state, DeploymentEvent::GoLive)?;
        let replaced = sqlx::query_scalar!(
            r#"update deployments
               set state = 'draining', step = 'drain', ending = 'retired', draining_at = ?, due_at = 0, attempts = 0
               where target_id = ? and state = 'live' returning id as "id!: DeploymentId""#,
            at,
            target
        )
        .fetch_optional(&mut *tx)
        .await
        .map_err(during("begin to drain"))?;
        sqlx::query!("update deployments set state = 'live', live_at = ? where id = ?", at, id)
            .execute(&mut *tx)
            .await
            .map_err(during("go live"))?;
        // Custom domains it has given up are free for others; its own hostname stays for as long as the target.
        sqlx::query!(
            "delete from routes where target_id = ? and host <> ? and host is not ?",
            target,
            deployment.target.host,
            custom_domain
        )
        .execute(&mut *tx)
        .await
        .map_err(during("give hostnames up"))?;
        sqlx::query!("update routes set deployment_id = ? where target_id = ?", id, target)
            .execute(&mut *tx)
            .await
            .map_err(during("switch a route"))?;
        tx.commit().await.map_err(during("switch a route"))?;
        Ok(Switch::Live(replaced))
    }

    /// Runs one guarded change of state.
    async fn change(
        &self,
        id: DeploymentId,
        from: DeploymentState,
        event: DeploymentEvent,
        query: sqlx::query::Query<'_, sqlx::Sqlite, sqlx::sqlite::SqliteArguments>,
    ) -> Result<(), StoreError> {
        apply(id, from, event)?;
        let changed = query.execute(&self.writer).await.map_err(during("change a deployment's state"))?.rows_affected();
        one_row(id, changed, || format!("`{from}`"))
    }
}

fn apply(id: DeploymentId, state: DeploymentState, event: DeploymentEvent) -> Result<DeploymentState, StoreError> {
    state.apply(event).map_err(|source| StoreError::Illegal { thing: format!("deployment {id}"), source })
}

fn one_row(id: DeploymentId, changed: u64, expected: impl FnOnce() -> String) -> Result<(), StoreError> {
    if changed == 1 {
        Ok(())
    } else {
        Err(StoreError::Moved { thing: format!("deployment {id}"), expected: expected() })
    }
}
