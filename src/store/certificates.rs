//! Certificates by ACME: what was tried for which name, and when to try again.

use super::{Store, StoreError, during};
use crate::model::CertificateName;

/// A host that has a certificate by ACME, or is to get one, or a wildcard. Times are in milliseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateRow {
    /// Which.
    pub name: CertificateName,
    /// The directory of the authority whose certificate there is.
    pub directory: Option<String>,
    /// The directory where an order has begun.
    pub order_directory: Option<String>,
    /// That order.
    pub order_url: Option<String>,
    /// Until when the certificate is valid, if there is one.
    pub expires_at: Option<i64>,
    /// When the next one is ordered, if there is one.
    pub renew_at: Option<i64>,
    /// When the authority is asked for a better time.
    pub ask_at: Option<i64>,
    /// Tries that failed since the last that did not.
    pub failures: u32,
    /// Before this, nothing is tried.
    pub try_at: i64,
    /// Why the last try failed, if it did.
    pub problem: Option<String>,
    /// Since when there is no route for it.
    pub unwanted_since: Option<i64>,
}

/// A try that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedTry {
    /// Before this, nothing is tried again; in milliseconds since 1970.
    pub try_at: i64,
    /// Why.
    pub problem: String,
}

/// A certificate that has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// The directory of its authority.
    pub directory: String,
    /// Until when it is valid; times are in milliseconds since 1970.
    pub expires_at: i64,
    /// When the next one is ordered.
    pub renew_at: i64,
    /// When the authority is asked for a better time.
    pub ask_at: i64,
}

/// An authority that cannot be used at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorityAway {
    /// Tries that failed in a row.
    pub failures: u32,
    /// Before this, nothing is tried; in milliseconds since 1970.
    pub try_at: i64,
    /// Why the last try failed.
    pub problem: String,
}

impl Store {
    /// Every name that has a certificate by ACME, or is to get one, in their order.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn certificates(&self) -> Result<Vec<CertificateRow>, StoreError> {
        sqlx::query_as!(
            CertificateRow,
            r#"select name as "name!: _", directory, order_directory, order_url, expires_at, renew_at, ask_at, failures as "failures!: u32",
               try_at, problem, unwanted_since from certificates order by name"#
        )
        .fetch_all(&self.readers)
        .await
        .map_err(during("read the certificates"))
    }

    /// Notes hosts that have routes now, and hosts that have none any more, since `now` (in milliseconds since 1970).
    ///
    /// # Errors
    /// When the database refuses; then nothing was noted.
    pub async fn note_wanted(
        &self,
        wanted: &[CertificateName],
        unwanted: &[CertificateName],
        now: i64,
    ) -> Result<(), StoreError> {
        let mut tx = self.begin("note who wants certificates").await?;
        for name in wanted {
            sqlx::query!(
                "insert into certificates (name) values (?) on conflict (name) do update set unwanted_since = null",
                name
            )
            .execute(&mut *tx)
            .await
            .map_err(during("note a host that wants a certificate"))?;
        }
        for name in unwanted {
            sqlx::query!(
                "update certificates set unwanted_since = coalesce(unwanted_since, ?) where name = ?",
                now,
                name
            )
            .execute(&mut *tx)
            .await
            .map_err(during("note a host that wants no certificate"))?;
        }
        tx.commit().await.map_err(during("note who wants certificates"))
    }

    /// Notes an order that has begun; a restart goes on with it.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn note_order(&self, name: &CertificateName, directory: &str, url: &str) -> Result<(), StoreError> {
        sqlx::query!("update certificates set order_directory = ?, order_url = ? where name = ?", directory, url, name)
            .execute(&self.writer)
            .await
            .map_err(during("note an order"))?;
        Ok(())
    }

    /// Notes that an order leads nowhere.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn drop_order(&self, name: &CertificateName) -> Result<(), StoreError> {
        sqlx::query!("update certificates set order_directory = null, order_url = null where name = ?", name)
            .execute(&self.writer)
            .await
            .map_err(during("drop an order"))?;
        Ok(())
    }

    /// Notes a certificate that has come and lies where it belongs.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn note_issued(&self, name: &CertificateName, issued: &Issued) -> Result<(), StoreError> {
        sqlx::query!(
            "update certificates set directory = ?, expires_at = ?, renew_at = ?, ask_at = ?, order_directory = null, order_url = null,
             failures = 0, try_at = 0, problem = null where name = ?",
            issued.directory,
            issued.expires_at,
            issued.renew_at,
            issued.ask_at,
            name
        )
        .execute(&self.writer)
        .await
        .map_err(during("note a certificate"))?;
        Ok(())
    }

    /// Notes that a host's order failed.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn note_failed_try(&self, name: &CertificateName, failed: &FailedTry) -> Result<(), StoreError> {
        sqlx::query!(
            "update certificates set failures = failures + 1, try_at = ?, problem = ? where name = ?",
            failed.try_at,
            failed.problem,
            name
        )
        .execute(&self.writer)
        .await
        .map_err(during("note a failed order"))?;
        Ok(())
    }

    /// Lets whatever failed be tried again at once: hosts and authorities. How often it failed is kept.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn retry_certificates(&self) -> Result<(), StoreError> {
        let mut tx = self.begin("let certificates be tried again").await?;
        sqlx::query!("update certificates set try_at = 0 where failures > 0")
            .execute(&mut *tx)
            .await
            .map_err(during("let certificates be tried again"))?;
        sqlx::query!("update acme_directories set try_at = 0")
            .execute(&mut *tx)
            .await
            .map_err(during("let authorities be tried again"))?;
        tx.commit().await.map_err(during("let certificates be tried again"))
    }

    /// Notes when a certificate is to be renewed, if that is new, and when it is asked again; in milliseconds since
    /// 1970.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn plan_renewal(
        &self,
        name: &CertificateName,
        renew_at: Option<i64>,
        ask_at: i64,
    ) -> Result<(), StoreError> {
        sqlx::query!(
            "update certificates set renew_at = coalesce(?, renew_at), ask_at = ? where name = ? and expires_at is not null",
            renew_at,
            ask_at,
            name
        )
        .execute(&self.writer)
        .await
        .map_err(during("plan a renewal"))?;
        Ok(())
    }

    /// Forgets a host whose certificate has been removed.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn forget_certificate(&self, name: &CertificateName) -> Result<(), StoreError> {
        sqlx::query!("delete from certificates where name = ?", name)
            .execute(&self.writer)
            .await
            .map_err(during("forget a certificate"))?;
        Ok(())
    }

    /// Whether an authority is to be left alone for a while.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn authority_away(&self, directory: &str) -> Result<Option<AuthorityAway>, StoreError> {
        sqlx::query_as!(
            AuthorityAway,
            r#"select failures as "failures!: u32", try_at, problem from acme_directories where url = ?"#,
            directory
        )
        .fetch_optional(&self.readers)
        .await
        .map_err(during("read how an authority is"))
    }

    /// Notes that an authority cannot be used.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn note_authority_away(&self, directory: &str, failed: &FailedTry) -> Result<(), StoreError> {
        sqlx::query!(
            "insert into acme_directories (url, failures, try_at, problem) values (?, 1, ?, ?) on conflict (url)
             do update set failures = failures + 1, try_at = excluded.try_at, problem = excluded.problem",
            directory,
            failed.try_at,
            failed.problem
        )
        .execute(&self.writer)
        .await
        .map_err(during("note how an authority is"))?;
        Ok(())
    }

    /// Notes that an authority can be used again.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn note_authority_back(&self, directory: &str) -> Result<(), StoreError> {
        sqlx::query!("delete from acme_directories where url = ?", directory)
            .execute(&self.writer)
            .await
            .map_err(during("note how an authority is"))?;
        Ok(())
    }
}

impl Store {
    /// What tells this kennel from others that change the same DNS zone: 16 hexadecimal digits.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn instance(&self) -> Result<String, StoreError> {
        sqlx::query_scalar!("select id from instance")
            .fetch_one(&self.readers)
            .await
            .map_err(during("read what this kennel is told from others by"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> CertificateName {
        name.parse().unwrap()
    }

    #[tokio::test]
    async fn what_was_tried_for_a_host_is_kept_until_a_certificate_comes() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("kennel.db")).await.unwrap();
        let (a, b) = (host("a.example"), host("b.example"));
        store.note_wanted(&[a.clone(), b.clone()], &[], 1).await.unwrap();
        store.note_order(&a, "https://ca/dir", "https://ca/order/1").await.unwrap();
        for try_at in [10, 20] {
            let failed = FailedTry { try_at, problem: "no answer".to_owned() };
            store.note_failed_try(&a, &failed).await.unwrap();
        }
        let rows = store.certificates().await.unwrap();
        assert_eq!((rows[0].failures, rows[0].try_at, rows[0].order_url.is_some()), (2, 20, true));
        assert_eq!((rows[1].failures, rows[1].expires_at, &rows[1].directory), (0, None, &None));

        store.retry_certificates().await.unwrap();
        let rows = store.certificates().await.unwrap();
        assert_eq!((rows[0].failures, rows[0].try_at), (2, 0));

        let issued = Issued { directory: "https://ca/dir".to_owned(), expires_at: 90, renew_at: 60, ask_at: 30 };
        store.note_issued(&a, &issued).await.unwrap();
        store.plan_renewal(&a, Some(50), 40).await.unwrap();
        store.plan_renewal(&b, Some(50), 40).await.unwrap();
        store.note_wanted(&[], std::slice::from_ref(&a), 7).await.unwrap();
        store.note_wanted(&[], std::slice::from_ref(&a), 8).await.unwrap();
        let rows = store.certificates().await.unwrap();
        let plan = (rows[0].expires_at, rows[0].renew_at, rows[0].ask_at, rows[0].unwanted_since);
        assert_eq!(plan, (Some(90), Some(50), Some(40), Some(7)));
        assert_eq!((rows[0].failures, rows[0].try_at, &rows[0].problem, &rows[0].order_url), (0, 0, &None, &None));
        assert_eq!(rows[1].renew_at, None, "there is nothing to renew");
        store.forget_certificate(&a).await.unwrap();
        assert_eq!(store.certificates().await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn an_authority_that_is_away_is_remembered_until_it_is_back() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("kennel.db")).await.unwrap();
        assert_eq!(store.authority_away("https://ca/dir").await.unwrap(), None);
        for try_at in [10, 20] {
            let failed = FailedTry { try_at, problem: "refused".to_owned() };
            store.note_authority_away("https://ca/dir", &failed).await.unwrap();
        }
        let away = store.authority_away("https://ca/dir").await.unwrap();
        assert_eq!(away, Some(AuthorityAway { failures: 2, try_at: 20, problem: "refused".to_owned() }));
        store.note_authority_back("https://ca/dir").await.unwrap();
        assert_eq!(store.authority_away("https://ca/dir").await.unwrap(), None);
    }
}
