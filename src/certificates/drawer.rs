//! kennel's own certificates on the disk: a directory a name, root's alone, with the certificate and its key in one file.
//!
//! In one file, so that they always belong together; not in the database, so that a copy of that holds no key.
//! Everything here blocks.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::host::files;
use crate::model::CertificateName;
use crate::router::{Certificate, CertificateError};

/// The chain and its key.
const CURRENT: &str = "certificate.pem";
/// The key of an order that has begun.
const NEXT: &str = "next-key.pem";

/// What stands for the asterisk in a directory's name; no host's name holds it.
const WILDCARD: &str = "_";

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

    /// The certificate for a name, if there is one.
    pub(super) fn certificate(&self, name: &CertificateName) -> Result<Option<Certificate>, DrawerError> {
        let path = self.path(name, CURRENT);
        let Some(text) = read(&path)? else { return Ok(None) };
        let read = Certificate::read(text.as_bytes(), text.as_bytes());
        read.map(Some).map_err(|source| DrawerError::Spoilt { path, source })
    }

    /// Puts the certificate for a name there, and forgets the key of its order.
    pub(super) fn put_certificate(&self, name: &CertificateName, chain: &str, key: &str) -> Result<(), DrawerError> {
        self.put(name, CURRENT, &format!("{}\n{}", chain.trim_end(), key.trim_start()))?;
        let next = self.path(name, NEXT);
        files::remove(&next).map_err(during("remove", &next))
    }

    /// The key of an order that has begun, as PEM text.
    pub(super) fn next_key(&self, name: &CertificateName) -> Result<Option<String>, DrawerError> {
        read(&self.path(name, NEXT))
    }

    /// Puts the key of an order there.
    pub(super) fn put_next_key(&self, name: &CertificateName, key: &str) -> Result<(), DrawerError> {
        self.put(name, NEXT, key)
    }

    /// Removes all there is of a name.
    pub(super) fn remove(&self, name: &CertificateName) -> Result<(), DrawerError> {
        let dir = self.dir(name);
        files::remove_tree(&dir).map_err(during("remove", &dir))
    }

    /// The names of which there is anything.
    pub(super) fn names(&self) -> Result<Vec<CertificateName>, DrawerError> {
        let unreadable = |source| during("read", &self.hosts)(source);
        let entries = match fs::read_dir(&self.hosts) {
            Err(err) if err.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(unreadable)?,
        };
        let names = entries.map(|entry| entry.map(|entry| entry.file_name()));
        let names = names.collect::<Result<Vec<_>, _>>().map_err(|source| during("read", &self.hosts)(source))?;
        Ok(names.iter().filter_map(|name| name_of(name.to_str()?)).collect())
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

    fn dir(&self, name: &CertificateName) -> PathBuf {
        // An asterisk would have shells see more than the one directory.
        self.hosts.join(name.as_str().replace('*', WILDCARD))
    }

    fn path(&self, name: &CertificateName, file: &str) -> PathBuf {
        self.dir(name).join(file)
    }

    fn put(&self, name: &CertificateName, file: &str, text: &str) -> Result<(), DrawerError> {
        put(&self.dir(name), &self.path(name, file), text)
    }
}

/// What a directory is for.
fn name_of(dir: &str) -> Option<CertificateName> {
    match dir.strip_prefix(WILDCARD) {
        Some(rest) => format!("*{rest}").parse().ok(),
        None => dir.parse().ok(),
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
        let host: CertificateName = format!("{}.example", vec!["a".repeat(60); 4].join(".")).parse().unwrap();
        assert!(host.as_str().len() > 250, "the longest names there are");
        assert_eq!(drawer.names().unwrap(), []);
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
        assert_eq!(drawer.names().unwrap(), std::slice::from_ref(&host));
        drawer.remove(&host).unwrap();
        assert_eq!(drawer.names().unwrap(), []);
    }

    #[test]
    fn a_wildcard_has_a_directory_that_no_shell_takes_for_others() {
        let dir = tempfile::tempdir().unwrap();
        let drawer = Drawer::of(dir.path());
        let names: [CertificateName; 2] = ["*.shop.example", "shop.example"].map(|name| name.parse().unwrap());
        names.iter().for_each(|name| drawer.put_next_key(name, "key").unwrap());
        assert!(dir.path().join("certificates/_.shop.example/next-key.pem").exists());
        let mut found = drawer.names().unwrap();
        found.sort();
        assert_eq!(found, names);
        drawer.remove(&names[0]).unwrap();
        assert_eq!(drawer.names().unwrap(), &names[1..]);
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
