//! Turns TOML into checked types, and reports everything that is wrong with a file at once.
//!
//! The daemon's own file is a [`Config`]; a repository's kennel.toml is read by [`project`]. Unknown keys are faults
//! that name the key and its line.
//!
//! **Invariant:** checking a file opens nothing else: no secret, no network, no path it names.

pub mod project;

mod cache;
mod confinement;
mod daemon;
mod fault;
mod pattern;
mod secret;
mod served;
mod table;
mod variable;
mod words;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use ipnet::IpNet;

pub use cache::{CacheAccess, CacheConfig};
pub use confinement::LimitsConfig;
pub use fault::{Fault, Faults};
pub use pattern::{BranchPattern, HostPattern};
pub use secret::{
    SecretError, ServiceSecret, WebhookSecretError, read_secret, read_service_secret, read_webhook_secret,
};
pub use served::{Forks, GitAccess, ProjectConfig, RepoType};

use crate::model::{Environment, HostName, ProjectName};

/// Where the daemon's file lies unless told otherwise.
pub const DEFAULT_PATH: &str = "/etc/kennel/config.toml";
/// The largest daemon's file, in bytes.
const SIZE_MAX: usize = 4 * 1024 * 1024;

/// The daemon's file as it is now; a reload replaces it whole.
pub type Shared = Arc<ArcSwap<Config>>;

/// The daemon's file, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// What every hostname ends in: `<service>-<branch>.<project>.<base_domain>`.
    pub base_domain: HostName,
    /// Where the router serves `/webhook/<project>` and the API, if anywhere.
    pub control_domain: Option<HostName>,
    /// Where everything lies that must outlive a reboot. Default: `/var/lib/kennel`.
    pub state_dir: PathBuf,
    /// Whether a project that leaves this file is torn down, rather than served on. Default: no.
    pub prune_projects: bool,
    /// The operator's API.
    pub api: ApiConfig,
    /// The reverse proxy.
    pub router: RouterConfig,
    /// Builds.
    pub builder: BuilderConfig,
    /// What goes by itself, and when.
    pub upkeep: UpkeepConfig,
    /// How much of the machine services may use.
    pub limits: LimitsConfig,
    /// What systemd is told.
    pub systemd: SystemdConfig,
    /// The projects, by name.
    pub projects: BTreeMap<ProjectName, ProjectConfig>,
    /// The Valkey server of preview databases.
    pub valkey: Option<DatabaseConfig>,
    /// The PostgreSQL server of preview databases.
    pub postgres: Option<DatabaseConfig>,
    /// Certificates from files, and what goes with HTTPS.
    pub tls: TlsConfig,
    /// Where other certificates come from.
    pub acme: Option<AcmeConfig>,
    /// Where certificate authorities are shown proofs for wildcards, and DNS records are made.
    pub dns: Option<DnsConfig>,
}

/// `[api]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiConfig {
    /// Where it listens over TCP. Default: `127.0.0.1:3000`.
    pub listen: SocketAddr,
    /// The bearer token's file; must be there when `listen` can be reached from outside.
    pub token_file: Option<PathBuf>,
}

/// `[router]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouterConfig {
    /// Where it listens for HTTP. Default: `0.0.0.0:80`.
    pub http: SocketAddr,
    /// Where it listens for HTTPS, if anywhere.
    pub https: Option<SocketAddr>,
    /// How many threads serve visitors: 1 to 64. Default: as many as there are cores.
    pub workers: Option<NonZeroUsize>,
    /// The proxies in front of kennel, as addresses or networks such as `10.0.0.0/8`: what they say of visitors in
    /// `X-Forwarded-For`, `X-Forwarded-Proto` and `X-Forwarded-Port` counts. Default: none.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether the connections of `trusted_proxies` begin with a header of the PROXY protocol, version 2 (HAProxy's
    /// `send-proxy-v2`), that says whose they are; one that does not is closed. Default: `false`.
    pub proxy_protocol: bool,
    /// Which requests get a line in the journal: `all`, those answered by a status of 500 or more (`errors`), or none
    /// (`off`). Default: `off`; the journal drops lines when there are too many, other ones too.
    pub access_log: AccessLog,
    /// A directory with pages of the operator's own: `404.html`, `500.html`, `502.html`, `503.html`, `504.html`, those that
    /// are there, of at most 256 KiB. Default: none; kennel shows its own.
    pub pages: Option<PathBuf>,
    /// How often each live service is asked for its health: 1 s to 1 h. Default: 30 s. After three failures in a row it
    /// gets no visitors until it answers again.
    pub monitor_interval: Duration,
}

/// Which requests get a line in the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessLog {
    /// None.
    Off,
    /// Those that were answered by a status of 500 or more.
    Errors,
    /// All.
    All,
}

/// `[builder]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuilderConfig {
    /// How many builds run at once: 1 to 64. Default: 2.
    pub max_concurrent_builds: usize,
    /// How many services and sites of one build are built side by side: 1 to 64. Default: 2.
    pub max_parallel: usize,
    /// The limit of one build: 1 s to 24 h. Default: 1 h.
    pub timeout: Duration,
    /// The limit of one log file, in bytes: 64 KiB to 1 GiB. Default: 16 MiB.
    pub log_limit_bytes: u64,
    /// How much memory the fetch of a build, and its evaluation, may each use: `memory_max`, 256 MiB to 1 TiB.
    /// Default: 4 GiB. What Nix's daemon builds is its own unit's affair. Read at start.
    pub memory_max_bytes: u64,
    /// How many processes and threads they may each have: 64 to 65536. Default: 1024. Read at start.
    pub tasks_max: u64,
    /// How many bytes must be free, beside the state directory and beside the Nix store, before a build starts; `0`
    /// never waits. Default: 2 GB, or a tenth of the file system where that is less.
    pub min_free: Option<u64>,
    /// Where what was built is copied to, if anywhere.
    pub cache: Option<CacheConfig>,
}

/// `[upkeep]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpkeepConfig {
    /// After how long without a request or a push a service or site is torn down, unless its project says otherwise;
    /// never in prod and staging. Default: 7 days.
    pub expire_after: Expiry,
    /// How long finished rows and their build logs are kept: 1 day to 10 years. Default: 30 days.
    pub keep_for: Duration,
}

/// When what nobody uses is torn down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expiry {
    /// Never.
    Never,
    /// After so long without a request or a push: 1 hour to 10 years.
    After(Duration),
}

/// `[systemd]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemdConfig {
    /// Where unit files are written. Default: `/run/systemd/system`.
    pub unit_dir: PathBuf,
}

/// `[valkey]` or `[postgres]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseConfig {
    /// The file that holds the administrator's URL.
    pub url_file: PathBuf,
}

/// `[tls]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsConfig {
    /// Whether visitors of plain HTTP are sent to HTTPS, where their host has a certificate. Default: yes. Read at
    /// start.
    pub redirect: bool,
    /// For how long browsers are told to come by HTTPS only: `hsts`, 1 s to 2 years. Default: they are not told. Read
    /// at start.
    pub hsts: Option<Duration>,
    /// Certificates that something else keeps: `[[tls.certificates]]`. For hosts they cover none is ordered.
    pub certificates: Vec<CertificateFiles>,
}

/// One of `[[tls.certificates]]`, both as PEM text. They are read again when they change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate and those above it: `fullchain.pem` of NixOS's `security.acme`.
    pub certificate_file: PathBuf,
    /// Its private key.
    pub key_file: PathBuf,
}

/// `[acme]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcmeConfig {
    /// Whom the CA may write to.
    pub email: String,
    /// The CA's directory. Default: that of Let's Encrypt.
    pub directory: String,
    /// The root certificate by which the directory's own is checked, for a CA of one's own. Default: those the system
    /// trusts.
    pub ca_file: Option<PathBuf>,
    /// How the CA is shown that a host is ours. Default: `http-01`.
    pub challenge: AcmeChallenge,
}

/// How a CA is shown that a host is ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AcmeChallenge {
    /// By an answer on port 80 (RFC 8555, section 8.3).
    Http01,
    /// By a certificate on port 443 (RFC 8737).
    TlsAlpn01,
}

/// `[dns]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsConfig {
    /// Who serves the zone.
    pub provider: DnsProvider,
    /// The file of the token that may change it. It is read each time it is used.
    pub token_file: PathBuf,
    /// The zone's name. Default: `base_domain`, which must lie in it otherwise.
    pub zone: HostName,
    /// Where the provider's API is. Default: `https://api.cloudflare.com/client/v4`; plain HTTP on this machine alone.
    pub api: String,
    /// A DNS server that is asked whether a proof can be seen, such as `192.0.2.53:53`. Default: those of the zone.
    pub resolver: Option<SocketAddr>,
    /// Where the records of projects lead: `records = ["203.0.113.7", "2001:db8::7"]`, or the name of a host. Default:
    /// kennel makes none.
    pub records: Option<RecordsTo>,
}

/// Where DNS records lead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordsTo {
    /// To these addresses: A and AAAA.
    Addresses(Vec<IpAddr>),
    /// To whatever this name leads to: CNAME.
    Host(HostName),
}

/// A DNS service kennel can talk to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DnsProvider {
    /// Cloudflare.
    Cloudflare,
}

/// Reads and checks the daemon's file. Blocks.
///
/// # Errors
/// When it cannot be read, or anything in it is wrong.
pub fn load(path: &Path) -> Result<Config, Faults> {
    let whole = |problem: String| Faults::from(Fault { key: path.display().to_string(), ..Fault::whole(problem) });
    let unreadable = |err: std::io::Error| match err.kind() {
        std::io::ErrorKind::NotFound => whole("is missing".to_owned()),
        _ => whole(format!("cannot be read: {err}")),
    };
    let mut content = Vec::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(SIZE_MAX as u64 + 1).read_to_end(&mut content).map_err(unreadable)?;
    if content.len() > SIZE_MAX {
        return Err(whole("is larger than 4 MB".to_owned()));
    }
    parse(str::from_utf8(&content).map_err(|_| whole("is not valid UTF-8".to_owned()))?)
}

/// Checks the text of the daemon's file.
///
/// # Errors
/// Everything that is wrong with it.
pub fn parse(text: &str) -> Result<Config, Faults> {
    table::Document::read(text, daemon::config)
}

impl Config {
    /// Where visitors find a host of this daemon's: by HTTPS once there are certificates.
    #[must_use]
    pub fn url_of(&self, host: &HostName) -> String {
        let (scheme, port, usual) = match self.router.https.filter(|_| self.has_certificates()) {
            Some(https) => ("https", https.port(), 443),
            None => ("http", self.router.http.port(), 80),
        };
        if port == usual { format!("{scheme}://{host}") } else { format!("{scheme}://{host}:{port}") }
    }

    fn has_certificates(&self) -> bool {
        self.acme.is_some() || !self.tls.certificates.is_empty()
    }

    /// How much of the machine the services of this project may use.
    #[must_use]
    pub fn limits_of(&self, project: &ProjectName) -> LimitsConfig {
        self.projects.get(project).map_or(self.limits, |project| project.limits.or(self.limits))
    }

    /// When a service or site of this project and environment expires. What is of a project that this file does not
    /// name serves on until an operator tears it down.
    #[must_use]
    pub fn expiry(&self, project: &ProjectName, environment: Environment) -> Expiry {
        match (environment, self.projects.get(project)) {
            (Environment::Prod | Environment::Staging, _) | (_, None) => Expiry::Never,
            (Environment::Dev | Environment::Preview, Some(project)) => {
                project.expire_after.unwrap_or(self.upkeep.expire_after)
            }
        }
    }

    /// What the file asks for that this version of kennel accepts and does not yet act on, or that does no good.
    #[must_use]
    pub fn notices(&self) -> Vec<String> {
        let mut keys = Vec::new();
        if self.acme.is_none() && self.dns.as_ref().is_some_and(|dns| dns.records.is_none()) {
            keys.push("`dns` is of no use: add `[acme]` for certificates by it, or `dns.records`".to_owned());
        }
        if self.router.https.is_some() && !self.has_certificates() {
            keys.push("`router.https` turns everybody away: add `[acme]` or `[[tls.certificates]]`".to_owned());
        }
        keys
    }
}

#[cfg(test)]
mod tests;
