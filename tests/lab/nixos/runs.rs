//! What the module makes of a configuration, run on this machine: the daemon, `kennel host`, databases.

use std::fs;
use std::path::{Path, PathBuf};

use http::Method;
use serde_json::Value;

use super::{build, evaluate, path, succeeded};
use crate::harness::{App, Lab, LabConfig, api, machine, split, write_secret};

/// systemd reads units here before those of /etc, where the lab has its own.
const UNITS: &str = "/run/systemd/system.control";
const WEBHOOK: &str = "/etc/kennel/hello-webhook";

/// A machine as the module sets it up: the daemon's file and the unit, in the places where NixOS has them.
async fn install(lab: &Lab, more: &str) -> PathBuf {
    let modules = format!(
        "[ {{ services.kennel = {{ enable = true; settings.base_domain = \"lab.test\"; \
         settings.router.http = \"127.0.0.1:8080\"; projects.hello = {{ repo_url = \"{}\"; repo_type = \"forgejo\"; \
         webhook_secret_file = \"/etc/kennel/hello-webhook\"; }}; {more} }}; }} ]",
        lab.forge.url("hello")
    );
    let machine = path(&build("{ }", &format!("machine {modules}")).await);
    fs::copy(machine.join("config.toml"), "/etc/kennel/config.toml").unwrap();
    fs::create_dir_all(UNITS).unwrap();
    for (unit, overrides) in [
        ("kennel.service", Some("units/kennel")),
        ("kennel-host.service", Some("units/kennel-host")),
        ("kennel.socket", Some("kennel.socket")),
        ("kennel-host.socket", None),
    ] {
        fs::copy(machine.join("package/lib/systemd/system").join(unit), format!("{UNITS}/{unit}")).unwrap();
        fs::create_dir_all(format!("{UNITS}/{unit}.d")).unwrap();
        if let Some(overrides) = overrides {
            fs::copy(machine.join(overrides), format!("{UNITS}/{unit}.d/overrides.conf")).unwrap();
        }
    }
    machine::ok("systemctl", &["daemon-reload"]).await;
    machine
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_runs_by_the_file_and_the_unit_the_module_made() {
    let lab = Lab::prepare(LabConfig::hello()).await;
    let exposure = async |arguments: &[&str]| {
        let said = machine::ok("systemd-analyze", &[&["security", "--no-pager"], arguments].concat()).await;
        let scores = said.lines().filter(|line| line.contains("Overall exposure level"));
        scores.collect::<Vec<_>>().join("\n")
    };
    let by_hand = exposure(&["kennel.service", "kennel-host.service"]).await;
    // Root alone reads it: systemd hands it to the daemon.
    write_secret(Path::new(WEBHOOK), &lab.project("hello").secret);
    machine::ok("chown", &["root:", WEBHOOK]).await;
    install(&lab, "").await;
    let by_module = exposure(&["kennel.service", "kennel-host.service"]).await;
    assert_eq!(by_module, by_hand, "the module leaves the sandbox as it is");
    machine::ok("systemctl", &["start", "kennel.service"]).await;

    for (unit, user) in [("kennel.service", split::USER), ("kennel-host.service", "root")] {
        let pid = machine::main_pid(unit).await;
        let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap();
        assert!(program.starts_with("/nix/store"), "{}", program.display());
        let owner = machine::ok("stat", &["--format=%U", &format!("/proc/{pid}")]).await;
        assert_eq!(owner.trim(), user, "{unit}");
    }
    let sockets = machine::property("kennel.socket", "Listen").await;
    let expected = "127.0.0.1:8080 (Stream)\n127.0.0.1:3000 (Stream)\n/run/kennel/kennel.sock (Stream)";
    assert_eq!(sockets, expected, "systemd holds the sockets of the module's settings");
    assert_eq!(machine::property("kennel.socket", "SubState").await, "running");
    assert!(!lab.journal().await.contains("kennel.socket holds"), "kennel's file names the same ones");
    let doctor = machine::text(&machine::run("kennel", &["doctor"]).await.stdout);
    assert!(doctor.contains("1 file, root's or the daemon's alone"), "{doctor}");
    let one = lab.deploy_api("hello", "main", &App::api("one")).await;
    assert_eq!(lab.version(&one.host).await, "one");

    let second = "projects.second = { repo_url = \"https://forge.example.com/x.git\"; repo_type = \"github\"; \
        webhook_secret_file = \"/etc/kennel/hello-webhook\"; };";
    install(&lab, second).await;
    // NixOS restarts a unit that has changed: here by one more secret to hand over.
    machine::ok("systemctl", &["restart", "kennel.service"]).await;
    let projects = api::ask(Method::GET, "/projects").await;
    assert!(projects.text().contains("second"), "{}", projects.text());
    let pid = machine::main_pid("kennel.service").await;
    // With nothing more to hand over a reload is enough.
    install(&lab, "").await;
    machine::ok("systemctl", &["reload", "kennel.service"]).await;
    let projects = api::ask(Method::GET, "/projects").await;
    assert!(!projects.text().contains("second"), "{}", projects.text());
    assert_eq!(machine::main_pid("kennel.service").await, pid);

    lab.finish().await;
    machine::ok("systemctl", &["stop", "kennel.socket", "kennel-host.socket", "kennel.service", "kennel-host.service"])
        .await;
    fs::remove_dir_all(UNITS).unwrap();
    machine::ok("systemctl", &["daemon-reload"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_on_the_machine_get_passwords_of_their_own() {
    let units = ["kennel-valkey-password", "kennel-postgres-password", "kennel-postgres-role"];
    let machine = path(&build("{ }", "machine [ files.full ]").await);
    for unit in units {
        fs::copy(machine.join("units").join(unit), format!("/run/systemd/system/{unit}.service")).unwrap();
    }
    // Debian has no such target.
    fs::write("/run/systemd/system/postgresql.target", "[Unit]\nRequires=postgresql@17-main.service\n").unwrap();
    machine::ok("systemctl", &["daemon-reload"]).await;
    machine::ok("systemctl", &["start", "postgresql@17-main.service"]).await;
    machine::ok("systemctl", &["start", "kennel-valkey-password.service", "kennel-postgres-role.service"]).await;
    let secret = |name: &str| fs::read_to_string(format!("/var/lib/kennel-secrets/{name}")).unwrap().trim().to_owned();
    let (valkey, postgres) = (secret("valkey-url"), secret("postgres-url"));
    let mode =
        machine::ok("stat", &["--format=%U %a", "/var/lib/kennel-secrets", "/var/lib/kennel-secrets/valkey-url"]);
    assert_eq!(mode.await, "root 700\nroot 600\n");

    let sql = "create role branch; grant branch to current_user; create database branch owner branch; \
        drop database branch; drop role branch;";
    for statement in sql.split_inclusive(';') {
        machine::ok("psql", &[&postgres, "--set=ON_ERROR_STOP=1", "--command", statement]).await;
    }
    let rights = "select rolsuper, rolcreatedb, rolcreaterole from pg_roles where rolname = 'kennel'";
    assert_eq!(machine::ok("psql", &[&postgres, "--tuples-only", "--no-align", "--command", rights]).await, "f|t|t\n");
    let server = succeeded(&evaluate("{ }", "builtins.toJSON full.services.redis.servers.kennel").await);
    let server: Value = serde_json::from_str(&server).unwrap();
    assert_eq!(server["requirePassFile"], "/var/lib/kennel-secrets/valkey-password");
    let (port, databases) = (server["port"].to_string(), server["databases"].to_string());
    let password = secret("valkey-password");
    let start =
        ["--unit=nixos-valkey", "--service-type=notify", "--collect", "valkey-server", "--supervised", "systemd"];
    let settings = ["--port", &port, "--databases", &databases, "--requirepass", &password];
    machine::ok("systemd-run", &[&start[..], &settings].concat()).await;
    let said = machine::ok("valkey-cli", &["-u", &valkey, "acl", "setuser", "branch", "on", "+get"]).await;
    assert_eq!(said.trim(), "OK");

    machine::ok("systemctl", &["restart", "kennel-postgres-role.service", "kennel-valkey-password.service"]).await;
    assert_eq!((secret("valkey-url"), secret("postgres-url")), (valkey, postgres), "passwords are made once");
    let stop = ["stop", "nixos-valkey.service", "postgresql@17-main.service"];
    machine::ok("systemctl", &[&stop[..], &units].concat()).await;
    for name in units.map(|unit| format!("{unit}.service")).iter().map(String::as_str).chain(["postgresql.target"]) {
        fs::remove_file(Path::new("/run/systemd/system").join(name)).unwrap();
    }
    machine::ok("systemctl", &["daemon-reload"]).await;
}
