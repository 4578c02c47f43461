//! `kennel build-worker`: what a build's units run. Not for people.

use std::path::PathBuf;

use super::Answer;
use crate::builder::worker;
use crate::host::BuildPhase;
use crate::model::BuildId;

/// Do one half of a build, inside its unit
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Which half
    phase: Phase,
    /// The build's number
    build: BuildId,
    /// kennel's state directory
    #[arg(long, value_name = "DIR")]
    state_dir: PathBuf,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Phase {
    /// Fetch the commit
    Fetch,
    /// Evaluate and build it
    Build,
}

pub(super) fn run(arguments: &Arguments) -> Answer {
    let phase = match arguments.phase {
        Phase::Fetch => BuildPhase::Fetch,
        Phase::Build => BuildPhase::Build,
    };
    worker::run(phase, arguments.build, &arguments.state_dir).into()
}
