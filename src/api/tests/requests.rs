//! Requests that make no sense, and those that anybody may send.

use super::*;

#[tokio::test]
async fn bad_requests_get_problems_that_name_what_is_wrong() {
    let harness = Harness::new().await;
    let mut told = String::new();
    for path in ["/", "/builds/x", "/builds/-1", "/builds/99999999999999999999", "/builds?limit=0", "/builds?color=red"]
    {
        let answer = harness.get(path).await;
        assert_eq!(answer.headers["content-type"], "application/problem+json", "{path}");
        told += &format!("{path} {} {}\n", answer.status, answer.json()["detail"].as_str().unwrap());
    }
    let bodies = ["{", "{}", "{\"branch\": \"main\", \"force\": true}", "{\"branch\": 7}"];
    for body in bodies {
        let stream = UnixStream::connect(&harness.unix).await.unwrap();
        let headers = [("host", "x"), ("content-type", "application/json")];
        let answer = ask(stream, "POST", "/projects/hello/deploy", &headers, body).await;
        told += &format!("{body} {} {}\n", answer.status, answer.json()["detail"].as_str().unwrap());
    }
    insta::assert_snapshot!(told, @r#"
    / 404 There is nothing at `/`.
    /builds/x 400 "x" is not the number of a build.
    /builds/-1 400 "-1" is not the number of a build.
    /builds/99999999999999999999 400 "99999999999999999999" is not the number of a build.
    /builds?limit=0 400 The query is wrong: limit: "0" is not a number from 1 to 10000.
    /builds?color=red 400 The query is wrong: color: unknown field `color`, expected one of `project`, `current`, `limit`.
    { 400 The body is wrong: EOF while parsing an object at line 1 column 1.
    {} 400 The body is wrong: missing field `branch` at line 1 column 2.
    {"branch": "main", "force": true} 400 The body is wrong: unknown field `force`, expected `branch` or `commit` at line 1 column 26.
    {"branch": 7} 400 The body is wrong: invalid type: integer `7`, expected a string at line 1 column 12.
    "#);
    let answer = harness.post("/projects/hello/deploy", json!({ "branch": "x".repeat(70_000) })).await;
    assert_eq!(answer.status, 413);
    let stream = UnixStream::connect(&harness.unix).await.unwrap();
    let answer = ask(stream, "POST", "/projects/hello/deploy", &[("host", "x")], "{}").await;
    assert_eq!(answer.status, 415);
    let answer = harness.post("/builds", Value::Null).await;
    assert_eq!((answer.status, &answer.headers["allow"]), (405, &"GET,HEAD".parse().unwrap()));
    assert_eq!(answer.json()["status"], 405);
    assert_eq!(harness.get("/builds/1/cancel").await.status, 405);
}

#[tokio::test]
async fn metrics_are_text_for_operators() {
    let harness = Harness::new().await;
    let page = harness.get("/metrics").await;
    assert_eq!((page.status, page.text.as_str()), (200, "kennel_routes 0\n"));
    assert_eq!(page.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    if let Some(status) = curl_as(NOBODY, &[&format!("http://{}/metrics", harness.tcp)]).await {
        assert_eq!(status, "403");
    }
}

#[tokio::test]
async fn the_health_page_is_for_everybody() {
    let harness = Harness::new().await;
    assert_eq!(harness.tcp("GET", "/healthz", &[("host", "anything")], "").await.json(), json!({ "status": "ok" }));
    if let Some(status) = curl_as(NOBODY, &[&format!("http://{}/healthz", harness.tcp)]).await {
        assert_eq!(status, "200");
    }
    harness.api.store.close().await;
    assert_eq!(harness.tcp("GET", "/healthz", &LOCAL, "").await.status, 503);
}
