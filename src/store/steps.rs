//! Changes of a deployment: each guarded by the state or step the caller saw, each with its event.

use std::time::Duration;

use sqlx::{Sqlite, Transaction};

use super::secrets::give;
use super::{ClaimedDeployment, GivenSecret, Store, StoreError, during, now};
use crate::crash::{self, Point};
use crate::model::deployment::Next;
use crate::model::{DeploymentEvent, DeploymentId, DeploymentState, Ending, HostName, Step};

/// What became of the attempt to go live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Switch {
    /// It is live; this one was before, and drains now.
    Live(Option<DeploymentId>),
    /// It must not: why.
    Refused(&'static str),
}

impl Store {
    /// Begins a deployment: from now on something of it may exist. `secrets` is what it is given.
    ///
    /// # Errors
    /// When it is not pending any more.
    pub async fn start_deployment(
        &self,
        id: DeploymentId,
        fingerprint: &str,
        secrets: &[GivenSecret],
    ) -> Result<(), StoreError> {
        let mut tx = self.begin("start a deployment").await?;
        let at = now();
        let state = apply(id, DeploymentState::Pending, DeploymentEvent::Start)?;
        let changed = sqlx::query!(
            "update deployments set state = ?, started_at = ?, fingerprint = ? where id = ? and state = 'pending'",
            state,
            at,
            fingerprint,
            id
        )
        .execute(&mut *tx)
        .await
        .map_err(during("start a deployment"))?
        .rows_affected();
        one_row(id, changed, || "`pending`".to_owned())?;
        give(&mut tx, id, secrets).await?;
        tx.commit().await.map_err(during("start a deployment"))
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
        note_event(&mut tx, id, from, &Attempt::Done { duration_ms }).await?;
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
        note_event(&mut tx, id, step, &Attempt::Failed { detail }).await?;
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
        note_event(&mut tx, id, step, &Attempt::Failed { detail: reason }).await?;
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
        crash::point(Point::SwitchUncommitted);
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

/// How an attempt at a step went.
enum Attempt<'a> {
    Done { duration_ms: i64 },
    Failed { detail: &'a str },
}

async fn note_event(
    tx: &mut Transaction<'_, Sqlite>,
    id: DeploymentId,
    step: Step,
    attempt: &Attempt<'_>,
) -> Result<(), StoreError> {
    let at = now();
    let (outcome, duration_ms, detail) = match *attempt {
        Attempt::Done { duration_ms } => ("done", duration_ms, None),
        Attempt::Failed { detail } => ("failed", 0, Some(detail)),
    };
    sqlx::query!(
        "insert into deployment_events (deployment_id, at, step, outcome, duration_ms, detail) values (?, ?, ?, ?, ?, ?)",
        id,
        at,
        step,
        outcome,
        duration_ms,
        detail
    )
    .execute(&mut **tx)
    .await
    .map_err(during("note a step"))?;
    Ok(())
}
