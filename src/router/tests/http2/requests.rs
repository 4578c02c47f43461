//! One exchange of HTTP/2, as it should pass through, and what of it may not.

use rstest::rstest;

use super::super::tls::Doors;
use super::*;
use crate::router::Limits;

async fn echo() -> (Service, Front, Http2) {
    let service = Service::echo().await;
    let front = Front::start(service.route(1)).await;
    let visitor = Http2::connect(&front).await;
    (service, front, visitor)
}

#[tokio::test]
async fn a_request_reaches_the_service_as_one_of_http_1_1() {
    let (_service, _front, mut visitor) = echo().await;
    let asked = with(with(request("GET", "/a?b=c"), "x-own", "1"), "x_own", "2");
    let asked = with(with(asked, "x-forwarded-for", "6.6.6.6"), "forwarded", "for=6.6.6.6");
    let reply = visitor.ask(asked).await;
    assert_eq!(reply.status, 200);
    let seen = reply.text();
    let lines = [
        "x-forwarded-for: 127.0.0.1",
        "x-forwarded-proto: http",
        &format!("x-forwarded-host: {HOST}"),
        &format!("forwarded: for=127.0.0.1;host={HOST};proto=http"),
        "x-own: 1",
    ];
    assert!(seen.starts_with(&format!("GET /a?b=c HTTP/1.1\r\nhost: {HOST}\r\n")), "{seen}");
    for line in lines {
        assert!(seen.contains(&format!("\r\n{line}\r\n")), "{line} in {seen}");
    }
    assert!(!seen.contains("6.6.6.6") && !seen.contains("x_own") && !seen.contains(":authority"), "{seen}");
}

#[tokio::test]
async fn many_requests_are_answered_at_a_time() {
    const MANY: usize = 50;
    let inside = Arc::new(tokio::sync::Barrier::new(MANY));
    let service = Service::http(move |request| {
        let inside = Arc::clone(&inside);
        async move {
            inside.wait().await;
            text(request.uri().path().to_owned())
        }
    })
    .await;
    let front = Front::start(service.route(1)).await;
    let visitor = Http2::connect(&front).await;
    let mut asked = JoinSet::new();
    for number in 0..MANY {
        let mut send = patiently(visitor.send.clone().ready()).await.unwrap();
        let (response, _) = send.send_request(request("GET", &format!("/{number}")), true).unwrap();
        asked.spawn(async move {
            assert_eq!(Reply::read(response).await.unwrap().text(), format!("/{number}"));
        });
    }
    while let Some(done) = asked.join_next().await {
        done.unwrap();
    }
}

#[tokio::test]
async fn by_tls_the_protocol_is_chosen_by_what_the_visitor_offers() {
    let (doors, visit, _service) = Doors::echo(RouterConfig::default()).await;
    let visit = visit.offering(&["h2", "http/1.1"]);
    let mut visitor = Http2::over(visit.try_connect(&doors, HOST).await.unwrap()).await;
    let reply = visitor.get("/").await;
    assert!(reply.status == 200 && reply.text().contains("x-forwarded-proto: https\r\n"), "{reply:?}");
    let mut older = visit.offering(&["http/1.1"]).connect(&doors, HOST).await;
    assert_eq!(older.get(HOST, "/").await.status, 200);
}

#[tokio::test]
async fn a_host_that_the_connections_certificate_is_not_for_wants_another_connection() {
    let (doors, visit, _service) = Doors::echo(RouterConfig::default()).await;
    let visit = visit.offering(&["h2"]);
    let mut visitor = Http2::over(visit.try_connect(&doors, HOST).await.unwrap()).await;
    let elsewhere = Request::get("https://elsewhere.example/").body(()).unwrap();
    assert_eq!(visitor.ask(elsewhere).await.status, 421);
    assert_eq!(visitor.get("/").await.status, 200, "the connection stays");
}

#[tokio::test]
async fn a_body_passes_both_ways_unchanged() {
    let service = Service::http(|request| async move {
        text(http_body_util::BodyExt::collect(request.into_body()).await.unwrap().to_bytes())
    })
    .await;
    let front = Front::start(service.route(1)).await;
    let mut visitor = Http2::connect(&front).await;
    let body: Bytes = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    let (response, mut stream) = visitor.begin(request("POST", "/")).await;
    let (reply, ()) = tokio::join!(Reply::read(response), send(&mut stream, body.clone()));
    assert!(reply.unwrap().body == body);
}

#[tokio::test]
async fn trailers_pass_both_ways() {
    let service = Service::raw(|mut stream, _| async move {
        let mut seen = head_of(&mut stream).await;
        while !seen.ends_with("0\r\nx-sum: 7\r\n\r\n") {
            seen.push(stream.read_u8().await.unwrap().into());
        }
        assert!(seen.contains("\r\nte: trailers\r\n"), "{seen}");
        let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-status\r\n\r\n2\r\nhi\r\n0\r\nx-status: fine\r\n\r\n";
        stream.write_all(answer.as_bytes()).await.unwrap();
    })
    .await;
    let front = Front::start(service.route(1)).await;
    let mut visitor = Http2::connect(&front).await;
    let asked = with(with(request("POST", "/"), "te", "trailers"), "trailer", "x-sum");
    let (response, mut stream) = visitor.begin(asked).await;
    stream.send_data(Bytes::from_static(b"abc"), false).unwrap();
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", http::HeaderValue::from_static("7"));
    stream.send_trailers(trailers).unwrap();
    let reply = Reply::read(response).await.unwrap();
    assert_eq!((reply.status, reply.text()), (200, "hi"));
    assert_eq!(reply.trailers.unwrap().get("x-status").unwrap(), "fine");
}

#[tokio::test]
async fn an_answer_to_head_has_its_length_and_no_body() {
    let service = Service::http(|_| async { text("hello") }).await;
    let front = Front::start(service.route(1)).await;
    let reply = Http2::connect(&front).await.ask(request("HEAD", "/")).await;
    assert_eq!((reply.status, reply.headers["content-length"].to_str().unwrap(), reply.text()), (200, "5", ""));
}

#[tokio::test]
async fn a_refusal_of_head_has_its_length_and_no_body_either() {
    let front = Front::start(Vec::new()).await;
    let reply = Http2::connect(&front).await.ask(request("HEAD", "/")).await;
    assert_eq!((reply.status, reply.text()), (404, ""));
    assert_ne!(reply.headers["content-length"], "0");
}

#[tokio::test]
async fn an_answer_may_come_before_the_request_has_ended() {
    let answer = "HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno";
    let service = Service::raw(move |mut stream, _| async move {
        reply(&mut stream, answer).await;
        std::future::pending::<()>().await;
    })
    .await;
    let front = Front::start(service.route(1)).await;
    let mut visitor = Http2::connect(&front).await;
    let (response, mut stream) = visitor.begin(request("POST", "/")).await;
    let reply = Reply::read(response).await.unwrap();
    assert_eq!((reply.status, reply.text()), (413, "no"));
    let reset = patiently(std::future::poll_fn(|cx| stream.poll_reset(cx))).await.unwrap();
    assert_eq!(reset, Reason::NO_ERROR, "the rest is not wanted (RFC 9113, section 8.1)");
}

#[tokio::test]
async fn a_visitor_who_asks_first_is_told_to_go_on_once() {
    let (_service, _front, mut visitor) = echo().await;
    let asked = with(with(request("POST", "/"), "expect", "100-continue"), "content-length", "4");
    let (mut response, mut stream) = visitor.begin(asked).await;
    let told = patiently(std::future::poll_fn(|cx| response.poll_informational(cx))).await;
    assert_eq!(told.unwrap().unwrap().status(), 100);
    send(&mut stream, Bytes::from_static(b"body")).await;
    let again = patiently(std::future::poll_fn(|cx| response.poll_informational(cx))).await;
    assert!(again.is_none(), "{again:?}");
    let reply = Reply::read(response).await.unwrap();
    assert!(reply.status == 200 && reply.text().ends_with("\r\n\r\nbody"), "{reply:?}");
    assert!(!reply.text().contains("expect"), "{reply:?}");
}

#[rstest]
#[case::body_is_there(HOST, Some("body"), 200)]
#[case::no_body(HOST, None, 200)]
#[case::unknown_host("b.example.com", None, 404)]
#[tokio::test]
async fn a_visitor_is_not_told_to_go_on_whose_body_is_there_or_not_wanted(
    #[case] host: &str,
    #[case] body: Option<&str>,
    #[case] status: u16,
) {
    let service = Service::echo().await;
    let front = Front::start(service.route(1)).await;
    let mut frames = Frames::connect(&front, &[]).await;
    let length = if body.is_some() { "4" } else { "0" };
    let lines = [
        (":method", "POST"),
        (":path", "/"),
        (":scheme", "http"),
        (":authority", host),
        ("expect", "100-continue"),
        ("content-length", length),
    ];
    let block: Vec<u8> = lines.iter().flat_map(|(name, value)| line(name, value)).collect();
    // An unwanted body never comes.
    let ends = if body.is_none() && status == 200 { END_STREAM } else { 0 };
    let mut asked = frame(HEADERS, END_HEADERS | ends, 1, &block);
    asked.extend(body.iter().flat_map(|body| frame(DATA, END_STREAM, 1, body.as_bytes())));
    frames.0.write_all(&asked).await.unwrap();
    assert_eq!(status_of(&frames.until(HEADERS, 1).await.unwrap()), status, "it is the first head");
    assert!(frames.until(DATA, 1).await.is_some());
}

#[tokio::test]
async fn what_belongs_to_a_connection_of_http_1_1_does_not_come_back() {
    let answer =
        "HTTP/1.1 200 OK\r\nConnection: x-own\r\nX-Own: 1\r\nKeep-Alive: timeout=5\r\nContent-Length: 0\r\n\r\n";
    let service = Service::raw(move |mut stream, _| async move { reply(&mut stream, answer).await }).await;
    let front = Front::start(service.route(1)).await;
    let reply = Http2::connect(&front).await.get("/").await;
    let names: Vec<_> = reply.headers.keys().map(http::HeaderName::as_str).collect();
    assert_eq!((reply.status, names), (200, vec!["content-length", "date"]));
}

#[tokio::test]
async fn the_crumbs_of_a_cookie_are_one_header_to_the_service() {
    let (_service, _front, mut visitor) = echo().await;
    let reply = visitor.ask(with(with(request("GET", "/"), "cookie", "a=1"), "cookie", "b=2")).await;
    assert!(reply.text().contains("\r\ncookie: a=1; b=2\r\n"), "{}", reply.text());
}

#[rstest]
#[case::no_host(&[(":scheme", "http")], 400)]
#[case::host_alone(&[(":scheme", "http"), ("host", HOST)], 200)]
#[case::the_same_twice(&[(":scheme", "http"), (":authority", "WEB-main.shop.example.com:80"), ("host", HOST)], 200)]
#[case::another_host(&[(":scheme", "http"), (":authority", HOST), ("host", "b.example.com")], 400)]
#[case::two_hosts(&[(":scheme", "http"), (":authority", HOST), ("host", HOST), ("host", HOST)], 400)]
#[case::bad_host(&[(":scheme", "http"), (":authority", HOST), ("host", "a/b")], 400)]
#[case::user_in_authority(&[(":scheme", "http"), (":authority", "a@web-main.shop.example.com")], 400)]
#[case::other_scheme(&[(":scheme", "ftp"), (":authority", HOST)], 400)]
#[case::unknown_host(&[(":scheme", "http"), (":authority", "b.example.com")], 404)]
#[case::expectation(&[(":scheme", "http"), (":authority", HOST), ("expect", "a-miracle")], 417)]
#[tokio::test]
async fn a_request_is_for_one_host_however_it_is_named(#[case] lines: &[(&str, &str)], #[case] status: u16) {
    let service = Service::echo().await;
    let front = Front::start(service.route(1)).await;
    let mut frames = Frames::connect(&front, &[]).await;
    let block: Vec<u8> =
        [(":method", "GET"), (":path", "/")].iter().chain(lines).flat_map(|(n, v)| line(n, v)).collect();
    frames.send(HEADERS, END_HEADERS | END_STREAM, 1, &block).await;
    let answer = frames.until(HEADERS, 1).await.unwrap();
    assert_eq!(status_of(&answer), status);
}

/// The status that a head begins with: an entry of the table, or a literal with the name of entry 8 (RFC 7541).
fn status_of(block: &[u8]) -> u16 {
    match block {
        [0x88, ..] => 200,
        [0x8c, ..] => 400,
        [0x8d, ..] => 404,
        // By Huffman's code, "417".
        [0x48, 0x83, 0x68, 0x2e, 0xff, ..] => 417,
        _ => panic!("{block:x?}"),
    }
}

#[rstest]
#[case::connection(&[("connection", "close")])]
#[case::keep_alive(&[("keep-alive", "timeout=5")])]
#[case::proxy_connection(&[("proxy-connection", "close")])]
#[case::coding(&[("transfer-encoding", "chunked")])]
#[case::upgrade(&[("upgrade", "websocket")])]
#[case::te(&[("te", "gzip")])]
#[case::pseudo_after(&[("x-own", "1"), (":path", "/b")])]
#[case::twice(&[(":path", "/b")])]
#[case::two_lengths(&[("content-length", "0"), ("content-length", "1")])]
#[case::length_without_body(&[("content-length", "1")])]
#[tokio::test]
async fn a_malformed_request_is_reset_and_never_reaches_a_service(#[case] lines: &[(&str, &str)]) {
    let service = Service::echo().await;
    let front = Front::start(service.route(1)).await;
    let mut frames = Frames::connect(&front, &[]).await;
    frames.send(HEADERS, END_HEADERS | END_STREAM, 1, &head("GET", "/", lines)).await;
    let reset = frames.until(RST_STREAM, 1).await.unwrap();
    assert_eq!(reset, u32::from(Reason::PROTOCOL_ERROR).to_be_bytes());
    frames.get(3, "/").await;
    assert!(frames.until(HEADERS, 3).await.is_some(), "the connection stays");
}

#[rstest]
#[case::upper_case(("X-Own", "1"))]
#[case::line_break(("x-own", "1\r\nx-other: 2"))]
#[case::nul(("x-own", "a\0b"))]
#[case::unknown_pseudo((":own", "1"))]
#[tokio::test]
async fn a_header_that_is_none_ends_the_connection(#[case] one: (&str, &str)) {
    let service = Service::echo().await;
    let front = Front::start(service.route(1)).await;
    let mut frames = Frames::connect(&front, &[]).await;
    frames.send(HEADERS, END_HEADERS | END_STREAM, 1, &head("GET", "/", &[one])).await;
    assert_eq!(frames.goaway().await, Some(Reason::PROTOCOL_ERROR));
}

#[tokio::test]
async fn a_body_longer_or_shorter_than_announced_ends_its_request() {
    let service = Service::echo().await;
    let front = Front::start(service.route(1)).await;
    for body in ["ab", "abcd"] {
        let mut frames = Frames::connect(&front, &[]).await;
        frames.send(HEADERS, END_HEADERS, 1, &head("POST", "/", &[("content-length", "3")])).await;
        frames.send(DATA, END_STREAM, 1, body.as_bytes()).await;
        let reset = frames.until(RST_STREAM, 1).await.unwrap();
        assert_eq!(reset, u32::from(Reason::PROTOCOL_ERROR).to_be_bytes(), "{body}");
    }
}

#[rstest]
#[case("CONNECT", 405)]
#[case("TRACE", 405)]
#[tokio::test]
async fn methods_that_are_not_for_visitors_are_refused(#[case] method: &str, #[case] status: u16) {
    let (_service, _front, mut visitor) = echo().await;
    let asked = match method {
        "CONNECT" => Request::connect(format!("{HOST}:443")).body(()).unwrap(),
        _ => request(method, "/"),
    };
    assert_eq!(visitor.ask(asked).await.status, status);
}

#[tokio::test]
async fn too_many_headers_and_a_head_that_is_too_large_are_refused() {
    let service = Service::echo().await;
    let limits = Limits { headers: 10, head_bytes: 8 * 1024, ..Limits::default() };
    let front = Front::with(RouterConfig { limits, ..RouterConfig::default() }, service.route(1)).await;
    let mut visitor = Http2::connect(&front).await;
    let many = (0..11).fold(request("GET", "/"), |request, _| with(request, "x-own", "1"));
    assert_eq!(visitor.ask(many).await.status, 431);
    let mut large = request("GET", "/");
    large.headers_mut().insert("x-own", http::HeaderValue::from_str(&"a".repeat(9 * 1024)).unwrap());
    assert_eq!(visitor.ask(large).await.status, 431);
    assert_eq!(visitor.get("/").await.status, 200);
}

#[tokio::test]
async fn answers_are_counted_as_those_of_http_1_1_are() {
    let (_service, front, mut visitor) = echo().await;
    visitor.get("/").await;
    let text = front.handle.shared.metrics.render();
    assert!(text.contains("kennel_connections 1\n"), "{text}");
    let counted = "kennel_http_requests_total{project=\"shop\",service=\"api\",code=\"2xx\"} 1\n";
    patiently(async {
        while !front.handle.shared.metrics.render().contains(counted) {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
