//! More than there should be of deliveries, forged and good, and what it costs whom.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use crate::harness::http::Connection;
use crate::harness::leftovers::rows;
use crate::harness::{App, Delivery, Lab, LabConfig, ProjectSpec, Service, api, delivery, machine};

/// Who forges, and who does not.
const FORGER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
const HONEST: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3));
/// How long the forger keeps it up, over how many connections, and how often a second each is used.
const FLOOD_TIME: Duration = Duration::from_secs(5);
const FORGERS: u32 = 40;
const FORGED_PER_SECOND: u32 = 2000;
/// How often the honest sender delivers.
const HONEST_EVERY: Duration = Duration::from_millis(100);

/// Sends the same delivery again and again, over connections from one address; tells how often each status came.
async fn flood(delivery: Delivery, from: IpAddr, time: Duration) -> BTreeMap<u16, usize> {
    let mut tasks = JoinSet::new();
    for _ in 0..FORGERS {
        let delivery = delivery.clone();
        tasks.spawn(async move {
            let mut statuses = BTreeMap::<u16, usize>::new();
            let mut turn = interval(Duration::from_secs(1) * FORGERS / FORGED_PER_SECOND);
            turn.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let mut connection = Connection::open_from(from, api::API).await.unwrap();
            let begun = Instant::now();
            while begun.elapsed() < time {
                turn.tick().await;
                if connection.is_closed() {
                    connection = Connection::open_from(from, api::API).await.unwrap();
                }
                // A connection that kennel closed meanwhile counts as no answer.
                let answer = connection.send(api::request_of(&delivery)).await;
                *statuses.entry(answer.map_or(0, |answer| answer.status.as_u16())).or_default() += 1;
            }
            statuses
        });
    }
    let mut sum = BTreeMap::<u16, usize>::new();
    while let Some(statuses) = tasks.join_next().await {
        for (status, count) in statuses.unwrap() {
            *sum.entry(status).or_default() += count;
        }
    }
    sum
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_deliveries_of_one_address_hold_up_nobody_on_another() {
    // A build that waits holds the only worker: what is queued stays queued, and is not what this test is about.
    let lab = Lab::start(LabConfig::hello().builder("max_concurrent_builds = 1")).await;
    let gate = lab.gate();
    lab.push("hello", "held", &App::default().with(Service::new("api", "one").behind(&gate))).await;
    gate.reached().await;
    let resident = async || machine::resident_kib(machine::main_pid("kennel.service").await) / 1024;
    let before = resident().await;
    let payload = delivery::push("hello", "main", None, &"f".repeat(40));
    let forged = lab.delivery("hello", "push", &payload).header("X-Forgejo-Signature", Some(&"0".repeat(64)));

    let mut forger = JoinSet::new();
    forger.spawn(flood(forged, FORGER, FLOOD_TIME));
    let mut honest = Vec::new();
    let mut turn = interval(HONEST_EVERY);
    let statuses = loop {
        if let Some(ended) = forger.try_join_next() {
            break ended.unwrap();
        }
        turn.tick().await;
        let payload = delivery::push("hello", "main", None, &format!("{:040x}", honest.len() + 1));
        let good = lab.delivery("hello", "push", &payload);
        let sent = Instant::now();
        let answer = Connection::open_from(HONEST, api::API).await.unwrap().send(api::request_of(&good)).await;
        answer.unwrap().expect(202);
        honest.push(sent.elapsed());
    };

    report(&statuses, &honest);
    println!("resident: {before} MiB before, {} MiB after", resident().await);
    assert!(honest.len() > 10, "{honest:?}");
    let journal = lab.journal().await;
    let told = journal.lines().filter(|line| line.contains("127.0.0.2")).count();
    assert!((20..=22).contains(&told), "a source is told of 20 times, then once a minute:\n{journal}");
    let builds = rows("select count(*) from builds where commit_sha like 'ffff%'").await;
    assert_eq!(builds, ["0"], "a forged delivery builds nothing");
    lab.finish().await;
}

fn report(statuses: &BTreeMap<u16, usize>, honest: &[Duration]) {
    let sent: usize = statuses.values().sum();
    println!("forged: {} per s, answered {statuses:?}", sent as f64 / FLOOD_TIME.as_secs_f64());
    let mut sorted = honest.to_vec();
    sorted.sort();
    println!(
        "honest: {} deliveries, median {:?}, slowest {:?} (at most 500 ms is wanted)",
        sorted.len(),
        sorted[sorted.len() / 2],
        sorted[sorted.len() - 1]
    );
    assert!(statuses.keys().all(|status| [0, 401, 429].contains(status)), "{statuses:?}");
    assert!(statuses[&429] > 100 && statuses[&401] < 40, "it is limited: {statuses:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_thousand_pushes_every_one_is_acknowledged_and_the_newest_of_each_branch_is_live() {
    const BRANCHES: usize = 10;
    const PUSHES: usize = 100;
    let lab = Arc::new(Lab::hello().await);
    let page = |branch: usize, n: usize| format!("{branch}/{n}");
    let mut senders = JoinSet::new();
    let begun = Instant::now();
    for branch in 0..BRANCHES {
        let lab = Arc::clone(&lab);
        senders.spawn(async move {
            let mut turn = interval(Duration::from_secs(10) / u32::try_from(PUSHES).unwrap());
            let mut last = 0;
            for n in 1..=PUSHES {
                turn.tick().await;
                last =
                    lab.push("hello", &format!("b{branch}"), &App::default().site("web", &page(branch, n))).await.build;
            }
            (branch, last)
        });
    }
    let newest: BTreeMap<_, _> = senders.join_all().await.into_iter().collect();
    println!("{} pushes acknowledged within {:?}", BRANCHES * PUSHES, begun.elapsed());

    for (branch, build) in newest {
        lab.ended_as(build, "success").await;
        let live = lab.live(build, "web").await;
        assert_eq!(lab.visit(&live.host, "/").await.expect(200).text(), page(branch, PUSHES));
    }
    let states = rows("select state || ' ' || count(*) from builds group by state order by state").await;
    println!("builds: {states:?} after {:?}", begun.elapsed());
    let count =
        |state: &str| states.iter().find_map(|row| row.strip_prefix(&format!("{state} "))?.parse::<usize>().ok());
    let (built, superseded) = (count("success").unwrap(), count("superseded").unwrap());
    let others = rows(
        "select id || ' ' || state || ': ' || coalesce(reason, '') from builds where state not in ('success', 'superseded')",
    )
    .await;
    assert_eq!((built + superseded, others.len()), (BRANCHES * PUSHES, 0), "{others:?}");
    Arc::into_inner(lab).expect("the senders are gone").finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_that_is_pushed_to_all_the_time_lets_another_have_its_turn() {
    let config = LabConfig::of([ProjectSpec::new("flood"), ProjectSpec::new("calm")]);
    let lab = Arc::new(Lab::start(config.builder("max_concurrent_builds = 1")).await);
    let gate = lab.gate();
    lab.push("flood", "held", &App::default().with(Service::new("api", "one").behind(&gate))).await;
    gate.reached().await;

    let enough = Arc::new(AtomicBool::new(false));
    let mut flood = JoinSet::new();
    flood.spawn({
        let (lab, enough) = (Arc::clone(&lab), Arc::clone(&enough));
        async move {
            let mut n = 0;
            while !enough.load(Ordering::Relaxed) {
                n += 1;
                lab.push("flood", &format!("b{}", n % 5), &App::default().site("web", &n.to_string())).await;
            }
            n
        }
    });
    // Twice, so that it waits once behind the one that runs, and once while the other has had a turn.
    for version in ["one", "two"] {
        let pushed = lab.push("calm", "main", &App::default().site("web", version)).await;
        if version == "one" {
            gate.open().await;
        }
        lab.ended_as(pushed.build, "success").await;
        let calm = api::build(pushed.build).await;
        let (queued, started) = (calm.queued_at, calm.started_at.unwrap());
        let builds = api::builds().await;
        let between = builds.iter().filter(|build| {
            build.project == "flood" && build.started_at.is_some_and(|at| (queued + 1..started).contains(&at))
        });
        let between: Vec<_> = between.map(|build| build.id).collect();
        assert!(
            between.len() <= 1,
            "{between:?} of `flood` were claimed while build {} of `calm` waited",
            pushed.build
        );
    }
    enough.store(true, Ordering::Relaxed);
    println!("the other project was pushed to {} times meanwhile", flood.join_next().await.unwrap().unwrap());
    Arc::into_inner(lab).expect("the flood is over").finish().await;
}
