//! What is counted of the requests that pass.

use http::StatusCode;

use super::*;

pub(super) fn line(page: &str, start: &str) -> f64 {
    let mut lines = page.lines().filter(|line| line.starts_with(start));
    let line = lines.next().unwrap_or_else(|| panic!("no line begins with {start}:\n{page}"));
    line.rsplit_once(' ').unwrap().1.parse().unwrap()
}

#[tokio::test]
async fn answers_are_counted_by_project_service_and_status_when_they_are_over() {
    let service = Service::http(|request| async move {
        let mut answer = text("seven b");
        if request.uri().path() == "/none" {
            *answer.status_mut() = StatusCode::NOT_FOUND;
        }
        answer
    })
    .await;
    let front = Front::start(service.route(1)).await;
    for path in ["/", "/", "/none"] {
        front.get(path, "").await;
    }
    front.raw("GET / HTTP/1.1\r\nHost: elsewhere.example\r\nConnection: close\r\n\r\n").await;
    let page = front.handle.shared.metrics.render();
    let shop = "{project=\"shop\",service=\"api\"";
    assert_eq!(line(&page, &format!("kennel_http_requests_total{shop},code=\"2xx\"}}")), 2.0);
    assert_eq!(line(&page, &format!("kennel_http_requests_total{shop},code=\"4xx\"}}")), 1.0);
    assert_eq!(line(&page, &format!("kennel_http_response_bytes_total{shop}}}")), 21.0);
    assert_eq!(line(&page, &format!("kennel_http_request_duration_seconds_count{shop}}}")), 3.0);
    assert_eq!(line(&page, &format!("kennel_http_request_duration_seconds_bucket{shop},le=\"+Inf\"}}")), 3.0);
    assert!(line(&page, &format!("kennel_http_request_duration_seconds_sum{shop}}}")) > 0.0);
    assert_eq!(line(&page, "kennel_http_requests_total{project=\"\",service=\"\",code=\"4xx\"}"), 1.0);
    assert_eq!(line(&page, "kennel_routes"), 1.0);
    assert!(!page.contains("elsewhere"), "nothing a visitor sends is a label:\n{page}");
}

#[tokio::test]
async fn what_services_fail_at_and_who_is_connected_is_counted_and_outlives_a_switch() {
    let (listener, port) = listen().await;
    drop(listener);
    let front = Front::start(vec![route_to(1, port)]).await;
    assert_eq!(front.get("/", "").await.status, 502);
    let mut open = front.connect().await;
    open.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    assert_eq!(open.answer().await.status, 502);
    let service = Service::http(|_| async { text("up") }).await;
    front.switch(service.route(2)).await;
    assert_eq!(front.get("/", "").await.status, 200);
    let page = front.handle.shared.metrics.render();
    let shop = "{project=\"shop\",service=\"api\"";
    assert_eq!(line(&page, &format!("kennel_upstream_failures_total{shop},reason=\"refused\"}}")), 2.0);
    assert_eq!(line(&page, &format!("kennel_http_requests_total{shop},code=\"5xx\"}}")), 2.0);
    assert_eq!(line(&page, &format!("kennel_http_requests_total{shop},code=\"2xx\"}}")), 1.0);
    assert!(line(&page, "kennel_connections") >= 1.0);
    drop(open);
    let metrics = front.handle.shared.metrics.clone();
    front.stop().await;
    assert_eq!(line(&metrics.render(), "kennel_connections"), 0.0);
}
