//! Services that speak HTTP/2 in clear text, such as those of gRPC.

use h2::server::SendResponse;

use super::*;

const SHORT: Duration = Duration::from_millis(200);

/// A service that does `talk` with each request; the last argument counts its connection.
pub(super) async fn service<F, T>(talk: F) -> Service
where
    F: Fn(Request<RecvStream>, SendResponse<Bytes>, usize) -> T + Clone + Send + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    Service::raw(move |stream, number| {
        let talk = talk.clone();
        async move {
            // Frames that it does not read at once are not what is tested.
            let mut builder = h2::server::Builder::new();
            let Ok(mut connection) = builder.data_frame_budget(usize::MAX).handshake(stream).await else { return };
            let mut requests = JoinSet::new();
            while let Some(Ok((request, respond))) = connection.accept().await {
                requests.spawn(talk(request, respond, number));
            }
        }
    })
    .await
}

pub(super) fn route(service: &Service) -> Vec<Route> {
    let destination = Destination::Service { port: service.port, protocol: Protocol::H2c, health_path: None };
    vec![Route { destination, ..route_to(1, service.port) }]
}

fn status(code: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), http::HeaderValue::from_static(code))])
}

pub(super) fn call() -> Request<()> {
    with(with(request("POST", "/shop.Orders/Watch"), "content-type", "application/grpc"), "te", "trailers")
}

/// Sends back each message as it comes; in the end, the request's own trailers and a status.
async fn echo(request: Request<RecvStream>, mut respond: SendResponse<Bytes>, _: usize) {
    let mut response = Response::new(());
    for (name, value) in request.headers() {
        response.headers_mut().insert(format!("seen-{name}").parse::<http::HeaderName>().unwrap(), value.clone());
    }
    let target = request.uri().to_string();
    response.headers_mut().insert("seen-target", http::HeaderValue::try_from(target).unwrap());
    let mut answer = respond.send_response(response, false).unwrap();
    let mut body = request.into_body();
    while let Some(Ok(data)) = body.data().await {
        body.flow_control().release_capacity(data.len()).unwrap();
        answer.send_data(data, false).unwrap();
    }
    let mut trailers = status("0");
    trailers.extend(body.trailers().await.unwrap().unwrap_or_default());
    answer.send_trailers(trailers).unwrap();
}

#[tokio::test]
async fn a_call_streams_both_ways_and_ends_with_its_status() {
    let service = service(echo).await;
    let front = Front::start(route(&service)).await;
    let mut visitor = Http2::connect(&front).await;
    let (response, mut stream) = visitor.begin(with(call(), "x-own", "1")).await;
    let (parts, mut body) = patiently(response).await.unwrap().into_parts();
    let seen = |name: &str| parts.headers.get(format!("seen-{name}")).map(|value| value.to_str().unwrap());
    assert_eq!(seen("target"), Some(&*format!("http://{HOST}/shop.Orders/Watch")));
    for (name, value) in [
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("x-own", "1"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-host", HOST),
        ("x-real-ip", "127.0.0.1"),
        ("forwarded", &format!("for=127.0.0.1;host={HOST};proto=http")),
    ] {
        assert_eq!(seen(name), Some(value), "{name}");
    }
    assert_eq!((seen("host"), seen("connection")), (None, None));
    for message in ["one", "two", "three"] {
        // The next is not even sent before this one has come back.
        stream.send_data(Bytes::from_static(message.as_bytes()), false).unwrap();
        assert_eq!(patiently(body.data()).await.unwrap().unwrap(), message);
    }
    let mut trailers = status("9");
    trailers.insert("x-sum", http::HeaderValue::from_static("7"));
    trailers.insert("authorization", http::HeaderValue::from_static("too late"));
    trailers.remove("grpc-status");
    stream.send_trailers(trailers).unwrap();
    assert!(patiently(body.data()).await.is_none());
    let trailers = patiently(body.trailers()).await.unwrap().unwrap();
    assert_eq!(
        (&trailers["grpc-status"], &trailers["x-sum"], trailers.len()),
        (&"0".parse().unwrap(), &"7".parse().unwrap(), 2)
    );
}

#[tokio::test]
async fn a_visitor_who_asks_first_is_told_to_go_on() {
    let service = service(|request, mut respond, _| async move {
        let has_expect = request.headers().contains_key("expect");
        let body = read(&mut request.into_body()).await.unwrap();
        let mut answer = respond.send_response(Response::new(()), false).unwrap();
        answer.send_data(format!("{has_expect} {}", body.len()).into(), true).unwrap();
    })
    .await;
    let front = Front::start(route(&service)).await;
    let mut visitor = Http2::connect(&front).await;
    let (mut response, mut stream) = visitor.begin(with(call(), "expect", "100-continue")).await;
    let told = patiently(std::future::poll_fn(|cx| response.poll_informational(cx))).await;
    assert_eq!(told.unwrap().unwrap().status(), 100);
    send(&mut stream, Bytes::from_static(b"body")).await;
    assert_eq!(Reply::read(response).await.unwrap().text(), "false 4");
}

#[tokio::test]
async fn a_call_may_fail_with_a_head_alone() {
    let service = service(|_, mut respond, _| async move {
        let mut response = Response::new(());
        *response.headers_mut() = status("12");
        respond.send_response(response, true).unwrap();
    })
    .await;
    let front = Front::start(route(&service)).await;
    let reply = Http2::connect(&front).await.ask(call()).await;
    assert_eq!((reply.status, &reply.headers["grpc-status"]), (200, &"12".parse().unwrap()));
    assert!(reply.body.is_empty() && reply.trailers.is_none());
}

#[tokio::test]
async fn a_visitor_of_http_1_1_is_answered_too() {
    let service = service(echo).await;
    let front = Front::start(route(&service)).await;
    let mut raw = front.connect().await;
    for _ in 0..3 {
        raw.send(format!("POST /a?b=c HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 5\r\n\r\nhello")).await;
        let head = raw.until("\r\n\r\n").await;
        assert!(
            head.starts_with("HTTP/1.1 200 ") && head.contains(&format!("seen-target: http://{HOST}/a?b=c\r\n")),
            "{head}"
        );
        assert!(raw.until("0\r\n\r\n").await.contains("hello"));
    }
}

#[tokio::test]
async fn a_large_body_passes_both_ways_unchanged() {
    let service = service(|request, mut respond, _| async move {
        let mut body = request.into_body();
        let bytes = read(&mut body).await.unwrap();
        let mut answer = respond.send_response(Response::new(()), false).unwrap();
        send(&mut answer, bytes.into()).await;
    })
    .await;
    let front = Front::start(route(&service)).await;
    let mut visitor = Http2::connect(&front).await;
    let body: Bytes = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    let (response, mut stream) = visitor.begin(request("POST", "/")).await;
    let (reply, ()) = tokio::join!(Reply::read(response), send(&mut stream, body.clone()));
    assert!(reply.unwrap().body == body);
}

#[tokio::test]
async fn visitors_who_take_nothing_do_not_hold_up_those_on_the_same_connection() {
    let (allowed, mut progress) = tokio::sync::watch::channel(0);
    let service = service(move |request, mut respond, _| {
        let allowed = allowed.clone();
        async move {
            let mut answer = respond.send_response(Response::new(()), false).unwrap();
            while request.uri().path() == "/long" {
                answer.reserve_capacity(16 * 1024);
                let room = std::future::poll_fn(|cx| answer.poll_capacity(cx)).await.unwrap().unwrap();
                answer.send_data(vec![7; room].into(), false).unwrap();
                allowed.send_modify(|bytes| *bytes += room);
            }
            answer.send_data(Bytes::from_static(&[7; 5]), true).unwrap();
        }
    })
    .await;
    let config = RouterConfig { workers: std::num::NonZeroUsize::MIN, ..RouterConfig::default() };
    let front = Front::with(config, route(&service)).await;
    let mut held = Frames::connect(&front, &[(4, 0)]).await;
    for number in 0..90 {
        held.get(2 * number + 1, "/long").await;
    }
    // As much has been sent for each as may wait for him.
    patiently(progress.wait_for(|bytes| *bytes >= 90 * 128 * 1024)).await.unwrap();
    for _ in 0..3 {
        assert_eq!(Http2::connect(&front).await.get("/").await.body, [7; 5]);
    }
}

#[tokio::test]
async fn what_a_visitor_takes_back_is_taken_back_from_the_service() {
    let (gone, mut left) = tokio::sync::mpsc::channel(1);
    let service = service(move |_, mut respond, _| {
        let gone = gone.clone();
        async move {
            gone.send(Reason::NO_ERROR).await.unwrap();
            let reason = std::future::poll_fn(|cx| respond.poll_reset(cx)).await.unwrap();
            gone.send(reason).await.unwrap();
        }
    })
    .await;
    let front = Front::start(route(&service)).await;
    let mut visitor = Http2::connect(&front).await;
    let (response, mut stream) = visitor.begin(call()).await;
    patiently(left.recv()).await.unwrap();
    stream.send_reset(Reason::CANCEL);
    drop(response);
    assert_eq!(patiently(left.recv()).await, Some(Reason::CANCEL));
}

#[tokio::test]
async fn an_answer_that_the_service_breaks_off_does_not_pass_for_a_whole_one() {
    let arrived = Arc::new(tokio::sync::Notify::new());
    let next = Arc::clone(&arrived);
    let service = service(move |_, mut respond, _| {
        let next = Arc::clone(&next);
        async move {
            let mut answer = respond.send_response(Response::new(()), false).unwrap();
            answer.send_data(Bytes::from_static(b"begun"), false).unwrap();
            next.notified().await;
            answer.send_reset(Reason::INTERNAL_ERROR);
        }
    })
    .await;
    let front = Front::start(route(&service)).await;
    let mut visitor = Http2::connect(&front).await;
    let (response, _stream) = visitor.begin(call()).await;
    let mut body = patiently(response).await.unwrap().into_body();
    assert_eq!(patiently(body.data()).await.unwrap().unwrap(), "begun");
    arrived.notify_one();
    let broken = patiently(body.data()).await.unwrap().unwrap_err();
    assert_eq!(broken.reason(), Some(Reason::INTERNAL_ERROR));
}

#[tokio::test]
async fn what_is_not_http_2_gets_502_and_who_is_silent_504() {
    let older = Service::echo().await;
    let front = Front::start(route(&older)).await;
    assert_eq!(front.get("/", "").await.status, 502);
    let silent = service(|_, respond, _| async move {
        let _kept = respond;
        std::future::pending::<()>().await;
    })
    .await;
    let front = Front::with(timeouts(Timeouts { response_header: SHORT, ..Timeouts::default() }), route(&silent)).await;
    assert_eq!(front.get("/", "").await.status, 504);
    let refusing = { listen().await.1 };
    let gone = Service { port: refusing, tasks: JoinSet::new() };
    assert_eq!(Front::start(route(&gone)).await.get("/", "").await.status, 502);
}

#[tokio::test]
async fn an_upload_that_stops_gets_408() {
    let service = service(|request, respond, _| async move {
        let _kept = respond;
        let _ = read(&mut request.into_body()).await;
        std::future::pending::<()>().await;
    })
    .await;
    let front = Front::with(timeouts(Timeouts { idle: SHORT, ..Timeouts::default() }), route(&service)).await;
    let mut visitor = Http2::connect(&front).await;
    let (response, mut stream) = visitor.begin(request("POST", "/")).await;
    stream.send_data(Bytes::from_static(b"abc"), false).unwrap();
    assert_eq!(Reply::read(response).await.unwrap().status, 408);
}

#[tokio::test]
async fn a_drain_waits_for_calls_and_cuts_them_at_its_end() {
    let service = service(echo).await;
    let front = Front::start(route(&service)).await;
    let mut visitor = Http2::connect(&front).await;
    let (response, mut stream) = visitor.begin(call()).await;
    let mut body = patiently(response).await.unwrap().into_body();
    front.switch(Vec::new()).await;
    let mut drain = std::pin::pin!(front.handle.drain(DeploymentId(1), Duration::from_secs(1)));
    stream.send_data(Bytes::from_static(b"still here"), false).unwrap();
    tokio::select! {
        biased;
        message = patiently(body.data()) => assert_eq!(message.unwrap().unwrap(), "still here"),
        () = &mut drain => panic!("a call is inside"),
    }
    let (read, ()) = tokio::join!(read(&mut body), drain);
    assert!(read.is_err());
    assert_eq!(visitor.get("/").await.status, 404, "the connection stays");
}
