//! The last way to fetch: the git command, for servers that libgit2 does not get along with.
//!
//! **Invariant:** nothing is configured but here, nothing is asked on a terminal, and no secret is an argument.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use tokio::process::Command;

use super::credentials::Credentials;
use super::log::{LogFile, reason};
use super::process::{self, Ended};
use super::remote::{Remote, Transport};
use crate::host::BuildJob;

/// What became of it.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It fetched what it was asked for.
    Fetched,
    /// There is no git on this machine.
    Absent,
    /// It could not, and said this.
    Failed(String),
}

/// Fetches the commit by its id, else all of its branch, into the repository at `checkout`.
pub(super) async fn fetch(
    checkout: &Path,
    job: &BuildJob,
    remote: &Remote,
    credentials: &Credentials,
    log: &mut LogFile,
) -> anyhow::Result<Outcome> {
    let refspecs = [
        (Some("--depth=1"), format!("+{}:refs/kennel/commit", job.commit)),
        (None, format!("+{}:refs/kennel/branch", job.remote_ref)),
    ];
    let mut outcome = Outcome::Absent;
    for (depth, refspec) in refspecs {
        let mut command = Command::new("git");
        command.arg("-C").arg(checkout).arg("fetch").args(depth);
        command.args(["--no-tags", "--no-recurse-submodules", "--no-write-fetch-head", "--no-auto-maintenance"]);
        command.args(["--", &remote.url, &refspec]);
        set_environment(&mut command, checkout, remote, credentials);
        let mut said = String::new();
        let limit = Duration::from_secs(job.timeout_secs);
        let ended = process::run(command, limit, |line| {
            let line = credentials.without_secrets(&remote.without_password(&String::from_utf8_lossy(line)));
            if said.len() < 4096 {
                said.push_str(&line);
                said.push('\n');
            }
            log.say(&format!("git: {line}")).map(ControlFlow::Continue)
        });
        outcome = match ended.await {
            Ok(Ended::Exited(status, _)) if status.success() => return Ok(Outcome::Fetched),
            Ok(Ended::Exited(..)) => Outcome::Failed(reason(&said)),
            Ok(Ended::TimedOut | Ended::Stopped) => {
                Outcome::Failed(format!("time limit of {} s passed", job.timeout_secs))
            }
            Err(err) if is_not_found(&err) => return Ok(Outcome::Absent),
            Err(err) => return Err(err),
        };
    }
    Ok(outcome)
}

fn is_not_found(err: &anyhow::Error) -> bool {
    err.downcast_ref::<std::io::Error>().is_some_and(|err| err.kind() == std::io::ErrorKind::NotFound)
}

/// An environment of its own, in which git reads no file but the empty repository's.
fn set_environment(command: &mut Command, home: &Path, remote: &Remote, credentials: &Credentials) {
    command.env_clear();
    for name in ["PATH", "SSL_CERT_FILE", "SSL_CERT_DIR", "http_proxy", "https_proxy", "HTTPS_PROXY", "no_proxy"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command.env("HOME", home).env("LC_ALL", "C").env("GIT_TERMINAL_PROMPT", "0").env("GIT_ASKPASS", "true");
    command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null");
    command.env("GIT_ALLOW_PROTOCOL", remote.transport.protocol());
    let mut settings = vec![
        ("core.hooksPath".to_owned(), "/dev/null".to_owned()),
        ("core.fsmonitor".to_owned(), "false".to_owned()),
        ("credential.helper".to_owned(), String::new()),
        ("http.followRedirects".to_owned(), "false".to_owned()),
    ];
    if let (Transport::Https | Transport::Http, Some(token)) = (remote.transport, &credentials.token) {
        let user = remote.user.as_deref().unwrap_or("x-access-token");
        let basic = BASE64_STANDARD.encode(format!("{user}:{token}"));
        settings.push(("http.extraHeader".to_owned(), format!("Authorization: Basic {basic}")));
    }
    for (n, (key, value)) in settings.iter().enumerate() {
        command.env(format!("GIT_CONFIG_KEY_{n}"), key).env(format!("GIT_CONFIG_VALUE_{n}"), value);
    }
    command.env("GIT_CONFIG_COUNT", settings.len().to_string());
    let mut ssh = "ssh -F none -o BatchMode=yes -o StrictHostKeyChecking=yes -o UpdateHostKeys=no \
                   -o GlobalKnownHostsFile=/dev/null -o IdentitiesOnly=yes -o IdentityAgent=none \
                   -o ForwardAgent=no -o ConnectTimeout=20"
        .to_owned();
    let known_hosts = credentials.known_hosts.as_ref().map_or(Path::new("/dev/null"), |(path, _)| path);
    ssh.push_str(&format!(" -o UserKnownHostsFile={}", quoted(known_hosts)));
    if let Some(key) = &credentials.ssh_key {
        ssh.push_str(&format!(" -i {}", quoted(key)));
    }
    command.env("GIT_SSH_COMMAND", ssh).env("GIT_SSH_VARIANT", "ssh");
}

/// A path for the shell that git hands its ssh command to.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}
