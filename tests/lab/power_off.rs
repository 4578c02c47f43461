//! A machine that was switched off comes back with everything that was live, without help.
//!
//! The parts of this test run in the same machine, which `tests/lab/lab` switches off after the first as an operator
//! does, and after the second as a power cut does.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use http::Method;
use serde_json::{Value, json};

use crate::harness::http::{request, send};
use crate::harness::invariants::at_rest;
use crate::harness::{App, Lab, LabConfig, ROUTER, Service, api, machine, split, until};
use crate::invariants::{Acknowledged, Rows};

/// Services of the default branch, beside `api` and the site `web`.
const SMALL: usize = 9;
/// What a part leaves for the next.
const HANDED_OVER: &str = "/var/lib/lab-power.json";
/// What a visitor got, from the moment the machine was up enough to run him.
const VISITS: &str = "/var/lib/lab-visits";
const VISITOR: &str = "/etc/systemd/system/lab-visitor.service";
const HOST: &str = "api-main.hello.lab.test";
/// From kennel's start to its being ready: all that was live has been started by then.
const READY_MAX: Duration = Duration::from_secs(10);

/// Whether this machine is going to be, or has been, switched off.
fn is_wanted() -> bool {
    let wanted = std::env::var("KENNEL_POWER").is_ok_and(|value| value == "1");
    if !wanted {
        println!("not here: `tests/lab/lab test` does this in a machine that it switches off");
    }
    wanted
}

#[tokio::test(flavor = "multi_thread")]
async fn part_1_several_services_are_live_before_it_is_switched_off() {
    if !is_wanted() {
        return;
    }
    let lab = Lab::hello().await;
    machine::ok("systemctl", &["enable", "kennel.service"]).await;
    install_visitor().await;
    let mut app = App::default().with(Service::new("api", "one").env("WORD", "kept")).site("web", "page");
    for n in 1..=SMALL {
        app = app.with(Service::small(&format!("s{n}"), "one"));
    }
    let live = lab.deploy("hello", "main", &app).await;
    lab.post_data(HOST, "written before").await;
    let mut story = Story::default();
    story.wanted.extend(live.into_values().map(|deployment| (deployment.host, deployment.commit)));
    at_rest(&story.acknowledged, &story.wanted).await;
    story.hand_over();
    lab.abandon();
}

#[tokio::test(flavor = "multi_thread")]
async fn part_2_after_a_shutdown_everything_comes_back_without_help() {
    if !is_wanted() {
        return;
    }
    let mut story = Story::taken_over();
    story.expect_all_back().await;
    // And it goes on working: one more branch, and one that is being built when the power goes.
    let lab = Lab::resume(LabConfig::hello()).await;
    let topic = lab.deploy_api("hello", "topic", &App::default().with(Service::small("api", "two"))).await;
    story.wanted.insert(topic.host, topic.commit);
    at_rest(&story.acknowledged, &story.wanted).await;
    let app = App::default().with(Service::small("api", "three"));
    let commit = lab.repo("hello").commit("late", &app.files(), "Be late");
    let delivery = lab.push_delivery("hello", "late", &commit);
    let build = api::deliver(&delivery).await.expect(202).json::<Value>()["build"].as_i64();
    let unit = format!("kennel-fetch-{}.service", build.expect("a push is answered with its build"));
    until("the build has begun", Duration::from_secs(10), async || {
        machine::own_units().await.contains(&unit).then_some(())
    })
    .await;
    story.acknowledged.push(Acknowledged { project: "hello".to_owned(), delivery: delivery.id, build });
    story.late = Some(("api-late.hello.lab.test".to_owned(), commit));
    story.hand_over();
    lab.abandon();
}

#[tokio::test(flavor = "multi_thread")]
async fn part_3_after_a_power_cut_everything_comes_back_without_help() {
    if !is_wanted() {
        return;
    }
    let mut story = Story::taken_over();
    story.expect_all_back().await;
}

/// What was live, and what is to be expected of it.
#[derive(Default)]
struct Story {
    acknowledged: Vec<Acknowledged>,
    wanted: BTreeMap<String, String>,
    /// Host and commit of a push that the power cut came upon; its build may have ended before or may fail after,
    /// since the forge is gone.
    late: Option<(String, String)>,
}

impl Story {
    fn hand_over(&self) {
        let acknowledged = self.acknowledged.iter().map(|one| json!([one.project, one.delivery, one.build]));
        let acknowledged: Vec<_> = acknowledged.collect();
        let story = json!({ "acknowledged": acknowledged, "wanted": self.wanted, "late": self.late });
        fs::write(HANDED_OVER, story.to_string()).unwrap();
        // What comes before the machine is off again is not what is asked.
        fs::write(VISITS, "").unwrap();
    }

    fn taken_over() -> Self {
        let story: Value = serde_json::from_str(&fs::read_to_string(HANDED_OVER).unwrap()).unwrap();
        let acknowledged = story["acknowledged"].as_array().expect("a list").iter().map(|one| Acknowledged {
            project: one[0].as_str().expect("a name").to_owned(),
            delivery: one[1].as_str().expect("an id").to_owned(),
            build: one[2].as_i64(),
        });
        Self {
            acknowledged: acknowledged.collect(),
            wanted: serde_json::from_value(story["wanted"].clone()).unwrap(),
            late: serde_json::from_value(story["late"].clone()).unwrap(),
        }
    }

    /// systemd has started kennel, and kennel everything else.
    async fn expect_all_back(&mut self) {
        assert_eq!(machine::property("kennel.service", "ActiveState").await, "active");
        let begun = monotonic("kennel.service", "ExecMainStartTimestampMonotonic").await;
        let ready = monotonic("kennel.service", "ActiveEnterTimestampMonotonic").await - begun;
        self.settle_late().await;
        let rest = at_rest(&self.acknowledged, &self.wanted).await;
        let mut starts = Vec::new();
        for unit in rest.pids.keys() {
            starts.push(monotonic(unit, "ExecMainStartTimestampMonotonic").await);
        }
        let (first, last) = (starts.iter().min().expect("services run"), starts.iter().max().expect("services run"));
        println!(
            "{} services back: kennel ready {} ms after its start, the first of them started at {} ms, the last {} ms later",
            starts.len(),
            ready.as_millis(),
            (*first - begun).as_millis(),
            (*last - *first).as_millis()
        );
        assert!(ready < READY_MAX, "kennel took {} ms to be ready", ready.as_millis());
        assert!(*last < begun + ready, "kennel was ready before all that was live had been started");
        let journal = machine::ok("journalctl", &["--boot", "--output=cat", "--unit=kennel.service"]).await;
        assert!(!journal.contains("panicked at"), "kennel panicked:\n{journal}");
        expect_visits().await;
        let env: Value = ask("/env").await;
        assert_eq!(env["WORD"], "kept");
        assert_eq!(ask::<String>("/data").await, "written before");
    }

    /// What the power cut came upon comes to an end, one way or the other.
    async fn settle_late(&mut self) {
        let Some((host, commit)) = self.late.take() else { return };
        let build = self.acknowledged.last().and_then(|last| last.build).expect("it was told its build");
        let database = split::database();
        let state = until("the build that the power cut came upon ends", Duration::from_secs(30), async || {
            let rows = Rows::read(&database).await.unwrap();
            rows.under_way.is_empty().then(|| rows.build(build).map(str::to_owned)).flatten()
        })
        .await;
        println!("the build that the power cut came upon is `{state}`");
        if state == "success" {
            self.wanted.insert(host, commit);
        } else {
            assert_eq!(state, "failed");
        }
    }
}

async fn monotonic(unit: &str, property: &str) -> Duration {
    Duration::from_micros(machine::property(unit, property).await.parse().expect("a time in microseconds"))
}

async fn ask<T: serde::de::DeserializeOwned>(path: &str) -> T {
    let answer = send(ROUTER, request(Method::GET, HOST, path, "")).await;
    answer.expect("the router answers").expect(200).json()
}

/// Somebody who asks again and again, from the machine's start on.
async fn install_visitor() {
    let ask = format!("curl -s -o /dev/null -m 5 -w '%%{{http_code}}\\n' -H Host:{HOST} http://{ROUTER}/");
    let unit = format!(
        "[Unit]\nBefore=kennel.service\n[Service]\nExecStart=/bin/bash -c \"while :; do {ask} >>{VISITS}; sleep 0.01; done\"\n\
         [Install]\nWantedBy=multi-user.target\n"
    );
    fs::write(VISITOR, unit).unwrap();
    machine::ok("systemctl", &["enable", "lab-visitor.service"]).await;
}

/// The visitor may find nobody at the door, or a service that is not up yet; never a kennel that does not know the
/// host, for routes come before the door is opened.
async fn expect_visits() {
    let begun = Instant::now();
    let visits = until("the visitor is served", Duration::from_secs(10), async || {
        let visits = fs::read_to_string(VISITS).unwrap_or_default();
        visits.lines().any(|visit| visit == "200").then_some(visits)
    })
    .await;
    let mut counts = BTreeMap::<&str, usize>::new();
    for visit in visits.lines() {
        *counts.entry(visit).or_default() += 1;
    }
    println!("the visitor got {counts:?} (000: nobody listens yet), {} ms of waiting", begun.elapsed().as_millis());
    assert!(counts.contains_key("000"), "he came too late to see kennel start: {counts:?}");
    let odd: Vec<_> = counts.keys().filter(|code| !matches!(**code, "000" | "200" | "502")).collect();
    assert!(odd.is_empty(), "the visitor got {counts:?}");
}
