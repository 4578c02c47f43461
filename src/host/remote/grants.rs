//! Which files the secrets of each unit were read from, kept by root, so that what serves goes on serving after the
//! operator's file has ceased to name them.

use std::io;
use std::path::PathBuf;

use crate::host::{SecretFiles, files};
use crate::model::UnitName;

/// The largest record, in bytes.
const RECORD_MAX: u64 = 1 << 20;

/// A directory of root's with a file for each unit that has secrets.
#[derive(Debug, Clone)]
pub(super) struct Grants(PathBuf);

impl Grants {
    pub(super) fn in_dir(dir: PathBuf) -> io::Result<Self> {
        files::ensure_dir(&dir, 0o700)?;
        Ok(Self(dir))
    }

    /// What a unit was given; nothing when that is not known. Blocks.
    pub(super) fn of(&self, unit: &UnitName) -> io::Result<SecretFiles> {
        let Some(bytes) = files::read_bounded(&self.0, &name(unit), RECORD_MAX)? else {
            return Ok(SecretFiles::new());
        };
        serde_json::from_slice(&bytes).map_err(io::Error::other)
    }

    /// Notes what a unit is given. Blocks.
    pub(super) fn note(&self, unit: &UnitName, secrets: &SecretFiles) -> io::Result<()> {
        let text = serde_json::to_vec(secrets).map_err(io::Error::other)?;
        let path = self.0.join(name(unit));
        if files::holds(&path, &text) { Ok(()) } else { files::replace_durably(&path, &text, 0o600) }
    }

    /// Forgets a unit. Blocks.
    pub(super) fn forget(&self, unit: &UnitName) -> io::Result<()> {
        files::remove(&self.0.join(name(unit)))
    }
}

fn name(unit: &UnitName) -> String {
    format!("{unit}.json")
}
