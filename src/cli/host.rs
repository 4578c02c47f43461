//! `kennel host`: the process of root's that does to the machine what the daemon asks for.

use std::path::PathBuf;

use anyhow::Context as _;

use super::Answer;
use crate::sockets::Sockets;
use crate::{config, service, telemetry};

/// Do what the daemon asks for that needs root: what `systemd/kennel-host.service` starts
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The daemon's file
    #[arg(long, value_name = "FILE", default_value = config::DEFAULT_PATH)]
    config: PathBuf,
    /// Whom the daemon runs as
    #[arg(long, value_name = "USER", default_value = "kennel")]
    user: String,
}

pub(super) fn run(arguments: &Arguments) -> Answer {
    serve(arguments).into()
}

fn serve(arguments: &Arguments) -> anyhow::Result<()> {
    telemetry::set_up()?;
    // Sockets are taken before there are threads.
    let sockets = Sockets::passed().context("cannot take the socket that systemd passes")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start threads")?;
    runtime.block_on(service::host::run(&arguments.config, &arguments.user, sockets))
}
