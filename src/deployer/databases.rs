//! A branch's preview databases: claimed in rows, made on the operator's servers, told to its services by URL.
//!
//! **Invariant:** no URL and no password is kept; both are made again from the operator's files and the machine's key.

use anyhow::Context as _;

use super::{Context, StepError};
use crate::config;
use crate::crash::{self, Point};
use crate::host::key::{HostKey, Purpose};
use crate::host::services::postgres::Postgres;
use crate::host::services::valkey::Valkey;
use crate::host::services::{ServerError, ServerKind, ServerUrl};
use crate::model::settings::ServiceSettings;
use crate::model::{BranchRef, Ending, ProjectName, Settings};
use crate::store::Target;
use crate::telemetry::chain;

/// The administrator's URL of a server, read from the operator's file now; `None` when none is configured.
///
/// # Errors
/// When the file cannot be read, or holds no such URL. The message holds nothing of it.
pub async fn server(ctx: &Context, kind: ServerKind) -> anyhow::Result<Option<ServerUrl>> {
    let config = ctx.config.load();
    let (key, server) = match kind {
        ServerKind::Valkey => ("valkey", &config.valkey),
        ServerKind::Postgres => ("postgres", &config.postgres),
    };
    let Some(server) = server.clone() else { return Ok(None) };
    let file = server.url_file.clone();
    let url = tokio::task::spawn_blocking(move || config::read_secret(&file))
        .await
        .context("reading a secret file was interrupted")?
        .with_context(|| format!("cannot use `[{key}] url_file`"))?;
    let url = ServerUrl::parse(kind, &url)
        .with_context(|| format!("cannot use `[{key}] url_file` (`{}`)", server.url_file.display()))?;
    Ok(Some(url))
}

/// The password of a branch's user on a server: the same for as long as the machine's key is.
#[must_use]
pub fn password(key: &HostKey, kind: ServerKind, project: &ProjectName, branch: &BranchRef) -> String {
    let purpose = match kind {
        ServerKind::Valkey => Purpose::ValkeyPassword,
        ServerKind::Postgres => Purpose::PostgresPassword,
    };
    key.derive(purpose, &[project.as_str().as_bytes(), branch.as_str().as_bytes()])
}

/// Has the databases that a service asks for, on every server that is configured.
pub(super) async fn ensure(ctx: &Context, target: &Target, service: &ServiceSettings) -> Result<(), StepError> {
    if !service.preview_database {
        return Ok(());
    }
    let (valkey, postgres) = (configured(ctx, ServerKind::Valkey).await?, configured(ctx, ServerKind::Postgres).await?);
    if valkey.is_none() && postgres.is_none() {
        return Err(unfit(
            "it asks for `preview_database`, and this kennel has no server for one: the operator sets \
             `[valkey] url_file`, `[postgres] url_file` or both in the daemon's file",
        ));
    }
    if let Some(url) = valkey {
        ensure_valkey(ctx, target, &url).await?;
    }
    if let Some(url) = postgres {
        ensure_postgres(ctx, target, &url).await?;
    }
    Ok(())
}

async fn configured(ctx: &Context, kind: ServerKind) -> Result<Option<ServerUrl>, StepError> {
    server(ctx, kind).await.map_err(|err| unfit(chain(&*err)))
}

async fn ensure_valkey(ctx: &Context, target: &Target, url: &ServerUrl) -> Result<(), StepError> {
    let mut valkey = Valkey::connect(url).await.map_err(judge)?;
    let count = valkey.database_count().await.map_err(judge)?;
    let filled = valkey.filled().await.map_err(judge)?;
    let Some(number) = ctx.store.ensure_valkey_number(target.branch_id, count, &filled).await? else {
        return Err(unfit(format!(
            "all database numbers of Valkey at {} are taken ({}, and 0 is nobody's): delete a branch that has one, or \
             raise `databases` in valkey.conf",
            url.address(),
            count.saturating_sub(1)
        )));
    };
    if number.get() >= count {
        return Err(unfit(format!(
            "its branch has database {number} of Valkey at {}, which has only {count}: raise `databases` in valkey.conf",
            url.address()
        )));
    }
    crash::point(Point::NumberAllocated);
    let password = password(&ctx.key, ServerKind::Valkey, &target.project, &target.branch);
    valkey.ensure_user(number, &password).await.map_err(judge)?;
    crash::point(Point::ValkeyUserSet);
    Ok(())
}

async fn ensure_postgres(ctx: &Context, target: &Target, url: &ServerUrl) -> Result<(), StepError> {
    // First, so that a server that is away leaves no row of a database that was never made.
    let mut postgres = Postgres::connect(url).await.map_err(judge)?;
    let name = ctx.store.ensure_postgres_database(target).await?;
    crash::point(Point::DatabaseNoted);
    let password = password(&ctx.key, ServerKind::Postgres, &target.project, &target.branch);
    postgres.ensure(&name, &password).await.map_err(judge)
}

/// The variables that tell a service where its databases are.
pub(super) async fn variables(
    ctx: &Context,
    target: &Target,
    service: &ServiceSettings,
) -> anyhow::Result<Vec<(String, String)>> {
    let mut variables = Vec::new();
    if !service.preview_database {
        return Ok(variables);
    }
    let password = |kind| password(&ctx.key, kind, &target.project, &target.branch);
    if let Some(number) = ctx.store.valkey_number(target.branch_id).await? {
        let url = server(ctx, ServerKind::Valkey).await?.context("`[valkey]` is no longer in the daemon's file")?;
        let (user, password) = (number.user(), password(ServerKind::Valkey));
        variables.push(("VALKEY_URL".to_owned(), format!("redis://{user}:{password}@{}/{number}", url.address())));
    }
    if let Some(name) = ctx.store.postgres_database(target.branch_id).await? {
        let url = server(ctx, ServerKind::Postgres).await?.context("`[postgres]` is no longer in the daemon's file")?;
        let password = password(ServerKind::Postgres);
        variables.push(("DATABASE_URL".to_owned(), format!("postgresql://{name}:{password}@{}/{name}", url.address())));
    }
    Ok(variables)
}

/// On which servers a version gets databases: one more is a reason to start it again.
pub(super) fn servers(ctx: &Context, settings: &Settings) -> Vec<&'static str> {
    let config = ctx.config.load();
    let wanted = matches!(settings, Settings::Service(service) if service.preview_database);
    let configured = [("valkey", &config.valkey), ("postgres", &config.postgres)];
    configured.into_iter().filter(|(_, server)| wanted && server.is_some()).map(|(name, _)| name).collect()
}

fn unfit(reason: impl Into<String>) -> StepError {
    StepError::Unfit(Ending::Failed, reason.into())
}

/// A server that is away comes back by itself; what it refuses, or a file that is wrong, is the operator's to mend.
fn judge(err: ServerError) -> StepError {
    match err {
        ServerError::Away { .. } => StepError::Away(err.into()),
        ServerError::Url { .. } | ServerError::Refused { .. } => unfit(chain(&err)),
    }
}
