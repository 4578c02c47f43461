//! Roots that keep store paths from Nix's garbage collector.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::{Fault, ended};
use crate::model::StorePath;

/// How long the Nix daemon may take to answer.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Makes `root` a root of `path`, which must be valid.
///
/// By way of the Nix daemon, which registers the link under `/nix/var/nix/gcroots/auto`: a link of our own
/// there that leads to a directory of links was measured to keep nothing.
pub(super) async fn ensure(root: &Path, path: &StorePath) -> Result<(), Fault> {
    let mut command = Command::new("nix-store");
    command.arg("--realise").arg(path.as_str()).arg("--add-root").arg(root);
    command.env("NIX_REMOTE", "daemon");
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(TIMEOUT, command.output()).await??;
    if output.status.success() { Ok(()) } else { Err(ended("nix-store", &output)) }
}
