//! Why the DNS provider did not do what it was asked for.

use std::time::Duration;

use crate::config::SecretError;
use crate::model::HostName;

/// What is wrong with the provider, the token, or the zone.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// The token's file cannot be used.
    #[error("cannot read the token of the DNS provider")]
    Token(#[from] SecretError),
    /// The certificates that the system trusts cannot be used.
    #[error("cannot use the certificates that the system trusts")]
    Roots(#[source] std::io::Error),
    /// It cannot be reached.
    #[error("cannot reach the DNS provider at {api}")]
    Away {
        /// Where.
        api: String,
        /// Why not.
        source: hyper_util::client::legacy::Error,
    },
    /// It did not answer in time, or broke off.
    #[error("the DNS provider at {0} gave no answer")]
    Silent(String),
    /// It does not accept the token, or the token may not do this.
    #[error("the DNS provider refuses the token of `dns.token_file`: {0}")]
    Refused(String),
    /// It has been asked too often.
    #[error("the DNS provider has been asked too often, and says to wait {} s", retry_after.as_secs())]
    Busy {
        /// How long it wants to be left alone.
        retry_after: Duration,
    },
    /// The zone is not among those of the token.
    #[error("the DNS provider shows no zone `{0}` to the token of `dns.token_file`")]
    NoZone(HostName),
    /// It failed, or did not want to.
    #[error("the DNS provider answered with status {status}: {said}")]
    Failed {
        /// The status of HTTP.
        status: u16,
        /// What it said.
        said: String,
    },
    /// It answered something else than its documentation says.
    #[error("the DNS provider's answer is not what it documents")]
    Strange(#[source] serde_json::Error),
    /// A record that was made cannot be seen.
    #[error("{server} does not show the record `{name}`: {problem}")]
    Unseen {
        /// The record.
        name: String,
        /// Who was asked.
        server: String,
        /// What is wrong.
        problem: String,
    },
    /// Something here broke off.
    #[error("was interrupted")]
    Interrupted(#[from] tokio::task::JoinError),
}

impl DnsError {
    /// How long the provider wants to be left alone, if it says so.
    #[must_use]
    pub fn retry_after(&self) -> Duration {
        match self {
            Self::Busy { retry_after } => *retry_after,
            _ => Duration::ZERO,
        }
    }
}
