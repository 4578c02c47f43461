//! The machine at the other end of a Unix socket: [`HostClient`] asks, and a process of root's, [`serve()`], answers.
//!
//! The daemon meets the network and may be taken over; what needs root is asked for here, in the typed calls of
//! [`Machine`](super::Machine) and no others. **Invariant:** the side of root trusts nothing it is told: each name is
//! parsed again, each call is looked at by the [`Guard`], and no path ever comes over the socket.

mod client;
pub mod estate;
mod fault;
mod grants;
mod guard;
mod protocol;
mod server;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serializer};

pub use client::HostClient;
pub use guard::Guard;
pub use server::{Peers, serve};

use super::SecretFiles;

/// Where the process of root's listens.
pub const SOCKET: &str = "/run/kennel/host.sock";

/// Where the daemon keeps its own when the state directory is root's.
#[must_use]
pub fn own_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("daemon")
}

/// Secrets on the socket: their names. The side of root looks up their files by itself.
pub(super) mod names_only {
    use super::{BTreeSet, Deserialize as _, Deserializer, PathBuf, SecretFiles, Serializer};

    pub(crate) fn serialize<S: Serializer>(secrets: &SecretFiles, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(secrets.keys())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<SecretFiles, D::Error> {
        let names = BTreeSet::<String>::deserialize(from)?;
        Ok(names.into_iter().map(|name| (name, PathBuf::new())).collect())
    }
}
