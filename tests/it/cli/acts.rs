//! Commands that change something: `cancel`, `teardown`, `gc`, `deploy`.

use tokio::io::Lines;
use tokio::process::ChildStderr;

use super::*;

#[tokio::test]
async fn a_build_is_cancelled_and_a_target_torn_down() {
    let fixture = Fixture::busy().await;
    insta::assert_snapshot!(fixture.kennel(&["cancel", "4"]).await.all(), @r#"
    Build 4 is cancelled.
    --- exit 0
    "#);
    insta::assert_snapshot!(fixture.kennel(&["teardown", "1"]).await.all(), @r#"
    hello/main/api is being torn down.
    --- stderr
    `kennel status hello` shows when it is gone.
    --- exit 0
    "#);
    assert_eq!(fixture.store.due_teardowns().await.unwrap().len(), 1);
}

#[tokio::test]
async fn gc_shows_what_is_kept_and_why_and_frees_the_rest() {
    let fixture = Fixture::busy().await;
    let path = |n: u32, name: &str| format!("/nix/store/{n:032}-{name}").parse().unwrap();
    fixture.machine.put(&path(9, "glibc"), 31_000_000, &[]);
    for (n, name) in [(1, "api"), (1, "web"), (2, "api"), (2, "web")] {
        fixture.machine.put(&path(n, name), u64::from(n) * 1_000, &[path(9, "glibc")]);
    }
    insta::assert_snapshot!(fixture.kennel(&["gc", "--plan"]).await.all(), @r#"
    BUILD  PROJECT  BRANCH  SERVICE  REASON  COSTS  PATH
        1  hello    main    api      live     1 kB  /nix/store/00000000000000000000000000000001-api
        1  hello    main    web      live     1 kB  /nix/store/00000000000000000000000000000001-web
    31 MB more are shared by two or more of them.
    `kennel gc` frees 4 kB in 2 paths.
    --- exit 0
    "#);
    insta::assert_snapshot!(fixture.kennel(&["gc"]).await.all(), @r#"
    Freed 4 kB in 2 paths.
    --- exit 0
    "#);
    insta::assert_snapshot!(fixture.kennel(&["gc"]).await.all(), @r#"
    There was nothing to free.
    --- exit 0
    "#);
    let plan: serde_json::Value = serde_json::from_str(&fixture.kennel(&["gc", "--plan", "--json"]).await.out).unwrap();
    assert_eq!(plan["kept"][0]["reason"], "live");
    fixture.machine.fault(kennel::host::fake::Op::FreeGarbage, 1, kennel::host::fake::Fault::Fail);
    assert_eq!(fixture.kennel(&["gc"]).await.code, 1, "an exit code tells the truth");
}

#[tokio::test]
async fn cancel_returns_when_the_build_has_stopped() {
    let fixture = Fixture::new().await;
    fixture.push("heads/main", FIRST, "Say hello").await;
    let build = fixture.claim().await;
    let (ran, ()) = tokio::join!(fixture.kennel(&["cancel", "1"]), async {
        until("the build is to stop", async || fixture.store.builds_to_cancel().await.unwrap().pop()).await;
        fixture.store.finish_build(&build, &"localhost".parse().unwrap(), &BuildOutcome::Cancelled).await.unwrap();
    });
    insta::assert_snapshot!(ran.all(), @r#"
    Build 1 is cancelled.
    --- exit 0
    "#);
}

#[tokio::test]
async fn a_followed_deploy_shows_the_logs_and_ends_when_everything_is_live() {
    let fixture = Fixture::new().await;
    let mut child = fixture.command(&["deploy", "hello", "main", FIRST, "--follow"]).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut talk = BufReader::new(child.stderr.take().unwrap()).lines();
    let follow = async {
        assert_eq!(out.next_line().await.unwrap().unwrap(), "Build 1 of hello/main at 0123456 is queued.");
        let build = fixture.wait_and_claim().await;
        fixture.write_log(build.id, "fetch", "fetched\n");
        assert_eq!(out.next_line().await.unwrap().unwrap(), "fetch | fetched");
        fixture.write_log(build.id, "api", "compiling\n");
        assert_eq!(out.next_line().await.unwrap().unwrap(), "api   | compiling");
        fixture.finish(&build, &[("api", Ok(()))]).await;
        until_line(&mut talk, "Build 1 succeeded.").await;
        until_line(&mut talk, "hello/main/api waits for its turn.").await;
        fixture.go_live(1).await;
        let live = "hello/main/api is live at http://api-main.hello.localhost:8080";
        assert_eq!(out.next_line().await.unwrap().unwrap(), live);
        assert_eq!(out.next_line().await.unwrap(), None);
        assert!(child.wait().await.unwrap().success());
    };
    tokio::time::timeout(PATIENCE, follow).await.expect("it shows what happens, and ends");
}

async fn until_line(lines: &mut Lines<BufReader<ChildStderr>>, wanted: &str) {
    let mut before = Vec::new();
    while let Some(line) = lines.next_line().await.unwrap() {
        if line == wanted {
            return;
        }
        before.push(line);
    }
    panic!("`{wanted}` was not said, but {before:?}");
}

#[tokio::test]
async fn a_followed_deploy_that_does_not_go_live_exits_with_1() {
    let fixture = Fixture::new().await;
    let work = async {
        let build = fixture.wait_and_claim().await;
        fixture.finish(&build, &[("api", Ok(())), ("web", Err("it does not evaluate"))]).await;
        fixture.fail(1, "never healthy: GET /health answered 500").await;
    };
    let (ran, ()) = tokio::join!(fixture.kennel(&["deploy", "hello", "main", FIRST, "-f"]), work);
    assert_eq!(ran.code, 1);
    for part in ["web: it does not evaluate", "hello/main/api: failed", "    never healthy: GET /health answered 500"] {
        assert!(ran.talk.contains(part), "{part}: {}", ran.talk);
    }
    let ran = fixture.kennel(&["deploy", "hello", "main"]).await;
    insta::assert_snapshot!(ran.all(), @r#"
    Build 2 of hello/main at 0123456 is queued.
    --- stderr
    `kennel logs --build 2 -f` follows it, `kennel status hello` shows what runs.
    --- exit 0
    "#);
}
