//! The second phase: what the kennel.toml names, built side by side up to a limit.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::log::{LogFile, NixLog, reason};
use super::manifest::{self, Asked};
use super::nix::{self, Nix, Package};
use super::{BuildReport, Dirs, TargetReport, output};
use crate::host::BuildJob;
use crate::model::settings::Manifest;
use crate::model::{Kind, ProgramName, ServiceName, Settings};

/// How long to wait for Nix's daemon, when it was away, before each of the next tries. It comes back after a restart.
const PAUSES: [Duration; 4] =
    [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(5), Duration::from_secs(10)];
/// From this time on none of them is made: whatever failed so late had reached it.
const AWAY_MAX: Duration = Duration::from_secs(60);

/// Builds everything the commit asks for.
pub(super) async fn run(dirs: Dirs, job: BuildJob) -> anyhow::Result<BuildReport> {
    run_with(dirs, job, Nix::new()).await
}

/// As [`run`], with this Nix.
pub(super) async fn run_with(dirs: Dirs, job: BuildJob, nix: Nix) -> anyhow::Result<BuildReport> {
    let manifest = match manifest::read(&dirs.checkout(), &job.commit)? {
        Asked::For(manifest) => manifest,
        Asked::Nothing(why) => {
            return Ok(BuildReport { failure: Some(why), manifest: None, targets: BTreeMap::new(), nix_ms: 0 });
        }
    };
    let room = Arc::new(Semaphore::new(job.max_parallel.max(1)));
    let whole = Arc::new(Build { dirs, job, nix });
    let mut running = JoinSet::new();
    for (name, settings) in &manifest.targets {
        let (whole, room, name, settings) = (whole.clone(), room.clone(), name.clone(), settings.clone());
        running.spawn(async move {
            let _place = room.acquire().await.context("the limit is gone")?;
            let report = whole.target(&name, &settings).await.with_context(|| format!("cannot build `{name}`"))?;
            anyhow::Ok((name, report))
        });
    }
    let mut targets = BTreeMap::new();
    while let Some(done) = running.join_next().await {
        let (name, report) = done.context("a target's task ended early")??;
        targets.insert(name, report);
    }
    Ok(report(manifest, targets, &whole.nix))
}

fn report(manifest: Manifest, targets: BTreeMap<ServiceName, TargetReport>, nix: &Nix) -> BuildReport {
    BuildReport { failure: None, manifest: Some(manifest), targets, nix_ms: nix.clock.total_ms() }
}

struct Build {
    dirs: Dirs,
    job: BuildJob,
    nix: Nix,
}

impl Build {
    async fn target(&self, name: &ServiceName, settings: &Settings) -> anyhow::Result<TargetReport> {
        let started = Instant::now();
        let package = Package::new(&self.dirs, &self.job, name, settings.flake_output());
        let path = self.dirs.log(name.as_str());
        let mut log = LogFile::open(&path, self.job.log_limit_bytes)?;
        log.say(&format!("Building `{}` of {}", package.attribute, self.job.commit))?;
        let mut outcome = self.make(name, settings.kind(), &package, log).await?;
        for pause in PAUSES {
            if !outcome.as_ref().is_err_and(|why| nix::is_daemon_away(why)) || started.elapsed() > AWAY_MAX {
                break;
            }
            let mut log = LogFile::open(&path, self.job.log_limit_bytes)?;
            log.say(&format!("Nix's daemon is away: trying again in {} s", pause.as_secs()))?;
            tokio::time::sleep(pause).await;
            outcome = self.make(name, settings.kind(), &package, log).await?;
        }
        let nix_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        // What is said at the end is in the log even when Nix has filled it.
        let mut log = LogFile::open(&path, u64::MAX)?;
        match outcome {
            Ok(program) => {
                log.say(&format!("Built in {nix_ms} ms"))?;
                Ok(TargetReport::Built { program, nix_ms })
            }
            Err(reason) => {
                log.say(&format!("Failed: {reason}"))?;
                Ok(TargetReport::Failed { reason })
            }
        }
    }

    /// Builds one target and links to it; tells its program, or why it cannot be made.
    async fn make(
        &self,
        name: &ServiceName,
        kind: Kind,
        package: &Package,
        log: LogFile,
    ) -> anyhow::Result<Result<Option<ProgramName>, String>> {
        let links = self.dirs.links(name);
        remove_dir(&links)?;
        fs::create_dir_all(&links).with_context(|| format!("cannot make `{}`", links.display()))?;
        if let Err(why) = self.nix.build(&self.dirs, &self.job, package, &links, NixLog::new(log)).await? {
            return Ok(Err(why));
        }
        let paths = output::store_paths(&links).with_context(|| format!("cannot read `{}`", links.display()))?;
        let store = &self.nix.store;
        let (path, program) = match kind {
            Kind::Service => {
                let program = match self.program(name, package).await? {
                    Ok(program) => program,
                    Err(why) => return Ok(Err(why)),
                };
                match output::with_program(store, &paths, &program) {
                    Ok(path) => (path, Some(program)),
                    Err(why) => return Ok(Err(reason(&why))),
                }
            }
            Kind::Site => match output::directory(store, &paths) {
                Ok(path) => (path, None),
                Err(why) => return Ok(Err(why)),
            },
        };
        ensure_link(path, &self.dirs.out(name))?;
        Ok(Ok(program))
    }

    /// What to start: `meta.mainProgram`, or what has the service's name.
    async fn program(&self, name: &ServiceName, package: &Package) -> anyhow::Result<Result<ProgramName, String>> {
        let told = match self.nix.main_program(&self.dirs, &self.job, package).await? {
            Ok(told) => told,
            Err(why) => return Ok(Err(why)),
        };
        let program = told.unwrap_or_else(|| name.to_string());
        Ok(program.parse().map_err(|err| format!("`meta.mainProgram` is no program's name: {err}")))
    }
}

fn remove_dir(dir: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => {
            Err(err).with_context(|| format!("cannot empty `{}`", dir.display()))
        }
        _ => Ok(()),
    }
}

/// The link the daemon reads, in the place of one that an earlier attempt left.
fn ensure_link(to: &Path, link: &Path) -> anyhow::Result<()> {
    let make = || -> io::Result<()> {
        if let Some(dir) = link.parent() {
            fs::create_dir_all(dir)?;
        }
        match fs::remove_file(link) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
            _ => {}
        }
        symlink(to, link)
    };
    make().with_context(|| format!("cannot link `{}` to `{}`", link.display(), to.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::PathBuf;

    use tempfile::TempDir;

    use super::*;
    use crate::builder::worker::testing::{Worker, repository};

    const MANIFEST: &[u8] = b"[services.api]\n[services.slow]\n[services.bad]\n[static_sites.web]\n";

    /// A `nix` of a few lines, for what does not depend on Nix itself; the rest is tested against the real one.
    const STAND_IN: &str = r#"#!/bin/sh
verb=$1 reference=$2
[ "$verb" = build ] || reference=$3
printf '%s\n' "$@" >> "STATE/arguments"
case $verb in
  eval)
    case $reference in
      *.api.meta*) echo '"apid"';;
      *) echo "error: flake 'x' does not provide attribute 'y'" >&2; exit 1;;
    esac;;
  build)
    shift 2; while [ "$1" != --out-link ]; do shift; done
    echo '@nix {"action":"start","id":1,"level":3,"text":"building it","type":105,"fields":["/nix/store/00000000000000000000000000000000-it.drv"]}' >&2
    echo '@nix {"action":"result","id":1,"type":101,"fields":["hello"]}' >&2
    case $reference in
      *.bad) echo '@nix {"action":"msg","level":0,"msg":"error: no","raw_msg":"it \u001b[1mbroke\u001b[0m"}' >&2; exit 1;;
      *.slow) sleep 1000;;
      *.early)
        if [ -e "STATE/tried" ]; then ln -s "STATE/store/package" "$2"; exit; fi
        echo >"STATE/tried"
        echo '@nix {"action":"msg","level":0,"msg":"error: cannot","raw_msg":"cannot open connection to remote store '"'daemon'"': error: reading from file: Connection reset by peer"}' >&2
        exit 1;;
      *) ln -s "STATE/store/package" "$2";;
    esac;;
esac
"#;

    fn stand_in(state: &TempDir, manifest: &[u8]) -> (Worker, Nix) {
        let root = state.path().canonicalize().unwrap();
        let ids = repository(&root.join("work/1/checkout"), &[&[("kennel.toml", 0o100_644, manifest)]]);
        let mut worker = Worker::new(state, "file:///x", &ids[0]);
        worker.job.timeout_secs = 1;
        let bin = root.join("store/package/bin");
        fs::create_dir_all(&bin).unwrap();
        let program = |path: PathBuf, text: &str| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            path
        };
        program(bin.join("apid"), "");
        let nix = program(root.join("nix"), &STAND_IN.replace("STATE", root.to_str().unwrap()));
        (worker, Nix { program: nix, store: root.join("store"), ..Nix::new() })
    }

    #[tokio::test]
    async fn each_target_is_built_by_itself_and_the_good_ones_stay_good() {
        let state = tempfile::tempdir().unwrap();
        let (worker, nix) = stand_in(&state, MANIFEST);
        let report = run_with(worker.dirs.clone(), worker.job.clone(), nix).await.unwrap();
        let outcomes: BTreeMap<_, _> = report
            .targets
            .iter()
            .map(|(name, report)| match report {
                TargetReport::Built { program, .. } => (name.as_str(), Ok(program.as_ref().map(ProgramName::as_str))),
                TargetReport::Failed { reason } => (name.as_str(), Err(reason.as_str())),
            })
            .collect();
        let expected = [
            ("api", Ok(Some("apid"))),
            ("bad", Err("it broke")),
            ("slow", Err("time limit of 1 s passed")),
            ("web", Ok(None)),
        ];
        assert_eq!(outcomes, BTreeMap::from(expected));
        assert!(report.failure.is_none() && report.manifest.is_some());
        let slowest = Duration::from_millis(report.nix_ms);
        assert!(slowest >= Duration::from_secs(1) && slowest < Duration::from_secs(5), "{slowest:?}");
        let link = |name: &str| fs::read_link(worker.dirs.work.join("out").join(name));
        assert_eq!(link("api").unwrap(), link("web").unwrap());
        link("bad").unwrap_err();
        assert!(worker.log("bad").contains("it> hello\n"), "{}", worker.log("bad"));
        assert!(worker.log("bad").ends_with("Failed: it broke\n"), "{}", worker.log("bad"));
        assert!(worker.log("slow").contains("it> hello\n"), "{}", worker.log("slow"));
    }

    #[tokio::test]
    async fn a_log_is_written_while_it_is_produced() {
        let state = tempfile::tempdir().unwrap();
        let (mut worker, nix) = stand_in(&state, b"[services.slow]\n");
        worker.job.timeout_secs = 600;
        let mut running = JoinSet::new();
        running.spawn(run_with(worker.dirs.clone(), worker.job.clone(), nix));
        let log = worker.dirs.log("slow");
        let deadline = Instant::now() + Duration::from_secs(10);
        while !fs::read_to_string(&log).unwrap_or_default().contains("it> hello\n") {
            assert!(Instant::now() < deadline, "the line is not in the log");
            tokio::task::yield_now().await;
        }
        running.shutdown().await;
    }

    #[tokio::test]
    async fn a_manifest_that_is_wrong_fails_the_whole_build() {
        let state = tempfile::tempdir().unwrap();
        let (worker, nix) = stand_in(&state, b"[services.api]\nflake_ouput = 'x'\n");
        let report = run_with(worker.dirs, worker.job, nix).await.unwrap();
        let why = report.failure.unwrap();
        assert!(why.contains("flake_ouput") && report.targets.is_empty(), "{why}");
        assert!(!state.path().join("arguments").exists(), "nix was not run");
    }

    #[tokio::test]
    async fn a_second_attempt_replaces_the_links_of_the_first() {
        let state = tempfile::tempdir().unwrap();
        let (worker, nix) = stand_in(&state, b"[static_sites.web]\n");
        for _ in 0..2 {
            let report = run_with(worker.dirs.clone(), worker.job.clone(), nix.clone()).await.unwrap();
            assert!(matches!(report.targets[&"web".parse().unwrap()], TargetReport::Built { .. }), "{report:?}");
        }
    }

    #[tokio::test]
    async fn a_daemon_of_nix_that_was_away_fails_nothing() {
        let state = tempfile::tempdir().unwrap();
        let (worker, nix) = stand_in(&state, b"[static_sites.early]\n");
        let report = run_with(worker.dirs.clone(), worker.job.clone(), nix).await.unwrap();
        assert!(matches!(report.targets[&"early".parse().unwrap()], TargetReport::Built { .. }), "{report:?}");
        assert!(worker.log("early").contains("Nix's daemon is away: trying again in 1 s\n"), "{}", worker.log("early"));
    }

    #[tokio::test]
    async fn a_machine_without_nix_is_an_error() {
        let state = tempfile::tempdir().unwrap();
        let (worker, nix) = stand_in(&state, MANIFEST);
        let nix = Nix { program: "/nonexistent/nix".into(), ..nix };
        let err = run_with(worker.dirs, worker.job, nix).await.unwrap_err();
        assert!(format!("{err:#}").contains("cannot start `/nonexistent/nix`"), "{err:#}");
    }
}
