//! Collects what the machine has and what the rows say.

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::{Observed, PARALLEL};
use crate::deployer::{self, Context};
use crate::host::UnitState;
use crate::model::{DeploymentState, Kind};

/// Looks at the machine first and at the rows after it: whatever is on the machine by then had its row before.
pub(super) async fn observe(ctx: &Context) -> anyhow::Result<Observed> {
    let mut seen = Observed { inventory: ctx.machine.inventory().await?, ..Observed::default() };
    let mut live = Vec::new();
    for id in ctx.store.open_deployments().await? {
        let deployment = ctx.store.deployment(id).await?;
        let is_live = deployment.state == DeploymentState::Live;
        match deployment.kind {
            Kind::Service => {
                let unit = deployment.target.tag.unit(id);
                if is_live {
                    live.push((id, unit.clone()));
                }
                seen.open_units.insert(unit);
            }
            // One with a step is about to get its link from the deployer.
            Kind::Site if is_live && deployment.step.is_none() => {
                let artifact = ctx.store.artifact(deployment.build_id, &deployment.target.name).await?;
                seen.sites.push((id, deployer::site_link(&deployment.target), artifact.store_path));
            }
            Kind::Site => {}
        }
    }
    let states = stream::iter(live).map(|(id, unit)| async move {
        let state = ctx.machine.unit_state(&unit).await?;
        anyhow::Ok((id, unit, state))
    });
    for (id, unit, state) in states.buffered(PARALLEL).try_collect::<Vec<_>>().await? {
        let runs = !matches!(state, UnitState::Absent | UnitState::Dead { .. });
        if !runs || !seen.inventory.whole_units.contains(&unit) {
            seen.down.push(id);
        }
    }
    for target in ctx.store.targets().await? {
        seen.targets.insert((target.project, target.slug, target.name));
    }
    seen.open_builds = ctx.store.open_builds().await?.into_iter().collect();
    seen.rooted = ctx.store.rooted_artifacts().await?.into_iter().collect();
    seen.surplus_roots = ctx.store.surplus_roots().await?;
    Ok(seen)
}
