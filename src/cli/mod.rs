//! The command line: one file per command.
//!
//! stdout is data and stderr is talk. An exit code tells the truth: 0 done, 1 not done, 64 asked for wrongly
//! (`EX_USAGE` of `sysexits.h(3)`), which includes a file that does not pass its check; of what the daemon is asked for
//! also 66 there is no such thing, 69 the daemon cannot be reached, 77 not allowed.

mod ask;
mod build_worker;
mod builds;
mod cancel;
mod certificates;
mod check;
mod check_config;
mod client;
mod daemon;
mod deploy;
mod doctor;
mod failure;
mod follow;
mod gc;
mod host;
mod logs;
mod manual;
mod screen;
mod status;
mod table;
mod teardown;
mod words;

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

use crate::telemetry::chain;

/// The exit code of misuse, and of a file with faults.
const MISUSE: u8 = 64;

/// What can be asked for.
#[derive(Debug, Parser)]
#[command(name = "kennel", version, about, max_term_width = 100, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,

    /// The daemon's socket [default: $KENNEL_SOCKET, else /run/kennel/kennel.sock]
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Ask(ask::Ask),
    Check(check::Arguments),
    CheckConfig(check_config::Arguments),
    Daemon(daemon::Arguments),
    Doctor(doctor::Arguments),
    Host(host::Arguments),
    #[command(hide = true)]
    BuildWorker(build_worker::Arguments),
    #[command(hide = true)]
    Manual(manual::Arguments),
}

/// What a command has to say in the end.
struct Answer {
    stdout: String,
    stderr: String,
    code: u8,
}

/// Does what the arguments ask for.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let answer = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => match arguments.command {
            Command::Ask(what) => return ask::run(&what, arguments.socket),
            Command::Check(arguments) => check::run(&arguments),
            Command::CheckConfig(arguments) => check_config::run(&arguments),
            Command::Daemon(arguments) => daemon::run(&arguments),
            Command::Host(arguments) => host::run(&arguments),
            Command::Doctor(what) => return doctor::run(&what, arguments.socket),
            Command::BuildWorker(arguments) => build_worker::run(&arguments),
            Command::Manual(arguments) => manual::run(&arguments),
        },
        Err(err) => {
            if !err.use_stderr() {
                // Help that was asked for; clap knows whether a terminal can show it in colours.
                let _ = err.print();
                return ExitCode::SUCCESS;
            }
            let stderr = misuse(&err);
            Answer { stdout: String::new(), stderr, code: MISUSE }
        }
    };
    // A reader that has gone away, such as `head`, is no failure of the command's.
    let _ = std::io::stdout().write_all(answer.stdout.as_bytes());
    let _ = std::io::stderr().write_all(answer.stderr.as_bytes());
    ExitCode::from(answer.code)
}

/// What is wrong with the command line, in one line, and where to read on.
fn misuse(err: &clap::Error) -> String {
    if err.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return err.render().to_string();
    }
    let text = err.render().to_string();
    let problem = text.split("\n\n").next().unwrap_or_default();
    let problem = problem.split_whitespace().collect::<Vec<_>>().join(" ");
    format!("{problem}\nhint: `kennel help` lists the commands, `kennel help COMMAND` explains one\n")
}

/// Of a command that has said all it has to say, unless it failed.
impl From<anyhow::Result<()>> for Answer {
    fn from(done: anyhow::Result<()>) -> Self {
        match done {
            Ok(()) => Self { stdout: String::new(), stderr: String::new(), code: 0 },
            Err(err) => Self { stdout: String::new(), stderr: format!("kennel: {}\n", chain(&*err)), code: 1 },
        }
    }
}

impl Answer {
    fn json(value: &serde_json::Value, code: u8) -> Self {
        Self { stdout: format!("{value:#}\n"), stderr: String::new(), code }
    }

    /// All faults of a file: as data when data was asked for.
    fn faults(file: &std::path::Path, faults: &crate::config::Faults, output: Output) -> Self {
        match output {
            Output::Json => Self::json(&serde_json::json!({ "ok": false, "faults": faults }), MISUSE),
            Output::Text => {
                let mut stderr = String::new();
                for fault in faults.as_slice() {
                    // A fault of the file as a whole names it already.
                    let names_file = fault.line.is_none() && file.ends_with(&fault.key) && !fault.key.is_empty();
                    let prefix = if names_file { String::new() } else { format!("{}: ", file.display()) };
                    stderr.push_str(&format!("{prefix}{fault}\n"));
                }
                let count = faults.as_slice().len();
                stderr.push_str(&format!("{count} fault{} found\n", if count == 1 { "" } else { "s" }));
                Self { stdout: String::new(), stderr, code: MISUSE }
            }
        }
    }
}

/// How an answer is written.
#[derive(Debug, Clone, Copy)]
enum Output {
    /// For people.
    Text,
    /// For scripts.
    Json,
}

/// The option every command that scripts read has.
#[derive(Debug, clap::Args)]
struct OutputArguments {
    /// Print JSON, for scripts
    #[arg(long)]
    json: bool,
}

impl OutputArguments {
    fn output(&self) -> Output {
        if self.json { Output::Json } else { Output::Text }
    }
}

/// Notes for people, one a line.
fn notes(notices: &[String]) -> String {
    notices.iter().map(|notice| format!("note: {notice}\n")).collect()
}
