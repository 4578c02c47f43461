//! HTTP/2 with visitors: by a client that knows it, and by frames as they are.

mod endings;
mod floods;
mod links;
mod messages;
mod requests;
mod services;
mod websockets;

use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::HeaderMap;
use tokio::io::{AsyncRead, AsyncWrite};

use super::*;
use crate::router::Timeouts;

/// A connection of a visitor who keeps to the rules.
struct Http2 {
    send: SendRequest<Bytes>,
    connection: JoinSet<Result<(), h2::Error>>,
}

impl Http2 {
    async fn connect(front: &Front) -> Self {
        Self::over(TcpStream::connect(front.address).await.unwrap()).await
    }

    async fn over<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S) -> Self {
        // Frames that a test does not read at once are not what is tested.
        let mut builder = h2::client::Builder::new();
        let (send, connection) = patiently(builder.data_frame_budget(usize::MAX).handshake(stream)).await.unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);
        Self { send, connection: tasks }
    }

    /// Begins a request with a body to follow.
    async fn begin(&mut self, request: Request<()>) -> (ResponseFuture, SendStream<Bytes>) {
        self.send = patiently(self.send.clone().ready()).await.unwrap();
        self.send.send_request(request, false).unwrap()
    }

    /// A request without body.
    async fn ask(&mut self, request: Request<()>) -> Reply {
        self.try_ask(request).await.unwrap()
    }

    async fn try_ask(&mut self, request: Request<()>) -> Result<Reply, h2::Error> {
        self.send = patiently(self.send.clone().ready()).await?;
        let (response, _) = self.send.send_request(request, true)?;
        Reply::read(response).await
    }

    async fn get(&mut self, path: &str) -> Reply {
        self.ask(request("GET", path)).await
    }

    /// How the connection ended.
    async fn end(&mut self) -> Result<(), h2::Error> {
        patiently(self.connection.join_next()).await.unwrap().unwrap()
    }
}

fn request(method: &str, path: &str) -> Request<()> {
    Request::builder().method(method).uri(format!("http://{HOST}{path}")).body(()).unwrap()
}

fn with(mut request: Request<()>, name: &'static str, value: &'static str) -> Request<()> {
    request.headers_mut().append(name, http::HeaderValue::from_static(value));
    request
}

/// An answer that has arrived whole.
#[derive(Debug)]
struct Reply {
    status: u16,
    headers: HeaderMap,
    body: Vec<u8>,
    trailers: Option<HeaderMap>,
}

impl Reply {
    async fn read(response: ResponseFuture) -> Result<Self, h2::Error> {
        let (parts, mut body) = patiently(response).await?.into_parts();
        let bytes = read(&mut body).await?;
        let trailers = patiently(body.trailers()).await?;
        Ok(Self { status: parts.status.as_u16(), headers: parts.headers, body: bytes, trailers })
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

async fn read(body: &mut RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut bytes = Vec::new();
    while let Some(data) = patiently(body.data()).await {
        let data = data?;
        bytes.extend_from_slice(&data);
        body.flow_control().release_capacity(data.len())?;
    }
    Ok(bytes)
}

/// Sends all of `body` as windows open, and ends with it.
async fn send(stream: &mut SendStream<Bytes>, body: Bytes) {
    send_part(stream, body).await;
    stream.send_data(Bytes::new(), true).unwrap();
}

/// Sends all of `part` as windows open.
async fn send_part(stream: &mut SendStream<Bytes>, mut part: Bytes) {
    while !part.is_empty() {
        stream.reserve_capacity(part.len());
        while stream.capacity() == 0 {
            patiently(std::future::poll_fn(|cx| stream.poll_capacity(cx))).await.unwrap().unwrap();
        }
        stream.send_data(part.split_to(stream.capacity().min(part.len())), false).unwrap();
    }
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// A connection on which frames are written as they are.
struct Frames(TcpStream);

impl Frames {
    /// One that has said hello with these settings, by number.
    async fn connect(front: &Front, settings: &[(u16, u32)]) -> Self {
        let mut frames = Self(TcpStream::connect(front.address).await.unwrap());
        let settings: Vec<u8> =
            settings.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
        frames.0.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        assert!(frames.send(SETTINGS, 0, 0, &settings).await);
        frames
    }

    /// Writes a frame; false when nobody takes it any more.
    async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> bool {
        patiently(self.0.write_all(&frame(kind, flags, stream, payload))).await.is_ok()
    }

    /// Sends a GET that nothing follows.
    async fn get(&mut self, stream: u32, path: &str) -> bool {
        self.send(HEADERS, END_HEADERS | END_STREAM, stream, &head("GET", path, &[])).await
    }

    /// The next frame: kind, flags, stream, payload. `None` at the end of the connection.
    async fn next(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        patiently(self.0.read_exact(&mut head)).await.ok()?;
        let [a, b, c, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        patiently(self.0.read_exact(&mut payload)).await.ok()?;
        Some((kind, flags, u32::from_be_bytes(stream), payload))
    }

    /// The payload of the next frame of this kind on this stream.
    async fn until(&mut self, kind: u8, stream: u32) -> Option<Vec<u8>> {
        loop {
            let (this, _, on, payload) = self.next().await?;
            if this == kind && on == stream {
                return Some(payload);
            }
        }
    }

    /// The reason that the connection was given up for, if it was told before the connection was closed.
    async fn goaway(&mut self) -> Option<Reason> {
        let payload = self.until(GOAWAY, 0).await?;
        Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()).into())
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A request's head as HPACK has it, nothing of it compressed (RFC 7541, section 6.2.2).
fn head(method: &str, path: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let pseudo = [(":method", method), (":scheme", "http"), (":authority", HOST), (":path", path)];
    pseudo.iter().chain(headers).flat_map(|(name, value)| line(name, value)).collect()
}

fn line(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| {
        let mut length = vec![text.len() as u8];
        if text.len() >= 127 {
            // In several bytes (RFC 7541, section 5.1).
            length[0] = 127;
            let mut rest = text.len() - 127;
            while rest >= 128 {
                length.push((rest % 128 + 128) as u8);
                rest /= 128;
            }
            length.push(rest as u8);
        }
        [&length[..], text.as_bytes()].concat()
    };
    [vec![0], text(name), text(value)].concat()
}

fn timeouts(timeouts: Timeouts) -> RouterConfig {
    RouterConfig { timeouts, ..RouterConfig::default() }
}
