//! The machine the rounds are played on: what is pushed, what should be live, and who was told what.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use http::Method;
use kennel::crash::Point;
use serde_json::Value;

use super::orphans;
use super::rounds::{Scenario, scenario};
use crate::harness::invariants::{AtRest, at_rest};
use crate::harness::{App, Delivery, Gate, Lab, LabConfig, ProjectSpec, Service, api, delivery, machine, until};
use crate::invariants::Acknowledged;

/// Where `tests/lab/lab` puts the program with the points.
const PROGRAM: &str = "/lab/kennel-crash";
const DROP_IN: &str = "/run/systemd/system/kennel.service.d";
/// Read at each start of kennel; empty but for the start that is to end at a point.
const ARMED: &str = "/run/kennel-crash.env";
/// How long it may take to come to a point.
const REACH_MAX: Duration = Duration::from_secs(20);

/// The branch that is deployed and removed.
const BRANCH: &str = "topic";
const PULL: u64 = 7;

pub(super) struct Stage {
    lab: Lab,
    /// Counts versions, so that each is another.
    version: u32,
    acknowledged: Vec<Acknowledged>,
    /// Sent, and not answered.
    unanswered: Vec<Delivery>,
    /// What should be live: each hostname's commit.
    wanted: BTreeMap<String, String>,
    rest: AtRest,
}

impl Stage {
    /// One service and one site that nothing ever touches.
    pub(super) async fn set() -> Self {
        assert!(Path::new(PROGRAM).exists(), "{PROGRAM} is missing: `tests/lab/lab test crash_points` brings it");
        let lab = Lab::prepare(LabConfig::of(["hello", "shop"].map(ProjectSpec::new))).await;
        fs::create_dir_all(DROP_IN).unwrap();
        let text = format!("[Service]\nExecStart=\nExecStart={PROGRAM} daemon\nRestart=no\nEnvironmentFile=-{ARMED}\n");
        fs::write(Path::new(DROP_IN).join("crash.conf"), text).unwrap();
        let _ = fs::remove_file(ARMED);
        machine::ok("systemctl", &["daemon-reload"]).await;
        machine::ok("systemctl", &["start", "kennel.service"]).await;
        let rest = AtRest::default();
        let (acknowledged, unanswered, wanted) = (Vec::new(), Vec::new(), BTreeMap::new());
        let mut stage = Self { lab, version: 0, acknowledged, unanswered, wanted, rest };
        let steady = App::default().with(Service::small("api", "steady")).site("web", "steady");
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
        fs::remove_dir_all(DROP_IN).unwrap();
        machine::ok("systemctl", &["daemon-reload"]).await;
        machine::ok("systemctl", &["restart", "kennel.service"]).await;
        self.lab.finish().await;
    }

    /// Has what a scenario begins with.
    async fn prepare(&mut self, scenario: Scenario) {
        let up = self.wanted.contains_key(&host("a"));
        match scenario {
            Scenario::Redeploy | Scenario::Remove | Scenario::Sick | Scenario::Same | Scenario::Loss if !up => {
                self.deploy().await;
                self.rest().await;
            }
            _ => {}
        }
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
            _ => {}
        }
        let mut gates = Vec::new();
        if scenario == Scenario::Adopt {
            gates = [self.lab.gate(), self.lab.gate()].to_vec();
            self.arm(Point::BuildStarted, 2).await;
            self.deploy_behind(&gates).await;
            self.dead(Point::BuildStarted, 2).await;
        }
        if scenario == Scenario::Start || scenario == Scenario::Stop {
            for _ in 0..hit {
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
            Scenario::Deploy | Scenario::Redeploy => self.deploy().await,
            Scenario::Remove => self.remove().await,
            Scenario::Sick => self.push_sick().await,
            Scenario::Same => self.push_same().await,
            Scenario::Domains => self.push_domains().await,
            Scenario::Cancel => gates = self.cancel().await,
            Scenario::Requeue | Scenario::Adopt | Scenario::Loss | Scenario::Orphans => {}
            Scenario::Start | Scenario::Stop => unreachable!("played above"),
        }
        self.dead(point, hit).await;
        gates
    }

    /// Takes away what kennel has on the machine for the previews, processes included.
    async fn lose(&self) {
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
    async fn rest(&mut self) {
        self.rest = at_rest(&self.acknowledged, &self.wanted).await;
    }

    // What the forge says.

    /// Tells kennel, and notes what it answers. One that is not answered is sent again by [`Self::answer_all`].
    async fn tell(&mut self, delivery: Delivery) {
        match api::try_deliver(&delivery).await {
            Ok(answer) => self.note(&delivery, &answer),
            Err(_) => self.unanswered.push(delivery),
        }
    }

    fn note(&mut self, delivery: &Delivery, answer: &crate::harness::http::Answer) {
        assert!(answer.status.is_success(), "{}: {}", answer.status, answer.text());
        let build = answer.json::<Value>()["build"].as_i64();
        let (project, delivery) = (delivery.project.clone(), delivery.id.clone());
        self.acknowledged.push(Acknowledged { project, delivery, build });
    }

    /// Sends what was not answered once more, as whoever looks at a forge's list of failed deliveries does.
    async fn answer_all(&mut self) {
        for delivery in std::mem::take(&mut self.unanswered) {
            let answer = api::deliver(&delivery).await;
            self.note(&delivery, &answer);
        }
    }

    async fn push(&mut self, project: &str, branch: &str, app: &App, lives: &[&str]) {
        let commit = self.lab.repo(project).commit(branch, &app.files(), "Change something");
        let delivery = self.lab.push_delivery(project, branch, &commit);
        for name in lives {
            self.wanted.insert(format!("{name}-{branch}.{project}.lab.test"), commit.clone());
        }
        self.tell(delivery).await;
    }

    /// The next version of the branch, and of the pull request.
    async fn deploy(&mut self) {
        self.deploy_behind(&[]).await;
    }

    /// The same, the build of each waiting at a gate, if there is one for it.
    async fn deploy_behind(&mut self, gates: &[Gate]) {
        self.version += 1;
        let version = self.version.to_string();
        let app = App::default().with(behind(Service::small("a", &version), gates.first()));
        let app = app.with(Service::small("b", &version)).site("w", &version);
        self.push("hello", BRANCH, &app, &["a", "b", "w"]).await;
        let app = App::default().site("v", &version).site_gate(gates.get(1));
        let commit = self.lab.repo("hello").commit("main", &app.files(), "Improve things");
        self.wanted.insert(format!("v-pr-{PULL}.hello.lab.test"), commit.clone());
        self.lab.repo("hello").pull_request(PULL, &commit);
        self.pull("synchronized", &commit).await;
    }

    async fn pull(&mut self, action: &str, commit: &str) {
        let payload = delivery::pull_request("hello", action, PULL, commit, false);
        let delivery = self.lab.delivery("hello", "pull_request", &payload);
        self.tell(delivery).await;
    }

    async fn remove(&mut self) {
        self.wanted.retain(|host, _| !is_preview(host));
        self.lab.repo("hello").delete(BRANCH);
        let delivery = self.lab.delivery("hello", "delete", &delivery::delete("hello", BRANCH));
        self.tell(delivery).await;
        self.pull("closed", &"0".repeat(40)).await;
    }

    /// Teardown twice is teardown once: asked for again, it changes nothing.
    async fn remove_again(&mut self) {
        let before = self.rest.clone();
        let again = self.lab.delivery("hello", "delete", &delivery::delete("hello", BRANCH));
        api::deliver(&again).await.expect(200);
        let payload = delivery::pull_request("hello", "closed", PULL, &"0".repeat(40), false);
        api::deliver(&self.lab.delivery("hello", "pull_request", &payload)).await.expect(200);
        let ended = api::deployments().await.into_iter().find(|deployment| deployment.branch == BRANCH);
        let ended = ended.expect("the branch had deployments").id;
        api::ask(Method::POST, &format!("/deployments/{ended}/teardown")).await.expect(409);
        self.rest().await;
        assert_eq!(self.rest.machine, before.machine);
        assert_eq!(self.rest.commits(), before.commits());
        self.rest.expect_same_processes(&before);
    }

    /// Neither service stays up, so what is live stays; the site goes live.
    async fn push_sick(&mut self) {
        self.version += 1;
        let version = self.version.to_string();
        let sick = |name| Service::small(name, &version).mode("exit");
        let app = App::default().with(sick("a")).with(sick("b")).site("w", &version);
        self.push("hello", BRANCH, &app, &["w"]).await;
    }

    /// Another commit of the same content: what is live stays.
    async fn push_same(&mut self) {
        let commit = self.lab.repo("hello").commit_nothing(BRANCH);
        let delivery = self.lab.push_delivery("hello", BRANCH, &commit);
        self.tell(delivery).await;
    }

    async fn push_domains(&mut self) {
        self.version += 1;
        let n = self.version;
        let service = |name: &str| {
            let domain = format!("custom_domain = \"{name}-{n}.example.org\"");
            Service::small(name, &n.to_string()).settings(&["drain_secs = 0", &domain])
        };
        let app = App::default().with(service("d")).with(service("e"));
        self.push("shop", "main", &app, &["d", "e"]).await;
    }

    /// Two builds that would never end, cancelled by the operator.
    async fn cancel(&mut self) -> Vec<Gate> {
        let gates = [self.lab.gate(), self.lab.gate()].to_vec();
        for (branch, gate) in ["slow-1", "slow-2"].into_iter().zip(&gates) {
            self.push("hello", branch, &App::default().with(Service::small("a", "slow").behind(gate)), &[]).await;
            gate.reached().await;
        }
        self.cancel_running().await;
        gates
    }

    async fn cancel_running(&self) {
        let Ok(builds) = api::try_ask(Method::GET, "/builds").await else { return };
        let builds: Vec<api::Build> = builds.json();
        for build in builds.into_iter().filter(|build| !build.has_ended()) {
            let _ = api::try_ask(Method::POST, &format!("/builds/{}/cancel", build.id)).await;
        }
    }

    /// Asks again for what was perhaps not heard, and gives the branches up.
    async fn cancel_all(&mut self) {
        self.cancel_running().await;
        for branch in ["slow-1", "slow-2"] {
            self.lab.repo("hello").delete(branch);
            let delivery = self.lab.delivery("hello", "delete", &delivery::delete("hello", branch));
            self.tell(delivery).await;
        }
    }
}

fn behind(service: Service, gate: Option<&Gate>) -> Service {
    match gate {
        Some(gate) => service.behind(gate),
        None => service,
    }
}

fn host(name: &str) -> String {
    format!("{name}-{BRANCH}.hello.lab.test")
}

fn is_preview(host: &str) -> bool {
    host.ends_with(&format!("-{BRANCH}.hello.lab.test")) || host.contains(&format!("-pr-{PULL}."))
}
