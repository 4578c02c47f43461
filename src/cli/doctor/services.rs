//! What kennel talks to: its own file and daemon, names, and the forges.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::Value;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use super::Subject;
use super::finding::Finding;
use crate::cli::failure::Failure;
use crate::model::ProjectName;

/// How long a name or a forge may take.
const REACH_MAX: Duration = Duration::from_secs(3);
/// A name nobody has given to anything, which a wildcard answers for.
const ANY: &str = "kennel-doctor";

/// Checks the daemon's file.
pub(super) async fn configuration(subject: &Subject) -> Vec<Finding> {
    let (check, path) = ("configuration", subject.config_path.display());
    let advice = format!("`kennel check-config {path}` until it is right");
    vec![match &subject.config {
        Ok(config) => match config.projects.len() {
            0 => Finding::warning(check, format!("`{path}` names no project"), "add `[projects.<name>]`"),
            1 => Finding::ok(check, format!("`{path}`, 1 project")),
            count => Finding::ok(check, format!("`{path}`, {count} projects")),
        },
        Err(faults) => Finding::failure(check, format!("`{path}` is faulty:\n{faults}"), advice),
    }]
}

/// Checks that the daemon answers.
pub(super) async fn daemon(subject: &Subject) -> Vec<Finding> {
    vec![judge_daemon(subject.client.get::<Value>("/healthz").await)]
}

fn judge_daemon(answer: Result<Value, Failure>) -> Finding {
    let check = "kennel";
    match answer {
        Ok(_) => Finding::ok(check, "it answers"),
        Err(failure) => {
            let advice = failure.hint.unwrap_or_else(|| "`journalctl --unit=kennel` tells more".to_owned());
            Finding::failure(check, failure.message, advice)
        }
    }
}

/// Checks that visitors find their way here.
pub(super) async fn names(subject: &Subject) -> Vec<Finding> {
    let Ok(config) = &subject.config else { return Vec::new() };
    let mut wanted: Vec<String> =
        config.projects.keys().map(|project| format!("{ANY}.{project}.{}", config.base_domain)).collect();
    if wanted.is_empty() {
        wanted.push(format!("{ANY}.{}", config.base_domain));
    }
    wanted.extend(config.control_domain.as_ref().map(ToString::to_string));
    let answers = wanted.into_iter().map(async |name| {
        let found = resolves(&name).await;
        (name, found)
    });
    vec![judge_names(config.base_domain.as_str(), &join_all(answers).await)]
}

async fn resolves(name: &str) -> bool {
    match timeout(REACH_MAX, lookup_host((name, 80))).await {
        Ok(Ok(mut addresses)) => addresses.next().is_some(),
        Ok(Err(_)) | Err(_) => false,
    }
}

fn judge_names(base: &str, answers: &[(String, bool)]) -> Finding {
    let check = "dns";
    let lost: Vec<String> = answers.iter().filter(|(_, found)| !found).map(|(name, _)| format!("`{name}`")).collect();
    if lost.is_empty() {
        return Finding::ok(check, format!("names below `{base}` lead somewhere"));
    }
    Finding::warning(
        check,
        format!("no address for {}", lost.join(", ")),
        format!("point `*.{base}` and the control domain at this host, unless visitors find it some other way"),
    )
}

/// Checks that the projects' forges can be reached, each once.
pub(super) async fn forges(subject: &Subject) -> Vec<Finding> {
    let Ok(config) = &subject.config else { return Vec::new() };
    let mut forges = BTreeMap::<(String, u16), Vec<&ProjectName>>::new();
    for project in config.projects.values() {
        if let Some(address) = address(&project.repo_url) {
            forges.entry(address).or_default().push(&project.name);
        }
    }
    join_all(forges.into_iter().map(async |((host, port), projects)| {
        let reached = reach(&host, port).await;
        judge_forge(&host, port, &projects, reached)
    }))
    .await
}

async fn reach(host: &str, port: u16) -> Result<(), String> {
    match timeout(REACH_MAX, TcpStream::connect((host, port))).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(err)) => Err(err.to_string()),
        Err(_) => Err(format!("no answer within {} s", REACH_MAX.as_secs())),
    }
}

fn judge_forge(host: &str, port: u16, projects: &[&ProjectName], reached: Result<(), String>) -> Finding {
    let check = format!("forge {host}");
    match reached {
        Ok(()) => Finding::ok(&check, format!("port {port} answers")),
        Err(why) => {
            let projects = projects.iter().map(|project| format!("`{project}`")).collect::<Vec<_>>().join(", ");
            Finding::failure(
                &check,
                format!("port {port} cannot be reached: {why}; nothing of {projects} can be fetched"),
                "see that this host may connect to it, and that `repo_url` is right",
            )
        }
    }
}

/// Where a repository is fetched from: host and port; `None` for a directory of this machine's.
fn address(repo_url: &str) -> Option<(String, u16)> {
    let (usual, rest) = match repo_url.split_once("://") {
        Some(("https", rest)) => (443, rest),
        Some(("http", rest)) => (80, rest),
        Some(("ssh", rest)) => (22, rest),
        Some(_) => return None,
        // `git@host:path` has no port.
        None => return Some((repo_url.split_once('@')?.1.split_once(':')?.0.to_owned(), 22)),
    };
    let authority = rest.split('/').next().unwrap_or_default();
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    if let Some((host, port)) = host.strip_prefix('[').and_then(|host| host.split_once(']')) {
        return Some((host.to_owned(), port.strip_prefix(':').map_or(Some(usual), |port| port.parse().ok())?));
    }
    match host.rsplit_once(':') {
        Some((host, port)) => Some((host.to_owned(), port.parse().ok()?)),
        None => Some((host.to_owned(), usual)),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::super::finding::Level;
    use super::*;
    use crate::cli::failure::Exit;

    #[rstest]
    #[case("https://forge.example.com/me/x.git", Some(("forge.example.com", 443)))]
    #[case("http://127.0.0.1:3080/me/x.git", Some(("127.0.0.1", 3080)))]
    #[case("https://[::1]:8443/me/x.git", Some(("::1", 8443)))]
    #[case("https://[::1]/me/x.git", Some(("::1", 443)))]
    #[case("ssh://git@forge.example.com:2222/me/x.git", Some(("forge.example.com", 2222)))]
    #[case("ssh://forge.example.com/me/x.git", Some(("forge.example.com", 22)))]
    #[case("git@github.com:me/x.git", Some(("github.com", 22)))]
    #[case("file:///srv/git/x.git", None)]
    fn a_forge_is_asked_where_git_asks_it(#[case] url: &str, #[case] expected: Option<(&str, u16)>) {
        assert_eq!(address(url), expected.map(|(host, port)| (host.to_owned(), port)));
    }

    #[test]
    fn a_forge_that_is_away_is_named_with_what_needs_it() {
        let project: ProjectName = "shop".parse().unwrap();
        assert_eq!(judge_forge("h", 22, &[&project], Ok(())).level, Level::Ok);
        let found = judge_forge("h", 22, &[&project], Err("refused".to_owned()));
        assert!(found.level == Level::Failure && found.found.contains("`shop`"), "{found:?}");
    }

    #[test]
    fn names_that_lead_nowhere_are_a_warning() {
        let answers = |found| [("a.shop.example.com".to_owned(), true), ("kennel.example.com".to_owned(), found)];
        assert_eq!(judge_names("example.com", &answers(true)).level, Level::Ok);
        let found = judge_names("example.com", &answers(false));
        assert!(found.level == Level::Warning && found.found == "no address for `kennel.example.com`", "{found:?}");
    }

    #[test]
    fn a_daemon_that_is_away_is_told_with_what_helps() {
        assert_eq!(judge_daemon(Ok(Value::Null)).level, Level::Ok);
        let found = judge_daemon(Err(Failure::new(Exit::Unreachable, "cannot reach kennel").hint("start it")));
        assert_eq!(found, Finding::failure("kennel", "cannot reach kennel", "start it"));
    }
}
