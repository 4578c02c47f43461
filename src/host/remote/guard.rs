//! Looks at each call on the side of root, and has the machine do those that may be done.
//!
//! **Invariant:** a file of the operator's is opened only when his own file names it for that very project and purpose;
//! units are touched only when their names are of kennel's making.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use tracing::warn;

use super::fault::Refusal;
use super::grants::{Granted, Grants};
use super::protocol::{Call, VERSION};
use crate::config::{self, Config, ProjectConfig};
use crate::host::key::HostKey;
use crate::host::machine::layout::OwnUnit;
use crate::host::{
    BuildJob, BuildPhase, BuildUnitSpec, FETCH_TIMEOUT_SECS, HostError, Machine, SecretFiles, UnitSpec,
    build_timeout_secs,
};
use crate::model::confinement::{Confinement, OptOut};
use crate::model::{BranchRef, BuildId, DeploymentId, Environment, ProjectName, TargetNames, UnitName};
use crate::telemetry::chain;

/// The most lines of a journal that are read at once.
const LINES_MAX: usize = 1_000;
/// What is in the trash stays there for as long as this, whoever asks.
const TRASH_MIN: Duration = Duration::from_secs(24 * 3_600);

/// What stands between the socket and the machine.
pub struct Guard {
    machine: Arc<dyn Machine>,
    key: HostKey,
    grants: Grants,
    config_path: PathBuf,
    /// The file as it was when it last had no fault.
    last: Mutex<Option<Arc<Config>>>,
}

fn told<T: Serialize>(done: Result<T, HostError>) -> Result<Value, Refusal> {
    let value = serde_json::to_value(done?);
    value.map_err(|error| HostError::new("write down the answer", error).into())
}

impl Guard {
    /// Before `machine`, for a daemon whose file is at `config_path`. What root has to remember lies in `state_dir`.
    ///
    /// # Errors
    /// When that cannot be read or made.
    pub async fn new(machine: Arc<dyn Machine>, config_path: &Path, state_dir: &Path) -> Result<Self, HostError> {
        let dir = state_dir.to_owned();
        let open = move || -> Result<_, Box<dyn std::error::Error + Send + Sync>> {
            Ok((HostKey::ensure(&dir)?, Grants::in_dir(dir.join("grants"))?))
        };
        let (key, grants) = blocking("open what root remembers of kennel", open).await?;
        Ok(Self { machine, key, grants, config_path: config_path.to_owned(), last: Mutex::default() })
    }

    /// Has a call done, if it may be.
    pub(super) async fn perform(&self, call: Call) -> Result<Value, Refusal> {
        let machine = &*self.machine;
        match call {
            Call::Hello { version: VERSION } => Ok(Value::Null),
            Call::Hello { version } => Err(Refusal::refused(format_args!(
                "the daemon's calls are of version {version}, and those of `kennel host` of version {VERSION}\n\
                 hint: systemctl restart kennel.service"
            ))),
            Call::SecretFingerprints { project, environment, secrets } => {
                let asked = secrets.into_iter().map(|name| (name, PathBuf::new())).collect();
                let files = self.files(&project, environment, &asked, &SecretFiles::new()).await?;
                told(machine.secret_fingerprints(&self.key, &project, environment, &files).await)
            }
            Call::EnsureEnvFile { spec } => told(machine.ensure_env_file(&self.resolved(spec).await?).await),
            Call::EnsureUnit { spec } => told(machine.ensure_unit(&self.resolved(spec).await?).await),
            Call::StartUnit { unit } => told(machine.start_unit(deployments(&unit)?).await),
            Call::StopUnit { unit } => told(machine.stop_unit(own(&unit)?).await),
            Call::RemoveUnit { unit } => {
                machine.remove_unit(own(&unit)?).await?;
                let grants = self.grants.clone();
                told(blocking("forget what a unit was given", move || Ok(grants.forget(&unit)?)).await)
            }
            Call::UnitState { unit } => told(machine.unit_state(own(&unit)?).await),
            Call::UnitUid { unit } => told(machine.unit_uid(own(&unit)?).await),
            Call::JournalTail { unit, lines } => told(machine.journal_tail(own(&unit)?, lines.min(LINES_MAX)).await),
            Call::OwnUnits {} => told(machine.own_units().await),
            Call::EnsureSiteLink { link, to } => told(machine.ensure_site_link(&link, &to).await),
            Call::RemoveSiteLink { link } => told(machine.remove_site_link(&link).await),
            Call::RemoveDataDir { project, slug, service } => {
                told(machine.remove_data_dir(&project, &slug, &service).await)
            }
            Call::EnsureGcRoot { build, name, path } => {
                told(machine.ensure_gc_root(numbered(build)?, &name, &path).await)
            }
            Call::RemoveGcRoot { build, name } => told(machine.remove_gc_root(numbered(build)?, &name).await),
            Call::EnsureBuildDirs { job } => {
                let job = self.job(job).await?;
                told(machine.ensure_build_dirs(job.build, &job).await)
            }
            Call::StartBuild { build, phase, project, timeout_secs } => {
                let spec = self.build_unit(numbered(build)?, phase, &project, timeout_secs).await?;
                told(machine.start_build(&spec).await)
            }
            Call::ReleaseBuild { build } => told(machine.release_build(numbered(build)?).await),
            Call::WaitUnit { unit } => told(machine.wait_unit(own(&unit)?).await),
            Call::BuildReport { build, phase } => told(machine.build_report(numbered(build)?, phase).await),
            Call::BuildOutput { build, name } => told(machine.build_output(numbered(build)?, &name).await),
            Call::RemoveWorkDir { build } => told(machine.remove_work_dir(numbered(build)?).await),
            Call::RemoveLogDir { build } => told(machine.remove_log_dir(numbered(build)?).await),
            Call::EmptyTrash { older_than } if older_than < TRASH_MIN => {
                Err(Refusal::refused("what is in the trash stays there for a day"))
            }
            Call::EmptyTrash { older_than } => told(machine.empty_trash(older_than).await),
            Call::RemoveRemains {} => told(machine.remove_remains().await),
            Call::Inventory {} => told(machine.inventory().await),
            Call::DiskSpace {} => told(machine.disk_space().await),
            Call::Closure { paths } => told(machine.closure(&paths).await),
            Call::Garbage { released } => told(machine.garbage(&released).await),
            Call::FreeGarbage { released } => told(machine.free_garbage(&released).await),
        }
    }

    /// A deployment's specification with the files of its secrets, once all of it belongs together.
    pub(super) async fn resolved(&self, spec: UnitSpec) -> Result<UnitSpec, Refusal> {
        let UnitSpec { project, branch, environment, slug, service, tag, user, .. } = &spec;
        if !TargetNames::fit(project, branch, slug, service, tag, user) {
            return Err(Refusal::refused(format_args!(
                "`{slug}`, `{tag}` and `{user}` are no names of {service} of {project} on {branch}"
            )));
        }
        deployments(&spec.unit())?;
        is_possible(*environment, branch)?;
        let (grants, unit) = (self.grants.clone(), spec.unit());
        let before = blocking("see what a unit was granted", move || Ok(grants.of(&unit)?)).await?;
        let secrets = self.files(project, *environment, &spec.secrets, &before.secrets).await?;
        let confinement = self.confinement(&spec, &before.opt_outs).await?;
        let granted = Granted { secrets: secrets.clone(), opt_outs: confinement.opt_outs.clone() };
        if granted != before {
            let (grants, unit) = (self.grants.clone(), spec.unit());
            blocking("note what a unit is granted", move || Ok(grants.note(&unit, &granted)?)).await?;
        }
        Ok(UnitSpec { secrets, confinement, ..spec })
    }

    /// What a deployment is kept in: within the limits of the operator's file, with no wall lowered but those it allows,
    /// or allowed before for the same unit of a project that it names no more.
    async fn confinement(&self, spec: &UnitSpec, before: &BTreeSet<OptOut>) -> Result<Confinement, Refusal> {
        let (project, asked) = (&spec.project, &spec.confinement);
        let config = self.config().await?;
        let allowed = config.projects.get(project).map_or(before, |project| &project.sandbox_allow);
        if let Some(opt_out) = asked.opt_outs.difference(allowed).find(|asked| !OptOut::HARMLESS.contains(asked)) {
            return Err(Refusal::refused(format_args!("the operator does not allow {project} the opt-out {opt_out}")));
        }
        let limits = config.limits_of(project).grant(asked.limits);
        Ok(Confinement { limits, opt_outs: asked.opt_outs.clone() })
    }

    /// The files of these secrets of a project in an environment: where the operator's file names them, else where it
    /// named them before for the same unit.
    async fn files(
        &self,
        project: &ProjectName,
        environment: Environment,
        secrets: &SecretFiles,
        before: &SecretFiles,
    ) -> Result<SecretFiles, Refusal> {
        if secrets.is_empty() {
            return Ok(SecretFiles::new());
        }
        let config = self.config().await?;
        let named = |name: &String| {
            let now = config.projects.get(project).and_then(|project| project.secret(environment, name));
            let path = now.or_else(|| before.get(name)).cloned();
            path.map(|path| (name.clone(), path)).ok_or_else(|| {
                Refusal::refused(format_args!("{project} has no secret {name:?} in {environment} in the daemon's file"))
            })
        };
        secrets.keys().map(named).collect()
    }

    /// What a build is to do: where from and under which limits the operator's file says.
    async fn job(&self, job: BuildJob) -> Result<BuildJob, Refusal> {
        numbered(job.build)?;
        is_ref(&job.remote_ref)?;
        let config = self.config().await?;
        let project = configured(&config, &job.project)?;
        Ok(BuildJob {
            repo_url: project.repo_url.clone(),
            allowed_uris: project.allowed_uris.clone(),
            allow_ifd: project.allow_ifd,
            max_parallel: config.builder.max_parallel,
            log_limit_bytes: config.builder.log_limit_bytes,
            timeout_secs: config.builder.timeout.as_secs(),
            ..job
        })
    }

    /// One half of a build: with the credentials the operator's file names, which go where it says.
    pub(super) async fn build_unit(
        &self,
        build: BuildId,
        phase: BuildPhase,
        project: &ProjectName,
        timeout_secs: u64,
    ) -> Result<BuildUnitSpec, Refusal> {
        let config = self.config().await?;
        let configured = configured(&config, project)?;
        let (credentials, longest) = match phase {
            BuildPhase::Fetch => (configured.git_access.credentials(), FETCH_TIMEOUT_SECS),
            BuildPhase::Build => (Vec::new(), build_timeout_secs(config.builder.timeout.as_secs())),
        };
        let (project, repo_url) = (project.clone(), configured.repo_url.clone());
        Ok(BuildUnitSpec { build, phase, project, credentials, repo_url, timeout_secs: timeout_secs.min(longest) })
    }

    /// The operator's file as it is now, or as it was before it became faulty.
    async fn config(&self) -> Result<Arc<Config>, Refusal> {
        let path = self.config_path.clone();
        let read = blocking("read the daemon's file", move || Ok(config::load(&path)?)).await;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match (read, &*last) {
            (Ok(config), _) => Ok(Arc::clone(last.insert(Arc::new(config)))),
            (Err(error), Some(before)) => {
                warn!(error = %chain(&error), "Going by the daemon's file as it was: {}", chain(&error));
                Ok(Arc::clone(before))
            }
            (Err(error), None) => Err(error.into()),
        }
    }
}

/// Does blocking work aside.
async fn blocking<T: Send + 'static>(
    action: &str,
    work: impl FnOnce() -> Result<T, Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
) -> Result<T, HostError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|panicked| Err(panicked.into())).map_err(|fault| HostError::new(action, fault))
}

fn configured<'c>(config: &'c Config, project: &ProjectName) -> Result<&'c ProjectConfig, Refusal> {
    let found = config.projects.get(project);
    found.ok_or_else(|| Refusal::refused(format_args!("there is no project {project} in the daemon's file")))
}

/// A unit of kennel's making.
fn own(unit: &UnitName) -> Result<&UnitName, Refusal> {
    match OwnUnit::of(unit) {
        Some(_) => Ok(unit),
        None => Err(Refusal::refused(format_args!("`{unit}` is not a unit of kennel's"))),
    }
}

/// A unit of a deployment: builds are not started by their name.
fn deployments(unit: &UnitName) -> Result<&UnitName, Refusal> {
    match OwnUnit::of(unit) {
        Some(OwnUnit::Deployment(DeploymentId(_))) => Ok(unit),
        _ => Err(Refusal::refused(format_args!("`{unit}` is not a unit of a deployment"))),
    }
}

/// A build's number as rows have it.
fn numbered(build: BuildId) -> Result<BuildId, Refusal> {
    if build.0 >= 0 { Ok(build) } else { Err(Refusal::refused(format_args!("{build} is not a build's number"))) }
}

/// A pull request gets the secrets of previews and no others, and nothing else gets those.
fn is_possible(environment: Environment, branch: &BranchRef) -> Result<(), Refusal> {
    if branch.is_pull() == (environment == Environment::Preview) {
        return Ok(());
    }
    Err(Refusal::refused(format_args!("{branch} is not of the environment {environment}")))
}

/// `refs/heads/<branch>` or `refs/pull/<number>/head`, as [`BranchRef::remote_ref`] has it.
fn is_ref(text: &str) -> Result<(), Refusal> {
    let branch = text.strip_prefix("refs/").and_then(|rest| {
        let branch: BranchRef =
            rest.strip_suffix("/head").filter(|rest| rest.starts_with("pull/")).unwrap_or(rest).parse().ok()?;
        (branch.remote_ref() == text).then_some(branch)
    });
    branch.map(drop).ok_or_else(|| Refusal::refused(format_args!("{text:?} is not a branch's ref")))
}
