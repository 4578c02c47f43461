//! What operators see: builds and deployments, with the names of all they belong to.

use serde::{Deserialize, Serialize};

use super::{Store, StoreError, during};
use crate::model::{
    ArtifactState, BranchRef, BuildId, BuildState, CommitSha, DeploymentId, DeploymentState, Environment, HostName,
    Kind, Port, ProjectName, ServiceName, Step, StorePath, TargetTag,
};

/// A build, for people.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BuildView {
    /// Which.
    pub id: BuildId,
    /// Whose.
    pub project: ProjectName,
    /// The branch's name, or `pr-<number>`.
    pub branch: String,
    /// The commit.
    pub commit: CommitSha,
    /// The first line of its message.
    pub title: Option<String>,
    /// Where the branch belongs.
    pub environment: Environment,
    /// Where it stands.
    pub state: BuildState,
    /// Why it failed or was cancelled; in the API's answers also what it waits for.
    pub reason: Option<String>,
    /// Milliseconds since 1970.
    pub queued_at: i64,
    /// Milliseconds since 1970.
    pub started_at: Option<i64>,
    /// Milliseconds since 1970.
    pub finished_at: Option<i64>,
    /// Time inside git, in milliseconds.
    pub fetch_ms: Option<i64>,
    /// Time inside Nix, in milliseconds.
    pub nix_ms: Option<i64>,
}

/// An artifact, for people.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ArtifactView {
    /// The service's or site's name.
    pub name: ServiceName,
    /// Service or site.
    pub kind: Kind,
    /// What became of it.
    pub state: ArtifactState,
    /// Its store path.
    pub store_path: Option<StorePath>,
    /// Why it failed.
    pub reason: Option<String>,
    /// Time inside Nix, in milliseconds.
    pub nix_ms: i64,
}

/// A deployment, for people.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeploymentView {
    /// Which.
    pub id: DeploymentId,
    /// Whose.
    pub project: ProjectName,
    /// The branch's name, or `pr-<number>`.
    pub branch: String,
    /// The service's or site's name.
    pub service: ServiceName,
    /// Service or site.
    pub kind: Kind,
    /// Where the branch belongs.
    pub environment: Environment,
    /// Made by which build.
    pub build: BuildId,
    /// The commit.
    pub commit: CommitSha,
    /// Where it stands.
    pub state: DeploymentState,
    /// What is done next.
    pub step: Option<Step>,
    /// Why it failed or was called off, or what it waits for.
    pub reason: Option<String>,
    /// Why visitors are not sent to it although it is live, if they are not.
    pub unhealthy: Option<String>,
    /// Where visitors find it.
    pub host: HostName,
    /// Its port, while it has one.
    pub port: Option<Port>,
    /// What `journalctl -t` wants.
    pub journal_tag: TargetTag,
    /// Whether the branch's newest kennel.toml no longer names it.
    pub unnamed: bool,
    /// When its target was torn down because nobody used it, if it was; in milliseconds since 1970.
    pub expired_at: Option<i64>,
    /// Milliseconds since 1970.
    pub created_at: i64,
    /// Milliseconds since 1970.
    pub started_at: Option<i64>,
    /// Milliseconds since 1970.
    pub live_at: Option<i64>,
    /// Milliseconds since 1970.
    pub finished_at: Option<i64>,
}

/// One attempt at one step of a deployment, for people.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EventView {
    /// Milliseconds since 1970.
    pub at: i64,
    /// Which step.
    pub step: Step,
    /// `done` or `failed`.
    pub outcome: String,
    /// How long it took.
    pub duration_ms: i64,
    /// Why it failed.
    pub detail: Option<String>,
}

impl Store {
    /// Builds, newest first.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn list_builds(
        &self,
        project: Option<&ProjectName>,
        scope: Scope,
        limit: u32,
    ) -> Result<Vec<BuildView>, StoreError> {
        let (which, id) = match scope {
            // A build is the only one of its own.
            Scope::OfBuild(build) => ("one", build.0),
            scope => scope.words(),
        };
        let rows = sqlx::query_as!(
            BuildRow,
            r#"select b.id as "id!: _", br.project as "project!: _", br.ref as "branch!: _", b.commit_sha as "commit!: _",
               b.title, br.environment as "environment!: _", b.state as "state!: _", b.reason, b.queued_at as "queued_at!",
               b.started_at, b.finished_at, b.fetch_ms, b.nix_ms
               from builds b join branches br on br.id = b.branch_id
               where (?1 is null or br.project = ?1) and b.id in (
                   select ?3 where ?2 = 'one'
                   union all select id from builds where ?2 = 'all'
                   union select id from builds where ?2 = 'current' and state in ('queued', 'building')
                   union select (select max(n.id) from builds n where n.branch_id = w.id) from branches w
                         where ?2 = 'current' and w.gone_at is null)
               order by b.id desc limit ?4"#,
            project,
            which,
            id,
            limit
        )
        .fetch_all(&self.readers)
        .await
        .map_err(during("list builds"))?;
        Ok(rows.into_iter().map(BuildView::from).collect())
    }

    /// One build, or `None`.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn view_build(&self, id: BuildId) -> Result<Option<BuildView>, StoreError> {
        Ok(self.list_builds(None, Scope::OfBuild(id), 1).await?.pop())
    }

    /// The artifacts of a build, by name.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn list_artifacts(&self, build: BuildId) -> Result<Vec<ArtifactView>, StoreError> {
        sqlx::query_as!(
            ArtifactView,
            r#"select name as "name!: _", kind as "kind!: _", state as "state!: _", store_path as "store_path: _", reason,
               nix_ms from artifacts where build_id = ? order by name"#,
            build
        )
        .fetch_all(&self.readers)
        .await
        .map_err(during("list artifacts"))
    }

    /// Deployments, newest first.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn list_deployments(
        &self,
        project: Option<&ProjectName>,
        scope: Scope,
        limit: u32,
    ) -> Result<Vec<DeploymentView>, StoreError> {
        let (which, id) = scope.words();
        let rows = sqlx::query_as!(
            DeploymentRow,
            r#"select d.id as "id!: _", br.project as "project!: _", br.ref as "branch!: _", t.name as "service!: _",
               t.kind as "kind!: _", br.environment as "environment!: _", d.build_id as "build!: _",
               b.commit_sha as "commit!: _", d.state as "state!: _", d.step as "step?: _",
               coalesce(d.reason, case when d.attempts > 0 then (select e.detail from deployment_events e
                   where e.deployment_id = d.id order by e.id desc limit 1) end) as "reason?",
               case when d.state = 'live' then d.unhealthy end as "unhealthy?", t.host as "host!: _",
               p.port as "port?: _", t.tag as "journal_tag!: _", t.unnamed_by is not null as "unnamed!: bool",
               case when t.gone_at is not null then ex.expired_at end as "expired_at: i64",
               d.created_at as "created_at!", d.started_at, d.live_at, d.finished_at
               from deployments d join targets t on t.id = d.target_id join branches br on br.id = t.branch_id
               join builds b on b.id = d.build_id left join ports p on p.deployment_id = d.id
               left join expiries ex on ex.target_id = t.id and ex.expired_at > t.created_at
               where (?1 is null or br.project = ?1) and d.id in (
                   select ?3 where ?2 = 'one'
                   union all select id from deployments where ?2 = 'build' and build_id = ?3
                   union all select id from deployments where ?2 = 'all'
                   union select id from deployments
                         where ?2 = 'current' and state in ('pending', 'starting', 'live', 'draining')
                   union select (select max(n.id) from deployments n where n.target_id = w.id) from targets w
                         where ?2 = 'current' and w.gone_at is null
                   union select (select max(n.id) from deployments n where n.target_id = w.id and n.state = 'retired')
                         from expiries e join targets w on w.id = e.target_id join branches wb on wb.id = w.branch_id
                         where ?2 = 'current' and w.gone_at is not null and wb.gone_at is null
                           and e.expired_at > w.created_at)
               order by d.id desc limit ?4"#,
            project,
            which,
            id,
            limit
        )
        .fetch_all(&self.readers)
        .await
        .map_err(during("list deployments"))?;
        Ok(rows.into_iter().map(DeploymentView::from).collect())
    }

    /// One deployment, or `None`.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn view_deployment(&self, id: DeploymentId) -> Result<Option<DeploymentView>, StoreError> {
        Ok(self.list_deployments(None, Scope::One(id), 1).await?.pop())
    }

    /// What was done for a deployment, oldest first.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn list_events(&self, deployment: DeploymentId) -> Result<Vec<EventView>, StoreError> {
        sqlx::query_as!(
            EventView,
            r#"select at as "at!", step as "step!: _", outcome as "outcome!", duration_ms as "duration_ms!", detail
               from deployment_events where deployment_id = ? order by id"#,
            deployment
        )
        .fetch_all(&self.readers)
        .await
        .map_err(during("list a deployment's events"))
    }
}

/// Which builds or deployments to list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Every row.
    All,
    /// Those that have not ended, the newest of each branch or target that is there, and the last of each target
    /// that nobody used while its branch was there.
    Current,
    /// One build, or its deployments.
    OfBuild(BuildId),
    /// One deployment.
    One(DeploymentId),
}

impl Scope {
    /// As the queries take it: which rows, and of what. Each finds them by an index, but for [`Scope::All`].
    fn words(self) -> (&'static str, i64) {
        match self {
            Self::All => ("all", 0),
            Self::Current => ("current", 0),
            Self::OfBuild(build) => ("build", build.0),
            Self::One(deployment) => ("one", deployment.0),
        }
    }
}

struct BuildRow {
    id: BuildId,
    project: ProjectName,
    branch: BranchRef,
    commit: CommitSha,
    title: Option<String>,
    environment: Environment,
    state: BuildState,
    reason: Option<String>,
    queued_at: i64,
    started_at: Option<i64>,
    finished_at: Option<i64>,
    fetch_ms: Option<i64>,
    nix_ms: Option<i64>,
}

impl From<BuildRow> for BuildView {
    fn from(row: BuildRow) -> Self {
        Self {
            id: row.id,
            project: row.project,
            branch: row.branch.name(),
            commit: row.commit,
            title: row.title,
            environment: row.environment,
            state: row.state,
            reason: row.reason,
            queued_at: row.queued_at,
            started_at: row.started_at,
            finished_at: row.finished_at,
            fetch_ms: row.fetch_ms,
            nix_ms: row.nix_ms,
        }
    }
}

struct DeploymentRow {
    id: DeploymentId,
    project: ProjectName,
    branch: BranchRef,
    service: ServiceName,
    kind: Kind,
    environment: Environment,
    build: BuildId,
    commit: CommitSha,
    state: DeploymentState,
    step: Option<Step>,
    reason: Option<String>,
    unhealthy: Option<String>,
    host: HostName,
    port: Option<Port>,
    journal_tag: TargetTag,
    unnamed: bool,
    expired_at: Option<i64>,
    created_at: i64,
    started_at: Option<i64>,
    live_at: Option<i64>,
    finished_at: Option<i64>,
}

impl From<DeploymentRow> for DeploymentView {
    fn from(row: DeploymentRow) -> Self {
        Self {
            id: row.id,
            project: row.project,
            branch: row.branch.name(),
            service: row.service,
            kind: row.kind,
            environment: row.environment,
            build: row.build,
            commit: row.commit,
            state: row.state,
            step: row.step,
            reason: row.reason,
            unhealthy: row.unhealthy,
            host: row.host,
            port: row.port,
            journal_tag: row.journal_tag,
            unnamed: row.unnamed,
            expired_at: row.expired_at,
            created_at: row.created_at,
            started_at: row.started_at,
            live_at: row.live_at,
            finished_at: row.finished_at,
        }
    }
}
