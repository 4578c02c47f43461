//! The real machine: systemd over D-Bus, the Nix daemon, and files.
//!
//! **Invariant:** only units whose names kennel makes are started, stopped or removed ([`OwnUnit`]), and only
//! files below the three directories of [`Layout`] are written.

pub mod layout;
pub mod render;

mod connect;
mod garbage;
mod journal;
mod proc;
mod redact;
mod roots;
pub(super) mod secrets;
mod systemd;
mod upkeep;

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;

pub use self::connect::MachineConfig;
use self::layout::{Layout, OwnUnit, report_name};
use self::redact::Redactions;
use self::render::build::{BuildLimits, build_unit};
use self::render::env::env_file;
use self::render::unit::{is_project_slice, unit_file};
use self::systemd::Steady;
use super::closure::{Freed, PathInfo, Paths};
use super::disk::DiskSpace;
use super::key::HostKey;
use super::{
    BuildJob, BuildPhase, BuildUnitSpec, HostError, Inventory, Listener, Machine, RELEASED, SecretFiles, SiteLink,
    UnitSpec, UnitState, files, tcp,
};
use crate::crash::{self, Point};
use crate::model::{BranchSlug, BuildId, Environment, Port, ProjectName, ServiceName, StorePath, UnitName};

/// Why something could not be done.
type Fault = Box<dyn std::error::Error + Send + Sync>;

/// Where store paths lie.
const NIX_STORE: &str = "/nix/store";
/// The largest report a worker may leave.
const REPORT_MAX_BYTES: u64 = 1 << 20;

/// This machine, as root sees it.
#[derive(Debug)]
pub struct SystemdMachine {
    layout: Layout,
    limits: BuildLimits,
    build_ids: (u32, u32),
    log_gid: Option<u32>,
    systemd: Steady,
}

/// Does blocking work aside, and says what was tried when it fails.
async fn blocking<T: Send + 'static>(
    action: impl FnOnce() -> String,
    work: impl FnOnce() -> Result<T, Fault> + Send + 'static,
) -> Result<T, HostError> {
    let done = match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(panicked) => Err(panicked.into()),
    };
    done.map_err(|fault| HostError::new(action(), fault))
}

/// What a program that ended badly has to say for itself.
fn ended(program: &str, output: &std::process::Output) -> Fault {
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.trim().lines().next_back().unwrap_or("it said nothing");
    let last: String = last.chars().take(500).collect();
    format!("`{program}` ended with {}: {last}", output.status).into()
}

/// What the name stands for; other people's units are none of our business.
fn own(unit: &UnitName) -> Result<OwnUnit, Fault> {
    OwnUnit::of(unit).ok_or_else(|| format!("`{unit}` is not a unit of kennel's").into())
}

impl SystemdMachine {
    /// All units of kennel's own making, and whether each runs: systemd is asked once for all of them.
    async fn units(&self) -> Result<BTreeMap<UnitName, bool>, HostError> {
        let listed = self.systemd.list(&["kennel-*@*.service", "kennel-fetch-*.service", "kennel-build-*.service"]);
        let listed = listed.await.map_err(|fault| HostError::new("list kennel's units", fault))?;
        let layout = self.layout.clone();
        let files = move || Ok(upkeep::units_with_files(&layout)?);
        let files = blocking(|| "list kennel's unit files".to_owned(), files).await?;
        let mut units: BTreeMap<_, _> = files.into_iter().map(|unit| (unit, false)).collect();
        let listed = listed.into_iter().filter_map(|unit| Some((unit.name.parse().ok()?, unit.runs)));
        units.extend(listed.filter(|(unit, _)| OwnUnit::of(unit).is_some()));
        Ok(units)
    }
}

#[async_trait]
impl Machine for SystemdMachine {
    async fn secret_fingerprints(
        &self,
        key: &HostKey,
        _project: &ProjectName,
        _environment: Environment,
        secrets: &SecretFiles,
    ) -> Result<BTreeMap<String, String>, HostError> {
        let (key, secrets) = (key.clone(), secrets.clone());
        blocking(|| "read its secrets".to_owned(), move || secrets::fingerprints(&key, &secrets)).await
    }

    async fn ensure_env_file(&self, spec: &UnitSpec) -> Result<(), HostError> {
        let path = self.layout.env_file(&spec.unit());
        let (env, secrets) = (spec.env.clone(), spec.secrets.clone());
        let work = move || {
            let text = env_file(&secrets::with_values(env, &secrets)?)?;
            Ok(files::replace_durably(&path, text.as_bytes(), 0o400)?)
        };
        blocking(|| format!("write the environment of `{}`", spec.unit()), work).await
    }

    async fn ensure_unit(&self, spec: &UnitSpec) -> Result<(), HostError> {
        let path = self.layout.unit_file(&spec.unit());
        let text = unit_file(&self.layout, spec);
        let work = move || {
            let text = text?;
            // Written again, systemd would take it for a newer version and want a reload.
            if files::holds(&path, text.as_bytes()) {
                return Ok(());
            }
            Ok(files::replace_durably(&path, text.as_bytes(), 0o644)?)
        };
        blocking(|| format!("write the unit `{}`", spec.unit()), work).await
    }

    async fn start_unit(&self, unit: &UnitName) -> Result<(), HostError> {
        let start = async { self.systemd.start(own(unit).map(|_| unit)?).await };
        start.await.map_err(|fault| HostError::new(format!("start the unit `{unit}`"), fault))
    }

    async fn stop_unit(&self, unit: &UnitName) -> Result<(), HostError> {
        let stop = async { self.systemd.stop(own(unit).map(|_| unit)?).await };
        stop.await.map_err(|fault| HostError::new(format!("stop the unit `{unit}`"), fault))
    }

    async fn remove_unit(&self, unit: &UnitName) -> Result<(), HostError> {
        let action = || format!("remove the unit `{unit}`");
        own(unit).map_err(|fault| HostError::new(action(), fault))?;
        let paths = [self.layout.unit_file(unit), self.layout.env_file(unit)];
        blocking(action, move || Ok(paths.iter().try_for_each(|path| files::remove(path))?)).await?;
        crash::point(Point::UnitFilesRemoved);
        let forget = async {
            // Only now, so that what systemd finds when it looks again is nothing.
            self.systemd.forget(unit).await?;
            self.systemd.stop_empty_slices(is_project_slice).await
        };
        forget.await.map_err(|fault| HostError::new(action(), fault))
    }

    async fn unit_state(&self, unit: &UnitName) -> Result<UnitState, HostError> {
        let state = self.systemd.state(unit).await;
        match state.map_err(|fault| HostError::new(format!("read the state of `{unit}`"), fault))? {
            // systemd forgets a unit that ended well; the file is still there to be started.
            UnitState::Absent if own(unit).is_ok() && self.layout.unit_file(unit).exists() => {
                Ok(UnitState::Dead { result: "success".to_owned() })
            }
            state => Ok(state),
        }
    }

    async fn unit_uid(&self, unit: &UnitName) -> Result<Option<u32>, HostError> {
        match self.unit_state(unit).await? {
            UnitState::Active { pid } => Ok(proc::uid_of(pid)),
            _ => Ok(None),
        }
    }

    async fn journal_tail(&self, unit: &UnitName, lines: usize) -> Result<Vec<String>, HostError> {
        let action = || format!("read the journal of `{unit}`");
        let (layout, name) = (self.layout.clone(), unit.clone());
        let redactions = blocking(action, move || Redactions::of_unit(&layout, &name)).await?;
        let tail = journal::tail(unit, lines, &redactions).await;
        tail.map_err(|fault| HostError::new(action(), fault))
    }

    async fn listener(&self, port: Port) -> Result<Listener, HostError> {
        blocking(|| format!("look for listeners on port {port}"), move || Ok(tcp::listener(port)?)).await
    }

    async fn own_units(&self) -> Result<Vec<UnitName>, HostError> {
        Ok(self.units().await?.into_keys().collect())
    }

    async fn ensure_site_link(&self, link: &SiteLink, to: &StorePath) -> Result<(), HostError> {
        let (path, target) = (self.layout.site_link(link), PathBuf::from(to.as_str()));
        let action = || format!("link the site {} of {} ({})", link.site, link.project, link.slug);
        blocking(action, move || Ok(upkeep::link_site(&path, &target)?)).await
    }

    async fn remove_site_link(&self, link: &SiteLink) -> Result<(), HostError> {
        let (path, top) = (self.layout.site_link(link), self.layout.sites_dir());
        let work = move || Ok(upkeep::unlink_site(&path, &top)?);
        blocking(|| format!("unlink the site {} of {} ({})", link.site, link.project, link.slug), work).await
    }

    async fn remove_data_dir(
        &self,
        project: &ProjectName,
        slug: &BranchSlug,
        service: &ServiceName,
    ) -> Result<(), HostError> {
        let action = || format!("remove the data of {service} of {project} ({slug})");
        let (layout, names) = (self.layout.clone(), (project.clone(), slug.clone(), service.clone()));
        blocking(action, move || Ok(upkeep::trash_data_dir(&layout, &names.0, &names.1, &names.2)?)).await
    }

    async fn ensure_gc_root(&self, build: BuildId, name: &ServiceName, path: &StorePath) -> Result<(), HostError> {
        let made = roots::ensure(&self.layout.gc_root(build, name), path).await;
        made.map_err(|fault| HostError::new(format!("keep `{path}` for {name} of build {build}"), fault))
    }

    async fn remove_gc_root(&self, build: BuildId, name: &ServiceName) -> Result<(), HostError> {
        let root = self.layout.gc_root(build, name);
        blocking(|| format!("let go of {name} of build {build}"), move || Ok(files::remove(&root)?)).await
    }

    async fn ensure_build_dirs(&self, build: BuildId, job: &BuildJob) -> Result<(), HostError> {
        let job = serde_json::to_vec_pretty(job);
        let (work_dir, log_dir) = (self.layout.work_dir(build), self.layout.log_dir(build));
        let ((uid, gid), log_gid) = (self.build_ids, self.log_gid);
        let work = move || {
            let job = job?;
            // Who follows the build may look for it already.
            files::ensure_dir_of(&log_dir, 0o750, uid, log_gid.unwrap_or(gid))?;
            files::ensure_dir(&work_dir, 0o700)?;
            // Before it is the build user's, so that it is never without.
            files::replace(&work_dir.join("job.json"), &job, 0o444)?;
            Ok(chown(&work_dir, Some(uid), Some(gid))?)
        };
        blocking(|| format!("make the directories of build {build}"), work).await
    }

    async fn start_build(&self, spec: &BuildUnitSpec) -> Result<(), HostError> {
        let unit = spec.unit();
        let action = || format!("start the unit `{unit}`");
        if !matches!(self.unit_state(&unit).await?, UnitState::Dead { .. } | UnitState::Absent) {
            return Ok(());
        }
        let properties = build_unit(&self.layout, &self.limits, spec);
        let properties = properties.map_err(|error| HostError::new(action(), error))?;
        let report = self.layout.work_dir(spec.build).join(report_name(spec.phase));
        blocking(action, move || Ok(files::remove(&report)?)).await?;
        let started = self.systemd.start_transient(&unit, &properties).await;
        started.map_err(|fault| HostError::new(action(), fault))
    }

    async fn release_build(&self, build: BuildId) -> Result<(), HostError> {
        let mark = self.layout.work_dir(build).join(RELEASED);
        blocking(|| format!("release build {build}"), move || Ok(files::replace(&mark, b"", 0o444)?)).await
    }

    async fn wait_unit(&self, unit: &UnitName) -> Result<UnitState, HostError> {
        let ended = self.systemd.wait(unit).await;
        ended.map_err(|fault| HostError::new(format!("wait for the unit `{unit}`"), fault))
    }

    async fn build_report(&self, build: BuildId, phase: BuildPhase) -> Result<Option<Vec<u8>>, HostError> {
        let (dir, name) = (self.layout.work_dir(build), report_name(phase));
        let read = move || Ok(files::read_bounded(&dir, name, REPORT_MAX_BYTES)?);
        blocking(|| format!("read `{name}` of build {build}"), read).await
    }

    async fn build_output(&self, build: BuildId, name: &ServiceName) -> Result<StorePath, HostError> {
        let (dir, link) = (self.layout.work_dir(build), name.clone());
        let read = move || upkeep::read_output(&dir, link.as_str());
        blocking(|| format!("find what build {build} made of {name}"), read).await
    }

    async fn remove_work_dir(&self, build: BuildId) -> Result<(), HostError> {
        let dir = self.layout.work_dir(build);
        blocking(|| format!("remove the work directory of build {build}"), move || Ok(files::remove_tree(&dir)?)).await
    }

    async fn remove_log_dir(&self, build: BuildId) -> Result<(), HostError> {
        let dir = self.layout.log_dir(build);
        blocking(|| format!("remove the logs of build {build}"), move || Ok(files::remove_tree(&dir)?)).await
    }

    async fn empty_trash(&self, older_than: Duration) -> Result<(), HostError> {
        let layout = self.layout.clone();
        blocking(|| "empty the trash".to_owned(), move || Ok(upkeep::empty_trash(&layout, older_than)?)).await
    }

    async fn remove_remains(&self) -> Result<(), HostError> {
        let layout = self.layout.clone();
        blocking(|| "remove what a crash left".to_owned(), move || Ok(upkeep::remove_remains(&layout)?)).await
    }

    async fn inventory(&self) -> Result<Inventory, HostError> {
        let units = self.units().await?;
        let running = units.iter().filter(|(_, runs)| **runs).map(|(unit, _)| unit.clone()).collect();
        let layout = self.layout.clone();
        let action = || "look through kennel's directories".to_owned();
        let found = blocking(action, move || Ok(upkeep::inventory(&layout)?)).await?;
        Ok(Inventory { units: units.into_keys().collect(), running, ..found })
    }

    async fn disk_space(&self) -> Result<Vec<DiskSpace>, HostError> {
        let places = [self.layout.state_dir.clone(), PathBuf::from(NIX_STORE)];
        let look = move || Ok(places.iter().map(|place| DiskSpace::of(place)).collect::<io::Result<_>>()?);
        blocking(|| "see how much room is on disk".to_owned(), look).await
    }

    async fn closure(&self, paths: &[StorePath]) -> Result<Paths, HostError> {
        let asked = garbage::closure(paths).await;
        asked.map_err(|fault| HostError::new("see what artifacts cost in the Nix store", fault))
    }

    async fn garbage(&self, released: &[StorePath]) -> Result<Vec<PathInfo>, HostError> {
        let asked = garbage::garbage(released).await;
        asked.map_err(|fault| HostError::new("see what can go from the Nix store", fault))
    }

    async fn free_garbage(&self, released: &[StorePath]) -> Result<Freed, HostError> {
        garbage::free(released).await.map_err(|fault| HostError::new("free what the Nix store keeps for nobody", fault))
    }
}
