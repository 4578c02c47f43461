//! Visitors who come by way of a proxy that the operator trusts.

use super::tls::Doors;
use super::*;
use crate::router::{FromOutside, Https, Limits, Timeouts};

const SAID: &str = "X-Forwarded-For: 6.6.6.6, 192.0.2.7\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Prefix: /evil\r\n";

fn trusting(networks: &[&str]) -> RouterConfig {
    let trusted = networks.iter().map(|network| network.parse().unwrap()).collect();
    RouterConfig { trusted, ..RouterConfig::default() }
}

#[tokio::test]
async fn a_service_is_told_of_the_visitor_that_a_trusted_proxy_names() {
    let service = Service::echo().await;
    let front = Front::with(trusting(&["127.0.0.0/8"]), service.route(1)).await;
    let told = front.get("/", SAID).await.text().to_owned();
    for line in [
        "x-forwarded-for: 192.0.2.7, 127.0.0.1\r\n",
        "x-real-ip: 192.0.2.7\r\n",
        "x-forwarded-proto: https\r\n",
        "x-forwarded-port: 443\r\n",
        &format!("forwarded: for=192.0.2.7;host={HOST};proto=https\r\n"),
        &format!("x-forwarded-host: {HOST}\r\n"),
    ] {
        assert!(told.contains(line), "{line}{told}");
    }
    assert!(!told.contains("evil") && !told.contains("6.6.6.6"), "{told}");
}

#[tokio::test]
async fn what_others_say_counts_for_nothing() {
    let service = Service::echo().await;
    let front = Front::with(trusting(&["10.0.0.0/8", "::1/128"]), service.route(1)).await;
    let told = front.get("/", SAID).await.text().to_owned();
    assert!(told.contains("x-forwarded-for: 127.0.0.1\r\n") && told.contains("x-forwarded-proto: http\r\n"), "{told}");
}

#[tokio::test]
async fn kennels_own_pages_charge_the_visitor_and_not_the_proxy() {
    let control = axum::Router::new().route(
        "/",
        axum::routing::get(
            async |axum::Extension(from): axum::Extension<FromOutside>,
                   axum::extract::ConnectInfo(peer): axum::extract::ConnectInfo<std::net::SocketAddr>| {
                format!("{} {}", from.peer.ip(), peer.ip())
            },
        ),
    );
    let control = Some((HOST.parse().unwrap(), control));
    let front = Front::with(RouterConfig { control, ..trusting(&["127.0.0.1/32"]) }, Vec::new()).await;
    assert_eq!(front.get("/", SAID).await.text(), "192.0.2.7 192.0.2.7");
    assert_eq!(front.get("/", "").await.text(), "127.0.0.1 127.0.0.1");
}

#[tokio::test]
async fn who_came_to_the_proxy_by_tls_is_not_sent_to_tls_again() {
    let https = Https { redirect_to: Some(443), hsts: None };
    let (doors, _, _service) = Doors::echo(RouterConfig { https, ..trusting(&["127.0.0.1/32"]) }).await;
    assert_eq!(doors.front.get("/", SAID).await.status, 200);
    assert_eq!(doors.front.get("/", "X-Forwarded-Proto: http\r\n").await.status, 301);
}

/// A header of the PROXY protocol, version 2, written out by hand: a connection from 192.0.2.x to 198.51.100.1:443.
fn announcing(last: u8) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c".to_vec();
    header.extend([192, 0, 2, last, 198, 51, 100, 1, 0x12, 0x67, 0x01, 0xbb]);
    header
}

fn speaking(networks: &[&str]) -> RouterConfig {
    RouterConfig { proxy_protocol: true, ..trusting(networks) }
}

#[tokio::test]
async fn a_connection_is_that_of_the_visitor_its_proxy_announces() {
    let service = Service::echo().await;
    let front = Front::with(speaking(&["127.0.0.1/32"]), service.route(1)).await;
    let request = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n{SAID}\r\n");
    let told = front.raw([announcing(9), request.clone().into_bytes()].concat()).await;
    assert!(told.contains("x-forwarded-for: 192.0.2.9\r\n"), "{told}");
    assert!(told.contains("x-real-ip: 192.0.2.9\r\n"), "what he says of himself counts for nothing: {told}");

    let local = [&b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00"[..], request.as_bytes()].concat();
    let told = front.raw(local).await;
    assert!(told.contains("x-forwarded-for: 192.0.2.7, 127.0.0.1\r\n"), "the proxy's own request: {told}");
}

#[tokio::test]
async fn a_proxy_that_announces_nothing_is_left_and_others_need_not() {
    let service = Service::echo().await;
    let request = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
    let front = Front::with(speaking(&["127.0.0.1/32"]), service.route(1)).await;
    let mut raw = front.connect().await;
    raw.send(&request).await;
    let mut answer = Vec::new();
    // The request is left unread, so that the connection may be reset.
    let _ = patiently(raw.0.read_to_end(&mut answer)).await;
    assert_eq!(String::from_utf8_lossy(&answer), "");

    let front = Front::with(speaking(&["10.0.0.0/8"]), service.route(1)).await;
    assert!(front.raw(&request).await.contains("x-forwarded-for: 127.0.0.1\r\n"));
    let guessed = front.raw([announcing(9), request.into_bytes()].concat()).await;
    assert!(guessed.starts_with("HTTP/1.1 400 "), "{guessed}");
}

#[tokio::test]
async fn a_proxy_that_never_announces_anybody_is_left() {
    let timeouts = Timeouts { handshake: Duration::from_millis(200), ..Timeouts::default() };
    let front = Front::with(RouterConfig { timeouts, ..speaking(&["127.0.0.1/32"]) }, Vec::new()).await;
    let mut raw = front.connect().await;
    raw.send(&announcing(9)[..20]).await;
    assert_eq!(raw.rest().await, "");
}

#[tokio::test]
async fn visitors_whom_a_proxy_announces_have_their_limits() {
    let service = Service::echo().await;
    let limits = Limits { connections_of_one: 1, ..Limits::default() };
    let front = Front::with(RouterConfig { limits, ..speaking(&["127.0.0.1/32"]) }, service.route(1)).await;
    let request = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    let mut first = front.connect().await;
    first.send([announcing(7), request.clone().into_bytes()].concat()).await;
    assert_eq!(first.answer().await.status, 200);
    let mut second = front.connect().await;
    second.send([announcing(7), request.clone().into_bytes()].concat()).await;
    assert_eq!(second.rest().await, "", "as many as one visitor may have");
    let mut other = front.connect().await;
    other.send([announcing(8), request.into_bytes()].concat()).await;
    assert_eq!(other.answer().await.status, 200);
}

#[tokio::test]
async fn an_announced_visitor_may_come_by_tls() {
    let (doors, visit, _service) = Doors::echo(speaking(&["127.0.0.1/32"])).await;
    let mut secure = visit.connect_behind(&doors, HOST, &announcing(9)).await;
    let told = secure.get(HOST, "/").await.text().to_owned();
    assert!(told.contains("x-forwarded-for: 192.0.2.9\r\n") && told.contains("x-forwarded-proto: https\r\n"), "{told}");
}

#[tokio::test]
async fn a_proxy_may_have_more_connections_than_one_visitor() {
    let service = Service::echo().await;
    let limits = Limits { connections_of_one: 2, ..Limits::default() };
    let front = Front::with(RouterConfig { limits, ..trusting(&["127.0.0.1/32"]) }, service.route(1)).await;
    let mut open = Vec::new();
    for _ in 0..5 {
        let mut raw = front.connect().await;
        raw.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
        assert_eq!(raw.answer().await.status, 200);
        open.push(raw);
    }
}
