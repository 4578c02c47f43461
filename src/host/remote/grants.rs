//! What the operator's file granted each unit, kept by root, so that what serves goes on serving after that file has
//! ceased to name its project or its secrets.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::host::{SecretFiles, files};
use crate::model::UnitName;
use crate::model::confinement::OptOut;

/// The largest record, in bytes.
const RECORD_MAX: u64 = 1 << 20;

/// What a unit was granted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Granted {
    /// The files its secrets were read from.
    pub(super) secrets: SecretFiles,
    /// The walls of its sandbox that were lowered.
    pub(super) opt_outs: BTreeSet<OptOut>,
}

/// A directory of root's with a file for each unit that was granted anything.
#[derive(Debug, Clone)]
pub(super) struct Grants(PathBuf);

impl Grants {
    pub(super) fn in_dir(dir: PathBuf) -> io::Result<Self> {
        files::ensure_dir(&dir, 0o700)?;
        Ok(Self(dir))
    }

    /// What a unit was granted; nothing when that is not known. Blocks.
    pub(super) fn of(&self, unit: &UnitName) -> io::Result<Granted> {
        let Some(bytes) = files::read_bounded(&self.0, &name(unit), RECORD_MAX)? else {
            return Ok(Granted::default());
        };
        serde_json::from_slice(&bytes).map_err(io::Error::other)
    }

    /// Notes what a unit is granted. Blocks.
    pub(super) fn note(&self, unit: &UnitName, granted: &Granted) -> io::Result<()> {
        let text = serde_json::to_vec(granted).map_err(io::Error::other)?;
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
