//! The whole daemon in one process: real database, sockets and router, over a machine in memory.

mod client;
mod script;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use hmac::{Hmac, KeyInit as _, Mac as _};
use http_body_util::Full;
use kennel::daemon::{Parts, Running};
use kennel::deployer::Interrupt;
use kennel::host::fake::{FakeMachine, Snapshot};
use kennel::model::{BuildState, DeploymentState};
use kennel::sockets::Sockets;
use kennel::store::{BuildView, DeploymentView, Scope, Store};
use serde_json::json;
use sha2::Sha256;
use tempfile::TempDir;

use client::send;
pub(crate) use script::{Script, commit, store_path};
use script::{Scripts, work};

use crate::invariants::{self, Acknowledged, Machine, Rows};

/// The project of these tests.
pub(crate) const PROJECT: &str = "shop";
const TOKEN: &str = "the operator's token";
const SECRET: &str = "a secret of the test's own";
const PATIENCE: Duration = Duration::from_secs(20);

/// A daemon, the machine it works on, and the forge's side of the webhook.
pub(crate) struct Harness {
    dir: TempDir,
    /// The machine; it outlives the daemon.
    pub(crate) machine: FakeMachine,
    scripts: Scripts,
    daemon: Option<Running>,
    deliveries: u32,
    acknowledged: Mutex<Vec<Acknowledged>>,
    /// Lines of `[router]` in the daemon's file.
    router: &'static str,
}

impl Harness {
    /// A fresh machine with a running daemon.
    pub(crate) async fn start() -> Self {
        Self::start_with(Interrupt::never()).await
    }

    /// The same, asking services for their health every second.
    pub(crate) async fn monitored() -> Self {
        let mut harness = Self::prepare();
        harness.router = "monitor_interval = \"1s\"";
        harness.boot(Interrupt::never()).await;
        harness
    }

    /// The same, with something happening between a step's effect and its record.
    pub(crate) async fn start_with(interrupt: Interrupt) -> Self {
        let mut harness = Self::prepare();
        harness.boot(interrupt).await;
        harness
    }

    fn prepare() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("secret"), SECRET).unwrap();
        std::fs::write(dir.path().join("token"), TOKEN).unwrap();
        let scripts = Scripts::default();
        let machine = FakeMachine::new({
            let scripts = scripts.clone();
            move |job| work(&scripts, job)
        });
        let (daemon, deliveries, acknowledged) = (None, 0, Mutex::default());
        Self { dir, machine, scripts, daemon, deliveries, acknowledged, router: "" }
    }

    /// Starts the daemon on what there is.
    pub(crate) async fn boot(&mut self, interrupt: Interrupt) {
        let text = config_text(self.dir.path()).replace("[projects.", &format!("{}\n[projects.", self.router));
        let config = kennel::config::parse(&text).unwrap();
        let parts = Parts {
            machine: Arc::new(self.machine.clone()),
            own_dir: config.state_dir.clone(),
            socket: self.dir.path().join("kennel.sock"),
            sockets: Sockets::default(),
            store_dir: self.dir.path().join("store"),
            interrupt,
        };
        self.daemon = Some(Running::start(config, parts).await.unwrap());
    }

    /// Ends the daemon where it stands, as a kill would.
    pub(crate) fn crash(&mut self) {
        self.daemon = None;
        self.machine.clear_faults();
    }

    /// The daemon itself.
    pub(crate) fn daemon(&self) -> &Running {
        self.daemon.as_ref().expect("the daemon runs")
    }

    /// A file of the operator's.
    pub(crate) fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// Has the daemon read its file again, with more lines in the project's table.
    pub(crate) async fn reconfigure(&self, lines: &str) {
        self.configure("", lines).await;
    }

    /// The same, with lines before the projects as well.
    pub(crate) async fn configure(&self, daemon: &str, project: &str) {
        let text = config_text(self.dir.path()).replace("[projects.", &format!("{daemon}\n[projects."));
        let path = self.file("config.toml", &format!("{text}{project}\n"));
        self.daemon().reload(&path).await.unwrap();
    }

    /// Has the daemon read its file again, without the project, and with what is given in its place.
    pub(crate) async fn forget_project(&self, instead: &str) {
        let text = config_text(self.dir.path());
        let (before, _) = text.split_once("[projects").expect("the file names a project");
        let path = self.dir.path().join("config.toml");
        std::fs::write(&path, format!("{instead}{before}")).unwrap();
        self.daemon().reload(&path).await.unwrap();
    }

    /// The rows.
    pub(crate) fn store(&self) -> &Store {
        self.daemon().store()
    }

    /// Where the API and the webhook listen.
    pub(crate) fn api_addr(&self) -> SocketAddr {
        self.daemon().api_addr
    }

    /// Where the router listens.
    pub(crate) fn router(&self) -> SocketAddr {
        self.daemon().router_addr
    }

    /// Puts a page where the store path of that version of `web` lies.
    pub(crate) fn make_site(&self, version: &str, page: &str) {
        let path = store_path("web", version);
        let dir = self.dir.path().join("store").join(path.as_str().trim_start_matches("/nix/store/"));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("index.html"), page).unwrap();
    }

    /// Says what a commit builds.
    pub(crate) fn script(&self, commit: &str, script: Script) {
        self.scripts.lock().unwrap().insert(commit.to_owned(), script);
    }

    /// Pushes a commit to a branch; returns status and answer.
    pub(crate) async fn push(&mut self, branch: &str, commit: &str) -> (u16, serde_json::Value) {
        self.deliveries += 1;
        let delivery = format!("delivery-{}", self.deliveries);
        self.push_as(&delivery, branch, commit).await
    }

    /// Pushes with a delivery id of one's own.
    pub(crate) async fn push_as(&self, delivery: &str, branch: &str, commit: &str) -> (u16, serde_json::Value) {
        let body = json!({
            "ref": format!("refs/heads/{branch}"),
            "before": "0".repeat(40),
            "after": commit,
            "repository": {"full_name": "me/shop"},
            "head_commit": {"id": commit, "message": "A change"},
        });
        self.deliver("push", delivery, &body.to_string()).await
    }

    /// Deletes a branch.
    pub(crate) async fn delete(&mut self, branch: &str) -> (u16, serde_json::Value) {
        self.push(branch, &"0".repeat(40)).await
    }

    /// Delivers a body, signed.
    pub(crate) async fn deliver(&self, event: &str, delivery: &str, body: &str) -> (u16, serde_json::Value) {
        let signature = signature(body);
        let headers = [
            ("content-type", "application/json"),
            ("x-forgejo-event", event),
            ("x-forgejo-delivery", delivery),
            ("x-forgejo-signature", &signature),
        ];
        let (status, answer) = self.post(&format!("/webhook/{PROJECT}"), &headers, body.to_owned().into()).await;
        let build = answer["build"].as_i64();
        if status == 202 || (status == 200 && build.is_some()) {
            let (project, delivery) = (PROJECT.to_owned(), delivery.to_owned());
            self.acknowledged.lock().unwrap().push(Acknowledged { project, delivery, build });
        }
        (status, answer)
    }

    /// Posts to the API's port.
    pub(crate) async fn post(&self, path: &str, headers: &[(&str, &str)], body: Bytes) -> (u16, serde_json::Value) {
        let mut request = http::Request::post(path).header("host", self.daemon().api_addr.to_string());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (status, body) = send(self.daemon().api_addr, request.body(Full::new(body)).unwrap()).await;
        (status, serde_json::from_slice(&body).unwrap_or_default())
    }

    /// Stops the daemon in order, and starts it again.
    pub(crate) async fn restart(&mut self) {
        self.daemon.take().expect("the daemon runs").stop().await;
        self.boot(Interrupt::never()).await;
    }

    /// What the API answers an operator.
    pub(crate) async fn api(&self, path: &str) -> serde_json::Value {
        self.ask(http::Method::GET, path).await
    }

    /// The same, when something is to be done.
    pub(crate) async fn ask(&self, method: http::Method, path: &str) -> serde_json::Value {
        let request = http::Request::builder().method(method).uri(path);
        let request = request.header("host", "127.0.0.1").header("authorization", format!("Bearer {TOKEN}"));
        let (status, body) = send(self.daemon().api_addr, request.body(Full::new(Bytes::new())).unwrap()).await;
        assert_eq!(status, 200, "{path}: {}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).unwrap()
    }

    /// GETs from a host through the router.
    pub(crate) async fn get(&self, host: &str, path: &str) -> (u16, String) {
        let request = http::Request::get(path).header("host", host).body(Full::new(Bytes::new())).unwrap();
        let (status, body) = send(self.router(), request).await;
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    /// The builds, newest first.
    pub(crate) async fn builds(&self) -> Vec<BuildView> {
        self.store().list_builds(None, Scope::All, 100).await.unwrap()
    }

    /// All deployments, newest first.
    pub(crate) async fn deployments(&self) -> Vec<DeploymentView> {
        self.store().list_deployments(None, Scope::All, 100).await.unwrap()
    }

    /// Waits until the rows are as wanted.
    pub(crate) async fn until(&self, what: &str, wanted: impl AsyncFn(&Self) -> bool) {
        let waited = tokio::time::timeout(PATIENCE, async {
            while !wanted(self).await {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        if waited.is_err() {
            panic!(
                "not {what}:\n{:#?}\n{:#?}\n{:#?}",
                self.builds().await,
                self.deployments().await,
                self.machine.snapshot()
            );
        }
    }

    /// Waits until nothing is under way any more.
    pub(crate) async fn until_quiet(&self) {
        self.until("quiet", async |harness| {
            let builds_end = harness.builds().await.iter().all(|build| build.state.is_terminal());
            let settled = |deployment: &DeploymentView| match deployment.state {
                DeploymentState::Live => deployment.step.is_none(),
                state => state.is_terminal(),
            };
            builds_end
                && harness.deployments().await.iter().all(settled)
                && harness.store().due_teardowns().await.unwrap().is_empty()
        })
        .await;
    }

    /// Pushes a commit and waits for what becomes of it.
    pub(crate) async fn deploy(&mut self, branch: &str, commit: &str, script: Script) {
        self.script(commit, script);
        let (status, answer) = self.push(branch, commit).await;
        assert_eq!(status, 202, "{answer}");
        self.until_quiet().await;
    }

    /// The states of the builds, oldest first.
    pub(crate) async fn build_states(&self) -> Vec<BuildState> {
        self.builds().await.iter().rev().map(|build| build.state).collect()
    }

    /// The states of the deployments, oldest first.
    pub(crate) async fn deployment_states(&self) -> Vec<DeploymentState> {
        self.deployments().await.iter().rev().map(|deployment| deployment.state).collect()
    }

    /// Deliveries of which there is a row: `<project>/<id>`.
    pub(crate) async fn recorded_deliveries(&self) -> BTreeSet<String> {
        let rows = Rows::read(&self.dir.path().join("state/kennel.db")).await.unwrap();
        rows.deliveries.into_keys().collect()
    }

    /// Deliveries whose rows need not be there at the end, though they were acknowledged.
    pub(crate) fn expect_no_more(&self, forgotten: BTreeSet<String>) {
        let mut acknowledged = self.acknowledged.lock().unwrap();
        acknowledged.retain(|kept| !forgotten.contains(&format!("{}/{}", kept.project, kept.delivery)));
    }

    /// What holds of kennel at rest holds now, or soon.
    pub(crate) async fn assert_invariants(&self) {
        let mut faults = Vec::new();
        let held = tokio::time::timeout(PATIENCE, async {
            loop {
                let rows = Rows::read(&self.dir.path().join("state/kennel.db")).await.unwrap();
                let acknowledged = self.acknowledged.lock().unwrap().clone();
                faults = invariants::faults(&rows, &seen(&self.machine.snapshot()), &acknowledged);
                if faults.is_empty() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        assert!(held.is_ok(), "{}", faults.join("\n"));
    }

    /// Ends the test: nothing is under way, everything on the machine has its row, and the daemon stops in order.
    pub(crate) async fn finish(mut self) {
        self.until_quiet().await;
        self.assert_invariants().await;
        self.daemon.take().expect("the daemon runs").stop().await;
    }
}

/// The signature of a body, as the project's forge makes it.
pub(crate) fn signature(body: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
    mac.update(body.as_bytes());
    hex::encode(mac.finalize().into_bytes())
}

/// What lies on the machine in memory, in words.
fn seen(machine: &Snapshot) -> Machine {
    fn words<T: ToString>(things: &[T]) -> BTreeSet<String> {
        things.iter().map(ToString::to_string).collect()
    }
    let roots = machine.gc_roots.iter().map(|((build, name), path)| (format!("{build}-{name}"), path.to_string()));
    let links = machine.site_links.iter().map(|((p, slug, site), to)| (format!("{p}/{slug}/{site}"), to.to_string()));
    Machine {
        units: words(&machine.units),
        unit_files: words(&machine.unit_files),
        env_files: words(&machine.env_files),
        gc_roots: roots.collect(),
        site_links: links.collect(),
        data_dirs: machine.data_dirs.iter().map(|(p, slug, service)| format!("{p}/{slug}/{service}")).collect(),
        work_dirs: words(&machine.work_dirs),
        log_dirs: words(&machine.log_dirs),
        databases: None,
    }
}

fn config_text(dir: &Path) -> String {
    format!(
        r#"
base_domain = "example.com"
control_domain = "kennel.example.com"
state_dir = "{dir}/state"
[api]
listen = "127.0.0.1:0"
token_file = "{dir}/token"
[router]
http = "127.0.0.1:0"
[projects.{PROJECT}]
repo_url = "https://forge.example.com/me/shop.git"
repo_type = "forgejo"
webhook_secret_file = "{dir}/secret"
"#,
        dir = dir.display()
    )
}
