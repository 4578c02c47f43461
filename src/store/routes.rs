//! Routes: which hostname leads to which live deployment, and which versions of a site were live before.

use std::collections::HashMap;

use super::artifacts::settings_from_json;
use super::{Store, StoreError, during};
use crate::model::{
    DeploymentId, Destination, HealthCheck, HostName, Port, ProjectName, Route, ServiceName, Settings, StorePath,
    TargetId,
};

impl Store {
    /// Every route with something live behind it.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn routes(&self) -> Result<Vec<Route>, StoreError> {
        self.routes_of(None).await
    }

    /// Those of one target only, if one is named.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn routes_of(&self, target: Option<TargetId>) -> Result<Vec<Route>, StoreError> {
        let rows = sqlx::query!(
            r#"select r.host as "host!: HostName", r.target_id as "target!: TargetId",
               br.project as "project!: ProjectName", t.name as "service!: ServiceName", d.id as "deployment!: DeploymentId", a.settings,
               a.store_path as "store_path!: StorePath", p.port as "port?: Port", d.unhealthy is not null as "unhealthy!: bool"
               from routes r
               join deployments d on d.id = r.deployment_id
               join targets t on t.id = d.target_id
               join branches br on br.id = t.branch_id
               join artifacts a on a.build_id = d.build_id and a.name = t.name
               left join ports p on p.deployment_id = d.id
               where d.state = 'live' and (?1 is null or r.target_id = ?1)
               order by r.host"#,
            target
        )
        .fetch_all(&self.readers)
        .await
        .map_err(during("read the routes"))?;
        let earlier = self.earlier_versions(target).await?;
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
                    Destination::Service { port, protocol: service.protocol, health_path }
                }
                Settings::Site(site) => {
                    let mut previous = earlier.get(&row.target).cloned().unwrap_or_default();
                    previous.retain(|path| *path != row.store_path);
                    Destination::Site { root: row.store_path, previous, spa: site.spa }
                }
            };
            routes.push(Route {
                host: row.host,
                target: row.target,
                project: row.project,
                service: row.service,
                deployment: row.deployment,
                destination,
                unhealthy: row.unhealthy,
                drain_secs,
            });
        }
        Ok(routes)
    }

    /// The store paths of the versions of each site that have been live and that a root keeps, the newest first and
    /// each once.
    async fn earlier_versions(
        &self,
        target: Option<TargetId>,
    ) -> Result<HashMap<TargetId, Vec<StorePath>>, StoreError> {
        let rows = sqlx::query!(
            r#"select t.id as "target!: TargetId", a.store_path as "store_path!: StorePath"
               from targets t
               join deployments d on d.target_id = t.id
               join artifacts a on a.build_id = d.build_id and a.name = t.name
               where t.kind = 'site' and t.gone_at is null and d.live_at is not null and a.rooted = 1
                 and (?1 is null or t.id = ?1)
               order by t.id, d.live_at desc, d.id desc"#,
            target
        )
        .fetch_all(&self.readers)
        .await
        .map_err(during("read the earlier versions of sites"))?;
        let mut versions: HashMap<TargetId, Vec<StorePath>> = HashMap::new();
        for row in rows {
            let paths = versions.entry(row.target).or_default();
            if !paths.contains(&row.store_path) {
                paths.push(row.store_path);
            }
        }
        Ok(versions)
    }

    /// Notes why a live deployment gets no visitors, or with `None` that it gets them again. Returns `false` when it is
    /// no longer live.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn note_health(&self, deployment: DeploymentId, unhealthy: Option<&str>) -> Result<bool, StoreError> {
        let done =
            sqlx::query!("update deployments set unhealthy = ? where id = ? and state = 'live'", unhealthy, deployment)
                .execute(&self.writer)
                .await
                .map_err(during("note a service's health"))?;
        Ok(done.rows_affected() == 1)
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
