//! Promise 2: visitors never notice a deploy.

use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::Instant;

use futures_util::{SinkExt as _, StreamExt as _};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::exchanges::websockets;
use super::*;
use crate::model::DeploymentId;
use crate::router::upstream::Upstream;

const DRAIN: Duration = Duration::from_millis(400);

/// A service that answers with its deployment's number, and notes requests that come when it should be left alone.
async fn numbered(number: i64, retired: Arc<AtomicBool>, late: Arc<AtomicUsize>) -> Service {
    Service::http(move |_| {
        let was_retired = retired.load(Ordering::SeqCst);
        late.fetch_add(usize::from(was_retired), Ordering::SeqCst);
        async move {
            tokio::task::yield_now().await;
            text(number.to_string())
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_hundred_deploys_fail_no_request_and_reach_no_stopped_service() {
    const SWAPS: i64 = 220;
    let late: Arc<AtomicUsize> = Arc::default();
    let mut retired: Arc<AtomicBool> = Arc::default();
    let mut service = numbered(0, Arc::clone(&retired), Arc::clone(&late)).await;
    let front = Arc::new(Front::start(service.route(0)).await);
    let live = Arc::new(std::sync::atomic::AtomicI64::new(0));
    let done = CancellationToken::new();
    let mut visitors: JoinSet<u64> = JoinSet::new();
    for number in 0..8 {
        let (front, done, live) = (Arc::clone(&front), done.clone(), Arc::clone(&live));
        visitors.spawn(async move {
            let keep = number % 2 == 0;
            let method = if number % 4 < 2 { "GET" } else { "POST" };
            let connection = if keep { "keep-alive" } else { "close" };
            let request =
                format!("{method} / HTTP/1.1\r\nHost: {HOST}\r\nConnection: {connection}\r\nContent-Length: 0\r\n\r\n");
            let mut answers = 0;
            let mut raw = front.connect().await;
            while !done.is_cancelled() {
                let before = live.load(Ordering::SeqCst);
                raw.send(&request).await;
                let answer = raw.answer().await;
                assert_eq!(answer.status, 200, "{answer:?}");
                let version: i64 = answer.text().parse().unwrap();
                assert!(version >= before, "an answer of {version} after {before} was live");
                answers += 1;
                if !keep {
                    raw = front.connect().await;
                }
            }
            answers
        });
    }
    let mut slowest = Duration::ZERO;
    for number in 1..=SWAPS {
        let next_retired: Arc<AtomicBool> = Arc::default();
        let next = numbered(number, Arc::clone(&next_retired), Arc::clone(&late)).await;
        let begun = Instant::now();
        front.switch(next.route(number)).await;
        slowest = slowest.max(begun.elapsed());
        live.store(number, Ordering::SeqCst);
        patiently(front.handle.drain(DeploymentId(number - 1), PATIENCE)).await;
        retired.store(true, Ordering::SeqCst);
        service.stop().await;
        (service, retired) = (next, next_retired);
    }
    done.cancel();
    let answers: u64 = visitors.join_all().await.iter().sum();
    println!("{SWAPS} swaps, {answers} answers, slowest swap {slowest:?}");
    assert_eq!(late.load(Ordering::SeqCst), 0);
    assert!(answers > SWAPS.unsigned_abs(), "there were no visitors to disturb: {answers}");
}

#[tokio::test]
async fn a_long_request_outlives_the_deploy_and_holds_its_service() {
    let service = Service::http(|_| async {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        text("old")
    })
    .await;
    let next = Service::http(|_| async { text("new") }).await;
    let front = Front::start(service.route(1)).await;
    let mut raw = front.connect().await;
    raw.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    in_flight(&front, 1).await;
    front.switch(next.route(2)).await;
    assert_eq!(front.get("/", "").await.text(), "new");
    let begun = Instant::now();
    let (answer, ()) = tokio::join!(raw.answer(), front.handle.drain(DeploymentId(1), PATIENCE));
    assert_eq!(answer.text(), "old");
    assert!(begun.elapsed() > Duration::from_millis(1000));
    // Its connection was not closed by the switch, and now leads to the new one.
    raw.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    assert_eq!(raw.answer().await.text(), "new");
}

/// Returns once a request is inside `deployment`.
async fn in_flight(front: &Front, deployment: i64) {
    let upstreams = front.handle.shared.table.load().upstreams_of(DeploymentId(deployment));
    patiently(async {
        while upstreams.iter().all(|upstream| upstream.claims() == 0) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_websocket_lives_until_its_drain_is_over_and_not_longer() {
    let (service, next) = (websockets().await, websockets().await);
    let front = Front::start(service.route(1)).await;
    let stream = TcpStream::connect(front.address).await.unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async(format!("ws://{HOST}/"), stream).await.unwrap();
    front.switch(next.route(2)).await;
    let begun = Instant::now();
    let mut draining = JoinSet::new();
    let handle = front.handle.clone();
    draining.spawn(async move { handle.drain(DeploymentId(1), DRAIN).await });
    let closed = loop {
        if socket.send(Message::text("still there?")).await.is_err() {
            panic!("no close frame came");
        }
        match patiently(socket.next()).await {
            Some(Ok(Message::Text(_))) => tokio::time::sleep(Duration::from_millis(5)).await,
            Some(Ok(Message::Close(frame))) => break frame.unwrap().code,
            other => panic!("{other:?}"),
        }
    };
    let lived = begun.elapsed();
    assert_eq!(closed, CloseCode::Away);
    assert!(lived >= DRAIN && lived < DRAIN + Duration::from_secs(1), "{lived:?}");
    patiently(draining.join_next()).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_deploy_of_one_service_leaves_the_websockets_of_another_alone() {
    let (held, service, next) = (websockets().await, websockets().await, websockets().await);
    let host = "chat-main.shop.example.com".parse().unwrap();
    let other = Route { host, target: TargetId(9), ..route_to(9, held.port) };
    let front = Front::start([service.route(1), vec![other.clone()]].concat()).await;
    let stream = TcpStream::connect(front.address).await.unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async("ws://chat-main.shop.example.com/", stream).await.unwrap();
    front.switch([next.route(2), vec![other]].concat()).await;
    patiently(front.handle.drain(DeploymentId(1), Duration::ZERO)).await;
    socket.send(Message::text("here")).await.unwrap();
    assert_eq!(patiently(socket.next()).await.unwrap().unwrap(), Message::text("here"));
}

#[tokio::test]
async fn a_request_that_will_not_end_is_cut_at_the_deadline_and_not_before() {
    let service = Service::raw(|mut stream, _| async move {
        reply(&mut stream, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n").await;
        std::future::pending::<()>().await;
    })
    .await;
    let front = Front::start(service.route(1)).await;
    let mut raw = front.connect().await;
    raw.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    raw.until("1\r\na\r\n").await;
    front.switch(Vec::new()).await;
    let begun = Instant::now();
    patiently(front.handle.drain(DeploymentId(1), DRAIN)).await;
    assert!(begun.elapsed() >= DRAIN && begun.elapsed() < DRAIN + Duration::from_millis(900), "{:?}", begun.elapsed());
    assert_eq!(raw.rest().await, "");
}

#[tokio::test]
async fn a_drain_of_nothing_returns_at_once() {
    let service = Service::echo().await;
    let front = Front::start(service.route(1)).await;
    assert_eq!(front.get("/", "").await.status, 200);
    front.switch(Vec::new()).await;
    let begun = Instant::now();
    for deployment in [1, 1, 77] {
        patiently(front.handle.drain(DeploymentId(deployment), PATIENCE)).await;
    }
    assert!(begun.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn a_closed_service_gets_no_request_even_while_the_table_still_names_it() {
    let retired = Arc::new(AtomicBool::new(false));
    let late: Arc<AtomicUsize> = Arc::default();
    let service = numbered(1, Arc::clone(&retired), Arc::clone(&late)).await;
    let front = Front::start(service.route(1)).await;
    assert_eq!(front.get("/", "").await.status, 200);
    patiently(front.handle.drain(DeploymentId(1), PATIENCE)).await;
    retired.store(true, Ordering::SeqCst);
    let answer = front.get("/", "").await;
    assert_eq!((answer.status, late.load(Ordering::SeqCst)), (503, 0));
    assert_eq!(answer.header("retry-after"), Some("1"));
    // Rows that still name it after its drain mean it: the next table has it back.
    front.switch(service.route(1)).await;
    assert_eq!(front.get("/", "").await.status, 200);
}

/// A restart by the service manager, which holds the listening socket too.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn restarts_fail_no_request() {
    let service = Service::http(|_| async { text("ok") }).await;
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    held.set_nonblocking(true).unwrap();
    let address = held.local_addr().unwrap();
    let start = || async {
        let routes = std::sync::Mutex::new(service.route(1));
        let (router, handle) = Router::with_source(RouterConfig::default(), Source::Given(routes));
        handle.reload().await.unwrap();
        let shutdown = CancellationToken::new();
        let mut running = JoinSet::new();
        let listener = TcpListener::from_std(held.try_clone().unwrap()).unwrap();
        running.spawn(router.run(super::plain(listener), shutdown.clone()));
        (shutdown, running)
    };
    let done = CancellationToken::new();
    let mut visitors: JoinSet<u64> = JoinSet::new();
    for number in 0..8 {
        let done = done.clone();
        visitors.spawn(async move {
            let connection = if number % 2 == 0 { "keep-alive" } else { "close" };
            let request = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: {connection}\r\n\r\n");
            let mut answers = 0;
            let mut raw = Raw(TcpStream::connect(address).await.unwrap());
            while !done.is_cancelled() {
                raw.send(&request).await;
                let answer = raw.answer().await;
                assert_eq!(answer.status, 200, "{answer:?}");
                answers += 1;
                if answer.header("connection") == Some("close") {
                    raw = Raw(TcpStream::connect(address).await.unwrap());
                }
            }
            answers
        });
    }
    let (mut shutdown, mut running) = start().await;
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        shutdown.cancel();
        patiently(running.join_next()).await.unwrap().unwrap();
        (shutdown, running) = start().await;
    }
    done.cancel();
    let answers: u64 = visitors.join_all().await.iter().sum();
    println!("8 restarts, {answers} answers");
    assert!(answers > 100);
}

/// Checking first and taking then fails this nearly always.
#[test]
fn no_claim_is_given_that_a_drain_does_not_wait_for() {
    use std::sync::Barrier;
    const CLAIMING: usize = 2;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for _ in 0..400 {
        let upstreams: Vec<_> = (0..20)
            .map(|_| Arc::new(Upstream::new(DeploymentId(1), Port::FIRST.try_into().unwrap(), Protocol::Http1, 1)))
            .collect();
        let stopped: Vec<_> = (0..20).map(|_| AtomicBool::new(false)).collect();
        let barrier = Barrier::new(CLAIMING + 1);
        std::thread::scope(|scope| {
            for _ in 0..CLAIMING {
                scope.spawn(|| {
                    barrier.wait();
                    for (upstream, stopped) in upstreams.iter().zip(&stopped) {
                        while let Some(claim) = upstream.claim() {
                            assert!(!stopped.load(Ordering::SeqCst), "a claim on a service that is stopped");
                            drop(claim);
                        }
                    }
                });
            }
            barrier.wait();
            for (upstream, stopped) in upstreams.iter().zip(&stopped) {
                runtime.block_on(upstream.drain(PATIENCE, || ()));
                stopped.store(true, Ordering::SeqCst);
            }
        });
    }
}
