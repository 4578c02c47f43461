//! Ports: one per deployment, by a row under a unique constraint.

use super::{Store, StoreError, during};
use crate::model::{DeploymentId, Port};

impl Store {
    /// The port of a deployment; a free one if it has none yet. Ports in `skip` are left out: something
    /// that is not kennel's listens on them.
    ///
    /// # Errors
    /// [`StoreError::NoPort`] when all are given out.
    pub async fn ensure_port(&self, deployment: DeploymentId, skip: &[Port]) -> Result<Port, StoreError> {
        let mut tx = self.begin("allocate a port").await?;
        let rows = sqlx::query!(
            r#"select port as "port!: Port", deployment_id as "deployment!: DeploymentId" from ports order by port"#
        )
        .fetch_all(&mut *tx)
        .await
        .map_err(during("read ports"))?;
        if let Some(own) = rows.iter().find(|row| row.deployment == deployment && !skip.contains(&row.port)) {
            return Ok(own.port);
        }
        // Round and round rather than lowest first: a port just given back may still be in a stranger's mind.
        let start = u16::try_from(deployment.0.rem_euclid(2000)).expect("a remainder below 2000 fits in 16 bits");
        let free = (0..2000u16)
            .map(|n| Port::FIRST + (start + n) % 2000)
            .filter_map(|port| Port::try_from(port).ok())
            .find(|port| !skip.contains(port) && !rows.iter().any(|row| row.port == *port))
            .ok_or(StoreError::NoPort)?;
        sqlx::query!("delete from ports where deployment_id = ?", deployment)
            .execute(&mut *tx)
            .await
            .map_err(during("give up a port"))?;
        sqlx::query!("insert into ports (port, deployment_id) values (?, ?)", free, deployment)
            .execute(&mut *tx)
            .await
            .map_err(during("allocate a port"))?;
        tx.commit().await.map_err(during("allocate a port"))?;
        Ok(free)
    }

    /// The port of a deployment, if it has one.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn port(&self, deployment: DeploymentId) -> Result<Option<Port>, StoreError> {
        sqlx::query_scalar!(r#"select port as "port!: Port" from ports where deployment_id = ?"#, deployment)
            .fetch_optional(&self.readers)
            .await
            .map_err(during("read a port"))
    }

    /// Gives a deployment's port back.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn release_port(&self, deployment: DeploymentId) -> Result<(), StoreError> {
        sqlx::query!("delete from ports where deployment_id = ?", deployment)
            .execute(&self.writer)
            .await
            .map_err(during("give a port back"))?;
        Ok(())
    }
}
