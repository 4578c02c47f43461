//! The two `nix` commands of a build: `nix build` of one package, `nix eval` of its main program.
//!
//! **Invariant:** everything is an argument of its own, and every flag that could loosen the evaluation is
//! said here, so that neither the flake nor the machine's nix.conf decides.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::process::Command;

use super::Dirs;
use super::log::{NixLog, SAID_MAX, plain_lines, reason};
use super::process::{self, Ended};
use crate::host::BuildJob;
use crate::model::{FlakeOutput, ServiceName};

/// How long a builder may be silent, in seconds.
const SILENT_MAX: u64 = 900;
/// How long the evaluation of one attribute may take that `nix build` has evaluated before.
const EVAL_MAX: Duration = Duration::from_secs(120);

/// What a path or a fragment of a flake reference keeps as it is (RFC 3986, section 2.3).
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// How this machine runs `nix`.
#[derive(Debug, Clone)]
pub(super) struct Nix {
    pub(super) program: PathBuf,
    pub(super) clock: Clock,
    pub(super) store: PathBuf,
}

/// A package of the commit's flake.
#[derive(Debug, Clone)]
pub(super) struct Package {
    name: ServiceName,
    checkout: String,
    commit: String,
    /// `packages.<system>.<output>`.
    pub(super) attribute: String,
}

impl Package {
    pub(super) fn new(dirs: &Dirs, job: &BuildJob, name: &ServiceName, output: &FlakeOutput) -> Self {
        let path = dirs.checkout();
        Self {
            name: name.clone(),
            checkout: format!("git+file://{}", utf8_percent_encode(&path.to_string_lossy(), ENCODED)),
            commit: job.commit.to_string(),
            attribute: format!("packages.{}.{output}", system()),
        }
    }

    /// A reference to exactly this attribute, or to one below it. Without the dot Nix would look for
    /// `packages.<system>.packages.…` first.
    fn reference(&self, below: &str) -> String {
        let fragment = format!("{}{below}", self.attribute);
        format!("{}?shallow=1&rev={}#.{}", self.checkout, self.commit, utf8_percent_encode(&fragment, ENCODED))
    }

    /// The flags of both commands.
    fn strict(&self, job: &BuildJob) -> Vec<String> {
        let uris = format!("{} {}", self.checkout, job.allowed_uris.join(" "));
        let options = [
            ("accept-flake-config", "false"),
            ("restrict-eval", "true"),
            ("allowed-uris", uris.trim_end()),
            ("allow-import-from-derivation", if job.allow_ifd { "true" } else { "false" }),
            ("pure-eval", "true"),
            ("allow-unsafe-native-code-during-evaluation", "false"),
            ("flake-registry", ""),
        ];
        let mut flags = vec!["--no-update-lock-file".to_owned(), "--no-use-registries".to_owned()];
        flags.extend(["--extra-experimental-features".to_owned(), "nix-command flakes".to_owned()]);
        for (name, value) in options {
            flags.extend(["--option".to_owned(), name.to_owned(), value.to_owned()]);
        }
        flags
    }
}

impl Nix {
    pub(super) fn new() -> Self {
        Self { program: "nix".into(), clock: Clock::default(), store: "/nix/store".into() }
    }

    /// Builds a package and links to its outputs from `<links>/result…`. An `Err` inside is the reason it cannot be.
    pub(super) async fn build(
        &self,
        dirs: &Dirs,
        job: &BuildJob,
        package: &Package,
        links: &Path,
        mut log: NixLog,
    ) -> anyhow::Result<Result<(), String>> {
        let mut command = self.command(dirs, package, "build")?;
        command.arg(package.reference("")).arg("--out-link").arg(links.join("result"));
        command.args(["--log-format", "internal-json", "-L"]).args(package.strict(job));
        command.args(["--timeout", &job.timeout_secs.to_string()]);
        command.args(["--max-silent-time", &job.timeout_secs.min(SILENT_MAX).to_string()]);
        let limit = Duration::from_secs(job.timeout_secs);
        let _running = self.clock.start();
        match process::run(command, limit, |line| log.take(line)).await? {
            Ended::Exited(status, _) if status.success() => Ok(Ok(())),
            Ended::Exited(..) => {
                let why = explained(&log.into_error(), package);
                Ok(Err(reason(&why)))
            }
            Ended::TimedOut => {
                let why = format!("time limit of {} s passed", job.timeout_secs);
                log.say(&why)?;
                Ok(Err(why))
            }
            Ended::Stopped => Ok(Err(format!(
                "it writes without end: more than {SAID_MAX} times the {} bytes that are kept of a log\n\
                 hint: how much is kept is `log_limit_bytes` of `[builder]`",
                job.log_limit_bytes
            ))),
        }
    }

    /// The package's `meta.mainProgram`, if it has one. An `Err` inside is the reason it cannot be told.
    pub(super) async fn main_program(
        &self,
        dirs: &Dirs,
        job: &BuildJob,
        package: &Package,
    ) -> anyhow::Result<Result<Option<String>, String>> {
        let mut command = self.command(dirs, package, "eval")?;
        command.arg("--json").arg(package.reference(".meta.mainProgram")).args(package.strict(job));
        let mut said = String::new();
        let _running = self.clock.start();
        let ended = process::run(command, EVAL_MAX.min(Duration::from_secs(job.timeout_secs)), |line| {
            if said.len() < 64 << 10 {
                said.push_str(&String::from_utf8_lossy(line));
                said.push('\n');
            }
            Ok(ControlFlow::Continue(()))
        });
        match ended.await? {
            Ended::Exited(status, stdout) if status.success() => match serde_json::from_slice(&stdout) {
                Ok(program) => Ok(Ok(Some(program))),
                Err(_) => Ok(Err("`meta.mainProgram` is not a string".to_owned())),
            },
            Ended::Exited(..) if said.contains("does not provide attribute") => Ok(Ok(None)),
            Ended::Exited(..) => {
                let from = said.find("error:").unwrap_or_default();
                Ok(Err(reason(&format!("cannot evaluate `meta.mainProgram`\n{}", &said[from..]))))
            }
            Ended::TimedOut | Ended::Stopped => {
                Ok(Err("cannot evaluate `meta.mainProgram`: it takes too long".to_owned()))
            }
        }
    }

    fn command(&self, dirs: &Dirs, package: &Package, verb: &str) -> anyhow::Result<Command> {
        let mut command = Command::new(&self.program);
        command.arg(verb).env("NIX_REMOTE", "daemon");
        command.env("HOME", dirs.of_env("HOME", "home")?);
        // A cache for each target: Nix holds the evaluation cache's write lock until its build is done, and the
        // next one that evaluates the same flake would wait for that.
        command.env("XDG_CACHE_HOME", dirs.of_env("XDG_CACHE_HOME", "cache")?.join(package.name.as_str()));
        // Only the machine's own nix.conf counts.
        command.env("NIX_USER_CONF_FILES", "").env_remove("NIX_CONFIG").env_remove("NIX_PATH");
        command.env_remove("CREDENTIALS_DIRECTORY").env("GIT_TERMINAL_PROMPT", "0");
        // What git runs for other URLs, such as `ext::`, is a program of the URL's choice.
        command.env("GIT_ALLOW_PROTOCOL", "file:git:http:https:ssh");
        Ok(command)
    }
}

/// Nix's name for the system this program was built for.
fn system() -> String {
    let cpu = match std::env::consts::ARCH {
        "x86" => "i686",
        "arm" => "armv7l",
        "powerpc64" if cfg!(target_endian = "little") => "powerpc64le",
        other => other,
    };
    let kernel = if std::env::consts::OS == "macos" { "darwin" } else { std::env::consts::OS };
    format!("{cpu}-{kernel}")
}

/// What can be done about an error that Nix words like this.
const HINTS: [(&[&str], &str); 6] = [
    (
        &["allow-import-from-derivation"],
        "building during evaluation is off; the operator can set `allow_ifd = true` for the project",
    ),
    (&["out of memory", "bad_alloc"], "how much memory a build may use is `memory_max` of `[builder]`"),
    (&["restricted mode"], "what a flake may fetch is `allowed_uris` of the project"),
    (&["requires lock file changes"], "`nix flake lock` brings it up to date: commit what it writes"),
    (
        &["unlocked input", "unlocked flake reference"],
        "only what `flake.lock` fixes is fetched: run `nix flake lock`, and commit what it writes",
    ),
    (
        &["pure evaluation mode", "'file://", "path '//"],
        "a build sees its repository and the inputs that `flake.lock` fixes, and no file of the machine",
    ),
];

/// Whether that is why Nix did nothing: its daemon, which it asks for everything, did not answer.
pub(super) fn is_daemon_away(why: &str) -> bool {
    ["cannot connect to socket at '/nix/var/nix/daemon-socket", "cannot open connection to remote store"]
        .iter()
        .any(|words| why.contains(words))
}

/// Nix's error, with the checkout's path and advice that holds elsewhere taken out, and what can be done about it.
fn explained(error: &str, package: &Package) -> String {
    let error = plain_lines(error);
    if error.contains("does not provide attribute") && error.contains(&package.attribute) {
        return format!("the flake has no output `{}`", package.attribute);
    }
    let own = format!("flake '{}?rev={}&shallow=1'", package.checkout, package.commit);
    let mut error = error.replace(&own, "`flake.lock`");
    for elsewhere in [
        " (use '--impure' to override)",
        " (use --impure to override)",
        " Use '--allow-dirty-locks' to accept this lock file.",
        " but they're not allowed due to '--no-update-lock-file'",
    ] {
        error = error.replace(elsewhere, "");
    }
    let hint = HINTS.iter().find(|(words, _)| words.iter().any(|word| error.contains(word)));
    let hint = hint.map(|(_, hint)| format!("\nhint: {hint}")).unwrap_or_default();
    format!("{}{hint}", reason(&error))
}

/// Measures the wall time during which at least one `nix` process runs.
#[derive(Debug, Clone, Default)]
pub(super) struct Clock(Arc<Mutex<Running>>);

#[derive(Debug, Default)]
struct Running {
    count: u32,
    since: Option<Instant>,
    before: Duration,
}

/// A `nix` process runs while this lives.
pub(super) struct Run(Clock);

impl Clock {
    fn start(&self) -> Run {
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        running.count += 1;
        running.since.get_or_insert_with(Instant::now);
        Run(self.clone())
    }

    /// The time so far, of what has ended.
    pub(super) fn total_ms(&self) -> u64 {
        let running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        u64::try_from(running.before.as_millis()).unwrap_or(u64::MAX)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let mut running = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        running.count -= 1;
        if running.count == 0
            && let Some(since) = running.since.take()
        {
            running.before += since.elapsed();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::worker::testing::job;
    use crate::model::BuildId;

    fn package(state: &str, output: &str) -> (Dirs, BuildJob, Package) {
        let dirs = Dirs::new(BuildId(1), Path::new(state));
        let job = job("file:///x", &"a".repeat(40));
        let package = Package::new(&dirs, &job, &"api".parse().unwrap(), &output.parse().unwrap());
        (dirs, job, package)
    }

    #[test]
    fn a_reference_names_one_attribute_whatever_the_path_holds() {
        let (_, _, package) = package("/srv/a b#c?d%/é", "api'");
        insta::assert_snapshot!(package.reference("").replace(&system(), "SYSTEM"), @"git+file:///srv/a%20b%23c%3Fd%25/%C3%A9/work/1/checkout?shallow=1&rev=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa#.packages.SYSTEM.api%27");
    }

    #[test]
    fn a_flake_may_fetch_what_the_project_allows_and_its_own_checkout() {
        let (_, mut job, package) = package("/s", "api");
        job.allowed_uris = vec!["github:".into(), "https://".into()];
        let flags = package.strict(&job);
        let allowed = flags.iter().position(|flag| flag == "allowed-uris").unwrap();
        assert_eq!(flags[allowed + 1], "git+file:///s/work/1/checkout github: https://");
        assert!(!flags.iter().any(|flag| flag == "--impure" || flag == "--accept-flake-config"), "{flags:?}");
    }

    #[test]
    fn an_error_of_nix_is_told_with_what_can_be_done_about_it() {
        let (_, _, package) = package("/s", "api");
        for (error, told) in [
            (
                "error: access to absolute path '/srv' is forbidden in pure evaluation mode (use '--impure' to override)",
                "access to absolute path '/srv' is forbidden in pure evaluation mode\n\
                 hint: a build sees its repository and the inputs that `flake.lock` fixes, and no file of the machine",
            ),
            (
                "error: flake 'git+file:///s/work/1/checkout?rev=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa&shallow=1' \
                 requires lock file changes but they're not allowed due to '--no-update-lock-file'",
                "`flake.lock` requires lock file changes\n\
                 hint: `nix flake lock` brings it up to date: commit what it writes",
            ),
            ("error: out of luck", "out of luck"),
        ] {
            assert_eq!(explained(error, &package), told);
        }
    }

    #[test]
    fn overlapping_runs_are_counted_once() {
        let clock = Clock::default();
        let begun = Instant::now();
        let (a, b) = (clock.start(), clock.start());
        std::thread::sleep(Duration::from_millis(30));
        drop((a, b));
        let (total, all) = (clock.total_ms(), begun.elapsed().as_millis());
        assert!(total >= 30 && u128::from(total) <= all, "{total} of {all} ms");
    }
}
