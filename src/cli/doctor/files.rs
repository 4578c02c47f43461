//! The files of secrets: there, usable, and for no eyes but root's and, of what is its own, the daemon's.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use ::nix::unistd::{Uid, User, getgrouplist};

use super::Subject;
use super::finding::Finding;
use crate::config::{self, Config, GitAccess, SecretError};
use crate::host::remote::own_dir;
use crate::telemetry::chain;

/// What `kennel.service` does not see of the machine (`ProtectHome=`, `PrivateTmp=`).
const HIDDEN: [&str; 5] = ["/home", "/root", "/run/user", "/tmp", "/var/tmp"];

/// Where systemd puts what it hands over.
const CREDENTIALS: &str = "/run/credentials";

/// A file the daemon's file names.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Named {
    /// For what, such as `api.token_file`.
    key: String,
    path: PathBuf,
    kind: Kind,
}

/// How a file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// By root, into a service's environment.
    Service,
    /// By root, to fetch with.
    Fetch,
    /// By the daemon.
    Daemon,
}

/// A user, as the kernel sees it.
#[derive(Debug, Clone)]
struct Identity {
    name: String,
    uid: u32,
    gids: Vec<u32>,
}

/// A directory on the way to a file, or the file.
#[derive(Debug, Clone, Copy)]
struct Node {
    mode: u32,
    uid: u32,
    gid: u32,
}

/// Checks every file of a secret that the daemon's file names.
pub(super) async fn check(subject: &Subject) -> Vec<Finding> {
    let Ok(config) = &subject.config else { return Vec::new() };
    let builds = identity(User::from_name(&subject.build_user));
    let daemon = daemon(&config.state_dir);
    let named = named(config);
    let mut findings: Vec<Finding> = named
        .iter()
        .filter_map(|file| {
            let usable = match file.kind {
                Kind::Service => config::read_service_secret(&file.path).map(drop),
                Kind::Fetch | Kind::Daemon => config::read_secret(&file.path).map(drop),
            };
            judge(file, usable, &Users { builds: builds.as_ref(), daemon: daemon.as_ref() }, &way(&file.path))
        })
        .collect();
    if findings.is_empty() {
        let count = named.len();
        let whose = if daemon.is_some() { "root's or the daemon's alone" } else { "root's alone" };
        findings.push(Finding::ok("secrets", format!("{count} file{}, {whose}", if count == 1 { "" } else { "s" })));
    }
    findings
}

/// Every file of a secret, with the key that names it.
fn named(config: &Config) -> Vec<Named> {
    let mut named = Vec::new();
    let mut add = |key: String, path: &Path, kind| named.push(Named { key, path: path.to_owned(), kind });
    if let Some(path) = &config.api.token_file {
        add("api.token_file".to_owned(), path, Kind::Daemon);
    }
    for (name, project) in &config.projects {
        let key = |key: &str| format!("projects.{name}.{key}");
        add(key("webhook_secret_file"), &project.webhook_secret_file, Kind::Daemon);
        match &project.git_access {
            GitAccess::Public => {}
            GitAccess::Token { token_file } => add(key("git_token_file"), token_file, Kind::Fetch),
            GitAccess::Ssh { key_file, .. } => add(key("ssh_key_file"), key_file, Kind::Fetch),
        }
        for (environment, files) in &project.secrets {
            for (secret, path) in files {
                add(key(&format!("secrets.{environment}.{secret}")), path, Kind::Service);
            }
        }
    }
    let databases = [("valkey.url_file", &config.valkey), ("postgres.url_file", &config.postgres)];
    for (key, database) in databases {
        if let Some(database) = database {
            add(key.to_owned(), &database.url_file, Kind::Daemon);
        }
    }
    for (number, files) in config.tls.certificates.iter().enumerate() {
        add(format!("tls.certificates[{number}].key_file"), &files.key_file, Kind::Daemon);
    }
    if let Some(dns) = &config.dns {
        add("dns.token_file".to_owned(), &dns.token_file, Kind::Daemon);
    }
    named
}

/// Whom files are looked at for, as far as they are there.
#[derive(Debug, Clone, Copy, Default)]
struct Users<'a> {
    builds: Option<&'a Identity>,
    /// When it is not root.
    daemon: Option<&'a Identity>,
}

fn identity(user: ::nix::Result<Option<User>>) -> Option<Identity> {
    let user = user.ok().flatten()?;
    let name = std::ffi::CString::new(user.name.as_str()).ok()?;
    let gids = getgrouplist(&name, user.gid).ok()?;
    let gids = gids.into_iter().map(|gid| gid.as_raw()).collect();
    Some(Identity { name: user.name, uid: user.uid.as_raw(), gids })
}

/// Whom the daemon runs as, when it is not root: its own directory is his.
fn daemon(state_dir: &Path) -> Option<Identity> {
    let owner = fs::symlink_metadata(own_dir(state_dir)).ok()?.uid();
    identity(User::from_uid(Uid::from_raw(owner))).filter(|daemon| daemon.uid != 0)
}

/// The directories on the way to a file, and the file; nothing when it is not there.
fn way(path: &Path) -> Vec<Node> {
    let walk = || -> io::Result<Vec<Node>> {
        let real = fs::canonicalize(path)?;
        let mut nodes = Vec::new();
        for part in real.ancestors() {
            let found = fs::metadata(part)?;
            nodes.push(Node { mode: found.mode(), uid: found.uid(), gid: found.gid() });
        }
        nodes.reverse();
        Ok(nodes)
    };
    walk().unwrap_or_default()
}

/// Whether the modes let this user read the file at the end of the way; `None` is somebody who owns nothing. Access
/// lists are not looked at.
fn may_read(who: Option<&Identity>, way: &[Node]) -> bool {
    let may = |node: &Node, bit: u32| {
        let shift = match who {
            Some(who) if who.uid == node.uid => 6,
            Some(who) if who.gids.contains(&node.gid) => 3,
            _ => 0,
        };
        node.mode & (bit << shift) != 0
    };
    match way.split_last() {
        Some((file, dirs)) => dirs.iter().all(|dir| may(dir, 1)) && may(file, 4),
        None => false,
    }
}

/// What is wrong with a file, if anything.
fn judge(file: &Named, usable: Result<(), SecretError>, users: &Users<'_>, way: &[Node]) -> Option<Finding> {
    let (check, key, path) = ("secrets", &file.key, file.path.display());
    if let Err(err) = usable {
        let advice = format!("put the secret there, or correct `{key}`");
        return Some(Finding::failure(check, format!("`{key}` cannot be used: {}", chain(&err)), advice));
    }
    let daemon = users.daemon.filter(|_| file.kind == Kind::Daemon);
    let owner = daemon.map_or("root", |daemon| &daemon.name);
    let one_alone = format!("`chown {owner}: {path}` and `chmod 0400 {path}`");
    if may_read(None, way) {
        return Some(Finding::failure(check, format!("everybody may read `{path}` (`{key}`)"), one_alone));
    }
    if may_read(users.builds, way) {
        return Some(Finding::failure(check, format!("builds may read `{path}` (`{key}`)"), one_alone));
    }
    // systemd lets it read what it hands over by an access list.
    if daemon.is_some_and(|daemon| !may_read(Some(daemon), way)) && !file.path.starts_with(CREDENTIALS) {
        return Some(Finding::failure(check, format!("`{owner}` may not read `{path}` (`{key}`)"), one_alone));
    }
    if HIDDEN.iter().any(|hidden| file.path.starts_with(hidden)) {
        let found = format!("`kennel.service` does not see `{path}` (`{key}`)");
        return Some(Finding::warning(check, found, "keep secrets in `/run/secrets` or `/etc/kennel`"));
    }
    None
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::super::finding::Level;
    use super::*;

    const ROOT: Node = Node { mode: 0o755, uid: 0, gid: 0 };

    fn file(path: &str) -> Named {
        Named { key: "api.token_file".to_owned(), path: path.into(), kind: Kind::Daemon }
    }

    #[rstest]
    #[case(&[ROOT, Node { mode: 0o400, ..ROOT }], false, false)]
    #[case(&[ROOT, Node { mode: 0o444, ..ROOT }], true, true)]
    #[case(&[Node { mode: 0o700, ..ROOT }, Node { mode: 0o444, ..ROOT }], false, false)]
    #[case(&[ROOT, Node { mode: 0o440, uid: 0, gid: 7 }], false, true)]
    #[case(&[Node { mode: 0o750, uid: 0, gid: 7 }, Node { mode: 0o444, ..ROOT }], false, true)]
    #[case(&[ROOT, Node { mode: 0o400, uid: 999, gid: 0 }], false, true)]
    // The class that fits first decides, whatever the others may.
    #[case(&[ROOT, Node { mode: 0o404, uid: 0, gid: 7 }], true, false)]
    #[case(&[], false, false)]
    fn who_may_read_a_file_is_told_by_every_mode_on_the_way(
        #[case] way: &[Node],
        #[case] everybody: bool,
        #[case] builds: bool,
    ) {
        let user = Identity { name: "kennel-build".to_owned(), uid: 999, gids: vec![999, 7] };
        assert_eq!((may_read(None, way), may_read(Some(&user), way)), (everybody, builds));
    }

    #[rstest]
    #[case("/run/secrets/x", Ok(()), 0o400, None)]
    #[case("/run/secrets/x", Ok(()), 0o644, Some(Level::Failure))]
    #[case("/run/secrets/x", Err(SecretError::Empty("/run/secrets/x".into())), 0o400, Some(Level::Failure))]
    #[case("/root/x", Ok(()), 0o400, Some(Level::Warning))]
    fn a_secret_is_there_and_roots_alone(
        #[case] path: &str,
        #[case] usable: Result<(), SecretError>,
        #[case] mode: u32,
        #[case] level: Option<Level>,
    ) {
        let found = judge(&file(path), usable, &Users::default(), &[ROOT, Node { mode, ..ROOT }]);
        assert_eq!(found.as_ref().map(|found| found.level), level, "{found:?}");
    }

    #[rstest]
    #[case("/etc/kennel/x", Kind::Daemon, 998, None)]
    #[case("/etc/kennel/x", Kind::Daemon, 0, Some("change: `chown kennel: /etc/kennel/x`"))]
    #[case("/run/credentials/kennel.service/x", Kind::Daemon, 0, None)]
    #[case("/etc/kennel/x", Kind::Fetch, 0, None)]
    #[case("/etc/kennel/x", Kind::Service, 0, None)]
    fn a_daemon_that_is_not_root_may_read_what_is_its_own(
        #[case] path: &str,
        #[case] kind: Kind,
        #[case] owner: u32,
        #[case] advice: Option<&str>,
    ) {
        let daemon = Identity { name: "kennel".to_owned(), uid: 998, gids: vec![998] };
        let users = Users { builds: None, daemon: Some(&daemon) };
        let way = [ROOT, Node { mode: 0o400, uid: owner, gid: 0 }];
        let found = judge(&Named { kind, ..file(path) }, Ok(()), &users, &way);
        let advised = found.as_ref().and_then(|found| found.advice.as_deref()).unwrap_or_default();
        assert_eq!(found.is_some(), advice.is_some(), "{found:?}");
        assert!(advised.contains(advice.unwrap_or_default().trim_start_matches("change: ")), "{advised}");
    }

    #[test]
    fn every_file_that_is_named_is_looked_at() {
        let text = "base_domain = \"a.b\"\napi.token_file = \"/1\"\nvalkey.url_file = \"/2\"\npostgres.url_file = \"/3\"\n\
            dns = { provider = \"cloudflare\", token_file = \"/4\" }\n[projects.p]\nrepo_url = \"https://h/p\"\n\
            repo_type = \"github\"\nwebhook_secret_file = \"/5\"\ngit_token_file = \"/6\"\nsecrets.dev.K.file = \"/7\"\n";
        let config = config::parse(text).unwrap();
        let mut paths: Vec<String> = named(&config).iter().map(|file| file.path.display().to_string()).collect();
        paths.sort();
        assert_eq!(paths, ["/1", "/2", "/3", "/4", "/5", "/6", "/7"]);
    }
}
