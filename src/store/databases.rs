//! Preview databases: which branch has which, and which wait for the servers to give them back.
//!
//! A branch's databases end in the transaction that ends its last target; the servers hear of it afterwards.

use std::time::Duration;

use sqlx::{Sqlite, Transaction};

use super::{Store, StoreError, Target, during, now};
use crate::model::{BranchId, BranchRef, DatabaseName, DatabaseState, ProjectName, ValkeyDb};

/// A Valkey number that is not free.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValkeyNumber {
    /// Which.
    pub number: ValkeyDb,
    /// The branch that has it; `None` once that has ended.
    pub owner: Option<(ProjectName, BranchRef)>,
}

/// A PostgreSQL database that has not been dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostgresDatabase {
    /// Which.
    pub name: DatabaseName,
    /// The branch that has it; `None` once that has ended.
    pub owner: Option<(ProjectName, BranchRef)>,
    /// Where it stands.
    pub state: DatabaseState,
}

impl Store {
    /// The Valkey number of a branch; a free one below `count` if it has none yet, or `None` when there is no such.
    /// Numbers in `skip` are left out: something that is not kennel's lies in them.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn ensure_valkey_number(
        &self,
        branch: BranchId,
        count: u16,
        skip: &[ValkeyDb],
    ) -> Result<Option<ValkeyDb>, StoreError> {
        let mut tx = self.begin("allocate a Valkey number").await?;
        let rows = sqlx::query!(
            r#"select number as "number!: ValkeyDb",
               coalesce(branch_id = ?, 0) as "own!: bool" from valkey_numbers"#,
            branch
        )
        .fetch_all(&mut *tx)
        .await
        .map_err(during("read Valkey numbers"))?;
        if let Some(own) = rows.iter().find(|row| row.own) {
            return Ok(Some(own.number));
        }
        let mut free = (1..count).filter_map(|number| ValkeyDb::try_from(number).ok());
        let free = free.find(|number| !skip.contains(number) && !rows.iter().any(|row| row.number == *number));
        let Some(free) = free else { return Ok(None) };
        sqlx::query!("insert into valkey_numbers (number, branch_id) values (?, ?)", free, branch)
            .execute(&mut *tx)
            .await
            .map_err(during("allocate a Valkey number"))?;
        tx.commit().await.map_err(during("allocate a Valkey number"))?;
        Ok(Some(free))
    }

    /// The Valkey number of a branch, if it has one.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn valkey_number(&self, branch: BranchId) -> Result<Option<ValkeyDb>, StoreError> {
        sqlx::query_scalar!(r#"select number as "number!: ValkeyDb" from valkey_numbers where branch_id = ?"#, branch)
            .fetch_optional(&self.readers)
            .await
            .map_err(during("read a Valkey number"))
    }

    /// The Valkey numbers that are not free, in order.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn valkey_numbers(&self) -> Result<Vec<ValkeyNumber>, StoreError> {
        let rows = sqlx::query!(
            r#"select v.number as "number!: ValkeyDb", b.project as "project?: ProjectName", b.ref as "branch?: BranchRef"
               from valkey_numbers v left join branches b on b.id = v.branch_id
               order by v.number"#
        )
        .fetch_all(&self.readers)
        .await
        .map_err(during("read Valkey numbers"))?;
        Ok(rows
            .into_iter()
            .map(|row| ValkeyNumber { number: row.number, owner: row.project.zip(row.branch) })
            .collect())
    }

    /// Has a number that no row names given back like those of branches that have ended. Whoever claims it at the
    /// same time comes first.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn adopt_valkey_number(&self, number: ValkeyDb) -> Result<(), StoreError> {
        let at = now();
        sqlx::query!("insert into valkey_numbers (number, ended_at) values (?, ?) on conflict do nothing", number, at)
            .execute(&self.writer)
            .await
            .map_err(during("take over a Valkey number"))?;
        Ok(())
    }

    /// Frees a number that was given back.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn free_valkey_number(&self, number: ValkeyDb) -> Result<(), StoreError> {
        sqlx::query!("delete from valkey_numbers where number = ? and ended_at is not null", number)
            .execute(&self.writer)
            .await
            .map_err(during("free a Valkey number"))?;
        Ok(())
    }

    /// The PostgreSQL database of a target's branch, under a name that none had before if it has none yet.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn ensure_postgres_database(&self, target: &Target) -> Result<DatabaseName, StoreError> {
        let mut tx = self.begin("allocate a PostgreSQL database").await?;
        let own = sqlx::query_scalar!(
            r#"select name as "name!: DatabaseName" from postgres_databases where branch_id = ?"#,
            target.branch_id
        )
        .fetch_optional(&mut *tx)
        .await
        .map_err(during("read a PostgreSQL database"))?;
        if let Some(own) = own {
            return Ok(own);
        }
        // The time tells it from the one that the branch had in an earlier life.
        let name = DatabaseName::choose(&target.project, &target.slug, u64::try_from(now()).unwrap_or_default());
        sqlx::query!(
            "insert into postgres_databases (name, branch_id, state) values (?, ?, 'in_use')",
            name,
            target.branch_id
        )
        .execute(&mut *tx)
        .await
        .map_err(during("allocate a PostgreSQL database"))?;
        tx.commit().await.map_err(during("allocate a PostgreSQL database"))?;
        Ok(name)
    }

    /// The PostgreSQL database of a branch, if it has one.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn postgres_database(&self, branch: BranchId) -> Result<Option<DatabaseName>, StoreError> {
        sqlx::query_scalar!(
            r#"select name as "name!: DatabaseName" from postgres_databases where branch_id = ?"#,
            branch
        )
        .fetch_optional(&self.readers)
        .await
        .map_err(during("read a PostgreSQL database"))
    }

    /// The PostgreSQL databases that have not been dropped, by name.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn postgres_databases(&self) -> Result<Vec<PostgresDatabase>, StoreError> {
        let rows = sqlx::query!(
            r#"select p.name as "name!: DatabaseName", p.state as "state!: DatabaseState",
               b.project as "project?: ProjectName", b.ref as "branch?: BranchRef"
               from postgres_databases p left join branches b on b.id = p.branch_id
               order by p.name"#
        )
        .fetch_all(&self.readers)
        .await
        .map_err(during("read PostgreSQL databases"))?;
        let databases = rows.into_iter().map(|row| PostgresDatabase {
            name: row.name,
            owner: row.project.zip(row.branch),
            state: row.state,
        });
        Ok(databases.collect())
    }

    /// Has a database that no row names go the way of those whose branch has ended.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn adopt_postgres_database(&self, name: &DatabaseName) -> Result<(), StoreError> {
        let at = now();
        sqlx::query!(
            "insert into postgres_databases (name, state, ended_at) values (?, 'ended', ?) on conflict do nothing",
            name,
            at
        )
        .execute(&self.writer)
        .await
        .map_err(during("take over a PostgreSQL database"))?;
        Ok(())
    }

    /// Records that a database whose branch has ended bears its new name, and nobody can log in.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn note_renamed_database(&self, name: &DatabaseName) -> Result<(), StoreError> {
        sqlx::query!("update postgres_databases set state = 'renamed' where name = ? and state = 'ended'", name)
            .execute(&self.writer)
            .await
            .map_err(during("note a renamed PostgreSQL database"))?;
        Ok(())
    }

    /// The renamed databases whose branch ended longer ago than this.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn expired_databases(&self, older_than: Duration) -> Result<Vec<DatabaseName>, StoreError> {
        let before = now().saturating_sub(i64::try_from(older_than.as_millis()).unwrap_or(i64::MAX));
        sqlx::query_scalar!(
            r#"select name as "name!: DatabaseName" from postgres_databases
               where state = 'renamed' and ended_at <= ? order by name"#,
            before
        )
        .fetch_all(&self.readers)
        .await
        .map_err(during("read PostgreSQL databases whose time is up"))
    }

    /// Forgets a database that was dropped.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn forget_postgres_database(&self, name: &DatabaseName) -> Result<(), StoreError> {
        sqlx::query!("delete from postgres_databases where name = ? and state = 'renamed'", name)
            .execute(&self.writer)
            .await
            .map_err(during("forget a PostgreSQL database"))?;
        Ok(())
    }
}

/// Ends the databases of a branch with its last target.
pub(super) async fn end_databases_if_last(
    tx: &mut Transaction<'_, Sqlite>,
    branch: BranchId,
) -> Result<(), StoreError> {
    let at = now();
    sqlx::query!(
        "update valkey_numbers set ended_at = ?, branch_id = null where branch_id = ?
         and not exists (select 1 from targets t where t.branch_id = valkey_numbers.branch_id and t.gone_at is null)",
        at,
        branch
    )
    .execute(&mut **tx)
    .await
    .map_err(during("end a branch's Valkey number"))?;
    sqlx::query!(
        "update postgres_databases set ended_at = ?, state = 'ended', branch_id = null
         where branch_id = ?
         and not exists (select 1 from targets t where t.branch_id = postgres_databases.branch_id and t.gone_at is null)",
        at,
        branch
    )
    .execute(&mut **tx)
    .await
    .map_err(during("end a branch's PostgreSQL database"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A database with three branches.
    async fn store(dir: &std::path::Path) -> Store {
        let store = Store::open(&dir.join("kennel.db")).await.unwrap();
        sqlx::raw_sql(
            "insert into projects (name, configured) values ('hello', 1);
             insert into branches (id, project, ref, slug, environment, wanted, pushed_at)
             values (1, 'hello', 'heads/a', 'a', 'dev', 1, 0), (2, 'hello', 'heads/b', 'b', 'dev', 1, 0),
                    (3, 'hello', 'heads/c', 'c', 'dev', 1, 0);",
        )
        .execute(&store.writer)
        .await
        .unwrap();
        store
    }

    async fn end(store: &Store, branch: i64) {
        let mut tx = store.begin("end a branch").await.unwrap();
        end_databases_if_last(&mut tx, BranchId(branch)).await.unwrap();
        tx.commit().await.unwrap();
    }

    #[tokio::test]
    async fn a_number_is_one_branchs_until_the_server_has_given_it_back() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path()).await;
        let number = async |branch| {
            let number = store.ensure_valkey_number(BranchId(branch), 4, &[ValkeyDb::try_from(2).unwrap()]).await;
            number.unwrap().map(ValkeyDb::get)
        };
        assert_eq!((number(1).await, number(2).await, number(1).await), (Some(1), Some(3), Some(1)));
        assert_eq!(number(3).await, None, "2 holds something, and 4 is beyond");

        end(&store, 1).await;
        end(&store, 1).await;
        assert_eq!(number(3).await, None, "it is not yet given back");
        let ended = store.valkey_numbers().await.unwrap().remove(0);
        assert_eq!((ended.number.get(), ended.owner), (1, None));
        store.adopt_valkey_number(ended.number).await.unwrap();
        store.free_valkey_number(ended.number).await.unwrap();
        assert_eq!(number(1).await, Some(1));

        let own = ValkeyDb::try_from(1).unwrap();
        store.adopt_valkey_number(own).await.unwrap();
        store.free_valkey_number(own).await.unwrap();
        assert_eq!(store.valkey_number(BranchId(1)).await.unwrap(), Some(own), "what a branch has is not taken");
    }

    #[tokio::test]
    async fn a_database_goes_from_use_to_its_new_name_to_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path()).await;
        let name: DatabaseName = "kennel_hello_a_0123456789ab".parse().unwrap();
        store.adopt_postgres_database(&name).await.unwrap();
        store.forget_postgres_database(&name).await.unwrap();
        assert_eq!(
            store.postgres_databases().await.unwrap()[0].state,
            DatabaseState::Ended,
            "not before it is renamed"
        );
        store.note_renamed_database(&name).await.unwrap();
        store.adopt_postgres_database(&name).await.unwrap();
        assert_eq!(store.postgres_databases().await.unwrap()[0].state, DatabaseState::Renamed);
        assert_eq!(store.expired_databases(Duration::from_secs(60)).await.unwrap(), []);
        assert_eq!(store.expired_databases(Duration::ZERO).await.unwrap(), std::slice::from_ref(&name));
        store.forget_postgres_database(&name).await.unwrap();
        assert_eq!(store.postgres_databases().await.unwrap(), []);
    }
}
