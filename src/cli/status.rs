//! `kennel status`: what runs, what is on its way, and what went wrong.

use serde::Serialize;

use super::certificates;
use super::client::Client;
use super::failure::Failure;
use super::screen::{Column, Mood, Row, Screen, clean, span};
use super::words::{deployment_mood, path_of, print_json, short, show_builds, show_waiting};
use crate::api::wire::{BuildView, CertificateInfo, DeploymentInfo, DeploymentView, ProjectView};
use crate::model::{BuildState, DeploymentState, ProjectName};

/// As many rows as there may be.
const LIMIT: &str = "limit=10000";

/// Show what runs, what is on its way, and what went wrong
#[derive(Debug, clap::Args)]
pub(super) struct StatusArgs {
    /// Only this project
    pub(super) project: Option<ProjectName>,
    /// Print JSON instead of tables
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Serialize)]
struct Everything {
    projects: Vec<ProjectView>,
    builds: Vec<BuildView>,
    deployments: Vec<DeploymentInfo>,
    certificates: Vec<CertificateInfo>,
}

/// Runs the command.
///
/// # Errors
/// When the daemon cannot be reached, says no, or the output cannot be written.
pub(super) async fn run(args: &StatusArgs, client: &Client, screen: &mut Screen<'_>) -> Result<(), Failure> {
    let only = args.project.as_ref().map(|project| format!("project={project}")).unwrap_or_default();
    let (builds, deployments) = (format!("/builds?current=1&{LIMIT}&{only}"), format!("/deployments?{LIMIT}&{only}"));
    let (builds, deployments, mut projects, mut certificates): (_, _, Vec<ProjectView>, Vec<CertificateInfo>) = tokio::try_join!(
        client.get(&builds),
        client.get(&deployments),
        client.get("/projects"),
        client.get("/certificates")
    )?;
    projects.retain(|project| args.project.as_ref().is_none_or(|only| project.name == *only));
    // Hosts of a project's own choice cannot be told from those of others.
    certificates.retain(|_| args.project.is_none());
    let everything = Everything { projects, builds, deployments, certificates };
    if args.json {
        return print_json(&everything, screen);
    }
    everything.show(screen)?;
    Ok(())
}

impl Everything {
    fn show(&self, screen: &mut Screen<'_>) -> std::io::Result<()> {
        let open: Vec<&BuildView> = self.builds.iter().filter(|build| !build.state.is_terminal()).collect();
        if !open.is_empty() {
            let now = screen.now;
            let times = |build: &BuildView| [span(now - build.started_at.unwrap_or(build.queued_at))];
            // The one that is nearest to its end comes first.
            show_builds(open.iter().rev().copied(), "BUILD", ["FOR"], times, screen)?;
            show_waiting(&open, screen)?;
            screen.line("")?;
        }
        let shown = self.shown();
        if shown.is_empty() {
            self.show_nothing(screen, open.is_empty())?;
        } else {
            let heading = [
                Column::number("ID"),
                Column::text("PROJECT"),
                Column::text("BRANCH"),
                Column::text("SERVICE"),
                Column::mood("STATE"),
                Column::text("COMMIT"),
                Column::number("SINCE"),
                Column::whole("URL"),
            ];
            let rows: Vec<Row> = shown.iter().map(|info| deployment(info, screen.now)).collect();
            screen.table(&heading, &rows)?;
        }
        certificates::show(&self.certificates, screen)?;
        self.show_failures(screen)?;
        self.show_flags(screen)
    }

    /// What is there of each target, in order: all that has not ended; what failed; else whatever came last.
    fn shown(&self) -> Vec<&DeploymentInfo> {
        let mut shown: Vec<&DeploymentInfo> = self
            .deployments
            .iter()
            .filter(|info| {
                let state = info.deployment.state;
                !state.is_terminal() || state == DeploymentState::Failed || !self.has_other(&info.deployment)
            })
            .collect();
        shown.sort_by(|a, b| {
            let (a, b) = (&a.deployment, &b.deployment);
            (&a.project, &a.branch, &a.service, b.id).cmp(&(&b.project, &b.branch, &b.service, a.id))
        });
        shown
    }

    fn has_other(&self, this: &DeploymentView) -> bool {
        self.deployments.iter().any(|info| info.deployment.id != this.id && is_same_target(&info.deployment, this))
    }

    fn show_nothing(&self, screen: &mut Screen<'_>, idle: bool) -> std::io::Result<()> {
        let Some(project) = self.projects.first() else {
            screen.line("kennel serves no project yet.")?;
            return screen.line("Add one to /etc/kennel/config.toml, then `systemctl reload kennel`.");
        };
        screen.line("Nothing runs yet.")?;
        if idle {
            screen.line(&format!(
                "Push to `{0}`, or ask for a commit of it: `kennel deploy {0} BRANCH COMMIT`.",
                project.name
            ))?;
        }
        Ok(())
    }

    fn show_failures(&self, screen: &mut Screen<'_>) -> std::io::Result<()> {
        for build in self.builds.iter().filter(|build| build.state == BuildState::Failed) {
            let age = build.finished_at.map(|at| format!(", {} ago", span(screen.now - at))).unwrap_or_default();
            let title = format!(
                "Build {} of {}/{} failed ({}{age})",
                build.id,
                build.project,
                clean(&build.branch),
                short(&build.commit)
            );
            let next = format!("`kennel logs --build {}` shows its logs.", build.id);
            show_failure(screen, &title, build.reason.as_deref(), &next)?;
        }
        let failed = |info: &&DeploymentInfo| info.deployment.state == DeploymentState::Failed;
        for DeploymentInfo { deployment, .. } in self.deployments.iter().filter(failed) {
            let age = deployment.finished_at.map(|at| format!(", {} ago", span(screen.now - at))).unwrap_or_default();
            let path = path_of(deployment);
            let title = format!("Deployment {} of {path} failed ({}{age})", deployment.id, short(&deployment.commit));
            let live = self
                .deployments
                .iter()
                .map(|info| &info.deployment)
                .find(|other| other.state == DeploymentState::Live && is_same_target(other, deployment));
            let next = match live {
                Some(live) => format!("Deployment {} ({}) keeps serving.", live.id, short(&live.commit)),
                None => format!("`kennel logs {path}` shows its journal."),
            };
            show_failure(screen, &title, deployment.reason.as_deref(), &next)?;
        }
        Ok(())
    }

    /// What only the operator can put in order.
    fn show_flags(&self, screen: &mut Screen<'_>) -> std::io::Result<()> {
        let mut lines = Vec::new();
        for project in self.projects.iter().filter(|project| !project.configured) {
            lines.push(format!(
                "`{}` is no longer in the daemon's file: it is served as before, and takes no pushes.",
                project.name
            ));
        }
        for DeploymentInfo { deployment, .. } in &self.deployments {
            if let (true, Some(reason)) = (deployment.state == DeploymentState::Starting, &deployment.reason) {
                lines.push(format!("{} waits: {}", path_of(deployment), clean(reason)));
            }
            if let Some(reason) = &deployment.unhealthy {
                lines.push(format!(
                    "{} gets no visitors until it is healthy again: {}",
                    path_of(deployment),
                    clean(reason)
                ));
            }
            if deployment.unnamed && deployment.state == DeploymentState::Live {
                lines.push(format!(
                    "{} is no longer in kennel.toml: `kennel teardown {}` removes it.",
                    path_of(deployment),
                    deployment.id
                ));
            }
        }
        for DeploymentInfo { deployment, .. } in &self.deployments {
            if let Some(at) = deployment.expired_at {
                lines.push(format!(
                    "{} was torn down {} ago: {}. The next push to `{}` brings it back.",
                    path_of(deployment),
                    span(screen.now - at),
                    clean(deployment.reason.as_deref().unwrap_or("nobody used it")),
                    clean(&deployment.branch)
                ));
            }
        }
        if !lines.is_empty() {
            screen.line("")?;
        }
        lines.iter().try_for_each(|line| screen.line(line))
    }
}

fn is_same_target(a: &DeploymentView, b: &DeploymentView) -> bool {
    (&a.project, &a.branch, &a.service) == (&b.project, &b.branch, &b.service)
}

fn show_failure(screen: &mut Screen<'_>, title: &str, reason: Option<&str>, next: &str) -> std::io::Result<()> {
    screen.line("")?;
    let title = screen.paint(Mood::Bad, title);
    screen.line(&title)?;
    for line in reason.unwrap_or("It left no reason.").lines() {
        screen.line(format!("    {}", clean(&line.replace('\t', "    "))).trim_end())?;
    }
    screen.line(&format!("  {next}"))
}

fn deployment(info: &DeploymentInfo, now: i64) -> Row {
    let DeploymentInfo { deployment, url } = info;
    let state = match deployment.step {
        _ if deployment.unhealthy.is_some() => format!("{} (unhealthy)", deployment.state),
        Some(step) if deployment.state == DeploymentState::Starting => format!("{} ({step})", deployment.state),
        _ => deployment.state.to_string(),
    };
    let since = match deployment.state {
        DeploymentState::Live => deployment.live_at,
        DeploymentState::Pending => None,
        DeploymentState::Starting | DeploymentState::Draining => deployment.started_at,
        DeploymentState::Retired | DeploymentState::Failed | DeploymentState::Cancelled | DeploymentState::Noop => {
            deployment.finished_at
        }
    };
    Row {
        mood: if deployment.unhealthy.is_some() { Mood::Bad } else { deployment_mood(deployment.state) },
        cells: vec![
            deployment.id.to_string(),
            deployment.project.to_string(),
            clean(&deployment.branch),
            deployment.service.to_string(),
            state,
            short(&deployment.commit).to_owned(),
            span(now - since.unwrap_or(deployment.created_at)),
            if deployment.state == DeploymentState::Live { url.clone() } else { String::new() },
        ],
    }
}
