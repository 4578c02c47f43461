//! What a webhook's delivery asks for, recorded whole before it is answered.

use sqlx::{Sqlite, Transaction};

use super::group_commit::Request;
use super::{Store, StoreError, during, now};
use crate::crash::{self, Point};
use crate::model::{BranchId, BranchRef, BranchSlug, BuildId, CommitSha, DeliveryId, Environment, ProjectName};

/// One delivery of a webhook.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// What the forge calls it; a redelivery bears the same.
    pub id: DeliveryId,
    /// The forge's name of the event, such as `push`.
    pub event: String,
}

/// A commit that is to be built.
#[derive(Debug, Clone)]
pub struct Push {
    /// Whose.
    pub project: ProjectName,
    /// Which branch or pull request.
    pub branch: BranchRef,
    /// What is at its tip.
    pub commit: CommitSha,
    /// The first line of its message, for people.
    pub title: Option<String>,
    /// Where the branch belongs.
    pub environment: Environment,
}

/// A branch or pull request that is to go.
#[derive(Debug, Clone)]
pub struct Removal {
    /// Whose.
    pub project: ProjectName,
    /// Which.
    pub branch: BranchRef,
    /// Why, for people: `branch deleted`.
    pub reason: String,
}

/// What became of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// It made this build.
    Queued(BuildId),
    /// The branch's newest build has this commit and has not ended: nothing new was made.
    AlreadyBuilding(BuildId),
    /// The same delivery came before, and made this build, or none.
    Redelivered(Option<BuildId>),
    /// The branch is being torn down.
    Removing,
    /// kennel has nothing of that branch.
    NothingThere,
}

impl Store {
    /// Records a push: the delivery, its build, and that older queued builds of the branch are superseded.
    ///
    /// # Errors
    /// When the database refuses; then nothing was recorded.
    pub async fn accept_push(&self, delivery: Option<&Delivery>, push: &Push) -> Result<Accepted, StoreError> {
        self.deliveries.record(Request::Push(delivery.cloned(), push.clone())).await
    }

    /// Records that a branch goes: its builds are called off and its targets are to be torn down.
    ///
    /// # Errors
    /// When the database refuses; then nothing was recorded.
    pub async fn accept_removal(&self, delivery: Option<&Delivery>, removal: &Removal) -> Result<Accepted, StoreError> {
        self.deliveries.record(Request::Removal(delivery.cloned(), removal.clone())).await
    }
}

pub(super) async fn record_push(
    tx: &mut Transaction<'_, Sqlite>,
    delivery: Option<&Delivery>,
    push: &Push,
) -> Result<Accepted, StoreError> {
    if let Some(delivery) = delivery
        && let Some(before) = find_delivery(tx, &push.project, delivery).await?
    {
        return Ok(Accepted::Redelivered(before));
    }
    let branch = ensure_branch(tx, push).await?;
    let newest = sqlx::query!(
        r#"select id as "id: BuildId", commit_sha, state, cancel_requested_at from builds
           where branch_id = ? order by id desc limit 1"#,
        branch
    )
    .fetch_optional(&mut **tx)
    .await
    .map_err(during("read the newest build"))?;
    let same = newest.filter(|newest| {
        newest.commit_sha == push.commit.as_str()
            && matches!(newest.state.as_str(), "queued" | "building")
            && newest.cancel_requested_at.is_none()
    });
    let accepted = match same {
        // An operator's own request (no delivery) always builds.
        Some(same) if delivery.is_some() => Accepted::AlreadyBuilding(same.id),
        _ => Accepted::Queued(insert_build(tx, branch, push).await?),
    };
    if let (Some(delivery), Accepted::Queued(build) | Accepted::AlreadyBuilding(build)) = (delivery, accepted) {
        insert_delivery(tx, &push.project, delivery, Some(build)).await?;
    }
    crash::point(Point::DeliveryUncommitted);
    Ok(accepted)
}

pub(super) async fn record_removal(
    tx: &mut Transaction<'_, Sqlite>,
    delivery: Option<&Delivery>,
    removal: &Removal,
) -> Result<Accepted, StoreError> {
    if let Some(delivery) = delivery {
        if find_delivery(tx, &removal.project, delivery).await?.is_some() {
            return Ok(Accepted::Redelivered(None));
        }
        insert_delivery(tx, &removal.project, delivery, None).await?;
    }
    let branch = sqlx::query_scalar!(
        r#"update branches set wanted = 0 where project = ? and ref = ? and gone_at is null
           returning id as "id!: BranchId""#,
        removal.project,
        removal.branch
    )
    .fetch_optional(&mut **tx)
    .await
    .map_err(during("mark a branch as gone"))?;
    if let Some(branch) = branch {
        cancel_builds(tx, branch, &removal.reason).await?;
        let at = now();
        sqlx::query!(
            "insert into teardowns (target_id, up_to, reason, requested_at)
             select id, (select coalesce(max(id), 0) from deployments), ?, ? from targets
             where branch_id = ? and gone_at is null
             on conflict (target_id) do update
             set up_to = excluded.up_to, after_build = null, reason = excluded.reason",
            removal.reason,
            at,
            branch
        )
        .execute(&mut **tx)
        .await
        .map_err(during("ask for a branch's teardown"))?;
        close_branch_if_empty(tx, branch).await?;
    }
    crash::point(Point::RemovalUncommitted);
    Ok(if branch.is_some() { Accepted::Removing } else { Accepted::NothingThere })
}

/// The build an earlier delivery of the same id made; the outer `None` when there was no such delivery.
async fn find_delivery(
    tx: &mut Transaction<'_, Sqlite>,
    project: &ProjectName,
    delivery: &Delivery,
) -> Result<Option<Option<BuildId>>, StoreError> {
    sqlx::query_scalar!(
        r#"select build_id as "build_id: BuildId" from deliveries where project = ? and id = ?"#,
        project,
        delivery.id
    )
    .fetch_optional(&mut **tx)
    .await
    .map_err(during("look for an earlier delivery"))
}

async fn insert_delivery(
    tx: &mut Transaction<'_, Sqlite>,
    project: &ProjectName,
    delivery: &Delivery,
    build: Option<BuildId>,
) -> Result<(), StoreError> {
    let at = now();
    sqlx::query!(
        "insert into deliveries (project, id, event, build_id, received_at) values (?, ?, ?, ?, ?)",
        project,
        delivery.id,
        delivery.event,
        build,
        at
    )
    .execute(&mut **tx)
    .await
    .map_err(during("record a delivery"))?;
    Ok(())
}

async fn insert_build(tx: &mut Transaction<'_, Sqlite>, branch: BranchId, push: &Push) -> Result<BuildId, StoreError> {
    let at = now();
    sqlx::query!(
        "update builds set state = 'superseded', finished_at = ? where branch_id = ? and state = 'queued'",
        at,
        branch
    )
    .execute(&mut **tx)
    .await
    .map_err(during("supersede queued builds"))?;
    sqlx::query_scalar!(
        r#"insert into builds (branch_id, commit_sha, title, queued_at) values (?, ?, ?, ?)
           returning id as "id!: BuildId""#,
        branch,
        push.commit,
        push.title,
        at
    )
    .fetch_one(&mut **tx)
    .await
    .map_err(during("queue a build"))
}

/// Has a wanted row for the branch, with a slug no other branch of the project has.
async fn ensure_branch(tx: &mut Transaction<'_, Sqlite>, push: &Push) -> Result<BranchId, StoreError> {
    let at = now();
    let known = sqlx::query_scalar!(
        r#"update branches set wanted = 1, pushed_at = ?, environment = ?
           where project = ? and ref = ? and gone_at is null returning id as "id!: BranchId""#,
        at,
        push.environment,
        push.project,
        push.branch
    )
    .fetch_optional(&mut **tx)
    .await
    .map_err(during("look for a branch"))?;
    if let Some(known) = known {
        return Ok(known);
    }
    sqlx::query!("insert into projects (name, configured) values (?, 1) on conflict do nothing", push.project)
        .execute(&mut **tx)
        .await
        .map_err(during("add a project"))?;
    let slugs = sqlx::query_scalar!(
        r#"select slug as "slug!: String" from branches where project = ? and gone_at is null"#,
        push.project
    )
    .fetch_all(&mut **tx)
    .await
    .map_err(during("read a project's slugs"))?;
    let slug = BranchSlug::choose(&push.project, &push.branch, |slug| slugs.iter().any(|taken| taken == slug));
    sqlx::query_scalar!(
        r#"insert into branches (project, ref, slug, environment, wanted, pushed_at) values (?, ?, ?, ?, 1, ?)
           on conflict (project, ref) do update
           set slug = excluded.slug, environment = excluded.environment, wanted = 1, pushed_at = excluded.pushed_at,
               gone_at = null
           returning id as "id!: BranchId""#,
        push.project,
        push.branch,
        slug,
        push.environment,
        at
    )
    .fetch_one(&mut **tx)
    .await
    .map_err(during("add a branch"))
}

/// Queued builds of the branch end; the one that runs is asked to.
async fn cancel_builds(tx: &mut Transaction<'_, Sqlite>, branch: BranchId, reason: &str) -> Result<(), StoreError> {
    let at = now();
    sqlx::query!(
        "update builds set state = 'cancelled', reason = ?, finished_at = ? where branch_id = ? and state = 'queued'",
        reason,
        at,
        branch
    )
    .execute(&mut **tx)
    .await
    .map_err(during("cancel queued builds"))?;
    sqlx::query!(
        "update builds set cancel_requested_at = ?, reason = ?
         where branch_id = ? and state = 'building' and cancel_requested_at is null",
        at,
        reason,
        branch
    )
    .execute(&mut **tx)
    .await
    .map_err(during("ask a build to stop"))?;
    Ok(())
}

/// Marks a branch that is not wanted as gone, once it has neither targets nor open builds.
pub(super) async fn close_branch_if_empty(
    tx: &mut Transaction<'_, Sqlite>,
    branch: BranchId,
) -> Result<(), StoreError> {
    let at = now();
    sqlx::query!(
        "update branches set gone_at = ? where id = ? and wanted = 0 and gone_at is null
         and not exists (select 1 from targets t where t.branch_id = branches.id and t.gone_at is null)
         and not exists (select 1 from builds b where b.branch_id = branches.id and b.state in ('queued', 'building'))",
        at,
        branch
    )
    .execute(&mut **tx)
    .await
    .map_err(during("close a branch"))?;
    Ok(())
}
