//! How connections of HTTP/2 end, and what ends before them.

use rstest::rstest;

use super::*;

const SHORT: Duration = Duration::from_millis(200);

/// A service that begins to answer what is asked of `/long`, and goes on when it is told to.
async fn halting() -> (Service, tokio::sync::watch::Sender<bool>) {
    let (release, released) = tokio::sync::watch::channel(false);
    let service = Service::http(move |request| {
        let mut released = released.clone();
        async move {
            if request.uri().path() == "/long" {
                let _ = released.wait_for(|released| *released).await;
            }
            text("finished")
        }
    })
    .await;
    (service, release)
}

/// A service that sends without end.
async fn endless() -> Service {
    Service::raw(|mut stream, _| async move {
        reply(&mut stream, "HTTP/1.1 200 OK\r\nContent-Length: 100000000000\r\n\r\n").await;
        while stream.write_all(&[7; 64 * 1024]).await.is_ok() {}
    })
    .await
}

#[tokio::test]
async fn at_the_end_what_has_begun_finishes_and_connections_are_told_to_go() {
    let (service, release) = halting().await;
    let front = Front::start(service.route(1)).await;
    let mut idle = Http2::connect(&front).await;
    idle.get("/").await;
    let mut busy = Http2::connect(&front).await;
    busy.get("/").await;
    let (long, _) = busy.send.send_request(request("GET", "/long"), true).unwrap();
    front.shutdown.cancel();
    // GOAWAY ends it properly.
    idle.end().await.unwrap();
    release.send(true).unwrap();
    assert_eq!(Reply::read(long).await.unwrap().text(), "finished");
    busy.end().await.unwrap();
    front.stop().await;
}

#[tokio::test]
async fn who_comes_while_others_finish_is_still_served_and_then_told_to_go() {
    let (service, release) = halting().await;
    let front = Front::start(service.route(1)).await;
    let mut busy = Http2::connect(&front).await;
    let (long, _) = busy.send.send_request(request("GET", "/long"), true).unwrap();
    while front.handle.shared.table.load().upstreams().all(|upstream| upstream.claims() == 0) {
        tokio::task::yield_now().await;
    }
    front.shutdown.cancel();
    let mut late = Http2::connect(&front).await;
    let reply = late.get("/").await;
    assert_eq!((reply.text(), reply.headers.get("connection")), ("finished", None));
    late.end().await.unwrap();
    release.send(true).unwrap();
    assert_eq!(Reply::read(long).await.unwrap().text(), "finished");
    front.stop().await;
}

#[tokio::test]
async fn at_the_end_nobody_is_waited_for_who_has_asked_for_nothing() {
    let service = Service::echo().await;
    let front = Front::start(service.route(1)).await;
    let mut silent = Frames::connect(&front, &[]).await;
    silent.get(1, "/").await;
    silent.until(DATA, 1).await.unwrap();
    // He never answers the ping that comes with GOAWAY. `stop` would wait for more than this test's patience.
    front.stop().await;
    assert!(silent.until(GOAWAY, 0).await.is_some());
}

#[tokio::test]
async fn what_does_not_finish_in_time_is_cut_at_the_end() {
    let (service, _release) = halting().await;
    let config = timeouts(Timeouts { lame_duck: Duration::ZERO, finish: SHORT, ..Timeouts::default() });
    let front = Front::with(config, service.route(1)).await;
    let mut visitor = Http2::connect(&front).await;
    let (long, _) = visitor.begin(request("GET", "/long")).await;
    front.stop().await;
    assert!(Reply::read(long).await.is_err());
}

#[tokio::test]
async fn a_visitor_who_asks_for_nothing_is_let_go() {
    let service = Service::echo().await;
    let config = timeouts(Timeouts { request_header: SHORT, idle: SHORT, ..Timeouts::default() });
    let front = Front::with(config, service.route(1)).await;
    // At each stage of saying hello, and in the middle of a head.
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let settings = frame(SETTINGS, 0, 0, &[]);
    let begun = frame(HEADERS, END_STREAM, 1, &head("GET", "/", &[]));
    for said in [&preface[..3], preface, &[preface, &settings[..]].concat(), &[preface, &settings[..], &begun].concat()]
    {
        let mut raw = front.connect().await;
        raw.send(said).await;
        raw.rest_bytes().await;
    }
    let mut served = Http2::connect(&front).await;
    assert_eq!(served.get("/").await.status, 200);
    let _ = served.end().await;
}

#[tokio::test]
async fn an_answer_that_the_visitor_opens_no_window_for_is_reset() {
    let service = endless().await;
    let front = Front::with(timeouts(Timeouts { idle: SHORT, ..Timeouts::default() }), service.route(1)).await;
    // Windows of nothing, and of a little.
    for window in [0, 100] {
        let mut frames = Frames::connect(&front, &[(4, window)]).await;
        frames.get(1, "/").await;
        assert!(frames.until(HEADERS, 1).await.is_some());
        let reset = frames.until(RST_STREAM, 1).await;
        assert_eq!(reset, Some(u32::from(Reason::CANCEL).to_be_bytes().to_vec()), "window {window}");
    }
}

#[tokio::test]
async fn a_visitor_who_takes_nothing_of_the_connection_is_cut() {
    let service = endless().await;
    let front = Front::with(timeouts(Timeouts { idle: SHORT, ..Timeouts::default() }), service.route(1)).await;
    let mut frames = Frames::connect(&front, &[(4, 0x7fff_ffff)]).await;
    frames.send(WINDOW_UPDATE, 0, 0, &0x7fff_0000_u32.to_be_bytes()).await;
    frames.get(1, "/").await;
    patiently(async {
        while front.handle.shared.metrics.render().contains("kennel_connections 0\n") {
            tokio::task::yield_now().await;
        }
        while !front.handle.shared.metrics.render().contains("kennel_connections 0\n") {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn an_upload_that_stops_gets_408_and_the_connection_stays() {
    let service = Service::http(|request| async move {
        let body = http_body_util::BodyExt::collect(request.into_body()).await;
        text(body.map_or_else(|_| Bytes::new(), http_body_util::Collected::to_bytes))
    })
    .await;
    let front = Front::with(timeouts(Timeouts { idle: SHORT, ..Timeouts::default() }), service.route(1)).await;
    let mut visitor = Http2::connect(&front).await;
    let (response, mut stream) = visitor.begin(request("POST", "/")).await;
    stream.send_data(Bytes::from_static(b"abc"), false).unwrap();
    assert_eq!(Reply::read(response).await.unwrap().status, 408);
    assert_eq!(visitor.get("/").await.status, 200);
}

#[rstest]
#[case::while_he_sends_it("POST", false)]
#[case::once_he_has_sent_all_of_it("GET", true)]
#[tokio::test]
async fn a_request_that_the_visitor_takes_back_leaves_the_service(#[case] method: &str, #[case] whole: bool) {
    let (gone, mut left) = tokio::sync::mpsc::channel(1);
    let service = Service::raw(move |mut stream, _| {
        let gone = gone.clone();
        async move {
            head_of(&mut stream).await;
            gone.send(()).await.unwrap();
            assert!(!matches!(stream.read(&mut [0; 16]).await, Ok(1..)));
            gone.send(()).await.unwrap();
        }
    })
    .await;
    let front = Front::start(service.route(1)).await;
    let mut visitor = Http2::connect(&front).await;
    let (response, mut stream) = visitor.send.send_request(request(method, "/"), whole).unwrap();
    patiently(left.recv()).await.unwrap();
    stream.send_reset(Reason::CANCEL);
    drop(response);
    patiently(left.recv()).await.unwrap();
}

#[tokio::test]
async fn a_body_that_is_reset_without_an_error_does_not_pass_for_a_whole_one() {
    let (seen, mut bodies) = tokio::sync::mpsc::channel(2);
    let service = Service::raw(move |mut stream, _| {
        let seen = seen.clone();
        async move {
            head_of(&mut stream).await;
            let mut body = [0; 8];
            stream.read_exact(&mut body).await.unwrap();
            seen.send(body.to_vec()).await.unwrap();
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            seen.send(rest).await.unwrap();
        }
    })
    .await;
    let front = Front::start(service.route(1)).await;
    let mut visitor = Http2::connect(&front).await;
    let (_response, mut stream) = visitor.begin(request("POST", "/")).await;
    stream.send_data(Bytes::from_static(b"abc"), false).unwrap();
    assert_eq!(patiently(bodies.recv()).await.unwrap(), b"3\r\nabc\r\n");
    stream.send_reset(Reason::NO_ERROR);
    assert_eq!(patiently(bodies.recv()).await.unwrap(), b"");
}

#[tokio::test]
async fn a_drain_cuts_answers_at_its_end_even_those_that_go_on_without_a_pause() {
    let service = endless().await;
    let front = Front::start(service.route(1)).await;
    let mut visitor = Http2::connect(&front).await;
    let (response, _stream) = visitor.begin(request("GET", "/")).await;
    let mut body = patiently(response).await.unwrap().into_body();
    assert!(!patiently(body.data()).await.unwrap().unwrap().is_empty());
    front.switch(Vec::new()).await;
    patiently(front.handle.drain(DeploymentId(1), SHORT)).await;
    // What it sends goes on without a pause, and the visitor takes all of it from now on.
    assert!(patiently(read(&mut body)).await.is_err(), "it is not to pass for a whole answer");
    assert_eq!(visitor.get("/").await.status, 404, "the connection stays");
}
