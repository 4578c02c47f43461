//! What a forge's payload asks of kennel. GitHub, Forgejo and Gitea send the same shape.

use std::num::NonZeroU32;

use super::json::Node;
use crate::model::{BranchRef, CommitSha};

/// The longest title or author kept, in characters.
const SHOWN_MAX: usize = 120;

/// What a delivery asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// Build this commit: a push, or a pull request opened or given new commits.
    Build {
        /// The branch, or the pull request.
        branch: BranchRef,
        /// Its newest commit.
        commit: CommitSha,
        /// The first line of the commit's message, or the pull request's title: to be shown, and nothing else.
        title: Option<String>,
        /// Who made it: to be shown, and nothing else.
        author: Option<String>,
        /// Whether the commit comes from somebody who may not push to the repository.
        from_fork: bool,
    },
    /// The branch is gone.
    BranchGone {
        /// The branch.
        branch: BranchRef,
    },
    /// The pull request is closed, merged or not.
    PullClosed {
        /// The pull request.
        branch: BranchRef,
    },
    /// Nothing is to be done.
    Nothing {
        /// Why, as a sentence for the forge's list of deliveries.
        why: String,
    },
}

/// A payload that says nothing kennel could act on. Answered with 400.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{field}`: {problem}")]
pub struct PayloadFault {
    /// The member it is about, such as `pull_request.head.sha`; `body` for the whole.
    pub field: String,
    /// What is wrong with it, as the rest of a sentence.
    pub problem: String,
}

/// Reads the JSON of an `event`. Call it only once the signature has been checked.
///
/// # Errors
/// When the body is not JSON of the shape the event has, or a name in it is not one.
pub fn parse(event: &str, body: &[u8]) -> Result<Ask, PayloadFault> {
    let read = match event {
        "push" => push,
        "delete" => delete,
        "pull_request" => pull_request,
        "ping" => |_: &Node| Ok(nothing("kennel is here".to_owned())),
        // Every forge sends a push for a new branch as well.
        "create" => |_: &Node| Ok(nothing("a new branch is built by its push".to_owned())),
        _ => return Node::object(body).map(|_| nothing(format!("kennel does not act on `{}`", shown(event)))),
    };
    read(&Node::object(body)?)
}

fn nothing(why: String) -> Ask {
    Ask::Nothing { why }
}

fn push(root: &Node) -> Result<Ask, PayloadFault> {
    let full = reference(root)?;
    let Some(name) = full.strip_prefix("refs/heads/") else {
        return Ok(nothing(format!("`{}` is not a branch", shown(full))));
    };
    let branch = BranchRef::head(name).map_err(|err| fault("ref", err.problem))?;
    let after = root.text(&["after"])?;
    let zero = matches!(after.len(), 40 | 64) && after.bytes().all(|b| b == b'0');
    if zero || root.at(&["deleted"]) == Some(&Node::Bool(true)) {
        return Ok(Ask::BranchGone { branch });
    }
    let author =
        [&["head_commit", "author", "name"][..], &["pusher", "name"], &["pusher", "login"], &["pusher", "username"]];
    Ok(Ask::Build {
        branch,
        commit: commit(root, &["after"])?,
        title: root.text_at(&["head_commit", "message"]).and_then(first_line),
        author: author.iter().find_map(|path| root.text_at(path).and_then(first_line)),
        from_fork: false,
    })
}

/// Here the ref is the bare name of the branch.
fn delete(root: &Node) -> Result<Ask, PayloadFault> {
    let name = reference(root)?;
    match root.text(&["ref_type"])? {
        "branch" => {
            let branch = BranchRef::head(name).map_err(|err| fault("ref", err.problem))?;
            Ok(Ask::BranchGone { branch })
        }
        other => Ok(nothing(format!("a deleted {} is not a branch", shown(other)))),
    }
}

fn pull_request(root: &Node) -> Result<Ask, PayloadFault> {
    let action = root.text(&["action"])?;
    // GitHub says `synchronize`, Forgejo and Gitea `synchronized`.
    let build = matches!(action, "opened" | "reopened" | "synchronize" | "synchronized");
    if !build && action != "closed" {
        return Ok(nothing(format!("a pull request that is `{}` builds nothing", shown(action))));
    }
    let number = match root.at(&["number"]).or_else(|| root.at(&["pull_request", "number"])) {
        Some(Node::Number(number)) => u32::try_from(*number).ok().and_then(NonZeroU32::new),
        Some(_) => None,
        None => return Err(fault("number", "is missing")),
    };
    let branch = BranchRef::pull(number.ok_or_else(|| fault("number", "is not a pull request's number"))?);
    if !build {
        return Ok(Ask::PullClosed { branch });
    }
    Ok(Ask::Build {
        branch,
        commit: commit(root, &["pull_request", "head", "sha"])?,
        title: root.text_at(&["pull_request", "title"]).and_then(first_line),
        author: root.text_at(&["pull_request", "user", "login"]).and_then(first_line),
        from_fork: is_from_fork(root),
    })
}

/// Whether a pull request's commit may come from somebody who cannot push to the repository; yes, when in doubt.
///
/// That its two repositories are the same one is what tells, not `head.repo.fork`: a repository kennel serves may be
/// a fork itself. A fork that is deleted is `null`. Forgejo and Gitea also take pull requests by `git push
/// refs/for/<branch>` ("AGit") from whoever can read: those claim the base as their head's repository, but have
/// `flow` 1, a head that is no branch, or one whose label is empty.
fn is_from_fork(root: &Node) -> bool {
    let side = |side, member| root.at(&["pull_request", side, "repo", member]);
    let same = match (side("head", "id"), side("base", "id")) {
        (Some(Node::Number(head)), Some(Node::Number(base))) => head == base,
        (None, None) => match (side("head", "full_name"), side("base", "full_name")) {
            (Some(Node::Text(head)), Some(Node::Text(base))) => !head.is_empty() && head == base,
            _ => false,
        },
        _ => false,
    };
    let pushed = matches!(root.at(&["pull_request", "flow"]), None | Some(Node::Number(0)));
    let branch = root.text_at(&["pull_request", "head", "ref"]).is_some_and(|name| !name.starts_with("refs/"));
    let labelled = root.text_at(&["pull_request", "head", "label"]) != Some("");
    !(same && pushed && branch && labelled)
}

/// The member `ref`, free of control characters.
fn reference(root: &Node) -> Result<&str, PayloadFault> {
    let text = root.text(&["ref"])?;
    if text.is_empty() {
        return Err(fault("ref", "is empty"));
    }
    if text.chars().any(char::is_control) {
        return Err(fault("ref", "holds a control character"));
    }
    Ok(text)
}

fn commit(root: &Node, path: &[&str]) -> Result<CommitSha, PayloadFault> {
    root.text(path)?.parse().map_err(|err: crate::model::InvalidName| fault(&path.join("."), &err.to_string()))
}

fn fault(field: &str, problem: &str) -> PayloadFault {
    PayloadFault { field: field.to_owned(), problem: problem.to_owned() }
}

/// The first line of a text that is not blank, fit to be shown.
fn first_line(text: &str) -> Option<String> {
    let line = shown(text.trim_start().lines().next()?.trim());
    (!line.is_empty()).then_some(line)
}

/// A text without control characters and marks that turn the direction of writing, cut to what fits a line.
fn shown(text: &str) -> String {
    let hidden = |c: char| {
        c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().filter(|c| !hidden(*c)).take(SHOWN_MAX).collect()
}

#[cfg(test)]
mod tests;
