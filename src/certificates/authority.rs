//! The certificate authority: reached by its directory, known there by an account whose key stays here.

use std::path::PathBuf;

use instant_acme::{Account, AccountBuilder, AccountCredentials, NewAccount};

use super::drawer::{Drawer, DrawerError};
use super::order::Failure;
use crate::config::AcmeConfig;

/// Why an authority cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum AuthorityError {
    /// The certificate by which it is checked cannot be used.
    #[error("cannot use the root certificate `{}`", path.display())]
    Root {
        path: PathBuf,
        #[source]
        source: instant_acme::Error,
    },
    /// The system's trusted certificates cannot be used.
    #[error("cannot use the certificates that the system trusts")]
    Roots(#[source] instant_acme::Error),
    /// It does not answer, or refuses.
    #[error(transparent)]
    Failure(#[from] Failure),
    /// The account's file holds something else.
    #[error("the file of the account with the certificate authority is spoilt")]
    Spoilt(#[source] serde_json::Error),
    /// The disk failed.
    #[error(transparent)]
    Disk(#[from] DrawerError),
    /// Something here broke off.
    #[error("was interrupted")]
    Interrupted(#[from] tokio::task::JoinError),
}

/// The account with the authority of `[acme]`; makes one the first time.
pub(super) async fn open(config: &AcmeConfig, drawer: &Drawer) -> Result<Account, AuthorityError> {
    let (ca_file, own, directory) = (config.ca_file.clone(), drawer.clone(), config.directory.clone());
    let (builder, kept) =
        tokio::task::spawn_blocking(move || Ok::<_, AuthorityError>((builder(ca_file)?, own.account(&directory)?)))
            .await??;
    if let Some(kept) = kept {
        let credentials: AccountCredentials = serde_json::from_str(&kept).map_err(AuthorityError::Spoilt)?;
        return Ok(builder.from_credentials(credentials).await.map_err(Failure::from)?);
    }
    let contact = format!("mailto:{}", config.email);
    let new = NewAccount { contact: &[&contact], terms_of_service_agreed: true, only_return_existing: false };
    let (account, credentials) = builder.create(&new, config.directory.clone(), None).await.map_err(Failure::from)?;
    let text = serde_json::to_string(&credentials).map_err(AuthorityError::Spoilt)?;
    let (own, directory) = (drawer.clone(), config.directory.clone());
    tokio::task::spawn_blocking(move || own.put_account(&directory, &text)).await??;
    tracing::info!("Made an account with the certificate authority at {}", config.directory);
    Ok(account)
}

fn builder(ca_file: Option<PathBuf>) -> Result<AccountBuilder, AuthorityError> {
    match ca_file {
        Some(path) => Account::builder_with_root(&path).map_err(|source| AuthorityError::Root { path, source }),
        None => Account::builder().map_err(AuthorityError::Roots),
    }
}
