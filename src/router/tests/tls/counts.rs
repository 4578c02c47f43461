//! Handshakes in the metrics, and when certificates end.

use super::*;

#[tokio::test]
async fn handshakes_are_counted_by_how_they_ended_and_certificates_by_when_they_end() {
    let timeouts = Timeouts { handshake: Duration::from_millis(300), ..Timeouts::default() };
    let (doors, visit, _service) = Doors::echo(RouterConfig { timeouts, ..RouterConfig::default() }).await;
    let metrics = doors.front.handle.shared.metrics.clone();
    let counted = |result: &str| {
        let page = metrics.render();
        let start = format!("kennel_tls_handshakes_total{{result=\"{result}\"}} ");
        let count = page.lines().find_map(|line| line.strip_prefix(&start)).unwrap();
        count.parse::<u64>().unwrap()
    };
    visit.connect(&doors, HOST).await.get(HOST, "/").await;
    visit.alert(&doors, ELSEWHERE).await;
    Visit(visit.0.clone()).without_name().alert(&doors, HOST).await;
    Visit(visit.0.clone()).offering(&["h3"]).alert(&doors, HOST).await;
    assert!(Visit::trusting(&[]).try_connect(&doors, HOST).await.is_err());
    let mut plain = Raw(TcpStream::connect(doors.secure).await.unwrap());
    plain.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    plain.rest_bytes().await;
    let mut silent = Raw(TcpStream::connect(doors.secure).await.unwrap());
    silent.rest_bytes().await;
    for result in ["done", "unknown_name", "no_name", "nothing_in_common", "rejected", "malformed", "too_slow"] {
        patiently(async {
            while counted(result) < 1 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        assert_eq!(counted(result), 1, "{result}");
    }
    assert_eq!(counted("challenge"), 0);

    let now = jiff::Timestamp::now();
    let day = jiff::SignedDuration::from_hours(24);
    let made = crate::router::tls::testing::certificate_between(&["*.shop.example", "we\"ird"], now - day, now + day);
    doors.show(&[&made]);
    let page = metrics.render();
    let shown: Vec<_> =
        page.lines().filter_map(|line| line.strip_prefix("kennel_certificate_expiry_timestamp_seconds")).collect();
    assert_eq!(shown, [format!("{{name=\"*.shop.example\"}} {}", (now + day).as_second())]);
}
