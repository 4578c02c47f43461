//! Collects what the machine has and what the rows say.

use super::Observed;
use crate::deployer::Context;
use crate::host::UnitState;

/// Looks at the machine first and at the rows after it: whatever is on the machine by then had its row before.
pub(super) async fn observe(ctx: &Context) -> anyhow::Result<Observed> {
    let mut seen = Observed { inventory: ctx.machine.inventory().await?, ..Observed::default() };
    for service in ctx.store.open_services().await? {
        let unit = service.tag.unit(service.id);
        // It may have been started since the machine was looked at.
        if service.at_rest
            && !seen.inventory.running.contains(&unit)
            && matches!(ctx.machine.unit_state(&unit).await?, UnitState::Absent | UnitState::Dead { .. })
        {
            seen.down.push(service.id);
        }
        seen.open_units.insert(unit);
    }
    for target in ctx.store.targets().await? {
        seen.targets.insert((target.project, target.slug, target.name));
    }
    seen.open_builds = ctx.store.open_builds().await?.into_iter().collect();
    seen.rooted = ctx.store.rooted_artifacts().await?.into_iter().collect();
    seen.surplus_roots = ctx.store.surplus_roots().await?;
    Ok(seen)
}
