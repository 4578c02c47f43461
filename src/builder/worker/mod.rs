//! What runs inside a build unit: fetch one commit, then build what its kennel.toml names.
//!
//! A unit runs one [`BuildPhase`], as an unprivileged user that sees its own work and log directory and
//! nothing else of kennel's. The repository is hostile: its history, its flake, its file names and what its
//! builders print are bounded, cut and cleaned before they reach a report or a log.
//!
//! **Invariant:** what a repository or its forge causes is a report; an `Err` means that kennel or the
//! machine failed. No credential is in a report, in a log, or on disk when the second phase starts.

mod build;
mod credentials;
mod fetch;
#[cfg(test)]
mod fetch_tests;
mod git;
mod known_hosts;
mod log;
mod manifest;
mod nix;
mod output;
mod process;
mod remote;
#[cfg(test)]
mod testing;
mod tree;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use ::nix::errno::Errno;
use ::nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};

use crate::host::{BuildJob, BuildPhase, RELEASED};
use crate::model::settings::Manifest;
use crate::model::{BuildId, ProgramName, ServiceName};

/// The largest file of the daemon's that the worker reads: its job, a credential.
const FILE_MAX: u64 = 1 << 20;

/// What became of the first phase: `fetch.json` in the work directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FetchReport {
    /// The commit is in `checkout`.
    Fetched {
        /// How long it took.
        duration_ms: u64,
    },
    /// The forge will not give it.
    Failed {
        /// Why not, for people to read.
        reason: String,
    },
}

/// What became of the second phase: `build.json` in the work directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildReport {
    /// Why nothing was built at all: the kennel.toml is missing or wrong.
    pub failure: Option<String>,
    /// What the kennel.toml asks for.
    pub manifest: Option<Manifest>,
    /// What became of each service and site. A built one is linked to from `out/<name>`.
    pub targets: BTreeMap<ServiceName, TargetReport>,
    /// Wall time during which a `nix` process ran.
    pub nix_ms: u64,
}

/// What became of one service or site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TargetReport {
    /// `out/<name>` links to its store path.
    Built {
        /// What to start, below `bin/`; `None` for a site.
        program: Option<ProgramName>,
        /// Wall time of making it, which is `nix` but for a few milliseconds.
        nix_ms: u64,
    },
    /// It could not be made.
    Failed {
        /// Why not, for people to read.
        reason: String,
    },
}

/// Does one phase of a build, to the end, and leaves its report in the work directory.
///
/// # Errors
/// When the machine failed: no report is left then, and doing it again may help.
pub fn run(phase: BuildPhase, build: BuildId, state_dir: &Path) -> anyhow::Result<()> {
    let dirs = Dirs::new(build, state_dir);
    let job = dirs.job(build)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    match phase {
        BuildPhase::Fetch => {
            let report = fetch::run(&dirs, &job, &runtime)?;
            write_report(&dirs.work.join("fetch.json"), &report)
        }
        BuildPhase::Build => {
            await_release(&dirs.work)?;
            let report = runtime.block_on(build::run(dirs.clone(), job))?;
            write_report(&dirs.work.join("build.json"), &report)
        }
    }
}

/// Blocks until the daemon says that the fetch has ended. The unit is started beside the fetch's, since that takes
/// systemd a while; until then nothing of the repository is looked at.
fn await_release(work: &Path) -> anyhow::Result<()> {
    let changes = Inotify::init(InitFlags::IN_CLOEXEC).context("cannot watch for the release of the build")?;
    changes
        .add_watch(work, AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO)
        .with_context(|| format!("cannot watch `{}`", work.display()))?;
    while !work.join(RELEASED).try_exists()? {
        match changes.read_events() {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(err) => return Err(err).with_context(|| format!("cannot watch `{}`", work.display())),
        }
    }
    Ok(())
}

/// Where things lie.
#[derive(Debug, Clone)]
struct Dirs {
    work: PathBuf,
    logs: PathBuf,
}

impl Dirs {
    fn new(build: BuildId, state_dir: &Path) -> Self {
        let below = |dir: &str| state_dir.join(dir).join(build.to_string());
        Self { work: below("work"), logs: below("logs") }
    }

    /// The repository: a `.git` with the commit, and no work tree.
    fn checkout(&self) -> PathBuf {
        self.work.join("checkout")
    }

    /// The link the daemon reads a target's store path from.
    fn out(&self, name: &ServiceName) -> PathBuf {
        self.work.join("out").join(name.as_str())
    }

    /// The links Nix makes for a target: one for each output, `result…`.
    fn links(&self, name: &ServiceName) -> PathBuf {
        self.work.join("links").join(name.as_str())
    }

    fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }

    fn job(&self, build: BuildId) -> anyhow::Result<BuildJob> {
        let path = self.work.join("job.json");
        let job: BuildJob = serde_json::from_slice(&read_bounded(&path)?)
            .with_context(|| format!("cannot understand `{}`", path.display()))?;
        ensure!(job.build == build, "`{}` describes build {}, not {build}", path.display(), job.build);
        Ok(job)
    }

    /// A directory for a child process: the one the unit's environment names, else one in the work directory.
    fn of_env(&self, variable: &str, fallback: &str) -> anyhow::Result<PathBuf> {
        let dir = std::env::var_os(variable).map_or_else(|| self.work.join(fallback), PathBuf::from);
        fs::create_dir_all(&dir).with_context(|| format!("cannot make `{}`", dir.display()))?;
        Ok(dir)
    }
}

/// A file of the daemon's or the operator's, whole.
fn read_bounded(path: &Path) -> anyhow::Result<Vec<u8>> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)?.take(FILE_MAX + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().with_context(|| format!("cannot read `{}`", path.display()))?;
    ensure!(bytes.len() as u64 <= FILE_MAX, "`{}` is larger than {FILE_MAX} bytes", path.display());
    Ok(bytes)
}

/// Writes a report whole or not at all: the daemon takes its presence for the end of the phase.
fn write_report(path: &Path, report: &impl Serialize) -> anyhow::Result<()> {
    let partial = path.with_extension("json.partial");
    let write = || -> anyhow::Result<()> {
        let mut file = File::create(&partial)?;
        file.write_all(&serde_json::to_vec(report)?)?;
        file.sync_all()?;
        Ok(fs::rename(&partial, path)?)
    };
    write().with_context(|| format!("cannot write `{}`", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_of_another_build_is_refused() {
        let state = tempfile::tempdir().unwrap();
        let lab = testing::Worker::new(&state, "file:///nowhere", &"0".repeat(40));
        let moved = state.path().join("work/2");
        fs::rename(lab.dirs.work, &moved).unwrap();
        let err = run(BuildPhase::Fetch, BuildId(2), state.path()).unwrap_err();
        assert!(err.to_string().contains("describes build 1, not 2"), "{err:#}");
    }

    #[test]
    fn a_build_begins_once_it_is_released_and_not_before() {
        let dir = tempfile::tempdir().unwrap();
        let (said, hear) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                await_release(dir.path()).unwrap();
                said.send(()).unwrap();
            });
            fs::write(dir.path().join("checkout"), "").unwrap();
            let early = hear.recv_timeout(std::time::Duration::from_millis(200));
            assert!(early.is_err(), "it began before it was released");
            fs::write(dir.path().join(RELEASED), "").unwrap();
            hear.recv().unwrap();
        });
        await_release(dir.path()).unwrap();
    }

    #[test]
    fn the_largest_report_is_one_that_the_daemon_reads() {
        use crate::config::project;

        // As many short entries as a kennel.toml may have, and text that takes twice the room in JSON.
        let mut text = String::new();
        for service in 0..64 {
            let names = |prefix: char| (0..256).map(move |n| format!("{prefix}{n:x}"));
            let secrets: Vec<_> = names('S').map(|name| format!("\"{name}\"")).collect();
            let env: String = names('E').map(|name| format!("{name}=\"\"\n")).collect();
            text +=
                &format!("[services.s{service}]\nsecrets=[{}]\n[services.s{service}.env]\n{env}", secrets.join(","));
        }
        text += &format!("FILL='{}'\n", "\"".repeat(project::SIZE_MAX.saturating_sub(text.len() + 8).min(60_000)));
        let text = text.replacen("Eff=\"\"\n", "", 64);
        let manifest = project::parse(&text).unwrap();
        let reason = log::reason(&vec!["\"\\".repeat(62); 24].join("\n"));
        let failed = |name: &ServiceName| (name.clone(), TargetReport::Failed { reason: reason.clone() });
        let targets = manifest.targets.keys().map(failed).collect();
        let report = BuildReport { failure: None, manifest: Some(manifest), targets, nix_ms: u64::MAX };
        let dir = tempfile::tempdir().unwrap();
        write_report(&dir.path().join("build.json"), &report).unwrap();
        let size = fs::metadata(dir.path().join("build.json")).unwrap().len();
        assert!(size < 1 << 20, "{} bytes of kennel.toml make {size}", text.len());
    }

    #[test]
    fn reports_read_as_they_were_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("build.json");
        let report = BuildReport {
            failure: None,
            manifest: None,
            targets: BTreeMap::from([
                ("api".parse().unwrap(), TargetReport::Built { program: Some("apid".parse().unwrap()), nix_ms: 7 }),
                ("web".parse().unwrap(), TargetReport::Failed { reason: "no".into() }),
            ]),
            nix_ms: 9,
        };
        write_report(&path, &report).unwrap();
        let back: BuildReport = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(back, report);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no partial file is left");
    }
}
