//! kennel may be killed at any instant: started again, it converges, and services never notice.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::harness::{App, Lab, LabConfig, Service, api, machine, split, until};

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_one_build_runs_and_one_is_queued_it_finishes_both() {
    let lab = Lab::start(LabConfig::hello().builder("max_concurrent_builds = 1")).await;
    let gate = lab.gate();
    let running = lab.push("hello", "main", &App::default().with(Service::new("api", "one").behind(&gate))).await;
    gate.reached().await;
    let queued = lab.push("hello", "topic", &App::api("two")).await;
    let unit = format!("kennel-build-{}.service", running.build);
    let pid = machine::main_pid(&unit).await;

    lab.kill9().await;

    assert_eq!(machine::main_pid(&unit).await, pid, "the build went on");
    assert_eq!(api::build(running.build).await.state, "building");
    assert_eq!(api::build(queued.build).await.state, "queued");
    gate.open().await;
    let one = lab.live(running.build, "api").await;
    let two = lab.live(queued.build, "api").await;
    assert_eq!(lab.version(&one.host).await, "one");
    assert_eq!(lab.version(&two.host).await, "two");
    let built = lab.ended_as(running.build, "success").await;
    assert!(built.nix_ms.is_some(), "what the worker measured is not lost: {built:?}");
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_ended_while_kennel_was_dead_is_taken_as_it_is() {
    let lab = Lab::hello().await;
    let gate = lab.gate();
    let pushed = lab.push("hello", "main", &App::default().with(Service::new("api", "one").behind(&gate))).await;
    gate.reached().await;
    let unit = format!("kennel-build-{}.service", pushed.build);

    machine::ok("systemctl", &["kill", "--signal=KILL", "kennel.service"]).await;
    machine::ok("systemctl", &["stop", "kennel.service"]).await;
    gate.open().await;
    until("the build's unit ends", Duration::from_secs(20), async || {
        (machine::property(&unit, "ActiveState").await == "inactive").then_some(())
    })
    .await;
    machine::ok("systemctl", &["start", "kennel.service"]).await;

    let live = lab.live(pushed.build, "api").await;
    assert_eq!(lab.version(&live.host).await, "one");
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_whose_unit_died_with_kennel_is_queued_again() {
    let lab = Lab::hello().await;
    let gate = lab.gate();
    let pushed = lab.push("hello", "main", &App::default().with(Service::new("api", "one").behind(&gate))).await;
    gate.reached().await;
    let unit = format!("kennel-build-{}.service", pushed.build);

    let pid = machine::main_pid(&unit).await.to_string();

    machine::ok("systemctl", &["kill", "--signal=KILL", "kennel.service", &unit]).await;

    until("a new build unit runs", Duration::from_secs(30), async || {
        let now = machine::property(&unit, "MainPID").await;
        (now != "0" && now != pid).then_some(())
    })
    .await;
    gate.reached().await;
    gate.open().await;
    lab.live(pushed.build, "api").await;
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_it_waits_for_health_it_goes_on_waiting_for_the_same_process() {
    let lab = Lab::hello().await;
    let old = lab.deploy_api("hello", "main", &App::api("one")).await;
    let old_pid = machine::main_pid(&old.unit()).await;
    let opened = lab.service_gate("healthy");
    let mode = format!("gated:{}", opened.display());
    let pushed = lab.push("hello", "main", &App::default().with(Service::new("api", "two").mode(&mode))).await;
    let waiting = until("the new version is being asked for its health", Duration::from_secs(20), async || {
        let deployments = api::build(pushed.build).await.deployments;
        deployments.into_iter().find(|deployment| deployment.step.as_deref() == Some("await_healthy"))
    })
    .await;
    let new_pid = machine::main_pid(&waiting.unit()).await;

    lab.kill9().await;

    assert_eq!(lab.version(&old.host).await, "one", "the route was there before kennel listened");
    assert_eq!(machine::main_pid(&old.unit()).await, old_pid);
    fs::write(opened, "").unwrap();
    let live = lab.live(pushed.build, "api").await;
    assert_eq!(live.id, waiting.id);
    assert_eq!(machine::main_pid(&live.unit()).await, new_pid, "it was not started twice");
    assert_eq!(lab.version(&live.host).await, "two");
    lab.becomes(old.id, "retired").await;
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_an_old_version_drains_it_ends_the_drain() {
    let lab = Lab::hello().await;
    let app = |version: &str| App::default().with(Service::new("api", version).settings(&["drain_secs = 4"]));
    let old = lab.deploy_api("hello", "main", &app("one")).await;
    let socket = lab.web_socket(&old.host).await;
    let new = lab.deploy_api("hello", "main", &app("two")).await;
    let new_pid = machine::main_pid(&new.unit()).await;
    assert_eq!(api::deployment(old.id).await.state, "draining");

    lab.kill9().await;
    drop(socket);

    assert_eq!(lab.version(&new.host).await, "two");
    lab.becomes(old.id, "retired").await;
    assert_eq!(machine::main_pid(&new.unit()).await, new_pid);
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bus_that_restarts_fails_neither_a_build_nor_a_deployment() {
    let lab = Lab::hello().await;
    let gate = lab.gate();
    let opened = lab.service_gate("healthy");
    let mode = format!("gated:{}", opened.display());
    let app = App::default().with(Service::new("api", "one").mode(&mode).behind(&gate));
    let pid = machine::main_pid("kennel.service").await;
    let pushed = lab.push("hello", "main", &app).await;
    gate.reached().await;
    machine::ok("systemctl", &["restart", "dbus.service"]).await;
    gate.open().await;
    lab.ended_as(pushed.build, "success").await;
    until("the version is being asked for its health", Duration::from_secs(20), async || {
        let deployments = api::build(pushed.build).await.deployments;
        deployments.into_iter().find(|deployment| deployment.step.as_deref() == Some("await_healthy"))
    })
    .await;
    machine::ok("systemctl", &["kill", "--signal=KILL", "dbus.service"]).await;
    fs::write(opened, "").unwrap();

    let live = lab.live(pushed.build, "api").await;
    assert_eq!(lab.version(&live.host).await, "one");
    assert_eq!(machine::main_pid("kennel.service").await, pid, "kennel itself went on");
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_leaves_every_service_running() {
    let lab = Lab::hello().await;
    let live = lab.deploy("hello", "main", &App::api("one").site("web", "page")).await;
    let pid = machine::main_pid(&live["api"].unit()).await;

    lab.restart().await;
    assert_eq!(lab.version(&live["api"].host).await, "one");
    assert_eq!(lab.visit(&live["web"].host, "/").await.expect(200).text(), "page");
    lab.kill9().await;
    assert_eq!(lab.version(&live["api"].host).await, "one");

    assert_eq!(machine::main_pid(&live["api"].unit()).await, pid);
    let now = api::deployment(live["api"].id).await;
    assert_eq!((now.state.as_str(), now.port), ("live", live["api"].port));
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn units_and_environment_files_that_a_reboot_took_are_made_again() {
    let lab = Lab::hello().await;
    let app = App::default().with(Service::new("api", "one").env("WORD", "kept"));
    let live = lab.deploy_api("hello", "main", &app.clone().with(Service::new("jobs", "one"))).await;
    lab.post_data(&live.host, "written before").await;
    machine::ok("systemctl", &["stop", "kennel.service"]).await;
    let units = machine::own_units().await;
    assert_eq!(units.len(), 2, "{units:?}");
    for unit in &units {
        machine::ok("systemctl", &["stop", unit]).await;
        fs::remove_file(Path::new("/run/systemd/system").join(unit)).unwrap();
    }
    machine::ok("systemctl", &["daemon-reload"]).await;
    split::stop_sockets().await;
    fs::remove_dir_all("/run/kennel").unwrap();

    machine::ok("systemctl", &["start", "kennel.service"]).await;

    until("the service is back", Duration::from_secs(15), async || {
        (lab.visit(&live.host, "/").await.status == 200).then_some(())
    })
    .await;
    let env: serde_json::Value = lab.visit(&live.host, "/env").await.expect(200).json();
    assert_eq!(env["WORD"], "kept");
    assert_eq!(lab.visit(&live.host, "/data").await.expect(200).json::<String>(), "written before");
    assert_eq!(machine::own_units().await, units);
    assert_eq!(api::deployment(live.id).await.state, "live");
    lab.finish().await;
}

/// Killed again and again while it works, at moments that differ from round to round.
#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_instant_of_a_push_it_converges() {
    let lab = Lab::hello().await;
    let mut last = lab.deploy_api("hello", "main", &App::api("0")).await;
    for round in 1..=6 {
        let pushed = lab.push("hello", "main", &App::api(&round.to_string())).await;
        // Not a wait for something: the instants are what is tried.
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_millis(170 * round)).await;
            lab.kill9().await;
        }
        let live = lab.live(pushed.build, "api").await;
        assert_eq!(lab.version(&live.host).await, round.to_string());
        lab.becomes(last.id, "retired").await;
        last = live;
    }
    lab.finish().await;
}
