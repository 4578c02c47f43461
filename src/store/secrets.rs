//! Which secrets a deployment was given: their names, files and keyed fingerprints, and never what they hold.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sqlx::{Sqlite, Transaction};

use super::{Store, StoreError, during};
use crate::model::DeploymentId;

/// A secret that a deployment was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivenSecret {
    /// The variable, and the credential.
    pub name: String,
    /// The operator's file.
    pub path: PathBuf,
    /// A keyed fingerprint of what the file held then.
    pub fingerprint: String,
}

impl Store {
    /// The secrets a deployment was given, by name.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn given_secrets(&self, deployment: DeploymentId) -> Result<Vec<GivenSecret>, StoreError> {
        let rows = sqlx::query!(
            "select name, path, fingerprint from deployment_secrets where deployment_id = ? order by name",
            deployment
        )
        .fetch_all(&self.readers)
        .await
        .map_err(during("read a deployment's secrets"))?;
        let given = |path: String, name, fingerprint| GivenSecret { name, path: path.into(), fingerprint };
        Ok(rows.into_iter().map(|row| given(row.path, row.name, row.fingerprint)).collect())
    }
}

/// Records what a deployment is given when it begins.
pub(super) async fn give(
    tx: &mut Transaction<'_, Sqlite>,
    deployment: DeploymentId,
    secrets: &[GivenSecret],
) -> Result<(), StoreError> {
    for secret in secrets {
        // Paths come from a TOML file, and so are UTF-8.
        let path = secret.path.to_string_lossy();
        sqlx::query!(
            "insert into deployment_secrets (deployment_id, name, path, fingerprint) values (?, ?, ?, ?)",
            deployment,
            secret.name,
            path,
            secret.fingerprint
        )
        .execute(&mut **tx)
        .await
        .map_err(during("record a deployment's secrets"))?;
    }
    Ok(())
}
