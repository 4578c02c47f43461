//! Artifacts: what builds made, and which of it a GC root keeps.

use sqlx::{Sqlite, Transaction};

use super::{ClaimedBuild, Store, StoreError, during};
use crate::model::{ArtifactState, BuildId, ProgramName, ServiceName, Settings, StorePath};

/// What one build made for one service or site, before it has a row.
#[derive(Debug, Clone)]
pub struct NewArtifact {
    /// The service's or site's name.
    pub name: ServiceName,
    /// Its settings at that commit.
    pub settings: Settings,
    /// The store path and the program (for a service), or why there is none.
    pub result: Result<(StorePath, Option<ProgramName>), String>,
    /// Time inside Nix.
    pub nix_ms: i64,
}

/// An artifact's row, as far as a deployment needs it.
#[derive(Debug, Clone)]
pub struct Artifact {
    /// Its store path.
    pub store_path: StorePath,
    /// The program below `bin/`, for a service.
    pub program: Option<ProgramName>,
    /// The settings at that commit.
    pub settings: Settings,
}

impl Store {
    /// Records what a build made for one service or site; made again, it replaces the row.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn record_artifact(
        &self,
        build: &ClaimedBuild,
        artifact: &NewArtifact,
    ) -> Result<ArtifactState, StoreError> {
        let mut tx = self.begin("record an artifact").await?;
        let (path, program, reason) = match &artifact.result {
            Ok((path, program)) => (Some(path), program.as_ref(), None),
            Err(reason) => (None, None, Some(reason)),
        };
        let state = match path {
            None => ArtifactState::Failed,
            Some(path) if is_recent(&mut tx, build, &artifact.name, path).await? => ArtifactState::Unchanged,
            Some(_) => ArtifactState::Built,
        };
        let (kind, rooted) = (artifact.settings.kind(), path.is_some());
        let settings = settings_to_json(&artifact.settings);
        sqlx::query!(
            "insert into artifacts (build_id, name, kind, state, store_path, program, settings, reason, nix_ms, rooted)
             values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
             on conflict (build_id, name) do update
             set kind = excluded.kind, state = excluded.state, store_path = excluded.store_path,
                 program = excluded.program, settings = excluded.settings, reason = excluded.reason,
                 nix_ms = excluded.nix_ms, rooted = excluded.rooted",
            build.id,
            artifact.name,
            kind,
            state,
            path,
            program,
            settings,
            reason,
            artifact.nix_ms,
            rooted
        )
        .execute(&mut *tx)
        .await
        .map_err(during("record an artifact"))?;
        tx.commit().await.map_err(during("record an artifact"))?;
        Ok(state)
    }

    /// The artifact a deployment of `name` runs.
    ///
    /// # Errors
    /// When there is no such artifact, or it was not made.
    pub async fn artifact(&self, build: BuildId, name: &ServiceName) -> Result<Artifact, StoreError> {
        let row = sqlx::query!(
            r#"select store_path as "store_path!: StorePath", program as "program: ProgramName", settings
               from artifacts where build_id = ? and name = ? and store_path is not null"#,
            build,
            name
        )
        .fetch_one(&self.readers)
        .await
        .map_err(during("read an artifact"))?;
        let settings = settings_from_json(&row.settings).map_err(during("read an artifact's settings"))?;
        Ok(Artifact { store_path: row.store_path, program: row.program, settings })
    }
}

/// Settings as the row keeps them.
pub(super) fn settings_to_json(settings: &Settings) -> String {
    serde_json::to_string(settings).expect("settings hold only strings, numbers and maps with string keys")
}

/// Settings from a row.
pub(super) fn settings_from_json(json: &str) -> Result<Settings, sqlx::Error> {
    serde_json::from_str(json).map_err(|error| sqlx::Error::Decode(Box::new(error)))
}

/// Whether the target's last 5 artifacts include this store path.
async fn is_recent(
    tx: &mut Transaction<'_, Sqlite>,
    build: &ClaimedBuild,
    name: &ServiceName,
    path: &StorePath,
) -> Result<bool, StoreError> {
    sqlx::query_scalar!(
        r#"select exists (
               select 1 from (
                   select a.store_path from artifacts a join builds b on b.id = a.build_id
                   where b.branch_id = ? and a.name = ? and a.build_id < ? and a.store_path is not null
                   order by a.build_id desc limit 5) recent
               where recent.store_path = ?) as "recent!: bool""#,
        build.branch_id,
        name,
        build.id,
        path
    )
    .fetch_one(&mut **tx)
    .await
    .map_err(during("compare with recent artifacts"))
}
