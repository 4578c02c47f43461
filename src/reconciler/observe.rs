//! Collects what the machine has and what the rows say.

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::{Observed, PARALLEL};
use crate::deployer::Context;
use crate::host::{SiteLink, UnitState};

/// Looks at the machine first and at the rows after it: whatever is on the machine by then had its row before.
pub(super) async fn observe(ctx: &Context) -> anyhow::Result<Observed> {
    let mut seen = Observed { inventory: ctx.machine.inventory().await?, ..Observed::default() };
    let mut suspects = Vec::new();
    for service in ctx.store.open_services().await? {
        let unit = service.tag.unit(service.id);
        if service.is_live && !seen.inventory.whole_units.contains(&unit) {
            seen.down.push(service.id);
        } else if service.is_live && !seen.inventory.running.contains(&unit) {
            suspects.push((service.id, unit.clone()));
        }
        seen.open_units.insert(unit);
    }
    // They may have been started since the machine was looked at.
    let states = stream::iter(suspects).map(|(id, unit)| async move {
        let state = ctx.machine.unit_state(&unit).await?;
        anyhow::Ok(matches!(state, UnitState::Absent | UnitState::Dead { .. }).then_some(id))
    });
    seen.down.extend(states.buffered(PARALLEL).try_collect::<Vec<_>>().await?.into_iter().flatten());
    for site in ctx.store.live_sites().await? {
        let link = SiteLink { project: site.project, slug: site.slug, site: site.name };
        seen.sites.push((site.id, link, site.store_path));
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
