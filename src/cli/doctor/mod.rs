//! `kennel doctor`: looks at the host, and says what to change so that kennel keeps its promises there.
//!
//! Each file here gathers what it needs and hands it to pure functions, which judge. One more check is one more
//! line in [`look`].
//!
//! **Invariant:** nothing on the machine is changed, and no secret's content is shown.

mod databases;
mod files;
mod finding;
mod nix;
mod services;
mod systemd;
mod volumes;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use serde_json::json;

use super::client::Client;
use super::failure::{Exit, Failure};
use super::screen::{Mood, Screen, clean};
use super::words::print_json;
use crate::config::{self, Config, Faults};
use crate::host::machine::MachineConfig;
use finding::{Finding, Level};

/// How long one look at something may take.
const LOOK_MAX: Duration = Duration::from_secs(15);

/// Check this host, and say what to change
///
/// Looks at systemd, Nix, the build user, disks, secrets, databases, DNS, the clock, the forges and kennel itself, and changes
/// nothing. Needs root. Exits with 0 when all is well or there are only warnings, and with 1 when something fails.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The daemon's file
    #[arg(long, value_name = "FILE", default_value = config::DEFAULT_PATH)]
    config: PathBuf,

    /// Print JSON, for scripts
    #[arg(long)]
    json: bool,
}

/// What is looked at.
struct Subject {
    /// The daemon's file, or what is wrong with it.
    config: Result<Config, Faults>,
    /// Where it lies.
    config_path: PathBuf,
    /// Where kennel keeps everything.
    state_dir: PathBuf,
    /// Where kennel writes units.
    unit_dir: PathBuf,
    /// The user builds run as.
    build_user: String,
    /// The daemon.
    client: Client,
}

/// Looks, prints what was found, and tells by the exit code whether anything fails.
pub(super) fn run(arguments: &Arguments, socket: Option<PathBuf>) -> ExitCode {
    let (mut out, mut talk) = (std::io::stdout(), std::io::stderr());
    let mut screen = Screen::stdio(&mut out, &mut talk);
    match examine(arguments, socket, &mut screen) {
        Ok(code) => code,
        Err(failure) => {
            // Nobody is left to be told that stderr cannot be written.
            let _ = screen.talk(&format!("error: {failure}"));
            ExitCode::from(failure.exit.code())
        }
    }
}

fn examine(arguments: &Arguments, socket: Option<PathBuf>, screen: &mut Screen<'_>) -> Result<ExitCode, Failure> {
    if !::nix::unistd::geteuid().is_root() {
        return Err(
            Failure::new(Exit::NotAllowed, "only root sees all that is to be looked at").hint("run it with `sudo`")
        );
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|err| Failure::new(Exit::Failed, format!("cannot begin: {err}")))?;
    let findings = runtime.block_on(look(&Subject::new(arguments, socket)));
    // A name that is still being looked up is not waited for.
    runtime.shutdown_background();
    let failed = findings.iter().any(|finding| finding.level == Level::Failure);
    if arguments.json {
        print_json(&json!({ "ok": !failed, "findings": findings }), screen)?;
    } else {
        print(&findings, screen)?;
    }
    Ok(ExitCode::from(if failed { Exit::Failed.code() } else { 0 }))
}

impl Subject {
    fn new(arguments: &Arguments, socket: Option<PathBuf>) -> Self {
        let (config, usual) = (config::load(&arguments.config), MachineConfig::default());
        let (state_dir, unit_dir) = match &config {
            Ok(config) => (config.state_dir.clone(), config.systemd.unit_dir.clone()),
            Err(_) => (usual.state_dir, usual.unit_dir),
        };
        Self {
            config,
            config_path: arguments.config.clone(),
            state_dir,
            unit_dir,
            build_user: usual.build_user,
            client: Client::new(socket),
        }
    }
}

/// Makes every check, side by side; what they found comes in this order.
async fn look(subject: &Subject) -> Vec<Finding> {
    let checks: Vec<BoxFuture<'_, Vec<Finding>>> = vec![
        Box::pin(services::configuration(subject)),
        Box::pin(services::daemon(subject)),
        Box::pin(systemd::check(subject)),
        Box::pin(systemd::clock()),
        Box::pin(nix::check(subject)),
        Box::pin(volumes::check(subject)),
        Box::pin(files::check(subject)),
        Box::pin(databases::check(subject)),
        Box::pin(services::names(subject)),
        Box::pin(services::forges(subject)),
    ];
    join_all(checks).await.concat()
}

fn print(findings: &[Finding], screen: &mut Screen<'_>) -> std::io::Result<()> {
    let width = findings.iter().map(|finding| finding.check.chars().count()).max().unwrap_or(0);
    for finding in findings {
        let (mood, level) = match finding.level {
            Level::Ok => (Mood::Good, "ok     "),
            Level::Warning => (Mood::Busy, "warning"),
            Level::Failure => (Mood::Bad, "failure"),
        };
        let mut lines = finding.found.lines().map(clean);
        let first = lines.next().unwrap_or_default();
        screen.line(&format!("{}  {:width$}  {first}", screen.paint(mood, level), clean(&finding.check)))?;
        let indent = " ".repeat(width + 11);
        for line in lines {
            screen.line(&format!("{indent}{line}"))?;
        }
        if let Some(advice) = &finding.advice {
            screen.line(&format!("{indent}{} {}", screen.bold("change:"), clean(advice)))?;
        }
    }
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    let (ok, warnings, failures) = (count(Level::Ok), count(Level::Warning), count(Level::Failure));
    let plural = |count: usize| if count == 1 { "" } else { "s" };
    screen.line(&format!("\n{ok} ok, {warnings} warning{}, {failures} failure{}", plural(warnings), plural(failures)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_read_in_columns_and_end_in_a_count() {
        let (mut out, mut talk) = (Vec::new(), Vec::new());
        let findings = [
            Finding::ok("systemd", "version 257"),
            Finding::warning("nix version", "2.26.3 is old\nand has holes", "upgrade Nix"),
            Finding::failure("dns", "\x1b[2Jno such host", "add a record"),
        ];
        print(&findings, &mut Screen::plain(&mut out, &mut talk, 0)).unwrap();
        insta::assert_snapshot!(String::from_utf8(out).unwrap(), @r#"
        ok       systemd      version 257
        warning  nix version  2.26.3 is old
                              and has holes
                              change: upgrade Nix
        failure  dns          �[2Jno such host
                              change: add a record

        1 ok, 1 warning, 1 failure
        "#);
    }
}
