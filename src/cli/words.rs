//! What several commands say alike.

use serde::Serialize;

use super::failure::Failure;
use super::screen::{Mood, Screen, clean};
use crate::api::wire::{BuildView, DeploymentView};
use crate::model::{BuildState, CommitSha, DeploymentState};

/// A commit's first 7 digits.
pub(super) fn short(commit: &CommitSha) -> &str {
    commit.as_str().get(..7).unwrap_or_default()
}

/// `<project>/<branch>/<service>`, as `kennel logs` takes it.
pub(super) fn path_of(deployment: &DeploymentView) -> String {
    format!("{}/{}/{}", deployment.project, clean(&deployment.branch), deployment.service)
}

pub(super) fn build_mood(state: BuildState) -> Mood {
    match state {
        BuildState::Queued | BuildState::Building => Mood::Busy,
        BuildState::Success => Mood::Good,
        BuildState::Failed => Mood::Bad,
        BuildState::Cancelled | BuildState::Superseded => Mood::Past,
    }
}

pub(super) fn deployment_mood(state: DeploymentState) -> Mood {
    match state {
        DeploymentState::Pending | DeploymentState::Starting => Mood::Busy,
        DeploymentState::Live => Mood::Good,
        DeploymentState::Failed => Mood::Bad,
        DeploymentState::Draining | DeploymentState::Retired | DeploymentState::Cancelled | DeploymentState::Noop => {
            Mood::Past
        }
    }
}

/// Says what queued builds wait for, if it is more than their turn.
pub(super) fn show_waiting(builds: &[&BuildView], screen: &mut Screen<'_>) -> std::io::Result<()> {
    let mut waiting = builds.iter().filter(|build| build.state == BuildState::Queued);
    match waiting.find_map(|build| build.reason.as_deref()) {
        Some(reason) => {
            let line = screen.paint(Mood::Busy, &format!("What is queued does not start: {}.", clean(reason)));
            screen.line(&line)?;
            screen
                .talk("`kennel gc` frees what nobody needs any more, and `kennel gc --plan` shows what the rest costs.")
        }
        None => Ok(()),
    }
}

/// A number of `kennel builds` or `kennel status`, for clap.
pub(super) fn id<T: From<i64>>(text: &str) -> Result<T, String> {
    match text.parse::<i64>() {
        Ok(id) if id >= 0 => Ok(id.into()),
        _ => Err("it is not a number, such as 17".to_owned()),
    }
}

/// Prints what scripts read.
pub(super) fn print_json(value: &impl Serialize, screen: &mut Screen<'_>) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|err| Failure::unexpected(&err))?;
    Ok(screen.line(&text)?)
}
