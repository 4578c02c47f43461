//! Rows against machine, at start.

use std::sync::Arc;

use kennel::deployer::{Interrupt, Interruption};
use kennel::host::fake::Op;
use kennel::host::{Machine as _, SiteLink};
use kennel::model::{DeploymentId, DeploymentState, Step};
use tokio::sync::Notify;

use crate::harness::{Harness, Script, commit};

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_does_not_restart_services() {
    let mut harness = Harness::start().await;
    harness.deploy("main", &commit('a'), Script::api("1")).await;
    let starts = harness.machine.calls(Op::StartUnit);
    harness.crash();
    harness.boot(Interrupt::never()).await;
    assert_eq!(harness.get("api-main.shop.example.com", "/").await.0, 200);
    assert_eq!(harness.machine.calls(Op::StartUnit), starts);
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_reboot_took_is_made_again() {
    let mut harness = Harness::start().await;
    harness.deploy("main", &commit('a'), Script::api("1")).await;
    harness.crash();
    harness.machine.reboot().await;
    harness.boot(Interrupt::never()).await;
    harness.until("up again", async |harness| harness.get("api-main.shop.example.com", "/").await.0 == 200).await;
    harness.finish().await;
}

/// What was in `/run` goes when the machine is switched off, wherever a deployment stands.
#[tokio::test(flavor = "multi_thread")]
async fn switched_off_after_any_step_the_new_version_goes_live_all_the_same() {
    for &step in Step::ALL {
        let met = Arc::new(Notify::new());
        let interrupt = Interrupt::by({
            let met = met.clone();
            move |deployment, at| {
                if deployment.id == DeploymentId(1) && at == step && deployment.ending.is_none() {
                    met.notify_one();
                    return Interruption::Crash;
                }
                Interruption::None
            }
        });
        // Steps of an old version's end are met when a first one is replaced.
        if matches!(step, Step::Drain | Step::Stop | Step::Release) {
            continue;
        }
        let mut harness = Harness::start_with(interrupt).await;
        harness.script(&commit('a'), Script::api("1"));
        harness.push("main", &commit('a')).await;
        met.notified().await;
        harness.crash();
        harness.machine.reboot().await;
        harness.boot(Interrupt::never()).await;
        harness.until_quiet().await;
        assert_eq!(harness.deployment_states().await, [DeploymentState::Live], "{step}");
        harness.until("up", async |harness| harness.get("api-main.shop.example.com", "/").await.0 == 200).await;
        harness.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn links_and_roots_that_are_gone_are_made_again() {
    let mut harness = Harness::start().await;
    harness.make_site("1", "page");
    harness.deploy("main", &commit('a'), Script::site("1")).await;
    let left = harness.machine.snapshot();
    let (project, slug, site) = left.site_links.keys().next().expect("it has a link").clone();
    let (build, name) = left.gc_roots.keys().next().expect("it has a root").clone();
    harness.crash();
    harness.machine.remove_site_link(&SiteLink { project, slug, site }).await.unwrap();
    harness.machine.remove_gc_root(build, &name).await.unwrap();
    harness.boot(Interrupt::never()).await;
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_that_leaves_the_file_serves_on_unless_it_is_to_be_pruned() {
    let mut harness = Harness::start().await;
    harness.deploy("main", &commit('a'), Script::api("1")).await;
    harness.forget_project("").await;
    assert_eq!(harness.get("api-main.shop.example.com", "/").await.0, 200);
    assert_eq!(harness.push("main", &commit('b')).await.0, 404, "it takes no webhooks");
    assert!(!harness.store().list_projects().await.unwrap()[0].configured);
    harness.forget_project("prune_projects = true\n").await;
    harness.until("gone", async |harness| harness.get("api-main.shop.example.com", "/").await.0 == 404).await;
    harness.finish().await;
}
