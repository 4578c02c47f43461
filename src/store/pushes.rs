//! Pushes to binary caches: which are to be done, and what became of them.
//!
//! A row is made with the end of its build, for every cache the build may have; who finds that there is no such cache
//! removes it.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use sqlx::{Sqlite, Transaction};

use super::{Store, StoreError, during, now};
use crate::model::settings::Manifest;
use crate::model::{BuildId, Cache, ProjectName, StorePath};

/// A push that is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingPush {
    /// What which build made.
    pub build: BuildId,
    /// Whose.
    pub project: ProjectName,
    /// To which of its caches.
    pub cache: Cache,
    /// The name of the Cachix cache.
    pub name: Option<String>,
    /// How often it has failed.
    pub attempts: i64,
}

/// A push, for people.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PushView {
    /// To which of the build's caches.
    pub cache: Cache,
    /// The name of the Cachix cache.
    pub name: Option<String>,
    /// How often it has failed.
    pub attempts: i64,
    /// Why it failed last.
    pub problem: Option<String>,
    /// When it was done, in milliseconds since 1970.
    pub pushed_at: Option<i64>,
}

/// Has what a build made pushed, if it made anything.
pub(super) async fn insert(
    tx: &mut Transaction<'_, Sqlite>,
    build: BuildId,
    manifest: &Manifest,
) -> Result<(), StoreError> {
    let at = now();
    let cachix = manifest.cachix.as_deref();
    for (cache, name) in [(Cache::Store, None), (Cache::Cachix, cachix)] {
        if cache == Cache::Cachix && name.is_none() {
            continue;
        }
        sqlx::query!(
            "insert into pushes (build_id, cache, name, due_at)
             select ?1, ?2, ?3, ?4 where exists (select 1 from artifacts where build_id = ?1 and rooted = 1)
             on conflict (build_id, cache) do nothing",
            build,
            cache,
            name,
            at
        )
        .execute(&mut **tx)
        .await
        .map_err(during("note what is to be pushed"))?;
    }
    Ok(())
}

impl Store {
    /// The push that has been due for longest, if any is.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn due_push(&self) -> Result<Option<PendingPush>, StoreError> {
        let at = now();
        sqlx::query_as!(
            PendingPush,
            r#"select p.build_id as "build!: _", br.project as "project!: _", p.cache as "cache!: _", p.name, p.attempts
               from pushes p join builds b on b.id = p.build_id join branches br on br.id = b.branch_id
               where p.pushed_at is null and p.due_at <= ? order by p.due_at, p.build_id limit 1"#,
            at
        )
        .fetch_optional(&self.readers)
        .await
        .map_err(during("look for what is to be pushed"))
    }

    /// How long until the next push falls due, if one waits.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn next_push(&self) -> Result<Option<Duration>, StoreError> {
        let due = sqlx::query_scalar!(r#"select min(due_at) as "due: i64" from pushes where pushed_at is null"#)
            .fetch_one(&self.readers)
            .await
            .map_err(during("look for the next push"))?;
        Ok(due.map(|due| Duration::from_millis(u64::try_from(due - now()).unwrap_or(0))))
    }

    /// What a build made that is still kept from the garbage collector.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn push_paths(&self, build: BuildId) -> Result<Vec<StorePath>, StoreError> {
        sqlx::query_scalar!(
            r#"select distinct store_path as "path!: StorePath" from artifacts
               where build_id = ? and rooted = 1 and store_path is not null order by store_path"#,
            build
        )
        .fetch_all(&self.readers)
        .await
        .map_err(during("read what is to be pushed"))
    }

    /// Notes that a push is done.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn note_pushed(&self, push: &PendingPush) -> Result<(), StoreError> {
        let at = now();
        sqlx::query!(
            "update pushes set pushed_at = ?, problem = null where build_id = ? and cache = ?",
            at,
            push.build,
            push.cache
        )
        .execute(&self.writer)
        .await
        .map_err(during("note a push"))?;
        Ok(())
    }

    /// Notes that a push failed, and is to be tried again after a while.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn put_push_off(&self, push: &PendingPush, problem: &str, delay: Duration) -> Result<(), StoreError> {
        let due = now().saturating_add(i64::try_from(delay.as_millis()).unwrap_or(i64::MAX));
        sqlx::query!(
            "update pushes set attempts = attempts + 1, problem = ?, due_at = ? where build_id = ? and cache = ?",
            problem,
            due,
            push.build,
            push.cache
        )
        .execute(&self.writer)
        .await
        .map_err(during("put a push off"))?;
        Ok(())
    }

    /// Forgets a push: its cache is not configured, or what it was to push is gone.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn forget_push(&self, push: &PendingPush) -> Result<(), StoreError> {
        sqlx::query!("delete from pushes where build_id = ? and cache = ?", push.build, push.cache)
            .execute(&self.writer)
            .await
            .map_err(during("forget a push"))?;
        Ok(())
    }

    /// Has pushes that wait for their next try tried at once: the operator may have mended what they failed for.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn retry_pushes(&self) -> Result<(), StoreError> {
        let at = now();
        sqlx::query!("update pushes set due_at = ?1 where pushed_at is null and due_at > ?1", at)
            .execute(&self.writer)
            .await
            .map_err(during("have pushes tried again"))?;
        Ok(())
    }

    /// What is pushed of a build, and what became of it.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn list_pushes(&self, build: BuildId) -> Result<Vec<PushView>, StoreError> {
        sqlx::query_as!(
            PushView,
            r#"select cache as "cache!: _", name, attempts, problem, pushed_at from pushes where build_id = ? order by cache"#,
            build
        )
        .fetch_all(&self.readers)
        .await
        .map_err(during("list pushes"))
    }
}
