//! What is there: `status` and `builds`.

use super::*;

#[tokio::test]
async fn status_shows_what_runs_what_comes_and_what_went_wrong() {
    let fixture = Fixture::busy().await;
    insta::assert_snapshot!(ageless(&fixture.kennel(&["status"]).await.all()), @r#"
    BUILD  PROJECT  BRANCH  COMMIT   STATE   FOR  TITLE
        4  hello    main    0123456  queued   0s  Say it a third time

    ID  PROJECT  BRANCH  SERVICE  STATE   COMMIT   SINCE  URL
     3  hello    main    api      failed  fedcba9     0s
     1  hello    main    api      live    0123456     0s  http://api-main.hello.localhost:8080
     2  hello    main    web      live    0123456     0s  http://web-main.hello.localhost:8080

    Build 3 of hello/pr-7 failed (fedcba9, 0s ago)
        api: the flake has no output `packages.x86_64-linux.api`
      `kennel logs --build 3` shows its logs.

    Deployment 3 of hello/main/api failed (fedcba9, 0s ago)
        it exited before it was healthy: exit code 1
        last lines of its journal:
            no DATABASE_URL�[2J
      Deployment 1 (0123456) keeps serving.
    --- exit 0
    "#);
}

#[tokio::test]
async fn status_says_which_live_services_get_no_visitors() {
    let fixture = Fixture::new().await;
    fixture.push("heads/main", FIRST, "Say hello").await;
    fixture.finish(&fixture.claim().await, &[("api", Ok(()))]).await;
    fixture.go_live(1).await;
    assert!(fixture.store.note_health(DeploymentId(1), Some("`GET /health` answered 500")).await.unwrap());
    insta::assert_snapshot!(ageless(&fixture.kennel(&["status"]).await.all()), @r#"
    ID  PROJECT  BRANCH  SERVICE  STATE             COMMIT   SINCE  URL
     1  hello    main    api      live (unhealthy)  0123456     0s  http://api-main.hello.localhost:8080

    hello/main/api gets no visitors until it is healthy again: `GET /health` answered 500
    --- exit 0
    "#);
}

#[tokio::test]
async fn status_tells_a_newcomer_what_to_do() {
    let fixture = Fixture::new().await;
    insta::assert_snapshot!(fixture.kennel(&["status"]).await.all(), @r#"
    Nothing runs yet.
    Push to `hello`, or ask for a commit of it: `kennel deploy hello BRANCH COMMIT`.
    --- exit 0
    "#);
    insta::assert_snapshot!(fixture.kennel(&["builds"]).await.all(), @r#"
    Nothing was built yet. Push to a project, or see `kennel deploy --help`.
    --- exit 0
    "#);
    fixture.store.note_projects([]).await.unwrap();
    insta::assert_snapshot!(fixture.kennel(&["status"]).await.all(), @r#"
    kennel serves no project yet.
    Add one to /etc/kennel/config.toml, then `systemctl reload kennel`.
    --- exit 0
    "#);
}

#[tokio::test]
async fn status_flags_what_only_the_operator_can_put_in_order() {
    let fixture = Fixture::new().await;
    fixture.push("heads/main", FIRST, "Say hello").await;
    fixture.finish(&fixture.claim().await, &[("api", Ok(())), ("web", Ok(()))]).await;
    fixture.go_live(1).await;
    fixture.go_live(2).await;
    fixture.push("heads/main", SECOND, "Have no api").await;
    fixture.finish(&fixture.claim().await, &[("web", Ok(()))]).await;
    fixture.store.note_projects([]).await.unwrap();
    insta::assert_snapshot!(ageless(&fixture.kennel(&["status", "hello"]).await.all()), @r#"
    ID  PROJECT  BRANCH  SERVICE  STATE    COMMIT   SINCE  URL
     1  hello    main    api      live     0123456     0s  http://api-main.hello.localhost:8080
     3  hello    main    web      pending  fedcba9     0s
     2  hello    main    web      live     0123456     0s  http://web-main.hello.localhost:8080

    `hello` is no longer in the daemon's file: it is served as before, and takes no pushes.
    hello/main/api is no longer in kennel.toml: `kennel teardown 1` removes it.
    --- exit 0
    "#);
}

#[tokio::test]
async fn builds_are_listed_newest_first() {
    let fixture = Fixture::busy().await;
    insta::assert_snapshot!(ageless(&fixture.kennel(&["builds"]).await.all()), @r#"
    ID  PROJECT  BRANCH  COMMIT   STATE    AGE  DURATION  TITLE
     4  hello    main    0123456  queued    0s         -  Say it a third time
     3  hello    pr-7    fedcba9  failed    0s        0s  Try a thing
     2  hello    main    fedcba9  success   0s        0s  Say hello�[2J twice
     1  hello    main    0123456  success   0s        0s  Say hello
    --- exit 0
    "#);
    let ran = fixture.kennel(&["builds", "hello", "--json", "--limit", "2"]).await;
    let builds: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(
        (builds[0]["id"].as_i64(), builds[1]["state"].as_str(), builds.as_array().unwrap().len()),
        (Some(4), Some("failed"), 2)
    );
    let ran = fixture.kennel(&["status", "--json"]).await;
    let status: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(status["deployments"][0]["journal_tag"], "kennel-hello-main-web");
    assert_eq!(status["projects"][0]["open_builds"], 1);
}
