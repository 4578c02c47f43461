//! The API as its clients meet it: over real sockets, on a real store.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, Request};
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::task::JoinSet;

use super::*;
use crate::host::fake::{FakeBuild, FakeMachine};
use crate::model::{BranchRef, BuildId, Environment};
use crate::store::{Accepted, BuildOutcome, ClaimedBuild, Delivery, NewArtifact, Push, RunId};

const NOBODY: &str = "65534";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const OTHER: &str = "fedcba9876543210fedcba9876543210fedcba98";

/// A daemon's API without the daemon.
struct Harness {
    api: Api,
    tcp: SocketAddr,
    unix: PathBuf,
    run: RunId,
    _servers: JoinSet<()>,
    dir: tempfile::TempDir,
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|err| panic!("{err}: {}", self.text))
    }
}

impl Harness {
    async fn new() -> Self {
        Self::with(Access { token: None, group: "no-such-group".to_owned(), control_domain: None }).await
    }

    async fn with(access: Access) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let text = format!(
            "base_domain = \"example.com\"\nstate_dir = \"{0}\"\n[router]\nhttp = \"0.0.0.0:8080\"\n\
             [projects.hello]\nrepo_url = \"https://forge.example.com/me/hello.git\"\nrepo_type = \"forgejo\"\n\
             webhook_secret_file = \"{0}/secret\"\n",
            dir.path().display()
        );
        let config = crate::config::parse(&text).unwrap();
        let store = Store::open(&dir.path().join("kennel.db")).await.unwrap();
        store.note_projects(config.projects.keys()).await.unwrap();
        let api = Api {
            store,
            machine: Arc::new(FakeMachine::new(|_| FakeBuild::default())),
            config: Arc::new(ArcSwap::from_pointee(config)),
            logs: dir.path().join("logs"),
            access: Arc::new(access),
            builder: Bell::default(),
            deployer: Bell::default(),
            shutdown: CancellationToken::new(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = listener.local_addr().unwrap();
        let unix = dir.path().join("kennel.sock");
        let unix_listener = listen_unix(&unix, "no-such-group").unwrap();
        let mut servers = JoinSet::new();
        let (app, shutdown) = (router(api.clone()), api.shutdown.clone());
        servers.spawn(serve_unix(unix_listener, app.clone(), shutdown.clone()));
        servers.spawn(async move { serve_tcp(listener, app, shutdown).await.unwrap() });
        Self { api, tcp, unix, run: RunId::fresh(), _servers: servers, dir }
    }

    async fn push(&self, branch: &str, commit: &str, delivery: Option<&str>) -> BuildId {
        let push = Push {
            project: "hello".parse().unwrap(),
            branch: branch.parse::<BranchRef>().unwrap(),
            commit: commit.parse().unwrap(),
            title: Some(format!("About {}", &commit[..7])),
            environment: Environment::Dev,
        };
        let delivery = delivery.map(|id| Delivery { id: id.parse().unwrap(), event: "push".to_owned() });
        match self.api.store.accept_push(delivery.as_ref(), &push).await.unwrap() {
            Accepted::Queued(build) => build,
            other => panic!("{other:?}"),
        }
    }

    async fn claim(&self) -> ClaimedBuild {
        self.api.store.claim_build(&self.run).await.unwrap().unwrap()
    }

    /// Ends a build with one site built.
    async fn finish(&self, build: &ClaimedBuild) {
        let settings = json!({ "kind": "site", "flake_output": "web", "spa": false, "custom_domain": null });
        let settings = serde_json::from_value(settings).unwrap();
        let path = "/nix/store/00000000000000000000000000000000-web".parse().unwrap();
        let name: crate::model::ServiceName = "web".parse().unwrap();
        let artifact = NewArtifact { name: name.clone(), settings, result: Ok((path, None)), nix_ms: 7 };
        self.api.store.record_artifact(build, &artifact).await.unwrap();
        let targets = [(name, artifact.settings)].into();
        let manifest = crate::model::settings::Manifest { targets, cachix: None };
        let outcome = BuildOutcome::Finished(manifest);
        self.api.store.finish_build(build, &"example.com".parse().unwrap(), &outcome).await.unwrap();
    }

    fn write_log(&self, build: BuildId, name: &str, text: &str) {
        let dir = self.api.logs.join(build.to_string());
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(name), text).unwrap();
    }

    async fn tcp(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        ask(TcpStream::connect(self.tcp).await.unwrap(), method, path, headers, body).await
    }

    async fn get(&self, path: &str) -> Answer {
        ask(UnixStream::connect(&self.unix).await.unwrap(), "GET", path, &[("host", "x")], "").await
    }

    async fn post(&self, path: &str, body: Value) -> Answer {
        let headers = [("host", "x"), ("content-type", "application/json")];
        let body = if body.is_null() { String::new() } else { body.to_string() };
        ask(UnixStream::connect(&self.unix).await.unwrap(), "POST", path, &headers, &body).await
    }
}

async fn send(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> (axum::http::Response<hyper::body::Incoming>, JoinSet<()>) {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let mut driver = JoinSet::new();
    driver.spawn(async move { drop(connection.await) });
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = sender.send_request(request.body(Body::from(body.to_owned())).unwrap()).await.unwrap();
    (response, driver)
}

async fn ask(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Answer {
    let (response, _driver) = send(stream, method, path, headers, body).await;
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Answer { status: parts.status.as_u16(), headers: parts.headers, text: String::from_utf8(body.to_vec()).unwrap() }
}

/// The status curl gets as this user, or `None` where users cannot be changed.
async fn curl_as(user: &str, arguments: &[&str]) -> Option<String> {
    if !nix::unistd::Uid::effective().is_root() {
        return None;
    }
    let output = tokio::process::Command::new("setpriv")
        .args([&format!("--reuid={user}"), &format!("--regid={user}"), "--clear-groups"])
        .args(["curl", "--silent", "--output", "/dev/null", "--write-out", "%{http_code}", "--noproxy", "*"])
        .args(arguments)
        .output()
        .await
        .ok()?;
    Some(String::from_utf8(output.stdout).unwrap())
}

const LOCAL: [(&str, &str); 1] = [("host", "localhost")];

#[tokio::test]
async fn a_deploy_without_a_commit_builds_what_was_pushed_last() {
    let harness = Harness::new().await;
    harness.push("heads/main", COMMIT, Some("d1")).await;
    harness.push("heads/main", OTHER, None).await;
    let answer = harness.post("/projects/hello/deploy", json!({ "branch": "main" })).await;
    assert_eq!((answer.status, answer.json()["build"].as_i64()), (202, Some(3)), "{}", answer.text);
    assert_eq!(answer.json()["commit"], COMMIT, "an operator's own choice is not what was pushed");
    assert!(tokio::time::timeout(Duration::from_secs(1), harness.api.builder.rung()).await.is_ok());
    let build = harness.get("/builds/3").await.json();
    assert_eq!((&build["state"], &build["title"]), (&json!("queued"), &json!("About 0123456")));
    assert_eq!(build["environment"], "prod");
}

#[tokio::test]
async fn a_deploy_takes_a_commit_by_its_first_digits() {
    let harness = Harness::new().await;
    harness.push("heads/feature/x", COMMIT, Some("d1")).await;
    let deploy = async |branch: &str, commit: &str| {
        harness.post("/projects/hello/deploy", json!({ "branch": branch, "commit": commit })).await
    };
    assert_eq!(deploy("feature/x", "0123456").await.json()["commit"], COMMIT);
    assert_eq!(deploy("feature/x", OTHER).await.json()["commit"], OTHER);
    assert_eq!(deploy("feature/x", &OTHER[..9]).await.json()["commit"], OTHER);
    assert_eq!(deploy("feature/x", "aaaaaaa").await.status, 404);
    assert_eq!(deploy("feature/x", "012345").await.status, 400, "too short");
    assert_eq!(deploy("feature/x", "--upload-pack=x").await.status, 400);
    assert_eq!(deploy("new", "0123456").await.status, 404, "of another branch");
    assert_eq!(deploy("new", OTHER).await.json()["branch"], "new");
    assert_eq!(deploy("a..b", OTHER).await.status, 400);
    assert_eq!(deploy("pr-7", OTHER).await.status, 202);
    let branches = harness.api.store.known_branches(&"hello".parse().unwrap()).await.unwrap();
    assert!(branches.iter().any(|known| known.branch.as_str() == "pull/7"));
}

#[tokio::test]
async fn a_branch_that_shares_its_name_with_a_pull_request_must_be_told_apart() {
    let harness = Harness::new().await;
    harness.push("heads/pr-7", COMMIT, Some("d1")).await;
    harness.push("pull/7", OTHER, Some("d2")).await;
    let deploy = async |branch: &str| harness.post("/projects/hello/deploy", json!({ "branch": branch })).await;
    let answer = deploy("pr-7").await;
    assert_eq!(answer.status, 409);
    assert_eq!(answer.json()["hint"], "say `heads/pr-7` or `pull/7`");
    assert_eq!(deploy("heads/pr-7").await.json()["commit"], COMMIT);
    assert_eq!(deploy("pull/7").await.json()["commit"], OTHER);
}

#[tokio::test]
async fn a_deploy_of_what_is_not_there_says_what_is() {
    let harness = Harness::new().await;
    harness.push("heads/main", COMMIT, Some("d1")).await;
    let answer = harness.post("/projects/helo/deploy", json!({ "branch": "main" })).await;
    assert_eq!(answer.headers["content-type"], "application/problem+json");
    insta::assert_snapshot!(answer.text, @r#"{"type":"about:blank","title":"Not Found","status":404,"detail":"There is no project `helo`.","hint":"the projects are `hello`"}"#);
    let answer = harness.post("/projects/hello/deploy", json!({ "branch": "mian" })).await;
    insta::assert_snapshot!(answer.text, @r#"{"type":"about:blank","title":"Not Found","status":404,"detail":"There was no push to `mian` of `hello`.","hint":"push to it, or name the commit; there were pushes to `main`"}"#);
    harness.api.store.note_projects([&"gone".parse().unwrap()]).await.unwrap();
    let answer = harness.post("/projects/gone/deploy", json!({ "branch": "main" })).await;
    insta::assert_snapshot!(answer.text, @r#"{"type":"about:blank","title":"Conflict","status":409,"detail":"Project `gone` is no longer in the daemon's file.","hint":"add it there again, then `systemctl reload kennel`"}"#);
    let removal = crate::store::Removal {
        project: "hello".parse().unwrap(),
        branch: "heads/main".parse().unwrap(),
        reason: "branch deleted".to_owned(),
    };
    harness.api.store.accept_removal(None, &removal).await.unwrap();
    let answer = harness.post("/projects/hello/deploy", json!({ "branch": "main" })).await;
    assert_eq!(answer.status, 409, "{}", answer.text);
    let answer = harness.post("/projects/hello/deploy", json!({ "branch": "main", "commit": COMMIT })).await;
    assert_eq!(answer.status, 202, "{}", answer.text);
}

#[tokio::test]
async fn a_build_is_cancelled_once() {
    let harness = Harness::new().await;
    let queued = harness.push("heads/main", COMMIT, Some("d1")).await;
    let answer = harness.post(&format!("/builds/{queued}/cancel"), Value::Null).await;
    assert_eq!((answer.status, answer.json()), (202, json!({ "build": 1, "state": "cancelled" })));
    let answer = harness.post(&format!("/builds/{queued}/cancel"), Value::Null).await;
    insta::assert_snapshot!(answer.text, @r#"{"type":"about:blank","title":"Conflict","status":409,"detail":"Build 1 has ended already: it is `cancelled`."}"#);
    let answer = harness.post("/builds/99/cancel", Value::Null).await;
    insta::assert_snapshot!(answer.text, @r#"{"type":"about:blank","title":"Not Found","status":404,"detail":"There is no build 99.","hint":"`kennel builds` lists them"}"#);

    let running = harness.push("heads/main", OTHER, Some("d2")).await;
    let claimed = harness.claim().await;
    let answer = harness.post(&format!("/builds/{running}/cancel"), Value::Null).await;
    assert_eq!((answer.status, answer.json()), (202, json!({ "build": 2, "state": "building" })));
    assert!(tokio::time::timeout(Duration::from_secs(1), harness.api.builder.rung()).await.is_ok());
    let path = format!("/builds/{running}/cancel?wait=1");
    let (answer, ()) = tokio::join!(harness.post(&path, Value::Null), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let domain = "example.com".parse().unwrap();
        harness.api.store.finish_build(&claimed, &domain, &BuildOutcome::Cancelled).await.unwrap();
    });
    assert_eq!((answer.status, answer.json()), (202, json!({ "build": 2, "state": "cancelled" })));
}

#[tokio::test]
async fn builds_deployments_and_projects_are_shown() {
    let harness = Harness::new().await;
    harness.push("heads/main", COMMIT, Some("d1")).await;
    harness.finish(&harness.claim().await).await;
    harness.push("heads/main", OTHER, Some("d2")).await;
    let builds = harness.get("/builds?project=hello").await.json();
    assert_eq!(builds.as_array().unwrap().iter().map(|b| b["id"].as_i64().unwrap()).collect::<Vec<_>>(), [2, 1]);
    assert_eq!(harness.get("/builds?current=1").await.json().as_array().unwrap().len(), 1);
    assert_eq!(harness.get("/builds?limit=1").await.json().as_array().unwrap().len(), 1);
    let build = harness.get("/builds/1").await.json();
    assert_eq!(build["artifacts"][0]["state"], "built");
    assert_eq!(build["deployments"][0]["url"], "http://web-main.hello.example.com:8080");
    let deployment = harness.get("/deployments/1").await.json();
    assert_eq!((&deployment["state"], &deployment["events"]), (&json!("pending"), &json!([])));
    assert_eq!(harness.get("/deployments").await.json()[0]["service"], "web");
    let projects = harness.get("/projects").await.json();
    assert_eq!(projects, json!([{ "name": "hello", "configured": true, "targets": 1, "open_builds": 1 }]));
    for path in ["/builds?project=none", "/deployments?project=none", "/builds/9", "/deployments/9"] {
        assert_eq!(harness.get(path).await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn a_target_is_torn_down_by_one_of_its_deployments() {
    let harness = Harness::new().await;
    harness.push("heads/main", COMMIT, Some("d1")).await;
    harness.finish(&harness.claim().await).await;
    let answer = harness.post("/deployments/1/teardown", Value::Null).await;
    let told = json!({ "deployment": 1, "project": "hello", "branch": "main", "service": "web" });
    assert_eq!((answer.status, answer.json()), (202, told));
    assert!(tokio::time::timeout(Duration::from_secs(1), harness.api.deployer.rung()).await.is_ok());
    assert_eq!(harness.api.store.due_teardowns().await.unwrap().len(), 1);
    assert_eq!(harness.post("/deployments/2/teardown", Value::Null).await.status, 404);
    harness.api.store.skip_deployment(1.into(), "the same").await.unwrap();
    let ended = "/deployments/1/teardown";
    assert_eq!(harness.post(ended, Value::Null).await.status, 202, "its target has no other that could be meant");
    harness.push("heads/main", OTHER, Some("d2")).await;
    harness.finish(&harness.claim().await).await;
    assert_eq!(harness.post(ended, Value::Null).await.status, 409, "it does not speak for the newer one");
}

#[tokio::test]
async fn logs_are_listed_and_read() {
    let harness = Harness::new().await;
    let build = harness.push("heads/main", COMMIT, Some("d1")).await;
    assert_eq!(harness.get("/builds/1/logs").await.json(), json!([]));
    harness.write_log(build, "api.log", "one\ntwo\n");
    harness.write_log(build, "fetch.log", "");
    harness.write_log(build, "notes.txt", "not a log");
    let logs = json!([{ "name": "fetch", "bytes": 0 }, { "name": "api", "bytes": 8 }]);
    assert_eq!(harness.get("/builds/1/logs").await.json(), logs);
    let answer = harness.get("/builds/1/logs/api").await;
    assert_eq!((answer.status, answer.text.as_str()), (200, "one\ntwo\n"));
    assert_eq!(answer.headers["content-type"], "text/plain; charset=utf-8");
    let answer = harness.get("/builds/1/logs/web").await;
    insta::assert_snapshot!(answer.text, @r#"{"type":"about:blank","title":"Not Found","status":404,"detail":"Build 1 has no log of `web`.","hint":"it has `fetch`, `api`"}"#);
    assert_eq!(harness.get("/builds/1/logs/..%2F..%2Fkennel").await.status, 400);
    assert_eq!(harness.get("/builds/2/logs/api").await.status, 404);
}

#[tokio::test]
async fn what_a_build_put_in_place_of_a_log_is_not_opened() {
    let harness = Harness::new().await;
    let build = harness.push("heads/main", COMMIT, Some("d1")).await;
    harness.write_log(build, "api.log", "");
    let dir = harness.api.logs.join(build.to_string());
    std::fs::write(harness.dir.path().join("secret"), "s3cret").unwrap();
    std::os::unix::fs::symlink(harness.dir.path().join("secret"), dir.join("link.log")).unwrap();
    nix::unistd::mkfifo(&dir.join("pipe.log"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::fs::create_dir(dir.join("dir.log")).unwrap();
    for name in ["link", "pipe", "dir"] {
        assert_eq!(harness.get(&format!("/builds/1/logs/{name}")).await.status, 404, "{name}");
    }
    assert_eq!(harness.get("/builds/1/logs").await.json(), json!([{ "name": "api", "bytes": 0 }]));
}

#[tokio::test]
async fn a_followed_log_ends_with_its_build_and_holds_all_of_it() {
    let harness = Harness::new().await;
    harness.push("heads/main", COMMIT, Some("d1")).await;
    let build = harness.claim().await;
    let follow = harness.get("/builds/1/logs/api?follow=1");
    let work = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        harness.write_log(build.id, "api.log", "one\n");
        tokio::time::sleep(Duration::from_millis(300)).await;
        harness.write_log(build.id, "api.log", &format!("one\ntwo\n{}", "x".repeat(100_000)));
        harness.finish(&build).await;
    };
    let (answer, ()) = tokio::join!(follow, work);
    assert!(answer.text.starts_with("one\ntwo\n"));
    assert_eq!(answer.text.len(), 100_008);
    assert_eq!(harness.get("/builds/1/logs/api?follow=1").await.text, answer.text, "and of one that has ended");
}

#[tokio::test]
async fn a_follower_sees_lines_as_they_come_and_a_break_when_kennel_stops() {
    let harness = Harness::new().await;
    harness.push("heads/main", COMMIT, Some("d1")).await;
    let build = harness.claim().await;
    harness.write_log(build.id, "api.log", "one\n");
    let stream = UnixStream::connect(&harness.unix).await.unwrap();
    let (response, _driver) = send(stream, "GET", "/builds/1/logs/api?follow", &[("host", "x")], "").await;
    let mut body = response.into_body();
    let line = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(line, "one\n", "while the build still runs");
    harness.api.shutdown.cancel();
    let end = tokio::time::timeout(Duration::from_secs(3), body.frame()).await.unwrap();
    assert!(matches!(end, Some(Err(_))), "a log that breaks off must not look as if it had ended");
}

#[tokio::test]
async fn bad_requests_get_problems_that_name_what_is_wrong() {
    let harness = Harness::new().await;
    let mut told = String::new();
    for path in ["/", "/builds/x", "/builds/-1", "/builds/99999999999999999999", "/builds?limit=0", "/builds?color=red"]
    {
        let answer = harness.get(path).await;
        assert_eq!(answer.headers["content-type"], "application/problem+json", "{path}");
        told += &format!("{path} {} {}\n", answer.status, answer.json()["detail"].as_str().unwrap());
    }
    let bodies = ["{", "{}", "{\"branch\": \"main\", \"force\": true}", "{\"branch\": 7}"];
    for body in bodies {
        let stream = UnixStream::connect(&harness.unix).await.unwrap();
        let headers = [("host", "x"), ("content-type", "application/json")];
        let answer = ask(stream, "POST", "/projects/hello/deploy", &headers, body).await;
        told += &format!("{body} {} {}\n", answer.status, answer.json()["detail"].as_str().unwrap());
    }
    insta::assert_snapshot!(told, @r#"
    / 404 There is nothing at `/`.
    /builds/x 400 "x" is not the number of a build.
    /builds/-1 400 "-1" is not the number of a build.
    /builds/99999999999999999999 400 "99999999999999999999" is not the number of a build.
    /builds?limit=0 400 The query is wrong: limit: "0" is not a number from 1 to 10000.
    /builds?color=red 400 The query is wrong: color: unknown field `color`, expected one of `project`, `current`, `limit`.
    { 400 The body is wrong: EOF while parsing an object at line 1 column 1.
    {} 400 The body is wrong: missing field `branch` at line 1 column 2.
    {"branch": "main", "force": true} 400 The body is wrong: unknown field `force`, expected `branch` or `commit` at line 1 column 26.
    {"branch": 7} 400 The body is wrong: invalid type: integer `7`, expected a string at line 1 column 12.
    "#);
    let answer = harness.post("/projects/hello/deploy", json!({ "branch": "x".repeat(70_000) })).await;
    assert_eq!(answer.status, 413);
    let stream = UnixStream::connect(&harness.unix).await.unwrap();
    let answer = ask(stream, "POST", "/projects/hello/deploy", &[("host", "x")], "{}").await;
    assert_eq!(answer.status, 415);
    let answer = harness.post("/builds", Value::Null).await;
    assert_eq!((answer.status, &answer.headers["allow"]), (405, &"GET,HEAD".parse().unwrap()));
    assert_eq!(answer.json()["status"], 405);
    assert_eq!(harness.get("/builds/1/cancel").await.status, 405);
}

#[tokio::test]
async fn the_health_page_is_for_everybody() {
    let harness = Harness::new().await;
    assert_eq!(harness.tcp("GET", "/healthz", &[("host", "anything")], "").await.json(), json!({ "status": "ok" }));
    if let Some(status) = curl_as(NOBODY, &[&format!("http://{}/healthz", harness.tcp)]).await {
        assert_eq!(status, "200");
    }
    harness.api.store.close().await;
    assert_eq!(harness.tcp("GET", "/healthz", &LOCAL, "").await.status, 503);
}

#[tokio::test]
async fn a_local_peer_passes_by_its_sockets_owner_alone() {
    let harness = Harness::new().await;
    let builds = format!("http://{}/builds", harness.tcp);
    if nix::unistd::Uid::effective().is_root() {
        assert_eq!(harness.tcp("GET", "/builds", &LOCAL, "").await.status, 200);
        assert_eq!(curl_as(NOBODY, &[&builds]).await.as_deref(), Some("403"));
        let cancel = format!("http://{}/builds/1/cancel", harness.tcp);
        assert_eq!(curl_as(NOBODY, &["--request", "POST", &cancel]).await.as_deref(), Some("403"));
        assert_eq!(curl_as("0", &["--request", "POST", &cancel]).await.as_deref(), Some("404"), "allowed, not there");
    } else {
        assert_eq!(harness.tcp("GET", "/builds", &LOCAL, "").await.status, 403);
    }
}

#[tokio::test]
async fn a_member_of_the_group_passes() {
    let Ok(Some(user)) = nix::unistd::User::from_uid(65_534.into()) else { return };
    let Ok(Some(group)) = nix::unistd::Group::from_gid(user.gid) else { return };
    let harness = Harness::with(Access { token: None, group: group.name, control_domain: None }).await;
    if let Some(status) = curl_as(NOBODY, &[&format!("http://{}/builds", harness.tcp)]).await {
        assert_eq!(status, "200");
    }
}

#[tokio::test]
async fn a_token_passes_for_whoever_holds_it() {
    let token = Some(SecretString::from("s3cret"));
    let access = Access { token, group: "no-such-group".to_owned(), control_domain: None };
    let harness = Harness::with(access).await;
    let builds = format!("http://{}/builds", harness.tcp);
    if let Some(status) = curl_as(NOBODY, &["--header", "Authorization: Bearer s3cret", &builds]).await {
        assert_eq!(status, "200");
        let wrong = ["--header", "Authorization: Bearer wrong", &builds];
        assert_eq!(curl_as(NOBODY, &wrong).await.as_deref(), Some("401"));
        assert_eq!(curl_as("0", &wrong).await.as_deref(), Some("401"), "a wrong token counts, whoever sends it");
        assert_eq!(curl_as(NOBODY, &[&builds]).await.as_deref(), Some("403"));
    }
}

#[tokio::test]
async fn the_unix_socket_asks_the_kernel_who_is_there() {
    use std::os::unix::fs::PermissionsExt as _;

    let harness = Harness::new().await;
    let mode = std::fs::metadata(&harness.unix).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "there is no group, so it is root's alone");
    assert_eq!(harness.get("/builds").await.status, 200);
    for path in [harness.dir.path(), &harness.unix] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    let socket = harness.unix.display().to_string();
    if let Some(status) = curl_as(NOBODY, &["--unix-socket", &socket, "http://x/builds"]).await {
        assert_eq!(status, "403");
    }
}

#[test]
fn the_unix_socket_belongs_to_the_group() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    let Ok(Some(group)) = nix::unistd::Group::from_gid(nix::unistd::Gid::effective()) else { return };
    let dir = tempfile::tempdir().unwrap();
    let path: &Path = &dir.path().join("kennel.sock");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _inside = runtime.enter();
    drop(listen_unix(path, &group.name).unwrap());
    let _second = listen_unix(path, &group.name).expect("one left over is replaced");
    let metadata = std::fs::metadata(path).unwrap();
    assert_eq!((metadata.permissions().mode() & 0o777, metadata.gid()), (0o660, group.gid.as_raw()));
}

#[tokio::test]
async fn a_web_page_cannot_use_the_operators_rights() {
    if !nix::unistd::Uid::effective().is_root() {
        return;
    }
    let harness = Harness::new().await;
    let rebound = [("host", "evil.example.com:3000")];
    assert_eq!(harness.tcp("GET", "/builds", &rebound, "").await.status, 403);
    assert_eq!(harness.tcp("GET", "/builds", &[], "").await.status, 403, "no Host at all");
    let page = [("host", "127.0.0.1:3000"), ("origin", "http://api-main.hello.example.com")];
    assert_eq!(harness.tcp("POST", "/builds/1/cancel", &page, "").await.status, 403);
    let origin_null = [("host", "127.0.0.1:3000"), ("origin", "null")];
    assert_eq!(harness.tcp("POST", "/builds/1/cancel", &origin_null, "").await.status, 403);
    assert_eq!(harness.tcp("POST", "/builds/1/cancel", &LOCAL, "").await.status, 404, "curl sends no Origin");
}

#[tokio::test]
async fn whom_nobody_vouches_for_comes_from_outside() {
    use tower::ServiceExt as _;

    let harness = Harness::new().await;
    for path in ["/builds", "/nowhere", "/builds/1/cancel"] {
        let request = Request::builder().uri(path).body(Body::empty()).unwrap();
        let response = router(harness.api.clone()).oneshot(request).await.unwrap();
        assert_eq!(response.status().as_u16(), 403, "{path}");
    }
}

#[tokio::test]
async fn routes_of_others_can_be_merged_and_are_not_guarded() {
    use tower::ServiceExt as _;

    let harness = Harness::new().await;
    let webhook = Router::new().route("/webhook/{project}", post(async || "open"));
    let app = router(harness.api.clone()).merge(webhook);
    let request = Request::builder().method("POST").uri("/webhook/hello").body(Body::empty()).unwrap();
    assert_eq!(app.oneshot(request).await.unwrap().status().as_u16(), 200);
}
