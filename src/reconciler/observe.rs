//! Collects what the machine has and what the rows say.

use super::Observed;
use crate::deployer::Context;
use crate::host::UnitState;
use crate::model::{DeploymentState, Kind};

/// Looks at the machine first and at the rows after it: whatever is on the machine by then had its row before.
pub(super) async fn observe(ctx: &Context) -> anyhow::Result<Observed> {
    let mut seen = Observed { inventory: ctx.machine.inventory().await?, ..Observed::default() };
    for id in ctx.store.open_deployments().await? {
        let deployment = ctx.store.deployment(id).await?;
        if deployment.kind != Kind::Service {
            continue;
        }
        let unit = deployment.target.tag.unit(id);
        let at_rest = deployment.state == DeploymentState::Live && deployment.step.is_none();
        if at_rest && matches!(ctx.machine.unit_state(&unit).await?, UnitState::Absent | UnitState::Dead { .. }) {
            seen.down.push(id);
        }
        seen.open_units.insert(unit);
    }
    for target in ctx.store.targets().await? {
        seen.targets.insert((target.project, target.slug, target.name));
    }
    seen.builds = ctx.store.build_ids().await?.into_iter().collect();
    seen.open_builds = ctx.store.open_builds().await?.into_iter().collect();
    seen.rooted = ctx.store.rooted_artifacts().await?.into_iter().collect();
    seen.surplus_roots = ctx.store.surplus_roots().await?;
    Ok(seen)
}
