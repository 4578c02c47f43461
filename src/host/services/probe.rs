//! Asks a deployment whether it is healthy, as a visitor's request would reach it.

use std::fmt;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HOST, USER_AGENT};
use http::request::Builder;
use http::{Request, Response, StatusCode};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::model::{HostName, Port, Protocol};

/// How long an answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Why a deployment does not count as healthy.
#[derive(Debug)]
pub enum ProbeFailure {
    /// It answered with something other than 200.
    Status(StatusCode),
    /// Nobody listens.
    Refused,
    /// No answer came in time.
    TimedOut,
    /// It hung up, or what it said is not HTTP.
    Broken(Box<dyn std::error::Error + Send + Sync>),
}

impl fmt::Display for ProbeFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "answered {}", status.as_u16()),
            Self::Refused => f.write_str("refused the connection"),
            Self::TimedOut => write!(f, "did not answer within {} s", ANSWER_MAX.as_secs()),
            Self::Broken(_) => f.write_str("broke off instead of answering"),
        }
    }
}

impl std::error::Error for ProbeFailure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Broken(source) => Some(source.as_ref()),
            Self::Status(_) | Self::Refused | Self::TimedOut => None,
        }
    }
}

/// GETs `path` at the port on 127.0.0.1 with the hostname and the forwarding headers of a visitor's request;
/// healthy is 200 within 5 s. Redirects are not followed.
///
/// # Errors
/// When it is not healthy.
pub async fn http(port: Port, protocol: Protocol, path: &str, host: &HostName) -> Result<(), ProbeFailure> {
    let asking = async {
        match protocol {
            Protocol::Http1 => get(port, path, host).await,
            Protocol::H2c => get_by_http2(port, path, host).await,
        }
    };
    match timeout(ANSWER_MAX, asking).await {
        Ok(Ok(StatusCode::OK)) => Ok(()),
        Ok(Ok(status)) => Err(ProbeFailure::Status(status)),
        Ok(Err(failure)) => Err(failure),
        Err(_) => Err(ProbeFailure::TimedOut),
    }
}

/// Connects to the port on 127.0.0.1 within 5 s.
///
/// # Errors
/// When nobody accepts.
pub async fn tcp(port: Port) -> Result<(), ProbeFailure> {
    match timeout(ANSWER_MAX, connect(port)).await {
        Ok(connected) => connected.map(drop),
        Err(_) => Err(ProbeFailure::TimedOut),
    }
}

async fn connect(port: Port) -> Result<TcpStream, ProbeFailure> {
    TcpStream::connect(("127.0.0.1", port.get())).await.map_err(|error| match error.kind() {
        io::ErrorKind::ConnectionRefused => ProbeFailure::Refused,
        io::ErrorKind::TimedOut => ProbeFailure::TimedOut,
        _ => ProbeFailure::Broken(error.into()),
    })
}

async fn get(port: Port, path: &str, host: &HostName) -> Result<StatusCode, ProbeFailure> {
    let request = Request::get(path).header(HOST, host.as_str());
    let request = as_a_visitors(request, host).header(CONNECTION, "close");
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| ProbeFailure::Broken(error.into()))?;
    let socket = connect(port).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await.map_err(broken)?;
    status(sender.send_request(request), connection).await
}

async fn get_by_http2(port: Port, path: &str, host: &HostName) -> Result<StatusCode, ProbeFailure> {
    let request = as_a_visitors(Request::get(format!("http://{host}{path}")), host);
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| ProbeFailure::Broken(error.into()))?;
    let socket = connect(port).await?;
    // What hyper would have run elsewhere has to do with bodies that are sent: there is none.
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(socket)).await.map_err(broken)?;
    status(sender.send_request(request), connection).await
}

/// The status of the answer that comes over this connection. The body does not matter; both are dropped with the head.
async fn status(
    answer: impl Future<Output = hyper::Result<Response<Incoming>>>,
    connection: impl Future<Output = hyper::Result<()>>,
) -> Result<StatusCode, ProbeFailure> {
    tokio::pin!(connection, answer);
    let answer = tokio::select! {
        biased;
        answer = &mut answer => answer,
        ended = &mut connection => {
            ended.map_err(broken)?;
            answer.await
        }
    };
    Ok(answer.map_err(broken)?.status())
}

fn broken(error: hyper::Error) -> ProbeFailure {
    ProbeFailure::Broken(error.into())
}

fn as_a_visitors(request: Builder, host: &HostName) -> Builder {
    request
        .header("x-forwarded-for", "127.0.0.1")
        .header("x-forwarded-proto", "https")
        .header("x-forwarded-host", host.as_str())
        .header(USER_AGENT, "kennel")
}

#[cfg(test)]
mod tests {
    use hyper::service::service_fn;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio::task::JoinSet;

    use super::*;

    async fn listener() -> (Port, TcpListener) {
        for number in (Port::FIRST..=Port::LAST).rev() {
            if let Ok(listener) = TcpListener::bind(("127.0.0.1", number)).await {
                return (Port::try_from(number).unwrap(), listener);
            }
        }
        panic!("no free port");
    }

    /// What a server that gives this answer to one request makes of it: the probe's result, and the request.
    async fn probe(answer: &'static str) -> (Result<(), String>, String) {
        let (port, listener) = listener().await;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut seen = Vec::new();
            while !seen.ends_with(b"\r\n\r\n") {
                seen.push(socket.read_u8().await.unwrap());
            }
            socket.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8(seen).unwrap()
        });
        let host: HostName = "api-main.p.example.com".parse().unwrap();
        let result = http(port, Protocol::Http1, "/health?deep=1", &host).await.map_err(|failure| failure.to_string());
        (result, tasks.join_next().await.unwrap().unwrap())
    }

    #[tokio::test]
    async fn a_healthy_service_sees_the_request_of_a_visitor() {
        let (result, request) = probe("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        assert_eq!(result, Ok(()));
        insta::assert_snapshot!(request.replace('\r', ""), @"
        GET /health?deep=1 HTTP/1.1
        host: api-main.p.example.com
        x-forwarded-for: 127.0.0.1
        x-forwarded-proto: https
        x-forwarded-host: api-main.p.example.com
        user-agent: kennel
        connection: close
        ");
    }

    #[tokio::test]
    async fn anything_but_200_is_told() {
        assert_eq!(probe("HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n").await.0, Err("answered 503".to_owned()));
        assert_eq!(probe("HTTP/1.1 302 Found\r\nlocation: /\r\n\r\n").await.0, Err("answered 302".to_owned()));
        assert_eq!(probe("HTTP/1.1 200 OK\r\n\r\nuntil the end").await.0, Ok(()));
        for broken in ["", "SSH-2.0-x\r\n\r\n"] {
            assert_eq!(probe(broken).await.0, Err("broke off instead of answering".to_owned()), "{broken:?}");
        }
    }

    #[tokio::test]
    async fn a_service_that_speaks_http_2_is_asked_by_it() {
        let (port, listener) = listener().await;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let service = service_fn(async |request: Request<Incoming>| {
                    let healthy =
                        request.uri() == "http://a.example.com/health" && request.headers()[USER_AGENT] == "kennel";
                    let status = if healthy { StatusCode::OK } else { StatusCode::NOT_FOUND };
                    Response::builder().status(status).body(Empty::<Bytes>::new())
                });
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                // The probe goes as soon as it has its answer.
                let _ = server.serve_connection(TokioIo::new(socket), service).await;
            }
        });
        let host: HostName = "a.example.com".parse().unwrap();
        http(port, Protocol::H2c, "/health", &host).await.unwrap();
        let refused = http(port, Protocol::H2c, "/other", &host).await.unwrap_err().to_string();
        assert_eq!(refused, "answered 404");
        let misled = http(port, Protocol::Http1, "/health", &host).await.unwrap_err().to_string();
        assert_eq!(misled, "broke off instead of answering");
    }

    #[tokio::test]
    async fn nobody_listening_is_a_refusal() {
        let (port, listener) = listener().await;
        tcp(port).await.unwrap();
        drop(listener);
        let host: HostName = "a.example.com".parse().unwrap();
        assert_eq!(tcp(port).await.unwrap_err().to_string(), "refused the connection");
        assert_eq!(http(port, Protocol::Http1, "/", &host).await.unwrap_err().to_string(), "refused the connection");
    }
}
