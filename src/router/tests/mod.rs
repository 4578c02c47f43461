//! The router on real sockets: services are small servers on loopback, visitors write what they mean to send.

mod access_log;
mod backed;
mod differential;
mod exchanges;
mod http2;
mod limits;
mod metrics;
mod proxies;
mod reuse;
mod site_memory;
mod sites;
mod strictness;
mod swaps;
mod tls;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{Handle, Listeners, Router, RouterConfig, Source};
use crate::model::{DeploymentId, Destination, Port, Protocol, Route, TargetId};

const HOST: &str = "web-main.shop.example.com";
/// Far longer than anything here takes: only so that a fault ends the test.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running router.
struct Front {
    address: SocketAddr,
    handle: Handle,
    shutdown: CancellationToken,
    running: JoinSet<()>,
}

impl Front {
    async fn start(routes: Vec<Route>) -> Self {
        Self::with(RouterConfig::default(), routes).await
    }

    async fn with(config: RouterConfig, routes: Vec<Route>) -> Self {
        let (router, handle) = Router::with_source(config, Source::Given(std::sync::Mutex::new(routes)));
        handle.reload().await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let mut running = JoinSet::new();
        running.spawn(router.run(plain(listener), shutdown.clone()));
        Self { address, handle, shutdown, running }
    }

    async fn switch(&self, routes: Vec<Route>) {
        let Source::Given(given) = &self.handle.shared.source else { unreachable!("tests give their routes") };
        let targets: BTreeSet<_> = given.lock().unwrap().iter().chain(&routes).map(|route| route.target).collect();
        *given.lock().unwrap() = routes;
        for target in targets {
            self.handle.reload_target(target).await.unwrap();
        }
    }

    async fn connect(&self) -> Raw {
        Raw(TcpStream::connect(self.address).await.unwrap())
    }

    /// Sends `request` as it is, and returns all there is until the connection is closed.
    async fn raw(&self, request: impl AsRef<[u8]>) -> String {
        let mut raw = self.connect().await;
        raw.send(request).await;
        raw.rest().await
    }

    /// A GET on a connection of its own, with these header lines.
    async fn get(&self, path: &str, headers: &str) -> Answer {
        self.ask("GET", path, headers).await
    }

    async fn ask(&self, method: &str, path: &str, headers: &str) -> Answer {
        let request = format!("{method} {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n{headers}\r\n");
        Answer::parse(&self.raw_bytes(request).await)
    }

    async fn raw_bytes(&self, request: impl AsRef<[u8]>) -> Vec<u8> {
        let mut raw = self.connect().await;
        raw.send(request).await;
        raw.rest_bytes().await
    }

    async fn stop(mut self) {
        self.shutdown.cancel();
        patiently(self.running.join_next()).await.unwrap().unwrap();
    }
}

fn plain(listener: TcpListener) -> Listeners {
    Listeners { http: vec![listener], https: Vec::new() }
}

async fn patiently<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("it takes far too long")
}

/// A connection on which bytes are sent and received as they are.
struct Raw(TcpStream);

impl Raw {
    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Reads until `end` has been seen.
    async fn until(&mut self, end: &str) -> String {
        let mut seen = Vec::new();
        while !seen.ends_with(end.as_bytes()) {
            let byte = patiently(self.0.read_u8()).await;
            seen.push(byte.unwrap_or_else(|err| panic!("{err} after {:?}", String::from_utf8_lossy(&seen))));
        }
        String::from_utf8(seen).unwrap()
    }

    /// Reads a head, and as much body as its length says.
    async fn answer(&mut self) -> Answer {
        let head = self.until("\r\n\r\n").await;
        let mut answer = Answer::parse(head.as_bytes());
        if let Some(length) = answer.header("content-length") {
            answer.body = vec![0; length.parse().unwrap()];
            patiently(self.0.read_exact(&mut answer.body)).await.unwrap();
        }
        answer
    }

    async fn rest(mut self) -> String {
        String::from_utf8(self.rest_bytes().await).unwrap()
    }

    /// What comes until the end; a reset counts as one.
    async fn rest_bytes(&mut self) -> Vec<u8> {
        let mut seen = Vec::new();
        let _ = patiently(self.0.read_to_end(&mut seen)).await;
        seen
    }
}

/// An answer, taken apart.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
        let end = end.unwrap_or_else(|| panic!("no head in {:?}", String::from_utf8_lossy(bytes))) + 4;
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self { status, head, body: bytes[end..].to_vec() }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

fn route_to(deployment: i64, port: Port) -> Route {
    let destination = Destination::Service { port, protocol: Protocol::Http1, health_path: None };
    Route { target: TargetId(1), destination, ..Route::example(HOST, deployment) }
}

/// A listener on a port that a deployment may have.
async fn listen() -> (TcpListener, Port) {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % 2000).unwrap();
    for _ in 0..2000 {
        let number = Port::FIRST + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 2000;
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", number)).await {
            return (listener, number.try_into().unwrap());
        }
    }
    panic!("no port is free");
}

/// A service: its connections end with it.
struct Service {
    port: Port,
    tasks: JoinSet<()>,
}

impl Service {
    fn route(&self, deployment: i64) -> Vec<Route> {
        vec![route_to(deployment, self.port)]
    }

    /// A service that answers each request by `answer`.
    async fn http<F, A>(answer: F) -> Self
    where
        F: Fn(Request<Incoming>) -> A + Send + Sync + 'static,
        A: Future<Output = Response<Full<Bytes>>> + Send + 'static,
    {
        let answer = Arc::new(answer);
        Self::raw(move |stream, _| {
            let answer = Arc::clone(&answer);
            async move {
                let service = service_fn(move |request| {
                    let answer = answer(request);
                    async move { Ok::<_, Infallible>(answer.await) }
                });
                let io = TokioIo::new(stream);
                let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
            }
        })
        .await
    }

    /// A service that does `talk` on each connection; the second argument counts them.
    async fn raw<F, T>(talk: F) -> Self
    where
        F: Fn(TcpStream, usize) -> T + Send + 'static,
        T: Future<Output = ()> + Send + 'static,
    {
        let (listener, port) = listen().await;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            for number in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                connections.spawn(talk(stream, number));
            }
        });
        Self { port, tasks }
    }

    /// A service that answers each request with its head as it came, and then its body.
    async fn echo() -> Self {
        Self::raw(|stream, _| async move {
            let mut raw = Raw(stream);
            loop {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = raw.0.read_u8().await else { return };
                    head.push(byte);
                }
                let text = String::from_utf8(head).unwrap();
                let length = Answer { status: 0, head: text.clone(), body: Vec::new() };
                let length = length.header("content-length").map_or(0, |length| length.parse().unwrap());
                let mut body = vec![0; length];
                raw.0.read_exact(&mut body).await.unwrap();
                let mut answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len() + length);
                answer.push_str(std::str::from_utf8(&body).unwrap());
                raw.send(answer).await;
            }
        })
        .await
    }

    /// Stops at once, whatever is going on.
    async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

/// Reads a request's head, whoever sent it, and answers with these bytes.
async fn reply(stream: &mut TcpStream, bytes: impl AsRef<[u8]>) {
    head_of(stream).await;
    stream.write_all(bytes.as_ref()).await.unwrap();
}

async fn head_of(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

fn text(body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    Response::new(Full::new(body.into()))
}
