//! A database server of the operator's: where it is and who kennel is there, and why it did not do what it was asked.

use std::fmt;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use secrecy::{ExposeSecret as _, SecretString};
use url::Url;

/// How long a server may take to accept a connection and the administrator.
pub(super) const CONNECT_MAX: Duration = Duration::from_secs(3);

/// A kind of server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerKind {
    /// Valkey, or Redis 7 and later.
    Valkey,
    /// PostgreSQL.
    Postgres,
}

impl ServerKind {
    fn schemes(self) -> &'static [&'static str] {
        match self {
            Self::Valkey => &["redis", "valkey"],
            Self::Postgres => &["postgres", "postgresql"],
        }
    }

    fn default_port(self) -> u16 {
        match self {
            Self::Valkey => 6379,
            Self::Postgres => 5432,
        }
    }
}

impl fmt::Display for ServerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Valkey => "Valkey",
            Self::Postgres => "PostgreSQL",
        })
    }
}

/// The administrator's URL of a server, taken apart. Its `Debug` and errors show nothing secret.
#[derive(Debug, Clone)]
pub struct ServerUrl {
    kind: ServerKind,
    host: String,
    port: u16,
    user: String,
    password: SecretString,
    database: Option<String>,
}

impl ServerUrl {
    /// Takes a URL such as `redis://user:password@127.0.0.1:6379` apart.
    ///
    /// # Errors
    /// When it is no such URL; the message holds nothing of it.
    pub fn parse(kind: ServerKind, url: &SecretString) -> Result<Self, ServerError> {
        let wrong = |problem| ServerError::Url { kind, problem };
        let url = Url::parse(url.expose_secret().trim()).map_err(|_| wrong(Problem::NotAUrl))?;
        if !kind.schemes().contains(&url.scheme()) {
            return Err(wrong(Problem::Scheme));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(wrong(Problem::Options));
        }
        let text = |part: &str| match percent_decode_str(part).decode_utf8() {
            Ok(text) => Ok(text.into_owned()),
            Err(_) => Err(wrong(Problem::NotAUrl)),
        };
        let database = text(url.path().trim_start_matches('/'))?;
        let host =
            url.host_str().filter(|host| !host.is_empty() && !host.contains('%')).ok_or(wrong(Problem::NoHost))?;
        let password = url.password().filter(|password| !password.is_empty()).ok_or(wrong(Problem::NoPassword))?;
        Ok(Self {
            kind,
            host: host.to_owned(),
            port: url.port().unwrap_or(kind.default_port()),
            user: text(url.username())?,
            password: text(password)?.into(),
            database: (!database.is_empty()).then_some(database),
        })
    }

    /// The host, in brackets when it is an IPv6 address.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Host and port.
    #[must_use]
    pub fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    pub(super) fn user(&self) -> &str {
        &self.user
    }

    pub(super) fn password(&self) -> &str {
        self.password.expose_secret()
    }

    pub(super) fn database(&self) -> Option<&str> {
        self.database.as_deref()
    }

    /// A failure to reach the server.
    pub(super) fn away(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ServerError {
        ServerError::Away { kind: self.kind, address: self.address(), source: source.into() }
    }

    /// The server's refusal of something.
    pub(super) fn refused(
        &self,
        action: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> ServerError {
        ServerError::Refused { kind: self.kind, address: self.address(), action: action.into(), source: source.into() }
    }
}

/// What is wrong with a URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Problem {
    /// It cannot be taken apart.
    NotAUrl,
    /// It begins with something else.
    Scheme,
    /// It has a `?` or `#`.
    Options,
    /// It names no host.
    NoHost,
    /// It has no password.
    NoPassword,
}

impl Problem {
    fn text(self, kind: ServerKind) -> String {
        match self {
            Self::NotAUrl => {
                "is not a URL; characters such as `/`, `?`, `#` and `@` in a password are written `%2F` and so on"
                    .into()
            }
            Self::Scheme => format!("does not begin with `{}://`", kind.schemes().join("://` or `")),
            Self::Options => "has options after `?` or `#`, of which kennel reads none".into(),
            Self::NoHost => "names no host: services reach the server over TCP, and get the same host".into(),
            Self::NoPassword => "holds no password".into(),
        }
    }
}

/// Something a database server did not do.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// What the operator gave is no URL of such a server.
    #[error("the URL of {kind} {}", .problem.text(*.kind))]
    Url {
        /// The server.
        kind: ServerKind,
        /// What is wrong with it.
        problem: Problem,
    },
    /// It cannot be reached now, and may be later.
    #[error("{kind} at {address} cannot be reached")]
    Away {
        /// The server.
        kind: ServerKind,
        /// Host and port.
        address: String,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It said no.
    #[error("{kind} at {address} refuses to {action}")]
    Refused {
        /// The server.
        kind: ServerKind,
        /// Host and port.
        address: String,
        /// What it was asked to do.
        action: String,
        /// What it said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn parse(kind: ServerKind, url: &str) -> Result<ServerUrl, ServerError> {
        ServerUrl::parse(kind, &url.into())
    }

    #[rstest]
    #[case(ServerKind::Valkey, "redis://kennel:a%2Fb@127.0.0.1:6380", ("kennel", "a/b", "127.0.0.1:6380", None))]
    #[case(ServerKind::Valkey, "valkey://:pw@db.example.com/", ("", "pw", "db.example.com:6379", None))]
    #[case(ServerKind::Postgres, "postgres://kennel:pw@[::1]/postgres", ("kennel", "pw", "[::1]:5432", Some("postgres")))]
    #[case(ServerKind::Postgres, "postgresql://kennel:pw@localhost\n", ("kennel", "pw", "localhost:5432", None))]
    fn a_url_is_taken_apart(
        #[case] kind: ServerKind,
        #[case] url: &str,
        #[case] parts: (&str, &str, &str, Option<&str>),
    ) {
        let url = parse(kind, url).unwrap();
        assert_eq!((url.user(), url.password(), url.address().as_str(), url.database()), parts);
    }

    #[rstest]
    #[case(ServerKind::Valkey, "kennel:geheim@127.0.0.1", "does not begin with `redis://` or `valkey://`")]
    #[case(ServerKind::Valkey, "rediss://kennel:geheim@127.0.0.1", "does not begin with")]
    #[case(ServerKind::Valkey, "redis://kennel:geheim/@127.0.0.1", "is not a URL")]
    #[case(ServerKind::Valkey, "redis://kennel:geheim@127.0.0.1:sechs", "is not a URL")]
    #[case(ServerKind::Valkey, "geheim", "is not a URL")]
    #[case(ServerKind::Valkey, "redis://127.0.0.1", "holds no password")]
    #[case(ServerKind::Postgres, "postgres://kennel:geheim@/postgres", "is not a URL")]
    #[case(ServerKind::Postgres, "postgres://kennel:geheim@%2Frun%2Fpostgresql/x", "names no host")]
    #[case(ServerKind::Postgres, "postgres://kennel:geheim@localhost/x?sslmode=require", "has options")]
    fn a_wrong_url_is_refused_without_showing_it(#[case] kind: ServerKind, #[case] url: &str, #[case] problem: &str) {
        let err = parse(kind, url).unwrap_err();
        assert!(err.to_string().contains(problem), "{err}");
        assert!(!format!("{err} {err:?}").contains("geheim"), "{err:?}");
    }

    #[test]
    fn a_url_is_printed_without_its_password() {
        let url = parse(ServerKind::Valkey, "redis://kennel:geheim@127.0.0.1").unwrap();
        assert!(!format!("{url:?}").contains("geheim"));
    }
}
