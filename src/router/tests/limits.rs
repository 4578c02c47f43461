//! Time limits, sizes, and the end.

use futures_util::StreamExt as _;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::exchanges::websockets;
use super::*;
use crate::router::{Limits, Timeouts};

const SHORT: Duration = Duration::from_millis(200);

fn timeouts(timeouts: Timeouts) -> RouterConfig {
    RouterConfig { timeouts, ..RouterConfig::default() }
}

/// A service that takes requests and says nothing.
async fn silent() -> Service {
    Service::raw(|mut stream, _| async move {
        let mut taken = [0; 1024];
        while let Ok(1..) = stream.read(&mut taken).await {}
    })
    .await
}

#[tokio::test]
async fn a_silent_service_gets_504() {
    let service = silent().await;
    let config = timeouts(Timeouts { response_header: SHORT, ..Timeouts::default() });
    let front = Front::with(config, service.route(1)).await;
    let answer = front.get("/", "").await;
    assert_eq!(answer.status, 504);
    assert!(answer.text().contains("gave no answer") && answer.text().contains(HOST));
    let answer = front.ask("POST", "/", "Content-Length: 0\r\nAccept: application/json\r\n").await;
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&answer.body).unwrap()["status"], 504);
}

#[tokio::test]
async fn a_long_upload_is_no_silence() {
    let service = Service::echo().await;
    let config = timeouts(Timeouts { response_header: SHORT, idle: SHORT, ..Timeouts::default() });
    let front = Front::with(config, service.route(1)).await;
    let mut raw = front.connect().await;
    raw.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 10000\r\n\r\n")).await;
    for _ in 0..10 {
        tokio::time::sleep(SHORT / 4).await;
        raw.send([b'x'; 1000]).await;
    }
    assert_eq!(raw.answer().await.status, 200);
}

#[tokio::test]
async fn a_visitor_who_sends_a_byte_now_and_then_gets_408() {
    let service = silent().await;
    let config = timeouts(Timeouts { idle: SHORT, ..Timeouts::default() });
    let front = Front::with(config, service.route(1)).await;
    let mut raw = front.connect().await;
    raw.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 100000\r\n\r\n")).await;
    let (mut from, mut to) = raw.0.into_split();
    let trickle = async {
        while to.write_all(b"x").await.is_ok() {
            tokio::time::sleep(SHORT / 10).await;
        }
        std::future::pending::<()>().await;
    };
    let mut answer = [0; 12];
    tokio::select! {
        read = patiently(from.read_exact(&mut answer)) => drop(read.unwrap()),
        () = trickle => {}
    }
    assert_eq!(String::from_utf8_lossy(&answer), "HTTP/1.1 408");
}

#[tokio::test]
async fn a_visitor_who_stops_sending_gets_408() {
    let service = silent().await;
    let config = timeouts(Timeouts { idle: SHORT, ..Timeouts::default() });
    let front = Front::with(config, service.route(1)).await;
    let answer = front.ask("POST", "/", "Content-Length: 4\r\n").await;
    assert_eq!(answer.status, 408);
}

#[tokio::test]
async fn a_service_that_takes_nothing_of_an_upload_gets_504() {
    let service = Service::raw(|stream, _| async move {
        std::future::pending::<()>().await;
        drop(stream);
    })
    .await;
    let config = timeouts(Timeouts { idle: SHORT, ..Timeouts::default() });
    let front = Front::with(config, service.route(1)).await;
    let mut raw = front.connect().await;
    raw.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 100000000\r\n\r\n")).await;
    let (mut read, mut write) = raw.0.into_split();
    let mut sending = JoinSet::new();
    sending.spawn(async move { while write.write_all(&[0; 65536]).await.is_ok() {} });
    let mut seen = vec![0; 12];
    patiently(read.read_exact(&mut seen)).await.unwrap();
    assert_eq!(seen, b"HTTP/1.1 504");
}

#[tokio::test]
async fn a_service_that_takes_nothing_of_an_upload_holds_the_visitor_back() {
    const MUCH: usize = 64 << 20;
    let service = Service::raw(|stream, _| async move {
        std::future::pending::<()>().await;
        drop(stream);
    })
    .await;
    let front = Front::start(service.route(1)).await;
    let mut raw = front.connect().await;
    raw.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {MUCH}\r\n\r\n")).await;
    let (part, mut sent) = ([0; 65536], 0);
    while sent < MUCH
        && let Ok(written) = tokio::time::timeout(SHORT * 5, raw.0.write(&part)).await
    {
        sent += written.unwrap();
    }
    assert!(sent < MUCH / 2, "{sent} bytes are kept for a service that takes none");
}

#[tokio::test]
async fn a_service_that_takes_no_connection_gets_504() {
    let port = listen().await.1;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, 1], port.get()))).unwrap();
    let _listener = socket.listen(1).unwrap();
    let mut queued = Vec::new();
    while let Ok(stream) = tokio::time::timeout(SHORT, TcpStream::connect(("127.0.0.1", port.get()))).await {
        queued.push(stream.unwrap());
    }
    let front =
        Front::with(timeouts(Timeouts { connect: SHORT, ..Timeouts::default() }), vec![route_to(1, port)]).await;
    assert_eq!(front.get("/", "").await.status, 504);
}

#[tokio::test]
async fn a_service_silent_within_an_answer_is_given_up_sooner_when_the_length_is_known() {
    let service = Service::raw(|mut stream, _| async move {
        let known = head_of(&mut stream).await.starts_with("GET /known ");
        let (length, body) =
            if known { ("Content-Length: 9", "abc") } else { ("Transfer-Encoding: chunked", "3\r\nabc\r\n") };
        stream.write_all(format!("HTTP/1.1 200 OK\r\n{length}\r\n\r\n{body}").as_bytes()).await.unwrap();
        if known {
            // What is waited for never comes.
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(SHORT * 3).await;
        stream.write_all(b"0\r\n\r\n").await.unwrap();
    })
    .await;
    let config = timeouts(Timeouts { idle: SHORT, ..Timeouts::default() });
    let front = Front::with(config, service.route(1)).await;
    assert!(front.get("/known", "").await.text().ends_with("abc"));
    assert!(front.get("/stream", "").await.text().ends_with("0\r\n\r\n"));
}

#[tokio::test]
async fn a_slow_head_and_an_idle_connection_are_closed() {
    let config = timeouts(Timeouts { request_header: SHORT, ..Timeouts::default() });
    let front = Front::with(config, Vec::new()).await;
    for start in ["", "GET / HTTP/1.1\r\nHost: a"] {
        assert_eq!(front.raw(start).await, "");
    }
    let answer = front.raw(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 404"));
}

#[tokio::test]
async fn a_connection_whose_buffers_were_given_back_goes_on_as_before() {
    let service = Service::echo().await;
    let config = timeouts(Timeouts { park: Duration::ZERO, ..Timeouts::default() });
    let front = Front::with(config, service.route(1)).await;
    let request =
        format!("POST /a HTTP/1.1\r\nHost: {HOST}\r\nX-Long: {}\r\nContent-Length: 4\r\n\r\nbody", "a".repeat(3000));
    let mut raw = front.connect().await;
    // In pieces that end anywhere, also within the next request.
    let twice = request.repeat(2);
    for at in [1, 20, 1024, 2000, request.len() - 2, request.len(), request.len() + 1, request.len() + 2000] {
        raw.send(&twice[..at]).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
        raw.send(&twice[at..]).await;
        for _ in 0..2 {
            let answer = raw.answer().await;
            assert!(answer.status == 200 && answer.text().ends_with("\r\n\r\nbody"), "{answer:?}");
        }
    }
    front.shutdown.cancel();
    assert_eq!(raw.rest().await, "");
    front.stop().await;
}

#[tokio::test]
async fn a_visitor_who_takes_nothing_is_given_up() {
    let service = Service::http(|_| async { text(vec![0; 64 << 20]) }).await;
    let config = timeouts(Timeouts { idle: SHORT, ..Timeouts::default() });
    let front = Front::with(config, service.route(1)).await;
    let mut raw = front.connect().await;
    raw.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    raw.until("\r\n\r\n").await;
    // Zero in flight means that the answer was given up: nothing is read here.
    patiently(front.handle.drain(DeploymentId(1), PATIENCE * 2)).await;
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let front = Front::start(Vec::new()).await;
    let many: String = (0..101).map(|i| format!("X-{i}: a\r\n")).collect();
    let long = format!("X-Long: {}\r\n", "a".repeat(70_000));
    for headers in [many, long] {
        let answer = front.raw(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n{headers}\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    }
}

#[tokio::test]
async fn how_large_a_head_may_be_is_the_operators_to_say() {
    let limits = Limits { headers: 10, head_bytes: 2000, ..Limits::default() };
    let front = Front::with(RouterConfig { limits, ..RouterConfig::default() }, Vec::new()).await;
    let many: String = (0..10).map(|i| format!("X-{i}: a\r\n")).collect();
    let long = format!("X-Long: {}\r\n", "a".repeat(2000));
    for (headers, status) in [(many.as_str(), 431), (&long, 431), (&many[..many.len() / 2], 404)] {
        assert_eq!(
            Answer::parse(front.raw(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n{headers}\r\n")).await.as_bytes())
                .status,
            status
        );
    }
}

#[tokio::test]
async fn connections_over_the_limit_wait_for_a_place() {
    let limits = Limits { connections: 1, ..Limits::default() };
    let front = Front::with(RouterConfig { limits, ..RouterConfig::default() }, Vec::new()).await;
    let request = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    let mut first = front.connect().await;
    first.send(&request).await;
    assert_eq!(first.answer().await.status, 404);
    let mut second = front.connect().await;
    second.send(&request).await;
    assert!(tokio::time::timeout(SHORT, second.0.readable()).await.is_err());
    drop(first);
    assert_eq!(second.answer().await.status, 404);
}

#[tokio::test]
async fn connections_of_one_address_over_its_limit_are_turned_away() {
    let limits = Limits { connections_of_one: 1, ..Limits::default() };
    let front = Front::with(RouterConfig { limits, ..RouterConfig::default() }, Vec::new()).await;
    let request = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    let mut first = front.connect().await;
    first.send(&request).await;
    assert_eq!(first.answer().await.status, 404);
    let mut second = front.connect().await;
    // That may come too late to be sent at all.
    let _ = second.0.write_all(request.as_bytes()).await;
    let mut byte = [0];
    let turned_away = tokio::io::AsyncReadExt::read(&mut second.0, &mut byte).await;
    assert!(matches!(turned_away, Ok(0) | Err(_)), "{turned_away:?}");
    first.send(&request).await;
    assert_eq!(first.answer().await.status, 404);
}

#[tokio::test]
async fn at_the_end_what_has_begun_finishes_and_what_is_queued_is_served() {
    let (started, mut starts) = tokio::sync::mpsc::channel(1);
    let service = Service::http(move |_| {
        let started = started.clone();
        async move {
            let _ = started.try_send(());
            tokio::time::sleep(SHORT * 4).await;
            text("finished")
        }
    })
    .await;
    let front = Front::start(service.route(1)).await;
    let request = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    let mut running = front.connect().await;
    running.send(&request).await;
    starts.recv().await.unwrap();
    // On a current-thread runtime, nothing has been accepted before the next await that waits.
    let queued = std::net::TcpStream::connect(front.address).unwrap();
    queued.set_nonblocking(true).unwrap();
    front.shutdown.cancel();
    let mut queued = Raw(TcpStream::from_std(queued).unwrap());
    queued.send(&request).await;
    for raw in [&mut running, &mut queued] {
        let answer = raw.answer().await;
        assert_eq!((answer.status, answer.text()), (200, "finished"));
    }
    assert_eq!(running.rest().await, "");
    let address = front.address;
    front.stop().await;
    assert!(TcpStream::connect(address).await.is_err());
}

/// The next process cannot begin before this one has ended.
#[tokio::test]
async fn at_the_end_visitors_are_served_while_an_older_answer_is_under_way() {
    let (started, mut starts) = tokio::sync::mpsc::channel(1);
    let (release, released) = tokio::sync::watch::channel(false);
    let service = Service::http(move |request| {
        let (started, mut released) = (started.clone(), released.clone());
        async move {
            if request.uri().path() == "/long" {
                let _ = started.try_send(());
                let _ = released.wait_for(|released| *released).await;
            }
            text("finished")
        }
    })
    .await;
    let front = Front::start(service.route(1)).await;
    let mut long = front.connect().await;
    long.send(format!("GET /long HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    starts.recv().await.unwrap();
    // One that has said nothing yet is closed once it is clear that nothing is on its way.
    let silent = front.connect().await;
    front.shutdown.cancel();
    assert_eq!(silent.rest().await, "");
    assert!(!front.handle.closed().is_cancelled());
    let answer = front.raw(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("connection: close"), "{answer}");
    release.send(true).unwrap();
    assert_eq!(long.answer().await.status, 200);
    front.stop().await;
}

#[tokio::test]
async fn at_the_end_a_websocket_is_told_that_kennel_goes_away() {
    let service = websockets().await;
    let front = Front::start(service.route(1)).await;
    let stream = TcpStream::connect(front.address).await.unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async(format!("ws://{HOST}/"), stream).await.unwrap();
    front.shutdown.cancel();
    match patiently(socket.next()).await {
        Some(Ok(Message::Close(Some(frame)))) => assert_eq!(frame.code, CloseCode::Away),
        other => panic!("{other:?}"),
    }
    assert!(patiently(socket.next()).await.is_none());
    front.stop().await;
}

#[tokio::test]
async fn what_does_not_finish_in_time_is_cut_at_the_end() {
    let service = silent().await;
    let config = timeouts(Timeouts { lame_duck: Duration::ZERO, finish: SHORT, ..Timeouts::default() });
    let front = Front::with(config, service.route(1)).await;
    let mut raw = front.connect().await;
    raw.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    while front.handle.shared.generation.load().tasks.is_empty() {
        tokio::task::yield_now().await;
    }
    front.stop().await;
    assert_eq!(raw.rest().await, "");
}
