//! What several commands say alike.

use serde::Serialize;

use super::failure::Failure;
use super::screen::{Column, Mood, Row, Screen, clean};
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

fn build_mood(state: BuildState) -> Mood {
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

/// Shows builds in a table that is headed by `number` and, for what `times` tells of each of them, `headings`.
pub(super) fn show_builds<'b, const N: usize>(
    builds: impl IntoIterator<Item = &'b BuildView>,
    number: &'static str,
    headings: [&'static str; N],
    times: impl Fn(&BuildView) -> [String; N],
    screen: &mut Screen<'_>,
) -> std::io::Result<()> {
    let first = [
        Column::number(number),
        Column::text("PROJECT"),
        Column::text("BRANCH"),
        Column::text("COMMIT"),
        Column::mood("STATE"),
    ];
    let heading: Vec<_> =
        first.into_iter().chain(headings.map(Column::number)).chain([Column::text("TITLE")]).collect();
    let row = |build: &BuildView| {
        let first = [
            build.id.to_string(),
            build.project.to_string(),
            clean(&build.branch),
            short(&build.commit).to_owned(),
            build.state.to_string(),
        ];
        let title = clean(build.title.as_deref().unwrap_or_default());
        Row { mood: build_mood(build.state), cells: first.into_iter().chain(times(build)).chain([title]).collect() }
    };
    let rows: Vec<Row> = builds.into_iter().map(row).collect();
    screen.table(&heading, &rows)
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
