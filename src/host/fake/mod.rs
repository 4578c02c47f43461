//! A machine in memory, for tests of the whole daemon in one process.
//!
//! It is stateful: units, files, roots and builds stay when the daemon that made them is gone, since clones are
//! handles to the same machine. Units listen for real, on the loopback port allotted to them. Nothing in it
//! waits for a time to pass, except a unit told to be [`Behaviour::Slow`].

mod builds;
mod controls;
mod server;
mod store;
mod units;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use nix::fcntl::Flock;
use tokio::sync::watch;
use tokio::task::JoinSet;

pub use self::controls::{Fault, Gate, Op, Reached, Snapshot};
use self::server::Running;
use super::closure::{Freed, PathInfo, Paths};
use super::disk::DiskSpace;
use super::key::HostKey;
use super::machine::render::env::env_file;
use super::machine::secrets;
use super::{
    BuildJob, BuildPhase, BuildUnitSpec, HostError, Inventory, Listener, Machine, SecretFiles, SiteLink, UnitSpec,
    UnitState,
};
use crate::model::{BranchSlug, BuildId, Environment, Port, ProjectName, ServiceName, StorePath, UnitName};

/// What a program does once its unit is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Behaviour {
    /// It answers 200 with its deployment and store path in the body.
    #[default]
    Healthy,
    /// It answers every request with this status.
    Answers(u16),
    /// It ends with this status before it listens; systemd starts it again and again.
    ExitsAtOnce(i32),
    /// systemd cannot start it: there is no such program.
    CannotStart,
    /// It runs and never listens.
    NeverListens,
    /// It listens after this long.
    Slow(Duration),
    /// It refuses to end: stopping it fails.
    RefusesToStop,
}

/// What the worker of one build does.
#[derive(Debug, Clone, Default)]
pub struct FakeBuild {
    /// What it reports of the fetch; `None`: it dies without a report.
    pub fetch: Option<Vec<u8>>,
    /// What it reports of the build; `None`: it dies without a report.
    pub build: Option<Vec<u8>>,
    /// The store path behind each link it leaves.
    pub outputs: BTreeMap<ServiceName, StorePath>,
    /// Held closed, it keeps the build running.
    pub gate: Option<Gate>,
    /// How many of its units end before their work begins.
    pub stillborn: usize,
}

/// Tells what becomes of a build.
type Worker = dyn Fn(&BuildJob) -> FakeBuild + Send + Sync;

/// A handle to a machine in memory.
#[derive(Clone)]
pub struct FakeMachine {
    inner: Arc<Inner>,
}

struct Inner {
    worker: Box<Worker>,
    state: Mutex<State>,
    /// Rings when a unit's state changes.
    changed: watch::Sender<()>,
    /// What units and builds do.
    tasks: Mutex<JoinSet<()>>,
}

#[derive(Default)]
struct State {
    unit_files: BTreeMap<UnitName, UnitSpec>,
    env_files: BTreeMap<UnitName, BTreeMap<String, String>>,
    running: BTreeMap<UnitName, Running>,
    journal: BTreeMap<UnitName, Vec<String>>,
    site_links: BTreeMap<(ProjectName, BranchSlug, ServiceName), StorePath>,
    gc_roots: BTreeMap<(BuildId, ServiceName), StorePath>,
    data_dirs: BTreeSet<(ProjectName, BranchSlug, ServiceName)>,
    trash: Vec<(ProjectName, BranchSlug, ServiceName)>,
    jobs: BTreeMap<BuildId, BuildJob>,
    /// What the worker of each build does, asked once.
    plans: BTreeMap<BuildId, FakeBuild>,
    log_dirs: BTreeSet<BuildId>,
    released: BTreeSet<BuildId>,
    reports: BTreeMap<(BuildId, BuildPhase), Vec<u8>>,
    outputs: BTreeMap<BuildId, BTreeMap<ServiceName, StorePath>>,
    build_units: BTreeMap<UnitName, tokio::task::AbortHandle>,
    behaviours: BTreeMap<StorePath, Behaviour>,
    foreign: BTreeMap<Port, u32>,
    /// Ports that this machine has to itself among all machines in memory on this host.
    ports: BTreeMap<Port, Flock<File>>,
    store: store::FakeStore,
    /// How many bytes of the disk are not free.
    used: u64,
    faults: controls::Faults,
}

impl std::fmt::Debug for FakeMachine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("FakeMachine").field(&self.snapshot()).finish()
    }
}

impl FakeMachine {
    /// A machine with nothing on it, whose builds do what `worker` says.
    pub fn new(worker: impl Fn(&BuildJob) -> FakeBuild + Send + Sync + 'static) -> Self {
        let inner = Inner {
            worker: Box::new(worker),
            state: Mutex::default(),
            changed: watch::Sender::new(()),
            tasks: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> tokio::task::AbortHandle {
        self.inner.tasks.lock().unwrap_or_else(PoisonError::into_inner).spawn(task)
    }

    /// Does `act`, unless a fault is due.
    async fn act<T>(&self, op: Op, act: impl AsyncFnOnce() -> Result<T, HostError>) -> Result<T, HostError> {
        let due = self.state().faults.next(op);
        match due {
            None => act().await,
            Some((Fault::Fail, _)) => Err(HostError::new(format!("do `{op:?}`"), "the test wants it to fail")),
            Some((Fault::HangBefore, reached)) => {
                reached.open();
                std::future::pending().await
            }
            Some((Fault::HangAfter, reached)) => {
                act().await?;
                reached.open();
                std::future::pending().await
            }
        }
    }
}

#[async_trait]
impl Machine for FakeMachine {
    async fn secret_fingerprints(
        &self,
        key: &HostKey,
        _project: &ProjectName,
        _environment: Environment,
        secrets: &SecretFiles,
    ) -> Result<BTreeMap<String, String>, HostError> {
        self.act(Op::SecretFingerprints, async || {
            secrets::fingerprints(key, secrets).map_err(|fault| HostError::new("read its secrets", fault))
        })
        .await
    }

    async fn ensure_env_file(&self, spec: &UnitSpec) -> Result<(), HostError> {
        self.act(Op::EnsureEnvFile, async || {
            let refuse = |fault| HostError::new(format!("write the environment of `{}`", spec.unit()), fault);
            let env = secrets::with_values(spec.env.clone(), &spec.secrets).map_err(refuse)?;
            env_file(&env).map_err(|error| refuse(error.into()))?;
            self.state().env_files.insert(spec.unit(), env);
            Ok(())
        })
        .await
    }

    async fn ensure_unit(&self, spec: &UnitSpec) -> Result<(), HostError> {
        self.act(Op::EnsureUnit, async || {
            self.state().unit_files.insert(spec.unit(), spec.clone());
            Ok(())
        })
        .await
    }

    async fn start_unit(&self, unit: &UnitName) -> Result<(), HostError> {
        self.act(Op::StartUnit, async || self.start(unit).await).await
    }

    async fn stop_unit(&self, unit: &UnitName) -> Result<(), HostError> {
        self.act(Op::StopUnit, async || self.stop(unit).await).await
    }

    async fn remove_unit(&self, unit: &UnitName) -> Result<(), HostError> {
        self.act(Op::RemoveUnit, async || {
            self.forget(unit);
            Ok(())
        })
        .await
    }

    async fn unit_state(&self, unit: &UnitName) -> Result<UnitState, HostError> {
        self.act(Op::UnitState, async || Ok(self.state().unit_state(unit))).await
    }

    async fn unit_uid(&self, unit: &UnitName) -> Result<Option<u32>, HostError> {
        self.act(Op::UnitUid, async || Ok(self.state().uid(unit))).await
    }

    async fn journal_tail(&self, unit: &UnitName, lines: usize) -> Result<Vec<String>, HostError> {
        self.act(Op::JournalTail, async || {
            let journal = self.state().journal.get(unit).cloned().unwrap_or_default();
            Ok(journal[journal.len().saturating_sub(lines)..].to_vec())
        })
        .await
    }

    async fn listener(&self, port: Port) -> Result<Listener, HostError> {
        self.act(Op::Listener, async || self.listener_of(port)).await
    }

    async fn own_units(&self) -> Result<Vec<UnitName>, HostError> {
        self.act(Op::OwnUnits, async || Ok(self.state().own_units())).await
    }

    async fn ensure_site_link(&self, link: &SiteLink, to: &StorePath) -> Result<(), HostError> {
        self.act(Op::EnsureSiteLink, async || {
            let key = (link.project.clone(), link.slug.clone(), link.site.clone());
            self.state().site_links.insert(key, to.clone());
            Ok(())
        })
        .await
    }

    async fn remove_site_link(&self, link: &SiteLink) -> Result<(), HostError> {
        self.act(Op::RemoveSiteLink, async || {
            self.state().site_links.remove(&(link.project.clone(), link.slug.clone(), link.site.clone()));
            Ok(())
        })
        .await
    }

    async fn remove_data_dir(
        &self,
        project: &ProjectName,
        slug: &BranchSlug,
        service: &ServiceName,
    ) -> Result<(), HostError> {
        self.act(Op::RemoveDataDir, async || {
            let (mut state, key) = (self.state(), (project.clone(), slug.clone(), service.clone()));
            if state.data_dirs.remove(&key) {
                state.trash.push(key);
            }
            Ok(())
        })
        .await
    }

    async fn ensure_gc_root(&self, build: BuildId, name: &ServiceName, path: &StorePath) -> Result<(), HostError> {
        self.act(Op::EnsureGcRoot, async || {
            let mut state = self.state();
            state.store.add(path);
            state.gc_roots.insert((build, name.clone()), path.clone());
            Ok(())
        })
        .await
    }

    async fn remove_gc_root(&self, build: BuildId, name: &ServiceName) -> Result<(), HostError> {
        self.act(Op::RemoveGcRoot, async || {
            self.state().gc_roots.remove(&(build, name.clone()));
            Ok(())
        })
        .await
    }

    async fn ensure_build_dirs(&self, build: BuildId, job: &BuildJob) -> Result<(), HostError> {
        self.act(Op::EnsureBuildDirs, async || {
            let mut state = self.state();
            state.jobs.insert(build, job.clone());
            state.log_dirs.insert(build);
            Ok(())
        })
        .await
    }

    async fn start_build(&self, spec: &BuildUnitSpec) -> Result<(), HostError> {
        self.act(Op::StartBuild, async || self.start_worker(spec)).await
    }

    async fn release_build(&self, build: BuildId) -> Result<(), HostError> {
        self.act(Op::ReleaseBuild, async || {
            self.state().released.insert(build);
            self.inner.changed.send_replace(());
            Ok(())
        })
        .await
    }

    async fn wait_unit(&self, unit: &UnitName) -> Result<UnitState, HostError> {
        self.act(Op::WaitUnit, async || Ok(self.wait(unit).await)).await
    }

    async fn build_report(&self, build: BuildId, phase: BuildPhase) -> Result<Option<Vec<u8>>, HostError> {
        self.act(Op::BuildReport, async || Ok(self.state().reports.get(&(build, phase)).cloned())).await
    }

    async fn build_output(&self, build: BuildId, name: &ServiceName) -> Result<StorePath, HostError> {
        self.act(Op::BuildOutput, async || {
            let path = self.state().outputs.get(&build).and_then(|outputs| outputs.get(name)).cloned();
            path.ok_or_else(|| {
                HostError::new(format!("find what build {build} made of {name}"), "the worker left no link")
            })
        })
        .await
    }

    async fn remove_work_dir(&self, build: BuildId) -> Result<(), HostError> {
        self.act(Op::RemoveWorkDir, async || {
            self.state().remove_work_dir(build);
            Ok(())
        })
        .await
    }

    async fn remove_log_dir(&self, build: BuildId) -> Result<(), HostError> {
        self.act(Op::RemoveLogDir, async || {
            self.state().log_dirs.remove(&build);
            Ok(())
        })
        .await
    }

    async fn remove_remains(&self) -> Result<(), HostError> {
        // There are none in memory.
        self.act(Op::RemoveRemains, async || Ok(())).await
    }

    async fn empty_trash(&self, _older_than: Duration) -> Result<(), HostError> {
        self.act(Op::EmptyTrash, async || {
            self.state().trash.clear();
            Ok(())
        })
        .await
    }

    async fn inventory(&self) -> Result<Inventory, HostError> {
        self.act(Op::Inventory, async || Ok(self.state().inventory())).await
    }

    async fn disk_space(&self) -> Result<Vec<DiskSpace>, HostError> {
        self.act(Op::DiskSpace, async || {
            let (place, size) = (PathBuf::from("/nix/store"), 1 << 50);
            Ok(vec![DiskSpace { place, free: size - self.state().used, size }])
        })
        .await
    }

    async fn closure(&self, paths: &[StorePath]) -> Result<Paths, HostError> {
        self.act(Op::Closure, async || Ok(self.state().store.closure(paths))).await
    }

    async fn garbage(&self, released: &[StorePath]) -> Result<Vec<PathInfo>, HostError> {
        self.act(Op::Garbage, async || {
            let state = self.state();
            Ok(state.store.garbage(released, state.gc_roots.values()))
        })
        .await
    }

    async fn free_garbage(&self, released: &[StorePath]) -> Result<Freed, HostError> {
        self.act(Op::FreeGarbage, async || {
            let state = &mut *self.state();
            Ok(state.store.free(released, state.gc_roots.values()))
        })
        .await
    }
}
