//! From a queued build to recorded artifacts.

use kennel::host::fake::{Gate, Op};
use kennel::model::{ArtifactState as A, BuildState as B, DeploymentState as S};

use crate::harness::{Harness, Script, commit};

#[tokio::test(flavor = "multi_thread")]
async fn one_failing_service_does_not_hold_back_the_other() {
    let mut harness = Harness::start().await;
    let mut script = Script::named(&["api", "worker"], "1");
    script.outputs.remove("worker");
    harness.deploy("main", &commit('a'), script).await;
    assert_eq!(harness.build_states().await, [B::Failed]);
    assert_eq!(harness.deployment_states().await, [S::Live]);
    let reason = harness.builds().await[0].reason.clone().unwrap();
    assert_eq!(reason, "worker: the builder failed");
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_equal_store_path_is_unchanged_and_its_deployment_a_noop() {
    let mut harness = Harness::start().await;
    harness.deploy("main", &commit('a'), Script::api("1")).await;
    harness.deploy("main", &commit('b'), Script::api("1")).await;
    let newest = harness.builds().await[0].id;
    assert_eq!(harness.store().list_artifacts(newest).await.unwrap()[0].state, A::Unchanged);
    assert_eq!(harness.deployment_states().await, [S::Live, S::Noop]);

    let changed = Script { manifest: "[services.api]\nenv = { A = \"b\" }\n".to_owned(), ..Script::api("1") };
    harness.deploy("main", &commit('c'), changed).await;
    assert_eq!(harness.deployment_states().await, [S::Retired, S::Noop, S::Live], "its variables differ");
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_build_ends_and_leaves_nothing() {
    let mut harness = Harness::start().await;
    let gate = Gate::new();
    harness.script(&commit('a'), Script { gate: Some(gate.clone()), ..Script::api("1") });
    harness.script(&commit('b'), Script::api("2"));
    harness.push("main", &commit('a')).await;
    gate.reached().await;
    harness.push("main", &commit('b')).await;
    let [queued, running] = &harness.builds().await[..] else { panic!("not two builds") };
    for build in [queued.id, running.id] {
        let (status, answer) = harness.post(&format!("/builds/{build}/cancel"), &[], "".into()).await;
        assert_eq!(status, 202, "{answer}");
    }
    harness.until_quiet().await;
    assert_eq!(harness.build_states().await, [B::Cancelled, B::Cancelled]);
    assert!(harness.deployments().await.is_empty());
    assert_eq!(harness.post(&format!("/builds/{}/cancel", running.id), &[], "".into()).await.0, 409);
    assert_eq!(harness.post("/builds/999/cancel", &[], "".into()).await.0, 404);
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_runs_on_through_a_restart_is_taken_over() {
    let mut harness = Harness::start().await;
    let gate = Gate::new();
    harness.script(&commit('a'), Script { gate: Some(gate.clone()), ..Script::api("1") });
    harness.push("main", &commit('a')).await;
    gate.reached().await;
    harness.crash();
    harness.boot(kennel::deployer::Interrupt::never()).await;
    gate.open();
    harness.until_quiet().await;
    assert_eq!(harness.build_states().await, [B::Success]);
    assert_eq!(harness.machine.calls(Op::StartBuild), 2, "one fetch and one build, once each");
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unit_that_ends_before_its_work_begins_is_started_again() {
    let mut harness = Harness::start().await;
    harness.deploy("main", &commit('a'), Script { stillborn: 3, ..Script::api("1") }).await;
    assert_eq!(harness.build_states().await, [B::Success]);
    let first = harness.machine.calls(Op::StartBuild);
    assert_eq!(first, 2 + 3, "a fetch, a build, and each that never began once more");

    harness.deploy("main", &commit('b'), Script { stillborn: 100, ..Script::api("2") }).await;
    assert_eq!(harness.build_states().await, [B::Success, B::Failed]);
    let reason = harness.builds().await[0].reason.clone().unwrap();
    assert_eq!(reason, "the fetch ended without a result");
    assert_eq!(harness.machine.calls(Op::StartBuild) - first, 2 + 3, "the fetch is given up");
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_kennel_toml_fails_the_build_with_key_and_line() {
    let mut harness = Harness::start().await;
    let script = Script { manifest: "[services.api]\nhelth_check = \"/\"\n".to_owned(), ..Script::default() };
    harness.deploy("main", &commit('a'), script).await;
    let reason = harness.builds().await[0].reason.clone().unwrap();
    assert!(reason.contains("line 2") && reason.contains("helth_check"), "{reason}");
    harness.finish().await;
}
