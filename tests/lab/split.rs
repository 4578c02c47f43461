//! The daemon without root: a push becomes a live service all the same, and whoever takes the daemon over gets no
//! further than the calls of `kennel host`.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Output;

use serde_json::{Value, json};

use crate::harness::{App, Lab, LabConfig, ProjectSpec, Service, machine, split, write_own_secret, write_secret};

const SOCKET: &str = "/run/kennel/host.sock";
/// The daemon's user and group.
const KENNEL: (&str, &str) = (split::USER, "kennel");
const JWT: &str = "/etc/kennel/hello-jwt";
const VAULT: &str = "/etc/kennel/bank-vault";

/// `hello` and `bank`, each with a secret that root alone reads.
fn projects() -> LabConfig {
    let secret = |name: &str, file: &str| format!("secrets.prod.{name}.file = \"{file}\"");
    LabConfig::of([
        ProjectSpec::new("hello").line(&secret("JWT", JWT)),
        ProjectSpec::new("bank").line(&secret("VAULT", VAULT)),
    ])
}

/// kennel in two.
async fn start(config: LabConfig) -> Lab {
    let lab = Lab::prepare(config).await;
    if !split::is_installed() {
        split::install().await;
        give_secrets(&lab);
    }
    write_secret(Path::new(JWT), "of hello\n");
    write_secret(Path::new(VAULT), "canary-of-the-bank");
    machine::ok("systemctl", &["start", "kennel.service"]).await;
    lab
}

/// Lets the daemon read what is its own, as an operator does before the daemon ceases to be root's.
fn give_secrets(lab: &Lab) {
    for project in ["hello", "bank"] {
        write_own_secret(Path::new(&format!("/etc/kennel/{project}-webhook")), &lab.project(project).secret);
    }
}

fn app(version: &str) -> App {
    App::default().with(Service::new("api", version).settings(&["drain_secs = 1", "secrets = [\"JWT\"]"]))
}

/// Lines of a process's `status`, by name.
fn status(pid: u32, names: &[&str]) -> Vec<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process is there");
    let line = |name: &&str| {
        let found = status.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
        found.expect("the kernel tells it").split_whitespace().collect::<Vec<_>>().join(" ")
    };
    names.iter().map(line).collect()
}

async fn score(unit: &str) -> f64 {
    let said = machine::ok("systemd-analyze", &["security", "--no-pager", unit]).await;
    let line = said.lines().find(|line| line.contains("Overall exposure level")).expect("it sums up");
    println!("{unit}: {line}");
    line.split_whitespace().find_map(|word| word.parse().ok()).expect("it gives a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_goes_live_and_the_daemon_has_nothing_of_root() {
    let lab = start(projects()).await;
    let live = lab.deploy_api("hello", "main", &app("one")).await;
    let env: Value = lab.visit(&live.host, "/env").await.expect(200).json();
    assert_eq!(env["JWT"], "of hello");
    assert_eq!(fs::metadata(JWT).unwrap().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(JWT).unwrap().uid(), 0);

    let daemon = machine::main_pid("kennel.service").await;
    let uid = machine::uid_of(split::USER).await;
    assert_ne!(uid, 0);
    let capabilities = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];
    assert_eq!(status(daemon, &capabilities), ["0000000000000000"; 5]);
    assert_eq!(status(daemon, &["Uid", "NoNewPrivs"]), [[uid; 4].map(|uid| uid.to_string()).join(" "), "1".to_owned()]);
    let host = machine::main_pid("kennel-host.service").await;
    assert_eq!(status(host, &["Uid"]), ["0 0 0 0"]);
    let links = machine::ok("nsenter", &["--net", "--target", &host.to_string(), "ip", "-brief", "link"]).await;
    assert!(links.lines().all(|line| line.starts_with("lo ")), "{links}");

    assert!(score("kennel.service").await <= 1.6);
    assert!(score("kennel-host.service").await <= 2.5);
    for (path, owner) in [("/var/lib/kennel", 0), ("/var/lib/kennel/daemon", uid), ("/run/kennel", 0), (SOCKET, uid)] {
        assert_eq!(fs::symlink_metadata(path).unwrap().uid(), owner, "{path}");
    }
    let unit = "--unit=kennel-host.service";
    let host_log = machine::ok("journalctl", &["--quiet", "--output=cat", unit, &lab.after()]).await;
    assert!(host_log.contains(&format!("Asked to start_unit {}", live.unit())));
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_and_a_deploy_outlive_a_restart_of_kennel_host() {
    let lab = start(projects()).await;
    let gate = lab.gate();
    let slow = App::default().with(Service::new("api", "one").behind(&gate));
    let build = lab.push("hello", "main", &slow).await.build;
    gate.reached().await;
    let before = machine::main_pid("kennel-host.service").await;
    machine::ok("systemctl", &["restart", "kennel-host.service"]).await;
    assert_ne!(machine::main_pid("kennel-host.service").await, before);
    gate.open().await;
    lab.live(build, "api").await;
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kennel_of_roots_becomes_two_and_one_again_without_its_services_noticing() {
    let lab = Lab::prepare(projects()).await;
    split::merge().await;
    write_secret(Path::new(JWT), "of hello\n");
    write_secret(Path::new(VAULT), "canary-of-the-bank");
    machine::ok("systemctl", &["start", "kennel.service"]).await;
    let live = lab.deploy_api("hello", "main", &app("one")).await;
    let pid = machine::main_pid(&live.unit()).await;
    let daemon = machine::main_pid("kennel.service").await;
    assert_eq!(status(daemon, &["Uid"]), ["0 0 0 0"]);
    assert!(!Path::new("/var/lib/kennel/daemon").exists());

    split::install().await;
    give_secrets(&lab);
    machine::ok("systemctl", &["restart", "kennel.service"]).await;
    assert_eq!(lab.version(&live.host).await, "one");
    assert_eq!(machine::main_pid(&live.unit()).await, pid);
    assert!(!Path::new("/var/lib/kennel/kennel.db").exists());
    // The same commit, with the same secret, is the same: fingerprints are as they were.
    let commit = lab.repo("hello").tip("main").expect("there is a commit");
    let again = lab.push_commit("hello", "main", &commit).await;
    lab.ended_as(again.build, "success").await;
    assert_eq!(lab.settled(again.build, "api").await.state, "noop");

    machine::ok("systemctl", &["stop", "kennel.service"]).await;
    split::merge().await;
    machine::ok("systemctl", &["start", "kennel.service"]).await;
    let daemon = machine::main_pid("kennel.service").await;
    assert_eq!(status(daemon, &["Uid"]), ["0 0 0 0"]);
    assert_eq!(fs::metadata("/var/lib/kennel/daemon").unwrap().uid(), 0);
    assert_eq!(lab.version(&live.host).await, "one");
    assert_eq!(machine::main_pid(&live.unit()).await, pid);
    lab.finish().await;
}

/// Sends messages as a user, each behind its length, and prints what is answered.
async fn attack((user, group): (&str, &str), script: &str) -> Output {
    let preamble = format!(
        "import json, socket, struct, sys\n\
         def dial():\n    s = socket.socket(socket.AF_UNIX); s.connect('{SOCKET}'); s.settimeout(20); return s\n\
         def exactly(s, n):\n    got = b''\n    while len(got) < n:\n        more = s.recv(n - len(got))\n        \
         if not more: raise EOFError\n        got += more\n    return got\n\
         def answer(s):\n    return exactly(s, struct.unpack('>I', exactly(s, 4))[0]).decode()\n\
         def send(s, data):\n    s.sendall(struct.pack('>I', len(data)) + data)\n\
         def ask(call):\n    s = dial(); send(s, json.dumps({{'id': 1, 'call': call}}).encode()); return answer(s)\n"
    );
    machine::run(
        "setpriv",
        &["--reuid", user, "--regid", group, "--clear-groups", "python3", "-c", &(preamble + script)],
    )
    .await
}

/// What is on the machine that an attack could change.
async fn everything() -> Vec<String> {
    let mut seen =
        vec![machine::ok("systemctl", &["list-units", "--all", "--plain", "--no-legend", "*.service"]).await];
    for dir in
        ["/run/systemd/system", "/etc/systemd/system", "/run/kennel/secrets", "/etc/kennel", "/var/lib/kennel/grants"]
    {
        seen.push(machine::ok("ls", &["-lR", "--time-style=full-iso", dir]).await);
    }
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_takes_the_daemon_over_gets_no_further() {
    let lab = start(projects()).await;
    let live = lab.deploy_api("hello", "main", &app("one")).await;
    lab.becomes(live.id, "live").await;
    let shown = machine::property(&live.unit(), "ExecStart").await;
    let path = shown.split("path=").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
    let store_path = path.split("/bin/").next().unwrap();
    let spec = json!({
        "project": "hello", "branch": "heads/main", "environment": "prod", "slug": "main", "service": "api",
        "tag": "kennel-hello-main-api", "user": "kennel-hello-main-api", "deployment": live.id, "port": 19_999,
        "store_path": store_path, "program": "api", "env": {}, "secrets": ["JWT"],
        "confinement": { "limits": {}, "opt_outs": [] },
    });
    let with = |key: &str, value: Value| {
        let mut spec = spec.clone();
        spec[key] = value;
        json!({ "ensure_unit": { "spec": spec } })
    };
    let env = |key: &str, value: Value| {
        let mut spec = spec.clone();
        spec[key] = value;
        json!({ "ensure_env_file": { "spec": spec } })
    };
    let attacks = [
        (json!({ "start_unit": { "unit": "debug-shell.service" } }), "not a unit of a deployment"),
        (json!({ "stop_unit": { "unit": "dbus.service" } }), "not a unit of kennel's"),
        (json!({ "remove_unit": { "unit": "../../etc/passwd.service" } }), "may hold only"),
        (json!({ "journal_tail": { "unit": "init.scope.service", "lines": 99 } }), "not a unit of kennel's"),
        (env("secrets", json!(["VAULT"])), "hello has no secret"),
        (env("secrets", json!([VAULT])), "hello has no secret"),
        (env("secrets", json!({ "JWT": VAULT })), "invalid type"),
        (env("env", json!({ "A\nUser=root": "x" })), "does not have a name of letters"),
        (with("project", json!("bank")), "no names of api of bank"),
        (with("user", json!("root")), "no names of api of hello"),
        (with("slug", json!("../../../etc")), "may hold only"),
        (with("store_path", json!("/nix/store/../../tmp")), "has no"),
        (with("store_path", json!("/tmp/evil")), "does not lie in"),
        (with("program", json!("../../../bin/sh")), "begins with"),
        (with("program", json!("a/b")), "may hold only"),
        (with("deployment", json!(-1)), "not a unit of a deployment"),
        (with("confinement", json!({ "limits": {}, "opt_outs": ["network_raw"] })), "does not allow hello"),
        (with("unit_dir", json!("/etc/systemd/system")), "unknown field"),
        (json!({ "start_build": { "build": 1, "phase": "fetch", "project": "x", "timeout_secs": 9 } }), "no project x"),
        (json!({ "empty_trash": { "older_than": { "secs": 0, "nanos": 0 } } }), "stays there for a day"),
        (json!({ "run": "id" }), "unknown variant"),
    ];
    let before = everything().await;
    for (call, why) in &attacks {
        let output = attack(KENNEL, &format!("print(ask(json.loads({:?})))", call.to_string())).await;
        let said = machine::text(&output.stdout);
        assert!(said.contains("\"Err\"") && said.contains(why), "{call}\n{said}{}", machine::text(&output.stderr));
        assert!(!said.contains("canary"), "{said}");
    }
    let large =
        attack(KENNEL, "s = dial()\ntry: send(s, b' ' * (5 << 20))\nexcept OSError: pass\nprint(answer(s))").await;
    let said = machine::text(&large.stdout);
    assert!(said.contains("cannot be read") || machine::text(&large.stderr).contains("Reset"), "{said}");
    // Far more connections than are taken, half of them held.
    let flood = "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))\nheld = []\nfor n in range(10000):\n    \
                 s = dial()\n    held.append(s)\n    if len(held) > 2000: held.pop(0).close()\nprint('done')";
    let output = attack(KENNEL, flood).await;
    assert_eq!(machine::text(&output.stdout).trim(), "done", "{}", machine::text(&output.stderr));
    assert_eq!(everything().await, before);

    // Everybody else: the file refuses, and where it would not, the peer's credentials do.
    let other = ("nobody", "nogroup");
    let refused = attack(other, "dial()").await;
    assert!(machine::text(&refused.stderr).contains("PermissionError"), "{}", machine::text(&refused.stderr));
    fs::set_permissions(SOCKET, fs::Permissions::from_mode(0o666)).unwrap();
    let refused = attack(other, "print(answer(dial()))").await;
    fs::set_permissions(SOCKET, fs::Permissions::from_mode(0o600)).unwrap();
    let said = machine::text(&refused.stdout);
    assert!(said.contains("may not ask"), "{said}{}", machine::text(&refused.stderr));

    machine::ok("journalctl", &["--sync"]).await;
    let unit = "--unit=kennel-host.service";
    let log = machine::ok("journalctl", &["--quiet", "--no-pager", "--output=cat", unit, &lab.after()]).await;
    for line in
        ["Refused to start_unit debug-shell.service", "hello has no secret", "who is not the daemon's", "there are 8"]
    {
        assert!(log.contains(line), "{line}");
    }
    assert!(!log.contains("canary"));
    // The daemon itself is served as before.
    lab.deploy_api("hello", "main", &app("two")).await;
    lab.finish().await;
}
