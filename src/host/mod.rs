//! One thing done to this machine at a time, each idempotent: units, files, links, roots, probes.
//!
//! Callers hand over typed specifications and names, never a path, a rendered unit or a command,
//! so that what needs root can one day sit behind a socket.
//!
//! **Invariant:** nothing here reads or writes the database.

pub mod cache;
pub mod closure;
pub mod disk;
pub(crate) mod files;
pub mod key;
pub mod machine;
pub mod remote;
pub mod services;
pub mod tcp;

pub mod fake;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::closure::{Freed, PathInfo, Paths};
use self::disk::DiskSpace;
use self::key::HostKey;
use crate::model::confinement::Confinement;
use crate::model::{
    BranchRef, BranchSlug, BuildId, CommitSha, DeploymentId, Environment, Port, ProgramName, ProjectName, ServiceName,
    StorePath, TargetTag, UnitName, UserName,
};

/// Everything needed to render the unit and the environment file of one deployment of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnitSpec {
    /// The project it belongs to, and so its slice.
    pub project: ProjectName,
    /// The branch, of which its names are made.
    pub branch: BranchRef,
    /// The environment whose secrets it gets.
    pub environment: Environment,
    /// The branch's short name, for its data directory.
    pub slug: BranchSlug,
    /// The service's name, for its data directory.
    pub service: ServiceName,
    /// The stem of its names.
    pub tag: TargetTag,
    /// The user it runs as, allocated by systemd.
    pub user: UserName,
    /// Which version this is.
    pub deployment: DeploymentId,
    /// The only port it may listen on.
    pub port: Port,
    /// Where its program lies.
    pub store_path: StorePath,
    /// The program, below `bin/`.
    pub program: ProgramName,
    /// Its whole environment but its secrets, kennel's own variables included.
    pub env: BTreeMap<String, String>,
    /// The files of its secrets, by name. What they hold is read where the unit is made, and nowhere else.
    #[serde(with = "remote::names_only")]
    pub secrets: SecretFiles,
    /// What it is kept in.
    pub confinement: Confinement,
}

/// The operator's files of a service's secrets, by name.
pub type SecretFiles = BTreeMap<String, PathBuf>;

impl UnitSpec {
    /// The unit's name.
    #[must_use]
    pub fn unit(&self) -> UnitName {
        self.tag.unit(self.deployment)
    }
}

/// A static site's link, for people to look at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SiteLink {
    /// The project it belongs to.
    pub project: ProjectName,
    /// The branch's short name.
    pub slug: BranchSlug,
    /// The site's name.
    pub site: ServiceName,
}

/// Which half of a build a unit does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BuildPhase {
    /// Fetch the commit: has the credentials, evaluates nothing.
    Fetch,
    /// Read kennel.toml and run Nix: has no credentials. May be started beside the fetch, and begins once released.
    Build,
}

/// The file in a build's work directory whose presence releases [`BuildPhase::Build`].
pub const RELEASED: &str = "released";

/// The variable of a fetch with credentials that says where it may go with them, whatever its job says.
pub const REPO_URL: &str = "KENNEL_REPO_URL";
/// How long a fetch may take, in seconds.
pub const FETCH_TIMEOUT_SECS: u64 = 600;
/// What the build unit gets beyond the time limit of Nix itself, in seconds.
const GRACE_SECS: u64 = 30;

/// How long the second half of a build may take, in seconds: it waits for the first, and then for Nix, which has a limit.
#[must_use]
pub fn build_timeout_secs(nix_secs: u64) -> u64 {
    FETCH_TIMEOUT_SECS.saturating_add(nix_secs).saturating_add(GRACE_SECS)
}

/// Everything needed to start one half of a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildUnitSpec {
    /// Which build.
    pub build: BuildId,
    /// Whose.
    pub project: ProjectName,
    /// Which half.
    pub phase: BuildPhase,
    /// Files of the operator's that the fetch may read: credential name and path.
    pub credentials: Vec<(&'static str, PathBuf)>,
    /// Where it may go with them.
    pub repo_url: String,
    /// After how many seconds systemd ends it.
    pub timeout_secs: u64,
}

impl BuildUnitSpec {
    /// The unit's name.
    #[must_use]
    pub fn unit(&self) -> UnitName {
        match self.phase {
            BuildPhase::Fetch => UnitName::fetch(self.build),
            BuildPhase::Build => UnitName::build(self.build),
        }
    }
}

/// What systemd says of a unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnitState {
    /// It runs; the main process's id and user.
    Active {
        /// The main process.
        pid: u32,
    },
    /// It is on its way up.
    Activating,
    /// It ended by itself and waits to be started again; why it ended, in systemd's words.
    Restarting {
        /// `Result` of the unit, with its exit status.
        result: String,
    },
    /// It is on its way down.
    Deactivating,
    /// It does not run; why, in systemd's words, such as `exit-code, status 1`.
    Dead {
        /// `Result` of the unit, with its exit status; `success` when it ended well or never ran.
        result: String,
    },
    /// systemd does not know it.
    Absent,
}

/// What lies on the machine under kennel's own names, for the reconciler to compare with rows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// Units of deployments and builds, as [`Machine::own_units`] tells.
    pub units: Vec<UnitName>,
    /// Those of them that run, or are on their way up or down.
    pub running: BTreeSet<UnitName>,
    /// Roots that keep an artifact.
    pub gc_roots: Vec<(BuildId, ServiceName)>,
    /// Units of deployments with both their unit file and their environment file.
    pub whole_units: BTreeSet<UnitName>,
    /// Links to static sites, and where they lead, if that is a store path.
    pub site_links: Vec<(SiteLink, Option<StorePath>)>,
    /// Data directories of services.
    pub data_dirs: Vec<(ProjectName, BranchSlug, ServiceName)>,
    /// Work directories of builds.
    pub work_dirs: Vec<BuildId>,
    /// Log directories of builds.
    pub log_dirs: Vec<BuildId>,
}

/// The listener of a port, as the kernel tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listener {
    /// Nobody listens.
    None,
    /// A socket that belongs to this user id.
    Owned {
        /// The user id.
        uid: u32,
    },
}

/// An act on the machine that did not succeed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action}")]
pub struct HostError {
    /// What was to be done, with the thing's name: `start unit kennel-…`.
    pub action: String,
    /// Why not.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl HostError {
    /// An act that did not succeed, and why.
    pub fn new(action: impl Into<String>, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { action: action.into(), source: source.into() }
    }
}

/// What kennel can do to the machine that needs root: real in [`machine`], asked for over a socket in [`remote`], a
/// stateful stand-in in [`fake`].
#[async_trait::async_trait]
pub trait Machine: Send + Sync + 'static {
    /// Fingerprints of what the files of secrets hold, by name and keyed, so that they tell a change and nothing else.
    async fn secret_fingerprints(
        &self,
        key: &HostKey,
        project: &ProjectName,
        environment: Environment,
        secrets: &SecretFiles,
    ) -> Result<BTreeMap<String, String>, HostError>;
    /// Writes the environment file of a deployment (root, 0400) with what its secrets hold now, whole or not at all.
    async fn ensure_env_file(&self, spec: &UnitSpec) -> Result<(), HostError>;
    /// Writes the unit file of a deployment, whole or not at all.
    async fn ensure_unit(&self, spec: &UnitSpec) -> Result<(), HostError>;
    /// Starts the unit unless it runs, and returns when systemd's job is done: not yet proof that it stays up.
    async fn start_unit(&self, unit: &UnitName) -> Result<(), HostError>;
    /// Stops the unit, if there is one, and returns when none of its processes is left.
    async fn stop_unit(&self, unit: &UnitName) -> Result<(), HostError>;
    /// Removes unit file and environment file of a stopped unit, and what systemd remembers of it.
    async fn remove_unit(&self, unit: &UnitName) -> Result<(), HostError>;
    /// What systemd says of the unit now.
    async fn unit_state(&self, unit: &UnitName) -> Result<UnitState, HostError>;
    /// The user id behind a running unit's main process, or `None` when it does not run.
    async fn unit_uid(&self, unit: &UnitName) -> Result<Option<u32>, HostError>;
    /// The last lines the unit wrote to the journal, oldest first, with `[NAME]` in the place of each secret's value.
    async fn journal_tail(&self, unit: &UnitName, lines: usize) -> Result<Vec<String>, HostError>;
    /// Who gets what is sent to the port on 127.0.0.1; when nobody does, who listens on it at another address.
    async fn listener(&self, port: Port) -> Result<Listener, HostError>;
    /// Names of all units of kennel's own making of which systemd knows or a file is left: deployments and builds.
    async fn own_units(&self) -> Result<Vec<UnitName>, HostError>;

    /// Points the site's link at the path, by rename.
    async fn ensure_site_link(&self, link: &SiteLink, to: &StorePath) -> Result<(), HostError>;
    /// Removes the site's link, and directories left empty by that.
    async fn remove_site_link(&self, link: &SiteLink) -> Result<(), HostError>;
    /// Removes a service's data directory (by way of `trash/`), and directories left empty by that.
    async fn remove_data_dir(
        &self,
        project: &ProjectName,
        slug: &BranchSlug,
        service: &ServiceName,
    ) -> Result<(), HostError>;

    /// Keeps a store path from the garbage collector, for one artifact.
    async fn ensure_gc_root(&self, build: BuildId, name: &ServiceName, path: &StorePath) -> Result<(), HostError>;
    /// Lets go of it.
    async fn remove_gc_root(&self, build: BuildId, name: &ServiceName) -> Result<(), HostError>;

    /// Makes the work and log directories of a build, owned by the build user, with the job's description.
    async fn ensure_build_dirs(&self, build: BuildId, job: &BuildJob) -> Result<(), HostError>;
    /// Starts one half of a build in its transient unit, unless it runs already. What an earlier run
    /// of that half reported is removed first.
    async fn start_build(&self, spec: &BuildUnitSpec) -> Result<(), HostError>;
    /// Tells the build's second half, which waits for it, that the first has ended and its credentials are gone.
    async fn release_build(&self, build: BuildId) -> Result<(), HostError>;
    /// Returns once the unit does not run any more; at once when there is none. Tells how it ended, if systemd still knows.
    async fn wait_unit(&self, unit: &UnitName) -> Result<UnitState, HostError>;
    /// What the worker wrote of one half, or `None` when it has not finished. Follows no links; bounded.
    async fn build_report(&self, build: BuildId, phase: BuildPhase) -> Result<Option<Vec<u8>>, HostError>;
    /// What the link the worker left for one target points at: a store path, checked, that exists.
    async fn build_output(&self, build: BuildId, name: &ServiceName) -> Result<StorePath, HostError>;
    /// Removes the work directory of a build. Its logs stay.
    async fn remove_work_dir(&self, build: BuildId) -> Result<(), HostError>;
    /// Removes the logs of a build.
    async fn remove_log_dir(&self, build: BuildId) -> Result<(), HostError>;

    /// Removes for good what has lain in `trash/` for longer than this.
    async fn empty_trash(&self, older_than: Duration) -> Result<(), HostError>;
    /// Removes what a crash may leave where sites' links and services' data lie: links that were not put in place, and
    /// directories that hold nothing. To be called while nothing is made there.
    async fn remove_remains(&self) -> Result<(), HostError>;
    /// Everything on the machine that bears kennel's own names.
    async fn inventory(&self) -> Result<Inventory, HostError>;

    /// The file systems that a build fills: that of the state directory and that of the Nix store.
    async fn disk_space(&self) -> Result<Vec<DiskSpace>, HostError>;

    /// These paths and all they refer to, as far as they are in the store.
    async fn closure(&self, paths: &[StorePath]) -> Result<Paths, HostError>;
    /// What of the store nothing keeps any more and goes with these paths, which kennel has let go of.
    async fn garbage(&self, released: &[StorePath]) -> Result<Vec<PathInfo>, HostError>;
    /// Deletes that; what something keeps by then stays.
    async fn free_garbage(&self, released: &[StorePath]) -> Result<Freed, HostError>;
}

/// What a build unit is to do: written by the daemon, read by `kennel build-worker`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildJob {
    /// Which build.
    pub build: BuildId,
    /// Whose.
    pub project: ProjectName,
    /// Where the repository is.
    pub repo_url: String,
    /// What to ask the forge for when it will not give a single commit, such as `refs/heads/main`.
    pub remote_ref: String,
    /// The commit to build.
    pub commit: CommitSha,
    /// Nix's `allowed-uris`.
    pub allowed_uris: Vec<String>,
    /// Whether a flake may build while it is evaluated.
    pub allow_ifd: bool,
    /// How many of its services are built side by side.
    pub max_parallel: usize,
    /// The limit of one log file, in bytes.
    pub log_limit_bytes: u64,
    /// The limit of one `nix build`, in seconds.
    pub timeout_secs: u64,
}
