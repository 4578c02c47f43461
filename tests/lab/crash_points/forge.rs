//! What the forge and the operator say to kennel: pushes, removals, cancels, and what they were answered.

use http::Method;
use serde_json::Value;

use super::stage::{BRANCH, PULL, Stage, is_preview};
use crate::harness::http::Answer;
use crate::harness::{App, Delivery, Gate, Service, api, delivery};
use crate::invariants::Acknowledged;

impl Stage {
    /// Tells kennel, and notes what it answers. One that is not answered is sent again by [`Self::answer_all`].
    pub(super) async fn tell(&mut self, delivery: Delivery) {
        match api::try_deliver(&delivery).await {
            Ok(answer) => self.note(&delivery, &answer),
            Err(_) => self.unanswered.push(delivery),
        }
    }

    fn note(&mut self, delivery: &Delivery, answer: &Answer) {
        assert!(answer.status.is_success(), "{}: {}", answer.status, answer.text());
        let build = answer.json::<Value>()["build"].as_i64();
        let (project, delivery) = (delivery.project.clone(), delivery.id.clone());
        self.acknowledged.push(Acknowledged { project, delivery, build });
    }

    /// Sends what was not answered once more, as whoever looks at a forge's list of failed deliveries does.
    pub(super) async fn answer_all(&mut self) {
        for delivery in std::mem::take(&mut self.unanswered) {
            let answer = api::deliver(&delivery).await;
            self.note(&delivery, &answer);
        }
    }

    pub(super) async fn push(&mut self, project: &str, branch: &str, app: &App, lives: &[&str]) {
        let commit = self.lab.repo(project).commit(branch, &app.files(), "Change something");
        let delivery = self.lab.push_delivery(project, branch, &commit);
        for name in lives {
            self.wanted.insert(format!("{name}-{branch}.{project}.lab.test"), commit.clone());
        }
        self.tell(delivery).await;
    }

    /// The next version of the branch, and of the pull request.
    pub(super) async fn deploy(&mut self) {
        self.deploy_behind(&[]).await;
    }

    /// The same, the build of each waiting at a gate, if there is one for it.
    pub(super) async fn deploy_behind(&mut self, gates: &[Gate]) {
        self.version += 1;
        let version = self.version.to_string();
        let service = |name| Service::small(name, &version).with_databases();
        let app = App::default().with(behind(service("a"), gates.first())).site("w", &version);
        self.push("hello", BRANCH, &app, &["a", "w"]).await;
        let app = App::default().with(service("b")).site("v", &version).site_gate(gates.get(1));
        self.push_pull(&app, &["b", "v"]).await;
    }

    async fn push_pull(&mut self, app: &App, lives: &[&str]) {
        let commit = self.lab.repo("hello").commit("main", &app.files(), "Improve things");
        for name in lives {
            self.wanted.insert(format!("{name}-pr-{PULL}.hello.lab.test"), commit.clone());
        }
        self.lab.repo("hello").pull_request(PULL, &commit);
        self.pull("synchronized", &commit).await;
    }

    async fn pull(&mut self, action: &str, commit: &str) {
        let payload = delivery::pull_request("hello", action, PULL, commit, false);
        let delivery = self.lab.delivery("hello", "pull_request", &payload);
        self.tell(delivery).await;
    }

    pub(super) async fn remove(&mut self) {
        self.wanted.retain(|host, _| !is_preview(host));
        self.lab.repo("hello").delete(BRANCH);
        let delivery = self.lab.delivery("hello", "delete", &delivery::delete("hello", BRANCH));
        self.tell(delivery).await;
        self.pull("closed", &"0".repeat(40)).await;
    }

    /// Teardown twice is teardown once: asked for again, it changes nothing.
    pub(super) async fn remove_again(&mut self) {
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

    /// Neither service stays up, so what is live stays; the sites go live.
    pub(super) async fn push_sick(&mut self) {
        self.version += 1;
        let version = self.version.to_string();
        let sick = |name| Service::small(name, &version).with_databases().mode("exit");
        self.push("hello", BRANCH, &App::default().with(sick("a")).site("w", &version), &["w"]).await;
        self.push_pull(&App::default().with(sick("b")).site("v", &version), &["v"]).await;
    }

    /// Another commit of the same content: what is live stays.
    pub(super) async fn push_same(&mut self) {
        let commit = self.lab.repo("hello").commit_nothing(BRANCH);
        let delivery = self.lab.push_delivery("hello", BRANCH, &commit);
        self.tell(delivery).await;
    }

    pub(super) async fn push_domains(&mut self) {
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
    pub(super) async fn cancel(&mut self) -> Vec<Gate> {
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
    pub(super) async fn cancel_all(&mut self) {
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
