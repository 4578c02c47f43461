//! The certificates that kennel orders: until when they are valid, and what keeps the next ones from coming.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;

use super::Api;
use super::problem::ApiError;
use super::wire::CertificateInfo;
use crate::store::{AuthorityAway, CertificateRow};

/// `GET /certificates`.
pub(super) async fn list(State(api): State<Arc<Api>>) -> Result<Json<Vec<CertificateInfo>>, ApiError> {
    let directory = api.config.load().acme.as_ref().map(|acme| acme.directory.clone());
    let away = match &directory {
        Some(directory) => api.store.authority_away(directory).await?,
        None => None,
    };
    let mut rows = api.store.certificates().await?;
    rows.retain(|row| row.unwanted_since.is_none());
    let info = |row: CertificateRow| info(row, directory.as_deref(), away.as_ref());
    Ok(Json(rows.into_iter().map(info).collect()))
}

/// What an operator needs to know of one; `directory` is that of the authority that is asked now.
fn info(row: CertificateRow, directory: Option<&str>, away: Option<&AuthorityAway>) -> CertificateInfo {
    let good = row.directory.as_deref() == directory && row.order_url.is_none();
    let due = row.renew_at.filter(|_| good).unwrap_or(0).max(row.try_at);
    // Whoever is not due does not meet an authority that is away.
    let away = away.filter(|away| due <= away.try_at);
    let next_at = directory.map(|_| away.map_or(due, |away| away.try_at));
    let problem = row.problem.or_else(|| away.map(|away| away.problem.clone()));
    CertificateInfo { name: row.name, expires_at: row.expires_at, next_at, problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> CertificateRow {
        CertificateRow {
            name: "*.shop.example".parse().unwrap(),
            directory: Some("https://ca/dir".to_owned()),
            order_directory: None,
            order_url: None,
            expires_at: Some(90),
            renew_at: Some(60),
            ask_at: None,
            failures: 0,
            try_at: 0,
            problem: None,
            unwanted_since: None,
        }
    }

    #[test]
    fn the_next_try_comes_when_it_is_due_or_when_the_authority_is_asked_again() {
        let next = |row: CertificateRow, directory, away: Option<&AuthorityAway>| {
            let info = info(row, directory, away);
            (info.next_at, info.problem)
        };
        let here = Some("https://ca/dir");
        let away = AuthorityAway { failures: 1, try_at: 40, problem: "refused".to_owned() };
        assert_eq!(next(row(), here, None), (Some(60), None));
        assert_eq!(next(row(), here, Some(&away)), (Some(60), None), "it is not due before");
        let failed = CertificateRow { try_at: 70, problem: Some("unseen".to_owned()), ..row() };
        assert_eq!(next(failed, here, None), (Some(70), Some("unseen".to_owned())));
        let fresh = CertificateRow { directory: None, expires_at: None, renew_at: None, ..row() };
        assert_eq!(next(fresh.clone(), here, None), (Some(0), None));
        assert_eq!(next(fresh, here, Some(&away)), (Some(40), Some("refused".to_owned())));
        assert_eq!(next(row(), Some("https://other/dir"), None), (Some(0), None), "another authority's is replaced");
        assert_eq!(next(row(), None, None), (None, None), "nobody orders any more");
    }
}
