//! A forge as far as kennel sees one: repositories served over http by `git http-backend`.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http_body_util::BodyExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::task::JoinSet;

use super::repo::Repo;

/// A running forge. It ends with this value.
#[derive(Debug)]
pub(crate) struct Forge {
    root: PathBuf,
    addr: SocketAddr,
    shared: Arc<Shared>,
    _server: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    root: PathBuf,
    /// The token each private repository wants.
    tokens: Mutex<HashMap<String, String>>,
}

impl Forge {
    /// One without repositories, over an empty directory.
    pub(crate) async fn start(root: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let shared = Arc::new(Shared { root: root.to_owned(), tokens: Mutex::default() });
        let app = axum::Router::new().fallback(serve).with_state(shared.clone());
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, app).await.expect("the listener stays") });
        Self { root: root.to_owned(), addr, shared, _server: server }
    }

    /// A new repository, called `demo/<name>`.
    pub(crate) fn create(&self, name: &str) -> Repo {
        Repo::create(&self.root.join(format!("demo/{name}.git")))
    }

    pub(crate) fn url(&self, name: &str) -> String {
        format!("http://{}/demo/{name}.git", self.addr)
    }

    /// Shows a repository only to who has the token.
    pub(crate) fn hide(&self, name: &str, token: &str) {
        self.shared.tokens.lock().unwrap().insert(format!("/demo/{name}.git/"), token.to_owned());
    }
}

async fn serve(State(forge): State<Arc<Shared>>, request: Request) -> Response {
    let path = request.uri().path();
    let wanted = forge.tokens.lock().unwrap().iter().find(|(repo, _)| path.starts_with(*repo)).map(|(_, t)| t.clone());
    if wanted.is_some_and(|token| password(request.headers()) != Some(token)) {
        return (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Basic realm=\"forge\"")]).into_response();
    }
    backend(&forge.root, request)
        .await
        .unwrap_or_else(|err| (StatusCode::INTERNAL_SERVER_ERROR, format!("git http-backend: {err}")).into_response())
}

fn password(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let pair = BASE64_STANDARD.decode(value.strip_prefix("Basic ")?).ok()?;
    Some(String::from_utf8(pair).ok()?.split_once(':')?.1.to_owned())
}

/// Has git answer, as a CGI program (RFC 3875).
async fn backend(root: &Path, request: Request) -> std::io::Result<Response> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
    let header = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut git = Command::new("git")
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REQUEST_METHOD", parts.method.as_str())
        .env("PATH_INFO", parts.uri.path())
        .env("QUERY_STRING", parts.uri.query().unwrap_or_default())
        .env("CONTENT_TYPE", header("content-type"))
        .env("CONTENT_LENGTH", body.len().to_string())
        .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
        .env("GIT_PROTOCOL", header("git-protocol"))
        .env("REMOTE_ADDR", "127.0.0.1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let mut stdin = git.stdin.take().expect("it is piped");
    let (written, output) = tokio::join!(
        async move {
            stdin.write_all(&body).await?;
            stdin.shutdown().await
        },
        git.wait_with_output()
    );
    written?;
    answer(&output?.stdout)
}

fn answer(said: &[u8]) -> std::io::Result<Response> {
    let end = said.windows(4).position(|part| part == b"\r\n\r\n");
    let end = end.ok_or_else(|| std::io::Error::other("it gave no head"))?;
    let mut response = Response::builder();
    for line in String::from_utf8_lossy(&said[..end]).lines() {
        match line.split_once(": ") {
            Some(("Status", status)) => response = response.status(&status[..3]),
            Some((name, value)) => response = response.header(name, value),
            None => {}
        }
    }
    response.body(Body::from(said[end + 4..].to_vec())).map_err(std::io::Error::other)
}
