//! The machine's own key: 32 random bytes in a file of root's, from which passwords and fingerprints are derived.
//!
//! Nothing secret need be stored: as long as the file is there, everything derived from it can be made again.

use std::fmt;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

/// The file's name in the state directory.
const FILE: &str = "key";
/// The key's length, in bytes.
const LENGTH: usize = 32;

/// What a derived value is for: two purposes never give the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The password of a branch's Valkey user.
    ValkeyPassword,
    /// The password of a branch's PostgreSQL role.
    PostgresPassword,
    /// Tells whether a configured secret has changed, without keeping it.
    SecretFingerprint,
}

impl Purpose {
    fn label(self) -> &'static str {
        match self {
            Self::ValkeyPassword => "valkey-password",
            Self::PostgresPassword => "postgres-password",
            Self::SecretFingerprint => "secret-fingerprint",
        }
    }
}

/// A key file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It can be neither read nor made.
    #[error("cannot read or make the key file `{path}`")]
    Io {
        /// The file.
        path: String,
        /// Why not.
        source: std::io::Error,
    },
    /// It is not what was made there once.
    #[error(
        "the key file `{path}` {problem}; restore it from a backup, or remove it: then every derived password changes"
    )]
    Spoilt {
        /// The file.
        path: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// The key. Its `Debug` shows nothing of it.
#[derive(Clone)]
pub struct HostKey([u8; LENGTH]);

impl fmt::Debug for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HostKey")
    }
}

impl HostKey {
    /// Reads the key of a state directory; makes one, mode 0400, the first time. Blocks.
    ///
    /// # Errors
    /// When the file can be neither read nor made, has another length, or others may read it.
    pub fn ensure(state_dir: &Path) -> Result<Self, KeyError> {
        let path = state_dir.join(FILE);
        let io = |source| KeyError::Io { path: path.display().to_string(), source };
        match std::fs::File::open(&path) {
            Ok(file) => Self::read(&path, file),
            Err(err) if err.kind() == ErrorKind::NotFound => {
                let mut key = [0; LENGTH];
                std::fs::File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut key)).map_err(io)?;
                write_new(&path, &key).map_err(io)?;
                Ok(Self(key))
            }
            Err(err) => Err(io(err)),
        }
    }

    fn read(path: &Path, file: std::fs::File) -> Result<Self, KeyError> {
        let name = path.display().to_string();
        let io = |source| KeyError::Io { path: name.clone(), source };
        let spoilt = |problem| KeyError::Spoilt { path: name.clone(), problem };
        if file.metadata().map_err(io)?.mode() & 0o077 != 0 {
            return Err(spoilt("can be read by others"));
        }
        let mut bytes = Vec::new();
        file.take(LENGTH as u64 + 1).read_to_end(&mut bytes).map_err(io)?;
        Ok(Self(bytes.try_into().map_err(|_| spoilt("does not hold 32 bytes"))?))
    }

    /// HMAC-SHA-256 (RFC 2104) of a purpose and what it is for, in 64 hex digits. Parts do not run into each other.
    #[must_use]
    pub fn derive(&self, purpose: Purpose, parts: &[&[u8]]) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        for part in std::iter::once(purpose.label().as_bytes()).chain(parts.iter().copied()) {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        hex::encode(mac.finalize().into_bytes())
    }
}

/// Writes the file whole and durably, or not at all.
fn write_new(path: &Path, key: &[u8]) -> std::io::Result<()> {
    let partial = path.with_extension("partial");
    let remains = std::fs::remove_file(&partial);
    if let Err(err) = remains
        && err.kind() != ErrorKind::NotFound
    {
        return Err(err);
    }
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o400).open(&partial)?;
    file.write_all(key)?;
    file.sync_all()?;
    std::fs::rename(&partial, path)?;
    std::fs::File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_read_from_there_on() {
        let dir = tempfile::tempdir().unwrap();
        let made = HostKey::ensure(dir.path()).unwrap();
        let read = HostKey::ensure(dir.path()).unwrap();
        let of = |key: &HostKey| key.derive(Purpose::ValkeyPassword, &[b"p", b"heads/main"]);
        assert_eq!(of(&made), of(&read));
        let mode = std::fs::metadata(dir.path().join(FILE)).unwrap().mode();
        assert_eq!(mode & 0o777, 0o400);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no partial file is left");
    }

    #[test]
    fn what_is_derived_differs_by_purpose_part_and_machine() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (one, two) = (HostKey::ensure(one.path()).unwrap(), HostKey::ensure(two.path()).unwrap());
        let all = [
            one.derive(Purpose::ValkeyPassword, &[b"ab", b"c"]),
            one.derive(Purpose::ValkeyPassword, &[b"a", b"bc"]),
            one.derive(Purpose::PostgresPassword, &[b"ab", b"c"]),
            two.derive(Purpose::ValkeyPassword, &[b"ab", b"c"]),
        ];
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
        assert!(all.iter().all(|value| value.len() == 64));
    }

    #[test]
    fn a_key_that_is_short_or_open_to_others_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        std::fs::write(&path, [7; 32]).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(HostKey::ensure(dir.path()).unwrap_err().to_string().contains("can be read by others"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).unwrap();
        HostKey::ensure(dir.path()).unwrap();
        std::fs::remove_file(&path).unwrap();
        write_new(&path, &[7; 31]).unwrap();
        assert!(HostKey::ensure(dir.path()).unwrap_err().to_string().contains("does not hold 32 bytes"));
    }
}
