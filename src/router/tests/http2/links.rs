//! Connections to services that speak HTTP/2: shared, replaced, and as many as it takes.

use h2::server::SendResponse;

use super::services::{call, route, service};
use super::*;

/// Answers with the number of the connection.
async fn number(_: Request<RecvStream>, mut respond: SendResponse<Bytes>, number: usize) {
    let mut answer = respond.send_response(Response::new(()), false).unwrap();
    answer.send_data(number.to_string().into(), true).unwrap();
}

#[tokio::test]
async fn requests_share_a_connection_and_a_closed_one_is_replaced() {
    let one = service(number).await;
    let port = one.port;
    let config = RouterConfig { workers: std::num::NonZeroUsize::MIN, ..RouterConfig::default() };
    let front = Front::with(config, route(&one)).await;
    let mut visitor = Http2::connect(&front).await;
    for _ in 0..3 {
        assert_eq!(visitor.get("/").await.text(), "0");
    }
    // The service starts anew, on its port.
    one.stop().await;
    let mut tasks = JoinSet::new();
    let listener = TcpListener::bind(("127.0.0.1", port.get())).await.unwrap();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            connections.spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((asked, respond))) = connection.accept().await {
                    number(asked, respond, 7).await;
                }
            });
        }
    });
    let answered = patiently(async {
        loop {
            let reply = visitor.get("/").await;
            if reply.status == 200 {
                return reply;
            }
        }
    })
    .await;
    assert_eq!(answered.text(), "7");
}

#[tokio::test]
async fn a_connection_whose_service_says_goodbye_gets_no_more_requests() {
    let others = Arc::new(tokio::sync::Notify::new());
    let served = Arc::clone(&others);
    let service = Service::raw(move |stream, which| {
        let served = Arc::clone(&served);
        async move {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            let mut kept = JoinSet::new();
            while let Some(Ok((asked, mut respond))) = connection.accept().await {
                if asked.uri().path() == "/first" {
                    let mut answer = respond.send_response(Response::new(()), false).unwrap();
                    let served = Arc::clone(&served);
                    kept.spawn(async move {
                        served.notified().await;
                        answer.send_data(Bytes::from_static(b"still here"), true).unwrap();
                    });
                    connection.graceful_shutdown();
                } else {
                    number(asked, respond, which).await;
                }
            }
        }
    })
    .await;
    let config = RouterConfig { workers: std::num::NonZeroUsize::MIN, ..RouterConfig::default() };
    let front = Front::with(config, route(&service)).await;
    let mut visitor = Http2::connect(&front).await;
    let (response, _stream) = visitor.begin(request("GET", "/first")).await;
    let mut first = patiently(response).await.unwrap().into_body();
    patiently(async {
        loop {
            let reply = visitor.get("/").await;
            assert_eq!(reply.status, 200);
            if reply.text() == "1" {
                return;
            }
        }
    })
    .await;
    others.notify_one();
    assert_eq!(read(&mut first).await.unwrap(), b"still here");
}

#[tokio::test]
async fn more_calls_than_a_connection_takes_get_another() {
    let (counted, mut connections) = tokio::sync::mpsc::channel(200);
    let service = service(move |_, respond, number| {
        let counted = counted.clone();
        async move {
            counted.send(number).await.unwrap();
            let _kept = respond;
            std::future::pending::<()>().await;
        }
    })
    .await;
    let config = RouterConfig { workers: std::num::NonZeroUsize::MIN, ..RouterConfig::default() };
    let front = Front::with(config, route(&service)).await;
    let mut visitors = Vec::new();
    let mut calls = Vec::new();
    for _ in 0..3 {
        let mut visitor = Http2::connect(&front).await;
        for _ in 0..60 {
            calls.push(visitor.begin(call()).await);
        }
        visitors.push(visitor);
    }
    let mut seen = [0; 3];
    for _ in 0..180 {
        seen[patiently(connections.recv()).await.unwrap()] += 1;
    }
    assert_eq!(seen, [100, 80, 0]);
}
