//! WebSockets over HTTP/2 (RFC 8441): one request of many on a connection becomes one.

use futures_util::{SinkExt as _, StreamExt as _};
use http_body_util::Empty;
use hyper::client::conn::http2;
use hyper::ext::Protocol;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioExecutor;
use rstest::rstest;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::super::exchanges::echo_messages;
use super::*;

/// A visitor who opens WebSockets.
struct Visitor {
    send: http2::SendRequest<Empty<Bytes>>,
    connection: JoinSet<hyper::Result<()>>,
}

impl Visitor {
    async fn connect(front: &Front) -> Self {
        let stream = TcpStream::connect(front.address).await.unwrap();
        let (send, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);
        let mut visitor = Self { send, connection: tasks };
        // By its answer it is known that the settings have arrived which allow WebSockets.
        visitor.get().await;
        visitor
    }

    async fn get(&mut self) -> u16 {
        let asked = Request::get(format!("http://{HOST}/plain")).body(Empty::new()).unwrap();
        patiently(self.send.send_request(asked)).await.unwrap().status().as_u16()
    }

    async fn ask_for(&mut self, protocol: &'static str) -> Response<Incoming> {
        let asked = Request::connect(format!("http://{HOST}/chat?a=b"))
            .extension(Protocol::from_static(protocol))
            .header("sec-websocket-version", "13")
            .header("sec-websocket-protocol", "chat")
            .body(Empty::new())
            .unwrap();
        patiently(self.send.send_request(asked)).await.unwrap()
    }

    async fn open(&mut self) -> WebSocketStream<TokioIo<Upgraded>> {
        let response = self.ask_for("websocket").await;
        assert_eq!(response.status(), 200);
        for name in ["connection", "upgrade", "sec-websocket-accept"] {
            assert!(!response.headers().contains_key(name), "{name}");
        }
        let upgraded = patiently(hyper::upgrade::on(response)).await.unwrap();
        WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await
    }
}

/// Messages come back, and plain requests are answered, on one connection.
#[tokio::test]
async fn messages_pass_both_ways_beside_other_requests() {
    let service = websockets_and_plain().await;
    let front = Front::start(service.route(1)).await;
    let mut visitor = Visitor::connect(&front).await;
    let (mut one, mut other) = (visitor.open().await, visitor.open().await);
    for size in [0, 1, 125, 126, 70_000, 3_000_000] {
        for socket in [&mut one, &mut other] {
            socket.send(Message::binary(vec![7; size])).await.unwrap();
            assert_eq!(patiently(socket.next()).await.unwrap().unwrap().into_data().len(), size);
        }
        assert_eq!(visitor.get().await, 200);
    }
    one.close(None).await.unwrap();
    while let Some(Ok(_)) = patiently(one.next()).await {}
    other.send(Message::text("still here")).await.unwrap();
    assert_eq!(patiently(other.next()).await.unwrap().unwrap().into_text().unwrap(), "still here");
}

/// A service that sends back every message of a WebSocket, and answers what else it is asked.
async fn websockets_and_plain() -> Service {
    Service::raw(|stream, _| async move {
        let mut first = [0; 16];
        let _ = stream.peek(&mut first).await;
        if first.starts_with(b"GET /plain ") {
            let mut stream = stream;
            return reply(&mut stream, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").await;
        }
        echo_messages(stream).await;
    })
    .await
}

#[tokio::test]
async fn the_service_sees_a_handshake_of_http_1_1() {
    let (seen, mut heads) = tokio::sync::mpsc::channel(2);
    let service = Service::raw(move |mut stream, _| {
        let seen = seen.clone();
        async move {
            seen.send(head_of(&mut stream).await).await.unwrap();
            stream.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno").await.unwrap();
        }
    })
    .await;
    let front = Front::start(service.route(1)).await;
    let mut visitor = Visitor::connect(&front).await;
    heads.recv().await.unwrap();
    let refused = visitor.ask_for("websocket").await;
    assert_eq!(refused.status(), 403);
    let head = heads.recv().await.unwrap();
    assert!(head.starts_with(&format!("GET /chat?a=b HTTP/1.1\r\nhost: {HOST}\r\n")), "{head}");
    for line in
        ["connection: upgrade", "upgrade: websocket", "sec-websocket-version: 13", "sec-websocket-protocol: chat"]
    {
        assert!(head.contains(&format!("\r\n{line}\r\n")), "{line} in {head}");
    }
    let key = head.lines().find_map(|line| line.strip_prefix("sec-websocket-key: ")).unwrap();
    assert_eq!(key.len(), 24, "16 bytes in base64: {key}");
}

#[rstest]
#[case::not_switching("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", 501)]
#[case::no_accept("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", 502)]
#[case::another_protocol("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: rot\r\n\r\n", 502)]
#[case::redirect("HTTP/1.1 307 Elsewhere\r\nLocation: /b\r\nContent-Length: 0\r\n\r\n", 307)]
#[tokio::test]
async fn what_is_no_websocket_does_not_pass_for_one(#[case] answer: &'static str, #[case] status: u16) {
    let service = Service::raw(move |mut stream, _| async move { reply(&mut stream, answer).await }).await;
    let front = Front::start(service.route(1)).await;
    let response = Visitor::connect(&front).await.ask_for("websocket").await;
    assert_eq!(response.status(), status);
}

#[tokio::test]
async fn other_protocols_are_not_spoken() {
    let service = websockets_and_plain().await;
    let front = Front::start(service.route(1)).await;
    assert_eq!(Visitor::connect(&front).await.ask_for("connect-udp").await.status(), 501);
}

#[tokio::test]
async fn a_websocket_that_has_a_length_is_refused_and_the_connection_stays() {
    let service = websockets_and_plain().await;
    let front = Front::start(service.route(1)).await;
    let mut frames = Frames::connect(&front, &[]).await;
    let lines = [(":protocol", "websocket"), ("sec-websocket-version", "13"), ("content-length", "5")];
    frames.send(HEADERS, END_HEADERS, 1, &head("CONNECT", "/", &lines)).await;
    // An entry of the table: 400.
    assert_eq!(frames.until(HEADERS, 1).await.unwrap()[0], 0x8c);
    frames.get(3, "/plain").await;
    assert!(frames.until(HEADERS, 3).await.is_some());
}

async fn is_told_that_kennel_goes_away(mut socket: WebSocketStream<TokioIo<Upgraded>>) {
    match patiently(socket.next()).await {
        Some(Ok(Message::Close(Some(frame)))) => assert_eq!(frame.code, CloseCode::Away),
        other => panic!("{other:?}"),
    }
    assert!(patiently(socket.next()).await.is_none());
}

#[tokio::test]
async fn at_the_end_a_websocket_is_told_that_kennel_goes_away() {
    let service = websockets_and_plain().await;
    let front = Front::start(service.route(1)).await;
    let mut visitor = Visitor::connect(&front).await;
    let socket = visitor.open().await;
    front.shutdown.cancel();
    // It is not among what has to finish: `stop` would wait for it beyond this test's patience.
    is_told_that_kennel_goes_away(socket).await;
    front.stop().await;
    patiently(visitor.connection.join_next()).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_websocket_outlives_its_generation_when_another_process_takes_over() {
    let service = websockets_and_plain().await;
    let front = Front::start(service.route(1)).await;
    let mut visitor = Visitor::connect(&front).await;
    let mut socket = visitor.open().await;
    patiently(front.handle.leave()).await;
    socket.send(Message::text("still here")).await.unwrap();
    assert_eq!(patiently(socket.next()).await.unwrap().unwrap().into_text().unwrap(), "still here");
    front.shutdown.cancel();
    is_told_that_kennel_goes_away(socket).await;
    front.stop().await;
}

#[tokio::test]
async fn a_drain_closes_websockets_at_its_end() {
    let service = websockets_and_plain().await;
    let front = Front::start(service.route(1)).await;
    let mut visitor = Visitor::connect(&front).await;
    let socket = visitor.open().await;
    front.switch(Vec::new()).await;
    let drain = front.handle.drain(DeploymentId(1), Duration::from_millis(100));
    tokio::join!(drain, is_told_that_kennel_goes_away(socket));
    assert_eq!(visitor.get().await, 404, "the connection stays");
}

#[tokio::test]
async fn a_websocket_on_which_nothing_passes_is_closed() {
    let service = websockets_and_plain().await;
    let short = Timeouts { upgraded_idle: Duration::from_millis(200), ..Timeouts::default() };
    let front = Front::with(timeouts(short), service.route(1)).await;
    let mut visitor = Visitor::connect(&front).await;
    let mut socket = visitor.open().await;
    assert!(!matches!(patiently(socket.next()).await, Some(Ok(_))));
}
