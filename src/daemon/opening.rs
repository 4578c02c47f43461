//! What has to be read, opened, locked and listened on before anything starts.

use std::collections::HashMap;
use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::Context as _;
use nix::fcntl::{Flock, FlockArg};
use secrecy::SecretString;
use tokio::net::TcpListener;
use tracing::warn;

use crate::config::{self, Config};
use crate::host::disk;
use crate::host::key::HostKey;
use crate::model::ProjectName;
use crate::router::Pages;
use crate::sockets::Sockets;
use crate::store::{Removal, Store};
use crate::telemetry::chain;

/// Opens the database. On a full disk that takes what is kept in reserve for it.
pub(super) async fn open_store(state_dir: &Path) -> anyhow::Result<Store> {
    let path = state_dir.join("kennel.db");
    let refused = match Store::open(&path).await {
        Ok(store) => return Ok(store),
        Err(err) => err,
    };
    let dir = state_dir.to_owned();
    match tokio::task::spawn_blocking(move || disk::give_up_reserve(&dir)).await? {
        Ok(true) => warn!(error = %chain(&refused), "Opening the database with the room kept in reserve"),
        Ok(false) | Err(_) => return Err(refused.into()),
    }
    Ok(Store::open(&path).await?)
}

/// Notes which projects are configured; the others serve on, unless the operator wants them torn down.
pub(super) async fn note_projects(store: &Store, config: &Config) -> anyhow::Result<()> {
    store.note_projects(config.projects.keys()).await?;
    for (project, branch) in store.unconfigured_branches().await? {
        if config.prune_projects {
            let reason = "its project is no longer configured".to_owned();
            store.accept_removal(None, &Removal { project, branch, reason }).await?;
        } else {
            warn!(
                project.name = %project, branch.name = %branch.name(),
                "{project} is no longer configured; {} serves on until it is torn down", branch.name()
            );
        }
    }
    Ok(())
}

/// Only one daemon may use a state directory.
pub(super) fn lock(path: &Path) -> anyhow::Result<Flock<File>> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|(_, errno)| errno)
        .with_context(|| format!("another kennel uses {}", path.display()))
}

/// The key that passwords are derived from, made on the first start.
pub(super) async fn host_key(state_dir: &Path) -> anyhow::Result<HostKey> {
    let dir = state_dir.to_owned();
    Ok(tokio::task::spawn_blocking(move || HostKey::ensure(&dir))
        .await
        .context("reading the key was interrupted")??)
}

/// The webhook secret of each project.
pub(super) async fn read_secrets(config: &Config) -> anyhow::Result<HashMap<ProjectName, SecretString>> {
    let projects = config.projects.clone();
    tokio::task::spawn_blocking(move || {
        projects
            .into_iter()
            .map(|(name, project)| Ok((name, config::read_webhook_secret(&project)?)))
            .collect::<anyhow::Result<_>>()
    })
    .await
    .context("reading the webhook secrets was interrupted")?
}

/// The API's token, if it has one.
pub(super) async fn read_token(config: &Config) -> anyhow::Result<Option<SecretString>> {
    let Some(file) = config.api.token_file.clone() else { return Ok(None) };
    let token = tokio::task::spawn_blocking(move || config::read_secret(&file)).await;
    Ok(Some(token.context("reading the API's token was interrupted")??))
}

/// The operator's own pages.
pub(super) async fn read_pages(config: &Config) -> anyhow::Result<Pages> {
    let Some(dir) = config.router.pages.clone() else { return Ok(Pages::default()) };
    let pages = tokio::task::spawn_blocking(move || Pages::read(&dir)).await;
    pages.context("reading the pages was interrupted")?.context("cannot show the pages of `router.pages`")
}

/// The sockets for an address, and which that is where its port was left to the kernel.
pub(super) fn listen(sockets: &mut Sockets, addr: SocketAddr) -> anyhow::Result<(Vec<TcpListener>, SocketAddr)> {
    let listeners = sockets.tcp(addr).with_context(|| {
        let port = format!(":{}", addr.port());
        match sockets.left().into_iter().find(|left| left.ends_with(&port)) {
            Some(left) => format!("cannot listen on {addr} while kennel.socket holds {left}"),
            None => format!("cannot listen on {addr}"),
        }
    })?;
    let own = listeners[0].local_addr()?;
    Ok((listeners, own))
}
