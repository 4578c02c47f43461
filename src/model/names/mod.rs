//! Names: every string that means something below the edge, each parsed once.
//!
//! A value of one of these types holds what its doc says; there is no other way to make one.
//!
//! **Invariant:** no function here looks anything up. Whether a name is *taken* is told by the caller.

mod checked;
mod choose;
mod databases;
mod port;

use std::fmt;
use std::str::FromStr;

use checked::{checked_text, row_id};
use serde::{Deserialize, Serialize};

pub use choose::{Taken, TargetNames};
pub use databases::{DatabaseName, ValkeyDb};
pub use port::Port;

/// A value that is not a name of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {value:?} {problem}")]
pub struct InvalidName {
    /// What the value should have been, such as `project name`.
    pub kind: &'static str,
    /// The offending value, cut to 80 characters.
    pub value: String,
    /// What is wrong with it, as the rest of a sentence.
    pub problem: &'static str,
}

impl InvalidName {
    fn new(kind: &'static str, value: &str, problem: &'static str) -> Self {
        Self { kind, value: value.chars().take(80).collect(), problem }
    }
}

row_id! {
    /// One branch of one project.
    BranchId
}
row_id! {
    /// One build: one commit of one branch.
    BuildId
}
row_id! {
    /// Project, branch and service or site: the thing with a hostname.
    TargetId
}
row_id! {
    /// One version of a target.
    DeploymentId
}

/// The longest project, service or site name, and the longest branch slug.
pub const NAME_MAX: usize = 40;
/// The longest DNS label (RFC 1035, section 2.3.4).
const LABEL_MAX: usize = 63;
/// The longest user name systemd accepts (`systemd.exec(5)`, `User=`).
const USER_MAX: usize = 31;

fn check_short_name(text: &str) -> Result<(), &'static str> {
    let bytes = text.as_bytes();
    match (bytes.first(), bytes.last()) {
        (None, _) | (_, None) => return Err("is empty"),
        (Some(b'-'), _) | (_, Some(b'-')) => return Err("begins or ends with `-`"),
        _ => {}
    }
    if bytes.len() > NAME_MAX {
        return Err("is longer than 40 characters");
    }
    if !bytes.iter().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-')) {
        return Err("may hold only `a` to `z`, `0` to `9` and `-`");
    }
    Ok(())
}

checked_text! {
    /// A project's name: `[a-z0-9]([a-z0-9-]*[a-z0-9])?`, at most 40.
    ProjectName, "project name", check_short_name
}
checked_text! {
    /// A service's or static site's name: `[a-z0-9]([a-z0-9-]*[a-z0-9])?`, at most 40.
    ServiceName, "service name", check_short_name
}
checked_text! {
    /// A branch's short name, unique in its project: `[a-z0-9]([a-z0-9-]*[a-z0-9])?`, at most 40.
    BranchSlug, "branch slug", check_short_name
}
checked_text! {
    /// A commit: 40 (SHA-1) or 64 (SHA-256) lower-case hexadecimal digits.
    CommitSha, "commit", |text| {
        if !matches!(text.len(), 40 | 64) {
            return Err("is not 40 or 64 hexadecimal digits");
        }
        if !text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err("is not 40 or 64 lower-case hexadecimal digits");
        }
        Ok(())
    }
}
checked_text! {
    /// What a forge calls one delivery of a webhook: 1 to 128 of `[A-Za-z0-9_.:-]`.
    DeliveryId, "delivery id", |text| {
        if text.is_empty() || text.len() > 128 {
            return Err("is not 1 to 128 characters long");
        }
        if !text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b':' | b'-')) {
            return Err("may hold only letters, digits and `_.:-`");
        }
        Ok(())
    }
}
checked_text! {
    /// A host's DNS name: lower-case labels of `[a-z0-9-]`, each at most 63, together at most 253,
    /// without port or trailing dot (RFC 1123, section 2.1).
    HostName, "host name", check_host
}
checked_text! {
    /// What a certificate is for: a host, or `*.` and a domain, which stands for all hosts one label below it
    /// (RFC 9525, section 6.3). At most 253.
    CertificateName, "certificate name", |text| {
        if text.len() > 253 {
            return Err("is longer than 253 characters");
        }
        check_host(text.strip_prefix("*.").unwrap_or(text))
    }
}
checked_text! {
    /// A systemd service unit's name: `[A-Za-z0-9:_.@-]`, ending in `.service`, at most 255
    /// (`systemd.unit(5)`).
    UnitName, "unit name", |text| {
        if text.len() > 255 {
            return Err("is longer than 255 characters");
        }
        if text.strip_suffix(".service").is_none_or(str::is_empty) {
            return Err("does not end in `.service`");
        }
        if !text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b':' | b'_' | b'.' | b'@' | b'-')) {
            return Err("may hold only letters, digits and `:_.@-`");
        }
        Ok(())
    }
}
checked_text! {
    /// What a target's units, journal lines and user are named after: `kennel-<project>-<branch>-<service>`.
    TargetTag, "target tag", |text| {
        let Some(rest) = text.strip_prefix("kennel-") else {
            return Err("does not begin with `kennel-`");
        };
        if text.len() > 200 || rest.is_empty() {
            return Err("is not 8 to 200 characters long");
        }
        if !rest.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-')) {
            return Err("may hold only `a` to `z`, `0` to `9` and `-`");
        }
        Ok(())
    }
}
checked_text! {
    /// A system user's name: `[a-z][a-z0-9-]*`, at most 31 (`systemd.exec(5)`, `User=`).
    UserName, "user name", |text| {
        if text.is_empty() || text.len() > USER_MAX {
            return Err("is not 1 to 31 characters long");
        }
        if !text.starts_with(|c: char| c.is_ascii_lowercase()) {
            return Err("does not begin with a letter");
        }
        if !text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-')) {
            return Err("may hold only `a` to `z`, `0` to `9` and `-`");
        }
        Ok(())
    }
}
checked_text! {
    /// A path of the Nix store: `/nix/store/<32 of Nix's base 32>-<name>`, with nothing below it.
    StorePath, "store path", |text| {
        let Some(name) = text.strip_prefix("/nix/store/") else {
            return Err("does not lie in `/nix/store`");
        };
        let Some((hash, rest)) = name.split_at_checked(32) else {
            return Err("has no hash");
        };
        if !hash.bytes().all(|b| b"0123456789abcdfghijklmnpqrsvwxyz".contains(&b)) {
            return Err("has no valid hash");
        }
        let Some(rest) = rest.strip_prefix('-') else {
            return Err("has no name after its hash");
        };
        if rest.is_empty() || rest.len() > 211 {
            return Err("has a name that is not 1 to 211 characters long");
        }
        if !rest.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-._?=".contains(&b)) {
            return Err("has a name with a character the store does not allow");
        }
        Ok(())
    }
}
checked_text! {
    /// A program's file name below `bin/`: 1 to 100 of `[A-Za-z0-9+._-]`, not beginning with `.` or `-`.
    ProgramName, "program name", |text| {
        if text.is_empty() || text.len() > 100 {
            return Err("is not 1 to 100 characters long");
        }
        if text.starts_with(['.', '-']) {
            return Err("begins with `.` or `-`");
        }
        if !text.bytes().all(|b| b.is_ascii_alphanumeric() || b"+._-".contains(&b)) {
            return Err("may hold only letters, digits and `+._-`");
        }
        Ok(())
    }
}
checked_text! {
    /// A flake output below `packages.<system>`: an attribute name of `[A-Za-z0-9_'-]`, at most 100.
    FlakeOutput, "flake output", |text| {
        if text.is_empty() || text.len() > 100 {
            return Err("is not 1 to 100 characters long");
        }
        if !text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
            return Err("does not begin with a letter or `_`");
        }
        if !text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_'-".contains(&b)) {
            return Err("may hold only letters, digits and `_'-`");
        }
        Ok(())
    }
}
checked_text! {
    /// A branch as kennel knows it: `heads/<branch>` or `pull/<number>`.
    ///
    /// So a branch called `pr-7` is not pull request 7. The branch obeys `git-check-ref-format(1)`.
    BranchRef, "branch", |text| {
        if let Some(number) = text.strip_prefix("pull/") {
            return match number.parse::<u32>() {
                Ok(n) if n > 0 && number == n.to_string() => Ok(()),
                _ => Err("is not a pull request's number"),
            };
        }
        check_git_branch(text.strip_prefix("heads/").ok_or("is neither a branch nor a pull request")?)
    }
}

fn check_host(text: &str) -> Result<(), &'static str> {
    if text.is_empty() || text.len() > 253 {
        return Err("is not 1 to 253 characters long");
    }
    // Every request's host passes here: without a branch for each byte, many are looked at at once.
    let allowed = |b: &u8| b.is_ascii_lowercase() | b.is_ascii_digit() | (*b == b'-') | (*b == b'.');
    if !text.as_bytes().iter().fold(true, |all, byte| all & allowed(byte)) {
        return Err("may hold only `a` to `z`, `0` to `9`, `-` and `.`");
    }
    for label in text.as_bytes().split(|byte| *byte == b'.') {
        match label {
            [] => return Err("has a label that is not 1 to 63 characters long"),
            [b'-', ..] | [.., b'-'] => return Err("has a label that begins or ends with `-`"),
            label if label.len() > LABEL_MAX => return Err("has a label that is not 1 to 63 characters long"),
            _ => {}
        }
    }
    Ok(())
}

/// `git-check-ref-format(1)`, for what follows `refs/heads/`.
fn check_git_branch(branch: &str) -> Result<(), &'static str> {
    if branch.is_empty() || branch.len() > 250 {
        return Err("is not 1 to 250 bytes long");
    }
    if branch.chars().any(char::is_control) {
        return Err("holds a control character");
    }
    if branch.contains(|c: char| c.is_whitespace() || "~^:?*[\\".contains(c)) {
        return Err("holds a space or one of `~^:?*[\\`");
    }
    if branch.contains("..") || branch.contains("@{") || branch == "@" || branch.starts_with('-') {
        return Err("holds `..` or `@{`, is `@`, or begins with `-`");
    }
    if branch.ends_with('.')
        || branch.split('/').any(|part| part.is_empty() || part.starts_with('.') || part.ends_with(".lock"))
    {
        return Err("has a part that is empty, begins with `.` or ends with `.` or `.lock`");
    }
    Ok(())
}

impl CertificateName {
    /// All hosts one label below `domain`; `None` when that is too long to be a name.
    #[must_use]
    pub fn below(domain: &str) -> Option<Self> {
        format!("*.{domain}").parse().ok()
    }

    /// The host it is for, unless it is a wildcard.
    #[must_use]
    pub fn host(&self) -> Option<HostName> {
        self.0.parse().ok()
    }

    /// The domain it is for all hosts of, if it is a wildcard.
    #[must_use]
    pub fn domain(&self) -> Option<&str> {
        self.0.strip_prefix("*.")
    }
}

impl From<&HostName> for CertificateName {
    fn from(host: &HostName) -> Self {
        Self(host.0.clone())
    }
}

impl BranchRef {
    /// The branch `refs/heads/<branch>`.
    ///
    /// # Errors
    /// When `branch` is not a branch name of git.
    pub fn head(branch: &str) -> Result<Self, InvalidName> {
        check_git_branch(branch).map_err(|problem| InvalidName::new("branch", branch, problem))?;
        Ok(Self(format!("heads/{branch}")))
    }

    /// Pull request `number`.
    #[must_use]
    pub fn pull(number: std::num::NonZeroU32) -> Self {
        Self(format!("pull/{number}"))
    }

    /// Whether this is a pull request.
    #[must_use]
    pub fn is_pull(&self) -> bool {
        self.0.starts_with("pull/")
    }

    /// What people call it: the branch's own name, or `pr-<number>`.
    #[must_use]
    pub fn name(&self) -> String {
        match self.0.strip_prefix("pull/") {
            Some(number) => format!("pr-{number}"),
            None => self.0["heads/".len()..].to_owned(),
        }
    }

    /// The ref to ask the forge for.
    #[must_use]
    pub fn remote_ref(&self) -> String {
        if self.is_pull() { format!("refs/{}/head", self.0) } else { format!("refs/{}", self.0) }
    }
}
