//! The operator's DNS zone: read and changed at its provider, through a trait of the few calls that takes.
//!
//! Certificate authorities are shown proofs by it (`certificates`), and [`Records`] leads visitors here.
//!
//! **Invariant:** a record is changed or removed only when its comment is this kennel's [`Mark`], and the one for the
//! purpose at hand.

mod cloudflare;
mod error;
mod plan;
mod question;
mod records;
#[cfg(test)]
pub(crate) mod testing;

use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

pub use self::error::DnsError;
pub use self::records::{Context, Records};
use crate::config::{self, DnsConfig, DnsProvider};
use crate::store::{Store, StoreError};

/// How often it is looked whether a record is there to be seen.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What a record is (RFC 1035, section 3.2.2). What kennel has nothing to do with is [`Kind::Other`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// An IPv4 address.
    A,
    /// An IPv6 address (RFC 3596).
    Aaaa,
    /// Another name for a host.
    Cname,
    /// Text.
    Txt,
    /// Something else.
    Other,
}

impl Kind {
    /// Its name in the DNS.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::A => "A",
            Self::Aaaa => "AAAA",
            Self::Cname => "CNAME",
            Self::Txt => "TXT",
            Self::Other => "other",
        }
    }

    fn of(text: &str) -> Self {
        let known = [Self::A, Self::Aaaa, Self::Cname, Self::Txt];
        known.into_iter().find(|kind| kind.as_str() == text).unwrap_or(Self::Other)
    }
}

/// A record as it is to be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NewRecord {
    /// Where: a name in lower case, without a dot at its end; `*.` stands before a domain.
    pub name: String,
    /// What.
    pub kind: Kind,
    /// An address, a name, or text without quotes.
    pub content: String,
}

/// A record that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The provider's name for it.
    pub id: String,
    /// What it says.
    pub record: NewRecord,
    /// What whoever made it noted.
    pub comment: String,
}

/// A zone at a provider.
#[async_trait]
pub trait Zone: Send + Sync {
    /// All records, or all of one kind.
    async fn list(&self, kind: Option<Kind>) -> Result<Vec<Record>, DnsError>;
    /// Makes a record with this comment.
    async fn create(&self, record: &NewRecord, comment: &str) -> Result<(), DnsError>;
    /// Removes a record. One that is not there any more is no error.
    async fn delete(&self, id: &str) -> Result<(), DnsError>;
    /// The names of the servers that answer for the zone.
    fn servers(&self) -> &[String];
}

/// By what this kennel knows its own records: their comments begin with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark(String);

impl Mark {
    /// This kennel's, which stays the same for as long as its database.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn of(store: &Store) -> Result<Self, StoreError> {
        Ok(Self(format!("kennel {}", store.instance().await?)))
    }

    /// The comment of a proof for a certificate authority.
    #[must_use]
    pub fn proof(&self) -> String {
        format!("{} acme-challenge", self.0)
    }

    /// The comment of a record that leads visitors here.
    #[must_use]
    pub fn visitors(&self) -> String {
        format!("{} visitors", self.0)
    }
}

/// The zone that `[dns]` names. Its token is read each time: one that was replaced counts at once.
///
/// # Errors
/// When the token cannot be read, the provider does not answer, or knows no such zone.
pub async fn open(config: &DnsConfig) -> Result<Box<dyn Zone>, DnsError> {
    let path = config.token_file.clone();
    let token = tokio::task::spawn_blocking(move || config::read_secret(&path)).await??;
    match config.provider {
        DnsProvider::Cloudflare => Ok(Box::new(cloudflare::Cloudflare::open(config, token).await?)),
    }
}

/// Returns once each server of the zone shows this text at that name, or the `resolver` of `[dns]`, which is asked
/// in their stead.
///
/// # Errors
/// When one does not by `deadline`.
pub async fn shown(
    zone: &dyn Zone,
    resolver: Option<SocketAddr>,
    name: &str,
    text: &str,
    deadline: Instant,
) -> Result<(), DnsError> {
    let servers = match resolver {
        Some(resolver) => vec![resolver.to_string()],
        None => zone.servers().iter().map(|server| format!("{server}:53")).collect(),
    };
    for server in servers {
        loop {
            let problem = match question::texts(&server, name).await {
                Ok(texts) if texts.iter().any(|shown| shown == text) => break,
                Ok(_) => "it does not have it".to_owned(),
                Err(err) => err.to_string(),
            };
            if Instant::now() >= deadline {
                return Err(DnsError::Unseen { name: name.to_owned(), server, problem });
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
    Ok(())
}
