//! Everything that can happen to a machine happens at random, and in the end all is well.
//!
//! Pushes of services with databases, deletions, pull requests, cancels; kennel killed; Nix's daemon and the bus
//! restarted; Valkey and PostgreSQL restarted and killed. It
//! goes on for `KENNEL_NEMESIS_SECS` (40); what is random comes from `KENNEL_NEMESIS_SEED`, which is printed. All the
//! while a steady visitor of a service that nobody touches gets every answer: directly always, through kennel's router
//! whenever there is a kennel.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use http::Method;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::harness::databases::{Postgres, Valkey};
use crate::harness::http::{request, send};
use crate::harness::invariants::at_rest;
use crate::harness::{App, Delivery, Lab, LabConfig, ProjectSpec, ROUTER, Service, api, delivery, machine, until};
use crate::invariants::Acknowledged;

const BRANCHES: u64 = 4;
const PULLS: u64 = 2;
/// How long kennel may be away, killed or restarted.
const AWAY_MAX: Duration = Duration::from_secs(15);

/// Numbers that look random (SplitMix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % sides
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// When kennel was away: from the kill to the first answer.
type Away = Arc<Mutex<Vec<(Instant, Option<Instant>)>>>;

/// What a visitor did not get, and when he asked and gave up.
#[derive(Debug)]
struct Failure {
    asked: Instant,
    ended: Instant,
    what: String,
}

struct Nemesis {
    lab: Lab,
    valkey: Valkey,
    postgres: Postgres,
    dice: Dice,
    version: u32,
    acknowledged: Vec<Acknowledged>,
    /// Project and branch of what should be there.
    there: BTreeMap<(&'static str, String), Option<u64>>,
    away: Away,
    done: BTreeMap<&'static str, u32>,
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_at_random_all_is_well_in_the_end() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970").as_secs();
    let seed = number("KENNEL_NEMESIS_SEED").unwrap_or(now);
    let time = Duration::from_secs(number("KENNEL_NEMESIS_SECS").unwrap_or(40));
    println!("KENNEL_NEMESIS_SEED={seed} KENNEL_NEMESIS_SECS={}", time.as_secs());
    let (valkey, postgres) = (Valkey::start(16).await, Postgres::start().await);
    let config = LabConfig::of(["hello", "shop"].map(ProjectSpec::new));
    let lab = Lab::start(config.section(&valkey.section()).section(&postgres.section())).await;
    let steady = App::default().with(Service::new("api", "steady").with_databases()).site("web", "page");
    let steady = lab.deploy("hello", "main", &steady).await;
    let wanted = steady.values().map(|live| (live.host.clone(), live.commit.clone())).collect();
    let before = at_rest(&[], &wanted).await;

    let stop = CancellationToken::new();
    let mut visitors = JoinSet::new();
    let port = steady["api"].port.expect("a service has a port");
    let direct = SocketAddr::new(ROUTER.ip(), port);
    for (to, host) in [(ROUTER, &steady["api"].host), (ROUTER, &steady["web"].host), (direct, &steady["api"].host)] {
        let (host, stop) = (host.clone(), stop.clone());
        visitors.spawn(async move { (to, visit(to, &host, stop).await) });
    }
    let (dice, away) = (Dice(seed), Away::default());
    let (acknowledged, there, done) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
    let mut nemesis = Nemesis { lab, valkey, postgres, dice, version: 0, acknowledged, there, away, done };
    let begun = Instant::now();
    while begun.elapsed() < time {
        nemesis.strike().await;
    }
    println!("in {} s: {:?}", begun.elapsed().as_secs(), nemesis.done);
    let mut wanted: BTreeMap<_, _> = wanted;
    wanted.extend(nemesis.calm_down().await);
    let after = at_rest(&nemesis.acknowledged, &wanted).await;
    let databases = after.machine.databases.as_ref().expect("the database servers are there");
    let has = (databases.valkey_users.len(), databases.open_roles.len());
    println!("in the end there are {} Valkey users and {} roles that can log in", has.0, has.1);
    let branches = 1 + nemesis.there.len();
    assert_eq!(has, (branches, branches), "each branch has its own");

    tell_failures().await;

    stop.cancel();
    after.expect_same_processes(&before);
    let away = nemesis.away.lock().unwrap().clone();
    let excused = |failure: &&Failure| {
        away.iter().any(|(from, to)| failure.ended >= *from && to.is_none_or(|to| failure.asked <= to))
    };
    for (to, (served, failures)) in visitors.join_all().await {
        let bad = failures.iter().filter(|failure| to == direct || !excused(failure));
        let bad: Vec<_> = bad.map(|failure| failure.what.as_str()).collect();
        println!("{to} served {served} visits, and failed {} while kennel was away", failures.len() - bad.len());
        assert!(bad.is_empty(), "{to}: {} visits failed: {:#?}", bad.len(), &bad[..bad.len().min(5)]);
        assert!(served > 100, "{served} visits are none");
    }
    nemesis.lab.finish().await;
}

/// What failed though no repository was to blame, for people to judge.
async fn tell_failures() {
    for build in api::builds().await.iter().filter(|build| build.state == "failed") {
        let reason = build.reason.as_deref().unwrap_or_default();
        if !reason.contains("builder for") {
            println!("build {} of {} failed: {reason}", build.id, build.branch);
        }
    }
    for deployment in api::deployments().await.iter().filter(|deployment| deployment.state == "failed") {
        let reason = deployment.reason();
        if !reason.contains("it exited before it was healthy") {
            println!("deployment {} of {} failed: {reason}", deployment.id, deployment.branch);
        }
    }
}

/// Asks again and again; tells how often he was served, and what he was not.
async fn visit(to: SocketAddr, host: &str, stop: CancellationToken) -> (u64, Vec<Failure>) {
    let (mut served, mut failures) = (0, Vec::new());
    while !stop.is_cancelled() {
        let asked = Instant::now();
        let what = match send(to, request(Method::GET, host, "/", "")).await {
            Ok(answer) if answer.status == 200 => {
                served += 1;
                None
            }
            Ok(answer) => Some(format!("{}: {}", answer.status, answer.text())),
            Err(err) => Some(err),
        };
        failures.extend(what.map(|what| Failure { asked, ended: Instant::now(), what }));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    (served, failures)
}

impl Nemesis {
    /// One thing happens, and then nothing for a moment.
    async fn strike(&mut self) {
        let what = match self.dice.roll(100) {
            0..38 => self.push().await,
            38..50 => self.remove().await,
            50..57 => self.cancel().await,
            57..75 => self.kill_kennel().await,
            75..80 => self.kill_builds().await,
            80..84 => restart("nix-daemon restarted", "nix-daemon.service").await,
            84..88 => restart("bus restarted", "dbus.service").await,
            _ => self.hurt_databases().await,
        };
        *self.done.entry(what).or_default() += 1;
        let pause = Duration::from_millis(self.dice.roll(200));
        tokio::time::sleep(pause).await;
    }

    /// A branch or a pull request gets a new version, good, sick or broken.
    async fn push(&mut self) -> &'static str {
        let kind = self.dice.roll(8);
        if self.dice.roll(3) == 0 {
            let number = 1 + self.dice.roll(PULLS);
            self.push_pull(number, kind).await
        } else {
            let branch = format!("b{}", self.dice.roll(BRANCHES));
            self.push_branch(&branch, kind).await
        }
    }

    fn app(&mut self, kind: u64) -> (App, &'static str) {
        self.version += 1;
        let version = self.version.to_string();
        let service = Service::small("api", &version).with_databases();
        match kind {
            0 => (App::default().with(service.mode("exit")).site("web", &version), "sick pushes"),
            1 => (App::default().with(service.builds_by("exit 1")).site("web", &version), "broken pushes"),
            2..4 => (App::default().with(service), "pushes without the site"),
            _ => (App::default().with(service).site("web", &version), "pushes"),
        }
    }

    async fn push_branch(&mut self, branch: &str, kind: u64) -> &'static str {
        let (app, what) = self.app(kind);
        let commit = self.lab.repo("hello").commit(branch, &app.files(), "Change something");
        let delivery = self.lab.push_delivery("hello", branch, &commit);
        self.there.insert(("hello", branch.to_owned()), None);
        self.tell(&delivery).await;
        what
    }

    async fn push_pull(&mut self, number: u64, kind: u64) -> &'static str {
        let (app, what) = self.app(kind);
        let commit = self.lab.repo("shop").commit("main", &app.files(), "Improve things");
        self.lab.repo("shop").pull_request(number, &commit);
        let payload = delivery::pull_request("shop", "synchronized", number, &commit, false);
        let delivery = self.lab.delivery("shop", "pull_request", &payload);
        self.there.insert(("shop", format!("pr-{number}")), Some(number));
        self.tell(&delivery).await;
        what
    }

    /// A branch is deleted or a pull request closed, if there is one.
    async fn remove(&mut self) -> &'static str {
        let all: Vec<_> = self.there.keys().cloned().collect();
        let Some(key) = all.get(usize::try_from(self.dice.roll(8)).expect("it is small")) else { return "nothing" };
        let (project, branch) = key;
        let delivery = match self.there.remove(key).expect("it is there") {
            Some(number) => {
                let payload = delivery::pull_request(project, "closed", number, &"0".repeat(40), false);
                self.lab.delivery(project, "pull_request", &payload)
            }
            None => {
                self.lab.repo(project).delete(branch);
                self.lab.delivery(project, "delete", &delivery::delete(project, branch))
            }
        };
        self.tell(&delivery).await;
        "removals"
    }

    async fn cancel(&mut self) -> &'static str {
        let Ok(answer) = api::try_ask(Method::GET, "/builds").await else { return "nothing" };
        let builds: Vec<api::Build> = answer.json();
        let Some(build) = builds.iter().find(|build| !build.has_ended()) else { return "nothing" };
        // It may end, or kennel may, at any moment.
        let _ = api::try_ask(Method::POST, &format!("/builds/{}/cancel", build.id)).await;
        "cancels"
    }

    async fn kill_kennel(&mut self) -> &'static str {
        let at = Instant::now();
        self.away.lock().unwrap().push((at, None));
        // One that was killed a moment ago is not there.
        let _ = machine::run("systemctl", &["kill", "--signal=KILL", "kennel.service"]).await;
        self.until_back().await;
        "kills"
    }

    async fn until_back(&self) {
        until("kennel is back", AWAY_MAX, async || {
            let active = machine::property("kennel.service", "ActiveState").await == "active";
            (active && api::try_ask(Method::GET, "/healthz").await.is_ok()).then_some(())
        })
        .await;
        let now = Instant::now();
        for (_, to) in self.away.lock().unwrap().iter_mut() {
            to.get_or_insert(now);
        }
    }

    async fn kill_builds(&mut self) -> &'static str {
        let units = ["kennel-fetch-*.service", "kennel-build-*.service"];
        let _ = machine::run("systemctl", &[&["kill", "--signal=KILL"], &units[..]].concat()).await;
        "builds killed"
    }

    async fn hurt_databases(&mut self) -> &'static str {
        match self.dice.roll(4) {
            0 => {
                self.valkey.stop().await;
                self.valkey.start_again().await;
                "Valkey restarted"
            }
            1 => {
                self.valkey.kill9().await;
                "Valkey killed"
            }
            2 => {
                self.postgres.restart().await;
                "PostgreSQL restarted"
            }
            _ => {
                self.postgres.kill9().await;
                "PostgreSQL killed"
            }
        }
    }

    /// Tells kennel, again and again until it answers, as whoever looks at a forge's list of failed deliveries does.
    async fn tell(&mut self, delivery: &Delivery) {
        let answer = until("kennel answers a delivery", AWAY_MAX, async || {
            api::try_deliver(delivery).await.ok().filter(|answer| answer.status != 503)
        })
        .await;
        assert!(answer.status.is_success(), "{}: {}", answer.status, answer.text());
        let build = answer.json::<Value>()["build"].as_i64();
        let (project, delivery) = (delivery.project.clone(), delivery.id.clone());
        self.acknowledged.push(Acknowledged { project, delivery, build });
    }

    /// Nothing happens any more but one good push to everything that is there; tells what must be live in the end.
    async fn calm_down(&mut self) -> BTreeMap<String, String> {
        self.until_back().await;
        let mut wanted = BTreeMap::new();
        for ((project, branch), pull) in self.there.clone() {
            match pull {
                Some(number) => self.push_pull(number, 7).await,
                None => self.push_branch(&branch, 7).await,
            };
            let commit = match pull {
                Some(number) => self.lab.repo(project).pull_head(number),
                None => self.lab.repo(project).tip(&branch),
            };
            for name in ["api", "web"] {
                let commit = commit.clone().expect("it was pushed");
                wanted.insert(format!("{name}-{branch}.{project}.lab.test"), commit);
            }
        }
        wanted
    }
}

/// Restarts what runs; whether it did is not the question. How often systemd lets a unit be started, 5 times in 10 s
/// unless told otherwise, is not either.
async fn restart(what: &'static str, unit: &str) -> &'static str {
    for verb in ["reset-failed", "try-restart"] {
        let _ = machine::run("systemctl", &[verb, unit]).await;
    }
    what
}
