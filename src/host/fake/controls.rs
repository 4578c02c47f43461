//! What a test does to the machine, and what it sees of it.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use tokio::sync::watch;

use super::server::Running;
use super::{Behaviour, FakeMachine, Inventory, SiteLink, State, UnitState};
use crate::model::{BranchSlug, BuildId, Port, ProjectName, ServiceName, StorePath, UnitName};

/// Declares one operation for each method of the trait.
macro_rules! ops {
    ($($op:ident),+ $(,)?) => {
        /// A method of [`Machine`](crate::host::Machine), by name.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Op {
            $(#[doc = concat!("The method that `", stringify!($op), "` is named after.")] $op),+
        }

        impl Op {
            /// Every operation.
            pub const ALL: &'static [Self] = &[$(Self::$op),+];
        }
    };
}

ops! {
    SecretFingerprints,
    EnsureEnvFile, EnsureUnit, StartUnit, StopUnit, RemoveUnit, UnitState, UnitUid, JournalTail, Listener, OwnUnits,
    EnsureSiteLink, RemoveSiteLink, RemoveDataDir, EnsureGcRoot, RemoveGcRoot, EnsureBuildDirs, StartBuild,
    ReleaseBuild, WaitUnit, BuildReport, BuildOutput, RemoveWorkDir, RemoveLogDir, EmptyTrash,
    RemoveRemains, Inventory, DiskSpace, Closure, Garbage, FreeGarbage,
}

/// What goes wrong with one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It does nothing and fails.
    Fail,
    /// It does nothing and never returns.
    HangBefore,
    /// It does what it should and never returns: as if the daemon were killed there.
    HangAfter,
}

/// Faults that are due.
#[derive(Default)]
pub(super) struct Faults {
    calls: BTreeMap<Op, usize>,
    due: Vec<(Op, usize, Fault, Gate)>,
}

impl Faults {
    /// Counts a call, and gives the fault that is due for it.
    pub(super) fn next(&mut self, op: Op) -> Option<(Fault, Gate)> {
        let calls = self.calls.entry(op).or_default();
        *calls += 1;
        let at = self.due.iter().position(|due| (due.0, due.1) == (op, *calls))?;
        let (_, _, fault, gate) = self.due.swap_remove(at);
        Some((fault, gate))
    }
}

/// Holds something until it is opened. Clones are the same gate.
#[derive(Debug, Clone)]
pub struct Gate {
    open: watch::Sender<bool>,
    reached: watch::Sender<bool>,
}

impl Default for Gate {
    fn default() -> Self {
        Self { open: watch::Sender::new(false), reached: watch::Sender::new(false) }
    }
}

impl Gate {
    /// A closed gate.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets pass whoever comes, now and later.
    pub fn open(&self) {
        self.open.send_replace(true);
    }

    /// Returns once somebody stands before it.
    pub async fn reached(&self) {
        // The sender is ours: it cannot be gone.
        let _ = self.reached.subscribe().wait_for(|&reached| reached).await;
    }

    /// Returns once it is open.
    pub async fn pass(&self) {
        self.reached.send_replace(true);
        let _ = self.open.subscribe().wait_for(|&open| open).await;
    }
}

/// Tells when a call hangs.
#[derive(Debug)]
pub struct Reached(Gate);

impl Reached {
    /// Returns once the call hangs.
    pub async fn wait(self) {
        self.0.pass().await;
    }
}

/// Everything that is left on the machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Unit files.
    pub unit_files: Vec<UnitName>,
    /// Units that run or that systemd remembers, of deployments and builds.
    pub units: Vec<UnitName>,
    /// The units whose environment files there are.
    pub env_files: Vec<UnitName>,
    /// Links to static sites, and where they lead.
    pub site_links: BTreeMap<(ProjectName, BranchSlug, ServiceName), StorePath>,
    /// Roots, and what they keep.
    pub gc_roots: BTreeMap<(BuildId, ServiceName), StorePath>,
    /// Data directories of services.
    pub data_dirs: Vec<(ProjectName, BranchSlug, ServiceName)>,
    /// Data directories in the trash.
    pub trash: Vec<(ProjectName, BranchSlug, ServiceName)>,
    /// Work directories of builds.
    pub work_dirs: Vec<BuildId>,
    /// Log directories of builds.
    pub log_dirs: Vec<BuildId>,
}

impl State {
    pub(super) fn own_units(&self) -> Vec<UnitName> {
        let all = self.unit_files.keys().chain(self.env_files.keys()).chain(self.running.keys());
        let mut units: Vec<UnitName> = all.chain(self.build_units.keys()).cloned().collect();
        units.sort();
        units.dedup();
        units
    }

    pub(super) fn inventory(&self) -> Inventory {
        let links = self.site_links.iter();
        let links = links.map(|((project, slug, site), to)| {
            let (project, slug, site) = (project.clone(), slug.clone(), site.clone());
            (SiteLink { project, slug, site }, Some(to.clone()))
        });
        let units = self.own_units();
        let down = |unit: &UnitName| matches!(self.unit_state(unit), UnitState::Absent | UnitState::Dead { .. });
        Inventory {
            running: units.iter().filter(|unit| !down(unit)).cloned().collect(),
            units,
            gc_roots: self.gc_roots.keys().cloned().collect(),
            whole_units: self.unit_files.keys().filter(|unit| self.env_files.contains_key(unit)).cloned().collect(),
            site_links: links.collect(),
            data_dirs: self.data_dirs.iter().cloned().collect(),
            work_dirs: self.jobs.keys().copied().collect(),
            log_dirs: self.log_dirs.iter().copied().collect(),
        }
    }
}

impl FakeMachine {
    /// Everything that is left.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let state = self.state();
        Snapshot {
            unit_files: state.unit_files.keys().cloned().collect(),
            units: state.running.keys().chain(state.build_units.keys()).cloned().collect(),
            env_files: state.env_files.keys().cloned().collect(),
            site_links: state.site_links.clone(),
            gc_roots: state.gc_roots.clone(),
            data_dirs: state.data_dirs.iter().cloned().collect(),
            trash: state.trash.clone(),
            work_dirs: state.jobs.keys().copied().collect(),
            log_dirs: state.log_dirs.iter().copied().collect(),
        }
    }

    /// The variables of a unit whose environment file there is.
    #[must_use]
    pub fn env(&self, unit: &UnitName) -> Option<BTreeMap<String, String>> {
        self.state().env_files.get(unit).cloned()
    }

    /// What programs of this store path do from their next start on.
    pub fn set_behaviour(&self, path: &StorePath, behaviour: Behaviour) {
        self.state().behaviours.insert(path.clone(), behaviour);
    }

    /// Has the port listened on by a user that is not the unit's, or no longer.
    pub fn squat(&self, port: Port, uid: Option<u32>) {
        let mut state = self.state();
        match uid {
            Some(uid) => state.foreign.insert(port, uid),
            None => state.foreign.remove(&port),
        };
    }

    /// Has the program of a unit that runs answer with this status from now on.
    pub fn answer_with(&self, unit: &UnitName, status: u16) {
        if let Some(Running::Active(program)) = self.state().running.get(unit) {
            program.status.store(status, Ordering::Relaxed);
        }
    }

    /// Leaves only so many bytes free on the disk.
    pub fn leave_free(&self, bytes: u64) {
        self.state().used = (1 << 50) - bytes;
    }

    /// Puts a path into the store, of so many bytes, that refers to others.
    pub fn put(&self, path: &StorePath, bytes: u64, references: &[StorePath]) {
        self.state().store.put(path, bytes, references);
    }

    /// Whether the store has a path.
    #[must_use]
    pub fn has(&self, path: &StorePath) -> bool {
        self.state().store.has(path)
    }

    /// How often the operation has been called.
    #[must_use]
    pub fn calls(&self, op: Op) -> usize {
        self.state().faults.calls.get(&op).copied().unwrap_or_default()
    }

    /// Has the `n`-th call from now, the next being the first, go wrong. The answer tells when it hangs.
    pub fn fault(&self, op: Op, n: usize, fault: Fault) -> Reached {
        let mut state = self.state();
        let call = state.faults.calls.get(&op).copied().unwrap_or_default() + n;
        let gate = Gate::new();
        state.faults.due.push((op, call, fault, gate.clone()));
        Reached(gate)
    }

    /// Takes back all faults that have not come to pass.
    pub fn clear_faults(&self) {
        self.state().faults.due.clear();
    }
}
