//! Routes: which hostname leads to which live deployment.

use super::artifacts::settings_from_json;
use super::{Store, StoreError, during};
use crate::model::{DeploymentId, Destination, HealthCheck, HostName, Port, Route, Settings, StorePath, TargetId};

impl Store {
    /// Every route with something live behind it.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn routes(&self) -> Result<Vec<Route>, StoreError> {
        let rows = sqlx::query!(
            r#"select r.host as "host!: HostName", r.target_id as "target!: TargetId", d.id as "deployment!: DeploymentId", a.settings,
               a.store_path as "store_path!: StorePath", p.port as "port?: Port"
               from routes r
               join deployments d on d.id = r.deployment_id
               join targets t on t.id = d.target_id
               join artifacts a on a.build_id = d.build_id and a.name = t.name
               left join ports p on p.deployment_id = d.id
               where d.state = 'live'
               order by r.host"#
        )
        .fetch_all(&self.readers)
        .await
        .map_err(during("read the routes"))?;
        let mut routes = Vec::with_capacity(rows.len());
        for row in rows {
            let settings = settings_from_json(&row.settings).map_err(during("read a route's settings"))?;
            let drain_secs = settings.drain_secs();
            let destination = match settings {
                Settings::Service(service) => {
                    let Some(port) = row.port else { continue };
                    let health_path = match service.health_check {
                        HealthCheck::Http(path) => Some(path),
                        HealthCheck::Tcp => None,
                    };
                    Destination::Service { port, health_path }
                }
                Settings::Site(site) => Destination::Site { root: row.store_path, previous: Vec::new(), spa: site.spa },
            };
            routes.push(Route {
                host: row.host,
                target: row.target,
                deployment: row.deployment,
                destination,
                drain_secs,
            });
        }
        Ok(routes)
    }

    /// Claims a custom domain for a target. Returns `false` when another target has it.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn claim_host(&self, host: &HostName, target: TargetId) -> Result<bool, StoreError> {
        let owner = sqlx::query_scalar!(
            r#"insert into routes (host, target_id) values (?, ?)
               on conflict (host) do update set host = excluded.host returning target_id as "target!: TargetId""#,
            host,
            target
        )
        .fetch_one(&self.writer)
        .await
        .map_err(during("claim a hostname"))?;
        Ok(owner == target)
    }
}
