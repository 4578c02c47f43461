//! Machines that Nix builds on build for kennel as well, since Nix's daemon asks them.
//!
//! The other machine is one that `lab` boots beside this one: a store and a Nix of its own, reached by ssh.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::harness::{App, Lab, Service, api, app, machine, ssh, until};

/// Where the other machine has put the keys that let one in.
const KEYS: &str = "/lab/shared";
const SSH_CONFIG: &str = "/etc/ssh/ssh_config.d/other-machine.conf";
/// Where NixOS writes `nix.buildMachines`, and Nix looks unless `builders` says otherwise.
const MACHINES: &str = "/etc/nix/machines";
const PORT: u16 = 2223;
const OTHER: &str = "ssh-ng://other-machine";

/// Lets the Nix daemon reach the other machine under the name `other-machine`.
async fn meet_other_machine() {
    ssh::pin(KEYS, "known", "host", PORT);
    let client = format!(
        "Host other-machine\n  HostName 127.0.0.1\n  Port {PORT}\n  User root\n  IdentityFile {KEYS}/user\n  \
         UserKnownHostsFile {KEYS}/known\n  BatchMode yes\n"
    );
    fs::create_dir_all(Path::new(SSH_CONFIG).parent().unwrap()).unwrap();
    fs::write(SSH_CONFIG, client).unwrap();
    let there = until("the other machine lets us in", Duration::from_secs(10), async || {
        let said = machine::run("ssh", &["other-machine", "readlink", "/proc/1/ns/mnt"]).await;
        said.status.success().then(|| machine::text(&said.stdout))
    })
    .await;
    assert_ne!(there, machine::ok("readlink", &["/proc/1/ns/mnt"]).await, "it is a machine of its own");
}

/// What a store says of a path.
async fn info(store: &str, path: &str) -> Value {
    let said = machine::ok("nix", &["path-info", "--json", "--store", store, path]).await;
    let said: Value = serde_json::from_str(&said).unwrap();
    said[path].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_runs_on_the_machine_that_nix_names() {
    let lab = Lab::hello().await;
    meet_other_machine().await;
    // Ten times as fast, so that it is never this machine's turn.
    fs::write(MACHINES, format!("{OTHER} {} - 4 10\n", app::system())).unwrap();

    // The package itself is put together here; what is run for it is what other machines are for.
    let service = Service::new("api", "from afar").builds_by("echo from afar");
    let live = lab.deploy_api("hello", "main", &App::default().with(service)).await;
    assert_eq!(lab.version(&live.host).await, "from afar");
    let detail: Value = api::get(&format!("/builds/{}", live.build)).await;
    let package = detail["artifacts"][0]["store_path"].as_str().expect("it was built").to_owned();
    let references = machine::ok("nix-store", &["--query", "--references", &package]).await;
    let path = references.lines().find(|path| path.ends_with("-api-check")).expect("it refers to what was run");
    let (there, here) = (info(OTHER, path).await, info("local", path).await);
    println!("there: {there:#}\nhere: {here:#}");
    // Nix calls "ultimate" what a store has built itself.
    assert_eq!(there["ultimate"], true, "it was built there");
    assert_ne!(here["ultimate"], true, "and copied here");
    let log: String = api::ask(http::Method::GET, &format!("/builds/{}/logs/api", live.build)).await.text();
    assert!(log.contains("from afar"), "what is said there is in the log here: {log}");

    lab.finish().await;
    for path in [MACHINES, SSH_CONFIG] {
        fs::remove_file(path).unwrap();
    }
}
