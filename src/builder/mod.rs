//! Turns a queued build into pinned store paths or recorded failures.
//!
//! A job claims a build, has its units fetch and build, keeps what they made from the garbage collector, and ends
//! the build together with handing its deployments over. The units outlive the daemon: the next run finds them by name.
//!
//! **Invariant:** nothing a repository contains is parsed or evaluated in this process; it reads reports of bounded
//! size and the targets of links, and checks both.

mod admission;
mod unit;
pub mod worker;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, error, info, info_span, warn};

use crate::config;
use crate::crash::{self, Point};
use crate::host::{Machine, UnitState};
use crate::model::settings::Manifest;
use crate::model::{BuildId, BuildState, ServiceName, UnitName};
use crate::store::{BuildOutcome, ClaimedBuild, NewArtifact, RunId, Store};
use crate::telemetry::chain;
use crate::wake::Bell;
use admission::Admission;
use worker::TargetReport;

/// How often rows are looked at when no bell rings.
const TICK: Duration = Duration::from_secs(30);
/// How often the disk is looked at while builds wait for room on it.
const ROOM_TICK: Duration = Duration::from_secs(5);

/// What the builder works with.
#[derive(Clone)]
pub struct Context {
    /// The rows.
    pub store: Store,
    /// The machine.
    pub machine: Arc<dyn Machine>,
    /// The daemon's file.
    pub config: config::Shared,
    /// This run of the daemon.
    pub run: RunId,
    /// Rung when there may be something to build, or to cancel.
    pub bell: Bell,
    /// The deployer's.
    pub deployer: Bell,
    /// Rung when something has ended that others may clean up after.
    pub ended: Bell,
    /// Rung when there may be something to push to a binary cache.
    pub caches: Bell,
}

/// The loop that claims builds.
pub struct Builder {
    ctx: Context,
    jobs: JoinSet<anyhow::Result<()>>,
    working: HashMap<Id, (ClaimedBuild, CancellationToken)>,
    /// Builds whose job ended without ending the build.
    unfinished: Vec<ClaimedBuild>,
    admission: Admission,
}

impl Builder {
    /// A builder with nothing to do yet.
    #[must_use]
    pub fn new(ctx: Context) -> Self {
        Self {
            ctx,
            jobs: JoinSet::new(),
            working: HashMap::new(),
            unfinished: Vec::new(),
            admission: Admission::default(),
        }
    }

    /// Works until shutdown. Then units that build go on; the next run takes them over.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut tick = tokio::time::interval(TICK);
        loop {
            if let Err(err) = self.look().await {
                error!(error = %chain(&*err), "Could not claim builds");
            }
            let bell = self.ctx.bell.clone();
            tokio::select! {
                () = bell.rung() => {}
                _ = tick.tick() => {}
                () = tokio::time::sleep(ROOM_TICK), if self.admission.is_short() => {}
                Some(done) = self.jobs.join_next_with_id() => self.settle(done),
                () = shutdown.cancelled() => break,
            }
        }
        self.jobs.shutdown().await;
    }

    /// Works until nothing is left to build.
    ///
    /// # Errors
    /// When rows could not be claimed.
    pub async fn run_once(&mut self) -> anyhow::Result<()> {
        loop {
            self.look().await?;
            match self.jobs.join_next_with_id().await {
                Some(done) => self.settle(done),
                None => return Ok(()),
            }
        }
    }

    async fn look(&mut self) -> anyhow::Result<()> {
        self.adopt_stale().await?;
        self.pass_on_cancels().await?;
        while let Some(build) = self.unfinished.pop() {
            self.spawn(build);
        }
        while self.jobs.len() < self.ctx.config.load().builder.max_concurrent_builds {
            if !self.admission.admits(&self.ctx).await? {
                break;
            }
            let Some(build) = self.ctx.store.claim_build(&self.ctx.run).await? else { break };
            crash::point(Point::BuildClaimed);
            self.spawn(build);
        }
        Ok(())
    }

    /// Builds of an earlier run: taken over while their unit runs or has reported, else back in the queue.
    async fn adopt_stale(&mut self) -> anyhow::Result<()> {
        for id in self.ctx.store.stale_builds(&self.ctx.run).await? {
            if unit::is_under_way(&*self.ctx.machine, id).await? {
                let build = self.ctx.store.reattach_build(id, &self.ctx.run).await?;
                crash::point(Point::BuildAdopted);
                info!(build.id = %id, "Took build {id} over from an earlier run");
                self.spawn(build);
            } else {
                self.ctx.machine.remove_work_dir(id).await?;
                crash::point(Point::RequeueWorkDirRemoved);
                let state = self.ctx.store.requeue_build(id).await?;
                crash::point(Point::RequeueStored);
                info!(build.id = %id, "Build {id} of an earlier run had stopped; it is `{state}` now");
            }
        }
        Ok(())
    }

    async fn pass_on_cancels(&mut self) -> anyhow::Result<()> {
        if self.working.is_empty() {
            return Ok(());
        }
        let wanted = self.ctx.store.builds_to_cancel().await?;
        for (build, cancel) in self.working.values() {
            if wanted.contains(&build.id) {
                cancel.cancel();
            }
        }
        Ok(())
    }

    fn spawn(&mut self, build: ClaimedBuild) {
        let cancel = CancellationToken::new();
        let span = info_span!("build", build.id = %build.id, project.name = %build.project);
        let job = carry_out(self.ctx.clone(), build.clone(), cancel.clone()).instrument(span);
        let task = self.jobs.spawn(job);
        self.working.insert(task.id(), (build, cancel));
        // A cancel may have come between the claim and this line.
        self.ctx.bell.ring();
    }

    fn settle(&mut self, done: Result<(Id, anyhow::Result<()>), tokio::task::JoinError>) {
        let (task, failure) = match done {
            Ok((task, Ok(()))) => (task, None),
            Ok((task, Err(err))) => (task, Some(chain(&*err))),
            Err(err) => (err.id(), Some(format!("its job panicked: {err}"))),
        };
        let Some((build, _)) = self.working.remove(&task) else { return };
        if let Some(failure) = failure {
            error!(build.id = %build.id, error = %failure, "Could not end build {}; it is tried again", build.id);
            self.unfinished.push(build);
            return;
        }
        self.ctx.bell.ring();
    }
}

/// Builds, and ends the build. `Err` when even its end could not be recorded.
async fn carry_out(ctx: Context, build: ClaimedBuild, cancel: CancellationToken) -> anyhow::Result<()> {
    let begun = Instant::now();
    let short = &build.commit.as_str()[..12];
    info!(
        project.name = %build.project, branch.name = %build.branch.name(), commit.sha = %build.commit,
        "Building {short} of {} from {}", build.project, build.branch.name()
    );
    let outcome = tokio::select! {
        outcome = make(&ctx, &build) => outcome,
        () = cancel.cancelled() => {
            stop_units(&*ctx.machine, build.id).await?;
            crash::point(Point::CancelUnitsStopped);
            Ok(BuildOutcome::Cancelled)
        }
    };
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(err) => {
            error!(error = %chain(&*err), "Build {} of {} could not be carried out", build.id, build.project);
            stop_units(&*ctx.machine, build.id).await?;
            BuildOutcome::Failed(format!("kennel could not build it: {}", chain(&*err)))
        }
    };
    let base_domain = ctx.config.load().base_domain.clone();
    let state = ctx.store.finish_build(&build, &base_domain, &outcome).await?;
    crash::point(Point::BuildFinished);
    ctx.deployer.ring();
    ctx.ended.ring();
    ctx.caches.ring();
    let duration_ms = begun.elapsed().as_millis();
    match state {
        BuildState::Failed => warn!(duration_ms, "Build {} of {} failed", build.id, build.project),
        _ => info!(duration_ms, "Build {} of {} ended: {state}", build.id, build.project),
    }
    if let Err(err) = ctx.machine.remove_work_dir(build.id).await {
        warn!(error = %chain(&err), "Could not remove the work directory of build {}", build.id);
    }
    crash::point(Point::WorkDirRemoved);
    Ok(())
}

/// Ends both units of a build, and with them whatever Nix builds for it.
async fn stop_units(machine: &dyn Machine, build: BuildId) -> anyhow::Result<()> {
    for unit in [UnitName::fetch(build), UnitName::build(build)] {
        machine.stop_unit(&unit).await?;
    }
    Ok(())
}

/// Fetches, builds and records what was made.
async fn make(ctx: &Context, build: &ClaimedBuild) -> anyhow::Result<BuildOutcome> {
    let config = ctx.config.load_full();
    let Some(project) = config.projects.get(&build.project) else {
        return Ok(BuildOutcome::Failed("its project is no longer in the daemon's configuration".to_owned()));
    };
    let report = match unit::fetch_and_build(ctx, build, &config, project).await? {
        Ok(report) => report,
        Err(reason) => return Ok(BuildOutcome::Failed(reason)),
    };
    let Some(manifest) = report.manifest else {
        return Ok(BuildOutcome::Failed(report.failure.unwrap_or_else(|| "the worker gave no reason".to_owned())));
    };
    let begun = Instant::now();
    let artifacts = keep(ctx, build, &manifest, report.targets).await?;
    let keeping_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    ctx.store.note_build_times(build.id, None, Some(unit::clamp(report.nix_ms.saturating_add(keeping_ms)))).await?;
    for artifact in artifacts {
        let NewArtifact { name, nix_ms, .. } = &artifact;
        let state =
            ctx.store.record_artifact(build, &artifact).await.with_context(|| format!("cannot record `{name}`"))?;
        crash::point(Point::ArtifactRecorded);
        info!(service.name = %name, nix_ms, "`{name}` of build {} is {state}", build.id);
    }
    Ok(BuildOutcome::Finished(manifest))
}

/// Checks what the worker made for each service and site, and has Nix keep it.
async fn keep(
    ctx: &Context,
    build: &ClaimedBuild,
    manifest: &Manifest,
    mut reports: BTreeMap<ServiceName, TargetReport>,
) -> anyhow::Result<Vec<NewArtifact>> {
    let artifacts = manifest.targets.iter().map(|(name, settings)| {
        let report = reports.remove(name);
        async move {
            let (result, nix_ms) = match report {
                Some(TargetReport::Built { program, nix_ms }) => match ctx.machine.build_output(build.id, name).await {
                    Ok(path) => {
                        crash::point(Point::RootAdding);
                        ctx.machine.ensure_gc_root(build.id, name, &path).await?;
                        crash::point(Point::RootAdded);
                        (Ok((path, program)), nix_ms)
                    }
                    Err(err) => (Err(chain(&err)), nix_ms),
                },
                Some(TargetReport::Failed { reason }) => (Err(reason), 0),
                None => (Err("the worker did not report on it".to_owned()), 0),
            };
            let (name, settings) = (name.clone(), settings.clone());
            anyhow::Ok(NewArtifact { name, settings, result, nix_ms: unit::clamp(nix_ms) })
        }
    });
    futures_util::future::try_join_all(artifacts).await
}

/// Whether a unit runs, or is about to.
fn is_running(state: &UnitState) -> bool {
    match state {
        UnitState::Active { .. } | UnitState::Activating | UnitState::Restarting { .. } | UnitState::Deactivating => {
            true
        }
        UnitState::Dead { .. } | UnitState::Absent => false,
    }
}
