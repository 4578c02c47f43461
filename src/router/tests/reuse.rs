//! Connections to a service that carry more than one exchange, and what may not pass from one to the next.

use std::num::NonZeroUsize;
use std::sync::atomic::AtomicUsize;

use super::*;

/// Answers once on each connection, then closes it without a word.
async fn unannounced() -> (Service, Arc<AtomicUsize>) {
    let requests: Arc<AtomicUsize> = Arc::default();
    let seen = Arc::clone(&requests);
    let service = Service::raw(move |mut stream, _| {
        let seen = Arc::clone(&seen);
        async move {
            reply(&mut stream, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            seen.fetch_add(1, Ordering::SeqCst);
            if seen.load(Ordering::SeqCst) % 2 == 1 {
                // Takes the next request on this connection, and closes on it.
                let _ = stream.read(&mut [0; 16]).await;
            }
        }
    })
    .await;
    (service, requests)
}

#[tokio::test]
async fn a_service_that_closes_idle_connections_unannounced_loses_no_get() {
    let (service, requests) = unannounced().await;
    let front = Front::start(service.route(1)).await;
    let mut raw = front.connect().await;
    for _ in 0..200 {
        raw.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
        assert_eq!(raw.answer().await.status, 200);
    }
    assert_eq!(requests.load(Ordering::SeqCst), 200);
}

#[tokio::test]
async fn a_post_is_never_sent_twice() {
    let posts: Arc<AtomicUsize> = Arc::default();
    let seen = Arc::clone(&posts);
    let service = Service::raw(move |mut stream, _| {
        let seen = Arc::clone(&seen);
        async move {
            loop {
                let head = head_of(&mut stream).await;
                if head.starts_with("POST") {
                    seen.fetch_add(1, Ordering::SeqCst);
                    return;
                }
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            }
        }
    })
    .await;
    let front = Front::start(service.route(1)).await;
    assert_eq!(front.get("/", "").await.status, 200);
    let answer = front.ask("POST", "/", "Content-Length: 0\r\n").await;
    assert_eq!((answer.status, posts.load(Ordering::SeqCst)), (502, 1));
}

#[tokio::test]
async fn connections_to_a_service_are_used_again() {
    let connections: Arc<AtomicUsize> = Arc::default();
    let seen = Arc::clone(&connections);
    let service = Service::raw(move |mut stream, _| {
        seen.fetch_add(1, Ordering::SeqCst);
        async move {
            loop {
                reply(&mut stream, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            }
        }
    })
    .await;
    // Each of the router's threads keeps connections of its own.
    let config = RouterConfig { workers: NonZeroUsize::MIN, ..RouterConfig::default() };
    let front = Front::with(config, service.route(1)).await;
    for _ in 0..50 {
        assert_eq!(front.get("/", "").await.status, 200);
        assert_eq!(front.ask("POST", "/", "Content-Length: 0\r\n").await.status, 200);
        front.switch(service.route(1)).await;
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn what_follows_an_answer_unasked_is_no_answer_to_the_next_request() {
    const ANSWER: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    const UNASKED: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    // In the same packet, and when the connection is idle already. What comes while the next request is on its way
    // cannot be told from its answer; it is of the same deployment in any case.
    for gap in [None, Some(Duration::from_millis(30))] {
        let service = Service::raw(move |mut stream, _| async move {
            if let Some(gap) = gap {
                reply(&mut stream, ANSWER).await;
                tokio::time::sleep(gap).await;
                stream.write_all(UNASKED.as_bytes()).await.unwrap();
            } else {
                reply(&mut stream, [ANSWER, UNASKED].concat()).await;
            }
            let _ = stream.read_to_end(&mut Vec::new()).await;
        })
        .await;
        let gap = gap.unwrap_or_default();
        let front = Front::start(service.route(1)).await;
        for _ in 0..5 {
            assert_eq!(front.get("/", "").await.text(), "ok");
            tokio::time::sleep(gap * 3).await;
        }
    }
}
