//! Both sides over a real socket, with a machine in memory behind.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_util::codec::Framed;
use tokio_util::sync::CancellationToken;

use super::protocol::{CALL_MAX, codec};
use super::server::CALLS_MAX;
use super::{Guard, HostClient, Peers, serve};
use crate::host::fake::{Behaviour, FakeBuild, FakeMachine, Fault, Op};
use crate::host::key::HostKey;
use crate::host::machine::render::unit::tests::spec;
use crate::host::{BuildJob, BuildPhase, BuildUnitSpec, Listener, Machine as _, SecretFiles, UnitSpec, UnitState};
use crate::model::confinement::{Confinement, Limits};
use crate::model::{BuildId, Environment, Port};
use crate::telemetry::chain;

const COMMIT: &str = "0123456789012345678901234567890123456789";
const URL: &str = "https://forge.example.com/me/shop.git";

/// A process of root's, and the operator's files.
struct Host {
    dir: TempDir,
    machine: FakeMachine,
    /// What builds were told.
    jobs: Arc<Mutex<Vec<BuildJob>>>,
    serving: JoinSet<()>,
    shutdown: CancellationToken,
}

impl Host {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let jobs = Arc::new(Mutex::new(Vec::new()));
        let machine = FakeMachine::new({
            let jobs = jobs.clone();
            move |job| {
                jobs.lock().unwrap().push(job.clone());
                FakeBuild::default()
            }
        });
        let mut host = Self { dir, machine, jobs, serving: JoinSet::new(), shutdown: CancellationToken::new() };
        for (name, text) in [("jwt", "hush\n"), ("other", "secret"), ("token", "token")] {
            std::fs::write(host.dir.path().join(name), text).unwrap();
        }
        host.configure("TOKEN");
        host.serve().await;
        host
    }

    /// The operator's file: `my-project` with one secret, `bank` with another.
    fn configure(&self, secret: &str) {
        let at = self.dir.path().display();
        let text = format!(
            "base_domain = \"example.com\"\nstate_dir = \"{at}\"\n[limits]\nmemory_max = \"1G\"\n\
             [projects.my-project]\nrepo_url = \"{URL}\"\nrepo_type = \"forgejo\"\nwebhook_secret_file = \"/none\"\n\
             git_token_file = \"{at}/token\"\n[projects.my-project.secrets.prod]\n{secret} = {{ file = \"{at}/jwt\" }}\n\
             [projects.bank]\nrepo_url = \"{URL}\"\nrepo_type = \"forgejo\"\nwebhook_secret_file = \"/none\"\n\
             [projects.bank.secrets.prod]\nVAULT = {{ file = \"{at}/other\" }}\n"
        );
        std::fs::write(self.dir.path().join("config.toml"), text).unwrap();
    }

    async fn guard(&self) -> Guard {
        let config = self.dir.path().join("config.toml");
        Guard::new(Arc::new(self.machine.clone()), &config, self.dir.path()).await.unwrap()
    }

    async fn serve(&mut self) {
        let guard = self.guard().await;
        let _ = std::fs::remove_file(self.socket());
        let listener = UnixListener::bind(self.socket()).unwrap();
        let peers = Peers { daemon: nix::unistd::geteuid().as_raw() };
        self.shutdown = CancellationToken::new();
        let serving = serve(listener, Arc::new(guard), peers, || false, self.shutdown.clone());
        self.serving.spawn(serving);
    }

    async fn end(&mut self) {
        self.shutdown.cancel();
        while self.serving.join_next().await.is_some() {}
    }

    fn socket(&self) -> std::path::PathBuf {
        self.dir.path().join("host.sock")
    }

    async fn client(&self) -> HostClient {
        HostClient::connect(&self.socket()).await.unwrap()
    }

    async fn raw(&self) -> Framed<UnixStream, tokio_util::codec::LengthDelimitedCodec> {
        Framed::new(UnixStream::connect(self.socket()).await.unwrap(), codec(2 * CALL_MAX))
    }

    /// What an attacker is answered who sends this.
    async fn answer(&self, call: &Value) -> String {
        let mut raw = self.raw().await;
        raw.send(json!({ "id": 1, "call": call }).to_string().into_bytes().as_slice()).await.unwrap();
        String::from_utf8(raw.next().await.unwrap().unwrap().to_vec()).unwrap()
    }

    /// A specification with a port of this machine's own, whose only secret is `TOKEN`.
    async fn spec(&self) -> UnitSpec {
        for number in Port::FIRST..=Port::LAST {
            let port = Port::try_from(number).unwrap();
            if self.machine.listener(port).await.unwrap() == Listener::None {
                let secrets = SecretFiles::from([("TOKEN".to_owned(), "/etc/shadow".into())]);
                let env = BTreeMap::from([("LEVEL".to_owned(), "info".to_owned())]);
                return UnitSpec { port, secrets, env, ..spec() };
            }
        }
        panic!("no free port");
    }
}

#[tokio::test]
async fn a_service_lives_and_goes_through_the_socket() {
    let host = Host::start().await;
    let (client, spec) = (host.client().await, host.spec().await);
    let key = HostKey::ensure(host.dir.path()).unwrap();
    let prints = client.secret_fingerprints(&key, &spec.project, Environment::Prod, &spec.secrets).await.unwrap();
    assert_eq!(prints.keys().collect::<Vec<_>>(), ["TOKEN"]);
    client.ensure_env_file(&spec).await.unwrap();
    client.ensure_unit(&spec).await.unwrap();
    // Whatever the daemon says, the most is what the operator allows.
    let asked = Limits { memory_max_bytes: Some(1 << 40), ..Limits::default() };
    let confinement = Confinement { limits: asked, ..Confinement::default() };
    let resolved = host.guard().await.resolved(UnitSpec { confinement, ..spec.clone() }).await.unwrap();
    assert_eq!(resolved.confinement.limits.memory_max_bytes, Some(1 << 30));
    client.start_unit(&spec.unit()).await.unwrap();
    assert!(matches!(client.unit_state(&spec.unit()).await.unwrap(), UnitState::Active { .. }));
    assert_eq!(client.own_units().await.unwrap(), [spec.unit()]);
    let inventory = client.inventory().await.unwrap();
    assert_eq!(inventory, host.machine.inventory().await.unwrap());
    // The file is the one the operator's file names, whatever the daemon thinks.
    let env = host.machine.env(&spec.unit()).unwrap();
    assert_eq!(env["TOKEN"], "hush");
    client.stop_unit(&spec.unit()).await.unwrap();
    client.remove_unit(&spec.unit()).await.unwrap();
    assert_eq!(client.own_units().await.unwrap(), []);
    assert_eq!(std::fs::read_dir(host.dir.path().join("grants")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_failure_says_the_same_on_both_sides() {
    let host = Host::start().await;
    let (client, spec) = (host.client().await, host.spec().await);
    host.machine.set_behaviour(&spec.store_path, Behaviour::CannotStart);
    client.ensure_env_file(&spec).await.unwrap();
    client.ensure_unit(&spec).await.unwrap();
    let told = chain(&client.start_unit(&spec.unit()).await.unwrap_err());
    assert_eq!(told, chain(&host.machine.start_unit(&spec.unit()).await.unwrap_err()));
}

#[tokio::test]
async fn a_build_is_told_what_the_operators_file_says_and_not_what_the_daemon_says() {
    let host = Host::start().await;
    let client = host.client().await;
    let build = BuildId(1);
    let job = BuildJob {
        build,
        project: "my-project".parse().unwrap(),
        repo_url: "https://evil.example.com/".to_owned(),
        remote_ref: "refs/pull/7/head".to_owned(),
        commit: COMMIT.parse().unwrap(),
        allowed_uris: vec!["path:".to_owned()],
        allow_ifd: true,
        max_parallel: 1_000,
        log_limit_bytes: u64::MAX,
        timeout_secs: u64::MAX,
    };
    client.ensure_build_dirs(build, &job).await.unwrap();
    let project = "my-project".parse().unwrap();
    let credentials = vec![("git_token", "/etc/shadow".into())];
    let (phase, repo_url) = (BuildPhase::Fetch, "https://evil.example.com/".to_owned());
    let spec = BuildUnitSpec { build, phase, project, credentials, repo_url, timeout_secs: u64::MAX };
    client.start_build(&spec).await.unwrap();
    let told = host.jobs.lock().unwrap().pop().unwrap();
    assert_eq!((told.repo_url.as_str(), told.allow_ifd, told.timeout_secs), (URL, false, 3600));
    assert_eq!(told.allowed_uris, ["github:", "https://"]);
    assert!(told.max_parallel < 65 && told.log_limit_bytes < 1 << 31);

    let guard = host.guard().await;
    let started = guard.build_unit(build, phase, &spec.project, u64::MAX).await.unwrap();
    assert_eq!(started.credentials, [("git_token", host.dir.path().join("token"))]);
    assert_eq!((started.repo_url.as_str(), started.timeout_secs), (URL, 600));
}

#[tokio::test]
async fn what_serves_keeps_the_secrets_that_the_file_has_ceased_to_name_and_nothing_else_gets_them() {
    let host = Host::start().await;
    let (client, spec) = (host.client().await, host.spec().await);
    client.ensure_env_file(&spec).await.unwrap();
    host.configure("ANOTHER");
    client.ensure_env_file(&spec).await.unwrap();
    let next = UnitSpec { deployment: crate::model::DeploymentId(spec.deployment.0 + 1), ..spec };
    let refused = chain(&client.ensure_env_file(&next).await.unwrap_err());
    assert!(refused.contains("my-project has no secret \"TOKEN\" in prod"), "{refused}");
}

#[tokio::test]
async fn a_file_that_becomes_faulty_counts_as_it_was() {
    let host = Host::start().await;
    let (client, spec) = (host.client().await, host.spec().await);
    client.ensure_env_file(&spec).await.unwrap();
    std::fs::write(host.dir.path().join("config.toml"), "nonsense").unwrap();
    client.ensure_env_file(&spec).await.unwrap();
}

/// What an attacker who has taken the daemon over may try, with what it is answered.
fn attacks() -> Vec<(Value, &'static str)> {
    let mut good = serde_json::to_value(spec()).unwrap();
    good["secrets"] = json!(["TOKEN"]);
    let with = |key: &str, value: Value| {
        let mut bad = good.clone();
        bad[key] = value;
        json!({ "ensure_unit": { "spec": bad } })
    };
    let unit = |call: &str, unit: &str| json!({ call: { "unit": unit } });
    vec![
        (unit("start_unit", "sshd.service"), "is not a unit of a deployment"),
        (unit("start_unit", "kennel-build-1.service"), "is not a unit of a deployment"),
        (unit("start_unit", "../../etc/evil.service"), "may hold only letters"),
        (unit("start_unit", "multi-user.target"), "does not end in `.service`"),
        (unit("stop_unit", "kennel.service"), "is not a unit of kennel's"),
        (unit("remove_unit", "dbus.service"), "is not a unit of kennel's"),
        (unit("unit_state", "sshd.service"), "is not a unit of kennel's"),
        (unit("wait_unit", "sshd.service"), "is not a unit of kennel's"),
        (json!({ "journal_tail": { "unit": "sshd.service", "lines": 9 } }), "is not a unit of kennel's"),
        (with("secrets", json!(["VAULT"])), "my-project has no secret \\\"VAULT\\\" in prod"),
        (with("secrets", json!(["/etc/shadow"])), "my-project has no secret \\\"/etc/shadow\\\" in prod"),
        (with("secrets", json!({ "TOKEN": "/etc/shadow" })), "invalid type: map, expected a sequence"),
        (with("project", json!("bank")), "are no names of api of bank on heads/main"),
        (with("user", json!("root")), "are no names of api of my-project"),
        (with("tag", json!("kennel-bank-main-api")), "are no names of api of my-project"),
        (with("slug", json!("../../../etc")), "may hold only"),
        (with("service", json!("a/b")), "may hold only"),
        (with("branch", json!("heads/topic")), "are no names of api of my-project on heads/topic"),
        (with("environment", json!("preview")), "heads/main is not of the environment preview"),
        (with("deployment", json!(-1)), "is not a unit of a deployment"),
        (with("port", json!(22)), "is not between 18000 and 19999"),
        (with("store_path", json!("/nix/store/../../tmp/evil")), "has no"),
        (with("store_path", json!("/tmp/0123456789abcdfghijklmnpqrsvwxyz-evil")), "does not lie in `/nix/store`"),
        (with("program", json!("../../../../bin/sh")), "begins with `.` or `-`"),
        (with("program", json!("a/b")), "may hold only"),
        (
            with("confinement", json!({ "limits": {}, "opt_outs": ["namespaces"] })),
            "the operator does not allow my-project the opt-out namespaces",
        ),
        (with("unit_dir", json!("/etc/systemd/system")), "unknown field"),
        (
            json!({ "secret_fingerprints": { "project": "bank", "environment": "prod", "secrets": ["TOKEN"] } }),
            "bank has no",
        ),
        (
            json!({ "ensure_gc_root": { "build": 1, "name": "../x", "path": "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-a" } }),
            "may hold only",
        ),
        (json!({ "remove_work_dir": { "build": -1 } }), "-1 is not a build's number"),
        (json!({ "remove_work_dir": { "build": "../../etc" } }), "invalid type"),
        (json!({ "remove_data_dir": { "project": "..", "slug": "main", "service": "api" } }), "may hold only"),
        (
            json!({ "ensure_site_link": { "link": { "project": "my-project", "slug": "main", "site": "web" }, "to": "/etc" } }),
            "does not lie in",
        ),
        (
            json!({ "start_build": { "build": 1, "phase": "fetch", "project": "ghost", "timeout_secs": 1 } }),
            "there is no project ghost",
        ),
        (
            json!({ "start_build": { "build": 1, "phase": "fetch", "project": "bank", "timeout_secs": 1, "credentials": ["/etc/shadow"] } }),
            "unknown field",
        ),
        (json!({ "empty_trash": { "older_than": { "secs": 0, "nanos": 0 } } }), "stays there for a day"),
        (json!({ "hello": { "version": 99 } }), "are of version 99"),
        (json!({ "run": { "command": "id" } }), "unknown variant"),
        (json!("reboot"), "unknown variant"),
    ]
}

#[tokio::test]
async fn whoever_has_taken_the_daemon_over_is_refused_and_nothing_changes() {
    let host = Host::start().await;
    let before = format!("{:?}", host.machine);
    for (call, why) in attacks() {
        let answer = host.answer(&call).await;
        assert!(answer.contains("Refused") && answer.contains(why), "{call}\n{answer}");
    }
    // The same specification without a fault is taken.
    let mut good = serde_json::to_value(spec()).unwrap();
    good["secrets"] = json!(["TOKEN"]);
    good["env"] = json!({ "A\nUser=root": "x" });
    let answer = host.answer(&json!({ "ensure_env_file": { "spec": good } })).await;
    assert!(answer.contains("does not have a name of letters"), "{answer}");
    assert_eq!(format!("{:?}", host.machine), before);
    good["env"] = json!({});
    let answer = host.answer(&json!({ "ensure_unit": { "spec": good } })).await;
    assert_eq!(answer, r#"{"id":1,"result":{"Ok":null}}"#);
}

#[tokio::test]
async fn a_message_that_is_too_large_or_no_call_ends_its_connection_and_no_other() {
    let host = Host::start().await;
    let client = host.client().await;
    for (text, why) in [(vec![b' '; CALL_MAX + 1], "cannot be read"), (b"{".to_vec(), "is no call")] {
        let mut raw = host.raw().await;
        // It need not be taken to its end.
        let _ = raw.send(text.as_slice()).await;
        if let Some(Ok(answer)) = raw.next().await {
            let answer = String::from_utf8(answer.to_vec()).unwrap();
            assert!(answer.contains("\"id\":0") && answer.contains(why), "{answer}");
        }
        assert!(!matches!(raw.next().await, Some(Ok(_))), "the connection has ended");
    }
    client.own_units().await.unwrap();
    let mut spec = host.spec().await;
    spec.env.insert("LARGE".to_owned(), "x".repeat(CALL_MAX));
    let refused = chain(&client.ensure_env_file(&spec).await.unwrap_err());
    assert!(refused.contains("are taken"), "{refused}");
    client.own_units().await.unwrap();
}

#[tokio::test]
async fn connections_are_bounded_and_the_first_ones_go_on() {
    let host = Host::start().await;
    let client = host.client().await;
    let mut raws = Vec::new();
    for _ in 0..200 {
        let mut raw = host.raw().await;
        let _ = raw.send(json!({ "id": 1, "call": { "own_units": {} } }).to_string().into_bytes().as_slice()).await;
        raws.push(raw);
    }
    let mut served = 0;
    for raw in &mut raws {
        served += usize::from(matches!(raw.next().await, Some(Ok(_))));
    }
    assert_eq!(served, 7, "and one was there before");
    client.own_units().await.unwrap();
    drop(raws);
    host.client().await.own_units().await.unwrap();
}

#[test]
fn only_the_daemons_user_and_root_may_ask() {
    let peers = Peers { daemon: 990 };
    assert!(peers.may_ask(0) && peers.may_ask(990));
    assert!(!peers.may_ask(1000) && !peers.may_ask(991));
}

#[tokio::test]
async fn a_call_outlives_a_restart_of_the_other_side() {
    let mut host = Host::start().await;
    let client = host.client().await;
    let hangs = host.machine.fault(Op::Inventory, 1, Fault::HangBefore);
    let asked = async { client.inventory().await.unwrap() };
    let restarted = async {
        hangs.wait().await;
        host.end().await;
        host.serve().await;
    };
    tokio::join!(asked, restarted);
}

#[tokio::test]
async fn calls_that_nobody_waits_for_are_given_up_on_the_other_side() {
    let host = Host::start().await;
    let client = host.client().await;
    // As many as one connection may have under way.
    for _ in 0..CALLS_MAX {
        let hangs = host.machine.fault(Op::OwnUnits, 1, Fault::HangBefore);
        tokio::select! {
            _ = client.own_units() => panic!("it hangs"),
            () = hangs.wait() => {}
        }
    }
    let next = tokio::time::timeout(std::time::Duration::from_secs(60), client.own_units());
    next.await.expect("there is room for one more").unwrap();
}
