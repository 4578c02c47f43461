//! kennel's own certificates on the disk: a directory a host, root's alone, with the certificate and its key in one file.
//!
//! In one file, so that they always belong together; not in the database, so that a copy of that holds no key.
//! Everything here blocks.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::host::files;
use crate::model::HostName;
use crate::router::{Certificate, CertificateError};

/// The chain and its key.
const CURRENT: &str = "certificate.pem";
/// The key of an order that has begun.
const NEXT: &str = "next-key.pem";

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum DrawerError {
    /// It cannot be read, written or removed.
    #[error("cannot {action} `{}`", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// It is not what was written there.
    #[error("cannot use `{}`", path.display())]
    Spoilt {
        path: PathBuf,
        #[source]
        source: CertificateError,
    },
}

/// Where they lie.
#[derive(Debug, Clone)]
pub(super) struct Drawer {
    hosts: PathBuf,
    accounts: PathBuf,
}

fn during(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DrawerError {
    let path = path.to_owned();
    move |source| DrawerError::Io { action, path, source }
}

impl Drawer {
    /// In this state directory.
    pub(super) fn of(state_dir: &Path) -> Self {
        Self { hosts: state_dir.join("certificates"), accounts: state_dir.join("acme") }
    }

    /// The certificate of a host, if there is one.
    pub(super) fn certificate(&self, host: &HostName) -> Result<Option<Certificate>, DrawerError> {
        let path = self.path(host, CURRENT);
        let Some(text) = read(&path)? else { return Ok(None) };
        let read = Certificate::read(text.as_bytes(), text.as_bytes());
        read.map(Some).map_err(|source| DrawerError::Spoilt { path, source })
    }

    /// Puts the certificate of a host there, and forgets the key of its order.
    pub(super) fn put_certificate(&self, host: &HostName, chain: &str, key: &str) -> Result<(), DrawerError> {
        self.put(host, CURRENT, &format!("{}\n{}", chain.trim_end(), key.trim_start()))?;
        let next = self.path(host, NEXT);
        files::remove(&next).map_err(during("remove", &next))
    }

    /// The key of an order that has begun, as PEM text.
    pub(super) fn next_key(&self, host: &HostName) -> Result<Option<String>, DrawerError> {
        read(&self.path(host, NEXT))
    }

    /// Puts the key of an order there.
    pub(super) fn put_next_key(&self, host: &HostName, key: &str) -> Result<(), DrawerError> {
        self.put(host, NEXT, key)
    }

    /// Removes all there is of a host.
    pub(super) fn remove(&self, host: &HostName) -> Result<(), DrawerError> {
        let dir = self.hosts.join(host.as_str());
        files::remove_tree(&dir).map_err(during("remove", &dir))
    }

    /// The hosts of which there is anything.
    pub(super) fn hosts(&self) -> Result<Vec<HostName>, DrawerError> {
        let unreadable = |source| during("read", &self.hosts)(source);
        let entries = match fs::read_dir(&self.hosts) {
            Err(err) if err.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(unreadable)?,
        };
        let names = entries.map(|entry| entry.map(|entry| entry.file_name()));
        let names = names.collect::<Result<Vec<_>, _>>().map_err(|source| during("read", &self.hosts)(source))?;
        Ok(names.iter().filter_map(|name| name.to_str()?.parse().ok()).collect())
    }

    /// The account with an authority, its key included.
    pub(super) fn account(&self, directory: &str) -> Result<Option<String>, DrawerError> {
        read(&self.account_path(directory))
    }

    /// Puts the account with an authority there.
    pub(super) fn put_account(&self, directory: &str, account: &str) -> Result<(), DrawerError> {
        put(&self.accounts, &self.account_path(directory), account)
    }

    /// Removes an account that its authority does not know.
    pub(super) fn remove_account(&self, directory: &str) -> Result<(), DrawerError> {
        let path = self.account_path(directory);
        files::remove(&path).map_err(during("remove", &path))
    }

    fn account_path(&self, directory: &str) -> PathBuf {
        let digest = hex::encode(Sha256::digest(directory));
        self.accounts.join(format!("account-{}.json", &digest[..16]))
    }

    fn path(&self, host: &HostName, name: &str) -> PathBuf {
        self.hosts.join(host.as_str()).join(name)
    }

    fn put(&self, host: &HostName, name: &str, text: &str) -> Result<(), DrawerError> {
        let path = self.path(host, name);
        put(&self.hosts.join(host.as_str()), &path, text)
    }
}

fn put(dir: &Path, path: &Path, text: &str) -> Result<(), DrawerError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(during("make", dir))?;
    files::replace_durably(path, text.as_bytes(), 0o600).map_err(during("write", path))
}

fn read(path: &Path) -> Result<Option<String>, DrawerError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(err) if err.kind() == ErrorKind::NotFound => Ok(None),
        Err(err) => Err(during("read", path)(err)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::router::testing::certificate;

    #[test]
    fn a_certificate_lies_there_with_its_key_for_root_alone() {
        let dir = tempfile::tempdir().unwrap();
        let drawer = Drawer::of(dir.path());
        let host: HostName = format!("{}.example", vec!["a".repeat(60); 4].join(".")).parse().unwrap();
        assert!(host.as_str().len() > 250, "the longest names there are");
        assert_eq!(drawer.hosts().unwrap(), []);
        assert!(drawer.certificate(&host).unwrap().is_none());

        let made = certificate(&[host.as_str()]);
        drawer.put_next_key(&host, &made.key).unwrap();
        let key = drawer.next_key(&host).unwrap().unwrap();
        drawer.put_certificate(&host, &made.chain, &key).unwrap();
        assert!(drawer.certificate(&host).unwrap().unwrap().covers(host.as_str()));
        assert_eq!(drawer.next_key(&host).unwrap(), None);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&drawer.path(&host, CURRENT)), 0o600);
        assert_eq!(mode(drawer.path(&host, CURRENT).parent().unwrap()), 0o700);

        fs::write(drawer.path(&host, CURRENT), "spoilt").unwrap();
        let spoilt = crate::telemetry::chain(&drawer.certificate(&host).unwrap_err());
        assert!(spoilt.contains(CURRENT), "{spoilt}");
        assert_eq!(drawer.hosts().unwrap(), std::slice::from_ref(&host));
        drawer.remove(&host).unwrap();
        assert_eq!(drawer.hosts().unwrap(), []);
    }

    #[test]
    fn an_account_belongs_to_one_directory() {
        let dir = tempfile::tempdir().unwrap();
        let drawer = Drawer::of(dir.path());
        drawer.put_account("https://a/dir", "{}").unwrap();
        assert_eq!(drawer.account("https://a/dir").unwrap().as_deref(), Some("{}"));
        assert_eq!(drawer.account("https://b/dir").unwrap(), None);
        drawer.remove_account("https://a/dir").unwrap();
        assert_eq!(drawer.account("https://a/dir").unwrap(), None);
    }
}
