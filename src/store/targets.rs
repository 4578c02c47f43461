//! Targets: their names, chosen once, and requests to tear them down.

use sqlx::{Sqlite, Transaction};

use super::databases::end_databases_if_last;
use super::deliveries::close_branch_if_empty;
use super::{ClaimedBuild, Store, StoreError, during, now};
use crate::model::names::Taken;
use crate::model::settings::Manifest;
use crate::model::{
    BranchId, BranchRef, BranchSlug, BuildId, DeploymentId, Environment, HostName, Kind, ProjectName, ServiceName,
    TargetId, TargetNames, TargetTag, UserName,
};

/// The thing with a hostname: a service or site of a branch of a project.
#[derive(Debug, Clone)]
pub struct Target {
    /// Which.
    pub id: TargetId,
    /// Of which branch.
    pub branch_id: BranchId,
    /// Whose.
    pub project: ProjectName,
    /// The branch's ref.
    pub branch: BranchRef,
    /// The branch's short name.
    pub slug: BranchSlug,
    /// Where the branch belongs.
    pub environment: Environment,
    /// The service's or site's name.
    pub name: ServiceName,
    /// Service or site.
    pub kind: Kind,
    /// Where visitors find it.
    pub host: HostName,
    /// The stem of its names.
    pub tag: TargetTag,
    /// The user its units run as.
    pub user: UserName,
}

/// A target that is to be torn down.
#[derive(Debug, Clone)]
pub struct Teardown {
    /// Which.
    pub target: Target,
    /// Deployments with a greater number are not meant: they came after the request.
    pub up_to: DeploymentId,
    /// Why, for people.
    pub reason: String,
}

/// What became of an operator's request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TeardownAsked {
    /// The target is being torn down.
    Asked,
    /// There is no such deployment.
    Unknown,
    /// The deployment has ended already, and its target is gone or has others.
    Ended,
}

impl Store {
    /// A target that is there.
    ///
    /// # Errors
    /// When there is no such target.
    pub async fn target(&self, id: TargetId) -> Result<Target, StoreError> {
        sqlx::query_as!(
            Target,
            r#"select t.id as "id!: _", t.branch_id as "branch_id!: _", b.project as "project!: _", b.ref as "branch!: _",
               b.slug as "slug!: _", b.environment as "environment!: _", t.name as "name!: _", t.kind as "kind!: _",
               t.host as "host!: _", t.tag as "tag!: _", t.user_name as "user!: _"
               from targets t join branches b on b.id = t.branch_id where t.id = ?"#,
            id
        )
        .fetch_one(&self.readers)
        .await
        .map_err(during("read a target"))
    }

    /// Targets that are there, by project, branch and name.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn targets(&self) -> Result<Vec<Target>, StoreError> {
        sqlx::query_as!(
            Target,
            r#"select t.id as "id!: _", t.branch_id as "branch_id!: _", b.project as "project!: _", b.ref as "branch!: _",
               b.slug as "slug!: _", b.environment as "environment!: _", t.name as "name!: _", t.kind as "kind!: _",
               t.host as "host!: _", t.tag as "tag!: _", t.user_name as "user!: _"
               from targets t join branches b on b.id = t.branch_id where t.gone_at is null
               order by b.project, b.ref, t.name"#
        )
        .fetch_all(&self.readers)
        .await
        .map_err(during("read the targets"))
    }

    /// Asks that the target of a deployment be torn down, with every version it has now. A deployment that has ended
    /// speaks for its target only while that has no other: nobody means the live version by the number of an old one.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn ask_teardown(&self, deployment: DeploymentId, reason: &str) -> Result<TeardownAsked, StoreError> {
        let mut tx = self.begin("ask for a teardown").await?;
        let row = sqlx::query!(
            r#"select d.target_id as "target!: TargetId",
               t.gone_at is null and (d.state in ('pending', 'starting', 'live', 'draining') or not exists (
                   select 1 from deployments o where o.target_id = d.target_id
                   and o.state in ('pending', 'starting', 'live', 'draining'))) as "there!: bool"
               from deployments d join targets t on t.id = d.target_id where d.id = ?"#,
            deployment
        )
        .fetch_optional(&mut *tx)
        .await
        .map_err(during("read a deployment"))?;
        let Some(row) = row else { return Ok(TeardownAsked::Unknown) };
        if !row.there {
            return Ok(TeardownAsked::Ended);
        }
        let at = now();
        sqlx::query!(
            "insert into teardowns (target_id, up_to, reason, requested_at)
             values (?, (select max(id) from deployments), ?, ?)
             on conflict (target_id) do update
             set up_to = excluded.up_to, after_build = null, reason = excluded.reason",
            row.target,
            reason,
            at
        )
        .execute(&mut *tx)
        .await
        .map_err(during("ask for a teardown"))?;
        tx.commit().await.map_err(during("ask for a teardown"))?;
        Ok(TeardownAsked::Asked)
    }

    /// Teardowns that may begin: those that wait for a build's deployments begin once these are done.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn due_teardowns(&self) -> Result<Vec<Teardown>, StoreError> {
        let rows = sqlx::query!(
            r#"select target_id as "target!: TargetId", up_to as "up_to!: DeploymentId", reason from teardowns td
               where after_build is null or not exists (
                   select 1 from deployments d
                   where d.build_id = td.after_build and d.state in ('pending', 'starting'))
               order by requested_at"#
        )
        .fetch_all(&self.readers)
        .await
        .map_err(during("read teardowns"))?;
        let mut teardowns = Vec::with_capacity(rows.len());
        for row in rows {
            let target = self.target(row.target).await?;
            teardowns.push(Teardown { target, up_to: row.up_to, reason: row.reason });
        }
        Ok(teardowns)
    }

    /// Sends every version that a teardown means on its way out. Returns those that have not ended yet.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn begin_teardown(&self, teardown: &Teardown) -> Result<Vec<DeploymentId>, StoreError> {
        let mut tx = self.begin("begin a teardown").await?;
        let at = now();
        sqlx::query!(
            "update deployments set ending = 'retired', reason = coalesce(reason, ?)
             where target_id = ? and id <= ? and ending is null and state in ('pending', 'starting', 'live')",
            teardown.reason,
            teardown.target.id,
            teardown.up_to
        )
        .execute(&mut *tx)
        .await
        .map_err(during("mark versions for teardown"))?;
        // A live version at rest is nobody's: it begins to drain. One with a step is turned back by its job.
        sqlx::query!(
            "update deployments set state = 'draining', step = 'drain', draining_at = ?, due_at = 0, attempts = 0
             where target_id = ? and id <= ? and state = 'live' and step is null",
            at,
            teardown.target.id,
            teardown.up_to
        )
        .execute(&mut *tx)
        .await
        .map_err(during("begin to drain"))?;
        sqlx::query!(
            "update routes set deployment_id = null where target_id = ? and deployment_id in (
                 select id from deployments where target_id = ? and id <= ? and state = 'draining')",
            teardown.target.id,
            teardown.target.id,
            teardown.up_to
        )
        .execute(&mut *tx)
        .await
        .map_err(during("take a route away"))?;
        let left = sqlx::query_scalar!(
            r#"select id as "id!: DeploymentId" from deployments
               where target_id = ? and id <= ? and state in ('pending', 'starting', 'live', 'draining')"#,
            teardown.target.id,
            teardown.up_to
        )
        .fetch_all(&mut *tx)
        .await
        .map_err(during("count what is left of a target"))?;
        tx.commit().await.map_err(during("begin a teardown"))?;
        Ok(left)
    }

    /// Whether versions of the target came after the teardown was asked for, so that the target itself stays.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn is_wanted_again(&self, teardown: &Teardown) -> Result<bool, StoreError> {
        sqlx::query_scalar!(
            r#"select exists (select 1 from deployments where target_id = ? and id > ?
               and state in ('pending', 'starting', 'live', 'draining')) as "again!: bool""#,
            teardown.target.id,
            teardown.up_to
        )
        .fetch_one(&self.readers)
        .await
        .map_err(during("look for newer versions of a target"))
    }

    /// Ends a teardown: nothing of the target is left on the machine. Its names are free, unless newer versions
    /// have come meanwhile; the branch is gone with its last target if nobody wants it.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn finish_teardown(&self, teardown: &Teardown) -> Result<(), StoreError> {
        let mut tx = self.begin("finish a teardown").await?;
        let at = now();
        let gone = sqlx::query!(
            "update targets set gone_at = ? where id = ? and not exists (
                 select 1 from deployments where target_id = targets.id
                 and state in ('pending', 'starting', 'live', 'draining'))",
            at,
            teardown.target.id
        )
        .execute(&mut *tx)
        .await
        .map_err(during("close a target"))?
        .rows_affected();
        if gone == 1 {
            sqlx::query!("delete from routes where target_id = ?", teardown.target.id)
                .execute(&mut *tx)
                .await
                .map_err(during("free a target's hostnames"))?;
        }
        sqlx::query!("delete from teardowns where target_id = ?", teardown.target.id)
            .execute(&mut *tx)
            .await
            .map_err(during("finish a teardown"))?;
        end_databases_if_last(&mut tx, teardown.target.branch_id).await?;
        close_branch_if_empty(&mut tx, teardown.target.branch_id).await?;
        tx.commit().await.map_err(during("finish a teardown"))?;
        Ok(())
    }
}

/// Has a target of that name, with names no other target has.
pub(super) async fn ensure_target(
    tx: &mut Transaction<'_, Sqlite>,
    build: &ClaimedBuild,
    base_domain: &HostName,
    name: &ServiceName,
    kind: Kind,
) -> Result<TargetId, StoreError> {
    let known = sqlx::query_scalar!(
        r#"update targets set kind = ?, unnamed_by = null where branch_id = ? and name = ? and gone_at is null
           returning id as "id!: TargetId""#,
        kind,
        build.branch_id,
        name
    )
    .fetch_optional(&mut **tx)
    .await
    .map_err(during("look for a target"))?;
    if let Some(known) = known {
        sqlx::query!("delete from teardowns where target_id = ? and after_build is not null", known)
            .execute(&mut **tx)
            .await
            .map_err(during("take a teardown back"))?;
        return Ok(known);
    }
    let others = sqlx::query!("select host, tag, user_name from targets where gone_at is null")
        .fetch_all(&mut **tx)
        .await
        .map_err(during("read names in use"))?;
    let claimed = sqlx::query_scalar!(r#"select host as "host!: String" from routes"#)
        .fetch_all(&mut **tx)
        .await
        .map_err(during("read hostnames in use"))?;
    let taken = |name: Taken<'_>| match name {
        Taken::Host(host) => others.iter().any(|other| other.host == host) || claimed.iter().any(|other| other == host),
        Taken::Tag(tag) => others.iter().any(|other| other.tag == tag),
        Taken::User(user) => others.iter().any(|other| other.user_name == user),
    };
    let names = TargetNames::choose(base_domain, &build.project, &build.branch, &build.slug, name, taken)
        .map_err(|source| StoreError::Unnameable { thing: format!("`{name}` of {}", build.project), source })?;
    let at = now();
    let id = sqlx::query_scalar!(
        r#"insert into targets (branch_id, name, kind, host, tag, user_name, created_at) values (?, ?, ?, ?, ?, ?, ?)
           on conflict (branch_id, name) do update
           set kind = excluded.kind, host = excluded.host, tag = excluded.tag, user_name = excluded.user_name,
               created_at = excluded.created_at, unnamed_by = null, gone_at = null
           returning id as "id!: TargetId""#,
        build.branch_id,
        name,
        kind,
        names.host,
        names.tag,
        names.user,
        at
    )
    .fetch_one(&mut **tx)
    .await
    .map_err(during("add a target"))?;
    sqlx::query!("insert into routes (host, target_id) values (?, ?)", names.host, id)
        .execute(&mut **tx)
        .await
        .map_err(during("claim a hostname"))?;
    Ok(id)
}

/// Targets that the branch's newest kennel.toml no longer names go once the build's deployments are done; in prod
/// they stay, flagged, until an operator tears them down.
pub(super) async fn ask_teardown_of_unnamed(
    tx: &mut Transaction<'_, Sqlite>,
    build: &ClaimedBuild,
    manifest: &Manifest,
) -> Result<(), StoreError> {
    let targets = sqlx::query!(
        r#"select id as "id!: TargetId", name as "name!: ServiceName" from targets
           where branch_id = ? and gone_at is null"#,
        build.branch_id
    )
    .fetch_all(&mut **tx)
    .await
    .map_err(during("read a branch's targets"))?;
    for target in targets.into_iter().filter(|target| !manifest.targets.contains_key(&target.name)) {
        flag_unnamed(tx, build.id, target.id, build.environment).await?;
    }
    Ok(())
}

async fn flag_unnamed(
    tx: &mut Transaction<'_, Sqlite>,
    build: BuildId,
    target: TargetId,
    environment: Environment,
) -> Result<(), StoreError> {
    sqlx::query!("update targets set unnamed_by = ? where id = ?", build, target)
        .execute(&mut **tx)
        .await
        .map_err(during("flag a target"))?;
    if environment == Environment::Prod {
        return Ok(());
    }
    let at = now();
    sqlx::query!(
        "insert into teardowns (target_id, up_to, after_build, reason, requested_at)
         values (?, (select coalesce(max(id), 0) from deployments), ?, 'no longer named in kennel.toml', ?)
         on conflict (target_id) do nothing",
        target,
        build,
        at
    )
    .execute(&mut **tx)
    .await
    .map_err(during("ask for a teardown"))?;
    Ok(())
}
