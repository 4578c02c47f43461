//! The API as its clients meet it: over real sockets, on a real store.

mod access;
mod acts;
mod logs;
mod requests;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use axum::body::Body;
use axum::extract::ConnectInfo;
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
            metrics: Arc::new(|| "kennel_routes 0\n".to_owned()),
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
