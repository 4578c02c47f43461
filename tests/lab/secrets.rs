//! The operator's secrets reach the service they are meant for, to the byte and by both ways, and are found nowhere
//! else on the machine.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};

use crate::harness::{App, Deployment, Lab, LabConfig, ProjectSpec, Service, api, machine, until, write_secret};
use crate::isolation::inside;

/// A file with everything in its name that a unit could take for something else.
const ODD: &str = "/etc/kennel/odd-%n:$HOME\"'x;#=ü.key";
const PLAIN: &str = "/etc/kennel/hello-jwt";

/// A word that is nowhere on the machine.
fn canary() -> String {
    let mut random = [0; 12];
    fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut random)).expect("there is randomness");
    format!("canary-{}", hex::encode(random))
}

/// A key as tools write them: lines, and a line break at its end; with all that quoting could spoil.
fn key(canary: &str) -> String {
    format!("-----BEGIN {canary}\n\tYWJj \"q\" 'x' $HOME ${{X}} `id` 100% \\n \\\n\n{canary} # ; = ~\n-----END-----\n")
}

fn secret(environment: &str, name: &str, path: &str) -> String {
    format!("secrets.{environment}.{name}.file = {}", toml::Value::String(path.to_owned()))
}

fn asking(version: &str) -> Service {
    Service::new("api", version).settings(&["drain_secs = 1", "secrets = [\"JWT_SECRET\", \"TLS_KEY\"]"])
}

/// `hello` with its secrets, and a neighbour.
async fn start() -> Lab {
    let hello = ProjectSpec::new("hello")
        .line(&secret("prod", "JWT_SECRET", PLAIN))
        .line(&secret("prod", "TLS_KEY", ODD))
        .line(&secret("preview", "JWT_SECRET", "/etc/kennel/preview-jwt"));
    Lab::start(LabConfig::of([hello, ProjectSpec::new("curious")])).await
}

/// The service has both secrets, as variables and as credentials.
async fn expect_given(lab: &Lab, live: &Deployment, plain: &str, odd: &str) {
    let pid = machine::main_pid(&live.unit()).await;
    let environ = fs::read(format!("/proc/{pid}/environ")).expect("the process runs");
    let env: Value = lab.visit(&live.host, "/env").await.expect(200).json();
    let dir = env["CREDENTIALS_DIRECTORY"].as_str().expect("systemd tells where the credentials are");
    for (name, content) in [("JWT_SECRET", plain), ("TLS_KEY", odd)] {
        let variable = format!("{name}={}\0", content.strip_suffix('\n').unwrap_or(content));
        assert!(holds(&environ, variable.as_bytes()), "{name}: {}", String::from_utf8_lossy(&environ));
        let credential: String = lab.visit(&live.host, &format!("/read?{dir}/{name}")).await.expect(200).json();
        assert_eq!(credential, content, "{name}");
    }
}

fn holds(bytes: &[u8], word: &[u8]) -> bool {
    bytes.windows(word.len()).any(|found| found == word)
}

/// The regular files below a directory that hold the word; mounts below it included.
fn files_with(top: &str, word: &str) -> BTreeSet<PathBuf> {
    let (mut found, mut todo) = (BTreeSet::new(), vec![PathBuf::from(top)]);
    while let Some(dir) = todo.pop() {
        for name in machine::names(&dir) {
            let path = dir.join(name);
            let Ok(kind) = fs::symlink_metadata(&path).map(|found| found.file_type()) else { continue };
            if kind.is_dir() {
                todo.push(path);
            } else if kind.is_file()
                && !kind.is_fifo()
                && fs::read(&path).is_ok_and(|content| holds(&content, word.as_bytes()))
            {
                found.insert(path);
            }
        }
    }
    found
}

/// Processes that name the word in their arguments, and those that have it in their environment.
fn processes_with(word: &str) -> (Vec<String>, Vec<u32>) {
    let (mut arguments, mut environments) = (Vec::new(), Vec::new());
    for process in machine::processes() {
        if process.command.contains(word) {
            arguments.push(process.command);
        }
        let environ = fs::read(format!("/proc/{}/environ", process.pid)).unwrap_or_default();
        if holds(&environ, word.as_bytes()) {
            environments.push(process.pid);
        }
    }
    (arguments, environments)
}

/// Everything kennel, systemd and Nix tell an operator.
async fn all_that_is_told(live: &Deployment) -> Vec<(String, String)> {
    let mut told = Vec::new();
    let mut paths = vec!["/builds", "/deployments", "/deployments?all=1", "/projects", "/healthz", "/nothing"]
        .into_iter()
        .map(str::to_owned)
        .collect::<Vec<_>>();
    for build in api::builds().await {
        paths.extend([format!("/builds/{}", build.id), format!("/builds/{}/logs", build.id)]);
        paths.push(format!("/builds/{}/logs/api", build.id));
    }
    paths.extend(api::deployments().await.iter().map(|one| format!("/deployments/{}", one.id)));
    for path in paths {
        let answer = api::ask(Method::GET, &path).await.text();
        told.push((format!("GET {path}"), answer));
    }
    let unit = live.unit();
    machine::ok("journalctl", &["--sync"]).await;
    for command in [
        &["journalctl", "--all", "--output=export"][..],
        &["kennel", "status"],
        &["kennel", "status", "--json"],
        &["kennel", "builds", "--json"],
        &["systemctl", "show", &unit],
        &["systemctl", "cat", &unit],
        &["systemctl", "status", "--no-pager", "--full", &unit],
        &["systemctl", "show-environment"],
    ] {
        told.push((command.join(" "), machine::ok(command[0], &command[1..]).await));
    }
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_reaches_its_service_and_is_found_nowhere_else() {
    let lab = start().await;
    let (one, two) = (canary(), canary());
    write_secret(Path::new(PLAIN), &one);
    write_secret(Path::new(ODD), &key(&two));
    let neighbour = lab.deploy_api("curious", "main", &App::api("one")).await;
    let gate = lab.gate();
    let pushed = lab.push("hello", "main", &App::default().with(asking("one").behind(&gate))).await;
    gate.reached().await;
    for path in [PLAIN, ODD, "/run/kennel/secrets"] {
        let read = inside(pushed.build, &format!("cat -- '{}'", path.replace('\'', "'\\''"))).await;
        assert!(!read.status.success() && read.stdout.is_empty(), "a build reads {path}");
    }
    gate.open().await;
    let live = lab.live(pushed.build, "api").await;
    expect_given(&lab, &live, &one, &key(&two)).await;

    // Only where it must be, and there for root and the service alone.
    let env_file = PathBuf::from(format!("/run/kennel/secrets/hello-main-api@{}.env", live.id));
    let credentials = Path::new("/run/credentials").join(live.unit());
    for (word, file, name) in [(&one, PLAIN, "JWT_SECRET"), (&two, ODD, "TLS_KEY")] {
        let expected = BTreeSet::from([PathBuf::from(file), env_file.clone(), credentials.join(name)]);
        let mut found = BTreeSet::new();
        for top in ["/etc", "/run", "/var", "/tmp", "/srv", "/root", "/nix/var", "/dev/shm"] {
            found.extend(files_with(top, word));
        }
        assert_eq!(found, expected);
        assert_eq!(processes_with(word), (vec![], vec![machine::main_pid(&live.unit()).await]));
        for (what, said) in all_that_is_told(&live).await {
            assert!(!said.contains(word.as_str()), "`{what}` tells it");
        }
    }
    let unit = machine::ok("systemctl", &["cat", &live.unit()]).await;
    assert!(unit.contains(&format!("LoadCredential=JWT_SECRET:{PLAIN}\n")), "{unit}");
    let kept = crate::harness::leftovers::rows("select path from deployment_secrets order by name").await;
    assert_eq!(kept, [PLAIN, ODD]);
    let shown: Value = api::get(&format!("/deployments/{}", live.id)).await;
    assert_eq!((&shown["secrets"][0]["name"], &shown["secrets"][0]["path"]), (&json!("JWT_SECRET"), &json!(PLAIN)));
    let fingerprints = crate::harness::leftovers::rows("select fingerprint from deployment_secrets").await;
    assert!(fingerprints.len() == 2 && fingerprints.iter().all(|one| one.len() == 64), "{fingerprints:?}");

    let pid = machine::main_pid(&live.unit()).await;
    for path in [
        env_file.display().to_string(),
        credentials.join("JWT_SECRET").display().to_string(),
        PLAIN.to_owned(),
        format!("/proc/{pid}/environ"),
    ] {
        assert!(fs::read(&path).is_ok(), "there is something to be found at {path}");
        let read: String = lab.visit(&neighbour.host, &format!("/read?{path}")).await.expect(200).json();
        assert!(read.starts_with("error: "), "a neighbour reads {path}: {read}");
    }
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_prints_its_secrets_and_dies_has_their_names_in_its_reason() {
    let lab = start().await;
    let (one, two) = (canary(), canary());
    write_secret(Path::new(PLAIN), &one);
    write_secret(Path::new(ODD), &key(&two));
    let pushed = lab.push("hello", "main", &App::default().with(asking("one").mode("blab"))).await;
    let failed = lab.settled(pushed.build, "api").await;
    assert_eq!(failed.state, "failed");
    println!("{}", failed.reason());
    // root may read it there, and the service has put it there.
    let tag = "--identifier=kennel-hello-main-api";
    let journal = machine::ok("journalctl", &["--quiet", "--output=cat", tag]).await;
    assert!(journal.contains(&one) && journal.contains(&two), "it did print them: {journal}");

    for line in ["cannot go on with JWT_SECRET=[JWT_SECRET]", "cannot go on with TLS_KEY=[TLS_KEY]"] {
        assert!(failed.reason().contains(line), "{}", failed.reason());
    }
    for path in ["/deployments?all=1".to_owned(), format!("/deployments/{}", failed.id)] {
        let told = api::ask(Method::GET, &path).await.text();
        assert!(told.contains("[JWT_SECRET]"), "{told}");
    }
    for command in [&["status"][..], &["status", "--json"]] {
        let told = machine::ok("kennel", command).await;
        assert!(!told.contains(&one) && !told.contains(&two), "{told}");
    }
    for line in key(&two).lines().filter(|line| line.trim().len() >= 4) {
        assert!(!failed.reason().contains(line.trim()), "{line}: {}", failed.reason());
    }
    let said = lab.journal().await;
    for word in [&one, &two] {
        assert!(!failed.reason().contains(word.as_str()) && !said.contains(word.as_str()));
        let found = files_with("/var/lib/kennel", word);
        assert!(found.is_empty(), "{found:?}");
    }
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_and_a_reboot_find_the_same_secrets_and_a_rotation_deploys_anew() {
    let lab = start().await;
    let (one, two) = (canary(), canary());
    write_secret(Path::new(PLAIN), &one);
    write_secret(Path::new(ODD), &key(&two));
    let first = lab.deploy_api("hello", "main", &App::default().with(asking("one"))).await;
    machine::ok("systemctl", &["restart", &first.unit()]).await;
    until("it serves again", Duration::from_secs(10), async || {
        (lab.visit(&first.host, "/").await.status == 200).then_some(())
    })
    .await;
    expect_given(&lab, &first, &one, &key(&two)).await;

    // What a reboot takes away.
    machine::ok("systemctl", &["stop", "kennel.service", &first.unit()]).await;
    fs::remove_dir_all("/run/kennel/secrets").unwrap();
    fs::remove_file(Path::new("/run/systemd/system").join(first.unit())).unwrap();
    machine::ok("systemctl", &["daemon-reload"]).await;
    machine::ok("systemctl", &["start", "kennel.service"]).await;
    until("it serves again", Duration::from_secs(10), async || {
        (lab.visit(&first.host, "/").await.status == 200).then_some(())
    })
    .await;
    expect_given(&lab, &first, &one, &key(&two)).await;

    let again = async || {
        let asked = json!({ "branch": "main", "commit": first.commit });
        let answer = api::post("/projects/hello/deploy", &asked).await.expect(202);
        let build = answer.json::<Value>()["build"].as_i64().expect("a build was queued");
        lab.settled(build, "api").await
    };
    assert_eq!(again().await.state, "noop");
    let rotated = canary();
    write_secret(Path::new(PLAIN), &rotated);
    let second = again().await;
    assert_eq!(second.state, "live", "{:?}", second.reason);
    expect_given(&lab, &second, &rotated, &key(&two)).await;

    fs::remove_file(PLAIN).unwrap();
    let failed = again().await;
    assert_eq!(failed.state, "failed");
    println!("{}", failed.reason());
    assert!(failed.reason().contains("`JWT_SECRET`") && failed.reason().contains(PLAIN), "{}", failed.reason());
    assert_eq!(lab.version(&second.host).await, "one");
    for word in [&one, &rotated, &two] {
        assert!(!lab.journal().await.contains(word.as_str()));
    }
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_request_gets_the_secrets_of_preview_and_no_other() {
    let lab = start().await;
    write_secret(Path::new(PLAIN), "of prod");
    write_secret(Path::new("/etc/kennel/preview-jwt"), "of preview\n");
    let head = |secrets: &str| {
        let service = Service::new("api", "one").settings(&["drain_secs = 1", secrets]);
        lab.repo("hello").commit("main", &App::default().with(service).files(), "Improve things")
    };
    let build = async |action: &str, commit: &str| {
        let answer = lab.pull("hello", action, 7, commit).await.expect(202);
        answer.json::<Value>()["build"].as_i64().expect("a build was queued")
    };
    let opened = build("opened", &head("secrets = [\"JWT_SECRET\"]")).await;
    let live = lab.live(opened, "api").await;
    let env: Value = lab.visit(&live.host, "/env").await.expect(200).json();
    assert_eq!(env["JWT_SECRET"], "of preview");

    let greedy = build("synchronized", &head("secrets = [\"JWT_SECRET\", \"TLS_KEY\"]")).await;
    let failed = lab.settled(greedy, "api").await;
    assert_eq!(failed.state, "failed");
    println!("{}", failed.reason());
    assert!(failed.reason().contains("`TLS_KEY`, not configured for preview"), "{}", failed.reason());
    assert!(failed.reason().contains("`[projects.hello.secrets.preview]`"), "{}", failed.reason());
    assert_eq!(lab.version(&live.host).await, "one");
    lab.finish().await;
}
