//! Cancelling ends a build, with everything Nix runs for it.

use std::time::{Duration, Instant};

use http::Method;

use crate::harness::{App, Lab, LabConfig, Service, api, machine, until};

/// How soon nothing of a cancelled build may run any more.
const CANCEL_MAX: Duration = Duration::from_secs(2);

/// What runs for builds: Nix's builders, and whatever the build user has.
async fn at_work() -> Vec<machine::Process> {
    let build_user = machine::uid_of("kennel-build").await;
    let mut processes = machine::nix_builders();
    processes.extend(machine::processes_of(|uid| uid == build_user));
    processes
}

/// Cancels as an operator does, and measures how long anything of the build still runs.
async fn cancel_and_measure(build: i64) -> Duration {
    let begun = Instant::now();
    let url = format!("http://127.0.0.1:3000/builds/{build}/cancel");
    machine::ok("curl", &["--silent", "--show-error", "--fail", "-X", "POST", &url]).await;
    until("nothing of the build runs any more", CANCEL_MAX, async || at_work().await.is_empty().then_some(())).await;
    begun.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queued_build_that_is_cancelled_never_starts() {
    let lab = Lab::start(LabConfig::hello().builder("max_concurrent_builds = 1")).await;
    let gate = lab.gate();
    let first = lab.push("hello", "main", &App::default().with(Service::new("api", "one").behind(&gate))).await;
    gate.reached().await;
    let queued = lab.push("hello", "topic", &App::api("two")).await;

    api::ask(Method::POST, &format!("/builds/{}/cancel", queued.build)).await.expect(202);
    let cancelled = lab.ended_as(queued.build, "cancelled").await;
    gate.open().await;

    assert_eq!(cancelled.started_at, None);
    lab.live(first.build, "api").await;
    assert_eq!(api::build(queued.build).await.state, "cancelled");
    lab.visit("api-topic.hello.lab.test", "/").await.expect(404);
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_build_that_is_cancelled_leaves_no_builder_after_two_seconds() {
    let lab = Lab::hello().await;
    let gate = lab.gate();
    let slow = App::default().with(Service::new("api", "one").behind(&gate));
    let slow = slow.with(Service::new("busy", "one").builds_by("trap '' TERM; while :; do :; done"));
    let pushed = lab.push("hello", "main", &slow).await;
    gate.reached().await;
    until("both builders run", Duration::from_secs(10), async || (machine::nix_builders().len() >= 2).then_some(()))
        .await;

    let took = cancel_and_measure(pushed.build).await;

    println!("a build of two services was gone {} ms after it was cancelled", took.as_millis());
    lab.ended_as(pushed.build, "cancelled").await;
    assert_eq!(api::build(pushed.build).await.deployments.len(), 0);
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evaluation_without_end_is_cancelled_too() {
    let lab = Lab::hello().await;
    let system = crate::harness::app::system();
    let flake = format!(
        "{{ outputs = {{ self }}: let fib = n: if n < 2 then n else fib (n - 1) + fib (n - 2); in \
         {{ packages.{system}.api = builtins.seq (fib 90) null; }}; }}"
    );
    let pushed = lab.push("hello", "main", &App::api("one").file("flake.nix", flake)).await;
    until("Nix evaluates", Duration::from_secs(20), async || {
        let build_user = machine::uid_of("kennel-build").await;
        let nix = |process: &machine::Process| process.command.contains("nix") && process.command.contains("build");
        machine::processes_of(|uid| uid == build_user)
            .iter()
            .any(|process| nix(process) && !process.command.contains("build-worker"))
            .then_some(())
    })
    .await;

    let took = cancel_and_measure(pushed.build).await;

    println!("an evaluation was gone {} ms after it was cancelled", took.as_millis());
    lab.ended_as(pushed.build, "cancelled").await;
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_what_is_not_there_or_has_ended_is_refused() {
    let lab = Lab::hello().await;
    let live = lab.deploy_api("hello", "main", &App::api("one")).await;

    api::ask(Method::POST, "/builds/4711/cancel").await.expect(404);
    let answer = api::ask(Method::POST, &format!("/builds/{}/cancel", live.build)).await.expect(409);

    assert!(answer.text().contains("success"), "{}", answer.text());
    assert_eq!(lab.version(&live.host).await, "one");
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_push_builds_after_a_cancel() {
    let lab = Lab::start(LabConfig::hello().builder("max_concurrent_builds = 1")).await;
    let gate = lab.gate();
    let pushed = lab.push("hello", "main", &App::default().with(Service::new("api", "one").behind(&gate))).await;
    gate.reached().await;
    api::ask(Method::POST, &format!("/builds/{}/cancel", pushed.build)).await.expect(202);
    // The same commit: what was cancelled does not count as being built.
    let again = lab.push_commit("hello", "main", &pushed.commit).await;
    assert_ne!(again.build, pushed.build);

    lab.ended_as(pushed.build, "cancelled").await;
    gate.reached().await;
    gate.open().await;

    lab.live(again.build, "api").await;
    lab.finish().await;
}
