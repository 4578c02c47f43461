//! What an operator's request must be compared with before it becomes a row.

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

impl Store {
    /// Returns when the database can be read.
    ///
    /// # Errors
    /// When it cannot.
    pub async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query_scalar!(r#"select count(*) as "n!: i64" from projects"#)
            .fetch_one(&self.readers)
            .await
            .map_err(during("read anything"))?;
        Ok(())
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
