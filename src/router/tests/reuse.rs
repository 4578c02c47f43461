//! Connections to a service that carry more than one exchange, and what may not pass from one to the next.

use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use rstest::rstest;

use super::*;

/// A router with one thread: each keeps connections of its own.
async fn front_of(service: &Service) -> Front {
    let config = RouterConfig { workers: NonZeroUsize::MIN, ..RouterConfig::default() };
    Front::with(config, service.route(1)).await
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Answers everything with `answer`, and counts its connections.
async fn counting(answer: &'static str) -> (Service, Arc<AtomicUsize>) {
    let connections: Arc<AtomicUsize> = Arc::default();
    let seen = Arc::clone(&connections);
    let service = Service::raw(move |mut stream, _| {
        seen.fetch_add(1, Ordering::SeqCst);
        async move {
            loop {
                reply(&mut stream, answer).await;
            }
        }
    })
    .await;
    (service, connections)
}

/// Answers once on each connection, then closes it without a word.
async fn unannounced() -> (Service, Arc<AtomicUsize>) {
    let requests: Arc<AtomicUsize> = Arc::default();
    let seen = Arc::clone(&requests);
    let service = Service::raw(move |mut stream, _| {
        let seen = Arc::clone(&seen);
        async move {
            reply(&mut stream, OK).await;
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

#[rstest]
#[case::a_post("POST / HTTP/1.1", "Content-Length: 0\r\n\r\n")]
#[case::a_get_with_a_body("GET / HTTP/1.1", "Content-Length: 4\r\n\r\nbody")]
#[tokio::test]
async fn what_may_change_something_is_never_sent_twice(#[case] line: &'static str, #[case] rest: &str) {
    let sent: Arc<AtomicUsize> = Arc::default();
    let seen = Arc::clone(&sent);
    let service = Service::raw(move |mut stream, _| {
        let seen = Arc::clone(&seen);
        async move {
            reply(&mut stream, OK).await;
            assert!(head_of(&mut stream).await.starts_with(line));
            seen.fetch_add(1, Ordering::SeqCst);
        }
    })
    .await;
    let front = front_of(&service).await;
    assert_eq!(front.get("/first", "").await.status, 200);
    let answer = front.raw(format!("{line}\r\nHost: {HOST}\r\nConnection: close\r\n{rest}")).await;
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    assert_eq!(sent.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_get_is_not_sent_again_once_its_answer_has_begun() {
    let sent: Arc<AtomicUsize> = Arc::default();
    let seen = Arc::clone(&sent);
    let service = Service::raw(move |mut stream, _| {
        let seen = Arc::clone(&seen);
        async move {
            reply(&mut stream, OK).await;
            reply(&mut stream, "HTTP/1.1 200 OK\r\nContent-").await;
            seen.fetch_add(1, Ordering::SeqCst);
        }
    })
    .await;
    let front = front_of(&service).await;
    assert_eq!(front.get("/", "").await.status, 200);
    assert_eq!(front.get("/", "").await.status, 502);
    assert_eq!(sent.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_get_is_sent_again_once_and_over_a_fresh_connection() {
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let (seen, both) = (Arc::clone(&asked), Arc::new(tokio::sync::Barrier::new(2)));
    let service = Service::raw(move |mut stream, number| {
        let (seen, both) = (Arc::clone(&seen), Arc::clone(&both));
        async move {
            loop {
                let head = head_of(&mut stream).await;
                let path = head.split(' ').nth(1).unwrap().to_owned();
                seen.lock().unwrap().push(path.clone());
                match path.as_str() {
                    "/both" => {
                        both.wait().await;
                    }
                    // Those that have idled are closed by now.
                    "/again" if number < 2 => return,
                    "/never" => return,
                    _ => {}
                }
                stream.write_all(OK.as_bytes()).await.unwrap();
            }
        }
    })
    .await;
    let front = front_of(&service).await;
    // Two at a time, so that two connections are kept.
    let (one, other) = tokio::join!(front.get("/both", ""), front.get("/both", ""));
    assert_eq!((one.status, other.status), (200, 200));
    let times = |path: &str| asked.lock().unwrap().iter().filter(|asked| *asked == path).count();
    assert_eq!((front.get("/again", "").await.status, times("/again")), (200, 2));
    assert_eq!((front.get("/never", "").await.status, times("/never")), (502, 2));
}

#[tokio::test]
async fn a_post_meets_no_connection_that_the_service_has_closed() {
    let closed = Arc::new(tokio::sync::Notify::new());
    let closing = Arc::clone(&closed);
    let service = Service::raw(move |mut stream, _| {
        let closing = Arc::clone(&closing);
        async move {
            reply(&mut stream, OK).await;
            drop(stream);
            // On loopback, that has arrived by now.
            closing.notify_one();
        }
    })
    .await;
    let front = front_of(&service).await;
    for _ in 0..5 {
        assert_eq!(front.ask("POST", "/", "Content-Length: 0\r\n").await.status, 200);
        patiently(closed.notified()).await;
    }
}

/// Many services close what has idled for 5 s, and a request must not meet that.
#[tokio::test]
async fn a_connection_that_has_idled_for_long_is_not_used() {
    let (service, connections) = counting(OK).await;
    let front = front_of(&service).await;
    assert_eq!(front.get("/", "").await.status, 200);
    assert_eq!(connections.load(Ordering::SeqCst), 1);
    tokio::time::sleep(Duration::from_millis(4_200)).await;
    assert_eq!(front.get("/", "").await.status, 200);
    assert_eq!(connections.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn an_answer_without_body_leaves_its_connection_usable() {
    let connections: Arc<AtomicUsize> = Arc::default();
    let seen = Arc::clone(&connections);
    let service = Service::raw(move |mut stream, _| {
        seen.fetch_add(1, Ordering::SeqCst);
        async move {
            for status in ["200 OK", "304 Not Modified", "204 No Content"] {
                let length = if status.starts_with("204") { "" } else { "Content-Length: 11\r\n" };
                reply(&mut stream, format!("HTTP/1.1 {status}\r\n{length}\r\n")).await;
            }
        }
    })
    .await;
    let front = front_of(&service).await;
    for (method, status) in [("HEAD", 200), ("GET", 304), ("GET", 204)] {
        assert_eq!(front.ask(method, "/", "").await.status, status);
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_answer_with_two_lengths_is_the_last_on_its_connection() {
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    let (service, connections) = counting(answer).await;
    let front = front_of(&service).await;
    for connection in [1, 2, 3] {
        assert_eq!(front.get("/", "").await.status, 200);
        assert_eq!(connections.load(Ordering::SeqCst), connection);
    }
}

#[tokio::test]
async fn connections_to_a_service_are_used_again() {
    let (service, connections) = counting(OK).await;
    let front = front_of(&service).await;
    for _ in 0..50 {
        assert_eq!(front.get("/", "").await.status, 200);
        assert_eq!(front.ask("POST", "/", "Content-Length: 0\r\n").await.status, 200);
        front.switch(service.route(1)).await;
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn what_follows_an_answer_unasked_is_no_answer_to_the_next_request() {
    const UNASKED: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    // In the same packet, and when the connection is idle already. What comes while the next request is on its way
    // cannot be told from its answer; it is of the same deployment in any case.
    for gap in [None, Some(Duration::from_millis(30))] {
        let service = Service::raw(move |mut stream, _| async move {
            if let Some(gap) = gap {
                reply(&mut stream, OK).await;
                tokio::time::sleep(gap).await;
                stream.write_all(UNASKED.as_bytes()).await.unwrap();
            } else {
                reply(&mut stream, [OK, UNASKED].concat()).await;
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
