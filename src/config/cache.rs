//! `[builder.cache]` of the daemon's file: where what was built is copied to.

use std::path::PathBuf;

use super::table::{Item, Table};
use super::words::quoted;

/// `[builder.cache]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheConfig {
    /// The store, as `nix copy --to` takes it: `file://`, `s3://`, `ssh-ng://`, `http://` or `https://`.
    pub to: String,
    /// With what it is written to.
    pub access: CacheAccess,
    /// The file of the key that what is copied is signed with (`nix key generate-secret`): `signing_key_file`.
    pub signing_key_file: Option<PathBuf>,
}

/// With what a store is written to: `credentials_file`, of which kind the store's URL says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CacheAccess {
    /// Nothing.
    Open,
    /// A file of credentials as the AWS programs have it, with a section `[default]`.
    Aws(PathBuf),
    /// A private key, and with it `known_hosts_file`: the host keys to trust.
    Ssh {
        /// The private key's file.
        key_file: PathBuf,
        /// The file of the host keys to trust.
        known_hosts_file: PathBuf,
    },
    /// A netrc file: `machine cache.example.com login x password <token>`.
    Netrc(PathBuf),
}

/// Reads it.
pub(super) fn cache(item: Item<'_, '_>) -> Option<CacheConfig> {
    let mut table = item.table()?;
    let to = table.required("to").and_then(store);
    let credentials = table.maybe("credentials_file", plain_path);
    let hosts = table.maybe("known_hosts_file", plain_path);
    let signing_key_file = table.maybe("signing_key_file", Item::path);
    let (to, credentials, hosts) = (to?, credentials?, hosts?);
    let access = access(&table, &to, credentials, hosts)?;
    Some(CacheConfig { to, access, signing_key_file: signing_key_file? })
}

/// A URL with no secret in it: what is in this file is read by everybody.
fn store(item: Item<'_, '_>) -> Option<String> {
    const KNOWN: [&str; 5] = ["file", "s3", "ssh-ng", "http", "https"];
    let text = item.text()?;
    let plain = text.len() <= 2_000 && text.bytes().all(|b| b.is_ascii_graphic());
    let Some((scheme, rest)) = text
        .split_once("://")
        .filter(|(scheme, rest)| plain && KNOWN.contains(scheme) && !rest.is_empty() && !rest.starts_with('-'))
    else {
        let hint = "write it like \"s3://cache?region=eu-central-1\", \"ssh-ng://nix@host\" or \"file:///srv/cache\"";
        return item.fault(format!("{} is not the URL of a store", quoted(text)), Some(hint));
    };
    let (place, parameters) = rest.split_once('?').unwrap_or((rest, ""));
    let authority = place.split('/').next().unwrap_or_default();
    if scheme != "file" && authority.rsplit_once('@').is_some_and(|(user, _)| user.contains(':')) {
        return item.fault("holds a password", Some("put it into a file, and name that with `credentials_file`"));
    }
    for (name, hint) in
        [("secret-key", "name it with `signing_key_file`"), ("ssh-key", "name it with `credentials_file`")]
    {
        if parameters.split('&').any(|parameter| parameter.split('=').next() == Some(name)) {
            return item.fault(format!("names a key by `{name}`"), Some(hint));
        }
    }
    Some(text.to_owned())
}

fn access(table: &Table<'_, '_>, to: &str, file: Option<PathBuf>, hosts: Option<PathBuf>) -> Option<CacheAccess> {
    let scheme = to.split("://").next().unwrap_or_default();
    let refuse = |key: &str, problem: String, hint: Option<&str>| {
        table.fault(key, problem, hint.map(str::to_owned));
        None
    };
    match (scheme, file, hosts) {
        ("ssh-ng", Some(key_file), Some(known_hosts_file)) => Some(CacheAccess::Ssh { key_file, known_hosts_file }),
        ("ssh-ng", Some(_), None) => {
            let hint = "without it anybody could pose as the host; see ssh-keyscan(1)";
            refuse("known_hosts_file", "is missing".to_owned(), Some(hint))
        }
        (_, _, Some(_)) => refuse("known_hosts_file", format!("is of no use to a `{scheme}` store alone"), None),
        (_, None, None) => Some(CacheAccess::Open),
        ("s3", Some(file), None) => Some(CacheAccess::Aws(file)),
        ("http" | "https", Some(file), None) => Some(CacheAccess::Netrc(file)),
        (_, Some(_), None) => refuse("credentials_file", format!("is of no use to a `{scheme}` store"), None),
    }
}

/// A path that `NIX_SSHOPTS` can hold: Nix splits that at spaces.
fn plain_path(item: Item<'_, '_>) -> Option<PathBuf> {
    if item.text()?.contains([' ', '"', '\'', '\\']) {
        return item.fault("holds a space, a quote or a backslash", None);
    }
    item.path()
}
