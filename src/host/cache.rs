//! Copies store paths to a binary cache, by `nix copy` or `cachix`.
//!
//! **Invariant:** no secret is an argument; what says more than a URL is handed over as a file or in the environment.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::HostError;
use crate::config::{CacheAccess, CacheConfig};
use crate::model::StorePath;

/// How long one push may take.
const TIMEOUT: Duration = Duration::from_secs(2 * 3_600);
/// How much of what a program says is kept, in characters.
const SAID_MAX: usize = 500;

/// Where to push to.
#[derive(Debug)]
pub enum Destination {
    /// A store of the operator's.
    Store(CacheConfig),
    /// A Cachix cache, with the token that may write to it.
    Cachix {
        /// Its name.
        name: String,
        /// The token.
        token: SecretString,
    },
}

/// Copies these paths, and all they refer to, to where they are not yet. `scratch` is a directory for what Nix
/// remembers of the cache.
///
/// # Errors
/// When the program is missing, fails, or takes longer than two hours.
pub async fn push(to: &Destination, paths: &[StorePath], scratch: &Path) -> Result<(), HostError> {
    let (program, command) = match to {
        Destination::Store(cache) => ("nix", nix_copy(cache)),
        Destination::Cachix { name, token } => ("cachix", cachix(name, token)),
    };
    let place = match to {
        Destination::Store(cache) => cache.to.clone(),
        Destination::Cachix { name, .. } => format!("{name}.cachix.org"),
    };
    let fault = |source: Box<dyn std::error::Error + Send + Sync>| HostError::new(format!("push to `{place}`"), source);
    let scratch = scratch.to_owned();
    let run = run(program, command, paths, scratch);
    match tokio::time::timeout(TIMEOUT, run).await {
        Ok(done) => done.map_err(fault),
        Err(_) => Err(fault(format!("`{program}` was ended after {} s", TIMEOUT.as_secs()).into())),
    }
}

fn nix_copy(cache: &CacheConfig) -> Command {
    let mut command = Command::new("nix");
    command.args(["--extra-experimental-features", "nix-command", "copy", "--stdin", "--to", &url(cache)]);
    // What is not signed yet is signed on its way, and it is for the cache to refuse what it will not have.
    command.env("NIX_REMOTE", "daemon");
    match &cache.access {
        CacheAccess::Open => {}
        CacheAccess::Aws(file) => {
            command.env("AWS_SHARED_CREDENTIALS_FILE", file);
        }
        CacheAccess::Ssh { key_file, known_hosts_file } => {
            let (key, hosts) = (key_file.display(), known_hosts_file.display());
            command.env(
                "NIX_SSHOPTS",
                format!(
                    "-i {key} -o IdentitiesOnly=yes -o BatchMode=yes -o UserKnownHostsFile={hosts} \
                     -o StrictHostKeyChecking=yes"
                ),
            );
        }
        CacheAccess::Netrc(file) => {
            command.arg("--option").arg("netrc-file").arg(file);
        }
    }
    command
}

/// The store's URL, with the key that signs as a parameter (`nix help-stores`, `secret-key`).
fn url(cache: &CacheConfig) -> String {
    let Some(key) = &cache.signing_key_file else { return cache.to.clone() };
    let path: String = percent_encoding::utf8_percent_encode(&key.to_string_lossy(), PATH).collect();
    format!("{}{}secret-key={path}", cache.to, if cache.to.contains('?') { '&' } else { '?' })
}

/// What a path may hold that a URL's query would read as something else.
const PATH: &percent_encoding::AsciiSet =
    &percent_encoding::CONTROLS.add(b' ').add(b'%').add(b'&').add(b'#').add(b'=').add(b'+').add(b'?');

fn cachix(name: &str, token: &SecretString) -> Command {
    let mut command = Command::new("cachix");
    command.args(["push", name]).env("CACHIX_AUTH_TOKEN", token.expose_secret()).env("NIX_REMOTE", "daemon");
    command
}

async fn run(
    program: &'static str,
    mut command: Command,
    paths: &[StorePath],
    scratch: PathBuf,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    tokio::fs::create_dir_all(&scratch).await?;
    command.env("HOME", &scratch).env("XDG_CACHE_HOME", &scratch).env("XDG_CONFIG_HOME", &scratch);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(|err| match err.kind() {
        std::io::ErrorKind::NotFound => format!("there is no program `{program}` on kennel's PATH"),
        _ => format!("cannot start `{program}`: {err}"),
    })?;
    let list: String = paths.iter().map(|path| format!("{path}\n")).collect();
    if let Some(mut input) = child.stdin.take() {
        // Who ends without reading says why in another way.
        let _ = input.write_all(list.as_bytes()).await;
    }
    let output = child.wait_with_output().await?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    // Nix warns of many things, and says last what went wrong.
    let lines = said.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("warning:"));
    let mut last: Vec<&str> = lines.rev().take(3).collect();
    last.reverse();
    let last: String = last.join("; ").chars().filter(|c| !c.is_control()).take(SAID_MAX).collect();
    Err(format!("`{program}` ended with {}: {last}", output.status).into())
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    fn cache(to: &str, access: CacheAccess, key: Option<&str>) -> CacheConfig {
        CacheConfig { to: to.to_owned(), access, signing_key_file: key.map(PathBuf::from) }
    }

    #[test]
    fn a_signing_key_is_a_parameter_that_means_its_path() {
        let with = |to: &str, key: &str| url(&cache(to, CacheAccess::Open, Some(key)));
        assert_eq!(with("file:///srv/cache", "/run/keys/cache"), "file:///srv/cache?secret-key=/run/keys/cache");
        assert_eq!(with("s3://c?region=x", "/a b&c%"), "s3://c?region=x&secret-key=/a%20b%26c%25");
    }

    #[test]
    fn no_secret_is_an_argument() {
        let token = SecretString::from("hush");
        let access = CacheAccess::Ssh { key_file: "/k".into(), known_hosts_file: "/h".into() };
        for command in [cachix("mine", &token), nix_copy(&cache("ssh-ng://h", access, None))] {
            let command = command.as_std();
            assert!(command.get_args().all(|argument| argument != OsStr::new("hush") && argument != OsStr::new("/k")));
            assert!(command.get_envs().count() > 1);
        }
    }
}
