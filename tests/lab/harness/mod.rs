//! One kennel on one machine: [`Lab::start`] begins from nothing, [`Lab::finish`] has kennel give everything back and
//! looks whether it did.

pub(crate) mod api;
pub(crate) mod app;
pub(crate) mod config;
pub(crate) mod databases;
pub(crate) mod delivery;
pub(crate) mod dns;
pub(crate) mod forge;
pub(crate) mod gate;
pub(crate) mod http;
pub(crate) mod invariants;
pub(crate) mod leftovers;
pub(crate) mod machine;
pub(crate) mod pebble;
pub(crate) mod repo;
pub(crate) mod sockets;
pub(crate) mod split;
pub(crate) mod ssh;
mod until;
pub(crate) mod visitor;

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ::http::Method;
use serde_json::Value;

pub(crate) use api::{Build, Deployment};
pub(crate) use app::{App, Service};
pub(crate) use config::{LabConfig, ProjectSpec};
pub(crate) use delivery::{Delivery, Style};
pub(crate) use gate::Gate;
pub(crate) use until::until;

use forge::Forge;
use gate::Gates;
use http::{Answer, request, send};
use repo::Repo;

/// Where kennel's router listens.
pub(crate) const ROUTER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8080);
/// Where kennel's configuration and the operator's secrets lie.
const CONFIG_DIR: &str = "/etc/kennel";
/// Where services look for the gates they wait for.
const GATES_DIR: &str = "/srv/gates";
/// How long a build of a test may take.
pub(crate) const BUILD_MAX: Duration = Duration::from_secs(60);
/// How long a deployment may take that nothing holds up.
pub(crate) const DEPLOY_MAX: Duration = Duration::from_secs(30);

/// A running kennel with a forge beside it.
pub(crate) struct Lab {
    pub(crate) forge: Forge,
    gates: Gates,
    config: LabConfig,
    projects: BTreeMap<String, Project>,
    cursor: String,
    finished: bool,
}

/// A project that kennel serves.
pub(crate) struct Project {
    pub(crate) style: Style,
    pub(crate) secret: String,
    pub(crate) repo: Repo,
}

/// A push that kennel accepted.
#[derive(Debug, Clone)]
pub(crate) struct Pushed {
    pub(crate) commit: String,
    pub(crate) build: i64,
}

impl Lab {
    /// kennel with one project, called `hello`.
    pub(crate) async fn hello() -> Self {
        Self::start(LabConfig::hello()).await
    }

    /// Removes whatever was there, and starts kennel with this configuration.
    pub(crate) async fn start(config: LabConfig) -> Self {
        let lab = Self::prepare(config).await;
        machine::ok("systemctl", &["start", "kennel.service"]).await;
        lab
    }

    /// As [`Self::start`], without starting kennel.
    pub(crate) async fn prepare(config: LabConfig) -> Self {
        let inside = std::env::var("KENNEL_LAB").is_ok_and(|value| value == "1");
        assert!(inside, "these tests take a whole machine: run them with `tests/lab/lab test`");
        leftovers::wipe().await;
        if split::is_unwanted() {
            split::merge().await;
        } else {
            split::install().await;
        }
        for dir in [GATES_DIR, "/srv/git"] {
            let _ = fs::remove_dir_all(dir);
            fs::create_dir_all(dir).unwrap();
        }
        Self::beside(config).await
    }

    /// The same project and repositories as before, beside a kennel that runs already.
    pub(crate) async fn resume(config: LabConfig) -> Self {
        let lab = Self::beside(config).await;
        machine::ok("systemctl", &["reload", "kennel.service"]).await;
        lab
    }

    async fn beside(config: LabConfig) -> Self {
        let forge = Forge::start(Path::new("/srv/git")).await;
        let projects = config.projects.iter().map(|spec| {
            let (style, repo) = (spec.style, forge.create(&spec.name));
            (spec.name.clone(), Project { style, secret: format!("hush-{}", spec.name), repo })
        });
        let projects = projects.collect();
        let said = machine::ok("journalctl", &["--lines=0", "--quiet", "--show-cursor"]).await;
        let cursor = said.trim().strip_prefix("-- cursor: ").expect("the journal has an end").to_owned();
        let lab = Self { forge, gates: Gates::start().await, config, projects, cursor, finished: false };
        lab.write_config();
        lab
    }

    fn write_config(&self) {
        let dir = Path::new(CONFIG_DIR);
        for spec in &self.config.projects {
            write_own_secret(&spec.secret_file(dir), &self.projects[&spec.name].secret);
        }
        fs::write(dir.join("config.toml"), config::render(&self.config, dir, |name| self.forge.url(name))).unwrap();
    }

    /// Has the daemon's file name these projects and no others; kennel is not told.
    pub(crate) fn configure_only(&mut self, projects: &[&str]) {
        self.config.projects = projects.iter().map(|name| ProjectSpec::new(name)).collect();
        self.write_config();
    }

    #[track_caller]
    pub(crate) fn project(&self, name: &str) -> &Project {
        self.projects.get(name).unwrap_or_else(|| panic!("this lab has no project `{name}`"))
    }

    pub(crate) fn repo(&self, project: &str) -> &Repo {
        &self.project(project).repo
    }

    /// A gate for a build to wait at.
    pub(crate) fn gate(&self) -> Gate {
        self.gates.gate()
    }

    /// Commits a repository's content, pushes it to a branch, and tells kennel.
    pub(crate) async fn push(&self, project: &str, branch: &str, app: &App) -> Pushed {
        let repo = self.repo(project);
        let commit = repo.commit(branch, &app.files(), "Change something");
        self.push_commit(project, branch, &commit).await
    }

    /// Points a branch at a commit, and tells kennel.
    pub(crate) async fn push_commit(&self, project: &str, branch: &str, commit: &str) -> Pushed {
        let answer = api::deliver(&self.push_delivery(project, branch, commit)).await.expect(202);
        let build = answer.json::<Value>()["build"].as_i64().expect("a push is answered with its build");
        Pushed { commit: commit.to_owned(), build }
    }

    /// Points a branch at a commit; gives what the forge would tell kennel.
    pub(crate) fn push_delivery(&self, project: &str, branch: &str, commit: &str) -> Delivery {
        let repo = self.repo(project);
        let before = repo.tip(branch);
        repo.push(branch, commit);
        self.delivery(project, "push", &delivery::push(project, branch, before.as_deref(), commit))
    }

    /// A payload, signed as the project's forge signs.
    pub(crate) fn delivery(&self, project: &str, event: &str, payload: &Value) -> Delivery {
        let Project { style, secret, .. } = self.project(project);
        style.delivery(project, secret, event, payload)
    }

    /// Deletes a branch at the forge, and tells kennel.
    pub(crate) async fn delete_branch(&self, project: &str, branch: &str) -> Answer {
        self.repo(project).delete(branch);
        api::deliver(&self.delivery(project, "delete", &delivery::delete(project, branch))).await
    }

    /// Tells kennel of a pull request.
    pub(crate) async fn pull(&self, project: &str, action: &str, number: u64, commit: &str) -> Answer {
        self.repo(project).pull_request(number, commit);
        let payload = delivery::pull_request(project, action, number, commit, false);
        api::deliver(&self.delivery(project, "pull_request", &payload)).await
    }

    /// Waits for the end of a build, whatever it is.
    pub(crate) async fn ended(&self, build: i64) -> Build {
        until(&format!("build {build} ends"), BUILD_MAX, async || {
            Some(api::build(build).await).filter(Build::has_ended)
        })
        .await
    }

    /// Waits for the end of a build, which must be this one.
    pub(crate) async fn ended_as(&self, build: i64, state: &str) -> Build {
        let ended = self.ended(build).await;
        assert_eq!(ended.state, state, "build {build} says: {:?}\n{:#?}", ended.reason, ended.artifacts);
        ended
    }

    /// Waits until a deployment of a build has settled; tells as what.
    pub(crate) async fn settled(&self, build: i64, service: &str) -> Deployment {
        let what = format!("the deployment of `{service}` of build {build} settles");
        until(&what, DEPLOY_MAX, async || {
            let detail = api::build(build).await;
            let ended = detail.has_ended();
            let deployment = detail.deployments.into_iter().find(|deployment| deployment.service == service);
            assert!(!ended || deployment.is_some(), "build {build} is `{}` ({:?})", detail.state, detail.reason);
            deployment.filter(Deployment::has_settled)
        })
        .await
    }

    /// Waits until a build's version of a service is live.
    pub(crate) async fn live(&self, build: i64, service: &str) -> Deployment {
        let deployment = self.settled(build, service).await;
        assert_eq!(deployment.state, "live", "{:?}", deployment.reason);
        deployment
    }

    /// Pushes, and waits until all of it is live; gives the deployments by name.
    pub(crate) async fn deploy(&self, project: &str, branch: &str, app: &App) -> BTreeMap<String, Deployment> {
        let pushed = self.push(project, branch, app).await;
        self.ended_as(pushed.build, "success").await;
        let mut live = BTreeMap::new();
        for name in app.names() {
            live.insert(name.to_owned(), self.live(pushed.build, name).await);
        }
        live
    }

    /// As [`Self::deploy`], of a repository whose only service is `api`.
    pub(crate) async fn deploy_api(&self, project: &str, branch: &str, app: &App) -> Deployment {
        self.deploy(project, branch, app).await.remove("api").expect("the repository has an `api`")
    }

    /// Waits until a deployment is in a state and nothing is left to do for it.
    pub(crate) async fn becomes(&self, deployment: i64, state: &str) -> Deployment {
        until(&format!("deployment {deployment} becomes `{state}`"), DEPLOY_MAX, async || {
            Some(api::deployment(deployment).await).filter(|now| now.state == state && now.step.is_none())
        })
        .await
    }

    /// What visitors get.
    pub(crate) async fn visit(&self, host: &str, path: &str) -> Answer {
        let answer = send(ROUTER, request(Method::GET, host, path, "")).await;
        answer.unwrap_or_else(|err| panic!("the router did not answer http://{host}{path}: {err}"))
    }

    /// The version of a test's service that visitors get.
    pub(crate) async fn version(&self, host: &str) -> String {
        let about: Value = self.visit(host, "/").await.expect(200).json();
        about["version"].as_str().expect("the service tells its version").to_owned()
    }

    /// A file for a service to wait for, of mode `gated:<path>`.
    pub(crate) fn service_gate(&self, name: &str) -> PathBuf {
        Path::new(GATES_DIR).join(name)
    }

    /// Kills the daemon, and waits until systemd has brought it back.
    pub(crate) async fn kill9(&self) {
        let before = machine::main_pid("kennel.service").await;
        // A kennel that was killed often is brought back ever later.
        machine::ok("systemctl", &["reset-failed", "kennel.service"]).await;
        machine::ok("kill", &["-9", &before.to_string()]).await;
        until("kennel comes back after a kill -9", Duration::from_secs(15), async || {
            let pid = machine::property("kennel.service", "MainPID").await;
            let back = pid != before.to_string() && pid != "0";
            (back && api::try_ask(Method::GET, "/healthz").await.is_ok()).then_some(())
        })
        .await;
    }

    pub(crate) async fn restart(&self) {
        machine::ok("systemctl", &["restart", "kennel.service"]).await;
    }

    /// What kennel itself wrote to the journal in this test.
    pub(crate) async fn journal(&self) -> String {
        self.journal_with(&[]).await
    }

    /// The entries of it that have these fields.
    pub(crate) async fn journal_with(&self, fields: &[&str]) -> String {
        machine::kennel_journal(&self.cursor, fields).await
    }

    /// The argument that has `journalctl` begin with this test.
    pub(crate) fn after(&self) -> String {
        format!("--after-cursor={}", self.cursor)
    }

    /// What anybody wrote to the journal in this test, with all its fields.
    pub(crate) async fn everything_journalled(&self) -> String {
        machine::ok("journalctl", &["--sync"]).await;
        machine::ok("journalctl", &["--quiet", "--no-pager", "--output=verbose", "--all", &self.after()]).await
    }

    /// Has kennel tear everything down, and looks whether anything is left (promise 5).
    pub(crate) async fn finish(mut self) {
        leftovers::tear_down(&self).await;
        leftovers::expect_none().await;
        invariants::at_rest(&[], &BTreeMap::new()).await;
        let journal = self.journal().await;
        assert!(!journal.contains("panicked at"), "kennel panicked:\n{journal}");
        self.finished = true;
    }

    /// As [`Self::finish`], for tests that leave nothing that could be asked to tear anything down.
    pub(crate) fn abandon(mut self) {
        self.finished = true;
    }
}

impl Drop for Lab {
    /// A test that failed leaves its machine as it is until the next one; what can be seen of it is shown.
    fn drop(&mut self) {
        if !self.finished {
            leftovers::show(&self.cursor);
            assert!(std::thread::panicking(), "a test ends with `lab.finish().await`");
        }
    }
}

/// Writes a file that is the daemon's alone.
pub(crate) fn write_own_secret(path: &Path, content: &str) {
    write_secret(path, content);
    if split::is_installed() {
        let user = nix::unistd::User::from_name(split::USER).unwrap().expect("the daemon has a user");
        std::os::unix::fs::chown(path, Some(user.uid.as_raw()), None).unwrap();
    }
}

/// Writes a file that is root's alone.
pub(crate) fn write_secret(path: &Path, content: &str) {
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}
