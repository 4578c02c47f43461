//! What an operator does at the machine: looks, reads logs, deploys, cancels, tears down.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{App, Lab, Service, api, machine, split, until};

/// Runs `kennel`, which must succeed; gives what it printed as data.
async fn kennel(arguments: &[&str]) -> String {
    machine::ok("kennel", arguments).await
}

async fn kennel_json(arguments: &[&str]) -> Value {
    let said = kennel(&[arguments, &["--json"]].concat()).await;
    serde_json::from_str(&said).unwrap_or_else(|err| panic!("`kennel {arguments:?} --json`: {err}\n{said}"))
}

/// Runs `kennel`, which must fail; gives its exit code and what it said.
async fn kennel_fails(arguments: &[&str]) -> (i32, String) {
    let output = machine::run("kennel", arguments).await;
    assert!(!output.status.success(), "`kennel {arguments:?}` succeeded: {}", machine::text(&output.stdout));
    (output.status.code().unwrap_or_default(), machine::text(&output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn status_builds_and_logs_tell_what_happened() {
    let lab = Lab::hello().await;
    let said = "echo 'counting dogs: 3'";
    let app = App::default().with(Service::new("api", "one").builds_by(said)).site("web", "page");
    let live = lab.deploy("hello", "main", &app).await;
    let bad = Service::new("api", "two").mode("exit");
    let pushed = lab.push("hello", "main", &App::default().with(bad).site("web", "page")).await;
    lab.settled(pushed.build, "api").await;

    let status = kennel(&["status"]).await;
    for word in
        ["hello", "main", "api", "web", "live", "failed", "api-main.hello.lab.test", "the table `dogs` is missing"]
    {
        assert!(status.contains(word), "`{word}` is not in the status:\n{status}");
    }
    let builds = kennel(&["builds"]).await;
    assert!(builds.contains("success") && builds.contains(&pushed.commit[..7]), "{builds}");
    let log = kennel(&["logs", "--build", &live["api"].build.to_string(), "api"]).await;
    assert!(log.contains("counting dogs: 3"), "{log}");
    let journal = kennel(&["logs", "hello/main/api"]).await;
    assert!(journal.contains("this is version one"), "{journal}");

    assert!(kennel_json(&["builds"]).await.to_string().contains(&pushed.commit));
    assert!(kennel_json(&["status"]).await.to_string().contains("api-main.hello.lab.test"));
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_followed_while_the_build_runs() {
    let lab = Lab::hello().await;
    let gate = lab.gate();
    let app = App::default().with(Service::new("api", "one").behind(&gate).builds_by("echo behind the gate"));
    let pushed = lab.push("hello", "main", &app).await;
    gate.reached().await;
    let id = pushed.build.to_string();

    let follow = async { kennel(&["logs", "--build", &id, "api", "-f"]).await };
    let open = async {
        until("the log has begun", Duration::from_secs(5), async || {
            let begun = api::ask(http::Method::GET, &format!("/builds/{id}/logs/api")).await;
            (begun.status == 200 && !begun.body.is_empty()).then_some(())
        })
        .await;
        gate.open().await;
    };
    let (followed, ()) = tokio::join!(follow, open);

    assert!(followed.contains("behind the gate") && followed.contains("Built in"), "{followed}");
    lab.live(pushed.build, "api").await;
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_goes_back_to_an_older_commit() {
    let lab = Lab::hello().await;
    let one = lab.deploy_api("hello", "main", &App::api("one")).await;
    let two = lab.deploy_api("hello", "main", &App::api("two")).await;

    let said = kennel(&["deploy", "hello", "main", &one.commit[..10], "--follow"]).await;
    assert_eq!(lab.version(&two.host).await, "one", "`--follow` returns once it is live: {said}");

    let again = api::post("/projects/hello/deploy", &json!({"branch": "main", "commit": two.commit})).await;
    let build = again.expect(202).json::<Value>()["build"].as_i64().unwrap();
    lab.live(build, "api").await;
    assert_eq!(lab.version(&two.host).await, "two");
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_and_teardown_do_what_they_say_and_fail_when_they_cannot() {
    let lab = Lab::hello().await;
    let live = lab.deploy_api("hello", "main", &App::api("one")).await;
    let gate = lab.gate();
    let pushed = lab.push("hello", "topic", &App::default().with(Service::new("api", "two").behind(&gate))).await;
    gate.reached().await;

    kennel(&["cancel", &pushed.build.to_string()]).await;
    lab.ended_as(pushed.build, "cancelled").await;
    let (code, said) = kennel_fails(&["cancel", &pushed.build.to_string()]).await;
    assert!(code == 1 && said.contains("cancelled"), "{code}: {said}");
    assert_eq!(kennel_fails(&["cancel", "4711"]).await.0, 66);
    assert_eq!(kennel_fails(&["cancel", "dog"]).await.0, 64);
    assert_eq!(kennel_fails(&["dance"]).await.0, 64);

    kennel(&["teardown", &live.id.to_string()]).await;
    lab.becomes(live.id, "retired").await;
    lab.visit(&live.host, "/").await.expect(404);
    let (code, said) = kennel_fails(&["teardown", &live.id.to_string()]).await;
    assert!(code == 1 && !said.is_empty(), "{code}: {said}");
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_not_there_is_told_as_such() {
    let lab = Lab::hello().await;
    machine::ok("systemctl", &["stop", "kennel.service"]).await;
    // With these, whoever asks starts it.
    split::stop_sockets().await;
    let (code, said) = kennel_fails(&["status"]).await;
    assert!(code == 69 && said.contains("/run/kennel/kennel.sock"), "{code}: {said}");
    machine::ok("systemctl", &["start", "kennel.service"]).await;
    kennel(&["status"]).await;
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn projects_are_reloaded_without_a_restart() {
    let lab = Lab::hello().await;
    let live = lab.deploy_api("hello", "main", &App::api("one")).await;
    let pid = machine::main_pid("kennel.service").await;
    let path = "/etc/kennel/config.toml";
    let text = std::fs::read_to_string(path).unwrap();

    std::fs::write(path, text.replace("[projects.hello]", "[projects.other]")).unwrap();
    machine::ok("systemctl", &["reload", "kennel.service"]).await;
    let commit = lab.repo("hello").commit("main", &App::api("two").files(), "Two");
    let delivery = lab.push_delivery("hello", "main", &commit);
    api::deliver(&delivery).await.expect(404);
    assert_eq!(lab.version(&live.host).await, "one", "what runs goes on");
    let projects: Value = api::get("/projects").await;
    let hello = projects.as_array().unwrap().iter().find(|project| project["name"] == "hello").unwrap();
    assert_eq!(hello["configured"], false, "it is shown as no longer configured");

    std::fs::write(path, "base_domain = 7").unwrap();
    machine::ok("systemctl", &["reload", "kennel.service"]).await;
    let said = machine::ok("journalctl", &["--unit=kennel.service", "--lines=5", "--output=cat"]).await;
    assert!(said.contains("Kept the old configuration"), "{said}");
    api::deliver(&delivery).await.expect(404);
    std::fs::write(path, text).unwrap();
    machine::ok("systemctl", &["reload", "kennel.service"]).await;
    api::deliver(&delivery).await.expect(202);
    until("the new version is live", Duration::from_secs(20), async || {
        (lab.version(&live.host).await == "two").then_some(())
    })
    .await;
    assert_eq!(machine::main_pid("kennel.service").await, pid);
    lab.finish().await;
}
