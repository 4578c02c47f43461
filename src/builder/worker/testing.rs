//! What the worker's tests share: a build's directories, real git repositories, a real git server over http.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Response, StatusCode, header};
use axum::routing::any;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use git2::{Oid, Repository, Signature};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use super::Dirs;
use crate::host::BuildJob;
use crate::model::BuildId;

/// A job for the commit of a repository.
pub(super) fn job(repo_url: &str, commit: &str) -> BuildJob {
    BuildJob {
        build: BuildId(1),
        project: "p".parse().unwrap(),
        repo_url: repo_url.to_owned(),
        remote_ref: "refs/heads/main".to_owned(),
        commit: commit.parse().unwrap(),
        allowed_uris: Vec::new(),
        allow_ifd: false,
        max_parallel: 2,
        log_limit_bytes: 1 << 20,
        timeout_secs: 20,
    }
}

/// Build 1, as the daemon prepares it.
pub(super) struct Worker {
    pub(super) dirs: Dirs,
    pub(super) job: BuildJob,
}

impl Worker {
    pub(super) fn new(state: &TempDir, repo_url: &str, commit: &str) -> Self {
        let dirs = Dirs::new(BuildId(1), state.path());
        fs::create_dir_all(&dirs.work).unwrap();
        fs::create_dir_all(&dirs.logs).unwrap();
        let job = job(repo_url, commit);
        fs::write(dirs.work.join("job.json"), serde_json::to_vec(&job).unwrap()).unwrap();
        Self { dirs, job }
    }

    pub(super) fn log(&self, name: &str) -> String {
        fs::read_to_string(self.dirs.log(name)).unwrap()
    }
}

/// An entry of a commit's tree: path, git's file mode, content (for a submodule, a commit's id).
pub(super) type Entry<'a> = (&'a str, i32, &'a [u8]);

/// A bare repository whose branch `main` has a commit for each list of entries; gives the commits' ids.
pub(super) fn repository(at: &Path, commits: &[&[Entry<'_>]]) -> Vec<String> {
    let repository = Repository::init_bare(at).unwrap();
    let who = Signature::now("tester", "tester@example.com").unwrap();
    let mut parent: Option<Oid> = None;
    let mut ids = Vec::new();
    for (n, entries) in commits.iter().enumerate() {
        let mut tree = repository.treebuilder(None).unwrap();
        for (name, mode, content) in *entries {
            let oid = match mode {
                0o160_000 => Oid::from_bytes(content).unwrap(),
                0o040_000 => repository.treebuilder(None).unwrap().write().unwrap(),
                _ => repository.blob(content).unwrap(),
            };
            tree.insert(name, oid, *mode).unwrap();
        }
        let tree = repository.find_tree(tree.write().unwrap()).unwrap();
        let parents: Vec<_> = parent.iter().map(|&oid| repository.find_commit(oid).unwrap()).collect();
        let parents: Vec<_> = parents.iter().collect();
        let message = format!("commit {n}");
        let oid = repository.commit(Some("refs/heads/main"), &who, &who, &message, &tree, &parents).unwrap();
        parent = Some(oid);
        ids.push(oid.to_string());
    }
    ids
}

/// `git http-backend` behind a real socket, as a forge has it.
pub(super) struct GitServer {
    pub(super) url: String,
    _runtime: Runtime,
    shared: Arc<Shared>,
    _serving: JoinSet<()>,
}

struct Shared {
    root: PathBuf,
    token: Option<String>,
    redirect: Option<String>,
    refusals: AtomicUsize,
}

impl GitServer {
    /// Serves the repositories below `root`; with a token, only to those who show it.
    pub(super) fn new(root: &Path, token: Option<&str>) -> Self {
        Self::start(root, token, None)
    }

    /// Sends everybody elsewhere.
    pub(super) fn redirecting(to: &str) -> Self {
        Self::start(Path::new("/nonexistent"), None, Some(to.to_owned()))
    }

    fn start(root: &Path, token: Option<&str>, redirect: Option<String>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let token = token.map(str::to_owned);
        let shared = Arc::new(Shared { root: root.to_owned(), token, redirect, refusals: AtomicUsize::new(0) });
        let app = Router::new().fallback(any(serve)).with_state(shared.clone());
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let mut serving = JoinSet::new();
        serving.spawn_on(async move { axum::serve(listener, app).await.unwrap() }, runtime.handle());
        Self { url, _runtime: runtime, shared, _serving: serving }
    }

    /// How often somebody was sent away for want of the token.
    pub(super) fn refusals(&self) -> usize {
        self.shared.refusals.load(Ordering::Relaxed)
    }
}

async fn serve(State(shared): State<Arc<Shared>>, request: Request) -> Response<axum::body::Body> {
    let (parts, body) = request.into_parts();
    let answer = |status: StatusCode| Response::builder().status(status);
    if let Some(to) = &shared.redirect {
        let location = format!("{to}{}", parts.uri);
        return answer(StatusCode::MOVED_PERMANENTLY).header(header::LOCATION, location).body("".into()).unwrap();
    }
    if let Some(token) = &shared.token {
        let expected = format!("Basic {}", BASE64_STANDARD.encode(format!("x-access-token:{token}")));
        if parts.headers.get(header::AUTHORIZATION).is_none_or(|given| given.as_bytes() != expected.as_bytes()) {
            shared.refusals.fetch_add(1, Ordering::Relaxed);
            let wants = "Basic realm=\"git\"";
            return answer(StatusCode::UNAUTHORIZED).header(header::WWW_AUTHENTICATE, wants).body("".into()).unwrap();
        }
    }
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let header = |headers: &HeaderMap, name| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
    let environment = HashMap::from([
        ("GIT_PROJECT_ROOT", shared.root.display().to_string()),
        ("GIT_HTTP_EXPORT_ALL", "1".to_owned()),
        ("REQUEST_METHOD", parts.method.to_string()),
        ("PATH_INFO", parts.uri.path().to_owned()),
        ("QUERY_STRING", parts.uri.query().unwrap_or("").to_owned()),
        ("CONTENT_TYPE", header(&parts.headers, "content-type")),
        ("HTTP_CONTENT_ENCODING", header(&parts.headers, "content-encoding")),
        ("HTTP_GIT_PROTOCOL", header(&parts.headers, "git-protocol")),
        ("GIT_CONFIG_NOSYSTEM", "1".to_owned()),
    ]);
    let output = cgi(environment, body).await;
    let split = output.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let mut response = answer(StatusCode::OK);
    for line in String::from_utf8_lossy(&output[..split]).lines() {
        let (name, value) = line.split_once(": ").unwrap();
        response = match name {
            "Status" => response.status(value[..3].parse::<u16>().unwrap()),
            _ => response.header(name, value),
        };
    }
    response.body(output[split + 4..].to_vec().into()).unwrap()
}

async fn cgi(environment: HashMap<&str, String>, body: Bytes) -> Vec<u8> {
    let mut child = Command::new("git")
        .arg("http-backend")
        .envs(environment)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let (written, output) = tokio::join!(
        async move {
            let done = stdin.write_all(&body).await;
            drop(stdin);
            done
        },
        child.wait_with_output()
    );
    written.unwrap();
    output.unwrap().stdout
}
