//! Links, data directories, the trash, and what of kennel's lies about. All of it blocks.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Fault;
use super::layout::{Layout, OwnUnit, gc_root_of};
use crate::crash::{self, Point};
use crate::host::{Inventory, SiteLink, files};
use crate::model::{BranchSlug, BuildId, ProjectName, ServiceName, StorePath, UnitName};

/// The units of which a unit file or an environment file is left.
pub(super) fn units_with_files(layout: &Layout) -> io::Result<BTreeSet<UnitName>> {
    let unit_files = files::names(&layout.unit_dir)?.into_iter().filter_map(|name| name.parse().ok());
    let env_files = files::names(&layout.secrets_dir())?;
    let env_files = env_files.iter().filter_map(|name| Layout::unit_of_env_file(name));
    Ok(unit_files.chain(env_files).filter(|unit| OwnUnit::of(unit).is_some()).collect())
}

/// The units of which both files are there.
fn whole_units(layout: &Layout) -> io::Result<BTreeSet<UnitName>> {
    let is_whole = |unit: &UnitName| layout.unit_file(unit).exists() && layout.env_file(unit).exists();
    Ok(units_with_files(layout)?.into_iter().filter(is_whole).collect())
}

/// Held while a site's link is made or removed: two that make the same one, and one that makes the first of a branch while
/// the last is removed, would be in each other's way.
static LINKS: Mutex<()> = Mutex::new(());

/// Points a site's link at `target`.
pub(super) fn link_site(path: &Path, target: &Path) -> io::Result<()> {
    let _alone = LINKS.lock().unwrap_or_else(PoisonError::into_inner);
    files::ensure_dir(path.parent().unwrap_or(path), 0o755)?;
    files::replace_link(path, target)
}

/// Removes a site's link, and the directories above it, below `top`, that hold nothing else.
pub(super) fn unlink_site(path: &Path, top: &Path) -> io::Result<()> {
    let _alone = LINKS.lock().unwrap_or_else(PoisonError::into_inner);
    files::remove(path)?;
    files::remove_empty_parents(path, top)
}

/// Moves a service's data to the trash and removes the link systemd made, and directories left empty by that.
pub(super) fn trash_data_dir(
    layout: &Layout,
    project: &ProjectName,
    slug: &BranchSlug,
    service: &ServiceName,
) -> io::Result<()> {
    let visible = layout.data_dir(project, slug, service);
    let real = layout.private_data_dir(project, slug, service);
    let label = format!("{project}.{slug}.{service}");
    trash(layout, &real, &label)?;
    crash::point(Point::DataTrashed);
    match fs::symlink_metadata(&visible) {
        Ok(found) if found.is_symlink() => files::remove(&visible)?,
        Ok(_) => trash(layout, &visible, &label)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    for (path, top) in [&visible, &real].into_iter().zip(layout.services_dirs()) {
        files::remove_empty_parents(path, &top)?;
    }
    Ok(())
}

fn trash(layout: &Layout, path: &Path, label: &str) -> io::Result<()> {
    let millis = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let mut last = Ok(());
    for dir in layout.trash_dirs() {
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            found => found?,
        };
        // Root's alone: a user id may come to belong to somebody else.
        files::ensure_dir(&dir, 0o700)?;
        last = fs::rename(path, free_name(&dir, millis, label));
        match &last {
            // Another file system: there is a trash beside the data as well.
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {}
            Err(_) => break,
            Ok(()) => return files::sync_parent(path),
        }
    }
    last
}

fn free_name(dir: &Path, millis: u128, label: &str) -> PathBuf {
    let mut path = dir.join(format!("{millis}-{label}"));
    let mut turn = 1;
    while path.symlink_metadata().is_ok() {
        path = dir.join(format!("{millis}-{label}.{turn}"));
        turn += 1;
    }
    path
}

/// Removes what has lain in the trash for longer than `older_than`, by the time in its name.
pub(super) fn empty_trash(layout: &Layout, older_than: Duration) -> io::Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    for dir in layout.trash_dirs() {
        for name in files::names(&dir)? {
            let since = name.split_once('-').and_then(|(millis, _)| millis.parse().ok()).map(Duration::from_millis);
            if since.is_some_and(|since| now.saturating_sub(since) >= older_than) {
                files::remove_tree(&dir.join(name))?;
                crash::point(Point::TrashEmptied);
            }
        }
    }
    Ok(())
}

/// Removes what was made and not put in place, and the directories of projects and branches that hold nothing.
pub(super) fn remove_remains(layout: &Layout) -> io::Result<()> {
    use io::ErrorKind::{DirectoryNotEmpty, NotADirectory, NotFound};
    for top in layout.services_dirs().into_iter().chain([layout.sites_dir()]) {
        for project in files::names(&top)?.into_iter().map(|name| top.join(name)) {
            let branches = files::names(&project)?.into_iter().map(|name| project.join(name));
            for dir in branches.chain([project.clone()]) {
                files::remove_drafts(&dir)?;
                match fs::remove_dir(&dir) {
                    Err(error) if !matches!(error.kind(), DirectoryNotEmpty | NotADirectory | NotFound) => {
                        return Err(error);
                    }
                    _ => {}
                }
            }
        }
    }
    files::remove_drafts(&layout.log_dirs())
}

/// What the link a worker left says, if that is a store path that exists.
pub(super) fn read_output(work_dir: &Path, name: &str) -> Result<StorePath, Fault> {
    let target = files::read_link_in(work_dir, "out", name)?.ok_or("the worker left no link")?;
    let path: StorePath = target.to_str().ok_or("the link is not UTF-8")?.parse()?;
    fs::symlink_metadata(path.as_str()).map_err(|error| format!("`{path}`: {error}"))?;
    Ok(path)
}

/// The builds that have a work directory.
pub(super) fn work_dirs(layout: &Layout) -> io::Result<Vec<BuildId>> {
    build_ids(&layout.work_dirs())
}

fn build_ids(dir: &Path) -> io::Result<Vec<BuildId>> {
    let mut ids: Vec<BuildId> = files::names(dir)?.iter().filter_map(|name| name.parse().ok()).collect();
    ids.sort();
    Ok(ids)
}

/// What lies in kennel's directories; units are not among it.
pub(super) fn inventory(layout: &Layout) -> io::Result<Inventory> {
    let gc_roots = files::names(&layout.gc_roots_dir())?;
    let links = three_deep::<ServiceName>(&layout.sites_dir())?;
    let mut data = BTreeSet::new();
    for dir in layout.services_dirs() {
        data.extend(three_deep::<ServiceName>(&dir)?);
    }
    Ok(Inventory {
        units: Vec::new(),
        running: BTreeSet::new(),
        gc_roots: gc_roots.iter().filter_map(|name| gc_root_of(name)).collect(),
        whole_units: whole_units(layout)?,
        site_links: links
            .into_iter()
            .map(|(project, slug, site)| {
                let link = SiteLink { project, slug, site };
                let to = fs::read_link(layout.site_link(&link)).ok();
                (link, to.and_then(|to| to.to_str()?.parse().ok()))
            })
            .collect(),
        data_dirs: data.into_iter().collect(),
        work_dirs: work_dirs(layout)?,
        log_dirs: build_ids(&layout.log_dirs())?,
    })
}

/// Names below `top/<project>/<branch>/`.
fn three_deep<T: std::str::FromStr>(top: &Path) -> io::Result<Vec<(ProjectName, BranchSlug, T)>> {
    let mut found = Vec::new();
    for project in files::names(top)? {
        let Ok(project_name) = project.parse::<ProjectName>() else { continue };
        for slug in files::names(&top.join(&project))? {
            let Ok(slug_name) = slug.parse::<BranchSlug>() else { continue };
            for name in files::names(&top.join(&project).join(&slug))? {
                found.extend(name.parse().ok().map(|name| (project_name.clone(), slug_name.clone(), name)));
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::super::render::unit::tests::layout;
    use super::*;

    #[test]
    fn links_are_made_and_removed_side_by_side() {
        let dir = tempfile::tempdir().unwrap();
        let sites = &dir.path().join("sites");
        let path = |name: &str| sites.join("shop/main").join(name);
        let link = |name: &str| link_site(&path(name), Path::new("/nix/store/x")).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| (0..1_000).for_each(|_| link("web")));
            }
        });
        assert_eq!(files::names(&sites.join("shop/main")).unwrap(), ["web"]);
        unlink_site(&path("web"), sites).unwrap();
        // Their branch has no other: its directory comes and goes.
        std::thread::scope(|scope| {
            for name in ["blog", "docs"] {
                scope.spawn(move || {
                    for _ in 0..1_000 {
                        link(name);
                        unlink_site(&path(name), sites).unwrap();
                    }
                });
            }
        });
        assert_eq!(files::names(sites).unwrap(), [""; 0]);
    }

    #[test]
    fn what_a_crash_left_goes_and_what_holds_something_stays() {
        let state = tempfile::tempdir().unwrap();
        let layout = Layout { state_dir: state.path().to_owned(), ..layout() };
        let sites = layout.sites_dir();
        for dir in ["ghost/main", "shop/topic", "shop/main"] {
            fs::create_dir_all(sites.join(dir)).unwrap();
        }
        std::os::unix::fs::symlink("/nix/store/x", sites.join("shop/main/web")).unwrap();
        fs::write(sites.join("note"), "of somebody else's").unwrap();
        // kennel died between the making of a link and its putting in place.
        for draft in ["shop/main/.web.new", "shop/topic/.api.new"] {
            std::os::unix::fs::symlink("/nix/store/y", sites.join(draft)).unwrap();
        }
        // Or of a directory for logs.
        for dir in [".7.new", "6"] {
            fs::create_dir_all(layout.log_dirs().join(dir)).unwrap();
        }
        remove_remains(&layout).unwrap();
        assert_eq!(files::names(&layout.log_dirs()).unwrap(), ["6"]);
        assert_eq!(files::names(&sites).unwrap(), ["note", "shop"]);
        assert_eq!(files::names(&sites.join("shop")).unwrap(), ["main"]);
        assert_eq!(files::names(&sites.join("shop/main")).unwrap(), ["web"]);
        remove_remains(&layout).unwrap();
    }
}
