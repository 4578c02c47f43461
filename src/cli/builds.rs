//! `kennel builds`: which commits were built, and how it went.

use super::client::Client;
use super::failure::Failure;
use super::screen::{Column, Row, Screen, clean, span};
use super::words::{build_mood, print_json, short, show_waiting};
use crate::api::wire::BuildView;
use crate::model::ProjectName;

/// List builds, newest first
#[derive(Debug, clap::Args)]
pub(super) struct BuildsArgs {
    /// Only those of this project
    pub(super) project: Option<ProjectName>,
    /// At most so many
    #[arg(long, short = 'n', value_name = "COUNT", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(super) limit: u32,
    /// Print JSON instead of a table
    #[arg(long)]
    pub(super) json: bool,
}

/// Runs the command.
///
/// # Errors
/// When the daemon cannot be reached, says no, or the output cannot be written.
pub(super) async fn run(args: &BuildsArgs, client: &Client, screen: &mut Screen<'_>) -> Result<(), Failure> {
    let only = args.project.as_ref().map(|project| format!("&project={project}")).unwrap_or_default();
    let builds: Vec<BuildView> = client.get(&format!("/builds?limit={}{only}", args.limit)).await?;
    if args.json {
        return print_json(&builds, screen);
    }
    if builds.is_empty() {
        return Ok(screen.line("Nothing was built yet. Push to a project, or see `kennel deploy --help`.")?);
    }
    let heading = [
        Column::number("ID"),
        Column::text("PROJECT"),
        Column::text("BRANCH"),
        Column::text("COMMIT"),
        Column::mood("STATE"),
        Column::number("AGE"),
        Column::number("DURATION"),
        Column::text("TITLE"),
    ];
    let rows: Vec<Row> = builds.iter().map(|build| row(build, screen.now)).collect();
    screen.table(&heading, &rows)?;
    Ok(show_waiting(&builds.iter().collect::<Vec<_>>(), screen)?)
}

fn row(build: &BuildView, now: i64) -> Row {
    let ended = build.finished_at.unwrap_or(now);
    Row {
        mood: build_mood(build.state),
        cells: vec![
            build.id.to_string(),
            build.project.to_string(),
            clean(&build.branch),
            short(&build.commit).to_owned(),
            build.state.to_string(),
            span(now - build.queued_at),
            build.started_at.map_or_else(|| "-".to_owned(), |started| span(ended - started)),
            clean(build.title.as_deref().unwrap_or_default()),
        ],
    }
}
