//! From a pending deployment to one that serves, or to nothing.

use std::time::Duration;

use kennel::host::fake::Behaviour;
use kennel::model::{DeploymentState as S, Step};
use rstest::rstest;

use crate::harness::{Harness, Script, commit, store_path};

#[rstest]
#[case::exits(Behaviour::ExitsAtOnce(3), "exited before it was healthy")]
#[case::cannot_start(Behaviour::CannotStart, "start")]
#[case::answers_503(Behaviour::Answers(503), "503")]
#[case::never_listens(Behaviour::NeverListens, "not healthy within 1 s")]
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_health_check_leaves_the_old_version_serving(#[case] behaviour: Behaviour, #[case] why: &str) {
    let mut harness = Harness::start().await;
    let script = |version: &str| Script {
        manifest: "[services.api]\nhealth_check_timeout_secs = 1\n".to_owned(),
        ..Script::api(version)
    };
    harness.deploy("main", &commit('a'), script("1")).await;
    harness.machine.set_behaviour(&store_path("api", "2"), behaviour);
    harness.deploy("main", &commit('b'), script("2")).await;
    assert_eq!(harness.deployment_states().await, [S::Live, S::Failed]);
    let reason = harness.deployments().await[0].reason.clone().unwrap();
    assert!(reason.contains(why), "{reason}");
    let (status, body) = harness.get("api-main.shop.example.com", "/").await;
    assert!(status == 200 && body.contains(store_path("api", "1").as_str()), "{body}");
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_neighbour_on_the_port_gets_no_traffic() {
    let mut harness = Harness::start().await;
    let script = |version: &str| Script {
        manifest: "[services.api]\nhealth_check_timeout_secs = 5\n".to_owned(),
        ..Script::api(version)
    };
    harness.machine.set_behaviour(&store_path("api", "1"), Behaviour::Slow(Duration::from_secs(2)));
    harness.script(&commit('a'), script("1"));
    harness.push("main", &commit('a')).await;
    harness
        .until("waiting for health", async |harness| {
            // Before that step, the port would be passed over for another.
            harness.deployments().await.first().is_some_and(|one| one.step == Some(Step::AwaitHealthy))
        })
        .await;
    let port = harness.deployments().await[0].port.unwrap();
    harness.machine.squat(port, Some(12345));
    harness.until_quiet().await;
    assert_eq!(harness.deployment_states().await, [S::Failed]);
    let reason = harness.deployments().await[0].reason.clone().unwrap();
    assert!(reason.contains("another user (uid 12345)"), "{reason}");
    harness.machine.squat(port, None);
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_is_served_from_its_store_path_and_its_link_follows() {
    let mut harness = Harness::start().await;
    for (commit, version) in [(commit('a'), "1"), (commit('b'), "2")] {
        harness.make_site(version, &format!("version {version}"));
        harness.deploy("main", &commit, Script::site(version)).await;
        let (status, body) = harness.get("web-main.shop.example.com", "/").await;
        assert_eq!((status, body), (200, format!("version {version}")));
        let links: Vec<_> = harness.machine.snapshot().site_links.into_values().collect();
        assert_eq!(links, [store_path("web", version)]);
    }
    assert_eq!(harness.deployment_states().await, [S::Retired, S::Live]);
    harness.delete("main").await;
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn branches_that_look_alike_never_meet() {
    let mut harness = Harness::start().await;
    harness.deploy("feature/x", &commit('a'), Script::api("1")).await;
    harness.deploy("feature-x", &commit('b'), Script::api("2")).await;
    harness.deploy(&"long/".repeat(24)[..119], &commit('c'), Script::api("3")).await;
    let hosts: Vec<String> = harness.deployments().await.iter().map(|one| one.host.to_string()).collect();
    for (host, version) in hosts.iter().zip(["3", "2", "1"]) {
        let (_, body) = harness.get(host, "/").await;
        assert!(body.contains(store_path("api", version).as_str()), "{host}: {body}");
    }
    harness.delete("feature/x").await;
    harness.until_quiet().await;
    assert_eq!(harness.get(&hosts[2], "/").await.0, 404);
    assert_eq!(harness.get(&hosts[1], "/").await.0, 200);
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_is_no_longer_named_goes_but_not_in_prod() {
    let mut harness = Harness::start().await;
    for branch in ["main", "dev"] {
        harness.deploy(branch, &commit('a'), Script::named(&["api", "worker"], "1")).await;
        harness.deploy(branch, &commit('b'), Script::api("2")).await;
    }
    assert_eq!(harness.get("worker-main.shop.example.com", "/").await.0, 200);
    assert_eq!(harness.get("worker-dev.shop.example.com", "/").await.0, 404);
    let flagged: Vec<String> =
        harness.deployments().await.iter().filter(|one| one.unnamed).map(|one| one.host.to_string()).collect();
    assert!(flagged.contains(&"worker-main.shop.example.com".to_owned()), "{flagged:?}");
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_custom_domain_belongs_to_whom_claimed_it_first() {
    let mut harness = Harness::start().await;
    let claiming = |names: &[&str], version: &str| {
        let mut script = Script::named(names, version);
        script.manifest =
            names.iter().map(|name| format!("[services.{name}]\ncustom_domain = \"www.example.org\"\n")).collect();
        script
    };
    harness.deploy("main", &commit('a'), claiming(&["api"], "1")).await;
    assert_eq!(harness.get("www.example.org", "/").await.0, 200);
    // `api` gives its domain up with its next version, which fails to build: until then it is taken.
    let mut second = Script::named(&["worker"], "2");
    second.manifest = "[services.api]\n[services.worker]\ncustom_domain = \"www.example.org\"\n".to_owned();
    harness.deploy("main", &commit('b'), second).await;
    let newest = harness.deployments().await;
    let worker = newest.iter().find(|one| one.service.as_str() == "worker").unwrap();
    assert_eq!(worker.state, S::Failed);
    assert!(worker.reason.as_ref().unwrap().contains("another target has it"), "{:?}", worker.reason);
    let (_, body) = harness.get("www.example.org", "/").await;
    assert!(body.contains(store_path("api", "1").as_str()), "{body}");
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_pushed_again_while_it_is_torn_down_comes_back() {
    let mut harness = Harness::start().await;
    harness.deploy("dev", &commit('a'), Script::api("1")).await;
    harness.script(&commit('b'), Script::api("2"));
    harness.delete("dev").await;
    harness.push("dev", &commit('b')).await;
    harness.until_quiet().await;
    let (_, body) = harness.get("api-dev.shop.example.com", "/").await;
    assert!(body.contains(store_path("api", "2").as_str()), "{body}");
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_down_target_leaves_nothing() {
    let mut harness = Harness::start().await;
    harness.deploy("main", &commit('a'), Script::api("1")).await;
    let live = harness.deployments().await[0].id;
    assert_eq!(harness.post(&format!("/deployments/{live}/teardown"), &[], "".into()).await.0, 202);
    harness.until_quiet().await;
    assert_eq!(harness.get("api-main.shop.example.com", "/").await.0, 404);
    harness
        .until("all given back", async |harness| {
            let left = harness.machine.snapshot();
            left.units.is_empty() && left.gc_roots.is_empty() && left.data_dirs.is_empty() && left.env_files.is_empty()
        })
        .await;
    assert_eq!(harness.post(&format!("/deployments/{live}/teardown"), &[], "".into()).await.0, 409);
    harness.finish().await;
}
