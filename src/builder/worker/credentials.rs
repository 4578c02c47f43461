//! What the operator gives the fetch: a token, or an SSH key and the host keys it may be used with.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::known_hosts::KnownHosts;
use super::read_bounded;

/// The files systemd put into `$CREDENTIALS_DIRECTORY`, as far as they are there.
#[derive(Default)]
pub(super) struct Credentials {
    pub(super) token: Option<String>,
    pub(super) ssh_key: Option<PathBuf>,
    pub(super) known_hosts: Option<(PathBuf, KnownHosts)>,
}

impl Credentials {
    /// Those of the unit this runs in.
    pub(super) fn of_unit() -> anyhow::Result<Self> {
        std::env::var_os("CREDENTIALS_DIRECTORY").map_or(Ok(Self::default()), |dir| Self::read(Path::new(&dir)))
    }

    pub(super) fn read(dir: &Path) -> anyhow::Result<Self> {
        let file = |name| Some(dir.join(name)).filter(|path| path.exists());
        let text = |path: &Path| -> anyhow::Result<String> {
            String::from_utf8(read_bounded(path)?).with_context(|| format!("`{}` is not UTF-8", path.display()))
        };
        let token = file("git_token").map(|path| text(&path)).transpose()?;
        let known_hosts = match file("known_hosts") {
            Some(path) => {
                let hosts = KnownHosts::parse(&text(&path)?);
                Some((path, hosts))
            }
            None => None,
        };
        Ok(Self { token: token.map(|token| token.trim().to_owned()), ssh_key: file("ssh_key"), known_hosts })
    }

    /// `text` without the token.
    pub(super) fn without_secrets(&self, text: &str) -> String {
        match self.token.as_deref().filter(|token| !token.is_empty()) {
            Some(token) => text.replace(token, "…"),
            None => text.to_owned(),
        }
    }

    /// Lets libgit2 see the host keys, so that it asks the server for a key of a type that is known.
    ///
    /// It looks in the home directory only, and only one inside the work directory may be written to.
    pub(super) fn show_known_hosts(&self, work: &Path) -> anyhow::Result<()> {
        let home = std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.starts_with(work));
        if let (Some(home), Some((file, _))) = (home, &self.known_hosts) {
            let dir = home.join(".ssh");
            fs::create_dir_all(&dir).with_context(|| format!("cannot make `{}`", dir.display()))?;
            fs::write(dir.join("known_hosts"), read_bounded(file)?)
                .with_context(|| format!("cannot write `{}`", dir.display()))?;
        }
        Ok(())
    }
}
