//! One exchange with a service, as it should pass through.

use futures_util::{SinkExt as _, StreamExt as _};
use http::StatusCode;
use http_body_util::BodyExt as _;
use tokio_tungstenite::tungstenite::Message;

use super::*;

/// A service that says `script` on each connection after the head of a request, then closes.
async fn scripted(script: &'static str) -> (Service, Front) {
    let service = Service::raw(move |mut stream, _| async move { reply(&mut stream, script).await }).await;
    let front = Front::start(service.route(1)).await;
    (service, front)
}

#[tokio::test]
async fn a_body_passes_both_ways_unchanged() {
    let service = Service::http(|request| async move {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        text(body)
    })
    .await;
    let front = Front::start(service.route(1)).await;
    let body: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    let mut raw = front.connect().await;
    raw.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {}\r\n\r\n", body.len())).await;
    raw.send(&body).await;
    let answer = raw.answer().await;
    assert!(answer.status == 200 && answer.body == body);
}

#[tokio::test]
async fn events_pass_as_they_come() {
    let arrived = Arc::new(tokio::sync::Notify::new());
    let next = Arc::clone(&arrived);
    let service = Service::raw(move |mut stream, _| {
        let next = Arc::clone(&next);
        async move {
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
            reply(&mut stream, head).await;
            for _ in 0..3 {
                stream.write_all(b"8\r\ndata: \n\n\r\n").await.unwrap();
                next.notified().await;
            }
            stream.write_all(b"0\r\n\r\n").await.unwrap();
        }
    })
    .await;
    let front = Front::start(service.route(1)).await;
    let mut raw = front.connect().await;
    raw.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    raw.until("\r\n\r\n").await;
    for _ in 0..3 {
        // The next is not even written before this one has arrived.
        assert_eq!(raw.until("\n\n\r\n").await, "8\r\ndata: \n\n\r\n");
        arrived.notify_one();
    }
    raw.until("0\r\n\r\n").await;
}

#[tokio::test]
async fn a_visitor_who_asks_first_is_told_to_go_on() {
    let service = Service::echo().await;
    let front = Front::start(service.route(1)).await;
    let mut raw = front.connect().await;
    raw.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")).await;
    assert_eq!(raw.until("\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    raw.send("body").await;
    let answer = raw.answer().await;
    assert!(answer.status == 200 && answer.text().ends_with("\r\n\r\nbody"), "{answer:?}");
    assert!(!answer.text().contains("expect"), "it has been answered: {answer:?}");
}

#[tokio::test]
async fn a_visitor_who_asks_first_may_be_told_no_at_once() {
    let front = Front::start(Vec::new()).await;
    let answer = front.ask("POST", "/", "Expect: 100-continue\r\nContent-Length: 4\r\n").await;
    assert_eq!(answer.status, 404);
}

#[tokio::test]
async fn trailers_pass_both_ways() {
    let service = Service::raw(|mut stream, _| async move {
        let mut raw = Raw(stream);
        raw.until("x-sum: 7\r\n\r\n").await;
        stream = raw.0;
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nTrailer: grpc-status\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\ngrpc-status: 0\r\n\r\n")
            .await
            .unwrap();
    })
    .await;
    let front = Front::start(service.route(1)).await;
    let answer = front
        .raw(format!(
            "POST / HTTP/1.1\r\nHost: {HOST}\r\nTE: trailers\r\nTrailer: x-sum\r\nConnection: te, close\r\n\
             Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-Sum: 7\r\n\r\n"
        ))
        .await;
    assert!(answer.ends_with("0\r\ngrpc-status: 0\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn trailers_that_nobody_announced_or_that_come_too_late_are_dropped() {
    let service = Service::raw(|mut stream, _| async move {
        let mut seen = head_of(&mut stream).await;
        while !seen.ends_with("\r\n0\r\nx-sum: 7\r\n\r\n") {
            seen.push(stream.read_u8().await.unwrap().into());
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
    })
    .await;
    let front = Front::start(service.route(1)).await;
    let mut raw = front.connect().await;
    raw.send(format!(
        "POST / HTTP/1.1\r\nHost: {HOST}\r\nTrailer: x-sum, authorization\r\nTransfer-Encoding: chunked\r\n\r\n\
         1\r\na\r\n0\r\nAuthorization: a\r\nX-Other: 8\r\nX-Sum: 7\r\n\r\n"
    ))
    .await;
    assert_eq!(raw.answer().await.text(), "ok");
}

#[tokio::test]
async fn interim_answers_do_not_end_the_wait_for_the_final_one() {
    let script = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let (_service, front) = scripted(script).await;
    let answer = front.get("/", "").await;
    assert_eq!((answer.status, answer.text()), (200, "ok"));
}

#[tokio::test]
async fn answers_without_body_leave_the_connection_usable() {
    let service = Service::http(|request| async move {
        let mut response = text(if request.method() == "HEAD" { "length only" } else { "" });
        *response.status_mut() = match request.uri().path() {
            "/204" => StatusCode::NO_CONTENT,
            "/304" => StatusCode::NOT_MODIFIED,
            _ => StatusCode::OK,
        };
        response
    })
    .await;
    let front = Front::start(service.route(1)).await;
    let mut raw = front.connect().await;
    for (line, status) in [("HEAD /", 200), ("GET /204", 204), ("GET /304", 304), ("HEAD /", 200)] {
        raw.send(format!("{line} HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
        let head = raw.until("\r\n\r\n").await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
        assert_eq!(head.contains("content-length: 11"), line == "HEAD /", "{head}");
    }
}

#[tokio::test]
async fn no_length_is_made_up_for_an_answer_to_head() {
    let (_service, front) = scripted("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n").await;
    let answer = front.ask("HEAD", "/", "").await;
    assert_eq!((answer.status, answer.header("content-length")), (200, None), "{}", answer.head);
}

#[tokio::test]
async fn a_visitor_who_leaves_is_left_by_the_service_too() {
    let (arrived, mut arriving) = tokio::sync::mpsc::channel(1);
    let (left, mut leaving) = tokio::sync::mpsc::channel(1);
    let service = Service::raw(move |mut stream, _| {
        let (arrived, left) = (arrived.clone(), left.clone());
        async move {
            let head = head_of(&mut stream).await;
            arrived.send(()).await.unwrap();
            if head.starts_with("GET /answered ") {
                stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n").await.unwrap();
            }
            assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or_default(), 0);
            left.send(head).await.unwrap();
        }
    })
    .await;
    let front = Front::start(service.route(1)).await;
    for path in ["/answered", "/waiting"] {
        let mut raw = front.connect().await;
        raw.send(format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
        patiently(arriving.recv()).await.unwrap();
        if path == "/answered" {
            raw.until("1\r\na\r\n").await;
        }
        drop(raw);
        assert!(patiently(leaving.recv()).await.unwrap().starts_with(&format!("GET {path} ")));
    }
    patiently(front.handle.drain(DeploymentId(1), PATIENCE * 2)).await;
}

#[tokio::test]
async fn a_redirect_is_the_visitors_to_follow() {
    let (_service, front) =
        scripted("HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n").await;
    let answer = front.get("/", "").await;
    assert_eq!((answer.status, answer.header("location")), (302, Some("http://127.0.0.1:1/")));
}

#[tokio::test]
async fn an_answer_that_breaks_off_does_not_look_complete() {
    for script in [
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
    ] {
        let (_service, front) = scripted(script).await;
        let answer = front.raw(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
        assert!(!answer.ends_with("0\r\n\r\n") && !answer.contains("HTTP/1.1 502"), "{answer}");
    }
}

#[tokio::test]
async fn an_answer_ended_by_closing_is_complete() {
    let (_service, front) = scripted("HTTP/1.1 200 OK\r\n\r\nall of it").await;
    let answer = front.raw(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n")).await;
    assert!(answer.contains("all of it") && answer.ends_with("0\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn an_answer_with_two_lengths_is_as_long_as_its_chunks() {
    let (_service, front) =
        scripted("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
            .await;
    let answer = front.raw(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n")).await;
    assert!(!answer.to_lowercase().contains("content-length") && answer.contains("3\r\nabc\r\n0\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn a_service_that_refuses_breaks_off_or_talks_nonsense_gets_502() {
    let (listener, port) = listen().await;
    drop(listener);
    let front = Front::start(vec![route_to(1, port)]).await;
    let answer = front.get("/", "").await;
    assert_eq!(answer.status, 502);
    assert!(answer.text().contains("refused the connection") && answer.text().contains(HOST));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    for script in ["", "HTTP/1.1 200", "nonsense\r\n\r\n", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"] {
        let (_service, front) = scripted(script).await;
        let answer = front.get("/", "").await;
        assert_eq!(answer.status, 502, "{script}");
        assert!(answer.text().contains("broke off"));
    }
}

#[tokio::test]
async fn an_answer_that_comes_before_the_request_has_ended_is_passed_on() {
    let service = Service::raw(|mut stream, _| async move {
        reply(&mut stream, "HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig").await;
        let _ = stream.read(&mut [0; 1]).await;
    })
    .await;
    let front = Front::start(service.route(1)).await;
    let mut raw = front.connect().await;
    raw.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 100\r\n\r\nbegin")).await;
    let answer = raw.answer().await;
    assert_eq!((answer.status, answer.text()), (413, "big"));
}

#[tokio::test]
async fn both_ways_go_on_at_once() {
    let service = Service::raw(|mut stream, _| async move {
        reply(&mut stream, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        // Says back each byte of the body, chunk by chunk, and ends with it.
        for _ in 0..3 {
            let byte = stream.read_u8().await.unwrap();
            stream.write_all(&[b"1\r\n", &[byte][..], b"\r\n"].concat()).await.unwrap();
        }
        stream.write_all(b"0\r\n\r\n").await.unwrap();
    })
    .await;
    let front = Front::start(service.route(1)).await;
    let mut raw = front.connect().await;
    raw.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 3\r\n\r\n")).await;
    raw.until("\r\n\r\n").await;
    for byte in ["a", "b", "c"] {
        raw.send(byte).await;
        assert_eq!(raw.until("\r\n").await, "1\r\n");
        assert_eq!(raw.until("\r\n").await, format!("{byte}\r\n"));
    }
    raw.until("0\r\n\r\n").await;
}

#[tokio::test]
async fn a_websocket_passes_both_ways() {
    let service = websockets().await;
    let front = Front::start(service.route(1)).await;
    let stream = TcpStream::connect(front.address).await.unwrap();
    let (mut socket, answer) = tokio_tungstenite::client_async(format!("ws://{HOST}/"), stream).await.unwrap();
    assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
    for size in [0, 1, 125, 126, 70_000] {
        socket.send(Message::binary(vec![7; size])).await.unwrap();
        assert_eq!(patiently(socket.next()).await.unwrap().unwrap().into_data().len(), size);
    }
    socket.close(None).await.unwrap();
    while let Some(Ok(_)) = patiently(socket.next()).await {}
}

/// A service that sends back every message of a WebSocket.
pub(super) async fn websockets() -> Service {
    Service::raw(|stream, _| echo_messages(stream)).await
}

/// Takes a WebSocket, and sends back every message of it.
pub(super) async fn echo_messages(stream: TcpStream) {
    let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
    while let Some(Ok(message)) = socket.next().await {
        if (message.is_binary() || message.is_text()) && socket.send(message).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn another_protocol_can_be_switched_to() {
    let service = Service::raw(|mut stream, _| async move {
        let head = head_of(&mut stream).await.to_lowercase();
        assert!(head.contains("\r\nupgrade: echo/1\r\n") && head.contains("\r\nconnection: upgrade\r\n"), "{head}");
        stream
            .write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo/1\r\n\r\nhi ")
            .await
            .unwrap();
        let (mut read, mut write) = stream.split();
        tokio::io::copy(&mut read, &mut write).await.unwrap();
    })
    .await;
    let front = Front::start(service.route(1)).await;
    let mut raw = front.connect().await;
    raw.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: upgrade\r\nUpgrade: echo/1\r\n\r\n")).await;
    let head = raw.until("\r\n\r\n").await.to_lowercase();
    assert!(head.starts_with("http/1.1 101 ") && head.contains("upgrade: echo/1"), "{head}");
    raw.send("over to you").await;
    raw.0.shutdown().await.unwrap();
    assert_eq!(raw.rest().await, "hi over to you");
}

#[tokio::test]
async fn a_switch_to_a_protocol_that_was_not_asked_for_gets_502() {
    let (_service, front) =
        scripted("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: rot\r\n\r\n").await;
    let mut raw = front.connect().await;
    raw.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")).await;
    assert_eq!(raw.answer().await.status, 502);
}
