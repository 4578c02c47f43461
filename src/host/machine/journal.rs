//! What a unit wrote to the journal.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::redact::Redactions;
use super::{Fault, ended};
use crate::model::UnitName;

/// The longest part of one line that is kept, in characters.
const LINE_MAX: usize = 2000;
/// How long reading may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The last `lines` lines the unit wrote, and systemd wrote about it, oldest first, without its secrets.
pub(super) async fn tail(unit: &UnitName, lines: usize, redactions: &Redactions) -> Result<Vec<String>, Fault> {
    // What a process wrote just before it died may be on its way yet.
    let mut sync = journalctl();
    let _ = tokio::time::timeout(TIMEOUT, sync.arg("--sync").status()).await;
    let mut read = journalctl();
    read.args(["--quiet", "--no-pager", "--output=cat", "--lines"]).arg(lines.to_string());
    read.arg("--unit").arg(unit.as_str());
    let output = tokio::time::timeout(TIMEOUT, read.output()).await??;
    if !output.status.success() {
        return Err(ended("journalctl", &output));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let all: Vec<&str> = text.lines().collect();
    let first = all.len().saturating_sub(lines);
    // Cut last: half a secret would not be found.
    Ok(all.iter().skip(first).map(|line| redactions.apply(line).chars().take(LINE_MAX).collect()).collect())
}

fn journalctl() -> Command {
    let mut command = Command::new("journalctl");
    command.stdin(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}
