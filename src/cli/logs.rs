//! `kennel logs`: what a build wrote, or what a running service writes.

use std::os::unix::process::CommandExt as _;

use super::client::{Client, LogStream};
use super::failure::{Exit, Failure};
use super::follow::{Lines, PATIENCE, follow_build};
use super::screen::Screen;
use super::words::{id, path_of};
use crate::api::wire::{DeploymentInfo, DeploymentView, LogInfo};
use crate::model::{BuildId, Kind, ProjectName, ServiceName, TargetTag};

/// Show the logs of a build, or the journal of a running service
#[derive(Debug, clap::Args)]
pub(super) struct LogsArgs {
    /// PROJECT/BRANCH/SERVICE, or just SERVICE; with `--build`, one of the build's logs (`fetch`, or a service)
    #[arg(value_name = "SERVICE")]
    pub(super) service: Option<String>,
    /// Show what this build wrote
    #[arg(long, short, value_name = "ID", value_parser = id::<BuildId>, conflicts_with_all = ["project", "branch"])]
    pub(super) build: Option<BuildId>,
    /// Show also what is still to come
    #[arg(long, short)]
    pub(super) follow: bool,
    /// The service's project
    #[arg(long, short)]
    pub(super) project: Option<ProjectName>,
    /// The service's branch
    #[arg(long)]
    pub(super) branch: Option<String>,
}

/// Runs the command. For a service's journal the process becomes `journalctl`.
///
/// # Errors
/// When the daemon cannot be reached or says no, there is no such log, or the output cannot be written.
pub(super) async fn run(args: &LogsArgs, client: &Client, screen: &mut Screen<'_>) -> Result<(), Failure> {
    match (args.build, &args.service) {
        (Some(build), Some(name)) => {
            let name = name.parse().map_err(|err| Failure::new(Exit::Misuse, format!("{err}")))?;
            show_log(client, screen, build, &name, args.follow).await
        }
        (Some(build), None) if args.follow => {
            follow_build(&client.patient(PATIENCE), build, screen).await?;
            Ok(())
        }
        (Some(build), None) => show_logs(client, screen, build).await,
        (None, Some(_)) => {
            let tag = find_journal(client, args).await?;
            Err(become_journalctl(&tag, args))
        }
        (None, None) => Err(Failure::new(Exit::Misuse, "say whose logs")
            .hint("`kennel logs PROJECT/BRANCH/SERVICE` or `kennel logs --build ID`")),
    }
}

/// One log: to a file byte for byte.
async fn show_log(
    client: &Client,
    screen: &mut Screen<'_>,
    build: BuildId,
    name: &ServiceName,
    follow: bool,
) -> Result<(), Failure> {
    let flag = if follow { "?follow=1" } else { "" };
    let mut stream = client.log(&format!("/builds/{build}/logs/{name}{flag}")).await?;
    if screen.terminal {
        return show_lines(screen, name, stream).await;
    }
    while let Some(bytes) = stream.next().await.map_err(|err| broke_off(name, &err))? {
        screen.bytes(&bytes)?;
    }
    Ok(())
}

/// All logs, each under its name and ending with its line.
async fn show_logs(client: &Client, screen: &mut Screen<'_>, build: BuildId) -> Result<(), Failure> {
    let logs: Vec<LogInfo> = client.get(&format!("/builds/{build}/logs")).await?;
    if logs.is_empty() {
        return Ok(screen.talk(&format!("Build {build} has no logs: it has not begun, or it is over 30 days old."))?);
    }
    for (at, LogInfo { name, .. }) in logs.iter().enumerate() {
        let gap = if at == 0 { "" } else { "\n" };
        let heading = screen.bold(&format!("==> {name} <=="));
        screen.line(&format!("{gap}{heading}"))?;
        show_lines(screen, name, client.log(&format!("/builds/{build}/logs/{name}")).await?).await?;
    }
    Ok(())
}

async fn show_lines(screen: &mut Screen<'_>, name: &ServiceName, mut stream: LogStream) -> Result<(), Failure> {
    let mut lines = Lines::default();
    while let Some(bytes) = stream.next().await.map_err(|err| broke_off(name, &err))? {
        for line in lines.push(&bytes) {
            screen.log_line("", &line)?;
        }
    }
    if let Some(rest) = lines.rest() {
        screen.log_line("", &rest)?;
    }
    Ok(())
}

fn broke_off(name: &ServiceName, err: &hyper::Error) -> Failure {
    Failure::new(Exit::Failed, format!("the log of {name} broke off: {err}"))
}

/// What `journalctl` calls the one service that fits.
async fn find_journal(client: &Client, args: &LogsArgs) -> Result<TargetTag, Failure> {
    let text = args.service.as_deref().unwrap_or_default();
    let (project, branch, service) = match take_apart(text) {
        Some((project, branch, service)) => (Some(project), Some(branch), service),
        None => (args.project.as_ref().map(ProjectName::as_str), args.branch.as_deref(), text),
    };
    let infos: Vec<DeploymentInfo> = client.get("/deployments").await?;
    let mut fitting: Vec<&DeploymentView> = infos.iter().map(|info| &info.deployment).collect();
    fitting.retain(|d| {
        d.service.as_str() == service
            && project.is_none_or(|project| d.project.as_str() == project)
            && branch.is_none_or(|branch| d.branch == branch)
    });
    fitting.sort_by_key(|d| (path_of(d), d.id));
    fitting.dedup_by(|a, b| a.journal_tag == b.journal_tag);
    match fitting[..] {
        [] => {
            Err(Failure::new(Exit::NoSuch, format!("there is no service `{text}`")).hint("`kennel status` lists them"))
        }
        [one] if one.kind == Kind::Site => {
            let message = format!("{} is a static site: it has no process, and so no journal", path_of(one));
            Err(Failure::new(Exit::NoSuch, message)
                .hint(&format!("`kennel logs --build {} {}` shows how it was built", one.build, one.service)))
        }
        [one] => Ok(one.journal_tag.clone()),
        _ => {
            let paths: Vec<String> = fitting.iter().map(|d| format!("`{}`", path_of(d))).collect();
            Err(Failure::new(Exit::Misuse, format!("there is more than one `{text}`"))
                .hint(&format!("say {}", paths.join(" or "))))
        }
    }
}

/// Project, branch (which may hold a `/`) and service.
fn take_apart(text: &str) -> Option<(&str, &str, &str)> {
    let (project, rest) = text.split_once('/')?;
    let (branch, service) = rest.rsplit_once('/')?;
    Some((project, branch, service))
}

/// Returns only when that fails.
fn become_journalctl(tag: &TargetTag, args: &LogsArgs) -> Failure {
    let mut command = tokio::process::Command::new("journalctl");
    command.arg(format!("--identifier={tag}"));
    if args.follow {
        command.arg("--follow");
    }
    let err = command.as_std_mut().exec();
    Failure::new(Exit::Failed, format!("cannot run `journalctl --identifier={tag}`: {err}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_branch_may_hold_slashes() {
        assert_eq!(take_apart("hello/main/api"), Some(("hello", "main", "api")));
        assert_eq!(take_apart("hello/feature/x/api"), Some(("hello", "feature/x", "api")));
        assert_eq!(take_apart("hello/api"), None);
        assert_eq!(take_apart("api"), None);
    }
}
