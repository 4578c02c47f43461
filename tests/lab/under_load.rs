//! Visitors never notice a deploy.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use http::Method;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::harness::http::{Answer, Connection, request, send};
use crate::harness::visitor::open_socket;
use crate::harness::{App, Deployment, Lab, ROUTER, Service};

/// What the clients of one kind saw.
#[derive(Debug, Default)]
struct Tally {
    answers: BTreeMap<String, u64>,
    failures: Vec<String>,
    slowest: Duration,
}

impl Tally {
    fn note(&mut self, outcome: Result<Answer, String>, took: Duration) {
        self.slowest = self.slowest.max(took);
        match outcome {
            Ok(answer) if answer.status == 200 => {
                let version = answer.json::<Value>()["version"].as_str().unwrap_or_default().to_owned();
                *self.answers.entry(version).or_default() += 1;
            }
            Ok(answer) => self.failures.push(format!("{}: {}", answer.status, answer.text())),
            Err(err) => self.failures.push(err),
        }
    }

    fn add(&mut self, other: Self) {
        for (version, count) in other.answers {
            *self.answers.entry(version).or_default() += count;
        }
        self.failures.extend(other.failures);
        self.slowest = self.slowest.max(other.slowest);
    }

    fn total(&self) -> u64 {
        self.answers.values().sum()
    }
}

/// Asks again and again over one connection. The server has no reason to close it.
async fn keep_alive(host: String, stop: CancellationToken) -> Tally {
    let mut tally = Tally::default();
    let mut connection = Connection::open(ROUTER).await.expect("the router listens");
    while !stop.is_cancelled() {
        if connection.is_closed() {
            tally.failures.push("the router closed a connection that was kept alive".to_owned());
            connection = Connection::open(ROUTER).await.expect("the router listens");
        }
        let begun = Instant::now();
        let outcome = connection.send(request(Method::GET, &host, "/", "")).await;
        tally.note(outcome, begun.elapsed());
    }
    tally
}

/// Asks again and again, each time over a new connection.
async fn connect_each_time(host: String, path: &'static str, stop: CancellationToken) -> Tally {
    let mut tally = Tally::default();
    while !stop.is_cancelled() {
        let begun = Instant::now();
        let outcome = send(ROUTER, request(Method::GET, &host, path, "")).await;
        tally.note(outcome, begun.elapsed());
    }
    tally
}

/// Talks over a WebSocket until it is cut; tells when that was, in milliseconds since 1970.
async fn talk_until_cut(host: String, stop: CancellationToken) -> Option<i64> {
    let mut socket = open_socket(&host).await;
    while !stop.is_cancelled() {
        if socket.echo("still there?").await.is_err() {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970");
            return Some(i64::try_from(now.as_millis()).expect("it is long before the end of time"));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    None
}

fn version(api: usize, chat: &str) -> App {
    let api = Service::new("api", &api.to_string()).settings(&["drain_secs = 3"]);
    App::default().with(api).with(Service::new("chat", chat).settings(&[]))
}

/// A socket of a version is open until that version's drain has ended, and no longer.
fn expect_cut_at_the_drains_end(cut: Option<i64>, successor: &Deployment, drain_secs: i64) {
    let begun = successor.live_at.expect("the successor is live");
    let lasted = cut.expect("the drain cuts what is still open at its end") - begun;
    let drain = drain_secs * 1000;
    println!("a WebSocket with a drain of {drain_secs} s was cut {lasted} ms after its successor went live");
    assert!(lasted >= drain - 20, "cut {lasted} ms into a drain of {drain} ms");
    assert!(lasted <= drain + 1500, "still there {lasted} ms into a drain of {drain} ms");
}

#[tokio::test(flavor = "multi_thread")]
async fn five_redeploys_under_load_fail_no_request_and_cut_no_websocket_early() {
    let lab = Lab::hello().await;
    let first = lab.deploy("hello", "main", &version(1, "one")).await;
    let (api_host, chat_host) = (first["api"].host.clone(), first["chat"].host.clone());
    let (stop, over) = (CancellationToken::new(), CancellationToken::new());
    let mut kept = JoinSet::new();
    let mut fresh = JoinSet::new();
    let mut slow = JoinSet::new();
    for _ in 0..8 {
        kept.spawn(keep_alive(api_host.clone(), stop.clone()));
    }
    for _ in 0..4 {
        fresh.spawn(connect_each_time(api_host.clone(), "/", stop.clone()));
        slow.spawn(connect_each_time(api_host.clone(), "/slow", stop.clone()));
    }
    let mut chat = JoinSet::new();
    chat.spawn(talk_until_cut(chat_host.clone(), over.clone()));
    let mut sockets = vec![JoinSet::new()];
    sockets[0].spawn(talk_until_cut(api_host.clone(), over.clone()));

    let mut versions = vec![first["api"].clone()];
    let mut second_chat = None;
    for n in 2..=6 {
        let pushed = lab.push("hello", "main", &version(n, "two")).await;
        versions.push(lab.live(pushed.build, "api").await);
        if n == 2 {
            second_chat = Some(lab.live(pushed.build, "chat").await);
        }
        let mut socket = JoinSet::new();
        socket.spawn(talk_until_cut(api_host.clone(), over.clone()));
        sockets.push(socket);
    }
    // The last redeploy is over when its predecessor is gone.
    lab.becomes(versions[4].id, "retired").await;
    stop.cancel();

    for (name, tasks) in [("8 kept", kept), ("4 fresh", fresh), ("4 of 1.5 s", slow)] {
        let mut sum = Tally::default();
        for tally in tasks.join_all().await {
            sum.add(tally);
        }
        println!("{name}: {} answers, slowest {} ms: {:?}", sum.total(), sum.slowest.as_millis(), sum.answers);
        assert!(sum.failures.is_empty(), "{name}: {} failures, such as {:?}", sum.failures.len(), &sum.failures[..1]);
        assert!(sum.answers.contains_key("1") && sum.answers.contains_key("6"), "{name}: {:?}", sum.answers);
    }
    for (n, socket) in sockets.into_iter().enumerate().take(5) {
        let cut = socket.join_all().await.remove(0);
        expect_cut_at_the_drains_end(cut, &versions[n + 1], 3);
    }
    // By default a drain takes 30 s; a deploy of another service cuts nothing.
    let cut = chat.join_all().await.remove(0);
    expect_cut_at_the_drains_end(cut, &second_chat.expect("it was deployed"), 30);
    over.cancel();
    lab.becomes(first["chat"].id, "retired").await;
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_ends_as_soon_as_its_last_request_does() {
    let lab = Lab::hello().await;
    let app = |version: &str| App::default().with(Service::new("api", version).settings(&["drain_secs = 30"]));
    let old = lab.deploy_api("hello", "main", &app("one")).await;
    let mut slow = JoinSet::new();
    let host = old.host.clone();
    slow.spawn(async move { send(ROUTER, request(Method::GET, &host, "/slow", "")).await });
    lab.deploy_api("hello", "main", &app("two")).await;

    lab.becomes(old.id, "retired").await;

    let answer = slow.join_all().await.remove(0).expect("a request that was begun is answered").expect(200);
    assert_eq!(answer.json::<Value>()["version"], "one");
    lab.finish().await;
}
