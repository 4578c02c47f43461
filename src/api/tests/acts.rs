//! Builds and deployments: asked for, shown, cancelled, torn down.

use super::*;

#[tokio::test]
async fn a_deploy_without_a_commit_builds_what_was_pushed_last() {
    let harness = Harness::new().await;
    harness.push("heads/main", COMMIT, Some("d1")).await;
    harness.push("heads/main", OTHER, None).await;
    let answer = harness.post("/projects/hello/deploy", json!({ "branch": "main" })).await;
    assert_eq!((answer.status, answer.json()["build"].as_i64()), (202, Some(3)), "{}", answer.text);
    assert_eq!(answer.json()["commit"], COMMIT, "an operator's own choice is not what was pushed");
    assert!(tokio::time::timeout(Duration::from_secs(1), harness.api.builder.rung()).await.is_ok());
    let build = harness.get("/builds/3").await.json();
    assert_eq!((&build["state"], &build["title"]), (&json!("queued"), &json!("About 0123456")));
    assert_eq!(build["environment"], "prod");
}

#[tokio::test]
async fn a_deploy_takes_a_commit_by_its_first_digits() {
    let harness = Harness::new().await;
    harness.push("heads/feature/x", COMMIT, Some("d1")).await;
    let deploy = async |branch: &str, commit: &str| {
        harness.post("/projects/hello/deploy", json!({ "branch": branch, "commit": commit })).await
    };
    assert_eq!(deploy("feature/x", "0123456").await.json()["commit"], COMMIT);
    assert_eq!(deploy("feature/x", OTHER).await.json()["commit"], OTHER);
    assert_eq!(deploy("feature/x", &OTHER[..9]).await.json()["commit"], OTHER);
    assert_eq!(deploy("feature/x", "aaaaaaa").await.status, 404);
    assert_eq!(deploy("feature/x", "012345").await.status, 400, "too short");
    assert_eq!(deploy("feature/x", "--upload-pack=x").await.status, 400);
    assert_eq!(deploy("new", "0123456").await.status, 404, "of another branch");
    assert_eq!(deploy("new", OTHER).await.json()["branch"], "new");
    assert_eq!(deploy("a..b", OTHER).await.status, 400);
    assert_eq!(deploy("pr-7", OTHER).await.status, 202);
    let branches = harness.api.store.known_branches(&"hello".parse().unwrap()).await.unwrap();
    assert!(branches.iter().any(|known| known.branch.as_str() == "pull/7"));
}

#[tokio::test]
async fn a_branch_that_shares_its_name_with_a_pull_request_must_be_told_apart() {
    let harness = Harness::new().await;
    harness.push("heads/pr-7", COMMIT, Some("d1")).await;
    harness.push("pull/7", OTHER, Some("d2")).await;
    let deploy = async |branch: &str| harness.post("/projects/hello/deploy", json!({ "branch": branch })).await;
    let answer = deploy("pr-7").await;
    assert_eq!(answer.status, 409);
    assert_eq!(answer.json()["hint"], "say `heads/pr-7` or `pull/7`");
    assert_eq!(deploy("heads/pr-7").await.json()["commit"], COMMIT);
    assert_eq!(deploy("pull/7").await.json()["commit"], OTHER);
}

#[tokio::test]
async fn a_deploy_of_what_is_not_there_says_what_is() {
    let harness = Harness::new().await;
    harness.push("heads/main", COMMIT, Some("d1")).await;
    let answer = harness.post("/projects/helo/deploy", json!({ "branch": "main" })).await;
    assert_eq!(answer.headers["content-type"], "application/problem+json");
    insta::assert_snapshot!(answer.text, @r#"{"type":"about:blank","title":"Not Found","status":404,"detail":"There is no project `helo`.","hint":"the projects are `hello`"}"#);
    let answer = harness.post("/projects/hello/deploy", json!({ "branch": "mian" })).await;
    insta::assert_snapshot!(answer.text, @r#"{"type":"about:blank","title":"Not Found","status":404,"detail":"There was no push to `mian` of `hello`.","hint":"push to it, or name the commit; there were pushes to `main`"}"#);
    harness.api.store.note_projects([&"gone".parse().unwrap()]).await.unwrap();
    let answer = harness.post("/projects/gone/deploy", json!({ "branch": "main" })).await;
    insta::assert_snapshot!(answer.text, @r#"{"type":"about:blank","title":"Conflict","status":409,"detail":"Project `gone` is no longer in the daemon's file.","hint":"add it there again, then `systemctl reload kennel`"}"#);
    let removal = crate::store::Removal {
        project: "hello".parse().unwrap(),
        branch: "heads/main".parse().unwrap(),
        reason: "branch deleted".to_owned(),
    };
    harness.api.store.accept_removal(None, &removal).await.unwrap();
    let answer = harness.post("/projects/hello/deploy", json!({ "branch": "main" })).await;
    assert_eq!(answer.status, 409, "{}", answer.text);
    let answer = harness.post("/projects/hello/deploy", json!({ "branch": "main", "commit": COMMIT })).await;
    assert_eq!(answer.status, 202, "{}", answer.text);
}

#[tokio::test]
async fn a_build_is_cancelled_once() {
    let harness = Harness::new().await;
    let queued = harness.push("heads/main", COMMIT, Some("d1")).await;
    let answer = harness.post(&format!("/builds/{queued}/cancel"), Value::Null).await;
    assert_eq!((answer.status, answer.json()), (202, json!({ "build": 1, "state": "cancelled" })));
    let answer = harness.post(&format!("/builds/{queued}/cancel"), Value::Null).await;
    insta::assert_snapshot!(answer.text, @r#"{"type":"about:blank","title":"Conflict","status":409,"detail":"Build 1 has ended already: it is `cancelled`."}"#);
    let answer = harness.post("/builds/99/cancel", Value::Null).await;
    insta::assert_snapshot!(answer.text, @r#"{"type":"about:blank","title":"Not Found","status":404,"detail":"There is no build 99.","hint":"`kennel builds` lists them"}"#);

    let running = harness.push("heads/main", OTHER, Some("d2")).await;
    let claimed = harness.claim().await;
    let answer = harness.post(&format!("/builds/{running}/cancel"), Value::Null).await;
    assert_eq!((answer.status, answer.json()), (202, json!({ "build": 2, "state": "building" })));
    assert!(tokio::time::timeout(Duration::from_secs(1), harness.api.builder.rung()).await.is_ok());
    let path = format!("/builds/{running}/cancel?wait=1");
    let (answer, ()) = tokio::join!(harness.post(&path, Value::Null), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let domain = "example.com".parse().unwrap();
        harness.api.store.finish_build(&claimed, &domain, &BuildOutcome::Cancelled).await.unwrap();
    });
    assert_eq!((answer.status, answer.json()), (202, json!({ "build": 2, "state": "cancelled" })));
}

#[tokio::test]
async fn builds_deployments_and_projects_are_shown() {
    let harness = Harness::new().await;
    harness.push("heads/main", COMMIT, Some("d1")).await;
    harness.finish(&harness.claim().await).await;
    harness.push("heads/main", OTHER, Some("d2")).await;
    let builds = harness.get("/builds?project=hello").await.json();
    assert_eq!(builds.as_array().unwrap().iter().map(|b| b["id"].as_i64().unwrap()).collect::<Vec<_>>(), [2, 1]);
    assert_eq!(harness.get("/builds?current=1").await.json().as_array().unwrap().len(), 1);
    assert_eq!(harness.get("/builds?limit=1").await.json().as_array().unwrap().len(), 1);
    let build = harness.get("/builds/1").await.json();
    assert_eq!(build["artifacts"][0]["state"], "built");
    assert_eq!(build["deployments"][0]["url"], "http://web-main.hello.example.com:8080");
    let deployment = harness.get("/deployments/1").await.json();
    assert_eq!((&deployment["state"], &deployment["events"]), (&json!("pending"), &json!([])));
    assert_eq!(harness.get("/deployments").await.json()[0]["service"], "web");
    let projects = harness.get("/projects").await.json();
    assert_eq!(projects, json!([{ "name": "hello", "configured": true, "targets": 1, "open_builds": 1 }]));
    for path in ["/builds?project=none", "/deployments?project=none", "/builds/9", "/deployments/9"] {
        assert_eq!(harness.get(path).await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn a_target_is_torn_down_by_one_of_its_deployments() {
    let harness = Harness::new().await;
    harness.push("heads/main", COMMIT, Some("d1")).await;
    harness.finish(&harness.claim().await).await;
    let answer = harness.post("/deployments/1/teardown", Value::Null).await;
    let told = json!({ "deployment": 1, "project": "hello", "branch": "main", "service": "web" });
    assert_eq!((answer.status, answer.json()), (202, told));
    assert!(tokio::time::timeout(Duration::from_secs(1), harness.api.deployer.rung()).await.is_ok());
    assert_eq!(harness.api.store.due_teardowns().await.unwrap().len(), 1);
    assert_eq!(harness.post("/deployments/2/teardown", Value::Null).await.status, 404);
    harness.api.store.skip_deployment(1.into(), "the same").await.unwrap();
    let ended = "/deployments/1/teardown";
    assert_eq!(harness.post(ended, Value::Null).await.status, 202, "its target has no other that could be meant");
    harness.push("heads/main", OTHER, Some("d2")).await;
    harness.finish(&harness.claim().await).await;
    assert_eq!(harness.post(ended, Value::Null).await.status, 409, "it does not speak for the newer one");
}
