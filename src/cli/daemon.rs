//! `kennel daemon`: the service itself.

use std::path::PathBuf;

use anyhow::Context as _;

use super::Answer;
use crate::handover::{self, Predecessor};
use crate::sockets::Sockets;
use crate::{config, service, telemetry};

/// Run the service: what `systemd/kennel.service` starts
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The daemon's file
    #[arg(long, value_name = "FILE", default_value = config::DEFAULT_PATH)]
    config: PathBuf,
    /// Take the place of the kennel at the other end of standard input
    #[arg(long, value_enum, hide = true)]
    hand_over: Option<HandOver>,
}

/// What a process that kennel itself starts does.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum HandOver {
    /// Start the one that takes the place, and end.
    Start,
    /// Take the place.
    Take,
}

pub(super) fn run(arguments: &Arguments) -> Answer {
    serve(arguments).into()
}

fn serve(arguments: &Arguments) -> anyhow::Result<()> {
    telemetry::set_up()?;
    // Sockets are taken before there are threads.
    let (predecessor, sockets) = match arguments.hand_over {
        None => (None, Sockets::passed().context("cannot take the sockets that systemd passes")?),
        Some(HandOver::Start) => return handover::start_again(&arguments.config),
        Some(HandOver::Take) => {
            let (predecessor, sockets) = Predecessor::meet().context("cannot take the place of another kennel")?;
            (Some(predecessor), sockets)
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start threads")?;
    runtime.block_on(service::run(&arguments.config, sockets, predecessor))
}
