//! Build logs: what the worker writes to `<state_dir>/logs/<build>/<name>.log`, while it is written.
//!
//! The directory belongs to the build user, so nothing in it is followed or opened unless it is a plain file.
//!
//! **Invariant:** no more than one chunk of a log is in memory.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use futures_util::stream;
use nix::fcntl::OFlag;
use serde::Deserialize;
use tokio::fs::{File, OpenOptions};
use tokio::io::AsyncReadExt as _;

use super::Api;
use super::builds::{POLL, find};
use super::extract::{Asked, Segments, flag, id, name};
use super::problem::{Advice, ApiError};
use super::wire::LogInfo;
use crate::model::{BuildId, ServiceName};

/// How much of a log is read at once.
const CHUNK: usize = 32 * 1024;
/// The most logs a build has: a bound on what is listed, not on what is built.
const LOGS_MAX: usize = 1000;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Query {
    #[serde(default, deserialize_with = "flag")]
    follow: bool,
}

/// `GET /builds/<id>/logs`: the fetch first, then by name.
pub(super) async fn list(
    State(api): State<Arc<Api>>,
    Segments(text): Segments<String>,
) -> Result<Json<Vec<LogInfo>>, ApiError> {
    let build = find(&api, id("build", &text)?).await?.id;
    Ok(Json(api.list_logs(build).await?))
}

/// `GET /builds/<id>/logs/<name>`: what there is; with `?follow=1` also what comes, until the build has ended.
pub(super) async fn show(
    State(api): State<Arc<Api>>,
    Segments((text, log)): Segments<(String, String)>,
    Asked(query): Asked<Query>,
) -> Result<Response, ApiError> {
    let build = find(&api, id("build", &text)?).await?;
    let log: ServiceName = name(&log)?;
    let path = api.logs.join(build.id.to_string()).join(format!("{log}.log"));
    let unreadable = |source| ApiError::Log { log: format!("the log of {log} of build {}", build.id), source };
    let file = open(&path).await.map_err(unreadable)?;
    let follow = query.follow && !build.state.is_terminal();
    if file.is_none() && !follow {
        return Err(api.no_log(build.id, &log).await?);
    }
    let body = if follow {
        follow_log(Follower { api, build: build.id, path, file, read: 0, last: false })
    } else if let Some(file) = file {
        let size = file.metadata().await.map_err(unreadable)?.len();
        Body::from_stream(tokio_util::io::ReaderStream::with_capacity(file.take(size), CHUNK))
    } else {
        Body::empty()
    };
    let headers = [(header::CONTENT_TYPE, "text/plain; charset=utf-8"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    Ok((headers, body).into_response())
}

impl Api {
    async fn list_logs(&self, build: BuildId) -> Result<Vec<LogInfo>, ApiError> {
        let dir = self.logs.join(build.to_string());
        let unreadable = |source| ApiError::Log { log: format!("the logs of build {build}"), source };
        let mut entries = match tokio::fs::read_dir(&dir).await {
            Ok(entries) => entries,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(err) => return Err(unreadable(err)),
        };
        let mut logs = Vec::new();
        while let Some(entry) = entries.next_entry().await.map_err(unreadable)? {
            let file_name = entry.file_name();
            let name = file_name.to_str().and_then(|name| name.strip_suffix(".log")).and_then(|name| name.parse().ok());
            // The entry's own metadata: a link is a link.
            let (Some(name), Ok(metadata)) = (name, entry.metadata().await) else { continue };
            if metadata.is_file() && logs.len() < LOGS_MAX {
                logs.push(LogInfo { name, bytes: metadata.len() });
            }
        }
        logs.sort_by(|a, b| (a.name.as_str() != "fetch", &a.name).cmp(&(b.name.as_str() != "fetch", &b.name)));
        Ok(logs)
    }

    async fn no_log(&self, build: BuildId, log: &ServiceName) -> Result<ApiError, ApiError> {
        let names: Vec<String> = self.list_logs(build).await?.iter().map(|log| format!("`{}`", log.name)).collect();
        let advice = Advice::new(format!("build {build} has no log of `{log}`"));
        Ok(ApiError::NoSuch(match names.is_empty() {
            true => advice.hint("it has none at all: it has not begun, or it is over 30 days old"),
            false => advice.hint(format!("it has {}", names.join(", "))),
        }))
    }
}

/// Opens a log; `None` when there is none, or what is there is no plain file.
async fn open(path: &Path) -> io::Result<Option<File>> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    match OpenOptions::new().read(true).custom_flags(flags.bits()).open(path).await {
        Ok(file) => Ok(file.metadata().await?.is_file().then_some(file)),
        Err(err) if err.kind() == io::ErrorKind::NotFound || err.raw_os_error() == Some(nix::libc::ELOOP) => Ok(None),
        Err(err) => Err(err),
    }
}

/// Somebody who reads a log while it is written.
struct Follower {
    api: Arc<Api>,
    build: BuildId,
    path: PathBuf,
    file: Option<File>,
    read: u64,
    /// The build had ended before the file was last read to its end.
    last: bool,
}

fn follow_log(follower: Follower) -> Body {
    Body::from_stream(stream::try_unfold(follower, |mut follower| async move {
        let chunk = follower.next().await?;
        Ok::<_, io::Error>(chunk.map(|chunk| (chunk, follower)))
    }))
}

impl Follower {
    /// The next chunk; `None` when the build has ended and all is read.
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            if let Some(chunk) = self.read_chunk().await? {
                return Ok(Some(chunk));
            }
            if self.reopened().await? {
                continue;
            }
            if self.last {
                return Ok(None);
            }
            if self.api.shutdown.is_cancelled() {
                // Not the log's end: the client must see its connection break.
                return Err(io::Error::other("kennel is stopping"));
            }
            let build = self.api.store.view_build(self.build).await.map_err(io::Error::other)?;
            if build.is_none_or(|build| build.state.is_terminal()) {
                // What was written between the last read and the end is still to be read.
                self.last = true;
                continue;
            }
            tokio::select! {
                () = tokio::time::sleep(POLL) => {}
                () = self.api.shutdown.cancelled() => {}
            }
        }
    }

    async fn read_chunk(&mut self) -> io::Result<Option<Bytes>> {
        let Some(file) = &mut self.file else { return Ok(None) };
        let mut chunk = Vec::with_capacity(CHUNK);
        file.take(CHUNK as u64).read_to_end(&mut chunk).await?;
        self.read += chunk.len() as u64;
        Ok((!chunk.is_empty()).then(|| chunk.into()))
    }

    /// Opens a log that has begun, or begun anew: a build that was queued again writes its logs again.
    async fn reopened(&mut self) -> io::Result<bool> {
        let Some(there) = open(&self.path).await? else { return Ok(false) };
        if let Some(file) = &self.file {
            let (ours, theirs) = (file.metadata().await?, there.metadata().await?);
            if ours.ino() == theirs.ino() && theirs.len() >= self.read {
                return Ok(false);
            }
        }
        self.file = Some(there);
        self.read = 0;
        Ok(true)
    }
}
