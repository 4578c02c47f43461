//! Compares rows with the machine: makes again what is missing, removes what no row names.
//!
//! Observe, plan, execute: what is seen is collected first, the plan is a pure function of it, and carrying it out
//! is dull. It runs at start, when something has ended, and every 10 minutes.
//!
//! **Invariant:** only what bears kennel's own names is ever removed, and no service that runs is restarted.

mod databases;
mod observe;
mod plan;
mod upkeep;

use std::path::PathBuf;
use std::time::Duration;

use futures_util::StreamExt as _;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::crash::{self, Point};
use crate::deployer;
use crate::model::DeploymentState;
use crate::telemetry::chain;
pub use databases::DatabaseKeeper;
pub use plan::{Action, Observed, plan};

/// How often it looks when nothing rings.
const TICK: Duration = Duration::from_secs(600);
/// How long the data of a service that is gone is kept.
const TRASH_TIME: Duration = Duration::from_secs(7 * 24 * 3600);
/// How many actions run side by side: after a reboot, every service starts at once.
const PARALLEL: usize = 32;

/// The loop that keeps machine and rows equal.
#[derive(Clone)]
pub struct Reconciler {
    ctx: deployer::Context,
    own_dir: PathBuf,
}

impl Reconciler {
    /// A reconciler over the deployer's store and machine, which keeps room in reserve in `own_dir`.
    #[must_use]
    pub fn new(ctx: deployer::Context, own_dir: PathBuf) -> Self {
        Self { ctx, own_dir }
    }

    /// Reconciles until shutdown.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut tick = tokio::time::interval(TICK);
        let bell = self.ctx.ended.clone();
        loop {
            tokio::select! {
                () = bell.rung() => {}
                // The first comes at once, when the daemon is up.
                _ = tick.tick() => {
                    self.upkeep(Timestamp::now()).await;
                    if let Err(err) = self.ctx.router.reload().await {
                        error!(error = %chain(&err), "Could not compare the rows with the routes");
                    }
                }
                () = shutdown.cancelled() => return,
            }
            if let Err(err) = self.run_once().await {
                error!(error = %chain(&*err), "Could not compare the rows with the machine");
            }
        }
    }

    /// Reconciles for the first time, before anything else is done to the machine.
    ///
    /// # Errors
    /// As [`Self::run_once`].
    pub async fn begin(&self) -> anyhow::Result<()> {
        self.ctx.machine.remove_remains().await?;
        self.run_once().await
    }

    /// Reconciles once.
    ///
    /// # Errors
    /// When rows or machine could not be read. An action that fails is logged, and planned again next time.
    pub async fn run_once(&self) -> anyhow::Result<()> {
        let observed = observe::observe(&self.ctx).await?;
        let actions = plan(&observed);
        futures_util::stream::iter(actions)
            .for_each_concurrent(PARALLEL, async |action| {
                if let Err(err) = self.execute(&action).await {
                    warn!(error = %chain(&*err), "Could not {action}");
                }
            })
            .await;
        self.ctx.machine.empty_trash(TRASH_TIME).await?;
        Ok(())
    }

    async fn execute(&self, action: &Action) -> anyhow::Result<()> {
        match action {
            Action::Restore(id) => {
                let deployment = self.ctx.store.deployment(*id).await?;
                if deployment.state != DeploymentState::Live {
                    return Ok(());
                }
                deployer::restore(&self.ctx, &deployment).await?;
                info!(deployment.id = %id, "Started deployment {id} of `{}` again", deployment.target.tag);
            }
            Action::MakeLink(id, link) => {
                let deployment = self.ctx.store.deployment(*id).await?;
                if deployment.state == DeploymentState::Live {
                    let artifact = self.ctx.store.artifact(deployment.build_id, &deployment.target.name).await?;
                    self.ctx.machine.ensure_site_link(link, &artifact.store_path).await?;
                    crash::point(Point::RestoreLinkMade);
                    info!(deployment.id = %id, "Linked `{}` of {} again", link.site, link.project);
                }
            }
            Action::MakeRoot(build, name) => {
                let artifact = self.ctx.store.artifact(*build, name).await?;
                self.ctx.machine.ensure_gc_root(*build, name, &artifact.store_path).await?;
                crash::point(Point::RestoreRootMade);
                info!(build.id = %build, "Kept `{name}` of build {build} from the garbage collector again");
            }
            Action::RemoveUnit(unit) => {
                self.ctx.machine.stop_unit(unit).await?;
                crash::point(Point::OrphanUnitStopped);
                self.ctx.machine.remove_unit(unit).await?;
                crash::point(Point::OrphanUnitRemoved);
                info!("Removed `{unit}`, which belonged to nothing");
            }
            Action::RemoveRoot(build, name) => {
                self.ctx.machine.remove_gc_root(*build, name).await?;
                crash::point(Point::RootRemoved);
                self.ctx.store.forget_root(*build, name).await?;
                crash::point(Point::RootForgotten);
            }
            Action::RemoveLink(link) => {
                self.ctx.machine.remove_site_link(link).await?;
                crash::point(Point::OrphanLinkRemoved);
            }
            Action::RemoveData(project, slug, service) => {
                self.ctx.machine.remove_data_dir(project, slug, service).await?;
                crash::point(Point::OrphanDataRemoved);
            }
            Action::RemoveWorkDir(build) => {
                self.ctx.machine.remove_work_dir(*build).await?;
                crash::point(Point::OrphanWorkDirRemoved);
            }
            Action::RemoveLogDir(build) => {
                self.ctx.machine.remove_log_dir(*build).await?;
                crash::point(Point::OrphanLogDirRemoved);
            }
        }
        Ok(())
    }
}
