//! Follows the logs of a build, all of them at once, until it has ended.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::client::Client;
use super::failure::{Exit, Failure};
use super::screen::{Screen, clean};
use crate::api::wire::{BuildDetail, BuildView, LogInfo};
use crate::model::{BuildId, BuildState, ServiceName};

/// How long a restart of the daemon may take without ending what follows a build.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// How often to look for new logs.
const POLL: Duration = Duration::from_millis(250);
/// How often a log whose connection broke is taken up again.
const RESUMES: usize = 20;
/// The longest line that is kept together.
const LINE_MAX: usize = 64 * 1024;

/// Takes a log apart into lines.
#[derive(Debug, Default)]
pub(super) struct Lines(Vec<u8>);

impl Lines {
    /// Adds bytes, and returns the lines that are whole now, without their ends.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        self.0.extend_from_slice(bytes);
        let mut lines = Vec::new();
        let mut begin = 0;
        while let Some(end) = self.0[begin..].iter().position(|&b| b == b'\n') {
            lines.push(self.0[begin..begin + end].to_vec());
            begin += end + 1;
        }
        self.0.drain(..begin);
        if self.0.len() > LINE_MAX {
            lines.push(std::mem::take(&mut self.0));
        }
        lines
    }

    /// What is left at the end.
    pub(super) fn rest(self) -> Option<Vec<u8>> {
        (!self.0.is_empty()).then_some(self.0)
    }
}

/// Prints every line of every log of a build as it comes, each behind its log's name, until the build has ended.
///
/// # Errors
/// When the daemon cannot be reached or says no, or a log breaks off for good.
pub(super) async fn follow_build(
    client: &Client,
    build: BuildId,
    screen: &mut Screen<'_>,
) -> Result<BuildDetail, Failure> {
    let (sender, mut lines) = mpsc::channel::<(ServiceName, Vec<u8>)>(64);
    let mut readers: JoinSet<Result<(), Failure>> = JoinSet::new();
    let mut seen: BTreeSet<ServiceName> = BTreeSet::new();
    let mut told = None;
    let mut tick = tokio::time::interval(POLL);
    let detail = loop {
        tokio::select! {
            Some((name, line)) = lines.recv() => print(screen, &name, &line)?,
            _ = tick.tick() => {
                // In this order: a build that has ended begins no log.
                let detail: BuildDetail = client.get(&format!("/builds/{build}")).await?;
                let logs: Vec<LogInfo> = client.get(&format!("/builds/{build}/logs")).await?;
                for LogInfo { name, .. } in logs {
                    if seen.insert(name.clone()) {
                        readers.spawn(read_log(client.clone(), build, name, sender.clone()));
                    }
                }
                let state = detail.build.state;
                // Not what it waits for: how much is free changes all the time.
                let now = (state, detail.build.reason.is_some());
                if told.replace(now) != Some(now) {
                    tell(screen, &detail.build)?;
                }
                if state.is_terminal() {
                    break detail;
                }
            }
        }
    };
    drop(sender);
    while let Some((name, line)) = lines.recv().await {
        print(screen, &name, &line)?;
    }
    while let Some(ended) = readers.join_next().await {
        ended.map_err(|err| Failure::new(Exit::Failed, format!("a log could not be followed: {err}")))??;
    }
    if let Some(reason) = &detail.build.reason {
        for line in reason.lines() {
            screen.talk(&format!("    {}", clean(line)))?;
        }
    }
    Ok(detail)
}

fn tell(screen: &mut Screen<'_>, build: &BuildView) -> std::io::Result<()> {
    let BuildView { id: build, state, reason, .. } = build;
    match state {
        BuildState::Queued => match reason {
            Some(reason) => screen.talk(&format!("Build {build} does not start: {}.", clean(reason))),
            None => screen.talk(&format!("Build {build} waits for a worker.")),
        },
        BuildState::Building => screen.talk(&format!("Build {build} runs.")),
        BuildState::Success => screen.talk(&format!("Build {build} succeeded.")),
        BuildState::Failed | BuildState::Cancelled => screen.talk(&format!("Build {build} {state}:")),
        BuildState::Superseded => screen.talk(&format!("Build {build} was superseded by a newer commit.")),
    }
}

fn print(screen: &mut Screen<'_>, name: &ServiceName, line: &[u8]) -> std::io::Result<()> {
    // `fetch` comes first, so most prefixes are of one width.
    screen.log_line(&format!("{:<5} | ", name.as_str()), line)
}

/// Sends every line of a log on. One whose connection breaks, as when the daemon restarts, is taken up where it broke.
async fn read_log(
    client: Client,
    build: BuildId,
    name: ServiceName,
    sender: mpsc::Sender<(ServiceName, Vec<u8>)>,
) -> Result<(), Failure> {
    let mut lines = Lines::default();
    let mut read = 0;
    for _ in 0..RESUMES {
        let mut stream = client.log(&format!("/builds/{build}/logs/{name}?follow=1")).await?;
        let mut skip: usize = read;
        let broke = loop {
            match stream.next().await {
                Ok(Some(bytes)) => {
                    let fresh = bytes.get(skip.min(bytes.len())..).unwrap_or_default();
                    skip -= bytes.len() - fresh.len();
                    read += fresh.len();
                    for line in lines.push(fresh) {
                        if sender.send((name.clone(), line)).await.is_err() {
                            return Ok(());
                        }
                    }
                }
                Ok(None) => break false,
                Err(_) => break true,
            }
        };
        if !broke {
            if let Some(rest) = lines.rest() {
                drop(sender.send((name, rest)).await);
            }
            return Ok(());
        }
        tokio::time::sleep(POLL).await;
    }
    Err(Failure::new(Exit::Failed, format!("the log of {name} of build {build} breaks off again and again")))
}
