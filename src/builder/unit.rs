//! Has the two units of a build do their work, and reads what they report.

use anyhow::Context as _;
use serde::de::DeserializeOwned;
use tracing::warn;

use super::worker::{BuildReport, FetchReport};
use super::{Context, is_running};
use crate::config::{Config, ProjectConfig};
use crate::crash::{self, Point};
use crate::host::{BuildJob, BuildPhase, BuildUnitSpec, FETCH_TIMEOUT_SECS, Machine, UnitState, build_timeout_secs};
use crate::model::{BuildId, UnitName};
use crate::store::ClaimedBuild;

/// How often a unit is started again that has ended before its worker did anything.
const STARTS: usize = 3;

/// Whether a unit of the build runs, or its last one has reported.
pub(super) async fn is_under_way(machine: &dyn Machine, build: BuildId) -> anyhow::Result<bool> {
    for unit in [UnitName::fetch(build), UnitName::build(build)] {
        if is_running(&machine.unit_state(&unit).await?) {
            return Ok(true);
        }
    }
    Ok(machine.build_report(build, BuildPhase::Build).await?.is_some())
}

/// Runs both units, each unless it has reported already. The inner `Err` is why the build failed.
pub(super) async fn fetch_and_build(
    ctx: &Context,
    build: &ClaimedBuild,
    config: &Config,
    project: &ProjectConfig,
) -> anyhow::Result<Result<BuildReport, String>> {
    let timeout_secs = config.builder.timeout.as_secs();
    let job = BuildJob {
        build: build.id,
        project: project.name.clone(),
        repo_url: project.repo_url.clone(),
        remote_ref: build.branch.remote_ref(),
        commit: build.commit.clone(),
        allowed_uris: project.allowed_uris.clone(),
        allow_ifd: project.allow_ifd,
        max_parallel: config.builder.max_parallel,
        log_limit_bytes: config.builder.log_limit_bytes,
        timeout_secs,
    };
    ctx.machine.ensure_build_dirs(build.id, &job).await?;
    crash::point(Point::BuildDirsMade);

    let fetch = BuildUnitSpec {
        build: build.id,
        phase: BuildPhase::Fetch,
        project: project.name.clone(),
        credentials: project.git_access.credentials(),
        repo_url: project.repo_url.clone(),
        timeout_secs: FETCH_TIMEOUT_SECS,
    };
    // Begins when it is released. Started now, it is ready when the fetch has ended.
    let spec = BuildUnitSpec {
        build: build.id,
        phase: BuildPhase::Build,
        project: project.name.clone(),
        credentials: Vec::new(),
        repo_url: project.repo_url.clone(),
        timeout_secs: build_timeout_secs(timeout_secs),
    };
    let machine = &*ctx.machine;
    ensure_started(machine, &fetch).await?;
    ensure_started(machine, &spec).await?;
    let fetched = match outcome::<FetchReport>(machine, &fetch).await? {
        Ok(FetchReport::Fetched { duration_ms }) => Ok(duration_ms),
        Ok(FetchReport::Failed { reason }) => Err(reason),
        Err(reason) => Err(format!("the fetch {reason}")),
    };
    match fetched {
        Ok(duration_ms) => {
            machine.release_build(build.id).await?;
            crash::point(Point::BuildReleased);
            ctx.store.note_build_times(build.id, Some(clamp(duration_ms)), None).await?;
        }
        Err(reason) => {
            machine.stop_unit(&spec.unit()).await?;
            return Ok(Err(reason));
        }
    }
    Ok(outcome::<BuildReport>(machine, &spec).await?.map_err(|reason| format!("the build {reason}")))
}

/// Has a unit do its work, unless it has reported already.
async fn ensure_started(machine: &dyn Machine, spec: &BuildUnitSpec) -> anyhow::Result<()> {
    if machine.build_report(spec.build, spec.phase).await?.is_none() {
        machine.start_build(spec).await?;
        crash::point(if spec.phase == BuildPhase::Fetch { Point::FetchStarted } else { Point::BuildStarted });
    }
    Ok(())
}

/// Waits for the end of a unit and reads its report. The inner `Err` says how it ended without one.
async fn outcome<Report: DeserializeOwned>(
    machine: &dyn Machine,
    spec: &BuildUnitSpec,
) -> anyhow::Result<Result<Report, String>> {
    let mut starts = 0..STARTS;
    loop {
        let end = machine.wait_unit(&spec.unit()).await?;
        crash::point(if spec.phase == BuildPhase::Fetch { Point::FetchEnded } else { Point::BuildEnded });
        if let Some(report) = machine.build_report(spec.build, spec.phase).await? {
            let parsed = serde_json::from_slice(&report);
            return Ok(Ok(parsed.with_context(|| format!("the report of {} is not readable", spec.unit()))?));
        }
        // A worker reports before it ends well. With `PrivatePIDs=`, systemd starts it by way of another process, and
        // may take the end of that one for the end of the unit (257 does, once in some thousand starts).
        let never_began = match &end {
            UnitState::Dead { result } => result == "success",
            _ => true,
        };
        if !never_began || starts.next().is_none() {
            return Ok(Err(in_words(&end, spec)));
        }
        warn!("{} ended before its work began; starting it again", spec.unit());
        ensure_started(machine, spec).await?;
    }
}

/// How a unit ended that has not reported.
fn in_words(end: &UnitState, spec: &BuildUnitSpec) -> String {
    match end {
        UnitState::Dead { result } if result.contains("timeout") => {
            format!("took longer than {} s and was ended", spec.timeout_secs)
        }
        UnitState::Dead { result } if result.contains("oom") => "needed more memory than it may have".to_owned(),
        UnitState::Dead { result } => format!("ended without a result ({result})"),
        _ => "ended without a result".to_owned(),
    }
}

/// Milliseconds as the rows keep them.
pub(super) fn clamp(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}
