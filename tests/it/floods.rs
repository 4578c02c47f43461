//! What many deliveries that are no good cost, and whom.

use std::net::SocketAddr;
use std::time::Duration;

use kennel::model::BuildState as B;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use crate::harness::{Harness, PROJECT, Script, commit, signature};

const PATIENCE: Duration = Duration::from_secs(5);
/// How many forged deliveries one address may send at once.
const ALLOWANCE: usize = 20;
/// How many more it may send while a slow machine runs the test.
const LEEWAY: usize = 10;
const FORGED: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// A client that may come from any address of this machine's.
struct Client(TcpStream);

struct Answer {
    status: u16,
    head: String,
    body: Value,
}

impl Client {
    async fn connect(from: &str, to: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(from.parse().unwrap(), 0)).unwrap();
        Self(socket.connect(to).await.unwrap())
    }

    async fn send(&mut self, head: &str, body: &str) -> Answer {
        self.0.write_all(head.as_bytes()).await.unwrap();
        self.0.write_all(body.as_bytes()).await.unwrap();
        let answer = tokio::time::timeout(PATIENCE, self.read()).await;
        answer.expect("it is answered before more is sent")
    }

    async fn read(&mut self) -> Answer {
        let mut bytes = Vec::new();
        loop {
            assert_ne!(self.0.read_buf(&mut bytes).await.unwrap(), 0, "closed before the answer");
            let text = String::from_utf8_lossy(&bytes);
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let head = head.to_ascii_lowercase();
            let length = header(&head, "content-length").map_or(0, |length| length.parse().unwrap());
            if body.len() >= length {
                let status = head.split(' ').nth(1).unwrap().parse().unwrap();
                return Answer { status, body: serde_json::from_str(body).unwrap_or_default(), head };
            }
        }
    }
}

fn header<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    head.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")))
}

fn push(n: u32) -> String {
    json!({"ref": "refs/heads/main", "after": format!("{n:040x}"), "repository": {"full_name": "me/shop"}}).to_string()
}

/// The head of a delivery of `length` bytes.
fn head(host: &str, delivery: &str, signature: &str, length: usize, more: &str) -> String {
    format!(
        "POST /webhook/{PROJECT} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n\
         x-forgejo-event: push\r\nx-forgejo-delivery: {delivery}\r\nx-forgejo-signature: {signature}\r\n\
         content-length: {length}\r\n{more}\r\n"
    )
}

async fn forge(from: &str, harness: &Harness, more: &str) -> Answer {
    let mut client = Client::connect(from, harness.api_addr()).await;
    client.send(&head("127.0.0.1", "forged", FORGED, 2, more), "{}").await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_forges_too_much_is_told_to_wait_and_nobody_else_is() {
    let harness = Harness::start().await;
    // An address a client gives itself is not where it comes from.
    let until_limited = async || {
        for n in 0..ALLOWANCE + LEEWAY {
            let answer = forge("127.0.0.2", &harness, &format!("x-forwarded-for: 192.0.2.{n}\r\n")).await;
            match answer.status {
                429 => return (n, answer),
                status => assert_eq!(status, 401),
            }
        }
        panic!("it is not limited");
    };
    let (refused, last) = until_limited().await;
    assert!(refused >= ALLOWANCE, "{refused}");
    let secs: u64 = header(&last.head, "retry-after").expect("it is told when").parse().unwrap();
    assert!((1..=4).contains(&secs), "{}", last.head);
    assert!(last.body["detail"].as_str().unwrap().contains("127.0.0.2"), "{}", last.body);
    assert_eq!(forge("127.0.0.3", &harness, "").await.status, 401, "another address has an allowance of its own");

    // Nothing that costs more than a small body is read from it: these are answered though the body never comes.
    for length in [100_000, 25 * 1024 * 1024] {
        until_limited().await;
        let mut client = Client::connect("127.0.0.2", harness.api_addr()).await;
        assert_eq!(client.send(&head("127.0.0.1", "large", FORGED, length, ""), "").await.status, 429);
    }

    // A forge that shares the address is not held up, however often it delivers.
    harness.script(&commit('a'), Script::api("1"));
    for n in 1..=50 {
        let (body, mut client) = (push(n), Client::connect("127.0.0.2", harness.api_addr()).await);
        let head = head("127.0.0.1", &format!("good-{n}"), &signature(&body), body.len(), "");
        let answer = client.send(&head, &body).await;
        assert_eq!(answer.status, 202, "{}", answer.body);
    }
    assert_eq!(harness.builds().await.len(), 50);
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn through_the_router_the_visitor_is_charged_and_not_the_router() {
    let harness = Harness::start().await;
    let forge = async |from: &str| {
        let mut client = Client::connect(from, harness.router()).await;
        let more = "x-forwarded-for: 127.0.0.3\r\nforwarded: for=127.0.0.3\r\nx-real-ip: 127.0.0.3\r\n";
        client.send(&head("kennel.example.com", "forged", FORGED, 2, more), "{}").await.status
    };
    let mut statuses = Vec::new();
    while statuses.last() != Some(&429) {
        statuses.push(forge("127.0.0.2").await);
        assert!(statuses.len() <= ALLOWANCE + LEEWAY, "{statuses:?}");
    }
    assert!(statuses.len() > ALLOWANCE && statuses[..ALLOWANCE] == [401; ALLOWANCE], "{statuses:?}");
    assert_eq!(forge("127.0.0.3").await, 401);
    let unknown = "POST /webhook/nobody HTTP/1.1\r\nhost: kennel.example.com\r\ncontent-length: 0\r\n\r\n";
    let mut client = Client::connect("127.0.0.2", harness.router()).await;
    assert_eq!(client.send(unknown, "").await.status, 429, "guessing projects is charged too");
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_good_is_refused_before_its_body_comes() {
    let harness = Harness::start().await;
    let cases = [
        (head("127.0.0.1", "huge", FORGED, 25 * 1024 * 1024 + 1, ""), 413),
        (head("127.0.0.1", "unsigned", "", 1000, ""), 401),
        (head("127.0.0.1", "unknown", FORGED, 1000, "").replace(PROJECT, "nobody"), 404),
    ];
    for (head, status) in cases {
        let mut client = Client::connect("127.0.0.2", harness.api_addr()).await;
        assert_eq!(client.send(&head, "").await.status, status, "{head}");
    }
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_begins_with_a_delivery_asks_for_nothing_else() {
    let mut harness = Harness::start().await;
    harness.deploy("main", &commit('a'), Script::api("1")).await;
    let get = "GET /builds HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n";
    let mut client = Client::connect("127.0.0.1", harness.api_addr()).await;
    assert_eq!(client.send(get, "").await.status, 200, "the user of this test is an operator");
    let mut client = Client::connect("127.0.0.1", harness.api_addr()).await;
    assert_eq!(client.send(&head("127.0.0.1", "forged", FORGED, 2, ""), "{}").await.status, 401);
    assert_eq!(client.send(get, "").await.status, 403);
    assert_eq!(harness.build_states().await, [B::Success]);
    harness.finish().await;
}
