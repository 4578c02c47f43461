//! Pull requests are previews, from when they are opened until they are closed.

use serde_json::Value;

use crate::harness::{App, Lab, LabConfig, ProjectSpec, Service, Style, api, delivery};

/// A commit that is on no branch, as a pull request's head often is for kennel.
fn head(lab: &Lab, app: &App) -> String {
    lab.repo("hello").commit("main", &app.files(), "Improve things")
}

async fn build_of(answer: crate::harness::http::Answer) -> i64 {
    answer.expect(202).json::<Value>()["build"].as_i64().expect("a build was queued")
}

async fn lifecycle(style: Style, synchronize: &str) {
    let lab = Lab::start(LabConfig::of([ProjectSpec::new("hello").style(style)])).await;
    let opened = build_of(lab.pull("hello", "opened", 7, &head(&lab, &App::api("one"))).await).await;
    let first = lab.live(opened, "api").await;
    assert_eq!(first.host, "api-pr-7.hello.lab.test");
    assert_eq!(first.branch, "pr-7");
    assert_eq!(lab.version(&first.host).await, "one");
    let env: Value = lab.visit(&first.host, "/env").await.expect(200).json();
    assert_eq!(env["KENNEL_ENVIRONMENT"], "preview");

    let changed = build_of(lab.pull("hello", synchronize, 7, &head(&lab, &App::api("two"))).await).await;
    let second = lab.live(changed, "api").await;
    assert_eq!(lab.version(&second.host).await, "two");
    lab.becomes(first.id, "retired").await;

    lab.pull("hello", "closed", 7, &second.commit).await.expect(202);
    lab.becomes(second.id, "retired").await;
    lab.visit(&second.host, "/").await.expect(404);

    let reopened = build_of(lab.pull("hello", "reopened", 7, &second.commit).await).await;
    let third = lab.live(reopened, "api").await;
    assert_eq!((third.host.as_str(), lab.version(&third.host).await.as_str()), (second.host.as_str(), "two"));
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_request_on_forgejo_is_a_preview_until_it_is_closed() {
    lifecycle(Style::Forgejo, "synchronized").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_request_on_github_is_a_preview_until_it_is_closed() {
    lifecycle(Style::Github, "synchronize").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_request_closed_while_it_builds_leaves_nothing() {
    let lab = Lab::hello().await;
    let gate = lab.gate();
    let app = App::default().with(Service::new("api", "one").behind(&gate));
    let commit = head(&lab, &app);
    let build = build_of(lab.pull("hello", "opened", 7, &commit).await).await;
    gate.reached().await;

    lab.pull("hello", "closed", 7, &commit).await.expect(202);

    lab.ended_as(build, "cancelled").await;
    assert!(api::deployments().await.is_empty());
    lab.visit("api-pr-7.hello.lab.test", "/").await.expect(404);
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_deleted_while_its_second_version_builds_leaves_nothing() {
    let lab = Lab::hello().await;
    let first = lab.deploy_api("hello", "topic", &App::api("one")).await;
    let gate = lab.gate();
    let pushed = lab.push("hello", "topic", &App::default().with(Service::new("api", "two").behind(&gate))).await;
    gate.reached().await;

    lab.delete_branch("hello", "topic").await.expect(202);

    lab.ended_as(pushed.build, "cancelled").await;
    lab.becomes(first.id, "retired").await;
    lab.visit(&first.host, "/").await.expect(404);
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_deleted_while_its_version_waits_for_health_leaves_nothing() {
    let lab = Lab::hello().await;
    let opened = lab.service_gate("never");
    let slow = Service::new("api", "one").mode(&format!("gated:{}", opened.display()));
    let pushed = lab.push("hello", "topic", &App::default().with(slow)).await;
    let waiting = crate::harness::until("it is asked for its health", crate::harness::DEPLOY_MAX, async || {
        let deployments = api::build(pushed.build).await.deployments;
        deployments.into_iter().find(|deployment| deployment.step.as_deref() == Some("await_healthy"))
    })
    .await;

    lab.delete_branch("hello", "topic").await.expect(202);

    let ended = lab.settled(pushed.build, "api").await;
    assert_eq!(ended.id, waiting.id);
    assert!(matches!(ended.state.as_str(), "retired" | "cancelled"), "{ended:?}");
    lab.visit(&ended.host, "/").await.expect(404);
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_request_from_a_fork_does_not_build() {
    let lab = Lab::hello().await;
    let commit = head(&lab, &App::api("evil"));
    lab.repo("hello").pull_request(9, &commit);
    for action in ["opened", "synchronized", "reopened"] {
        let payload = delivery::pull_request("hello", action, 9, &commit, true);
        let answer = api::deliver(&lab.delivery("hello", "pull_request", &payload)).await.expect(200);
        assert!(answer.text().contains("fork"), "{}", answer.text());
    }
    // The fork is gone before its pull request is looked at.
    let mut payload = delivery::pull_request("hello", "opened", 9, &commit, true);
    payload["pull_request"]["head"]["repo"] = Value::Null;
    api::deliver(&lab.delivery("hello", "pull_request", &payload)).await.expect(200);

    assert!(api::builds().await.is_empty());
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_request_from_a_fork_builds_where_the_operator_allows_it() {
    let lab = Lab::start(LabConfig::of([ProjectSpec::new("hello").line("forks = \"allow\"")])).await;
    let commit = head(&lab, &App::api("kind"));
    lab.repo("hello").pull_request(9, &commit);
    let payload = delivery::pull_request("hello", "opened", 9, &commit, true);
    let build = build_of(api::deliver(&lab.delivery("hello", "pull_request", &payload)).await).await;
    let live = lab.live(build, "api").await;
    assert_eq!(lab.version(&live.host).await, "kind");
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_branches_an_operator_listed_deploy() {
    let spec = ProjectSpec::new("hello").line("branches = [\"main\", \"release/*\"]").line("pull_requests = false");
    let lab = Lab::start(LabConfig::of([spec])).await;
    lab.deploy_api("hello", "release/1", &App::api("one")).await;

    let commit = head(&lab, &App::api("two"));
    let topic = api::deliver(&lab.push_delivery("hello", "topic", &commit)).await.expect(200);
    let pull = lab.pull("hello", "opened", 3, &commit).await.expect(200);

    assert!(topic.text().contains("topic"), "{}", topic.text());
    assert!(!pull.text().is_empty());
    assert_eq!(api::builds().await.len(), 1);
    lab.finish().await;
}
