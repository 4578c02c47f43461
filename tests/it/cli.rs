//! The commands that ask the daemon, run as a shell runs them, against a real API over a real store.

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
        let claim = async {
            loop {
                if let Some(build) = self.store.claim_build(&self.run).await.unwrap() {
                    return build;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, claim).await.expect("a build is queued")
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

#[tokio::test]
async fn status_shows_what_runs_what_comes_and_what_went_wrong() {
    let fixture = Fixture::busy().await;
    insta::assert_snapshot!(ageless(&fixture.kennel(&["status"]).await.all()), @r#"
    BUILD  PROJECT  BRANCH  COMMIT   STATE   FOR  TITLE
        4  hello    main    0123456  queued   0s  Say it a third time

    ID  PROJECT  BRANCH  SERVICE  STATE   COMMIT   SINCE  URL
     3  hello    main    api      failed  fedcba9     0s
     1  hello    main    api      live    0123456     0s  http://api-main.hello.localhost:8080
     2  hello    main    web      live    0123456     0s  http://web-main.hello.localhost:8080

    Build 3 of hello/pr-7 failed (fedcba9, 0s ago)
        api: the flake has no output `packages.x86_64-linux.api`
      `kennel logs --build 3` shows its logs.

    Deployment 3 of hello/main/api failed (fedcba9, 0s ago)
        it exited before it was healthy: exit code 1
        last lines of its journal:
            no DATABASE_URL�[2J
      Deployment 1 (0123456) keeps serving.
    --- exit 0
    "#);
}

#[tokio::test]
async fn status_tells_a_newcomer_what_to_do() {
    let fixture = Fixture::new().await;
    insta::assert_snapshot!(fixture.kennel(&["status"]).await.all(), @r#"
    Nothing runs yet.
    Push to `hello`, or ask for a commit of it: `kennel deploy hello BRANCH COMMIT`.
    --- exit 0
    "#);
    insta::assert_snapshot!(fixture.kennel(&["builds"]).await.all(), @r#"
    Nothing was built yet. Push to a project, or see `kennel deploy --help`.
    --- exit 0
    "#);
    fixture.store.note_projects([]).await.unwrap();
    insta::assert_snapshot!(fixture.kennel(&["status"]).await.all(), @r#"
    kennel serves no project yet.
    Add one to /etc/kennel/config.toml, then `systemctl reload kennel`.
    --- exit 0
    "#);
}

#[tokio::test]
async fn status_flags_what_only_the_operator_can_put_in_order() {
    let fixture = Fixture::new().await;
    fixture.push("heads/main", FIRST, "Say hello").await;
    fixture.finish(&fixture.claim().await, &[("api", Ok(())), ("web", Ok(()))]).await;
    fixture.go_live(1).await;
    fixture.go_live(2).await;
    fixture.push("heads/main", SECOND, "Have no api").await;
    fixture.finish(&fixture.claim().await, &[("web", Ok(()))]).await;
    fixture.store.note_projects([]).await.unwrap();
    insta::assert_snapshot!(ageless(&fixture.kennel(&["status", "hello"]).await.all()), @r#"
    ID  PROJECT  BRANCH  SERVICE  STATE    COMMIT   SINCE  URL
     1  hello    main    api      live     0123456     0s  http://api-main.hello.localhost:8080
     3  hello    main    web      pending  fedcba9     0s
     2  hello    main    web      live     0123456     0s  http://web-main.hello.localhost:8080

    `hello` is no longer in the daemon's file: it is served as before, and takes no pushes.
    hello/main/api is no longer in kennel.toml: `kennel teardown 1` removes it.
    --- exit 0
    "#);
}

#[tokio::test]
async fn builds_are_listed_newest_first() {
    let fixture = Fixture::busy().await;
    insta::assert_snapshot!(ageless(&fixture.kennel(&["builds"]).await.all()), @r#"
    ID  PROJECT  BRANCH  COMMIT   STATE    AGE  DURATION  TITLE
     4  hello    main    0123456  queued    0s         -  Say it a third time
     3  hello    pr-7    fedcba9  failed    0s        0s  Try a thing
     2  hello    main    fedcba9  success   0s        0s  Say hello�[2J twice
     1  hello    main    0123456  success   0s        0s  Say hello
    --- exit 0
    "#);
    let ran = fixture.kennel(&["builds", "hello", "--json", "--limit", "2"]).await;
    let builds: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(
        (builds[0]["id"].as_i64(), builds[1]["state"].as_str(), builds.as_array().unwrap().len()),
        (Some(4), Some("failed"), 2)
    );
    let ran = fixture.kennel(&["status", "--json"]).await;
    let status: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(status["deployments"][0]["journal_tag"], "kennel-hello-main-web");
    assert_eq!(status["projects"][0]["open_builds"], 1);
}

#[tokio::test]
async fn exit_codes_and_one_line_tell_what_went_wrong() {
    let fixture = Fixture::busy().await;
    let mut told = String::new();
    for arguments in [
        &["status", "nope"][..],
        &["status", "No Such"],
        &["cancel", "99"],
        &["cancel", "1"],
        &["cancel", "one"],
        &["cancel", "-5"],
        &["teardown", "99"],
        &["teardown", "3"],
        &["deploy", "nope", "main"],
        &["deploy", "hello", "nope"],
        &["deploy", "hello", "main", "xyz"],
        &["logs"],
        &["logs", "--build", "99"],
        &["logs", "--build", "2", "api"],
        &["logs", "nope"],
        &["logs", "web"],
        &["frobnicate"],
    ] {
        let ran = fixture.kennel(arguments).await;
        assert_eq!(ran.out, "", "{arguments:?} has no data");
        told += &format!("$ kennel {}\n{}--- exit {}\n", arguments.join(" "), ran.talk, ran.code);
    }
    insta::assert_snapshot!(told, @r#"
    $ kennel status nope
    error: there is no project `nope`
    hint: the projects are `hello`
    --- exit 66
    $ kennel status No Such
    error: invalid value 'No Such' for '[PROJECT]': project name "No Such" may hold only `a` to `z`, `0` to `9` and `-`
    hint: `kennel help` lists the commands, `kennel help COMMAND` explains one
    --- exit 64
    $ kennel cancel 99
    error: there is no build 99
    hint: `kennel builds` lists them
    --- exit 66
    $ kennel cancel 1
    error: build 1 has ended already: it is `success`
    --- exit 1
    $ kennel cancel one
    error: invalid value 'one' for '<BUILD>': it is not a number, such as 17
    hint: `kennel help` lists the commands, `kennel help COMMAND` explains one
    --- exit 64
    $ kennel cancel -5
    error: unexpected argument '-5' found
    hint: `kennel help` lists the commands, `kennel help COMMAND` explains one
    --- exit 64
    $ kennel teardown 99
    error: there is no deployment 99
    hint: `kennel status` lists them
    --- exit 66
    $ kennel teardown 3
    error: deployment 3 has ended already
    hint: `kennel status` lists those that have not
    --- exit 1
    $ kennel deploy nope main
    error: there is no project `nope`
    hint: the projects are `hello`
    --- exit 66
    $ kennel deploy hello nope
    error: there was no push to `nope` of `hello`
    hint: push to it, or name the commit; there were pushes to `main`, `pr-7`
    --- exit 66
    $ kennel deploy hello main xyz
    error: commit "xyz" is not 40 or 64 hexadecimal digits
    hint: 7 digits or more do for one that kennel has built before
    --- exit 64
    $ kennel logs
    error: say whose logs
    hint: `kennel logs PROJECT/BRANCH/SERVICE` or `kennel logs --build ID`
    --- exit 64
    $ kennel logs --build 99
    error: there is no build 99
    hint: `kennel builds` lists them
    --- exit 66
    $ kennel logs --build 2 api
    error: build 2 has no log of `api`
    hint: it has none at all: it has not begun, or it is over 30 days old
    --- exit 66
    $ kennel logs nope
    error: there is no service `nope`
    hint: `kennel status` lists them
    --- exit 66
    $ kennel logs web
    error: hello/main/web is a static site: it has no process, and so no journal
    hint: `kennel logs --build 1 web` shows how it was built
    --- exit 66
    $ kennel frobnicate
    error: unrecognized subcommand 'frobnicate'
    hint: `kennel help` lists the commands, `kennel help COMMAND` explains one
    --- exit 64
    "#);
}

#[tokio::test]
async fn a_daemon_that_is_not_there_is_told_apart_from_one_that_says_no() {
    let fixture = Fixture::new().await;
    let nowhere = fixture.dir.path().join("nowhere");
    let ran = fixture.kennel(&["status", "--socket", nowhere.to_str().unwrap()]).await;
    let talk = ran.all().replace(fixture.dir.path().to_str().unwrap(), "DIR");
    insta::assert_snapshot!(talk, @r#"
    --- stderr
    error: cannot reach kennel at DIR/nowhere: there is no such socket
    hint: `systemctl status kennel` tells whether it runs
    --- exit 69
    "#);

    if !nix::unistd::Uid::effective().is_root() {
        return;
    }
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(fixture.dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    // Where the test's program lies may be out of an ordinary user's reach.
    let program = fixture.dir.path().join("kennel");
    std::fs::copy(env!("CARGO_BIN_EXE_kennel"), &program).unwrap();
    let mut command = tokio::process::Command::new(&program);
    command.args(["status", "--socket"]).arg(&fixture.socket).uid(65_534).gid(65_534);
    let ran = finish(command.output().await.unwrap());
    let talk = ran.all().replace(fixture.dir.path().to_str().unwrap(), "DIR");
    insta::assert_snapshot!(talk, @r#"
    --- stderr
    error: you may not use DIR/kennel.sock
    hint: run it with `sudo`, or become a member of the group `kennel` and log in again
    --- exit 77
    "#);
}

#[tokio::test]
async fn a_build_is_cancelled_and_a_target_torn_down() {
    let fixture = Fixture::busy().await;
    insta::assert_snapshot!(fixture.kennel(&["cancel", "4"]).await.all(), @r#"
    Build 4 is cancelled.
    --- exit 0
    "#);
    insta::assert_snapshot!(fixture.kennel(&["teardown", "1"]).await.all(), @r#"
    hello/main/api is being torn down.
    --- stderr
    `kennel status hello` shows when it is gone.
    --- exit 0
    "#);
    assert_eq!(fixture.store.due_teardowns().await.unwrap().len(), 1);
}

#[tokio::test]
async fn gc_shows_what_is_kept_and_why_and_frees_the_rest() {
    let fixture = Fixture::busy().await;
    let path = |n: u32, name: &str| format!("/nix/store/{n:032}-{name}").parse().unwrap();
    fixture.machine.put(&path(9, "glibc"), 31_000_000, &[]);
    for (n, name) in [(1, "api"), (1, "web"), (2, "api"), (2, "web")] {
        fixture.machine.put(&path(n, name), u64::from(n) * 1_000, &[path(9, "glibc")]);
    }
    insta::assert_snapshot!(fixture.kennel(&["gc", "--plan"]).await.all(), @r#"
    BUILD  PROJECT  BRANCH  SERVICE  REASON  COSTS  PATH
        1  hello    main    api      live     1 kB  /nix/store/00000000000000000000000000000001-api
        1  hello    main    web      live     1 kB  /nix/store/00000000000000000000000000000001-web
    31 MB more are shared by two or more of them.
    `kennel gc` frees 4 kB in 2 paths.
    --- exit 0
    "#);
    insta::assert_snapshot!(fixture.kennel(&["gc"]).await.all(), @r#"
    Freed 4 kB in 2 paths.
    --- exit 0
    "#);
    insta::assert_snapshot!(fixture.kennel(&["gc"]).await.all(), @r#"
    There was nothing to free.
    --- exit 0
    "#);
    let plan: serde_json::Value = serde_json::from_str(&fixture.kennel(&["gc", "--plan", "--json"]).await.out).unwrap();
    assert_eq!(plan["kept"][0]["reason"], "live");
    fixture.machine.fault(kennel::host::fake::Op::FreeGarbage, 1, kennel::host::fake::Fault::Fail);
    assert_eq!(fixture.kennel(&["gc"]).await.code, 1, "an exit code tells the truth");
}

#[tokio::test]
async fn cancel_returns_when_the_build_has_stopped() {
    let fixture = Fixture::new().await;
    fixture.push("heads/main", FIRST, "Say hello").await;
    let build = fixture.claim().await;
    let (ran, ()) = tokio::join!(fixture.kennel(&["cancel", "1"]), async {
        for _ in 0..1000 {
            if !fixture.store.builds_to_cancel().await.unwrap().is_empty() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        fixture.store.finish_build(&build, &"localhost".parse().unwrap(), &BuildOutcome::Cancelled).await.unwrap();
    });
    insta::assert_snapshot!(ran.all(), @r#"
    Build 1 is cancelled.
    --- exit 0
    "#);
}

#[tokio::test]
async fn logs_of_a_build_are_printed_as_they_are() {
    let fixture = Fixture::busy().await;
    fixture.write_log(BuildId(2), "fetch", "fetched fedcba9\n");
    fixture.write_log(BuildId(2), "api", "compiling\nno end of line");
    insta::assert_snapshot!(fixture.kennel(&["logs", "--build", "2"]).await.all(), @r#"
    ==> fetch <==
    fetched fedcba9

    ==> api <==
    compiling
    no end of line
    --- exit 0
    "#);
    insta::assert_snapshot!(fixture.kennel(&["logs", "-f", "--build", "2", "fetch"]).await.all(), @r#"
    fetched fedcba9
    --- exit 0
    "#);
    let ran = fixture.kennel(&["logs", "-f", "--build", "2"]).await;
    let mut lines: Vec<&str> = ran.out.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["api   | compiling", "api   | no end of line", "fetch | fetched fedcba9"]);
    assert_eq!((ran.talk.as_str(), ran.code), ("Build 2 succeeded.\n", 0));
}

#[tokio::test]
async fn following_a_build_outlives_a_restart_of_the_daemon() {
    let mut fixture = Fixture::new().await;
    fixture.push("heads/main", FIRST, "Say hello").await;
    let build = fixture.claim().await;
    fixture.write_log(build.id, "api", "one\nhalf a ");
    let mut child = fixture.command(&["logs", "-f", "--build", "1"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("api   | one"));
    fixture.shutdown.cancel();
    while fixture.servers.join_next().await.is_some() {}
    tokio::time::sleep(Duration::from_millis(700)).await;
    fixture.shutdown = CancellationToken::new();
    fixture.serve(config(&fixture.dir));
    fixture.write_log(build.id, "api", "one\nhalf a line\ntwo\n");
    fixture.finish(&build, &[("api", Ok(()))]).await;
    let rest = async {
        assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("api   | half a line"));
        assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("api   | two"));
        assert_eq!(lines.next_line().await.unwrap(), None);
        assert!(child.wait().await.unwrap().success());
    };
    tokio::time::timeout(PATIENCE, rest).await.expect("it goes on after the restart");
}

/// A directory for `PATH` with a `journalctl` that says how it was called.
fn fake_journalctl(fixture: &Fixture) -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;

    let bin = fixture.dir.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    std::fs::write(bin.join("journalctl"), "#!/bin/sh\necho \"journalctl $*\"\nexit 7\n").unwrap();
    std::fs::set_permissions(bin.join("journalctl"), std::fs::Permissions::from_mode(0o755)).unwrap();
    bin
}

#[tokio::test]
async fn the_journal_of_a_service_is_shown_by_journalctl() {
    let fixture = Fixture::busy().await;
    let bin = fake_journalctl(&fixture);
    for arguments in [&["logs", "hello/main/api", "-f"][..], &["logs", "-f", "api", "--project", "hello"]] {
        let ran = finish(fixture.command(arguments).env("PATH", &bin).output().await.unwrap());
        assert_eq!(ran.all(), "journalctl --identifier=kennel-hello-main-api --follow\n--- exit 7");
    }
    fixture.push("heads/feature/x", FIRST, "Elsewhere").await;
    let build = fixture.claim().await;
    let other = if build.slug.as_str() == "main" { fixture.claim().await } else { build };
    fixture.finish(&other, &[("api", Ok(()))]).await;
    let ran = fixture.kennel(&["logs", "api"]).await;
    insta::assert_snapshot!(ran.all(), @r#"
    --- stderr
    error: there is more than one `api`
    hint: say `hello/feature/x/api` or `hello/main/api`
    --- exit 64
    "#);
    let ran = finish(fixture.command(&["logs", "hello/feature/x/api"]).env("PATH", &bin).output().await.unwrap());
    assert_eq!(ran.out, "journalctl --identifier=kennel-hello-feature-x-api\n");
}

#[tokio::test]
async fn a_followed_deploy_shows_the_logs_and_ends_when_everything_is_live() {
    let fixture = Fixture::new().await;
    let work = async {
        let build = fixture.wait_and_claim().await;
        fixture.write_log(build.id, "fetch", "fetched\n");
        tokio::time::sleep(Duration::from_millis(600)).await;
        fixture.write_log(build.id, "api", "compiling\n");
        fixture.finish(&build, &[("api", Ok(()))]).await;
        tokio::time::sleep(Duration::from_millis(600)).await;
        fixture.go_live(1).await;
    };
    let (ran, ()) = tokio::join!(fixture.kennel(&["deploy", "hello", "main", FIRST, "--follow"]), work);
    assert_eq!(ran.code, 0, "{}", ran.all());
    insta::assert_snapshot!(ran.out, @r#"
    Build 1 of hello/main at 0123456 is queued.
    fetch | fetched
    api   | compiling
    hello/main/api is live at http://api-main.hello.localhost:8080
    "#);
    assert!(ran.talk.contains("Build 1 succeeded.\nhello/main/api waits for its turn.\n"), "{}", ran.talk);
}

#[tokio::test]
async fn a_followed_deploy_that_does_not_go_live_exits_with_1() {
    let fixture = Fixture::new().await;
    let work = async {
        let build = fixture.wait_and_claim().await;
        fixture.finish(&build, &[("api", Ok(())), ("web", Err("it does not evaluate"))]).await;
        fixture.fail(1, "never healthy: GET /health answered 500").await;
    };
    let (ran, ()) = tokio::join!(fixture.kennel(&["deploy", "hello", "main", FIRST, "-f"]), work);
    assert_eq!(ran.code, 1);
    for part in ["web: it does not evaluate", "hello/main/api: failed", "    never healthy: GET /health answered 500"] {
        assert!(ran.talk.contains(part), "{part}: {}", ran.talk);
    }
    let ran = fixture.kennel(&["deploy", "hello", "main"]).await;
    insta::assert_snapshot!(ran.all(), @r#"
    Build 2 of hello/main at 0123456 is queued.
    --- stderr
    `kennel logs --build 2 -f` follows it, `kennel status hello` shows what runs.
    --- exit 0
    "#);
}
