//! The machine the rounds are played on: what is pushed, what should be live, and who was told what.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use kennel::crash::Point;

use super::rounds::{Scenario, scenario};
use super::{orphans, time};
use crate::harness::databases::{Postgres, Valkey, command, valkey_as, variable};
use crate::harness::invariants::{AtRest, at_rest};
use crate::harness::leftovers::rows;
use crate::harness::{App, Delivery, Gate, Lab, LabConfig, ProjectSpec, Service, machine, split, until};
use crate::invariants::{Acknowledged, Live};

/// Where `tests/lab/lab` puts the program with the points.
const PROGRAM: &str = "/lab/kennel-crash";
const DROP_IN: &str = "/run/systemd/system/kennel.service.d";
const CRASH: &str = "crash.conf";
/// Read at each start of kennel; empty but for the start that is to end at a point.
const ARMED: &str = "/run/kennel-crash.env";
/// How long it may take to come to a point.
const REACH_MAX: Duration = Duration::from_secs(60);

/// Databases that wait for their end.
const RENAMED: &str = "select name from postgres_databases where state = 'renamed'";

/// The branch that is deployed and removed.
pub(super) const BRANCH: &str = "topic";
pub(super) const PULL: u64 = 7;
/// The project that the daemon's file ceases to name.
const GUEST: &str = "guest";
const PROJECTS: [&str; 2] = ["hello", "shop"];

pub(super) struct Stage {
    pub(super) lab: Lab,
    valkey: Valkey,
    postgres: Postgres,
    /// Counts versions, so that each is another.
    pub(super) version: u32,
    pub(super) acknowledged: Vec<Acknowledged>,
    /// Sent, and not answered.
    pub(super) unanswered: Vec<Delivery>,
    /// What should be live: each hostname's commit.
    pub(super) wanted: BTreeMap<String, String>,
    pub(super) rest: AtRest,
}

impl Stage {
    /// One service and one site that nothing ever touches.
    pub(super) async fn set() -> Self {
        assert!(Path::new(PROGRAM).exists(), "{PROGRAM} is missing: `tests/lab/lab test crash_points` brings it");
        let (valkey, postgres) = (Valkey::start(32).await, Postgres::start().await);
        let projects = PROJECTS.into_iter().chain([GUEST]).map(ProjectSpec::new);
        let config = LabConfig::of(projects).section(&valkey.section()).section(&postgres.section());
        let lab = Lab::prepare(config.head("prune_projects = true")).await;
        // The machine's points too are the daemon's then.
        split::merge().await;
        fs::create_dir_all(DROP_IN).unwrap();
        let text = format!("[Service]\nExecStart=\nExecStart={PROGRAM} daemon\nRestart=no\nEnvironmentFile=-{ARMED}\n");
        fs::write(Path::new(DROP_IN).join(CRASH), text).unwrap();
        let _ = fs::remove_file(ARMED);
        machine::ok("systemctl", &["daemon-reload"]).await;
        machine::ok("systemctl", &["start", "kennel.service"]).await;
        let rest = AtRest::default();
        let (acknowledged, unanswered, wanted) = (Vec::new(), Vec::new(), BTreeMap::new());
        let mut stage = Self { lab, valkey, postgres, version: 0, acknowledged, unanswered, wanted, rest };
        let steady = App::default().with(Service::small("api", "steady").with_databases()).site("web", "steady");
        stage.push("hello", "main", &steady, &["api", "web"]).await;
        stage.rest().await;
        stage
    }

    /// Has kennel die at a point, starts it again, and looks whether all is well.
    pub(super) async fn play(&mut self, point: Point, hit: u32) {
        let scenario = scenario(point);
        self.prepare(scenario).await;
        let before = self.rest.clone();
        let gates = self.until_dead(scenario, point, hit).await;
        self.start().await;
        self.answer_all().await;
        self.afterwards(scenario, &gates).await;
        self.rest().await;
        if scenario != Scenario::Loss {
            self.rest.expect_same_processes(&before);
        }
        if scenario == Scenario::Remove {
            self.remove_again().await;
        }
    }

    /// Ends the test.
    pub(super) async fn strike(self) {
        fs::remove_file(Path::new(DROP_IN).join(CRASH)).unwrap();
        machine::ok("systemctl", &["daemon-reload"]).await;
        machine::ok("systemctl", &["restart", "kennel.service"]).await;
        self.lab.finish().await;
    }

    /// Has what a scenario begins with.
    async fn prepare(&mut self, scenario: Scenario) {
        let up = self.wanted.contains_key(&host("a"));
        match scenario {
            Scenario::Redeploy
            | Scenario::Remove
            | Scenario::Sick
            | Scenario::Same
            | Scenario::Loss
            | Scenario::Expire
                if !up =>
            {
                self.deploy_and_rest().await;
            }
            Scenario::Create if up => self.remove_and_rest().await,
            // Builds of branches that are there are kept.
            Scenario::Sweep => {
                self.deploy_and_rest().await;
                self.remove_and_rest().await;
            }
            Scenario::Drop => {
                while rows(RENAMED).await.len() < 2 {
                    self.deploy_and_rest().await;
                    self.remove_and_rest().await;
                }
            }
            Scenario::Reload => self.lab.configure_only(&[&PROJECTS[..], &[GUEST]].concat()),
            _ => {}
        }
        if scenario == Scenario::Remove {
            let previews = self.services().filter(|live| is_preview(&live.host));
            for url in previews.filter_map(|live| variable(&live.unit, "VALKEY_URL")) {
                set_a_key(&url).await;
            }
        }
    }

    async fn deploy_and_rest(&mut self) {
        self.deploy().await;
        self.rest().await;
    }

    async fn remove_and_rest(&mut self) {
        self.remove().await;
        self.rest().await;
    }

    /// The live services.
    fn services(&self) -> impl Iterator<Item = &Live> {
        self.rest.rows.live.iter().filter(|live| live.kind == "service")
    }

    /// Plays a scenario until kennel has killed itself at the point.
    async fn until_dead(&mut self, scenario: Scenario, point: Point, hit: u32) -> Vec<Gate> {
        self.kill().await;
        match scenario {
            Scenario::Requeue => {
                self.arm(Point::FetchStarted, 2).await;
                self.deploy().await;
                self.dead(Point::FetchStarted, 2).await;
                for verb in [&["kill", "--signal=KILL"][..], &["stop"]] {
                    // Those that have ended meanwhile are not there.
                    let patterns = ["kennel-fetch-*.service", "kennel-build-*.service"];
                    let _ = machine::run("systemctl", &[verb, &patterns].concat()).await;
                }
            }
            Scenario::Loss => self.lose().await,
            Scenario::Orphans => orphans::put(&self.rest.rows.live[0].store_path).await,
            Scenario::OrphanDatabases => orphans::put_databases(&self.valkey, &self.postgres).await,
            // Those that are left behind do not pile up.
            Scenario::Drop | Scenario::Remove => time::age_renamed().await,
            Scenario::Expire => {
                time::age_uses().await;
                self.wanted.retain(|host, _| !is_preview(host));
            }
            _ => {}
        }
        let mut gates = Vec::new();
        if scenario == Scenario::Adopt {
            gates = [self.lab.gate(), self.lab.gate()].to_vec();
            self.arm(Point::BuildStarted, 2).await;
            self.deploy_behind(&gates).await;
            self.dead(Point::BuildStarted, 2).await;
        }
        if matches!(scenario, Scenario::Start | Scenario::Stop | Scenario::Sweep) {
            for n in 0..hit {
                if scenario == Scenario::Sweep {
                    let gone = time::age_all_but(hit - 1 - n).await;
                    // Of these nothing need be there any more.
                    self.acknowledged.retain(|told| told.build.is_some_and(|build| build > gone));
                }
                self.arm(point, 1).await;
                if scenario == Scenario::Stop {
                    machine::ok("systemctl", &["stop", "--no-block", "kennel.service"]).await;
                }
                self.dead(point, 1).await;
            }
            return gates;
        }
        self.arm(point, hit).await;
        match scenario {
            Scenario::Deploy | Scenario::Create | Scenario::Redeploy => self.deploy().await,
            Scenario::Remove => self.remove().await,
            Scenario::Sick => self.push_sick().await,
            Scenario::Same => self.push_same().await,
            Scenario::Domains => self.push_domains().await,
            Scenario::Cancel => gates = self.cancel().await,
            Scenario::Reload => self.forget_guest(hit).await,
            Scenario::Requeue
            | Scenario::Adopt
            | Scenario::Loss
            | Scenario::Orphans
            | Scenario::OrphanDatabases
            | Scenario::Drop
            | Scenario::Expire => {}
            Scenario::Start | Scenario::Stop | Scenario::Sweep => unreachable!("played above"),
        }
        self.dead(point, hit).await;
        gates
    }

    /// A project that is live goes from the file; the file is read `hit` times, the last time without it.
    async fn forget_guest(&mut self, hit: u32) {
        self.version += 1;
        let app = App::default().site("g", &self.version.to_string());
        self.push(GUEST, "main", &app, &["g"]).await;
        self.rest().await;
        for _ in 1..hit {
            machine::ok("systemctl", &["reload", "kennel.service"]).await;
        }
        self.lab.configure_only(&PROJECTS);
        self.wanted.remove(&format!("g-main.{GUEST}.lab.test"));
        // It dies of it.
        let _ = machine::run("systemctl", &["reload", "kennel.service"]).await;
    }

    /// Takes away what kennel has on the machine for the previews, processes included, and every user and role.
    async fn lose(&self) {
        self.valkey.kill9().await;
        for url in self.services().filter_map(|live| variable(&live.unit, "DATABASE_URL")) {
            let name = url.rsplit_once('/').expect("the URL ends in a name").1;
            self.postgres
                .run(&format!("alter role {name} nologin; alter database {name} allow_connections false"))
                .await;
        }
        let lost = |dir: &str, name: &str| fs::remove_file(Path::new(dir).join(name)).unwrap();
        for live in self.rest.rows.live.iter().filter(|live| is_preview(&live.host)) {
            if live.kind == "service" {
                machine::ok("systemctl", &["stop", &live.unit]).await;
                lost("/run/systemd/system", &live.unit);
                lost("/run/kennel/secrets", &live.unit.trim_start_matches("kennel-").replace(".service", ".env"));
            } else {
                lost("/var/lib/kennel/sites", &live.place);
            }
            lost("/var/lib/kennel/gcroots", &live.artifact);
        }
    }

    /// What is still to be done once kennel runs again.
    async fn afterwards(&mut self, scenario: Scenario, gates: &[Gate]) {
        match scenario {
            Scenario::Adopt => {
                for gate in gates {
                    gate.reached().await;
                    gate.open().await;
                }
            }
            Scenario::Cancel => self.cancel_all().await,
            _ => {}
        }
    }

    // kennel's life and death.

    async fn start(&self) {
        machine::ok("systemctl", &["start", "kennel.service"]).await;
    }

    /// Has kennel gone, without it noticing.
    async fn kill(&self) {
        let _ = machine::run("systemctl", &["kill", "--signal=KILL", "kennel.service"]).await;
        machine::ok("systemctl", &["stop", "kennel.service"]).await;
    }

    /// Starts kennel so that it dies at a point; that may be before it is ready.
    async fn arm(&self, point: Point, hit: u32) {
        fs::write(ARMED, format!("KENNEL_CRASH_AT={}:{hit}\n", point.name())).unwrap();
        machine::run("systemctl", &["start", "kennel.service"]).await;
        fs::remove_file(ARMED).unwrap();
    }

    /// Waits until kennel has killed itself, and nobody else it.
    async fn dead(&self, point: Point, hit: u32) {
        let what = format!("kennel comes to `{}` for the {hit}. time", point.name());
        until(&what, REACH_MAX, async || {
            let properties = "--property=ActiveState,Result,ExecMainStatus";
            let shown = machine::ok("systemctl", &["show", properties, "kennel.service"]).await;
            let says = |line| shown.lines().any(|said| said == line);
            let dead = says("ActiveState=failed") || says("ActiveState=inactive");
            let killed = says("Result=signal") && says("ExecMainStatus=9");
            assert!(!dead || killed, "kennel ended otherwise than by `{}`:\n{shown}", point.name());
            dead.then_some(())
        })
        .await;
    }

    /// Waits until all is well, and remembers how it was.
    pub(super) async fn rest(&mut self) {
        self.rest = at_rest(&self.acknowledged, &self.wanted).await;
        assert!(self.rest.machine.databases.is_some(), "the database servers were looked at");
        // Whoever wrote into a number is gone by now.
        assert_eq!(self.valkey.keyspace().await, [""; 0]);
    }
}

fn host(name: &str) -> String {
    format!("{name}-{BRANCH}.hello.lab.test")
}

/// Does in a number what the service of a preview does.
async fn set_a_key(url: &str) {
    let mut valkey = valkey_as(url).await.expect("the branch may use its number");
    let set = command(&["SET", "dog", "rex"]).query_async(&mut valkey).await;
    let () = set.expect("the branch may write into its number");
}

pub(super) fn is_preview(host: &str) -> bool {
    host.ends_with(&format!("-{BRANCH}.hello.lab.test")) || host.contains(&format!("-pr-{PULL}."))
}
