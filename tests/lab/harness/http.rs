//! HTTP as tests speak it: one request on a connection of its own, or many on one that is kept.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// How long any answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// What a server answered, whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub(crate) fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|err| panic!("{} is not the JSON that was expected: {err}\n{}", self.status, self.text()))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{}", self.text());
        self
    }
}

/// A request with a body, to be sent.
pub(crate) fn request(method: Method, host: &str, path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    let request = Request::builder().method(method).uri(path).header(http::header::HOST, host);
    request.body(Full::new(body.into())).expect("the parts of a request in a test are valid")
}

/// Sends one request on a connection of its own.
pub(crate) async fn send(to: SocketAddr, mut request: Request<Full<Bytes>>) -> Result<Answer, String> {
    request.headers_mut().insert(http::header::CONNECTION, http::HeaderValue::from_static("close"));
    Connection::open(to).await?.send(request).await
}

/// A connection that is kept between requests.
pub(crate) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    _driver: JoinSet<()>,
}

impl Connection {
    pub(crate) async fn open(to: SocketAddr) -> Result<Self, String> {
        Self::over(TcpStream::connect(to).await).await
    }

    /// From an address of this machine's, such as 127.0.0.2.
    pub(crate) async fn open_from(from: IpAddr, to: SocketAddr) -> Result<Self, String> {
        let socket = TcpSocket::new_v4().expect("there are sockets");
        socket.bind(SocketAddr::new(from, 0)).expect("all of 127.0.0.0/8 is this machine's");
        Self::over(socket.connect(to).await).await
    }

    async fn over(socket: std::io::Result<TcpStream>) -> Result<Self, String> {
        let socket = socket.map_err(|err| format!("connect: {err}"))?;
        socket.set_nodelay(true).map_err(|err| format!("connect: {err}"))?;
        let (sender, connection) =
            http1::handshake(TokioIo::new(socket)).await.map_err(|err| format!("handshake: {err}"))?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            // What went wrong is told to whoever waits for the answer.
            let _ = connection.await;
        });
        Ok(Self { sender, _driver: driver })
    }

    pub(crate) async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Answer, String> {
        let exchange = async {
            self.sender.ready().await.map_err(|err| format!("connection: {err}"))?;
            let answer = self.sender.send_request(request).await.map_err(|err| format!("request: {err:?}"))?;
            let (parts, body) = answer.into_parts();
            let body = body.collect().await.map_err(|err| format!("body: {err:?}"))?.to_bytes();
            Ok(Answer { status: parts.status, headers: parts.headers, body })
        };
        timeout(ANSWER_MAX, exchange).await.map_err(|_| "no answer in time".to_owned())?
    }

    /// Whether the server has closed it.
    pub(crate) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}
