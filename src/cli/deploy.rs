//! `kennel deploy`: build and deploy a commit without a push.

use std::collections::BTreeMap;
use std::time::Duration;

use super::client::Client;
use super::failure::{Exit, Failure};
use super::follow::{PATIENCE, follow_build};
use super::screen::{Mood, Screen, clean};
use super::words::{path_of, short};
use crate::api::wire::{BuildDetail, DeployAnswer, DeployRequest, DeploymentInfo, DeploymentView};
use crate::model::{BuildId, BuildState, DeploymentId, DeploymentState, ProjectName};

const POLL: Duration = Duration::from_millis(200);

/// Build and deploy a commit without a push
///
/// Without COMMIT it is the newest one kennel knows of the branch.
#[derive(Debug, clap::Args)]
pub(super) struct DeployArgs {
    /// The project
    pub(super) project: ProjectName,
    /// The branch, or `pr-<number>`
    pub(super) branch: String,
    /// The commit: all 40 digits, or 7 and more of one that kennel has built before
    pub(super) commit: Option<String>,
    /// Show the build's logs, and return when everything is live; exit with 1 if anything is not
    #[arg(long, short)]
    pub(super) follow: bool,
}

/// Runs the command.
///
/// # Errors
/// When the daemon cannot be reached or says no; with `--follow` also when the commit does not go live.
pub(super) async fn run(args: &DeployArgs, client: &Client, screen: &mut Screen<'_>) -> Result<(), Failure> {
    let request = DeployRequest { branch: args.branch.clone(), commit: args.commit.clone() };
    let path = format!("/projects/{}/deploy", args.project);
    let DeployAnswer { build, project, branch, commit } = client.post(&path, Some(&request)).await?;
    screen.line(&format!("Build {build} of {project}/{} at {} is queued.", clean(&branch), short(&commit)))?;
    if !args.follow {
        let next = format!("`kennel logs --build {build} -f` follows it, `kennel status {project}` shows what runs.");
        return Ok(screen.talk(&next)?);
    }
    let client = client.patient(PATIENCE);
    let detail = follow_build(&client, build, screen).await?;
    let built = match detail.build.state {
        BuildState::Success => true,
        BuildState::Failed => false,
        BuildState::Superseded => return Err(ended(build, "a newer commit of its branch came before it started")),
        BuildState::Queued | BuildState::Building | BuildState::Cancelled => {
            return Err(ended(build, "it was cancelled"));
        }
    };
    let live = follow_deployments(&client, detail, screen).await?;
    match (built, live) {
        (true, true) => Ok(()),
        (false, _) => Err(ended(build, "not everything could be built")
            .hint(&format!("`kennel status {project}` shows why, `kennel logs --build {build}` the logs"))),
        (true, false) => Err(Failure::new(Exit::Failed, "not everything went live")
            .hint(&format!("`kennel status {project}` shows why, and what serves instead"))),
    }
}

fn ended(build: BuildId, why: &str) -> Failure {
    Failure::new(Exit::Failed, format!("build {build} did not succeed: {why}"))
}

/// Tells of each deployment until none of them is on its way any more. Returns whether all of them went live.
async fn follow_deployments(
    client: &Client,
    mut detail: BuildDetail,
    screen: &mut Screen<'_>,
) -> Result<bool, Failure> {
    let mut told: BTreeMap<DeploymentId, DeploymentState> = BTreeMap::new();
    loop {
        for info in detail.deployments.iter().rev() {
            let DeploymentView { id, state, .. } = info.deployment;
            if told.insert(id, state) != Some(state) {
                tell(info, screen)?;
            }
        }
        if detail.deployments.iter().all(|info| is_settled(info.deployment.state)) {
            return Ok(detail.deployments.iter().all(|info| went_live(&info.deployment)));
        }
        tokio::time::sleep(POLL).await;
        detail = client.get(&format!("/builds/{}", detail.build.id)).await?;
    }
}

fn is_settled(state: DeploymentState) -> bool {
    match state {
        DeploymentState::Pending | DeploymentState::Starting => false,
        DeploymentState::Live
        | DeploymentState::Draining
        | DeploymentState::Retired
        | DeploymentState::Failed
        | DeploymentState::Cancelled
        | DeploymentState::Noop => true,
    }
}

fn went_live(deployment: &DeploymentView) -> bool {
    deployment.live_at.is_some() || deployment.state == DeploymentState::Noop
}

fn tell(info: &DeploymentInfo, screen: &mut Screen<'_>) -> std::io::Result<()> {
    let DeploymentInfo { deployment, url } = info;
    let path = path_of(deployment);
    match deployment.state {
        DeploymentState::Pending => screen.talk(&format!("{path} waits for its turn.")),
        DeploymentState::Starting => screen.talk(&format!("{path} is starting.")),
        DeploymentState::Live => {
            let live = screen.paint(Mood::Good, "live");
            screen.line(&format!("{path} is {live} at {url}"))
        }
        DeploymentState::Noop => screen.line(&format!("{path} is unchanged: the running version stays, at {url}")),
        DeploymentState::Draining | DeploymentState::Retired => {
            screen.talk(&format!("{path} gave way to a newer version."))
        }
        DeploymentState::Failed | DeploymentState::Cancelled => {
            let state = screen.paint(Mood::Bad, deployment.state.word());
            screen.talk(&format!("{path}: {state}"))?;
            for line in deployment.reason.as_deref().unwrap_or_default().lines() {
                screen.talk(&format!("    {}", clean(line)))?;
            }
            Ok(())
        }
    }
}
