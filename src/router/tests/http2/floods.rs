//! What a server of HTTP/2 is attacked with, in frames as they are. An honest visitor is answered meanwhile.

use rstest::rstest;

use super::*;
use crate::router::Limits;

/// More than anybody may send in the time a test takes.
const FLOOD: usize = 50_000;

async fn front(limits: Limits) -> (Service, Front) {
    let service = Service::echo().await;
    let front = Front::with(RouterConfig { limits, ..RouterConfig::default() }, service.route(1)).await;
    (service, front)
}

async fn is_served(front: &Front) {
    assert_eq!(Http2::connect(front).await.get("/").await.status, 200);
    assert_eq!(front.get("/", "").await.status, 200);
}

/// Sends `frames` again and again until the connection is closed, and reads on meanwhile; whether it was closed, and
/// for which reason if that was said. How many were sent says nothing: sockets may take them all before one is read.
async fn flood(attacker: Frames, frames: Vec<u8>, times: usize) -> Option<Option<Reason>> {
    let (reads, mut writes) = attacker.0.into_split();
    let mut tasks = JoinSet::new();
    let (ended, end) = tokio::sync::oneshot::channel();
    tasks.spawn(async move {
        let mut seen = Vec::new();
        let _ = { reads }.read_to_end(&mut seen).await;
        let _ = ended.send(seen);
    });
    for _ in 0..times {
        if patiently(writes.write_all(&frames)).await.is_err() {
            break;
        }
    }
    // Closed by the other side, and soon; otherwise by nobody.
    let seen = tokio::time::timeout(Duration::from_secs(5), end).await.ok()?.unwrap();
    let calm = frame(GOAWAY, 0, 0, &[]);
    let mut reason = None;
    let mut at = 0;
    while let Some(head) = seen.get(at..at + 9) {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        if head[3] == calm[3] {
            reason = seen.get(at + 13..at + 17).map(|code| u32::from_be_bytes(code.try_into().unwrap()).into());
        }
        at += 9 + length;
    }
    Some(reason)
}

#[rstest]
#[case::pings(frame(PING, 0, 0, &[0; 8]))]
#[case::answers_to_no_ping(frame(PING, 1, 0, &[0; 8]))]
#[case::settings(frame(SETTINGS, 0, 0, &[]))]
#[case::settings_of_windows(frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255]))]
#[case::priorities(frame(PRIORITY, 0, 7, &[0, 0, 0, 1, 0]))]
#[case::windows(frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]))]
#[case::unknown(frame(77, 0, 0, &[]))]
#[tokio::test]
async fn a_flood_of_overhead_ends_its_connection(#[case] one: Vec<u8>) {
    let (_service, front) = front(Limits::default()).await;
    let attacker = Frames::connect(&front, &[]).await;
    // In pieces, so that what comes back is read meanwhile.
    let closed = flood(attacker, one.repeat(100), FLOOD / 100).await;
    assert!(matches!(closed, Some(None | Some(Reason::ENHANCE_YOUR_CALM))), "{closed:?}");
    is_served(&front).await;
}

#[rstest]
#[case::of_a_request(&[])]
#[case::of_a_refused_one(&[("connection", "close")])]
#[tokio::test]
async fn data_that_holds_nothing_and_ends_nothing_ends_its_connection(#[case] headers: &[(&str, &str)]) {
    let service = Service::http(|request| async move {
        let _ = http_body_util::BodyExt::collect(request.into_body()).await;
        text("hello")
    })
    .await;
    let front = Front::start(service.route(1)).await;
    let mut attacker = Frames::connect(&front, &[]).await;
    // Its answer comes after its end.
    attacker.send(HEADERS, END_HEADERS, 1, &head("POST", "/", headers)).await;
    let closed = flood(attacker, frame(DATA, 0, 1, &[]).repeat(100), FLOOD / 100).await;
    assert!(matches!(closed, Some(None | Some(Reason::ENHANCE_YOUR_CALM))), "{closed:?}");
    is_served(&front).await;
}

#[tokio::test]
async fn malformed_requests_one_after_the_other_end_their_connection() {
    let (_service, front) = front(Limits::default()).await;
    let mut attacker = Frames::connect(&front, &[]).await;
    let malformed = head("GET", "/", &[("connection", "close")]);
    let mut refused = 0;
    while refused < 300
        && attacker.send(HEADERS, END_HEADERS | END_STREAM, 2 * refused + 1, &malformed).await
        && attacker.until(RST_STREAM, 2 * refused + 1).await.is_some()
    {
        refused += 1;
    }
    assert!((50..300).contains(&refused), "{refused} were taken");
    is_served(&front).await;
}

#[tokio::test]
async fn requests_that_are_taken_back_at_once_end_their_connection_before_a_service_is_asked() {
    let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let service = Service::http(move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        async { text("hello") }
    })
    .await;
    let front = Front::start(service.route(1)).await;
    let mut attacker = Frames::connect(&front, &[]).await;
    let mut burst = Vec::new();
    for number in 0..60 {
        let stream = 2 * number + 1;
        burst.extend(frame(HEADERS, END_HEADERS | END_STREAM, stream, &head("GET", "/", &[])));
        burst.extend(frame(RST_STREAM, 0, stream, &u32::from(Reason::CANCEL).to_be_bytes()));
    }
    attacker.0.write_all(&burst).await.unwrap();
    assert_eq!(attacker.goaway().await, Some(Reason::ENHANCE_YOUR_CALM));
    assert_eq!(asked.load(Ordering::Relaxed), 0);
    is_served(&front).await;
}

#[tokio::test]
async fn requests_that_are_taken_back_one_by_one_end_their_connection_too() {
    let (inside, mut arrived) = tokio::sync::mpsc::channel(1);
    let service = Service::http(move |request| {
        let inside = inside.clone();
        async move {
            if request.uri().path() == "/slow" {
                inside.send(()).await.unwrap();
                std::future::pending::<()>().await;
            }
            text("hello")
        }
    })
    .await;
    let front = Front::start(service.route(1)).await;
    let mut attacker = Frames::connect(&front, &[]).await;
    let mut taken_back = 0;
    // Each has reached the service before it is taken back.
    while taken_back < 2_000 && attacker.get(2 * taken_back + 1, "/slow").await {
        let Ok(arrived) = tokio::time::timeout(Duration::from_secs(2), arrived.recv()).await else { break };
        arrived.unwrap();
        attacker.send(RST_STREAM, 0, 2 * taken_back + 1, &u32::from(Reason::CANCEL).to_be_bytes()).await;
        taken_back += 1;
    }
    assert!((50..1_000).contains(&taken_back), "{taken_back}");
    is_served(&front).await;
}

#[rstest]
#[case::of_lines(line("x-own", &"a".repeat(200)))]
#[case::of_nothing(Vec::new())]
#[tokio::test]
async fn a_head_that_goes_on_and_on_ends_its_connection(#[case] more: Vec<u8>) {
    let (_service, front) = front(Limits::default()).await;
    let mut attacker = Frames::connect(&front, &[]).await;
    attacker.send(HEADERS, 0, 1, &head("GET", "/", &[])).await;
    let closed = flood(attacker, frame(CONTINUATION, 0, 1, &more).repeat(100), FLOOD / 100).await;
    assert!(closed.is_some(), "it goes on");
    is_served(&front).await;
}

#[tokio::test]
async fn a_small_head_that_unfolds_into_a_large_one_is_refused() {
    let (_service, front) = front(Limits::default()).await;
    let mut attacker = Frames::connect(&front, &[]).await;
    // One long line that is kept in HPACK's table, and then named by one byte each time.
    let bomb = |times| {
        let mut long = line("x-own", &"a".repeat(4_000));
        long[0] = 0x40;
        [head("GET", "/", &[]), long, vec![0x80 | 62; times]].concat()
    };
    attacker.send(HEADERS, END_HEADERS | END_STREAM, 1, &bomb(30)).await;
    let answer = attacker.until(HEADERS, 1).await.unwrap();
    assert_eq!(&answer[..5], [0x48, 0x83, 0x69, 0x90, 0xff], "431: {answer:x?}");
    attacker.send(HEADERS, END_HEADERS | END_STREAM, 3, &bomb(4_000)).await;
    assert_eq!(attacker.until(HEADERS, 3).await, None, "16 MB end the connection");
    is_served(&front).await;
}

#[tokio::test]
async fn there_is_a_limit_to_requests_at_a_time() {
    let limits = Limits { streams: 5, ..Limits::default() };
    let (_service, front) = front(limits).await;
    let mut attacker = Frames::connect(&front, &[]).await;
    for number in 0..6 {
        attacker.send(HEADERS, END_HEADERS, 2 * number + 1, &head("POST", "/", &[("content-length", "9")])).await;
    }
    let refused = attacker.until(RST_STREAM, 11).await.unwrap();
    assert_eq!(refused, u32::from(Reason::REFUSED_STREAM).to_be_bytes());
    is_served(&front).await;
}

#[tokio::test]
async fn what_a_connection_may_hold_is_bounded_and_said() {
    let (_service, front) = front(Limits::default()).await;
    let mut frames = Frames::connect(&front, &[]).await;
    let settings = frames.until(SETTINGS, 0).await.unwrap();
    let said = |id: u16| {
        let of = settings.chunks(6).find(|setting| setting[..2] == id.to_be_bytes());
        of.map(|setting| u32::from_be_bytes(setting[2..].try_into().unwrap()))
    };
    // Streams, window, head, and WebSockets (RFC 9113, section 6.5.2; RFC 8441, section 3).
    assert_eq!((said(3), said(4), said(6), said(8)), (Some(100), Some(256 * 1024), Some(64 * 1024), Some(1)));
    let opened = u32::from_be_bytes(frames.until(WINDOW_UPDATE, 0).await.unwrap().try_into().unwrap());
    assert_eq!(opened + 65_535, 1024 * 1024);
}

#[tokio::test]
async fn visitors_who_hold_windows_shut_cost_others_nothing() {
    let service = Service::raw(|mut stream, _| async move {
        loop {
            let head = tokio::time::timeout(PATIENCE, head_of(&mut stream)).await.unwrap();
            let long = head.starts_with("GET /long ");
            let length = if long { 100_000_000 } else { 2 };
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
            if long {
                while stream.write_all(&[7; 64 * 1024]).await.is_ok() {}
                return;
            }
            stream.write_all(b"hi").await.unwrap();
        }
    })
    .await;
    let front = Front::start(service.route(1)).await;
    let mut held = Vec::new();
    for _ in 0..4 {
        let mut frames = Frames::connect(&front, &[(4, 1)]).await;
        for number in 0..100 {
            frames.get(2 * number + 1, "/long").await;
        }
        frames.until(HEADERS, 199).await.unwrap();
        held.push(frames);
    }
    is_served(&front).await;
}
