//! Visitors who come by way of a proxy that the operator trusts.

use super::tls::Doors;
use super::*;
use crate::router::{FromOutside, Https, Limits};

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
