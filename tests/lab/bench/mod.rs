//! How much of a push is kennel's own, and how much kennel bears: printed, and compared with nothing.
//! `tests/lab/lab bench` runs it, with a release build and kennel's state on a real disk. [`load`] and [`many`] are
//! about much of everything, [`restarts`] about visitors while kennel restarts.

mod load;
mod many;
mod restarts;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{App, Build, Deployment, Lab, LabConfig, Service, api, delivery, machine, until};

/// How many pushes are measured.
const PUSHES: usize = 10;
/// How many deliveries are measured that only wait in the queue.
const DELIVERIES: usize = 200;

fn is_wanted() -> bool {
    let wanted = std::env::var("KENNEL_BENCH").is_ok_and(|value| value == "1");
    if !wanted {
        println!("not measured: `tests/lab/lab bench` does");
    }
    wanted
}

/// The split of one push, in milliseconds.
type Split = BTreeMap<&'static str, f64>;

/// Column by column: what it is called, and what it means.
const COLUMNS: [(&str, &str); 13] = [
    ("webhook", "signed delivery sent, durable, answered"),
    ("claim", "accepted to claimed by a worker"),
    ("git", "inside git"),
    ("nix", "inside nix"),
    ("build", "the rest of the build: its units, root, record, hand-over"),
    ("pending", "build ended to deployment begun"),
    ("allocate", "step: port"),
    ("write_env", "step: environment file"),
    ("install_unit", "step: unit file, reload"),
    ("start_unit", "the service's own start: until systemd has executed its program"),
    ("service", "the service's own start: until it listens"),
    ("probe", "listening to known as healthy"),
    ("switch_route", "step: route"),
];

fn split(build: &Build, deployment: &Deployment, webhook: Duration, listening_at: f64) -> Split {
    let ms = |time: Option<i64>| time.expect("it is over") as f64;
    let step = |name: &str| deployment.events.iter().find(|event| event.step == name).expect("it was done");
    let (git, nix) = (ms(build.fetch_ms), ms(build.nix_ms));
    let (claimed, ended) = (ms(build.started_at), ms(build.finished_at));
    let begun = ms(deployment.started_at);
    let started = step("start_unit").at as f64;
    let healthy = step("await_healthy").at as f64;
    let own = (listening_at - started).max(0.0);
    let mut split = Split::from([
        ("webhook", webhook.as_secs_f64() * 1000.0),
        ("claim", claimed - build.queued_at as f64),
        ("git", git),
        ("nix", nix),
        ("build", ended - claimed - git - nix),
        ("pending", begun - ended),
        ("service", own),
        ("probe", healthy - started - own),
        ("total", ms(deployment.live_at) - build.queued_at as f64),
    ]);
    for name in ["allocate", "write_env", "install_unit", "start_unit", "switch_route"] {
        split.insert(name, step(name).duration_ms as f64);
    }
    let own_share = split["total"] - git - nix - split["start_unit"] - own;
    split.insert("share", own_share);
    split
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len().is_multiple_of(2) { f64::midpoint(values[middle - 1], values[middle]) } else { values[middle] }
}

fn print_table(splits: &[Split]) {
    let names: Vec<_> = COLUMNS.iter().map(|(name, _)| *name).chain(["total", "share"]).collect();
    println!("{:>7} {}", "push", names.iter().map(|name| format!("{name:>13}")).collect::<String>());
    let line = |head: &str, value: &dyn Fn(&str) -> f64| {
        println!("{head:>7} {}", names.iter().map(|name| format!("{:>13.1}", value(name))).collect::<String>());
    };
    for (n, split) in splits.iter().enumerate() {
        line(&(n + 1).to_string(), &|name| split[name]);
    }
    line("median", &|name| median(splits.iter().map(|split| split[name]).collect()));
    for (name, meaning) in COLUMNS {
        println!("  {name}: {meaning}");
    }
    println!(
        "  total: accepted to live; share: the total less git, nix and the service's own start (start_unit, service)"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn bench_kennels_own_share_of_a_push() {
    if !is_wanted() {
        return;
    }
    let lab = Lab::hello().await;
    let version = |n: usize| App::api(&format!("{n}"));
    let mut last = lab.deploy_api("hello", "main", &version(0)).await;
    let mut splits = Vec::new();
    for n in 1..=PUSHES {
        lab.becomes(last.id, "live").await;
        let commit = lab.repo("hello").commit("main", &version(n).files(), "Change something");
        let delivery = lab.push_delivery("hello", "main", &commit);
        let sent = Instant::now();
        let answer = api::deliver(&delivery).await;
        let webhook = sent.elapsed();
        let build = answer.expect(202).json::<Value>()["build"].as_i64().unwrap();
        let live = lab.live(build, "api").await;
        let about: Value = lab.visit(&live.host, "/").await.expect(200).json();
        assert_eq!(about["version"], n.to_string());
        let listening_at = about["listening_at"].as_f64().expect("the service tells since when it listens");
        splits.push(split(&api::build(build).await, &api::deployment(live.id).await, webhook, listening_at));
        lab.becomes(last.id, "retired").await;
        last = live;
    }
    println!("\nmilliseconds of each of {PUSHES} pushes of a changed version");
    print_table(&splits);
    let share = median(splits.iter().map(|split| split["share"]).collect());
    println!("kennel's own share of a push: {share:.0} ms (median; at most 150)");
    lab.finish().await;
}

/// One in which a build that waits holds the only worker.
async fn lab_that_builds_nothing() -> Lab {
    let lab = Lab::start(LabConfig::hello().builder("max_concurrent_builds = 1")).await;
    let gate = lab.gate();
    lab.push("hello", "held", &App::default().with(Service::new("api", "one").behind(&gate))).await;
    gate.reached().await;
    lab
}

#[tokio::test(flavor = "multi_thread")]
async fn bench_answer_to_a_webhook() {
    if !is_wanted() {
        return;
    }
    // What is measured is the delivery alone: its signature, its transaction and the answer.
    let lab = lab_that_builds_nothing().await;
    let mut answers = Vec::new();
    for n in 1..=DELIVERIES {
        let payload = delivery::push("hello", "main", None, &format!("{n:040x}"));
        let delivery = lab.delivery("hello", "push", &payload);
        let sent = Instant::now();
        let answer = api::deliver(&delivery).await;
        answers.push(sent.elapsed().as_secs_f64() * 1000.0);
        answer.expect(202);
    }
    answers.sort_by(f64::total_cmp);
    println!(
        "\nwebhook answered after {:.2} ms (median of {DELIVERIES}; at most 20), 99 of 100 within {:.2} ms",
        median(answers.clone()),
        answers[DELIVERIES * 99 / 100]
    );
    println!("the disk below takes {:.2} ms for a write of 4 KiB with fsync (median of 100)", fsync_ms());
    lab.finish().await;
}

/// How long the disk below kennel's state takes to make 4 KiB durable.
fn fsync_ms() -> f64 {
    let path = "/var/lib/kennel/fsync-probe";
    let mut file = File::create(path).unwrap();
    let times = (0..100).map(|_| {
        let begun = Instant::now();
        file.write_all(&[0; 4096]).unwrap();
        file.sync_data().unwrap();
        begun.elapsed().as_secs_f64() * 1000.0
    });
    let median = median(times.collect());
    std::fs::remove_file(path).unwrap();
    median
}

#[tokio::test(flavor = "multi_thread")]
async fn bench_memory_of_the_idle_daemon() {
    if !is_wanted() {
        return;
    }
    let lab = Lab::hello().await;
    let resident = async || {
        let kib = machine::resident_kib(machine::main_pid("kennel.service").await);
        kib as f64 / 1024.0
    };
    let fresh = resident().await;
    let first = lab.deploy("hello", "main", &App::api("1").site("web", "page")).await;
    let second = lab.deploy("hello", "main", &App::api("2").site("web", "other page")).await;
    for _ in 0..200 {
        lab.visit(&second["api"].host, "/").await.expect(200);
        lab.visit(&second["web"].host, "/").await.expect(200);
    }
    lab.becomes(first["api"].id, "retired").await;
    let before = machine::main_pid("kennel.service").await;
    until("it is idle", Duration::from_secs(10), async || {
        let open = api::builds().await.iter().filter(|build| !build.has_ended()).count();
        (open == 0).then_some(())
    })
    .await;
    assert_eq!(machine::main_pid("kennel.service").await, before);
    println!(
        "\nresident: {fresh:.1} MiB fresh, {:.1} MiB after two deploys and 400 visits (at most 25)",
        resident().await
    );
    lab.finish().await;
}
