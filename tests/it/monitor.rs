//! Live services that stop answering, and answer again.

use crate::harness::{Harness, Script, commit};

const HOST: &str = "api-main.shop.example.com";

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_keeps_failing_gets_no_visitors_until_it_answers() {
    let mut harness = Harness::monitored().await;
    harness.deploy("main", &commit('a'), Script::api("1")).await;
    let live = harness.deployments().await.remove(0);
    let unit = live.journal_tag.unit(live.id);
    let unhealthy = async |harness: &Harness| harness.deployments().await[0].unhealthy.clone();

    harness.machine.answer_with(&unit, 500);
    assert_eq!(harness.get(HOST, "/").await.0, 500, "one failure sends nobody away");
    harness.until("no visitors", async |harness| harness.get(HOST, "/").await.0 == 503).await;
    let (_, page) = harness.get(HOST, "/").await;
    assert!(page.contains("not healthy"), "{page}");
    assert_eq!(unhealthy(&harness).await.as_deref(), Some("`GET /health` answered 500"));

    harness.restart().await;
    assert_eq!(harness.get(HOST, "/").await.0, 503, "a restart does not forget it");
    harness.machine.answer_with(&unit, 200);
    harness.until("visitors again", async |harness| harness.get(HOST, "/").await.0 == 200).await;
    assert_eq!(unhealthy(&harness).await, None);
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_version_of_an_unhealthy_service_gets_its_visitors() {
    let mut harness = Harness::monitored().await;
    harness.deploy("main", &commit('a'), Script::api("1")).await;
    let live = harness.deployments().await.remove(0);
    harness.machine.answer_with(&live.journal_tag.unit(live.id), 500);
    harness.until("no visitors", async |harness| harness.get(HOST, "/").await.0 == 503).await;
    harness.deploy("main", &commit('b'), Script::api("2")).await;
    assert_eq!(harness.get(HOST, "/").await.0, 200);
    harness.finish().await;
}
