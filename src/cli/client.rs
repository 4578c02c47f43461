//! Talks to the daemon over its Unix socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::failure::{Exit, Failure};
use crate::api::wire::Problem;

/// Where the daemon listens unless told otherwise.
pub(super) const DEFAULT_SOCKET: &str = "/run/kennel/kennel.sock";
/// How long an answer may take; one that waits for a build to stop takes 10 s.
const ANSWER_TIME: Duration = Duration::from_secs(30);
/// The largest answer that is not a log.
const ANSWER_MAX: usize = 64 * 1024 * 1024;

/// The daemon, as seen from here.
#[derive(Debug, Clone)]
pub(super) struct Client {
    socket: PathBuf,
    patience: Duration,
    answer_time: Duration,
}

/// A log on its way here. Dropping it ends the connection.
#[derive(Debug)]
pub(super) struct LogStream {
    body: Incoming,
    _driver: JoinSet<()>,
}

impl Client {
    /// The daemon at this socket; else at `$KENNEL_SOCKET`; else where it listens by default.
    #[must_use]
    pub(super) fn new(socket: Option<PathBuf>) -> Self {
        let socket = socket
            .or_else(|| std::env::var_os("KENNEL_SOCKET").filter(|path| !path.is_empty()).map(PathBuf::from))
            .unwrap_or_else(|| DEFAULT_SOCKET.into());
        Self { socket, patience: Duration::ZERO, answer_time: ANSWER_TIME }
    }

    /// The same, but an answer may take so long.
    #[must_use]
    pub(super) fn waiting(&self, answer_time: Duration) -> Self {
        Self { answer_time, ..self.clone() }
    }

    /// The same, but while the daemon cannot be reached, as during its restart, it tries again for so long.
    #[must_use]
    pub(super) fn patient(&self, patience: Duration) -> Self {
        Self { patience, ..self.clone() }
    }

    /// Asks for something.
    ///
    /// # Errors
    /// When the daemon cannot be reached, or says no.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.answer(Method::GET, path, None).await
    }

    /// Asks for something to be done.
    ///
    /// # Errors
    /// When the daemon cannot be reached, or says no.
    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, Failure> {
        let body = body.map(|body| serde_json::to_vec(body).map_err(|err| Failure::unexpected(&err))).transpose()?;
        self.answer(Method::POST, path, body).await
    }

    /// Asks for a log.
    ///
    /// # Errors
    /// When the daemon cannot be reached, or says no.
    pub(super) async fn log(&self, path: &str) -> Result<LogStream, Failure> {
        let (response, driver) = self.send(Method::GET, path, None).await?;
        if response.status() != StatusCode::OK {
            return Err(refusal(response).await);
        }
        Ok(LogStream { body: response.into_body(), _driver: driver })
    }

    async fn answer<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<T, Failure> {
        let exchange = async {
            let (response, _driver) = self.send(method, path, body).await?;
            if !response.status().is_success() {
                return Err(refusal(response).await);
            }
            let body = read(response.into_body()).await?;
            serde_json::from_slice(&body).map_err(|err| Failure::unexpected(&err))
        };
        match tokio::time::timeout(self.patience + self.answer_time, exchange).await {
            Ok(answer) => answer,
            Err(_elapsed) => Err(Failure::unreachable(&self.socket, "it does not answer")),
        }
    }

    /// Sends a request. One that changes nothing is sent again for as long as patience lasts.
    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<(hyper::Response<Incoming>, JoinSet<()>), Failure> {
        let deadline = Instant::now() + self.patience;
        loop {
            match self.send_once(method.clone(), path, body.clone()).await {
                Err(failure) if failure.exit == Exit::Unreachable && method.is_safe() && Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                done => return done,
            }
        }
    }

    async fn send_once(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<(hyper::Response<Incoming>, JoinSet<()>), Failure> {
        let stream = self.connect().await?;
        let broken = |err: hyper::Error| Failure::unreachable(&self.socket, &format!("the connection broke: {err}"));
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let mut driver = JoinSet::new();
        // What breaks the connection breaks the request too, and is told there.
        driver.spawn(async move { drop(connection.await) });
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, "kennel");
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(|err| Failure::new(Exit::Misuse, format!("`{path}` is not a path")).hint(&format!("{err}")))?;
        let response = sender.send_request(request).await.map_err(broken)?;
        Ok((response, driver))
    }

    async fn connect(&self) -> Result<UnixStream, Failure> {
        match UnixStream::connect(&self.socket).await {
            Ok(stream) => Ok(stream),
            Err(err) => Err(match err.kind() {
                io::ErrorKind::PermissionDenied => not_allowed(&self.socket),
                io::ErrorKind::NotFound => Failure::unreachable(&self.socket, "there is no such socket"),
                io::ErrorKind::ConnectionRefused => Failure::unreachable(&self.socket, "nobody listens there"),
                _ => Failure::unreachable(&self.socket, &err.to_string()),
            }),
        }
    }
}

impl LogStream {
    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// When the connection breaks.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, hyper::Error> {
        while let Some(frame) = self.body.frame().await {
            if let Ok(data) = frame?.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }
}

fn not_allowed(socket: &Path) -> Failure {
    Failure::new(Exit::NotAllowed, format!("you may not use {}", socket.display()))
        .hint("run it with `sudo`, or become a member of the group `kennel` and log in again")
}

async fn refusal(response: hyper::Response<Incoming>) -> Failure {
    let status = response.status();
    let problem = match read(response.into_body()).await {
        Ok(body) => serde_json::from_slice::<Problem>(&body).ok(),
        Err(failure) => return failure,
    };
    let exit = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Exit::NotAllowed,
        StatusCode::NOT_FOUND => Exit::NoSuch,
        StatusCode::BAD_REQUEST => Exit::Misuse,
        _ => Exit::Failed,
    };
    let Some(problem) = problem else { return Failure::new(exit, format!("kennel answered {status}")) };
    // Commands speak in clauses, the API in sentences.
    let mut chars = problem.detail.strip_suffix('.').unwrap_or(&problem.detail).chars();
    let first = chars.next().map(|c| c.to_ascii_lowercase()).unwrap_or_default();
    Failure { exit, message: format!("{first}{}", chars.as_str()), hint: problem.hint }
}

async fn read(body: Incoming) -> Result<Bytes, Failure> {
    match Limited::new(body, ANSWER_MAX).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(err) => Err(Failure::new(Exit::Failed, format!("the answer broke off: {err}"))),
    }
}
