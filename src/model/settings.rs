//! What a repository asks for one of its services or sites.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::confinement::Confinement;
use super::{FlakeOutput, HostName, ServiceName, words};

words! {
    /// What a target is.
    Kind {
        /// A process that listens on a port.
        Service = "service",
        /// A directory of files.
        Site = "site",
    }
}

words! {
    /// What a service speaks, in clear text.
    #[derive(Default)]
    Protocol {
        /// HTTP/1.1 (RFC 9112).
        #[default]
        #[serde(rename = "http/1.1")]
        Http1 = "http/1.1",
        /// HTTP/2, known beforehand (RFC 9113, section 3.3).
        H2c = "h2c",
    }
}

/// The settings of one target, as stored with its artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Settings {
    /// Of a service.
    Service(ServiceSettings),
    /// Of a static site.
    Site(SiteSettings),
}

/// `[services.<name>]` of a kennel.toml, checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSettings {
    /// What to build: `packages.<system>.<it>`.
    pub flake_output: FlakeOutput,
    /// What it speaks.
    #[serde(default, skip_serializing_if = "Protocol::is_http1")]
    pub protocol: Protocol,
    /// How to know that it is healthy.
    pub health_check: HealthCheck,
    /// How long it may take to become healthy, in seconds.
    pub health_check_timeout_secs: u32,
    /// How long requests it has begun may go on once its successor is live, in seconds.
    pub drain_secs: u32,
    /// A hostname of its own, for the default branch.
    pub custom_domain: Option<HostName>,
    /// Whether it wants databases of its branch's own.
    pub preview_database: bool,
    /// The names of the secrets it wants.
    pub secrets: Vec<String>,
    /// Its variables.
    pub env: BTreeMap<String, String>,
    /// The limits and opt-outs it asks for; what it gets is the operator's to say.
    #[serde(default, skip_serializing_if = "Confinement::is_ordinary")]
    pub confinement: Confinement,
}

/// `[static_sites.<name>]` of a kennel.toml, checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteSettings {
    /// What to build: `packages.<system>.<it>`.
    pub flake_output: FlakeOutput,
    /// Whether a path that names no file is answered by `/index.html`.
    pub spa: bool,
    /// A hostname of its own, for the default branch.
    pub custom_domain: Option<HostName>,
}

/// How to know that a service is healthy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthCheck {
    /// GET of this path answers 200.
    Http(String),
    /// A connection is accepted.
    Tcp,
}

/// What a repository's kennel.toml names, checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Services and sites by name; a name means one thing only.
    pub targets: BTreeMap<ServiceName, Settings>,
    /// The Cachix cache to push to.
    pub cachix: Option<String>,
}

impl Protocol {
    /// Whether it is what services speak that say nothing of it.
    #[must_use]
    pub fn is_http1(&self) -> bool {
        *self == Self::Http1
    }
}

impl Settings {
    /// Service or site.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Service(_) => Kind::Service,
            Self::Site(_) => Kind::Site,
        }
    }

    /// What to build.
    #[must_use]
    pub fn flake_output(&self) -> &FlakeOutput {
        match self {
            Self::Service(service) => &service.flake_output,
            Self::Site(site) => &site.flake_output,
        }
    }

    /// The hostname of its own, if it wants one.
    #[must_use]
    pub fn custom_domain(&self) -> Option<&HostName> {
        match self {
            Self::Service(service) => service.custom_domain.as_ref(),
            Self::Site(site) => site.custom_domain.as_ref(),
        }
    }

    /// How long requests it has begun may go on once its successor is live, in seconds.
    #[must_use]
    pub fn drain_secs(&self) -> u32 {
        match self {
            Self::Service(service) => service.drain_secs,
            Self::Site(_) => 30,
        }
    }
}
