//! Carries each deployment through its steps, and tears one down.
//!
//! A deployment's row says which step is next. A job does that step, records that it is done, and looks again;
//! so a crash between the two repeats a step, and every step says *ensure*. A failure before the route is switched
//! turns the deployment round: the steps that follow only give back what it has, as they do at the end of its life.
//!
//! **Invariant:** no version takes traffic that was not healthy, and none is stopped while it does.

pub mod databases;

mod confinement;
mod health;
mod secrets;
mod steps;
mod teardown;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, error, info, info_span, warn};

use crate::chance::BackOff;
use crate::config;
use crate::crash::{self, Point};
use crate::host::Machine;
use crate::host::key::HostKey;
use crate::model::deployment::{Next, OnFailure};
use crate::model::{DeploymentId, DeploymentState, Ending, Step};
use crate::router;
use crate::store::{ClaimedDeployment, Claims, RunId, Store};
use crate::telemetry::chain;
use crate::wake::Bell;

/// How many deployments are worked on at a time; most of them only wait, for health or for a drain.
const MAX_JOBS: usize = 256;
/// How long a step that waits for a server is put off.
const AWAY: BackOff = BackOff::of_secs(1, 8);
/// How long any other step is put off.
const BROKEN: BackOff = BackOff::of_secs(1, 64);
/// How often rows are looked at when no bell rings.
const TICK: Duration = Duration::from_secs(30);

/// What the deployer works with.
#[derive(Clone)]
pub struct Context {
    /// The rows.
    pub store: Store,
    /// The machine.
    pub machine: Arc<dyn Machine>,
    /// The router, told of every switch.
    pub router: router::Handle,
    /// The daemon's file.
    pub config: config::Shared,
    /// The machine's own key.
    pub key: HostKey,
    /// This run of the daemon.
    pub run: RunId,
    /// Rung when there may be something to do here.
    pub bell: Bell,
    /// Rung when something has ended that others may clean up after.
    pub ended: Bell,
    /// Rung when the databases of a branch may have ended.
    pub databases: Bell,
    /// What tests do after a step.
    pub interrupt: Interrupt,
}

/// Decides what happens after a step of a deployment.
type Decide = dyn Fn(&ClaimedDeployment, Step) -> Interruption + Send + Sync;

/// What happens between a step's effect and its record: nothing, unless a test asks for it.
#[derive(Clone)]
pub struct Interrupt(Arc<Decide>);

/// One thing that may happen between a step's effect and its record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interruption {
    /// Nothing.
    None,
    /// The job never goes on, as after a crash.
    Crash,
    /// The step counts as failed.
    Fail,
    /// The step is done once more.
    Repeat,
}

impl Interrupt {
    /// Never anything.
    #[must_use]
    pub fn never() -> Self {
        Self(Arc::new(|_, _| Interruption::None))
    }

    /// Whatever `decide` says.
    pub fn by(decide: impl Fn(&ClaimedDeployment, Step) -> Interruption + Send + Sync + 'static) -> Self {
        Self(Arc::new(decide))
    }
}

impl fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Interrupt")
    }
}

/// Why a step did not succeed.
enum StepError {
    /// The version itself is no good, or must not go live: data, for its row.
    Unfit(Ending, String),
    /// A server it needs is away: the step is done again until it is back.
    Away(anyhow::Error),
    /// The machine or kennel failed.
    Broken(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for StepError {
    fn from(error: E) -> Self {
        Self::Broken(error.into())
    }
}

/// The loop that claims deployments and teardowns.
pub struct Deployer {
    ctx: Context,
    jobs: JoinSet<anyhow::Result<()>>,
    working: HashMap<Id, (DeploymentId, CancellationToken)>,
    /// Deployments whose job ended without giving the claim back.
    unclaimed: Vec<DeploymentId>,
}

impl Deployer {
    /// A deployer with nothing to do yet.
    #[must_use]
    pub fn new(ctx: Context) -> Self {
        Self { ctx, jobs: JoinSet::new(), working: HashMap::new(), unclaimed: Vec::new() }
    }

    /// Works until shutdown. Then jobs stop where they are: their rows say what is next.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut tick = tokio::time::interval(TICK);
        loop {
            if let Err(err) = self.claim_while_room().await {
                error!(error = %chain(&*err), "Could not claim deployments");
            }
            let bell = self.ctx.bell.clone();
            let due = self.ctx.store.next_due().await.ok().flatten().unwrap_or(TICK);
            tokio::select! {
                () = bell.rung() => {}
                () = tokio::time::sleep(due) => {}
                _ = tick.tick() => {}
                Some(done) = self.jobs.join_next_with_id() => self.settle(done).await,
                () = shutdown.cancelled() => break,
            }
        }
        self.jobs.shutdown().await;
    }

    /// Works until nothing is left that can be done now.
    ///
    /// # Errors
    /// When rows could not be claimed.
    pub async fn run_once(&mut self) -> anyhow::Result<()> {
        loop {
            self.claim_while_room().await?;
            match self.jobs.join_next_with_id().await {
                Some(done) => self.settle(done).await,
                None => return Ok(()),
            }
        }
    }

    async fn claim_while_room(&mut self) -> anyhow::Result<()> {
        while let Some(id) = self.unclaimed.pop() {
            if let Err(err) = self.ctx.store.release_deployment(id).await {
                self.unclaimed.push(id);
                return Err(err.into());
            }
        }
        for teardown in self.ctx.store.due_teardowns().await? {
            let left = teardown::advance(&self.ctx, &teardown)
                .await
                .with_context(|| format!("cannot tear {} down", teardown.target.tag))?;
            for (id, turned) in self.working.values() {
                if left.contains(id) {
                    turned.cancel();
                }
            }
        }
        let room = u32::try_from(MAX_JOBS.saturating_sub(self.jobs.len())).unwrap_or(0);
        if room == 0 {
            return Ok(());
        }
        for id in self.ctx.store.claim_deployments(Claims { run: &self.ctx.run, limit: room }).await? {
            crash::point(Point::DeploymentClaimed);
            let turned = CancellationToken::new();
            let ctx = self.ctx.clone();
            let job = carry(ctx, id, turned.clone()).instrument(info_span!("deployment", deployment.id = %id));
            let task = self.jobs.spawn(job);
            self.working.insert(task.id(), (id, turned));
        }
        Ok(())
    }

    async fn settle(&mut self, done: Result<(Id, anyhow::Result<()>), tokio::task::JoinError>) {
        let (task, failure) = match done {
            Ok((task, Ok(()))) => (task, None),
            Ok((task, Err(err))) => (task, Some(chain(&*err))),
            Err(err) => (err.id(), Some(format!("its job panicked: {err}"))),
        };
        let Some((id, _)) = self.working.remove(&task) else { return };
        if let Some(failure) = failure {
            error!(deployment.id = %id, error = %failure, "Could not work on deployment {id}; it is tried again");
            self.unclaimed.push(id);
            // Not at once: what failed is the database or kennel itself.
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        self.ctx.bell.ring();
    }
}

/// Carries one deployment as far as it goes: until it is live, has ended, or must wait.
async fn carry(ctx: Context, id: DeploymentId, turned: CancellationToken) -> anyhow::Result<()> {
    loop {
        let deployment = ctx.store.deployment(id).await?;
        let Some(step) = deployment.step else { return Ok(()) };
        let outward = !matches!(step, Step::Drain | Step::Stop | Step::Release);
        let not_live = matches!(deployment.state, DeploymentState::Pending | DeploymentState::Starting);
        if outward && not_live {
            if deployment.ending.is_some() {
                ctx.store.turn_back(id, step, Ending::Retired, "its branch or target is being torn down").await?;
                continue;
            }
            if deployment.state == DeploymentState::Pending {
                match steps::begin(&ctx, &deployment).await {
                    Ok(true) => {}
                    Ok(false) => {
                        ctx.ended.ring();
                        return Ok(());
                    }
                    Err(StepError::Unfit(ending, reason)) => give_up(&ctx, &deployment, step, ending, &reason).await?,
                    Err(StepError::Broken(err) | StepError::Away(err)) => return Err(err),
                }
                continue;
            }
        }
        let begun = Instant::now();
        let outcome = tokio::select! {
            outcome = perform(&ctx, &deployment, step) => outcome,
            () = turned.cancelled(), if step == Step::AwaitHealthy => continue,
        };
        let duration_ms = i64::try_from(begun.elapsed().as_millis()).unwrap_or(i64::MAX);
        match outcome {
            Ok(()) => {
                let next = step.next(deployment.kind);
                ctx.store.advance(&deployment, step, next, duration_ms).await?;
                match next {
                    Next::Step(_) => {}
                    Next::Live => crash::point(Point::LiveRecorded),
                    Next::Ended => crash::point(Point::RetiredRecorded),
                }
                announce(&ctx, &deployment, next);
            }
            Err(StepError::Unfit(ending, reason)) => give_up(&ctx, &deployment, step, ending, &reason).await?,
            Err(StepError::Broken(err)) => match step.on_failure() {
                OnFailure::TearDown => {
                    give_up(&ctx, &deployment, step, Ending::Failed, &format!("{step}: {}", chain(&*err))).await?;
                }
                OnFailure::Retry => return put_off(&ctx, &deployment, step, &chain(&*err), BROKEN).await,
            },
            Err(StepError::Away(err)) if ctx.store.holds_up_another(id).await? => {
                let reason = format!("a newer commit came while it waited: {}", chain(&*err));
                give_up(&ctx, &deployment, step, Ending::Cancelled, &reason).await?;
            }
            Err(StepError::Away(err)) => return put_off(&ctx, &deployment, step, &chain(&*err), AWAY).await,
        }
    }
}

/// Does a step, and what a test wants after it.
async fn perform(ctx: &Context, deployment: &ClaimedDeployment, step: Step) -> Result<(), StepError> {
    steps::perform(ctx, deployment, step).await?;
    match (ctx.interrupt.0)(deployment, step) {
        Interruption::None => Ok(()),
        Interruption::Crash => std::future::pending().await,
        Interruption::Fail => Err(StepError::Broken(anyhow::anyhow!("interrupted after `{step}`"))),
        Interruption::Repeat => steps::perform(ctx, deployment, step).await,
    }
}

async fn put_off(
    ctx: &Context,
    deployment: &ClaimedDeployment,
    step: Step,
    reason: &str,
    back_off: BackOff,
) -> anyhow::Result<()> {
    let delay = back_off.doubled(deployment.attempts);
    let (id, secs) = (deployment.id, delay.as_secs());
    warn!(deployment.id = %id, error = %reason, "Step `{step}` of deployment {id} is done again in {secs} s: {reason}");
    ctx.store.retry_later(deployment.id, step, reason, delay).await?;
    Ok(())
}

async fn give_up(
    ctx: &Context,
    deployment: &ClaimedDeployment,
    step: Step,
    ending: Ending,
    reason: &str,
) -> anyhow::Result<()> {
    let (project, branch, service) =
        (&deployment.target.project, deployment.target.branch.name(), &deployment.target.name);
    match ending {
        Ending::Failed => warn!(
            project.name = %project, branch.name = %branch, service.name = %service,
            "Deployment {} of `{service}` from {branch} failed: {reason}", deployment.id
        ),
        Ending::Cancelled | Ending::Retired => info!(
            project.name = %project, branch.name = %branch, service.name = %service,
            "Deployment {} of `{service}` from {branch} was called off: {reason}", deployment.id
        ),
    }
    ctx.store.turn_back(deployment.id, step, ending, reason).await?;
    crash::point(Point::DeploymentTurnedBack);
    Ok(())
}

fn announce(ctx: &Context, deployment: &ClaimedDeployment, next: Next) {
    let target = &deployment.target;
    match next {
        Next::Step(_) => {}
        Next::Live => {
            info!(
                project.name = %target.project, branch.name = %target.branch.name(), service.name = %target.name,
                build.id = %deployment.build_id, deployment.id = %deployment.id,
                "Deployed `{}` of {} from {}: {}", target.name, target.project, target.branch.name(),
                ctx.config.load().url_of(&target.host)
            );
            // The version it replaced has a drain to do.
            ctx.bell.ring();
        }
        Next::Ended => {
            info!(
                project.name = %target.project, deployment.id = %deployment.id,
                "Removed deployment {} of `{}` of {}", deployment.id, target.name, target.project
            );
            ctx.ended.ring();
        }
    }
}

/// Makes environment file and unit of a deployment again and starts it, unless it runs: what a reboot takes away.
///
/// # Errors
/// When the machine refuses.
pub async fn restore(ctx: &Context, deployment: &ClaimedDeployment) -> anyhow::Result<()> {
    let spec = steps::unit_spec(ctx, deployment).await?;
    ctx.machine.ensure_env_file(&spec).await?;
    crash::point(Point::RestoreEnvWritten);
    ctx.machine.ensure_unit(&spec).await?;
    crash::point(Point::RestoreUnitWritten);
    ctx.machine.start_unit(&spec.unit()).await?;
    crash::point(Point::RestoreStarted);
    Ok(())
}
