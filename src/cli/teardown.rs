//! `kennel teardown`: remove a service or site.

use super::client::Client;
use super::failure::Failure;
use super::screen::{Screen, clean};
use super::words::id;
use crate::api::wire::TeardownAnswer;
use crate::model::DeploymentId;

/// Remove a service or site, with its route and its unit
///
/// The next push to its branch brings it back.
#[derive(Debug, clap::Args)]
pub(super) struct TeardownArgs {
    /// The ID of one of its deployments, as `kennel status` shows it
    #[arg(value_parser = id::<DeploymentId>)]
    pub(super) deployment: DeploymentId,
}

/// Runs the command: it returns when the daemon has taken note.
///
/// # Errors
/// When the daemon cannot be reached, or says no.
pub(super) async fn run(args: &TeardownArgs, client: &Client, screen: &mut Screen<'_>) -> Result<(), Failure> {
    let path = format!("/deployments/{}/teardown", args.deployment);
    let TeardownAnswer { project, branch, service, .. } = client.post(&path, None::<&()>).await?;
    screen.line(&format!("{project}/{}/{service} is being torn down.", clean(&branch)))?;
    Ok(screen.talk(&format!("`kennel status {project}` shows when it is gone."))?)
}
