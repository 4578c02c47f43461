//! `[projects.<name>]` of the daemon's file: the repositories kennel serves.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::Expiry;
use super::confinement::{self, LimitsConfig};
use super::pattern::{BranchPattern, HostPattern};
use super::table::{Item, Table};
use super::variable;
use super::words::quoted;
use crate::model::confinement::OptOut;
use crate::model::{BranchRef, Environment, HostName, ProjectName};

/// One project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProjectConfig {
    /// Its name.
    pub name: ProjectName,
    /// Where the repository is: `https://`, `http://`, `ssh://`, `file://` or `user@host:path`.
    pub repo_url: String,
    /// How its forge talks.
    pub repo_type: RepoType,
    /// The file of the secret its webhooks are signed with.
    pub webhook_secret_file: PathBuf,
    /// The branch that is `prod`. Default: `main`.
    pub default_branch: String,
    /// With what the repository is fetched.
    pub git_access: GitAccess,
    /// What its flake may fetch: Nix's `allowed-uris`. Default: `github:` and `https://`.
    pub allowed_uris: Vec<String>,
    /// Whether its flake may build while it is evaluated. Default: no.
    pub allow_ifd: bool,
    /// Which branches deploy; `None` is all of them.
    pub branches: Option<Vec<BranchPattern>>,
    /// Whether pull requests deploy. Default: yes.
    pub pull_requests: bool,
    /// Whether pull requests from forks deploy. Default: no.
    pub forks: Forks,
    /// Which domains its services and sites may claim; `None` is any that is not kennel's own.
    pub custom_domains: Option<Vec<HostPattern>>,
    /// When what nobody uses of it is torn down, if not as `[upkeep]` says.
    pub expire_after: Option<Expiry>,
    /// How much of the machine its services may use, where that is not as `[limits]` says.
    pub limits: LimitsConfig,
    /// What its services may ask for in `sandbox.allow` of their kennel.toml. Default: `proc`, `netlink` and
    /// `resources`, with which nobody can do harm.
    pub sandbox_allow: BTreeSet<OptOut>,
    /// The file of the token with which what it builds is pushed to the Cachix cache its kennel.toml names, if it may be.
    pub cachix_token_file: Option<PathBuf>,
    /// The files of its secrets, by name, for each environment that has any.
    pub secrets: Vec<(Environment, BTreeMap<String, PathBuf>)>,
}

/// How a forge signs and names what it sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RepoType {
    /// GitHub.
    Github,
    /// Forgejo, or Gitea, which sends the same with headers of its own name.
    Forgejo,
}

/// Whether pull requests from forks deploy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forks {
    /// They do not: anybody can open one.
    Deny,
    /// They do: the operator trusts whoever can open one.
    Allow,
}

/// With what a repository is fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GitAccess {
    /// Nothing: it is public.
    Public,
    /// A token, over HTTP.
    Token {
        /// The token's file.
        token_file: PathBuf,
    },
    /// A key, over SSH.
    Ssh {
        /// The private key's file.
        key_file: PathBuf,
        /// The file of the host keys to trust.
        known_hosts_file: PathBuf,
    },
}

impl GitAccess {
    /// The operator's files that a fetch may read, by credential name.
    #[must_use]
    pub fn credentials(&self) -> Vec<(&'static str, PathBuf)> {
        match self {
            Self::Public => Vec::new(),
            Self::Token { token_file } => vec![("git_token", token_file.clone())],
            Self::Ssh { key_file, known_hosts_file } => {
                vec![("ssh_key", key_file.clone()), ("known_hosts", known_hosts_file.clone())]
            }
        }
    }
}

impl ProjectConfig {
    /// Whether this branch, or pull request, deploys.
    ///
    /// A pull request does when `pull_requests` says so, whatever its branches are called; whether one from a fork
    /// does is another question ([`Self::forks`]).
    #[must_use]
    pub fn wants(&self, branch: &BranchRef) -> bool {
        if branch.is_pull() {
            return self.pull_requests;
        }
        let name = branch.name();
        self.branches.as_ref().is_none_or(|patterns| patterns.iter().any(|pattern| pattern.matches(&name)))
    }

    /// Whether the operator lets this project claim `domain`.
    #[must_use]
    pub fn may_claim(&self, domain: &HostName) -> bool {
        self.custom_domains.as_ref().is_none_or(|patterns| patterns.iter().any(|pattern| pattern.matches(domain)))
    }

    /// The environment of one of its branches.
    #[must_use]
    pub fn environment(&self, branch: &BranchRef) -> Environment {
        Environment::of(branch, &self.default_branch)
    }

    /// The file of a secret in an environment, if it is configured.
    #[must_use]
    pub fn secret(&self, environment: Environment, name: &str) -> Option<&PathBuf> {
        self.secrets.iter().find(|(at, _)| *at == environment)?.1.get(name)
    }
}

impl fmt::Display for RepoType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Github => "github",
            Self::Forgejo => "forgejo",
        })
    }
}

/// Reads `[projects]`.
pub(super) fn projects(
    item: Item<'_, '_>,
    base_domain: Option<&HostName>,
) -> Option<BTreeMap<ProjectName, ProjectConfig>> {
    let mut table = item.table()?;
    let mut projects = BTreeMap::new();
    let mut good = true;
    for (name, item) in table.entries() {
        match project(&name, item, base_domain) {
            Some(project) => {
                projects.insert(project.name.clone(), project);
            }
            None => good = false,
        }
    }
    good.then_some(projects)
}

fn project(name: &str, item: Item<'_, '_>, base_domain: Option<&HostName>) -> Option<ProjectConfig> {
    let name = match name.parse::<ProjectName>() {
        Ok(name) => Some(name),
        Err(err) => item.fault(format!("is not a name: it {}", err.problem), Some("rename it, such as `my-project`")),
    };
    let mut table = item.table()?;
    let repo_url = table.required("repo_url").and_then(repo_url);
    let repo_type = table.required("repo_type").and_then(|item| {
        item.one_of(&[("github", RepoType::Github), ("forgejo", RepoType::Forgejo), ("gitea", RepoType::Forgejo)])
    });
    let webhook_secret_file = table.required("webhook_secret_file").and_then(Item::path);
    let default_branch = table.or("default_branch", "main".to_owned(), default_branch);
    let git_access = git_access(&mut table, repo_url.as_deref());
    let allowed_uris =
        table.or("allowed_uris", vec!["github:".to_owned(), "https://".to_owned()], |item| item.each(allowed_uri));
    let allow_ifd = table.or("allow_ifd", false, Item::boolean);
    let branches = table.maybe("branches", |item| item.each(Item::parse::<BranchPattern>));
    let pull_requests = table.or("pull_requests", true, Item::boolean);
    let forks = table.or("forks", Forks::Deny, |item| item.one_of(&[("deny", Forks::Deny), ("allow", Forks::Allow)]));
    let custom_domains = table.maybe("custom_domains", |item| item.each(|item| custom_domain(item, base_domain)));
    let expire_after = table.maybe("expire_after", expiry);
    let limits = table.section("limits").and_then(confinement::operators);
    let sandbox_allow = table.or("sandbox_allow", OptOut::HARMLESS.into(), confinement::opt_outs);
    let cachix_token_file = table.maybe("cachix_token_file", Item::path);
    let secrets = table.or("secrets", Vec::new(), secrets);
    Some(ProjectConfig {
        name: name?,
        repo_url: repo_url?,
        repo_type: repo_type?,
        webhook_secret_file: webhook_secret_file?,
        default_branch: default_branch?,
        git_access: git_access?,
        allowed_uris: allowed_uris?,
        allow_ifd: allow_ifd?,
        branches: branches?,
        pull_requests: pull_requests?,
        forks: forks?,
        custom_domains: custom_domains?,
        expire_after: expire_after?,
        limits: limits?,
        sandbox_allow: sandbox_allow?,
        cachix_token_file: cachix_token_file?,
        secrets: secrets?,
    })
}

fn is_ssh(url: &str) -> bool {
    url.starts_with("ssh://") || !url.contains("://")
}

/// A URL git understands and kennel can bound: no password in it, no option smuggled in as its host.
fn repo_url(item: Item<'_, '_>) -> Option<String> {
    let text = item.text()?;
    if text.len() > 2_000 || !text.bytes().all(|b| b.is_ascii_graphic()) {
        return item.fault("holds a space or another character no URL may hold, or is too long", None);
    }
    let hint =
        Some("write it like \"https://forge.example.com/me/project.git\" or \"git@forge.example.com:me/project.git\"");
    let authority = match text.split_once("://") {
        Some(("file", path)) if path.starts_with('/') => return Some(text.to_owned()),
        Some(("https" | "http" | "ssh", rest)) => match rest.split_once('/') {
            Some((authority, path)) if !path.is_empty() => Some(authority),
            _ => None,
        },
        Some(_) => None,
        None => text.split_once(':').map(|(authority, _)| authority).filter(|authority| authority.contains('@')),
    };
    let Some(authority) = authority else { return item.fault("is not a repository's URL", hint) };
    let (user, host) = authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
    // Not shown in the fault: it may be a password.
    if user.is_some_and(|user| user.contains(':') || !is_ssh(text)) {
        return item.fault("holds a user or password", Some("put it into a file, and name that with `git_token_file`"));
    }
    let plain_user = |user: &str| {
        user.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            && user.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
    };
    let (host, port) = match host.rsplit_once(':') {
        Some((host, port)) if !host.ends_with(':') && !port.ends_with(']') => (host, port),
        _ => (host, "1"),
    };
    let named = host.to_ascii_lowercase().parse::<HostName>().is_ok();
    let numbered = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .is_some_and(|host| host.parse::<std::net::Ipv6Addr>().is_ok());
    if !user.is_none_or(plain_user) || !(named || numbered) || port.parse::<u16>().is_err() {
        return item.fault("has no valid host", hint);
    }
    Some(text.to_owned())
}

/// At most one of a token and a key, and what fits the URL.
fn git_access(table: &mut Table<'_, '_>, url: Option<&str>) -> Option<GitAccess> {
    let token = table.maybe("git_token_file", credential_file);
    let key = table.maybe("ssh_key_file", credential_file);
    let hosts = table.maybe("known_hosts_file", credential_file);
    let (token, key, hosts) = (token?, key?, hosts?);
    let ssh = url.map(is_ssh);
    let refuse = |key: &str, problem: &str, hint: &str| {
        table.fault(key, problem, Some(hint.to_owned()));
        None
    };
    match (token, key, hosts) {
        (Some(_), Some(_), _) => refuse("git_token_file", "is given beside `ssh_key_file`", "keep one of them"),
        (Some(_), None, _) if ssh == Some(true) => {
            refuse("git_token_file", "is of no use to an ssh URL", "use `ssh_key_file` and `known_hosts_file`")
        }
        (Some(token_file), None, None) => Some(GitAccess::Token { token_file }),
        (_, Some(_), _) if ssh == Some(false) => {
            refuse("ssh_key_file", "is of no use to a URL that is not ssh", "use `git_token_file`")
        }
        (None, Some(key_file), Some(known_hosts_file)) => Some(GitAccess::Ssh { key_file, known_hosts_file }),
        (None, Some(_), None) => {
            refuse("known_hosts_file", "is missing", "without it anybody could pose as the forge; see ssh-keyscan(1)")
        }
        (_, None, Some(_)) => refuse("known_hosts_file", "is given without `ssh_key_file`", "remove it, or name a key"),
        (None, None, None) if ssh == Some(true) => {
            refuse("ssh_key_file", "is missing", "an ssh URL needs `ssh_key_file` and `known_hosts_file`")
        }
        (None, None, None) => Some(GitAccess::Public),
    }
}

fn default_branch(item: Item<'_, '_>) -> Option<String> {
    let text = item.text()?;
    match BranchRef::head(text) {
        Ok(_) => Some(text.to_owned()),
        Err(err) => item.fault(format!("{err}"), None),
    }
}

/// A prefix of URLs. Nix separates them by white space, so none may hold any; those of local files are refused.
fn allowed_uri(item: Item<'_, '_>) -> Option<String> {
    let text = item.text()?;
    let scheme = text.split_once(':').map_or("", |(scheme, _)| scheme);
    let known = !scheme.is_empty()
        && scheme.starts_with(|c: char| c.is_ascii_lowercase())
        && scheme.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+.-".contains(&b));
    if !known || !text.bytes().all(|b| b.is_ascii_graphic()) {
        let problem = format!("{} is not the beginning of a URL", quoted(text));
        return item.fault(problem, Some("write it like \"github:\" or \"https://example.com/\""));
    }
    if scheme == "path" || scheme.split('+').any(|part| part == "file") {
        return item.fault(format!("{} would let a flake read this machine's files", quoted(text)), None);
    }
    Some(text.to_owned())
}

fn custom_domain(item: Item<'_, '_>, base_domain: Option<&HostName>) -> Option<HostPattern> {
    let text = item.text()?;
    let pattern = match text.parse::<HostPattern>() {
        Ok(pattern) => pattern,
        Err(problem) => return item.fault(problem, Some("write it like \"example.org\" or \"*.example.org\"")),
    };
    let host = pattern.host().as_str();
    if base_domain.is_some_and(|base| host == base.as_str() || host.ends_with(&format!(".{base}"))) {
        return item.fault(format!("{} lies under `base_domain`, which is kennel's own", quoted(text)), None);
    }
    Some(pattern)
}

/// A time, or `never`.
pub(super) fn expiry(item: Item<'_, '_>) -> Option<Expiry> {
    if item.text()? == "never" {
        return Some(Expiry::Never);
    }
    let hours = |n: u64| Duration::from_secs(n * 3_600);
    item.duration(hours(1)..=hours(24 * 3_650)).map(Expiry::After)
}

fn secrets(item: Item<'_, '_>) -> Option<Vec<(Environment, BTreeMap<String, PathBuf>)>> {
    let mut table = item.table()?;
    let mut secrets = Vec::new();
    let mut good = true;
    let words = [
        ("prod", Environment::Prod),
        ("staging", Environment::Staging),
        ("dev", Environment::Dev),
        ("preview", Environment::Preview),
    ];
    for (word, environment) in words {
        match table.or(word, BTreeMap::new(), secret_files) {
            Some(files) if files.is_empty() => {}
            Some(files) => secrets.push((environment, files)),
            None => good = false,
        }
    }
    good.then_some(secrets)
}

fn secret_files(item: Item<'_, '_>) -> Option<BTreeMap<String, PathBuf>> {
    let mut table = item.table()?;
    let mut files = BTreeMap::new();
    let mut good = true;
    for (name, item) in table.entries() {
        let fine = variable::check_name(&name).map_err(|problem| item.fault::<()>(problem, None)).is_ok();
        match secret_file(item) {
            Some(file) if fine => {
                files.insert(name, file);
            }
            _ => good = false,
        }
    }
    good.then_some(files)
}

fn secret_file(item: Item<'_, '_>) -> Option<PathBuf> {
    if item.kind() == "string" {
        return item.fault("must name a file: secrets are paths, never values", Some("write { file = \"/path\" }"));
    }
    let mut table = item.table()?;
    table.required("file").and_then(credential_file)
}

/// A file that systemd hands to a unit as a credential. systemd 257 starts no unit whose credential's path has a space
/// or a backslash in it.
fn credential_file(item: Item<'_, '_>) -> Option<PathBuf> {
    if item.text()?.contains([' ', '\\']) {
        return item.fault("holds a space or a backslash, with which systemd does not take it", None);
    }
    item.path()
}
