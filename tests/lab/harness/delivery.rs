//! Webhook deliveries with the payloads and signatures of Forgejo and GitHub.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::{Value, json};
use sha2::Sha256;

/// How a forge talks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    Forgejo,
    Gitea,
    Github,
}

/// A delivery, ready to be sent; tests change parts of it to make it bad.
#[derive(Debug, Clone)]
pub(crate) struct Delivery {
    pub(crate) project: String,
    pub(crate) id: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

const NOTHING: &str = "0000000000000000000000000000000000000000";

impl Style {
    /// The word in kennel's configuration.
    pub(crate) fn repo_type(self) -> &'static str {
        match self {
            Self::Forgejo => "forgejo",
            Self::Gitea => "gitea",
            Self::Github => "github",
        }
    }

    /// Signs a payload as this forge does.
    pub(crate) fn delivery(self, project: &str, secret: &str, event: &str, payload: &Value) -> Delivery {
        self.delivery_of_bytes(project, secret, event, payload.to_string().into_bytes())
    }

    pub(crate) fn delivery_of_bytes(self, project: &str, secret: &str, event: &str, body: Vec<u8>) -> Delivery {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        // Two tests may talk to the same kennel, before and after its machine was off.
        let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970").as_secs();
        let id = format!("{since:08x}-0000-4000-8000-{:012}", COUNT.fetch_add(1, Ordering::Relaxed));
        let signature = sign(secret, &body);
        let (prefix, signature) = match self {
            Self::Forgejo => ("X-Forgejo", ("X-Forgejo-Signature", signature)),
            Self::Gitea => ("X-Gitea", ("X-Gitea-Signature", signature)),
            Self::Github => ("X-GitHub", ("X-Hub-Signature-256", format!("sha256={signature}"))),
        };
        let headers = vec![
            ("Content-Type".to_owned(), "application/json".to_owned()),
            (format!("{prefix}-Event"), event.to_owned()),
            (format!("{prefix}-Delivery"), id.clone()),
            (signature.0.to_owned(), signature.1),
        ];
        Delivery { project: project.to_owned(), id, headers, body }
    }
}

impl Delivery {
    /// The same with another value of a header, or without it.
    pub(crate) fn header(mut self, name: &str, value: Option<&str>) -> Self {
        self.headers.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
        self.headers.extend(value.map(|value| (name.to_owned(), value.to_owned())));
        self
    }
}

/// The hex HMAC-SHA256 of a body.
pub(crate) fn sign(secret: &str, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
    mac.update(body);
    hex::encode(mac.finalize().into_bytes())
}

/// A push of `commit` to a branch that was at `before`.
pub(crate) fn push(project: &str, branch: &str, before: Option<&str>, commit: &str) -> Value {
    let person = json!({"name": "Ada", "email": "ada@example.com", "username": "ada"});
    let head = json!({
        "id": commit,
        "tree_id": "f9d2a07e9488b91af2641b26b9407fe22a451433",
        "distinct": true,
        "message": "Change something\n\nAnd say why.",
        "timestamp": "2026-05-15T15:20:30Z",
        "url": format!("http://forge/demo/{project}/commit/{commit}"),
        "author": person,
        "committer": person,
        "added": [],
        "removed": [],
        "modified": ["README.md"],
    });
    json!({
        "ref": format!("refs/heads/{branch}"),
        "before": before.unwrap_or(NOTHING),
        "after": commit,
        "created": before.is_none(),
        "deleted": false,
        "forced": false,
        "base_ref": null,
        "compare_url": format!("http://forge/demo/{project}/compare"),
        "commits": [head],
        "total_commits": 1,
        "head_commit": head,
        "repository": repository(project),
        "pusher": person,
        "sender": user(),
    })
}

/// The push with which GitHub tells of a deleted branch.
pub(crate) fn push_of_nothing(project: &str, branch: &str, before: &str) -> Value {
    let mut payload = push(project, branch, Some(before), NOTHING);
    payload["deleted"] = true.into();
    payload["commits"] = json!([]);
    payload["head_commit"] = Value::Null;
    payload
}

/// The `delete` event of a branch.
pub(crate) fn delete(project: &str, branch: &str) -> Value {
    json!({
        "ref": branch,
        "ref_type": "branch",
        "pusher_type": "user",
        "repository": repository(project),
        "sender": user(),
    })
}

/// A pull request: `opened`, `synchronize`, `closed` …
pub(crate) fn pull_request(project: &str, action: &str, number: u64, commit: &str, fork: bool) -> Value {
    let head = if fork { repository_of("mallory", 2, project) } else { repository(project) };
    json!({
        "action": action,
        "number": number,
        "pull_request": {
            "id": 900 + number,
            "number": number,
            "state": if action == "closed" { "closed" } else { "open" },
            "title": "Improve things",
            "user": user(),
            "merged": false,
            "head": {"label": "topic", "ref": "topic", "sha": commit, "repo_id": head["id"], "repo": head},
            "base": {
                "label": "main", "ref": "main", "sha": "f9d2a07e9488b91af2641b26b9407fe22a451433",
                "repo_id": 1, "repo": repository(project),
            },
        },
        "repository": repository(project),
        "sender": user(),
    })
}

fn user() -> Value {
    json!({"id": 2, "login": "ada", "username": "ada", "email": "ada@example.com"})
}

fn repository(project: &str) -> Value {
    repository_of("demo", 1, project)
}

fn repository_of(owner: &str, id: u64, project: &str) -> Value {
    json!({
        "id": id,
        "name": project,
        "full_name": format!("{owner}/{project}"),
        "private": false,
        "fork": owner != "demo",
        "owner": {"id": id, "login": owner, "username": owner, "email": format!("{owner}@example.com")},
        "html_url": format!("http://forge/{owner}/{project}"),
        "clone_url": format!("http://forge/{owner}/{project}.git"),
        "ssh_url": format!("git@forge:{owner}/{project}.git"),
        "default_branch": "main",
    })
}
