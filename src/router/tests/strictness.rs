//! What a proxy is attacked with.

use std::sync::Mutex;

use http::StatusCode;
use rstest::rstest;

use super::*;
use crate::router::{FromOutside, Timeouts};

#[rstest]
#[case::no_host("GET / HTTP/1.1\r\n\r\n")]
#[case::no_host_in_1_0("GET / HTTP/1.0\r\n\r\n")]
#[case::two_hosts("GET / HTTP/1.1\r\nHost: web-main.shop.example.com\r\nHost: web-main.shop.example.com\r\n\r\n")]
#[case::user_in_host("GET / HTTP/1.1\r\nHost: a@web-main.shop.example.com\r\n\r\n")]
#[case::list_in_host("GET / HTTP/1.1\r\nHost: web-main.shop.example.com, b\r\n\r\n")]
#[case::empty_host("GET / HTTP/1.1\r\nHost:\r\n\r\n")]
#[case::bad_port("GET / HTTP/1.1\r\nHost: web-main.shop.example.com:http\r\n\r\n")]
#[case::other_absolute("GET http://b.example.com/ HTTP/1.1\r\nHost: web-main.shop.example.com\r\n\r\n")]
#[case::user_in_absolute("GET http://a@web-main.shop.example.com/ HTTP/1.1\r\nHost: web-main.shop.example.com\r\n\r\n")]
#[case::other_scheme("GET ftp://web-main.shop.example.com/ HTTP/1.1\r\nHost: web-main.shop.example.com\r\n\r\n")]
#[case::no_path("GET foo HTTP/1.1\r\nHost: web-main.shop.example.com\r\n\r\n")]
#[case::asterisk("OPTIONS * HTTP/1.1\r\nHost: web-main.shop.example.com\r\n\r\n")]
#[case::two_lengths(
    "POST / HTTP/1.1\r\nHost: web-main.shop.example.com\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"
)]
#[case::bad_length("POST / HTTP/1.1\r\nHost: web-main.shop.example.com\r\nContent-Length: +1\r\n\r\na")]
#[case::coding_in_1_0(
    "POST / HTTP/1.0\r\nHost: web-main.shop.example.com\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
)]
#[case::not_chunked_last(
    "POST / HTTP/1.1\r\nHost: web-main.shop.example.com\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n"
)]
#[case::space_before_colon("GET / HTTP/1.1\r\nHost : web-main.shop.example.com\r\n\r\n")]
#[case::folded("GET / HTTP/1.1\r\nHost: web-main.shop.example.com\r\nA: b\r\n c\r\n\r\n")]
#[case::bad_chunk(
    "POST / HTTP/1.1\r\nHost: web-main.shop.example.com\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nab\r\n0\r\n\r\n"
)]
#[case::bad_chunk_later(
    "POST / HTTP/1.1\r\nHost: web-main.shop.example.com\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n-1\r\n"
)]
#[tokio::test]
async fn what_can_be_read_in_two_ways_gets_400_and_the_connection_is_closed(#[case] request: &str) {
    let service = Service::echo().await;
    // Not for having been idle.
    let timeouts = Timeouts { request_header: PATIENCE * 2, ..Timeouts::default() };
    let front = Front::with(RouterConfig { timeouts, ..RouterConfig::default() }, service.route(1)).await;
    let answer = front.raw(request).await;
    assert!(answer.starts_with("HTTP/1.1 400 ") || answer.starts_with("HTTP/1.0 400 "), "{answer}");
}

#[rstest]
#[case("CONNECT web-main.shop.example.com:443 HTTP/1.1", 405)]
#[case("TRACE / HTTP/1.1", 405)]
#[tokio::test]
async fn methods_that_are_not_for_visitors_are_refused(#[case] line: &str, #[case] status: u16) {
    let service = Service::echo().await;
    let front = Front::start(service.route(1)).await;
    let answer = front.raw_bytes(format!("{line}\r\nHost: {HOST}\r\nConnection: close\r\n\r\n")).await;
    assert_eq!(Answer::parse(&answer).status, status);
}

#[tokio::test]
async fn a_coding_beside_chunked_is_not_passed_on_unsaid() {
    let service = Service::echo().await;
    let front = Front::start(service.route(1)).await;
    let answer = front.ask("POST", "/", "Transfer-Encoding: gzip, chunked\r\n").await;
    assert_eq!(answer.status, 501);
}

#[tokio::test]
async fn an_expectation_that_nobody_meets_is_refused() {
    let service = Service::echo().await;
    let front = Front::start(service.route(1)).await;
    let answer = front.ask("POST", "/", "Expect: a-miracle\r\nContent-Length: 0\r\n").await;
    assert_eq!(answer.status, 417);
}

#[rstest]
#[case("web-main.shop.example.com")]
#[case("WEB-Main.shop.Example.com.")]
#[case("web-main.shop.example.com:8080")]
#[tokio::test]
async fn a_host_is_one_name_however_it_is_written(#[case] host: &str) {
    let service = Service::echo().await;
    let front = Front::start(service.route(1)).await;
    let answer = front.raw(format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains(&format!("\r\nhost: {HOST}\r\n")), "{answer}");
}

#[tokio::test]
async fn an_absolute_target_of_the_same_host_reaches_the_service_as_a_path() {
    let service = Service::echo().await;
    let front = Front::start(service.route(1)).await;
    let answer =
        front.raw(format!("GET http://{HOST}:80/a?b=c HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n")).await;
    assert!(answer.contains("\r\n\r\nGET /a?b=c HTTP/1.1\r\n"), "{answer}");
}

#[tokio::test]
async fn what_a_visitor_claims_of_himself_is_overwritten() {
    let service = Service::echo().await;
    let front = Front::start(service.route(1)).await;
    let answer = front
        .get(
            "/",
            "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 7.7.7.7\r\nX-Forwarded-Host: evil\r\n\
             X-Forwarded-Proto: https\r\nX-Forwarded-Prefix: /evil\r\nX-Forwarded-Server: evil\r\n\
             X-Real-IP: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\nX_Real_IP: 6.6.6.6\r\nX-Forwarded_For: 6.6.6.6\r\n\
             Proxy: http://evil\r\nX-Kept: yes\r\n",
        )
        .await;
    let seen = Answer::parse(
        answer.text().as_bytes().strip_prefix(b"GET").map(|rest| [b"H 0", rest].concat()).as_deref().unwrap(),
    );
    assert!(!answer.text().contains("evil") && !answer.text().contains("6.6.6.6"), "{}", answer.text());
    assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(seen.header("x-real-ip"), Some("127.0.0.1"));
    assert_eq!(seen.header("x-forwarded-host"), Some(HOST));
    assert_eq!(seen.header("x-forwarded-proto"), Some("http"));
    assert_eq!(seen.header("x-forwarded-port"), Some(front.address.port().to_string().as_str()));
    assert_eq!(seen.header("forwarded"), Some(format!("for=127.0.0.1;host={HOST};proto=http").as_str()));
    assert_eq!(seen.header("x-kept"), Some("yes"));
    assert!(!answer.text().contains('_'), "{}", answer.text());
}

#[tokio::test]
async fn what_belongs_to_one_connection_is_not_passed_on() {
    let service = Service::raw(|mut stream, _| async move {
        let head = head_of(&mut stream).await;
        let answer = format!(
            "HTTP/1.1 200 OK\r\nConnection: x-secret\r\nX-Secret: 1\r\nKeep-Alive: timeout=5\r\nUpgrade: h2c\r\n\
             Proxy-Authenticate: Basic\r\nContent-Length: {}\r\nX-Kept: 1\r\n\r\n{head}",
            head.len()
        );
        stream.write_all(answer.as_bytes()).await.unwrap();
    })
    .await;
    let front = Front::start(service.route(1)).await;
    let answer = front
        .raw_bytes(format!(
            "GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close, X-Mine\r\nX-Mine: 1\r\nKeep-Alive: 1\r\n\
             Proxy-Connection: keep-alive\r\nProxy-Authorization: x\r\nTE: trailers, deflate\r\n\
             Upgrade: h2c\r\nHTTP2-Settings: x\r\n\r\n"
        ))
        .await;
    let answer = Answer::parse(&answer);
    for name in ["x-secret", "keep-alive", "upgrade", "proxy-authenticate"] {
        assert_eq!(answer.header(name), None, "{}", answer.head);
    }
    assert_eq!(answer.header("x-kept"), Some("1"));
    let seen = answer.text().to_lowercase();
    for name in ["x-mine", "keep-alive", "proxy-", "upgrade", "deflate"] {
        assert!(!seen.contains(name), "{name} in {seen}");
    }
    assert!(seen.contains("\r\nte: trailers\r\n"), "{seen}");
}

#[rstest]
#[case::h2c("Connection: upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n\r\n")]
#[case::h2c_among_others("Connection: upgrade\r\nUpgrade: websocket, h2c\r\n\r\n")]
#[case::not_named_by_connection("Upgrade: websocket\r\n\r\n")]
#[case::with_a_body("Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 4\r\n\r\nbody")]
#[tokio::test]
async fn an_upgrade_that_is_not_gone_along_with_is_not_passed_on(#[case] rest: &str) {
    let service = Service::echo().await;
    let front = Front::start(service.route(1)).await;
    let mut raw = front.connect().await;
    raw.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n{rest}")).await;
    let answer = raw.answer().await;
    let seen = answer.text().to_lowercase();
    assert!(answer.status == 200 && !seen.contains("upgrade") && !seen.contains("http2-settings"), "{answer:?}");
}

#[tokio::test]
async fn a_length_that_is_said_twice_is_said_to_the_service_once() {
    let service = Service::echo().await;
    let front = Front::start(service.route(1)).await;
    let mut raw = front.connect().await;
    raw.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\nbody")).await;
    let seen = raw.answer().await.text().to_lowercase();
    assert!(seen.matches("content-length: 4\r\n").count() == 1 && seen.ends_with("\r\n\r\nbody"), "{seen}");
}

#[rstest]
#[case::two_lengths("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab")]
#[case::a_list_of_lengths("HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nab")]
#[case::a_length_with_a_sign("HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nab")]
#[case::another_coding("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n")]
#[case::chunked_twice("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")]
#[case::chunks_in_1_0("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")]
#[case::space_before_colon("HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nab")]
#[tokio::test]
async fn an_answer_that_can_be_read_in_two_ways_gets_502(#[case] script: &'static str) {
    let service = Service::raw(move |mut stream, _| async move { reply(&mut stream, script).await }).await;
    let front = Front::start(service.route(1)).await;
    assert_eq!(front.get("/", "").await.status, 502);
}

/// hyper takes the chunks, drops the length and closes the connection after its answer: nothing that follows in
/// the same bytes can become a request of its own.
#[rstest]
#[case("Content-Length: 6\r\nTransfer-Encoding: chunked\r\n")]
#[case("Transfer-Encoding: chunked\r\nContent-Length: 6\r\n")]
#[tokio::test]
async fn a_request_with_two_lengths_cannot_smuggle_another(#[case] lengths: &str) {
    let heads: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = Arc::clone(&heads);
    let service = Service::raw(move |mut stream, _| {
        let seen = Arc::clone(&seen);
        async move {
            let head = head_of(&mut stream).await;
            seen.lock().unwrap().push(head);
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            let _ = stream.read(&mut [0; 64]).await;
        }
    })
    .await;
    let front = Front::start(service.route(1)).await;
    let answer = front
        .raw(format!(
            "POST / HTTP/1.1\r\nHost: {HOST}\r\n{lengths}\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: {HOST}\r\n\r\n"
        ))
        .await;
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    let heads = heads.lock().unwrap();
    assert_eq!(heads.len(), 1, "{heads:?}");
    assert!(!heads[0].contains("content-length") && heads[0].contains("transfer-encoding: chunked"), "{heads:?}");
}

#[tokio::test]
async fn pipelined_requests_are_answered_one_after_the_other_and_in_order() {
    let service = Service::echo().await;
    let front = Front::start(service.route(1)).await;
    let one = |path: &str, more: &str| format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n{more}\r\n");
    let answer = front.raw([one("/1", ""), one("/2", ""), one("/3", "Connection: close\r\n")].concat()).await;
    let order: Vec<_> =
        answer.match_indices("\r\n\r\nGET /").map(|(at, seen)| &answer[at + seen.len()..][..1]).collect();
    assert_eq!(order, ["1", "2", "3"]);
}

#[tokio::test]
async fn a_host_without_route_gets_a_page_that_says_so() {
    let front = Front::start(Vec::new()).await;
    let answer = front.get("/", "").await;
    assert_eq!(answer.status, 404);
    assert_eq!(answer.header("content-type"), Some("text/html; charset=utf-8"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert!(answer.text().contains("No such host") && answer.text().contains(HOST));
    let answer = front.get("/", "Accept: application/json\r\n").await;
    let value: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!((&value["status"], &value["title"]), (&404.into(), &"No such host".into()));
    assert!(value["detail"].is_string() && value.as_object().unwrap().len() == 3);
}

#[tokio::test]
async fn the_operators_pages_stand_in_the_place_of_kennels() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("404.html"), "<style>p{}</style><p>Nobody home").unwrap();
    let pages = crate::router::Pages::read(dir.path()).unwrap();
    let (listener, port) = listen().await;
    drop(listener);
    let front = Front::with(RouterConfig { pages, ..RouterConfig::default() }, vec![route_to(1, port)]).await;
    let ask = |host: &str, headers: &str| {
        front.raw_bytes(format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}\r\n"))
    };

    let own = Answer::parse(&ask("elsewhere.example", "").await);
    assert_eq!((own.status, own.text()), (404, "<style>p{}</style><p>Nobody home"));
    assert_eq!(own.header("content-type"), Some("text/html; charset=utf-8"));
    assert_eq!(own.header("content-security-policy"), None, "kennel does not know what the page needs");
    assert_eq!(own.header("cache-control"), Some("no-store"));
    let json = Answer::parse(&ask("elsewhere.example", "Accept: application/json\r\n").await);
    assert!(json.text().contains("No such host"), "{}", json.text());
    let kennels = Answer::parse(&ask(HOST, "").await);
    assert!(kennels.status == 502 && kennels.text().contains("Service refused"), "{}", kennels.text());
}

#[tokio::test]
async fn the_control_domain_is_answered_in_process_and_marked_as_from_outside() {
    let control = axum::Router::new().route(
        "/webhook/shop",
        axum::routing::post(|from: Option<axum::Extension<FromOutside>>, body: String| async move {
            let Some(axum::Extension(FromOutside { peer })) = from else {
                return (StatusCode::FORBIDDEN, String::new());
            };
            (StatusCode::ACCEPTED, format!("{} {body}", peer.ip()))
        }),
    );
    let config =
        RouterConfig { control: Some(("kennel.example.com".parse().unwrap(), control)), ..RouterConfig::default() };
    let front = Front::with(config, Vec::new()).await;
    let post = |path: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: Kennel.example.com:80\r\nConnection: close\r\nContent-Length: 4\r\n\r\npush"
        )
    };
    let answer = Answer::parse(&front.raw_bytes(post("/webhook/shop")).await);
    assert_eq!((answer.status, answer.text()), (202, "127.0.0.1 push"));
    assert_eq!(Answer::parse(&front.raw_bytes(post("/other")).await).status, 404);
}
