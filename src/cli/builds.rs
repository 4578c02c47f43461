//! `kennel builds`: which commits were built, and how it went.

use super::client::Client;
use super::failure::Failure;
use super::screen::{Screen, span};
use super::words::{print_json, show_builds, show_waiting};
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
    let now = screen.now;
    let times = |build: &BuildView| {
        let ended = build.finished_at.unwrap_or(now);
        let duration = build.started_at.map_or_else(|| "-".to_owned(), |started| span(ended - started));
        [span(now - build.queued_at), duration]
    };
    show_builds(&builds, "ID", ["AGE", "DURATION"], times, screen)?;
    Ok(show_waiting(&builds.iter().collect::<Vec<_>>(), screen)?)
}
