//! Projects: which the daemon's file names, and what kennel knows of each.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{Store, StoreError, during};
use crate::model::{BranchRef, CommitSha, ProjectName};

/// A branch kennel has seen, whether it is still there or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownBranch {
    /// Its ref.
    pub branch: BranchRef,
    /// Whether it is at the forge, as far as kennel was told.
    pub wanted: bool,
}

/// A commit that kennel has built, or tried to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownCommit {
    /// The commit.
    pub commit: CommitSha,
    /// The first line of its message.
    pub title: Option<String>,
}

/// A project, for people.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ProjectView {
    /// Its name.
    pub name: ProjectName,
    /// Whether the daemon's file names it.
    pub configured: bool,
    /// How many of its targets there are.
    pub targets: i64,
    /// How many of its builds are queued or running.
    pub open_builds: i64,
}

impl Store {
    /// Projects by name: those of the daemon's file, and those that still have something here.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn list_projects(&self) -> Result<Vec<ProjectView>, StoreError> {
        let projects = sqlx::query_as!(
            ProjectView,
            r#"select p.name as "name!: _", p.configured as "configured!: bool",
               (select count(*) from targets t join branches b on b.id = t.branch_id
                where b.project = p.name and t.gone_at is null) as "targets!: i64",
               (select count(*) from builds bu join branches b on b.id = bu.branch_id
                where b.project = p.name and bu.state in ('queued', 'building')) as "open_builds!: i64"
               from projects p order by p.name"#
        )
        .fetch_all(&self.readers)
        .await
        .map_err(during("list projects"))?;
        Ok(projects.into_iter().filter(|project| project.configured || project.targets > 0).collect())
    }

    /// Notes which projects the daemon's file names, and that all others are no longer configured. Writes nothing when
    /// that is known, so that kennel starts on a full disk as well.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn note_projects<'a>(&self, names: impl IntoIterator<Item = &'a ProjectName>) -> Result<(), StoreError> {
        let names: BTreeSet<&str> = names.into_iter().map(ProjectName::as_str).collect();
        let known = sqlx::query_scalar!("select name from projects where configured = 1")
            .fetch_all(&self.readers)
            .await
            .map_err(during("read the projects"))?;
        if names == known.iter().map(String::as_str).collect() {
            return Ok(());
        }
        let mut tx = self.begin("note the projects").await?;
        sqlx::query!("update projects set configured = 0")
            .execute(&mut *tx)
            .await
            .map_err(during("note the projects"))?;
        for name in names {
            sqlx::query!(
                "insert into projects (name, configured) values (?, 1) on conflict (name) do update set configured = 1",
                name
            )
            .execute(&mut *tx)
            .await
            .map_err(during("note a project"))?;
        }
        tx.commit().await.map_err(during("note the projects"))
    }

    /// Branches of projects that the daemon's file no longer names.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn unconfigured_branches(&self) -> Result<Vec<(ProjectName, BranchRef)>, StoreError> {
        let rows = sqlx::query!(
            r#"select b.project as "project!: ProjectName", b.ref as "branch!: BranchRef"
               from branches b join projects p on p.name = b.project
               where p.configured = 0 and b.gone_at is null"#
        )
        .fetch_all(&self.readers)
        .await
        .map_err(during("read branches of projects that are no longer configured"))?;
        Ok(rows.into_iter().map(|row| (row.project, row.branch)).collect())
    }

    /// Whether there is, or was, anything of this project here.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn knows_project(&self, project: &ProjectName) -> Result<bool, StoreError> {
        sqlx::query_scalar!(r#"select exists (select 1 from projects where name = ?) as "known!: bool""#, project)
            .fetch_one(&self.readers)
            .await
            .map_err(during("look for a project"))
    }

    /// Every branch and pull request of a project that kennel has seen.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn known_branches(&self, project: &ProjectName) -> Result<Vec<KnownBranch>, StoreError> {
        sqlx::query_as!(
            KnownBranch,
            r#"select ref as "branch!: _", wanted as "wanted!: bool" from branches where project = ? order by ref"#,
            project
        )
        .fetch_all(&self.readers)
        .await
        .map_err(during("read a project's branches"))
    }

    /// The commits of a branch that begin with these digits: what the forge pushed last comes first, what only
    /// operators asked for last. At most 2, which is enough to know whether it is one.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn known_commits(
        &self,
        project: &ProjectName,
        branch: &BranchRef,
        digits: &str,
    ) -> Result<Vec<KnownCommit>, StoreError> {
        sqlx::query_as!(
            KnownCommit,
            r#"select b.commit_sha as "commit!: _", max(b.title) as "title: String"
               from builds b join branches br on br.id = b.branch_id
               where br.project = ? and br.ref = ? and substr(b.commit_sha, 1, length(?3)) = ?3
               group by b.commit_sha
               order by max(case when exists (select 1 from deliveries d where d.build_id = b.id) then b.id end) desc,
                        max(b.id) desc
               limit 2"#,
            project,
            branch,
            digits
        )
        .fetch_all(&self.readers)
        .await
        .map_err(during("look for a commit"))
    }
}
