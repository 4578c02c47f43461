//! The fetch against real repositories and a real git server over http; over ssh it is tested in the lab.

use std::fs;
use std::time::{Duration, Instant};

use git2::{Oid, Repository};
use tempfile::TempDir;

use super::FetchReport;
use super::credentials::Credentials;
use super::fetch::run_with;
use super::testing::{Entry, GitServer, Worker, repository};

const TOKEN: &str = "tok-0123456789";

fn entries(content: &'static [u8]) -> [Entry<'static>; 1] {
    [("kennel.toml", 0o100_644, content)]
}

/// A forge with three commits on `main`; whether it gives any commit by its id.
fn forge(any_commit: &str) -> (TempDir, Vec<String>) {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("app.git");
    let ids = repository(&path, &[&entries(b"1"), &entries(b"2"), &entries(b"3")]);
    Repository::open(&path).unwrap().config().unwrap().set_str("uploadpack.allowAnySHA1InWant", any_commit).unwrap();
    (root, ids)
}

fn with_token(token: &str) -> Credentials {
    Credentials { token: Some(token.to_owned()), ..Credentials::default() }
}

fn fetch_from(url: &str, commit: &str, credentials: &Credentials) -> (TempDir, Worker, FetchReport) {
    let state = tempfile::tempdir().unwrap();
    let worker = Worker::new(&state, url, commit);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let report = run_with(&worker.dirs, &worker.job, &runtime, credentials).unwrap();
    (state, worker, report)
}

fn commits_in(worker: &Worker) -> usize {
    let checkout = Repository::open(worker.dirs.checkout()).unwrap();
    let mut count = 0;
    checkout
        .odb()
        .unwrap()
        .foreach(|oid| {
            count += usize::from(checkout.find_commit(*oid).is_ok());
            true
        })
        .unwrap();
    count
}

#[track_caller]
fn assert_fetched(worker: &Worker, report: &FetchReport, commits: usize) {
    assert!(matches!(report, FetchReport::Fetched { .. }), "{report:?}\n{}", worker.log("fetch"));
    assert_eq!(commits_in(worker), commits, "{}", worker.log("fetch"));
    let files: Vec<_> = fs::read_dir(worker.dirs.checkout()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(files, [".git"], "no work tree is made");
    let hooks = fs::read_dir(worker.dirs.checkout().join(".git/hooks")).unwrap();
    let hooks: Vec<_> = hooks.map(|entry| entry.unwrap().file_name()).collect();
    assert!(hooks.iter().all(|name| name == "README.sample"), "{hooks:?}");
}

fn reason_of(report: FetchReport) -> String {
    match report {
        FetchReport::Failed { reason } => reason,
        FetchReport::Fetched { .. } => panic!("it was fetched"),
    }
}

#[test]
fn a_forge_that_gives_commits_by_id_gives_only_that_one() {
    let (root, ids) = forge("true");
    let server = GitServer::new(root.path(), None);
    for id in &ids {
        let (_state, worker, report) = fetch_from(&format!("{}/app.git", server.url), id, &Credentials::default());
        assert_fetched(&worker, &report, 1);
    }
}

#[test]
fn a_plain_server_gives_the_branch_instead() {
    let (root, ids) = forge("false");
    let server = GitServer::new(root.path(), None);
    for id in &ids {
        let (_state, worker, report) = fetch_from(&format!("{}/app.git", server.url), id, &Credentials::default());
        assert_fetched(&worker, &report, 3);
    }
}

#[test]
fn a_commit_deep_in_a_branch_is_found() {
    let root = tempfile::tempdir().unwrap();
    let first = entries(b"x");
    let ids = repository(&root.path().join("app.git"), &[&first[..]; 60]);
    let server = GitServer::new(root.path(), None);
    let url = format!("{}/app.git", server.url);
    let (_state, worker, report) = fetch_from(&url, &ids[0], &Credentials::default());
    assert_fetched(&worker, &report, 60);
    assert!(worker.log("fetch").contains("BranchEnd: the forge does not give"), "{}", worker.log("fetch"));
}

#[test]
fn a_commit_that_was_pushed_away_is_fetched_by_the_git_command() {
    let (root, ids) = forge("false");
    let repository = Repository::open(root.path().join("app.git")).unwrap();
    let first = ids[0].parse::<Oid>().unwrap();
    repository.reference("refs/heads/main", first, true, "force").unwrap();
    let server = GitServer::new(root.path(), Some(TOKEN));
    let url = format!("{}/app.git", server.url);
    let (_state, worker, report) = fetch_from(&url, &ids[2], &with_token(TOKEN));
    assert_fetched(&worker, &report, 1);
}

#[test]
fn a_repository_on_this_machine_is_fetched_whole() {
    let (root, ids) = forge("false");
    let url = format!("file://{}/app.git", root.path().display());
    let (_state, worker, report) = fetch_from(&url, &ids[1], &Credentials::default());
    assert_fetched(&worker, &report, 3);
}

#[test]
fn an_unknown_commit_is_a_reason() {
    let (root, _) = forge("true");
    let server = GitServer::new(root.path(), None);
    let id = "0123456789".repeat(4);
    for url in [format!("{}/app.git", server.url), format!("file://{}/app.git", root.path().display())] {
        let (_state, _worker, report) = fetch_from(&url, &id, &Credentials::default());
        let reason = reason_of(report);
        assert!(reason.contains(&id), "{reason}");
    }
}

#[test]
fn an_object_that_is_no_commit_is_refused() {
    let (root, ids) = forge("true");
    let repository = Repository::open(root.path().join("app.git")).unwrap();
    let tree = repository.find_commit(ids[0].parse().unwrap()).unwrap().tree_id().to_string();
    let server = GitServer::new(root.path(), None);
    let (_state, _worker, report) = fetch_from(&format!("{}/app.git", server.url), &tree, &Credentials::default());
    let reason = reason_of(report);
    assert!(reason.contains("is a tree, not a commit"), "{reason}");
}

#[test]
fn a_private_repository_is_fetched_with_its_token() {
    let (root, ids) = forge("true");
    let server = GitServer::new(root.path(), Some(TOKEN));
    let url = format!("{}/app.git", server.url);
    let (_state, worker, report) = fetch_from(&url, &ids[1], &with_token(TOKEN));
    assert_fetched(&worker, &report, 1);
    let config = fs::read_to_string(worker.dirs.checkout().join(".git/config")).unwrap();
    assert!(!config.contains(TOKEN) && !worker.log("fetch").contains(TOKEN));
}

#[test]
fn a_wrong_token_is_tried_once_and_not_shown() {
    let (root, ids) = forge("true");
    let server = GitServer::new(root.path(), Some(TOKEN));
    let url = format!("{}/app.git", server.url);
    let (_state, worker, report) = fetch_from(&url, &ids[0], &with_token("wrong-secret"));
    assert_eq!(reason_of(report), "`127.0.0.1` refused the project's token");
    assert_eq!(server.refusals(), 2, "without it, then with it");
    assert!(!worker.log("fetch").contains("wrong-secret"));
    let (_state, _worker, report) = fetch_from(&url, &ids[0], &Credentials::default());
    assert_eq!(reason_of(report), "`127.0.0.1` wants a token, and the project has none");
}

#[test]
fn a_password_in_the_url_is_not_shown() {
    let (root, ids) = forge("true");
    let server = GitServer::new(root.path(), Some(TOKEN));
    let url = format!("{}/app.git", server.url.replace("http://", "http://x-access-token:hunter2@"));
    let (_state, worker, report) = fetch_from(&url, &ids[0], &Credentials::default());
    assert!(!reason_of(report).contains("hunter2") && !worker.log("fetch").contains("hunter2"));
}

#[test]
fn a_redirect_to_another_host_is_not_followed() {
    let (root, ids) = forge("true");
    let behind = GitServer::new(root.path(), None);
    let elsewhere = behind.url.replace("127.0.0.1", "localhost");
    let server = GitServer::redirecting(&elsewhere);
    let (_state, _worker, report) = fetch_from(&format!("{}/app.git", server.url), &ids[0], &with_token(TOKEN));
    let reason = reason_of(report);
    assert!(reason.contains("sends elsewhere"), "{reason}");
}

#[test]
fn a_token_is_not_sent_to_another_port_of_the_host() {
    let (root, ids) = forge("true");
    let behind = GitServer::new(root.path(), Some(TOKEN));
    let server = GitServer::redirecting(&behind.url);
    let (_state, _worker, report) = fetch_from(&format!("{}/app.git", server.url), &ids[0], &with_token(TOKEN));
    let reason = reason_of(report);
    assert!(reason.contains("sends elsewhere"), "{reason}");
}

#[test]
fn a_forge_that_does_not_answer_is_worth_another_try() {
    let state = tempfile::tempdir().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/app.git", listener.local_addr().unwrap());
    drop(listener);
    let worker = Worker::new(&state, &url, &"a".repeat(40));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let started = Instant::now();
    let err = run_with(&worker.dirs, &worker.job, &runtime, &Credentials::default()).unwrap_err();
    assert!(err.to_string().contains("cannot fetch from"), "{err:#}");
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_missing_repository_is_a_reason() {
    let (root, ids) = forge("true");
    let server = GitServer::new(root.path(), None);
    let (_state, _worker, report) = fetch_from(&format!("{}/no.git", server.url), &ids[0], &Credentials::default());
    let reason = reason_of(report);
    assert!(reason.contains("does not show this repository"), "{reason}");
}

#[test]
fn ssh_needs_pinned_host_keys() {
    let (_state, _worker, report) = fetch_from("git@127.0.0.1:a.git", &"a".repeat(40), &Credentials::default());
    let reason = reason_of(report);
    assert!(reason.contains("the host key of `127.0.0.1` is not pinned"), "{reason}");
}

#[test]
fn an_earlier_attempt_leaves_nothing_behind() {
    let (root, ids) = forge("true");
    let url = format!("file://{}/app.git", root.path().display());
    let state = tempfile::tempdir().unwrap();
    let worker = Worker::new(&state, &url, &ids[0]);
    let stale = worker.dirs.checkout().join(".git/hooks");
    fs::create_dir_all(&stale).unwrap();
    fs::write(stale.join("post-checkout"), "#!/bin/sh\ntouch /tmp/pwned\n").unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let report = run_with(&worker.dirs, &worker.job, &runtime, &Credentials::default()).unwrap();
    assert_fetched(&worker, &report, 3);
}
