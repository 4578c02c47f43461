//! Logs of builds, whole and as they come.

use super::*;

#[tokio::test]
async fn logs_are_listed_and_read() {
    let harness = Harness::new().await;
    let build = harness.push("heads/main", COMMIT, Some("d1")).await;
    assert_eq!(harness.get("/builds/1/logs").await.json(), json!([]));
    harness.write_log(build, "api.log", "one\ntwo\n");
    harness.write_log(build, "fetch.log", "");
    harness.write_log(build, "notes.txt", "not a log");
    let logs = json!([{ "name": "fetch", "bytes": 0 }, { "name": "api", "bytes": 8 }]);
    assert_eq!(harness.get("/builds/1/logs").await.json(), logs);
    let answer = harness.get("/builds/1/logs/api").await;
    assert_eq!((answer.status, answer.text.as_str()), (200, "one\ntwo\n"));
    assert_eq!(answer.headers["content-type"], "text/plain; charset=utf-8");
    let answer = harness.get("/builds/1/logs/web").await;
    insta::assert_snapshot!(answer.text, @r#"{"type":"about:blank","title":"Not Found","status":404,"detail":"Build 1 has no log of `web`.","hint":"it has `fetch`, `api`"}"#);
    assert_eq!(harness.get("/builds/1/logs/..%2F..%2Fkennel").await.status, 400);
    assert_eq!(harness.get("/builds/2/logs/api").await.status, 404);
}

#[tokio::test]
async fn what_a_build_put_in_place_of_a_log_is_not_opened() {
    let harness = Harness::new().await;
    let build = harness.push("heads/main", COMMIT, Some("d1")).await;
    harness.write_log(build, "api.log", "");
    let dir = harness.api.logs.join(build.to_string());
    std::fs::write(harness.dir.path().join("secret"), "s3cret").unwrap();
    std::os::unix::fs::symlink(harness.dir.path().join("secret"), dir.join("link.log")).unwrap();
    nix::unistd::mkfifo(&dir.join("pipe.log"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::fs::create_dir(dir.join("dir.log")).unwrap();
    for name in ["link", "pipe", "dir"] {
        assert_eq!(harness.get(&format!("/builds/1/logs/{name}")).await.status, 404, "{name}");
    }
    assert_eq!(harness.get("/builds/1/logs").await.json(), json!([{ "name": "api", "bytes": 0 }]));
}

#[tokio::test]
async fn a_followed_log_ends_with_its_build_and_holds_all_of_it() {
    let harness = Harness::new().await;
    harness.push("heads/main", COMMIT, Some("d1")).await;
    let build = harness.claim().await;
    let follow = harness.get("/builds/1/logs/api?follow=1");
    let work = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        harness.write_log(build.id, "api.log", "one\n");
        tokio::time::sleep(Duration::from_millis(300)).await;
        harness.write_log(build.id, "api.log", &format!("one\ntwo\n{}", "x".repeat(100_000)));
        harness.finish(&build).await;
    };
    let (answer, ()) = tokio::join!(follow, work);
    assert!(answer.text.starts_with("one\ntwo\n"));
    assert_eq!(answer.text.len(), 100_008);
    assert_eq!(harness.get("/builds/1/logs/api?follow=1").await.text, answer.text, "and of one that has ended");
}

#[tokio::test]
async fn a_follower_sees_lines_as_they_come_and_a_break_when_kennel_stops() {
    let harness = Harness::new().await;
    harness.push("heads/main", COMMIT, Some("d1")).await;
    let build = harness.claim().await;
    harness.write_log(build.id, "api.log", "one\n");
    let stream = UnixStream::connect(&harness.unix).await.unwrap();
    let (response, _driver) = send(stream, "GET", "/builds/1/logs/api?follow", &[("host", "x")], "").await;
    let mut body = response.into_body();
    let line = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(line, "one\n", "while the build still runs");
    harness.api.shutdown.cancel();
    let end = tokio::time::timeout(Duration::from_secs(3), body.frame()).await.unwrap();
    assert!(matches!(end, Some(Err(_))), "a log that breaks off must not look as if it had ended");
}
