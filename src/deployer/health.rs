//! Waits for a service to be healthy, and says why it is not.

use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::{Context, StepError, confinement};
use crate::host::services::probe::{self, ProbeFailure};
use crate::host::{Listener, UnitState};
use crate::model::settings::ServiceSettings;
use crate::model::{Ending, HealthCheck, Port, Settings, UnitName};
use crate::store::ClaimedDeployment;

/// How often the unit is looked at.
const WATCH: Duration = Duration::from_millis(100);
/// How many of the journal's last lines a failure keeps.
const JOURNAL_LINES: usize = 20;

/// Returns once the service has answered; a unit that has exited, or the time running out, is a failed deployment.
pub(super) async fn await_healthy(ctx: &Context, deployment: &ClaimedDeployment) -> Result<(), StepError> {
    let artifact = ctx.store.artifact(deployment.build_id, &deployment.target.name).await?;
    let Settings::Service(service) = &artifact.settings else { return Ok(()) };
    let Some(port) = ctx.store.port(deployment.id).await? else {
        return Err(StepError::Broken(anyhow::anyhow!("it has no port")));
    };
    let unit = deployment.target.tag.unit(deployment.id);
    let healthy = async {
        match answer(deployment, service, port).await {
            Ok(()) => own_listener(ctx, &unit, port).await,
            Err(last) => {
                let what = match &service.health_check {
                    HealthCheck::Http(path) => format!("`GET {path}` on port {port} {last}"),
                    HealthCheck::Tcp => format!("port {port} {last}"),
                };
                let secs = service.health_check_timeout_secs;
                unfit(ctx, &unit, format!("it was not healthy within {secs} s: {what}")).await
            }
        }
    };
    let judged = tokio::select! {
        judged = healthy => judged,
        gone = watch(ctx, deployment, &unit) => Err(gone),
    };
    judged.map_err(|err| match err {
        StepError::Unfit(ending, reason) => {
            let kept_in = confinement::of(ctx, &deployment.target.project, service);
            StepError::Unfit(ending, confinement::explained(reason, &kept_in))
        }
        err => err,
    })
}

/// Asks until the service is healthy or its time is over; then why it was not, last time.
async fn answer(deployment: &ClaimedDeployment, service: &ServiceSettings, port: Port) -> Result<(), ProbeFailure> {
    let begun = Instant::now();
    let deadline = begun + Duration::from_secs(service.health_check_timeout_secs.into());
    loop {
        let asked = Instant::now();
        let Err(last) = probe(deployment, service, port, deadline).await else { return Ok(()) };
        if Instant::now() >= deadline {
            return Err(last);
        }
        let next = match last {
            ProbeFailure::Refused => Instant::now() + pause_when_refused(begun.elapsed()),
            _ => asked + pause(begun.elapsed()),
        };
        sleep_until(next.min(deadline)).await;
    }
}

/// Looks at the unit for as long as it may become healthy; tells why it will not.
async fn watch(ctx: &Context, deployment: &ClaimedDeployment, unit: &UnitName) -> StepError {
    loop {
        if let Err(gone) = ensure_running(ctx, deployment, unit).await {
            return gone;
        }
        sleep(WATCH).await;
    }
}

/// A unit that has exited fails at once.
async fn ensure_running(ctx: &Context, deployment: &ClaimedDeployment, unit: &UnitName) -> Result<(), StepError> {
    match ctx.machine.unit_state(unit).await? {
        UnitState::Dead { result } | UnitState::Restarting { result } => {
            unfit(ctx, unit, format!("it exited before it was healthy ({result})")).await
        }
        // The machine has been switched off since the unit was started: its files were in `/run`.
        UnitState::Absent => Ok(super::restore(ctx, deployment).await?),
        UnitState::Active { .. } | UnitState::Activating | UnitState::Deactivating => Ok(()),
    }
}

/// How long after one probe the next is due: 50 ms in the first second, then 1, 2, 4, 8 and 15 s.
fn pause(since_start: Duration) -> Duration {
    match since_start.as_secs() {
        0 => Duration::from_millis(50),
        1 => Duration::from_secs(1),
        2..4 => Duration::from_secs(2),
        4..8 => Duration::from_secs(4),
        8..16 => Duration::from_secs(8),
        _ => Duration::from_secs(15),
    }
}

/// The same while nobody listens, when asking is no burden to anybody: 5 ms at first, slowing down to 100 ms.
fn pause_when_refused(since_start: Duration) -> Duration {
    (since_start / 50).clamp(Duration::from_millis(5), Duration::from_millis(100))
}

/// Asks once. What answers may take a second longer than the deadline.
async fn probe(
    deployment: &ClaimedDeployment,
    service: &ServiceSettings,
    port: Port,
    deadline: Instant,
) -> Result<(), ProbeFailure> {
    let asking = async {
        match &service.health_check {
            HealthCheck::Http(path) => probe::http(port, service.protocol, path, &deployment.target.host).await,
            HealthCheck::Tcp => probe::tcp(port).await,
        }
    };
    let limit = deadline + Duration::from_secs(1);
    tokio::time::timeout_at(limit, asking).await.unwrap_or(Err(ProbeFailure::TimedOut))
}

/// What answered must be the unit's own: a neighbour squatting on the port would get the traffic otherwise.
async fn own_listener(ctx: &Context, unit: &UnitName, port: Port) -> Result<(), StepError> {
    let own = ctx.machine.unit_uid(unit).await?;
    match (ctx.machine.listener(port).await?, own) {
        (Listener::Owned { uid }, Some(own)) if uid == own => Ok(()),
        (Listener::Owned { uid }, Some(_)) => {
            unfit(ctx, unit, format!("port {port} is held by another user (uid {uid}), not by the service")).await
        }
        (_, None) => unfit(ctx, unit, "it exited while it was being checked".to_owned()).await,
        (Listener::None, _) => unfit(ctx, unit, format!("nothing listens on port {port} any more")).await,
    }
}

async fn unfit(ctx: &Context, unit: &UnitName, mut reason: String) -> Result<(), StepError> {
    append_journal(ctx, unit, &mut reason).await;
    Err(StepError::Unfit(Ending::Failed, reason))
}

/// Adds the last lines the unit wrote, so that the reason is whole without the journal.
pub(super) async fn append_journal(ctx: &Context, unit: &UnitName, reason: &mut String) {
    match ctx.machine.journal_tail(unit, JOURNAL_LINES).await {
        Ok(lines) if lines.is_empty() => reason.push_str("\nit wrote nothing to the journal"),
        Ok(lines) => {
            reason.push_str("\nits last lines:");
            for line in lines {
                reason.push_str("\n  ");
                reason.push_str(&line);
            }
        }
        Err(err) => tracing::warn!(error = %crate::telemetry::chain(&err), "Could not read the journal of {unit}"),
    }
}
