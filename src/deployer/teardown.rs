//! Tears a target down: every version it had when that was asked for, and then what belonged to the target itself.

use tracing::info;

use super::{Context, steps};
use crate::crash::{self, Point};
use crate::model::DeploymentId;
use crate::store::Teardown;

/// Does what can be done of a teardown now. Returns the deployments that have not ended yet: their jobs do the rest,
/// and are to be told.
pub(super) async fn advance(ctx: &Context, teardown: &Teardown) -> anyhow::Result<Vec<DeploymentId>> {
    let left = ctx.store.begin_teardown(teardown).await?;
    crash::point(Point::TeardownBegun);
    if !left.is_empty() {
        return Ok(left);
    }
    let target = &teardown.target;
    if !ctx.store.is_wanted_again(teardown).await? {
        // Both, whatever it is now: it may have been the other before.
        ctx.machine.remove_data_dir(&target.project, &target.slug, &target.name).await?;
        crash::point(Point::DataRemoved);
        ctx.machine.remove_site_link(&steps::site_link(target)).await?;
        crash::point(Point::LinkRemoved);
        info!(
            project.name = %target.project, branch.name = %target.branch.name(), service.name = %target.name,
            "Tore down `{}` of {} from {}: {}", target.name, target.project, target.branch.name(), teardown.reason
        );
    }
    ctx.store.finish_teardown(teardown).await?;
    crash::point(Point::TeardownFinished);
    ctx.ended.ring();
    ctx.databases.ring();
    Ok(Vec::new())
}
