//! The commands that ask the daemon.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;

use super::client::Client;
use super::failure::{Exit, Failure};
use super::screen::Screen;
use super::{builds, cancel, deploy, gc, logs, status, teardown};

/// What the daemon can be asked for.
#[derive(Debug, Subcommand)]
pub(super) enum Ask {
    Status(status::StatusArgs),
    Builds(builds::BuildsArgs),
    Logs(logs::LogsArgs),
    Deploy(deploy::DeployArgs),
    Cancel(cancel::CancelArgs),
    Teardown(teardown::TeardownArgs),
    Gc(gc::GcArgs),
}

/// Asks, prints what comes, and tells by the exit code how it went.
pub(super) fn run(ask: &Ask, socket: Option<PathBuf>) -> ExitCode {
    let (mut out, mut talk) = (std::io::stdout(), std::io::stderr());
    let mut screen = Screen::stdio(&mut out, &mut talk);
    let done = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(perform(ask, &Client::new(socket), &mut screen)),
        Err(err) => Err(Failure::new(Exit::Failed, format!("cannot begin: {err}"))),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.message.is_empty() {
                // Nobody is left to be told that stderr cannot be written.
                let _ = screen.talk(&format!("error: {failure}"));
            }
            ExitCode::from(failure.exit.code())
        }
    }
}

/// Runs one command.
pub(super) async fn perform(ask: &Ask, client: &Client, screen: &mut Screen<'_>) -> Result<(), Failure> {
    match ask {
        Ask::Status(args) => status::run(args, client, screen).await,
        Ask::Builds(args) => builds::run(args, client, screen).await,
        Ask::Logs(args) => logs::run(args, client, screen).await,
        Ask::Deploy(args) => deploy::run(args, client, screen).await,
        Ask::Cancel(args) => cancel::run(args, client, screen).await,
        Ask::Teardown(args) => teardown::run(args, client, screen).await,
        Ask::Gc(args) => gc::run(args, client, screen).await,
    }
}
