//! What goes by itself: builds wait for disk, what nobody uses expires, what is over is forgotten.
//!
//! Nothing here waits for days: the upkeep is told what time it is.

use std::time::Duration;

use kennel::deployer::Interrupt;
use kennel::host::Machine as _;
use kennel::model::{BuildState as B, DeploymentState as D, RootReason};

use crate::harness::{Harness, Script, commit};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const TOPIC: &str = "api-topic.shop.example.com";

impl Harness {
    /// Has the daemon do what it does every 10 minutes, as if so much time had passed.
    pub(crate) async fn upkeep_after(&self, time: Duration) {
        self.upkeep_at(jiff::Timestamp::now() + jiff::SignedDuration::try_from(time).unwrap()).await;
    }

    /// The same, as of a time.
    pub(crate) async fn upkeep_at(&self, now: jiff::Timestamp) {
        let before = self.recorded_deliveries().await;
        self.daemon().upkeep(now).await.unwrap();
        let after = self.recorded_deliveries().await;
        // What was there until now was not lost: it is forgotten, as it should be.
        self.expect_no_more(&before - &after);
    }
}

async fn status(harness: &Harness, host: &str) -> u16 {
    harness.get(host, "/").await.0
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_waits_for_room_on_disk_says_so_and_goes_on_by_itself() {
    let mut harness = Harness::start().await;
    harness.configure("[builder]\nmin_free = \"2GB\"", "").await;
    harness.script(&commit('a'), Script::api("1"));
    harness.machine.leave_free(1_999_999_999);
    let (status, answer) = harness.push("main", &commit('a')).await;
    assert_eq!(status, 202, "a push is taken all the same");
    let waiting = harness.api("/builds").await;
    assert_eq!(waiting[0]["state"], "queued");
    let reason = "it waits for room on disk: 1.9 GB is free at /nix/store, and `min_free` is 2 GB";
    assert_eq!(waiting[0]["reason"], reason);
    assert_eq!(harness.api(&format!("/builds/{}", answer["build"])).await["reason"], reason);

    harness.machine.leave_free(2_000_000_000);
    harness.until_quiet().await;
    assert_eq!(harness.build_states().await, [B::Success]);
    assert_eq!(harness.api("/builds").await[0]["reason"], serde_json::Value::Null);
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_has_begun_goes_on_when_room_runs_out() {
    let mut harness = Harness::start().await;
    let gate = kennel::host::fake::Gate::new();
    harness.script(&commit('a'), Script { gate: Some(gate.clone()), ..Script::api("1") });
    harness.push("main", &commit('a')).await;
    gate.reached().await;
    harness.machine.leave_free(0);
    gate.open();
    harness.until_quiet().await;
    assert_eq!(harness.build_states().await, [B::Success]);
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_asks_for_is_torn_down_and_comes_back_with_a_push() {
    let mut harness = Harness::start().await;
    harness.deploy("main", &commit('a'), Script::api("1")).await;
    harness.deploy("staging", &commit('a'), Script::api("1")).await;
    harness.deploy("topic", &commit('a'), Script::api("1")).await;

    harness.upkeep_after(7 * DAY - HOUR).await;
    harness.until_quiet().await;
    assert_eq!(status(&harness, TOPIC).await, 200);

    harness.upkeep_after(8 * DAY).await;
    harness.until_quiet().await;
    assert_eq!(status(&harness, TOPIC).await, 404);
    assert_eq!(status(&harness, "api-main.shop.example.com").await, 200, "prod stays");
    assert_eq!(status(&harness, "api-staging.shop.example.com").await, 200, "staging stays");
    let shown = harness.api("/deployments").await;
    let expired = shown.as_array().unwrap().iter().find(|row| row["branch"] == "topic").expect("it is shown");
    assert_eq!(
        (&expired["state"], &expired["reason"]),
        (&"retired".into(), &"no request and no push for 7 days".into())
    );
    assert!(expired["expired_at"].is_i64(), "{expired}");

    harness.deploy("topic", &commit('b'), Script::api("2")).await;
    assert_eq!(status(&harness, TOPIC).await, 200);
    let shown = harness.api("/deployments").await;
    let rows: Vec<_> = shown.as_array().unwrap().iter().filter(|row| row["branch"] == "topic").collect();
    assert_eq!(rows.len(), 1, "{rows:?}");
    assert_eq!((&rows[0]["state"], &rows[0]["expired_at"]), (&"live".into(), &serde_json::Value::Null));
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_keeps_a_target_also_over_a_restart_of_kennel() {
    let mut harness = Harness::start().await;
    harness.deploy("topic", &commit('a'), Script::named(&["api", "jobs"], "1")).await;
    let uses = async |harness: &Harness| {
        let mut uses = harness.store().last_uses().await.unwrap();
        uses.sort_by_key(|last| last.at);
        uses
    };
    let [asked, other] = &uses(&harness).await[..] else { panic!("two services were deployed") };
    harness.until("a later moment", async |_| jiff::Timestamp::now().as_millisecond() > other.at).await;
    let host = |name: &kennel::model::ServiceName| format!("{name}-topic.shop.example.com");
    assert_eq!(status(&harness, &host(&asked.name)).await, 200);
    harness.restart().await;
    let after = uses(&harness).await;
    assert_eq!((&after[0].name, &after[1].name), (&other.name, &asked.name), "a request counts for its target alone");

    let now = jiff::Timestamp::from_millisecond(other.at).unwrap() + jiff::SignedDuration::try_from(7 * DAY).unwrap();
    harness.upkeep_at(now).await;
    harness.until_quiet().await;
    assert_eq!(status(&harness, &host(&asked.name)).await, 200);
    assert_eq!(status(&harness, &host(&other.name)).await, 404);
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_being_built_or_is_inside_keeps_a_target() {
    let mut harness = Harness::start().await;
    harness.deploy("topic", &commit('a'), Script::api("1")).await;
    let gate = kennel::host::fake::Gate::new();
    harness.script(&commit('b'), Script { gate: Some(gate.clone()), ..Script::api("2") });
    harness.push("topic", &commit('b')).await;
    gate.reached().await;
    harness.upkeep_after(8 * DAY).await;
    assert_eq!(status(&harness, TOPIC).await, 200);
    gate.open();
    harness.until_quiet().await;
    assert_eq!(harness.deployment_states().await, [D::Retired, D::Live]);
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_says_for_itself_when_its_branches_expire() {
    let mut harness = Harness::start().await;
    harness.configure("[upkeep]\nexpire_after = \"1h\"", "expire_after = \"never\"").await;
    harness.deploy("topic", &commit('a'), Script::api("1")).await;
    harness.upkeep_after(400 * DAY).await;
    harness.until_quiet().await;
    assert_eq!(status(&harness, TOPIC).await, 200);
    harness.configure("[upkeep]\nexpire_after = \"1h\"", "").await;
    harness.upkeep_after(2 * HOUR).await;
    harness.until_quiet().await;
    assert_eq!(status(&harness, TOPIC).await, 404);
    let reason = harness.deployments().await[0].reason.clone().unwrap();
    assert_eq!(reason, "no request and no push for 1 hour");
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_over_is_forgotten_and_what_is_in_use_is_not() {
    let mut harness = Harness::start().await;
    for version in "12345678".chars() {
        harness.deploy("main", &commit(version), Script::api(&version.to_string())).await;
    }
    // A version that never went live, and a branch that came and went.
    harness.deploy("main", &commit('9'), Script { outputs: [].into(), ..Script::api("9") }).await;
    harness.deploy("topic", &commit('a'), Script::api("a")).await;
    harness.delete("topic").await;
    harness.until_quiet().await;
    assert_eq!(harness.builds().await.len(), 10);

    harness.upkeep_after(29 * DAY).await;
    assert_eq!(harness.builds().await.len(), 10, "not before its time");
    assert_eq!(harness.machine.snapshot().log_dirs.len(), 10);

    harness.upkeep_after(31 * DAY).await;
    let left: Vec<_> = harness.builds().await.iter().map(|build| build.id.0).collect();
    assert_eq!(left, [9, 8, 7, 6, 5, 4], "the newest, the live one, and those it can go back to");
    assert_eq!(harness.deployments().await.len(), 5);
    let logs: Vec<_> = harness.machine.snapshot().log_dirs.iter().map(|build| build.0).collect();
    assert_eq!(logs, [4, 5, 6, 7, 8, 9]);
    assert!(harness.store().known_branches(&"shop".parse().unwrap()).await.unwrap().len() == 1, "topic is forgotten");
    assert_eq!(status(&harness, "api-main.shop.example.com").await, 200);

    harness.deploy("topic", &commit('b'), Script::api("b")).await;
    assert_eq!(status(&harness, TOPIC).await, 200, "its name can be had again");
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_of_a_build_that_a_crash_left_behind_go() {
    let mut harness = Harness::start().await;
    harness.deploy("topic", &commit('a'), Script::api("1")).await;
    harness.delete("topic").await;
    harness.until_quiet().await;
    // Its root goes first: nothing that is rooted is forgotten.
    harness.upkeep_after(Duration::ZERO).await;
    harness.machine.fault(kennel::host::fake::Op::RemoveLogDir, 1, kennel::host::fake::Fault::Fail);
    harness.upkeep_after(31 * DAY).await;
    assert!(harness.builds().await.is_empty(), "the row went first");
    assert_eq!(harness.machine.snapshot().log_dirs.len(), 1);
    harness.crash();
    harness.boot(Interrupt::never()).await;
    assert_eq!(harness.machine.snapshot().log_dirs, []);
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_is_known_for_as_long_as_it_may_be_sent_again() {
    let harness = Harness::start().await;
    harness.configure("[upkeep]\nkeep_for = \"1d\"", "").await;
    harness.script(&commit('a'), Script::api("1"));
    harness.push_as("one", "topic", &commit('a')).await;
    harness.until_quiet().await;
    harness.push_as("two", "topic", &"0".repeat(40)).await;
    harness.until_quiet().await;
    harness.upkeep_after(6 * DAY).await;
    assert_eq!(harness.push_as("one", "topic", &commit('a')).await.0, 200, "a redelivery builds nothing");
    harness.upkeep_after(8 * DAY).await;
    assert!(harness.builds().await.is_empty());
    assert_eq!(harness.push_as("one", "topic", &commit('a')).await.0, 202, "it is long forgotten");
    harness.until_quiet().await;
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gc_frees_what_its_plan_says_and_nothing_that_is_in_use() {
    let mut harness = Harness::start().await;
    let path = crate::harness::store_path;
    let (common, private) = (path("common", "1"), path("private", "1"));
    harness.machine.put(&common, 1_000_000, &[]);
    harness.machine.put(&private, 20_000, &[]);
    harness.machine.put(&path("api", "1"), 100, std::slice::from_ref(&common));
    harness.machine.put(&path("api", "2"), 200, &[common.clone(), private.clone()]);
    harness.deploy("main", &commit('1'), Script::api("1")).await;
    harness.deploy("topic", &commit('2'), Script::api("2")).await;

    let plan = harness.api("/gc").await;
    let told = |row: &serde_json::Value| {
        (row["branch"].as_str().unwrap().to_owned(), row["reason"].clone(), row["exclusive_bytes"].as_u64().unwrap())
    };
    let kept: Vec<_> = plan["kept"].as_array().unwrap().iter().map(told).collect();
    assert_eq!(kept, [("main".to_owned(), "live".into(), 100), ("topic".to_owned(), "live".into(), 20_200)]);
    assert_eq!((&plan["shared_bytes"], &plan["free"]["bytes"]), (&1_000_000.into(), &0.into()));

    harness.delete("topic").await;
    harness.until_quiet().await;
    let plan = harness.api("/gc").await;
    assert_eq!((&plan["shared_bytes"], &plan["free"]["bytes"]), (&0.into(), &20_200.into()), "{plan}");
    assert!(harness.machine.has(&private), "a plan frees nothing");
    let freed = harness.ask(http::Method::POST, "/gc").await;
    assert_eq!(freed["bytes"], 20_200);
    assert_eq!(freed["paths"].as_array().unwrap().len(), 2);
    assert!(!harness.machine.has(&private) && harness.machine.has(&common) && harness.machine.has(&path("api", "1")));
    assert_eq!(harness.ask(http::Method::POST, "/gc").await["bytes"], 0);
    assert!(harness.store().released_paths().await.unwrap().is_empty(), "what is gone is forgotten");

    // Built again, and so rooted again, it is nobody's to free.
    harness.deploy("topic", &commit('2'), Script::api("2")).await;
    assert_eq!(harness.ask(http::Method::POST, "/gc").await["bytes"], 0);
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_five_versions_that_went_live_keep_their_roots() {
    let mut harness = Harness::start().await;
    for version in "1234567".chars() {
        harness.deploy("main", &commit(version), Script::api(&version.to_string())).await;
    }
    // Neither a version that fails nor one that changes nothing takes the place of one to go back to.
    let bad = crate::harness::store_path("api", "8");
    harness.machine.set_behaviour(&bad, kennel::host::fake::Behaviour::ExitsAtOnce(1));
    harness.deploy("main", &commit('8'), Script::api("8")).await;
    harness.deploy("main", &commit('9'), Script::api("7")).await;
    assert_eq!(harness.deployment_states().await[7..], [D::Failed, D::Noop]);
    harness.upkeep_after(Duration::ZERO).await;
    let roots = harness.store().list_roots().await.unwrap();
    let kept: Vec<_> = roots.iter().map(|root| (root.build.0, root.reason)).collect();
    let rollback = RootReason::Rollback;
    assert_eq!(kept, [(7, RootReason::Live), (6, rollback), (5, rollback), (4, rollback), (3, rollback)]);
    assert_eq!(harness.machine.inventory().await.unwrap().gc_roots.len(), 5);
    harness.finish().await;
}
