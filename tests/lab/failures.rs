//! A version that is no good never takes traffic; the old one keeps serving, and the operator is told why.

use std::time::Duration;

use crate::harness::{App, Build, Deployment, Lab, LabConfig, Service, api, machine, until};

/// What `kennel status` tells an operator.
async fn status() -> String {
    machine::ok("kennel", &["status"]).await
}

/// Deploys a good version, then one that must fail; gives why it did.
async fn deploy_a_bad_one(bad: Service) -> (Lab, Deployment) {
    let lab = Lab::hello().await;
    let good = lab.deploy_api("hello", "main", &App::api("good")).await;
    let good_pid = machine::main_pid(&good.unit()).await;

    let pushed = lab.push("hello", "main", &App::default().with(bad)).await;
    lab.ended_as(pushed.build, "success").await;
    let failed = lab.settled(pushed.build, "api").await;

    assert_eq!(failed.state, "failed");
    assert_eq!(failed.port, None);
    assert_eq!(lab.version(&good.host).await, "good");
    assert_eq!(machine::main_pid(&good.unit()).await, good_pid);
    let units = machine::own_units().await;
    assert_eq!(units.into_iter().collect::<Vec<_>>(), [good.unit()], "nothing of the failed version is left");
    (lab, failed)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_is_never_healthy_leaves_the_old_one_serving() {
    let sick = Service::new("api", "bad").mode("sick");
    let (lab, failed) = deploy_a_bad_one(sick.settings(&["health_check_timeout_secs = 2"])).await;
    let reason = failed.reason();
    assert!(reason.contains("503") && reason.contains("/health"), "{reason}");
    assert!(reason.contains("this is version bad"), "it holds what the service wrote last: {reason}");
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_exits_at_once_fails_at_once_with_its_last_words() {
    let (lab, failed) = deploy_a_bad_one(Service::new("api", "bad").mode("exit")).await;
    let reason = failed.reason();
    assert!(reason.contains("status 3"), "{reason}");
    assert!(reason.contains("the table `dogs` is missing"), "{reason}");
    let detail = api::deployment(failed.id).await;
    let waited: i64 = detail.events.iter().map(|event| event.duration_ms).sum();
    assert!(waited < 5_000, "an exit is not waited for until the health check's time is up: {:?}", detail.events);

    let status = status().await;
    assert!(status.contains("failed") && status.contains("the table `dogs` is missing"), "{status}");
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_never_listens_fails_when_its_time_is_up() {
    let mute = Service::new("api", "bad").mode("mute");
    let (lab, failed) = deploy_a_bad_one(mute.settings(&["health_check_timeout_secs = 2"])).await;
    let reason = failed.reason();
    assert!(reason.contains("within 2 s") && reason.contains("refused"), "{reason}");
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_listens_on_another_port_fails() {
    let lost = Service::new("api", "bad").mode("elsewhere:17999");
    let (lab, failed) = deploy_a_bad_one(lost.settings(&["health_check_timeout_secs = 2"])).await;
    assert!(failed.reason().contains("on port 18"), "it names the port that was asked: {}", failed.reason());
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_version_that_fails_leaves_nothing_behind() {
    let lab = Lab::hello().await;
    let pushed = lab.push("hello", "topic", &App::default().with(Service::new("api", "bad").mode("exit"))).await;
    let failed = lab.settled(pushed.build, "api").await;
    assert_eq!(failed.state, "failed");
    lab.visit(&failed.host, "/").await.expect(404);
    assert!(machine::own_units().await.is_empty());
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_push_after_a_failed_version_repairs_it() {
    let (lab, failed) = deploy_a_bad_one(Service::new("api", "bad").mode("exit")).await;
    let good = lab.deploy_api("hello", "main", &App::api("better")).await;
    assert_eq!(lab.version(&failed.host).await, "better");
    assert_eq!(good.host, failed.host);
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_services_the_one_that_builds_is_deployed() {
    let lab = Lab::hello().await;
    let both = App::api("one").with(Service::new("jobs", "one"));
    let before = lab.deploy("hello", "main", &both).await;

    let script = "echo compiling jobs; echo 'jobs.c:3: no such dog' >&2; exit 3";
    let half = App::api("two").with(Service::new("jobs", "two").builds_by(script));
    let pushed = lab.push("hello", "main", &half).await;

    let build = lab.ended_as(pushed.build, "failed").await;
    let api = lab.live(pushed.build, "api").await;
    assert_eq!(lab.version(&api.host).await, "two");
    assert_eq!(lab.version(&before["jobs"].host).await, "one", "the old version of what failed goes on");
    assert_eq!(build.artifact("api").state, "built");
    let jobs = build.artifact("jobs");
    assert_eq!((jobs.state.as_str(), jobs.store_path.as_deref()), ("failed", None));
    assert!(jobs.reason.as_deref().unwrap_or_default().contains("no such dog"), "{:?}", jobs.reason);
    let log = api::log(pushed.build, "jobs").await;
    assert!(log.contains("compiling jobs") && log.contains("jobs.c:3: no such dog"), "{log}");
    lab.finish().await;
}

/// Pushes what cannot be built; gives the failed build.
async fn build_a_bad_one(lab: &Lab, app: &App) -> Build {
    let pushed = lab.push("hello", "main", app).await;
    let build = lab.ended_as(pushed.build, "failed").await;
    assert!(build.deployments.is_empty(), "{:?}", build.deployments);
    until("its work directory is removed", Duration::from_secs(2), async || {
        machine::names(std::path::Path::new("/var/lib/kennel/work")).is_empty().then_some(())
    })
    .await;
    build
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flake_without_the_output_is_a_failed_build_that_names_it() {
    let lab = Lab::hello().await;
    let build = build_a_bad_one(&lab, &App::api("one").file("kennel.toml", "[services.cat]\n")).await;
    let reason = build.artifact("cat").reason.clone().unwrap();
    let output = format!("packages.{}.cat", crate::harness::app::system());
    assert!(reason.contains(&output), "{reason}");
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_program_is_a_failed_build_that_names_it() {
    let lab = Lab::hello().await;
    let manifest = "[services.dog]\nflake_output = \"api\"\n";
    let build = build_a_bad_one(&lab, &App::api("one").file("kennel.toml", manifest)).await;
    let reason = build.artifact("dog").reason.clone().unwrap();
    assert!(reason.contains("bin/dog") && reason.contains("`api`"), "what it has is told, too: {reason}");
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_time_limit_ends_a_build() {
    let lab = Lab::start(LabConfig::hello().builder("timeout = \"3s\"")).await;
    let slow = Service::new("api", "one").builds_by("echo going to sleep; while :; do read -rt 60 <> <(:) || :; done");
    let build = build_a_bad_one(&lab, &App::default().with(slow)).await;
    let reason = build.artifact("api").reason.clone().unwrap();
    assert!(reason.contains("time limit") || reason.contains("timed out"), "{reason}");
    until("no builder is left", Duration::from_secs(2), async || machine::nix_builders().is_empty().then_some(()))
        .await;
    assert!(api::log(build.id, "api").await.contains("going to sleep"));
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_time_limit_ends_an_evaluation() {
    let lab = Lab::start(LabConfig::hello().builder("timeout = \"3s\"")).await;
    let system = crate::harness::app::system();
    let flake = format!("{{ outputs = _: let f = n: f (n + 1) + 1; in {{ packages.{system}.api = f 0; }}; }}");
    let endless = format!(
        "{{ outputs = _: let fib = n: if n < 2 then n else fib (n - 1) + fib (n - 2); in \
         {{ packages.{system}.api = builtins.seq (fib 91) null; }}; }}"
    );
    for flake in [flake, endless] {
        let build = build_a_bad_one(&lab, &App::api("one").file("flake.nix", flake)).await;
        assert!(build.artifact("api").reason.is_some());
    }
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_crashes_later_is_started_again() {
    let lab = Lab::hello().await;
    let live = lab.deploy_api("hello", "main", &App::api("one")).await;
    let pid = machine::main_pid(&live.unit()).await;
    lab.visit(&live.host, "/crash").await.expect(502);
    until("it is back", Duration::from_secs(10), async || {
        (lab.visit(&live.host, "/").await.status == 200).then_some(())
    })
    .await;
    assert_ne!(machine::main_pid(&live.unit()).await, pid);
    assert_eq!(api::deployment(live.id).await.state, "live");
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_service_that_turns_sick_gets_no_visitors_until_it_is_well() {
    let lab = Lab::start(LabConfig::hello().router("monitor_interval = \"1s\"")).await;
    let well = lab.service_gate("well");
    std::fs::write(&well, "").unwrap();
    let service = Service::new("api", "one").mode(&format!("gated:{}", well.display()));
    let live = lab.deploy_api("hello", "main", &App::default().with(service)).await;
    let is = async |status: u16| {
        until("visitors get another answer", Duration::from_secs(20), async || {
            (lab.visit(&live.host, "/").await.status == status).then_some(())
        })
        .await;
    };

    std::fs::remove_file(&well).unwrap();
    is(503).await;
    let page = lab.visit(&live.host, "/").await;
    assert_eq!(page.header("retry-after"), "30");
    assert!(page.text().contains("not healthy"), "{}", page.text());
    let status = machine::ok("kennel", &["status"]).await;
    let reason = "hello/main/api gets no visitors until it is healthy again: `GET /health` answered 503";
    assert!(status.contains("live (unhealthy)") && status.contains(reason), "{status}");
    std::fs::write(&well, "").unwrap();
    is(200).await;
    assert!(!machine::ok("kennel", &["status"]).await.contains("unhealthy"));
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_the_forge_does_not_have_is_a_failed_build() {
    let lab = Lab::hello().await;
    let commit = lab.repo("hello").commit("main", &App::api("one").files(), "One");
    lab.repo("hello").push("main", &commit);
    let unknown = "0123456789".repeat(4);
    let payload = crate::harness::delivery::push("hello", "main", Some(&commit), &unknown);
    let answer = api::deliver(&lab.delivery("hello", "push", &payload)).await.expect(202);
    let build = answer.json::<serde_json::Value>()["build"].as_i64().unwrap();

    let build = lab.ended_as(build, "failed").await;

    assert!(build.reason.as_deref().unwrap_or_default().contains(&unknown), "{:?}", build.reason);
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_waits_for_a_daemon_of_nix_that_is_being_restarted() {
    let lab = Lab::hello().await;
    machine::ok("systemctl", &["stop", "nix-daemon.socket", "nix-daemon.service"]).await;
    let pushed = lab.push("hello", "main", &App::api("one")).await;
    until("the build waits", Duration::from_secs(20), async || {
        let log = api::ask(http::Method::GET, &format!("/builds/{}/logs/api", pushed.build)).await;
        log.text().contains("Nix's daemon is away: trying again in 1 s").then_some(())
    })
    .await;
    machine::ok("systemctl", &["start", "nix-daemon.socket"]).await;
    let live = lab.settled(pushed.build, "api").await;
    assert_eq!(live.state, "live", "{:?}", live.reason);
    lab.finish().await;
}
