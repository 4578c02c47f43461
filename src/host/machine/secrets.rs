//! The operator's secret files: read here, as late as can be, and handed on only as a deployment's environment.
//!
//! **Invariant:** no value leaves this module but into an environment file or a keyed fingerprint; faults name the
//! secret and its file.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt as _;

use secrecy::ExposeSecret as _;

use super::Fault;
use crate::config::{SecretError, ServiceSecret, read_service_secret};
use crate::host::SecretFiles;
use crate::host::key::{HostKey, Purpose};

/// What systemd takes as the credentials of one unit, their names included (`systemd.exec(5)`, `LoadCredential=`).
const ALL_MAX_BYTES: usize = 1 << 20;

/// A secret that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the secret `{name}` cannot be used")]
struct Unusable {
    name: String,
    source: SecretError,
}

/// Reads all of them, or says which cannot be used. Blocks.
fn read(secrets: &SecretFiles) -> Result<BTreeMap<&str, ServiceSecret>, Fault> {
    let mut all = BTreeMap::new();
    let mut size = 0;
    for (name, path) in secrets {
        let secret = read_service_secret(path).map_err(|source| Unusable { name: name.clone(), source })?;
        size += name.len() + secret.whole.expose_secret().len();
        if size > ALL_MAX_BYTES {
            return Err(format!("with the secret `{name}`, its secrets are larger than 1 MiB together").into());
        }
        all.insert(name.as_str(), secret);
    }
    Ok(all)
}

/// The environment with the values of the secrets in it. Blocks.
pub(in crate::host) fn with_values(
    mut env: BTreeMap<String, String>,
    secrets: &SecretFiles,
) -> Result<BTreeMap<String, String>, Fault> {
    for (name, secret) in read(secrets)? {
        if env.insert(name.to_owned(), secret.value.expose_secret().to_owned()).is_some() {
            return Err(format!("the secret `{name}` has the name of a variable").into());
        }
    }
    Ok(env)
}

/// A keyed fingerprint of each: of its name, its path and all that the file holds, since a service gets them all.
/// Blocks.
pub(in crate::host) fn fingerprints(key: &HostKey, secrets: &SecretFiles) -> Result<BTreeMap<String, String>, Fault> {
    let of = |(name, secret): (&str, ServiceSecret)| {
        let path = secrets.get(name).map_or(&[][..], |path| path.as_os_str().as_bytes());
        let parts = [name.as_bytes(), path, secret.whole.expose_secret().as_bytes()];
        (name.to_owned(), key.derive(Purpose::SecretFingerprint, &parts))
    };
    Ok(read(secrets)?.into_iter().map(of).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::chain;

    struct Files(tempfile::TempDir);

    impl Files {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn with(&self, name: &str, content: impl AsRef<[u8]>) -> SecretFiles {
            let path = self.0.path().join(name);
            std::fs::write(&path, content).unwrap();
            [(name.to_owned(), path)].into()
        }
    }

    #[test]
    fn a_value_joins_the_environment_and_never_hides_a_variable() {
        let files = Files::new();
        let secrets = files.with("TOKEN", "hush\n");
        let env = BTreeMap::from([("LEVEL".to_owned(), "info".to_owned())]);
        let whole = with_values(env.clone(), &secrets).unwrap();
        assert_eq!((whole["LEVEL"].as_str(), whole["TOKEN"].as_str(), whole.len()), ("info", "hush", 2));
        let twice = with_values(whole, &secrets).unwrap_err().to_string();
        assert_eq!(twice, "the secret `TOKEN` has the name of a variable");
    }

    #[test]
    fn a_fingerprint_follows_name_path_and_every_byte_and_needs_the_key() {
        let files = Files::new();
        let key = HostKey::ensure(files.0.path()).unwrap();
        let first = files.with("A", "hush");
        let before = fingerprints(&key, &first).unwrap();
        assert_eq!(fingerprints(&key, &first).unwrap(), before);
        assert!(!format!("{before:?}").contains("hush"));

        let elsewhere = Files::new();
        let moved = elsewhere.with("A", "hush");
        assert_ne!(fingerprints(&key, &moved).unwrap()["A"], before["A"]);
        let renamed = SecretFiles::from([("B".to_owned(), first["A"].clone())]);
        assert_ne!(fingerprints(&key, &renamed).unwrap()["B"], before["A"]);
        let other_key = HostKey::ensure(elsewhere.0.path()).unwrap();
        assert_ne!(fingerprints(&other_key, &first).unwrap(), before);
        // A line break at the end is not in the variable, and is in the credential.
        files.with("A", "hush\n");
        assert_ne!(fingerprints(&key, &first).unwrap(), before);
    }

    #[test]
    fn a_secret_that_cannot_be_used_is_named_with_its_file() {
        let files = Files::new();
        for (content, why) in [("hush\0", "holds a NUL (U+0000)"), (" ", "is empty")] {
            let secrets = files.with("TOKEN", content);
            let err = with_values(BTreeMap::new(), &secrets).unwrap_err();
            let path = secrets["TOKEN"].display();
            assert_eq!(chain(&*err), format!("the secret `TOKEN` cannot be used: `{path}` {why}"));
        }
        let many: SecretFiles = (0..17).flat_map(|n| files.with(&format!("S{n}"), vec![b'h'; 64 * 1024])).collect();
        let err = with_values(BTreeMap::new(), &many).unwrap_err().to_string();
        assert!(err.starts_with("with the secret `S8`"), "{err}");
    }
}
