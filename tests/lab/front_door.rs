//! What operators set of the front door, on the daemon as it is installed: whom it trusts, what it counts and writes.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use http::{HeaderValue, Method};
use serde_json::Value;

use crate::harness::http::{Connection, request};
use crate::harness::{App, Lab, LabConfig, ROUTER, api, until};

/// How long a request may take to be counted.
const PATIENCE: Duration = Duration::from_secs(20);

/// Asks from that address of the machine's, as a proxy for 192.0.2.7 would; tells what the service saw.
async fn asked_from(address: IpAddr, host: &str) -> Value {
    let mut connection = Connection::open_from(address, ROUTER).await.unwrap();
    let mut asked = request(Method::GET, host, "/headers?token=hush", "");
    for (name, value) in [("x-forwarded-for", "192.0.2.7"), ("x-forwarded-proto", "https")] {
        asked.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    connection.send(asked).await.unwrap().expect(200).json()
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_believed_answered_counted_and_written_down_as_the_operator_says() {
    let pages = tempfile::tempdir_in("/srv").unwrap();
    fs::write(pages.path().join("404.html"), "Nobody home").unwrap();
    let config = LabConfig::hello()
        .router("trusted_proxies = [\"127.0.0.2\"]")
        .router("access_log = \"all\"")
        .router(&format!("pages = \"{}\"", pages.path().display()));
    let lab = Lab::start(config).await;
    let live = lab.deploy_api("hello", "main", &App::api("one")).await;

    let proxied = asked_from(Ipv4Addr::new(127, 0, 0, 2).into(), &live.host).await;
    let direct = asked_from(Ipv4Addr::new(127, 0, 0, 3).into(), &live.host).await;
    assert_eq!(lab.visit("elsewhere.lab.test", "/").await.expect(404).text(), "Nobody home");

    assert_eq!(proxied["x-forwarded-for"], "192.0.2.7, 127.0.0.2");
    assert_eq!(proxied["x-real-ip"], "192.0.2.7");
    assert_eq!(proxied["x-forwarded-proto"], "https");
    assert_eq!(direct["x-forwarded-for"], "127.0.0.3", "who is not trusted speaks for himself only");
    assert_eq!(direct["x-forwarded-proto"], "http");

    // An answer is counted and written down when it is over here, which a visitor cannot see.
    for line in [
        r#"kennel_http_requests_total{project="hello",service="api",code="2xx"} 2"#,
        r#"kennel_http_requests_total{project="",service="",code="4xx"} 1"#,
    ] {
        until(line, PATIENCE, async || {
            let counted = api::ask(Method::GET, "/metrics").await.expect(200).text();
            counted.contains(line).then_some(())
        })
        .await;
    }
    for visitor in ["192.0.2.7", "127.0.0.3"] {
        let line = until("a line in the journal", PATIENCE, async || {
            let fields = ["KENNEL_HTTP_STATUS=200".to_owned(), format!("KENNEL_HTTP_VISITOR={visitor}")];
            let written = lab.journal_with(&fields.each_ref().map(String::as_str)).await;
            (!written.is_empty()).then_some(written)
        })
        .await;
        assert!(line.starts_with(&format!("GET {}/headers 200, ", live.host)), "{line}");
        assert!(line.ends_with(&format!(" for {visitor}\n")), "{line}");
    }
    lab.finish().await;
}
