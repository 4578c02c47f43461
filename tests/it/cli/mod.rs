//! The commands that ask the daemon, run as a shell runs them, against a real API over a real store.

mod acts;
mod faults;
mod logs;
mod tables;

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use kennel::api::{self, Access, Api};
use kennel::config::Config;
use kennel::host::fake::{FakeBuild, FakeMachine};
use kennel::model::deployment::Next;
use kennel::model::settings::Manifest;
use kennel::model::{BranchRef, BuildId, DeploymentId, Ending, Environment, ServiceName, Settings, Step};
use kennel::store::{Accepted, BuildOutcome, ClaimedBuild, Delivery, NewArtifact, Push, RunId, Store, Switch};
use kennel::wake::Bell;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const FIRST: &str = "0123456789abcdef0123456789abcdef01234567";
const SECOND: &str = "fedcba9876543210fedcba9876543210fedcba98";

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A daemon that serves its API and does no work of its own.
struct Fixture {
    store: Store,
    machine: FakeMachine,
    run: RunId,
    socket: PathBuf,
    logs: PathBuf,
    shutdown: CancellationToken,
    servers: JoinSet<()>,
    dir: tempfile::TempDir,
}

/// Looks until there is something; tells what.
async fn until<T>(what: &str, look: impl AsyncFn() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(seen) = look().await {
                return seen;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, looking).await.unwrap_or_else(|_| panic!("it did not come to pass: {what}"))
}

/// What a command left behind.
struct Ran {
    code: i32,
    out: String,
    talk: String,
}

impl Ran {
    /// Everything, to be compared.
    fn all(&self) -> String {
        let mut text = self.out.clone();
        if !self.talk.is_empty() {
            text += &format!("--- stderr\n{}", self.talk);
        }
        format!("{text}--- exit {}", self.code)
    }
}

impl Fixture {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = config(&dir);
        let store = Store::open(&dir.path().join("kennel.db")).await.unwrap();
        store.note_projects(config.projects.keys()).await.unwrap();
        let (socket, logs) = (dir.path().join("kennel.sock"), dir.path().join("logs"));
        let (shutdown, servers) = (CancellationToken::new(), JoinSet::new());
        let machine = FakeMachine::new(|_| FakeBuild::default());
        let mut fixture = Self { store, machine, run: RunId::fresh(), socket, logs, shutdown, servers, dir };
        fixture.serve(config);
        fixture
    }

    fn serve(&mut self, config: Config) {
        let app = api::router(Api {
            metrics: Arc::new(String::new),
            store: self.store.clone(),
            machine: Arc::new(self.machine.clone()),
            config: Arc::new(ArcSwap::from_pointee(config)),
            logs: self.logs.clone(),
            access: Arc::new(Access { token: None, group: own_group(), control_domain: None }),
            builder: Bell::default(),
            deployer: Bell::default(),
            shutdown: self.shutdown.clone(),
        });
        // Whoever runs the tests is the operator, by the rights of the own group or of root.
        let listener = api::listen_unix(&self.socket, "no-such-group").unwrap();
        self.servers.spawn(api::serve_unix(listener, app, self.shutdown.clone()));
    }

    async fn push(&self, branch: &str, commit: &str, title: &str) -> BuildId {
        let branch: BranchRef = branch.parse().unwrap();
        let push = Push {
            project: "hello".parse().unwrap(),
            environment: Environment::of(&branch, "main"),
            branch,
            commit: commit.parse().unwrap(),
            title: Some(title.to_owned()),
        };
        let id = format!("{commit}-{}-{}", title.len(), push.branch.as_str().replace('/', "-"));
        let delivery = Delivery { id: id.parse().unwrap(), event: "push".to_owned() };
        match self.store.accept_push(Some(&delivery), &push).await.unwrap() {
            Accepted::Queued(build) => build,
            other => panic!("{other:?}"),
        }
    }

    async fn claim(&self) -> ClaimedBuild {
        self.store.claim_build(&self.run).await.unwrap().unwrap()
    }

    async fn wait_and_claim(&self) -> ClaimedBuild {
        until("a build is queued", async || self.store.claim_build(&self.run).await.unwrap()).await
    }

    /// Ends a build; each service or site was made, or failed with a reason.
    async fn finish(&self, build: &ClaimedBuild, made: &[(&str, Result<(), &str>)]) {
        let mut targets = std::collections::BTreeMap::new();
        for (name, result) in made {
            let settings = settings(name);
            let path = format!("/nix/store/{:032}-{name}", build.id.0).parse().unwrap();
            let program = name.parse().ok();
            let name: ServiceName = name.parse().unwrap();
            let result = result.map(|()| (path, program)).map_err(str::to_owned);
            let artifact = NewArtifact { name: name.clone(), settings: settings.clone(), result, nix_ms: 12 };
            self.store.record_artifact(build, &artifact).await.unwrap();
            targets.insert(name, settings);
        }
        let outcome = BuildOutcome::Finished(Manifest { targets, cachix: None });
        self.store.finish_build(build, &"localhost".parse().unwrap(), &outcome).await.unwrap();
    }

    async fn go_live(&self, id: i64) {
        let id = DeploymentId(id);
        let claimed = self.store.deployment(id).await.unwrap();
        self.store.start_deployment(id, "f", &[]).await.unwrap();
        let mut step = Step::Allocate;
        while let Next::Step(next) = step.next(claimed.target.kind) {
            let claimed = self.store.deployment(id).await.unwrap();
            self.store.advance(&claimed, step, Next::Step(next), 1).await.unwrap();
            step = next;
        }
        let claimed = self.store.deployment(id).await.unwrap();
        assert!(matches!(self.store.switch_route(&claimed, None).await.unwrap(), Switch::Live(_)));
        let claimed = self.store.deployment(id).await.unwrap();
        self.store.advance(&claimed, Step::SwitchRoute, Next::Live, 1).await.unwrap();
    }

    async fn fail(&self, id: i64, reason: &str) {
        let id = DeploymentId(id);
        self.store.start_deployment(id, "f", &[]).await.unwrap();
        self.store.turn_back(id, Step::AwaitHealthy, Ending::Failed, reason).await.unwrap();
        for (step, next) in [(Step::Stop, Next::Step(Step::Release)), (Step::Release, Next::Ended)] {
            let claimed = self.store.deployment(id).await.unwrap();
            self.store.advance(&claimed, step, next, 1).await.unwrap();
        }
    }

    fn write_log(&self, build: BuildId, name: &str, text: &str) {
        let dir = self.logs.join(build.to_string());
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(format!("{name}.log")), text).unwrap();
    }

    /// `main` runs an api and a site; its newest commit's api failed; a pull request could not be built; one more
    /// commit waits.
    async fn busy() -> Self {
        let fixture = Self::new().await;
        fixture.push("heads/main", FIRST, "Say hello").await;
        fixture.finish(&fixture.claim().await, &[("api", Ok(())), ("web", Ok(()))]).await;
        fixture.go_live(1).await;
        fixture.go_live(2).await;
        fixture.push("heads/main", SECOND, "Say hello\x1b[2J twice").await;
        fixture.finish(&fixture.claim().await, &[("api", Ok(())), ("web", Ok(()))]).await;
        fixture
            .fail(
                3,
                "it exited before it was healthy: exit code 1\nlast lines of its journal:\n\tno DATABASE_URL\x1b[2J",
            )
            .await;
        fixture.store.skip_deployment(DeploymentId(4), "the same as the running version").await.unwrap();
        fixture.push("pull/7", SECOND, "Try a thing").await;
        let missing = "the flake has no output `packages.x86_64-linux.api`";
        fixture.finish(&fixture.claim().await, &[("api", Err(missing))]).await;
        fixture.push("heads/main", FIRST, "Say it a third time").await;
        fixture
    }

    async fn kennel(&self, arguments: &[&str]) -> Ran {
        let output = self.command(arguments).output();
        finish(tokio::time::timeout(PATIENCE, output).await.expect("the command ends").unwrap())
    }

    fn command(&self, arguments: &[&str]) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_kennel"));
        command.args(arguments).env("KENNEL_SOCKET", &self.socket).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }
}

fn finish(output: std::process::Output) -> Ran {
    Ran {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        talk: String::from_utf8(output.stderr).unwrap(),
    }
}

fn config(dir: &tempfile::TempDir) -> Config {
    let text = format!(
        "base_domain = \"localhost\"\nstate_dir = \"{0}\"\n[router]\nhttp = \"0.0.0.0:8080\"\n\
         [projects.hello]\nrepo_url = \"https://forge.example.com/me/hello.git\"\nrepo_type = \"forgejo\"\n\
         webhook_secret_file = \"{0}/secret\"\n",
        dir.path().display()
    );
    kennel::config::parse(&text).unwrap()
}

fn own_group() -> String {
    let gid = nix::unistd::Gid::effective();
    nix::unistd::Group::from_gid(gid).unwrap().map_or_else(|| gid.to_string(), |group| group.name)
}

fn settings(name: &str) -> Settings {
    let json = match name {
        "web" => r#"{"kind": "site", "flake_output": "web", "spa": false, "custom_domain": null}"#,
        _ => {
            r#"{"kind": "service", "flake_output": "api", "health_check": {"http": "/health"},
                "health_check_timeout_secs": 30, "drain_secs": 30, "custom_domain": null, "preview_database": false,
                "secrets": [], "env": {}}"#
        }
    };
    serde_json::from_str(json).unwrap()
}

/// Ages of less than ten seconds are all one, so that slow machines print the same.
fn ageless(text: &str) -> String {
    let mut text = text.to_owned();
    for digit in 1..10 {
        for (before, after) in [(" ", " "), (" ", "\n"), (" ", ")")] {
            text = text.replace(&format!("{before}{digit}s{after}"), &format!("{before}0s{after}"));
        }
    }
    text
}
