//! What must not be there: before a test, anything; after it, anything that kennel should have given back.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ::http::Method;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, Row as _};

use super::{Lab, api, delivery, machine};

/// How long kennel may take to give everything back: longer than a drain of a test.
const GIVE_BACK_MAX: Duration = Duration::from_secs(20);

pub(super) const STATE: &str = "/var/lib/kennel";
pub(super) const PRIVATE: &str = "/var/lib/private/kennel";
pub(super) const RUN: &str = "/run/kennel";
pub(super) const UNITS: &str = "/run/systemd/system";

/// Ends and removes everything of kennel's, without kennel.
pub(super) async fn wipe() {
    let _ = machine::run("systemctl", &["kill", "--signal=KILL", "kennel.service"]).await;
    machine::ok("systemctl", &["stop", "kennel.service"]).await;
    let _ = machine::run("systemctl", &["reset-failed", "kennel.service"]).await;
    super::sockets::let_go().await;
    super::split::remove().await;
    if fs::remove_dir_all(Path::new(UNITS).join("kennel.service.d")).is_ok() {
        machine::ok("systemctl", &["daemon-reload"]).await;
    }
    let units = machine::own_units().await;
    if !units.is_empty() {
        let units: Vec<_> = units.iter().map(String::as_str).collect();
        let _ = machine::run("systemctl", &[&["kill", "--signal=KILL"], &units[..]].concat()).await;
        let _ = machine::run("systemctl", &[&["stop"], &units[..]].concat()).await;
        for unit in units {
            let _ = fs::remove_file(Path::new(UNITS).join(unit));
        }
        machine::ok("systemctl", &["daemon-reload"]).await;
        let _ = machine::run("systemctl", &["reset-failed"]).await;
    }
    for dir in [STATE, PRIVATE, RUN, "/etc/kennel"] {
        // The directory itself may be a mount.
        for name in machine::names(Path::new(dir)) {
            let path = Path::new(dir).join(name);
            let removed = match fs::symlink_metadata(&path) {
                Ok(found) if found.is_dir() => fs::remove_dir_all(&path),
                _ => fs::remove_file(&path),
            };
            removed.unwrap_or_else(|err| panic!("cannot remove {}: {err}", path.display()));
        }
    }
}

/// Has kennel tear down all there is: branches are deleted, pull requests closed, and what is left, the default
/// branch, is torn down as an operator does it.
pub(super) async fn tear_down(lab: &Lab) {
    for build in api::builds().await.iter().filter(|build| !build.has_ended()) {
        // It may end by itself at any moment.
        let _ = api::ask(Method::POST, &format!("/builds/{}/cancel", build.id)).await;
    }
    let mut branches: Vec<_> = api::builds().await.into_iter().map(|build| (build.project, build.branch)).collect();
    branches.sort();
    branches.dedup();
    for (project, branch) in branches {
        if branch == "main" || !lab.config.projects.iter().any(|spec| spec.name == project) {
            continue;
        }
        let delivery = match branch.strip_prefix("pr-").and_then(|number| number.parse().ok()) {
            Some(number) if lab.repo(&project).tip(&branch).is_none() => {
                let payload = delivery::pull_request(&project, "closed", number, &"0".repeat(40), false);
                lab.delivery(&project, "pull_request", &payload)
            }
            _ => lab.delivery(&project, "delete", &delivery::delete(&project, &branch)),
        };
        let answer = api::deliver(&delivery).await;
        assert!(answer.status.is_success(), "{}: {}", answer.status, answer.text());
    }
    let deployments: Vec<api::Deployment> = api::get("/deployments").await;
    for deployment in deployments.iter().filter(|deployment| deployment.branch == "main") {
        let answer = api::ask(Method::POST, &format!("/deployments/{}/teardown", deployment.id)).await;
        // 409: an older version of the same target has gone with it.
        assert!(matches!(answer.status.as_u16(), 202 | 409), "{}: {}", answer.status, answer.text());
    }
}

/// Waits until nothing is left.
pub(super) async fn expect_none() {
    let begun = Instant::now();
    loop {
        let left = find().await;
        if left.is_empty() {
            return;
        }
        let left = left.join("\n  ");
        assert!(begun.elapsed() < GIVE_BACK_MAX, "after everything was torn down there is still\n  {left}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Everything that is there and should not be, for people to read.
async fn find() -> Vec<String> {
    let mut left = Vec::new();
    let mut add = |what: &str, found: Vec<String>| left.extend(found.into_iter().map(|name| format!("{what} {name}")));
    add("unit", machine::own_units().await.into_iter().collect());
    add("environment file", machine::names(&Path::new(RUN).join("secrets")));
    for dir in ["gcroots", "work", "sites", "services"] {
        add(dir, files_below(&Path::new(STATE).join(dir)));
    }
    add("private data", files_below(&Path::new(PRIVATE).join("services")));
    let ports = machine::listening_ports().into_iter().filter(|port| (18000..20000).contains(port));
    add("listener on port", ports.map(|port| port.to_string()).collect());
    let build_user = machine::uid_of("kennel-build").await;
    let processes = machine::processes_of(|uid| machine::is_dynamic(uid) || uid == build_user);
    add("process", processes.into_iter().map(|process| format!("{process:?}")).collect());
    add("builder", machine::nix_builders().into_iter().map(|process| format!("{process:?}")).collect());
    for (what, query) in [
        ("row of a port", "select port from ports"),
        ("row of a Valkey number", "select number from valkey_numbers"),
        ("row of a PostgreSQL database", "select name from postgres_databases where state <> 'renamed'"),
        ("row of a target", "select tag from targets where gone_at is null"),
        ("row of a route", "select host from routes"),
        ("row of an open build", "select id from builds where state in ('queued', 'building')"),
        (
            "row of an open deployment",
            "select id from deployments where state in ('pending', 'starting', 'live', 'draining')",
        ),
    ] {
        add(what, rows(query).await);
    }
    left
}

/// Everything below a directory, directories included: kennel removes those it has emptied.
fn files_below(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut todo: Vec<PathBuf> = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for name in machine::names(&dir) {
            let path = dir.join(name);
            if fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir()) {
                todo.push(path.clone());
            }
            found.push(path.display().to_string());
        }
    }
    found
}

/// The first column of what kennel's database answers, numbers as text. It may not be null.
pub(crate) async fn rows(query: &'static str) -> Vec<String> {
    let options = SqliteConnectOptions::new().filename(super::split::database()).read_only(true);
    let mut connection = SqliteConnection::connect_with(&options).await.expect("kennel has a database");
    let rows = sqlx::query(query).fetch_all(&mut connection).await.unwrap_or_else(|err| panic!("{query}: {err}"));
    rows.iter().map(|row| row.try_get_unchecked(0).unwrap_or_else(|err| panic!("{query}: {err}"))).collect()
}

/// Changes kennel's rows behind its back, as the passing of time does; tells how many.
pub(crate) async fn change_rows(statement: &str) -> u64 {
    let options = SqliteConnectOptions::new().filename(super::split::database());
    let mut rows = SqliteConnection::connect_with(&options.busy_timeout(Duration::from_secs(5))).await.unwrap();
    let done = rows.execute(sqlx::raw_sql(AssertSqlSafe(statement.to_owned()))).await;
    done.unwrap_or_else(|err| panic!("{statement}: {err}")).rows_affected()
}

/// Prints what can be seen of a machine on which a test has failed: the end of it, where it is long.
#[expect(clippy::disallowed_methods, reason = "a destructor cannot wait for tokio")]
pub(super) fn show(cursor: &str) {
    const LINES: usize = 300;
    let after = format!("--after-cursor={cursor}");
    for command in [
        &["kennel", "builds"][..],
        &["kennel", "status"],
        &["systemctl", "list-units", "--all", "--no-pager", "--no-legend", "kennel*"],
        &["journalctl", "--priority=warning", "--no-pager", "--no-hostname", "--output=short-precise", &after],
        &["journalctl", "--no-pager", "--no-hostname", "--output=short-precise", &after],
    ] {
        let output = std::process::Command::new(command[0]).args(&command[1..]).output();
        println!("--- {}", command[..2].join(" "));
        match output {
            Ok(output) => {
                let text = format!("{}{}", machine::text(&output.stdout), machine::text(&output.stderr));
                let lines: Vec<_> = text.lines().collect();
                println!("{}\n", lines[lines.len().saturating_sub(LINES)..].join("\n"));
            }
            Err(err) => println!("{err}"),
        }
    }
}
