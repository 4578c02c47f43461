//! Rows against machine, at start.

use kennel::deployer::Interrupt;
use kennel::host::Machine as _;
use kennel::host::fake::Op;

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
    let live = harness.deployments().await.remove(0);
    harness.crash();
    let unit = live.journal_tag.unit(live.id);
    harness.machine.stop_unit(&unit).await.unwrap();
    harness.machine.remove_unit(&unit).await.unwrap();
    harness.boot(Interrupt::never()).await;
    harness.until("up again", async |harness| harness.get("api-main.shop.example.com", "/").await.0 == 200).await;
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
