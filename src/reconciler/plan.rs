//! What is to be done so that machine and rows are equal: a pure function of both.

use std::collections::BTreeSet;
use std::fmt;

use crate::host::{Inventory, SiteLink};
use crate::model::{BranchSlug, BuildId, DeploymentId, ProjectName, ServiceName, StorePath, UnitName};

/// Where the files of a target lie.
type Place = (ProjectName, BranchSlug, ServiceName);

/// What was seen.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// What lies on the machine under kennel's names.
    pub inventory: Inventory,
    /// Units that services' deployments that have not ended have or will have.
    pub open_units: BTreeSet<UnitName>,
    /// Live deployments whose unit does not run, or would not come up again: a file of it is gone.
    pub down: Vec<DeploymentId>,
    /// Live sites, and where their links should lead.
    pub sites: Vec<(DeploymentId, SiteLink, StorePath)>,
    /// Services and sites that are there.
    pub targets: BTreeSet<Place>,
    /// Builds of which there is a row.
    pub builds: BTreeSet<BuildId>,
    /// Builds that have not ended.
    pub open_builds: BTreeSet<BuildId>,
    /// Artifacts that a GC root keeps, by the rows.
    pub rooted: BTreeSet<(BuildId, ServiceName)>,
    /// Those of them whose roots serve nobody.
    pub surplus_roots: Vec<(BuildId, ServiceName)>,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Make the files of a live deployment again, and start it.
    Restore(DeploymentId),
    /// Make the link of a live site again.
    MakeLink(DeploymentId, SiteLink),
    /// Keep an artifact from the garbage collector again.
    MakeRoot(BuildId, ServiceName),
    /// Stop and remove a unit that no row names.
    RemoveUnit(UnitName),
    /// Let the garbage collector have an artifact.
    RemoveRoot(BuildId, ServiceName),
    /// Remove the link of a site that is gone.
    RemoveLink(SiteLink),
    /// Move the data of a service that is gone to the trash.
    RemoveData(ProjectName, BranchSlug, ServiceName),
    /// Remove what an ended build left.
    RemoveWorkDir(BuildId),
    /// Remove the logs of a build that is forgotten.
    RemoveLogDir(BuildId),
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Restore(id) => write!(f, "start deployment {id} again"),
            Self::MakeLink(_, link) => write!(f, "link `{}` of {} again", link.site, link.project),
            Self::MakeRoot(build, name) => write!(f, "keep `{name}` of build {build} again"),
            Self::RemoveUnit(unit) => write!(f, "remove `{unit}`"),
            Self::RemoveRoot(build, name) => write!(f, "remove the GC root of `{name}` of build {build}"),
            Self::RemoveLink(link) => write!(f, "remove the link of `{}` of {}", link.site, link.project),
            Self::RemoveData(project, slug, service) => write!(f, "remove the data of {project}/{slug}/{service}"),
            Self::RemoveWorkDir(build) => write!(f, "remove the work directory of build {build}"),
            Self::RemoveLogDir(build) => write!(f, "remove the logs of build {build}"),
        }
    }
}

/// Plans.
#[must_use]
pub fn plan(seen: &Observed) -> Vec<Action> {
    let has = &seen.inventory;
    let mut actions: Vec<Action> = seen.down.iter().copied().map(Action::Restore).collect();
    for (id, link, path) in &seen.sites {
        if !has.site_links.iter().any(|(there, to)| there == link && to.as_ref() == Some(path)) {
            actions.push(Action::MakeLink(*id, link.clone()));
        }
    }
    let lost = seen.rooted.iter().filter(|root| !has.gc_roots.contains(root) && !seen.surplus_roots.contains(root));
    actions.extend(lost.map(|(build, name)| Action::MakeRoot(*build, name.clone())));
    actions.extend(has.units.iter().filter(|unit| !is_wanted(seen, unit)).cloned().map(Action::RemoveUnit));
    // A build that has not ended makes its roots before it records them.
    let orphans = has.gc_roots.iter().filter(|root| !seen.rooted.contains(root) && !seen.open_builds.contains(&root.0));
    for (build, name) in orphans.chain(&seen.surplus_roots) {
        actions.push(Action::RemoveRoot(*build, name.clone()));
    }
    for (link, _) in &has.site_links {
        if !seen.targets.contains(&(link.project.clone(), link.slug.clone(), link.site.clone())) {
            actions.push(Action::RemoveLink(link.clone()));
        }
    }
    for place in has.data_dirs.iter().filter(|place| !seen.targets.contains(place)) {
        let (project, slug, service) = place.clone();
        actions.push(Action::RemoveData(project, slug, service));
    }
    let dirs = has.work_dirs.iter().filter(|build| !seen.open_builds.contains(build)).copied();
    actions.extend(dirs.map(Action::RemoveWorkDir));
    // Rows go before files, so that what a crash leaves is found here.
    let dirs = has.log_dirs.iter().filter(|build| !seen.builds.contains(build)).copied();
    actions.extend(dirs.map(Action::RemoveLogDir));
    actions
}

fn is_wanted(seen: &Observed, unit: &UnitName) -> bool {
    seen.open_units.contains(unit)
        || seen.open_builds.iter().any(|build| *unit == UnitName::fetch(*build) || *unit == UnitName::build(*build))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(name: &str) -> UnitName {
        name.parse().unwrap()
    }

    fn place(name: &str) -> Place {
        ("p".parse().unwrap(), "main".parse().unwrap(), name.parse().unwrap())
    }

    fn link(name: &str) -> SiteLink {
        let (project, slug, site) = place(name);
        SiteLink { project, slug, site }
    }

    fn path(version: char) -> StorePath {
        format!("/nix/store/{}-web", version.to_string().repeat(32)).parse().unwrap()
    }

    #[test]
    fn a_machine_that_equals_the_rows_needs_nothing() {
        let root = (BuildId(2), "api".parse::<ServiceName>().unwrap());
        let seen = Observed {
            inventory: Inventory {
                units: vec![unit("kennel-p-main-api@7.service"), unit("kennel-build-3.service")],
                running: [unit("kennel-p-main-api@7.service")].into(),
                gc_roots: vec![root.clone(), (BuildId(3), "api".parse().unwrap())],
                whole_units: [unit("kennel-p-main-api@7.service")].into(),
                site_links: vec![(link("web"), Some(path('1')))],
                data_dirs: vec![place("api")],
                work_dirs: vec![BuildId(3)],
                log_dirs: vec![BuildId(1)],
            },
            open_units: [unit("kennel-p-main-api@7.service")].into(),
            targets: [place("api"), place("web")].into(),
            builds: [BuildId(1), BuildId(3)].into(),
            open_builds: [BuildId(3)].into(),
            rooted: [root].into(),
            sites: vec![(DeploymentId(8), link("web"), path('1'))],
            ..Observed::default()
        };
        assert_eq!(plan(&seen), []);
    }

    #[test]
    fn what_no_row_names_is_removed_and_what_is_missing_is_made_again() {
        let seen = Observed {
            inventory: Inventory {
                units: vec![unit("kennel-p-main-api@6.service"), unit("kennel-fetch-2.service")],
                running: [unit("kennel-p-main-api@6.service")].into(),
                gc_roots: vec![(BuildId(2), "api".parse().unwrap())],
                whole_units: BTreeSet::new(),
                site_links: vec![(link("web"), None)],
                data_dirs: vec![place("api")],
                work_dirs: vec![BuildId(2)],
                log_dirs: vec![BuildId(1), BuildId(2)],
            },
            builds: [BuildId(2)].into(),
            open_units: [unit("kennel-p-main-api@7.service")].into(),
            down: vec![DeploymentId(7)],
            surplus_roots: vec![(BuildId(1), "api".parse().unwrap())],
            ..Observed::default()
        };
        let (project, slug, service) = place("api");
        assert_eq!(
            plan(&seen),
            [
                Action::Restore(DeploymentId(7)),
                Action::RemoveUnit(unit("kennel-p-main-api@6.service")),
                Action::RemoveUnit(unit("kennel-fetch-2.service")),
                Action::RemoveRoot(BuildId(2), "api".parse().unwrap()),
                Action::RemoveRoot(BuildId(1), "api".parse().unwrap()),
                Action::RemoveLink(link("web")),
                Action::RemoveData(project, slug, service),
                Action::RemoveWorkDir(BuildId(2)),
                Action::RemoveLogDir(BuildId(1)),
            ]
        );
    }

    #[test]
    fn links_and_roots_of_what_is_there_are_made_again_when_they_are_gone_or_lead_elsewhere() {
        let site = |to: Option<StorePath>| Observed {
            inventory: Inventory {
                site_links: to.map(|to| (link("web"), Some(to))).into_iter().collect(),
                ..Inventory::default()
            },
            targets: [place("web")].into(),
            sites: vec![(DeploymentId(8), link("web"), path('1'))],
            rooted: [(BuildId(2), "web".parse().unwrap()), (BuildId(1), "web".parse().unwrap())].into(),
            surplus_roots: vec![(BuildId(1), "web".parse().unwrap())],
            ..Observed::default()
        };
        let root = Action::MakeRoot(BuildId(2), "web".parse().unwrap());
        let surplus = Action::RemoveRoot(BuildId(1), "web".parse().unwrap());
        let made = Action::MakeLink(DeploymentId(8), link("web"));
        assert_eq!(plan(&site(None)), [made.clone(), root.clone(), surplus.clone()]);
        assert_eq!(plan(&site(Some(path('2')))), [made, root.clone(), surplus.clone()]);
        assert_eq!(plan(&site(Some(path('1')))), [root, surplus]);
    }
}
