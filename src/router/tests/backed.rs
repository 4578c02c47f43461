//! Large files of sites, which visitors without TLS are sent without a copy.

use std::time::Instant;

use tokio::net::TcpSocket;

use super::metrics::line;
use super::sites::{OLD, directory, site_after, store, write};
use super::tls::Doors;
use super::*;
use crate::router::Timeouts;

const LENGTH: usize = 300_000;

/// A store with a site that has large files, and what is in the one of [`LENGTH`].
fn large() -> (RouterConfig, tempfile::TempDir, Vec<u8>) {
    let store = store();
    let content: Vec<u8> = (0..LENGTH).map(|place| u8::try_from(place % 251).unwrap()).collect();
    write(&directory(&store, OLD), "large.bin", &content);
    write(&directory(&store, OLD), "large.css", &content);
    write(&directory(&store, OLD), "large.css.br", &content[..LENGTH / 2]);
    write(&directory(&store, OLD), "huge.bin", vec![7; 1024 * 1024]);
    (RouterConfig { store_dir: store.path().join("store"), ..RouterConfig::default() }, store, content)
}

#[tokio::test]
async fn large_files_and_large_parts_of_them_are_not_copied() {
    let (config, _store, content) = large();
    let front = Front::with(config, site_after(1, OLD, &[], false)).await;
    let etag = front.ask("HEAD", "/large.bin", "").await.header("etag").unwrap().to_owned();
    let (same, other) =
        (format!("Range: bytes=9-99999\r\nIf-Range: {etag}\r\n"), "Range: bytes=9-\r\nIf-Range: \"a\"\r\n");
    let (mut sent, mut bodies) = (0, 0);
    for (method, path, headers, status, body, copied) in [
        ("GET", "/large.bin", "", 200, &content[..], false),
        ("GET", "/large.bin", "Range: bytes=1000-99999\r\n", 206, &content[1000..100_000], false),
        ("GET", "/large.bin", "Range: bytes=-40000\r\n", 206, &content[LENGTH - 40_000..], false),
        ("GET", "/large.bin", &same, 206, &content[9..100_000], false),
        ("GET", "/large.bin", other, 200, &content, false),
        ("GET", "/large.css", "Accept-Encoding: br\r\n", 200, &content[..LENGTH / 2], false),
        ("GET", "/large.bin", "Range: bytes=9-10008\r\n", 206, &content[9..10_009], true),
        ("GET", "/large.bin", "If-None-Match: *\r\n", 304, &[], true),
        ("HEAD", "/large.bin", "", 200, &[], true),
        ("GET", "/pricing", "", 200, b"prices", true),
    ] {
        let answer = front.ask(method, path, headers).await;
        assert_eq!(answer.status, status, "{method} {path} {headers}");
        assert!(answer.body == body, "{method} {path} {headers}: {} bytes", answer.body.len());
        sent += if copied { 0 } else { body.len() };
        bodies += body.len();
        assert_eq!(front.handle.shared.files.sent(), sent, "{method} {path} {headers}");
    }
    let page = front.handle.shared.metrics.render();
    let counted = line(&page, "kennel_http_response_bytes_total{project=\"shop\",service=\"api\"}");
    assert_eq!(counted, bodies as f64);
}

#[tokio::test]
async fn by_tls_large_files_are_copied_and_right() {
    let (config, _store, content) = large();
    let (doors, visit, _service) = Doors::echo(config).await;
    doors.front.switch(site_after(2, OLD, &[], false)).await;
    let mut connection = visit.connect(&doors, HOST).await;
    for _ in 0..3 {
        assert!(connection.get(HOST, "/large.bin").await.body == content);
    }
    assert_eq!(doors.front.handle.shared.files.sent(), 0);
}

#[tokio::test]
async fn whoever_asks_for_much_at_once_and_takes_it_slowly_gets_all_of_it() {
    let (config, _store, content) = large();
    let timeouts = Timeouts { request_header: PATIENCE * 10, ..Timeouts::default() };
    let front = Front::with(RouterConfig { timeouts, ..config }, site_after(1, OLD, &[], false)).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(8 * 1024).unwrap();
    let mut raw = Raw(socket.connect(front.address).await.unwrap());
    let ranges: Vec<_> = (0..20).map(|number| number * 7..LENGTH - 9000 * number).collect();
    for range in &ranges {
        let (first, last) = (range.start, range.end - 1);
        raw.send(format!("GET /large.bin HTTP/1.1\r\nHost: {HOST}\r\nRange: bytes={first}-{last}\r\n\r\n")).await;
        raw.send(format!("GET /pricing HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    }
    for range in ranges {
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert!(raw.answer().await.body == content[range.clone()], "{range:?}");
        assert_eq!(raw.answer().await.text(), "prices");
    }
    assert!(front.handle.shared.files.sent() > LENGTH);
    // His connection is still open, and keeps nothing of it.
    front.switch(Vec::new()).await;
    let begun = Instant::now();
    while front.handle.shared.files.open() > 0 {
        assert!(begun.elapsed() < PATIENCE, "the file is still kept");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drop(raw);
}

#[tokio::test]
async fn whoever_takes_nothing_of_large_files_is_let_go() {
    let (config, _store, content) = large();
    let timeouts = Timeouts { idle: Duration::from_millis(200), ..Timeouts::default() };
    let front = Front::with(RouterConfig { timeouts, ..config }, site_after(1, OLD, &[], false)).await;
    let mut raw = front.connect().await;
    raw.send(format!("GET /huge.bin HTTP/1.1\r\nHost: {HOST}\r\n\r\n").repeat(60)).await;
    raw.until("HTTP/1.1 200 ").await;
    let begun = Instant::now();
    while line(&front.handle.shared.metrics.render(), "kennel_connections") > 0.0 {
        assert!(begun.elapsed() < PATIENCE, "he is still connected");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(front.handle.shared.files.sent() > 0);
    assert!(raw.rest_bytes().await.len() < 60 * 1024 * 1024);
    assert!(front.get("/large.bin", "").await.body == content);
}

/// Nothing in the store is ever changed, but who would wait for what does not come?
#[tokio::test]
async fn a_file_that_has_become_shorter_breaks_its_answer_off() {
    let (config, store, content) = large();
    let front = Front::with(config, site_after(1, OLD, &[], false)).await;
    assert!(front.get("/large.bin", "").await.body == content);
    write(&directory(&store, OLD), "large.bin", &content[..1000]);
    assert!(front.get("/large.bin", "").await.body == content[..1000]);
}
