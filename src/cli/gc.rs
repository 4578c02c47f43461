//! `kennel gc`: what artifacts cost on disk, and freeing what nobody needs any more.

use std::time::Duration;

use super::client::Client;
use super::failure::Failure;
use super::screen::{Column, Mood, Row, Screen, clean};
use super::words::print_json;
use crate::api::wire::{Garbage, GcPlan, KeptArtifact};
use crate::host::disk::Bytes;
use crate::model::RootReason;

/// How long Nix may take to look through a large store.
const PATIENCE: Duration = Duration::from_secs(1800);

/// Free what the Nix store keeps for versions that nobody needs any more
///
/// Only what kennel kept once and nothing keeps now is deleted; `nix-collect-garbage` frees the rest.
#[derive(Debug, clap::Args)]
pub(super) struct GcArgs {
    /// Free nothing: show what is kept, why, and what it costs
    #[arg(long)]
    pub(super) plan: bool,
    /// Print JSON instead of a table
    #[arg(long)]
    pub(super) json: bool,
}

/// Runs the command: it returns when everything is gone that can go.
///
/// # Errors
/// When the daemon cannot be reached, says no, or the output cannot be written.
pub(super) async fn run(args: &GcArgs, client: &Client, screen: &mut Screen<'_>) -> Result<(), Failure> {
    let client = client.waiting(PATIENCE);
    if args.plan {
        let plan: GcPlan = client.get("/gc").await?;
        return if args.json { print_json(&plan, screen) } else { Ok(show(&plan, screen)?) };
    }
    let freed: Garbage = client.post("/gc", None::<&()>).await?;
    if args.json {
        return print_json(&freed, screen);
    }
    let said = match freed.paths.len() {
        0 => "There was nothing to free.".to_owned(),
        paths => format!("Freed {} in {}.", Bytes(freed.bytes), counted(paths)),
    };
    Ok(screen.line(&said)?)
}

fn show(plan: &GcPlan, screen: &mut Screen<'_>) -> std::io::Result<()> {
    if plan.kept.is_empty() {
        screen.line("Nothing is kept.")?;
    } else {
        let heading = [
            Column::number("BUILD"),
            Column::text("PROJECT"),
            Column::text("BRANCH"),
            Column::text("SERVICE"),
            Column::mood("REASON"),
            Column::number("COSTS"),
            Column::whole("PATH"),
        ];
        let rows: Vec<Row> = plan.kept.iter().map(row).collect();
        screen.table(&heading, &rows)?;
        screen.line(&format!("{} more are shared by two or more of them.", Bytes(plan.shared_bytes)))?;
    }
    match plan.free.paths.len() {
        0 => screen.line("There is nothing to free."),
        paths => screen.line(&format!("`kennel gc` frees {} in {}.", Bytes(plan.free.bytes), counted(paths))),
    }
}

fn row(kept: &KeptArtifact) -> Row {
    let root = &kept.root;
    let (mood, reason) = match root.reason {
        RootReason::InBuild => (Mood::Busy, "in build"),
        RootReason::Live => (Mood::Good, "live"),
        RootReason::Rollback => (Mood::Past, "rollback"),
        RootReason::Surplus => (Mood::Past, "surplus"),
    };
    Row {
        mood,
        cells: vec![
            root.build.to_string(),
            root.project.to_string(),
            clean(&root.branch),
            root.service.to_string(),
            reason.to_owned(),
            Bytes(kept.exclusive_bytes).to_string(),
            root.store_path.to_string(),
        ],
    }
}

fn counted(paths: usize) -> String {
    format!("{paths} path{}", if paths == 1 { "" } else { "s" })
}
