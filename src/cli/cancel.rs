//! `kennel cancel`: stop a build.

use super::client::Client;
use super::failure::{Exit, Failure};
use super::screen::Screen;
use super::words::id;
use crate::api::wire::CancelAnswer;
use crate::model::{BuildId, BuildState};

/// Stop a build that is queued or running
#[derive(Debug, clap::Args)]
pub(super) struct CancelArgs {
    /// The build's number, as `kennel builds` shows it
    #[arg(value_parser = id::<BuildId>)]
    pub(super) build: BuildId,
}

/// Runs the command: it returns when the build has stopped.
///
/// # Errors
/// When the daemon cannot be reached or says no, or the build does not stop.
pub(super) async fn run(args: &CancelArgs, client: &Client, screen: &mut Screen<'_>) -> Result<(), Failure> {
    let path = format!("/builds/{}/cancel?wait=1", args.build);
    let CancelAnswer { build, state } = client.post(&path, None::<&()>).await?;
    match state {
        BuildState::Cancelled => Ok(screen.line(&format!("Build {build} is cancelled."))?),
        BuildState::Queued | BuildState::Building => {
            Err(Failure::new(Exit::Failed, format!("build {build} was told to stop, and has not yet"))
                .hint("`kennel builds` shows when it has"))
        }
        BuildState::Success | BuildState::Failed | BuildState::Superseded => {
            Err(Failure::new(Exit::Failed, format!("build {build} ended before it could be stopped: it is `{state}`")))
        }
    }
}
