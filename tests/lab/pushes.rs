//! A push becomes a live site, and the next push another version of it.

use std::time::Duration;

use http::Method;
use serde_json::Value;

use crate::harness::{App, Lab, LabConfig, ProjectSpec, Service, Style, api, delivery, machine, until};

/// One service and one site.
fn app(version: &str) -> App {
    App::api(version).site("web", &format!("<h1>{version}</h1>"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_push_as_forgejo_tells_of_it_becomes_a_live_service_and_site() {
    first_push(Style::Forgejo).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_push_as_gitea_tells_of_it_becomes_a_live_service_and_site() {
    first_push(Style::Gitea).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_push_as_github_tells_of_it_becomes_a_live_service_and_site() {
    first_push(Style::Github).await;
}

async fn first_push(style: Style) {
    let lab = Lab::start(LabConfig::of([ProjectSpec::new("hello").style(style)])).await;
    let nobody = lab.visit("api-main.hello.lab.test", "/").await.expect(404);
    assert!(nobody.header("content-type").starts_with("text/html"), "a page says that there is nothing");

    let live = lab.deploy("hello", "main", &app("one")).await;

    assert_eq!(live["api"].host, "api-main.hello.lab.test");
    assert_eq!(live["web"].host, "web-main.hello.lab.test");
    assert_eq!(lab.version(&live["api"].host).await, "one");
    let page = lab.visit(&live["web"].host, "/").await.expect(200);
    assert_eq!(page.text(), "<h1>one</h1>");
    assert!(page.header("content-type").starts_with("text/html"), "{:?}", page.headers);
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_push_replaces_the_first_and_nothing_of_it_stays() {
    let lab = Lab::hello().await;
    let old = lab.deploy("hello", "main", &app("one")).await;
    let old_pid = machine::main_pid(&old["api"].unit()).await;

    let new = lab.deploy("hello", "main", &app("two")).await;

    assert_eq!(lab.version(&new["api"].host).await, "two");
    assert_eq!(lab.visit(&new["web"].host, "/").await.expect(200).text(), "<h1>two</h1>");
    assert_ne!(new["api"].port, old["api"].port, "both ran at the same time");
    let retired = lab.becomes(old["api"].id, "retired").await;
    assert_eq!(retired.port, None);
    assert!(machine::processes().iter().all(|process| process.pid != old_pid), "the old version still runs");
    let units = machine::own_units().await;
    assert_eq!(units.into_iter().collect::<Vec<_>>(), [new["api"].unit()], "one unit is left");
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_branch_has_hosts_of_its_own_until_it_is_deleted() {
    let lab = Lab::hello().await;
    let main = lab.deploy_api("hello", "main", &App::api("main")).await;
    let topic = lab.deploy_api("hello", "Topic_1", &App::api("topic").site("web", "topic")).await;
    assert_eq!(topic.host, "api-topic-1.hello.lab.test");
    assert_eq!(lab.version(&main.host).await, "main");
    assert_eq!(lab.version(&topic.host).await, "topic");

    lab.delete_branch("hello", "Topic_1").await.expect(202);

    until("the branch is gone", Duration::from_secs(20), async || {
        let api = lab.visit(&topic.host, "/").await.status;
        let web = lab.visit("web-topic-1.hello.lab.test", "/").await.status;
        (api == 404 && web == 404).then_some(())
    })
    .await;
    lab.becomes(topic.id, "retired").await;
    assert_eq!(lab.version(&main.host).await, "main", "the other branch is not touched");
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_deleted_on_github_arrives_as_a_push_of_nothing() {
    let lab = Lab::start(LabConfig::of([ProjectSpec::new("hello").style(Style::Github)])).await;
    let topic = lab.deploy_api("hello", "topic", &App::api("one")).await;

    let payload = delivery::push_of_nothing("hello", "topic", &topic.commit);
    api::deliver(&lab.delivery("hello", "push", &payload)).await.expect(202);

    lab.becomes(topic.id, "retired").await;
    lab.visit(&topic.host, "/").await.expect(404);
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_default_branch_is_not_torn_down_by_the_forge() {
    let lab = Lab::hello().await;
    let live = lab.deploy_api("hello", "main", &App::api("one")).await;

    let answer = lab.delete_branch("hello", "main").await.expect(200);

    assert!(answer.text().contains("default branch"), "{}", answer.text());
    assert_eq!(lab.version(&live.host).await, "one");
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_rapid_pushes_build_the_first_and_the_last() {
    let lab = Lab::start(LabConfig::hello().builder("max_concurrent_builds = 1")).await;
    let gate = lab.gate();
    let version = |n: usize| App::default().with(Service::new("api", &n.to_string()).behind(&gate));
    let first = lab.push("hello", "main", &version(1)).await;
    gate.reached().await;

    let mut builds = vec![first.build];
    for n in 2..=20 {
        builds.push(lab.push("hello", "main", &version(n)).await.build);
    }
    gate.open().await;

    lab.ended_as(builds[0], "success").await;
    for build in &builds[1..19] {
        lab.ended_as(*build, "superseded").await;
    }
    lab.ended_as(builds[19], "success").await;
    let live = lab.live(builds[19], "api").await;
    assert_eq!(lab.version(&live.host).await, "20");
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redelivery_answers_with_the_build_it_made_and_makes_none() {
    let lab = Lab::hello().await;
    let commit = lab.repo("hello").commit("main", &App::api("one").files(), "One");
    let delivery = lab.push_delivery("hello", "main", &commit);
    let first: Value = api::deliver(&delivery).await.expect(202).json();
    let build = first["build"].as_i64().unwrap();

    let while_building: Value = api::deliver(&delivery).await.expect(200).json();
    lab.live(build, "api").await;
    let afterwards: Value = api::deliver(&delivery).await.expect(200).json();

    assert_eq!(while_building["build"], build);
    assert_eq!(afterwards["build"], build);
    assert_eq!(api::builds().await.len(), 1);
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forced_push_back_builds_the_old_commit_again() {
    let lab = Lab::hello().await;
    let one = lab.push("hello", "main", &App::api("one")).await;
    lab.live(one.build, "api").await;
    let two = lab.deploy_api("hello", "main", &App::api("two")).await;
    assert_eq!(lab.version(&two.host).await, "two");

    let back = lab.push_commit("hello", "main", &one.commit).await;

    assert_ne!(back.build, one.build);
    let live = lab.live(back.build, "api").await;
    assert_eq!(live.commit, one.commit);
    assert_eq!(api::build(back.build).await.artifact("api").state, "unchanged", "it was made before");
    assert_eq!(lab.version(&live.host).await, "one");
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_then_b_then_a_while_a_builds_ends_with_a() {
    let lab = Lab::start(LabConfig::hello().builder("max_concurrent_builds = 1")).await;
    let gate = lab.gate();
    let version = |name: &str| App::default().with(Service::new("api", name).behind(&gate));
    let a = lab.push("hello", "main", &version("a")).await;
    gate.reached().await;

    let b = lab.push("hello", "main", &version("b")).await;
    let again = lab.push_commit("hello", "main", &a.commit).await;
    gate.open().await;

    assert!(a.build < b.build && b.build < again.build, "each push has a build of its own");
    lab.ended_as(b.build, "superseded").await;
    lab.ended_as(again.build, "success").await;
    let last = lab.settled(again.build, "api").await;
    assert!(matches!(last.state.as_str(), "live" | "noop"), "{last:?}");
    assert_eq!(lab.version("api-main.hello.lab.test").await, "a");
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_changes_nothing_leaves_the_running_version_alone() {
    let lab = Lab::hello().await;
    let live = lab.deploy_api("hello", "main", &app("one")).await;
    let pid = machine::main_pid(&live.unit()).await;

    let pushed = lab.push("hello", "main", &app("one").file("README.md", "New words.")).await;

    let build = lab.ended_as(pushed.build, "success").await;
    assert_eq!(
        (build.artifact("api").state.as_str(), build.artifact("web").state.as_str()),
        ("unchanged", "unchanged")
    );
    assert_eq!(lab.settled(pushed.build, "api").await.state, "noop");
    assert_eq!(lab.settled(pushed.build, "web").await.state, "noop");
    assert_eq!(machine::main_pid(&live.unit()).await, pid);

    let other = App::default().with(Service::new("api", "one").env("GREETING", "hi")).site("web", "<h1>one</h1>");
    let pushed = lab.push("hello", "main", &other).await;
    let deployed = lab.live(pushed.build, "api").await;
    assert_eq!(api::build(pushed.build).await.artifact("api").state, "unchanged");
    let env: Value = lab.visit(&deployed.host, "/env").await.expect(200).json();
    assert_eq!(env["GREETING"], "hi", "a changed variable is deployed, though nothing was built");
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_a_branch_no_longer_names_goes_and_in_prod_it_stays() {
    let lab = Lab::hello().await;
    let both = || App::api("one").with(Service::new("jobs", "one"));
    for branch in ["topic", "main"] {
        let before = lab.deploy("hello", branch, &both()).await;
        lab.deploy("hello", branch, &App::api("two")).await;
        let jobs = &before["jobs"];
        if branch == "topic" {
            lab.becomes(jobs.id, "retired").await;
            lab.visit(&jobs.host, "/").await.expect(404);
        } else {
            until("the service is flagged", Duration::from_secs(5), async || {
                api::deployment(jobs.id).await.unnamed.then_some(())
            })
            .await;
            assert_eq!(lab.version(&jobs.host).await, "one");
            api::ask(Method::POST, &format!("/deployments/{}/teardown", jobs.id)).await.expect(202);
            lab.becomes(jobs.id, "retired").await;
            lab.visit(&jobs.host, "/").await.expect(404);
        }
    }
    lab.finish().await;
}
