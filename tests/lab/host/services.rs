//! Deployments: units, environment files, listeners, data.

use std::collections::BTreeMap;
use std::time::Duration;

use kennel::host::machine::render::unit::slice;
use kennel::host::services::probe;
use kennel::host::{Listener, Machine as _, SiteLink, UnitSpec, UnitState};
use kennel::model::{DeploymentId, HostName, Port, UnitName};

use super::{eventually, machine, reloads, run, store, timed};

/// Answers 200 to everything, and writes a file into its data directory.
const SERVE: &str = r#"#!/usr/bin/python3
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
    def log_message(self, *_): pass
with open("data", "a") as file: file.write("x")
server = http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler)
print("listening", flush=True)
server.serve_forever()
"#;

async fn spec(service: &str, deployment: i64, program: &str) -> UnitSpec {
    let port = Port::try_from(18000 + u16::try_from(deployment).unwrap()).unwrap();
    UnitSpec {
        project: "my-shop".parse().unwrap(),
        branch: "heads/main".parse().unwrap(),
        environment: kennel::model::Environment::Prod,
        slug: "main".parse().unwrap(),
        service: service.parse().unwrap(),
        tag: format!("kennel-my-shop-main-{service}").parse().unwrap(),
        user: format!("kennel-{service}").parse().unwrap(),
        deployment: DeploymentId(deployment),
        port,
        store_path: store(service, program).await,
        program: "serve".parse().unwrap(),
        env: [("PORT".to_owned(), port.to_string())].into(),
        secrets: kennel::host::SecretFiles::new(),
        confinement: kennel::model::confinement::Confinement::default(),
    }
}

async fn install(machine: &impl kennel::host::Machine, spec: &UnitSpec) {
    machine.ensure_env_file(spec).await.unwrap();
    machine.ensure_unit(spec).await.unwrap();
}

async fn healthy(port: Port) -> bool {
    let host: HostName = "a.example.com".parse().unwrap();
    probe::http(port, kennel::model::Protocol::Http1, "/health", &host).await.is_ok()
}

async fn known_to_systemd(pattern: &str) -> String {
    run("systemctl", &["list-units", "--all", "--no-legend", "--plain", pattern]).await
}

#[tokio::test]
async fn a_deployment_lives_and_leaves_nothing() {
    let machine = machine().await;
    machine.empty_trash(Duration::ZERO).await.unwrap();
    let mut spec = spec("life", 1, SERVE).await;
    let values = [
        ("PLAIN", "value"),
        ("EMPTY", ""),
        ("PEM", "-----BEGIN KEY-----\nabc+/=\n\tx\n-----END KEY-----\n"),
        ("QUOTES", "a \"b\" 'c' \\ $HOME ${HOME} `id` %h %% #x ; y"),
        ("ENDS_IN_BACKSLASH", "trap\\"),
        ("UNICODE", "naïve ☃ \u{85}\u{10fffd}"),
        ("SPACES", "  both ends  "),
    ];
    let refused = spec.env.insert("X".to_owned(), "\u{ffff}".to_owned());
    assert!(refused.is_none() && machine.ensure_env_file(&spec).await.is_err());
    spec.env.remove("X");
    let values: BTreeMap<String, String> = values.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    spec.env.extend(values.clone());
    let unit = spec.unit();

    let before = reloads().await;
    timed("environment and unit file", install(&machine, &spec)).await;
    timed("start", machine.start_unit(&unit)).await.0.unwrap();
    timed("start what runs", machine.start_unit(&unit)).await.0.unwrap();
    timed("until healthy", eventually("it is healthy", async || healthy(spec.port).await)).await;
    assert_eq!(reloads().await, before, "systemd had to read all units again");

    let UnitState::Active { pid } = timed("state", machine.unit_state(&unit)).await.0.unwrap() else { panic!() };
    let uid = timed("uid", machine.unit_uid(&unit)).await.0.unwrap().unwrap();
    assert!((61_184..=65_519).contains(&uid), "{uid}");
    assert_eq!(timed("listener", machine.listener(spec.port)).await.0.unwrap(), Listener::Owned { uid });
    let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    let environ: BTreeMap<&[u8], &[u8]> = environ
        .split(|&byte| byte == 0)
        .filter_map(|pair| Some((&pair[..pair.iter().position(|&b| b == b'=')?], pair)))
        .map(|(name, pair)| (name, &pair[name.len() + 1..]))
        .collect();
    for (name, value) in &values {
        assert_eq!(environ.get(name.as_bytes()).copied(), Some(value.as_bytes()), "{name}");
    }
    let stat = run("stat", &["-c", "%a %U %n", "/run/kennel/secrets", "/run/kennel/secrets/my-shop-main-life@1.env"]);
    assert_eq!(stat.await, "700 root /run/kennel/secrets\n400 root /run/kennel/secrets/my-shop-main-life@1.env\n");
    let score = run("systemd-analyze", &["security", "--no-pager", unit.as_str()]).await;
    let score = score.trim().lines().last().unwrap();
    println!("{score}");
    let score: f32 = score.split(": ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap().parse().unwrap();
    assert!(score <= 1.2, "{score}");
    let show = ["show", "-p", "SocketBindAllow", "-p", "SocketBindDeny", "-p", "Slice", unit.as_str()];
    let shown = run("systemctl", &show).await;
    assert!(shown.contains("SocketBindAllow=tcp18001") && shown.contains("SocketBindDeny=any"), "{shown}");
    assert!(shown.contains(&format!("Slice={}", slice(&spec.project))), "{shown}");
    let tail = timed("journal", machine.journal_tail(&unit, 5)).await.0.unwrap();
    assert!(tail.iter().any(|line| line == "listening"), "{tail:?}");
    let fields = run("journalctl", &["-t", spec.tag.as_str(), "-o", "json", "-n", "1"]).await;
    assert!(fields.contains("\"KENNEL_PROJECT\":\"my-shop\""), "{fields}");
    assert_eq!(machine.own_units().await.unwrap(), std::slice::from_ref(&unit));

    timed("stop", machine.stop_unit(&unit)).await.0.unwrap();
    assert_eq!(machine.unit_state(&unit).await.unwrap(), UnitState::Dead { result: "success".to_owned() });
    machine.stop_unit(&unit).await.unwrap();
    timed("remove", machine.remove_unit(&unit)).await.0.unwrap();
    machine.remove_unit(&unit).await.unwrap();
    assert!(machine.own_units().await.unwrap().is_empty());
    eventually("systemd forgot it", async || known_to_systemd("kennel-my*").await.is_empty()).await;
    assert_eq!(machine.unit_state(&unit).await.unwrap(), UnitState::Absent);

    let data = "/var/lib/kennel/services/my-shop/main/life";
    assert_eq!(std::fs::read_to_string(format!("{data}/data")).unwrap(), "x");
    assert_eq!(machine.inventory().await.unwrap().data_dirs.len(), 1);
    machine.remove_data_dir(&spec.project, &spec.slug, &spec.service).await.unwrap();
    machine.remove_data_dir(&spec.project, &spec.slug, &spec.service).await.unwrap();
    assert_eq!(machine.inventory().await.unwrap().data_dirs, []);
    for top in ["/var/lib/kennel/services", "/var/lib/private/kennel/services"] {
        assert_eq!(std::fs::read_dir(top).unwrap().count(), 0, "{top}");
    }
    assert_eq!(run("sh", &["-c", "cat /var/lib/kennel/trash/*-my-shop.main.life/data"]).await, "x");
    machine.empty_trash(Duration::from_secs(3600)).await.unwrap();
    assert_eq!(std::fs::read_dir("/var/lib/kennel/trash").unwrap().count(), 1);
    machine.empty_trash(Duration::ZERO).await.unwrap();
    assert_eq!(std::fs::read_dir("/var/lib/kennel/trash").unwrap().count(), 0);
}

#[tokio::test]
async fn a_unit_installed_again_needs_no_reload_and_a_changed_one_gets_it() {
    let machine = machine().await;
    let first = spec("again", 2, SERVE).await;
    let unit = first.unit();
    let before = reloads().await;
    for port in [18_002, 18_902] {
        let port = Port::try_from(port).unwrap();
        let spec = UnitSpec { port, env: [("PORT".to_owned(), port.to_string())].into(), ..first.clone() };
        install(&machine, &spec).await;
        timed("start after removal", machine.start_unit(&unit)).await.0.unwrap();
        eventually("it is healthy", async || healthy(port).await).await;
        machine.stop_unit(&unit).await.unwrap();
        machine.remove_unit(&unit).await.unwrap();
    }
    assert_eq!(reloads().await, before);

    install(&machine, &first).await;
    machine.start_unit(&unit).await.unwrap();
    install(&machine, &first).await;
    machine.start_unit(&unit).await.unwrap();
    assert_eq!(reloads().await, before, "the same unit written twice");
    machine.ensure_unit(&UnitSpec { port: Port::try_from(18_903).unwrap(), ..first.clone() }).await.unwrap();
    timed("start of a changed unit", machine.start_unit(&unit)).await.0.unwrap();
    assert_ne!(reloads().await, before);
    machine.stop_unit(&unit).await.unwrap();
    machine.remove_unit(&unit).await.unwrap();
    machine.remove_data_dir(&first.project, &first.slug, &first.service).await.unwrap();
}

#[tokio::test]
async fn a_program_that_ends_or_is_missing_is_told_with_its_reason() {
    let machine = machine().await;
    let crashes = spec("crash", 3, "#!/bin/sh\necho 'no table dogs' >&2\nexit 3\n").await;
    let missing = spec("missing", 4, "#!/nonexistent/interpreter\n").await;
    let mut dies = spec("dies", 5, "#!/bin/sh\nkill -SEGV $$\n").await;
    install(&machine, &crashes).await;
    let started = machine.start_unit(&crashes.unit()).await;
    println!("start of a program that ends at once: {started:?}");
    let expected = UnitState::Restarting { result: "exit-code, status 3".to_owned() };
    eventually("it is told", async || machine.unit_state(&crashes.unit()).await.unwrap() == expected).await;
    let tail = timed("journal", machine.journal_tail(&crashes.unit(), 20)).await.0.unwrap();
    println!("{tail:#?}");
    assert!(tail.iter().any(|line| line == "no table dogs"), "{tail:?}");

    install(&machine, &missing).await;
    let error = machine.start_unit(&missing.unit()).await.unwrap_err();
    println!("{error}: {}", error.source);
    assert!(error.source.to_string().contains("203/EXEC"), "{}", error.source);

    install(&machine, &dies).await;
    let _ = machine.start_unit(&dies.unit()).await;
    eventually("it is told", async || {
        let state = machine.unit_state(&dies.unit()).await.unwrap();
        matches!(&state, UnitState::Restarting { result } if result.contains("SIGSEGV"))
    })
    .await;
    dies.deployment = DeploymentId(6);
    let error = machine.start_unit(&dies.unit()).await.unwrap_err();
    println!("{error}: {}", error.source);
    dies.deployment = DeploymentId(5);
    for spec in [&crashes, &missing, &dies] {
        timed("stop of what waits for its restart", machine.stop_unit(&spec.unit())).await.0.unwrap();
        machine.remove_unit(&spec.unit()).await.unwrap();
        machine.remove_data_dir(&spec.project, &spec.slug, &spec.service).await.unwrap();
    }
    assert!(machine.own_units().await.unwrap().is_empty());
    eventually("systemd forgot them", async || known_to_systemd("kennel-my*").await.is_empty()).await;
    let error = machine.start_unit(&"dbus.service".parse::<UnitName>().unwrap()).await.unwrap_err();
    assert!(error.source.to_string().contains("not a unit of kennel's"));
}

#[tokio::test]
async fn many_start_side_by_side_and_old_and_new_share_their_data() {
    let machine = machine().await;
    let mut specs = Vec::new();
    for deployment in 20..40 {
        specs.push(spec("many", deployment, SERVE).await);
    }
    let before = reloads().await;
    for spec in &specs {
        install(&machine, spec).await;
    }
    let units: Vec<UnitName> = specs.iter().map(UnitSpec::unit).collect();
    let starts = futures_util::future::try_join_all(units.iter().map(|unit| machine.start_unit(unit)));
    timed("20 starts", starts).await.0.unwrap();
    for spec in &specs {
        eventually("it is healthy", async || healthy(spec.port).await).await;
    }
    assert_eq!(reloads().await, before);
    let mut uids = Vec::new();
    for unit in &units {
        uids.push(machine.unit_uid(unit).await.unwrap().unwrap());
    }
    uids.dedup();
    assert_eq!(uids.len(), 1);
    let data = std::fs::read_to_string("/var/lib/kennel/services/my-shop/main/many/data").unwrap();
    assert_eq!(data.len(), 20);
    assert_eq!(machine.own_units().await.unwrap().len(), 20);
    let stops = futures_util::future::try_join_all(units.iter().map(|unit| machine.stop_unit(unit)));
    timed("20 stops", stops).await.0.unwrap();
    for unit in &units {
        machine.remove_unit(unit).await.unwrap();
    }
    machine.remove_data_dir(&specs[0].project, &specs[0].slug, &specs[0].service).await.unwrap();
    eventually("systemd forgot them", async || known_to_systemd("kennel-my*").await.is_empty()).await;
}

#[tokio::test]
async fn what_ignores_sigterm_is_killed_with_its_children() {
    let machine = machine().await;
    let program =
        "#!/bin/sh\ntrap '' TERM\n(trap '' TERM; exec sleep 1000) &\ntouch ready\nwhile :; do sleep 1; done\n";
    let spec = spec("stubborn", 7, program).await;
    install(&machine, &spec).await;
    machine.start_unit(&spec.unit()).await.unwrap();
    let ready = "/var/lib/kennel/services/my-shop/main/stubborn/ready";
    eventually("it is ready", async || std::fs::exists(ready).unwrap()).await;
    let (stopped, took) = timed("stop of what ignores SIGTERM", machine.stop_unit(&spec.unit())).await;
    stopped.unwrap();
    assert!(took >= Duration::from_secs(9) && took < Duration::from_secs(13), "{took:?}");
    assert!(run("sh", &["-c", "pgrep -f '[s]leep 1000' || true"]).await.is_empty());
    println!("{:?}", machine.unit_state(&spec.unit()).await.unwrap());
    machine.remove_unit(&spec.unit()).await.unwrap();
    eventually("systemd forgot it", async || known_to_systemd("kennel-my*").await.is_empty()).await;
    machine.remove_data_dir(&spec.project, &spec.slug, &spec.service).await.unwrap();
}

#[tokio::test]
async fn a_bus_that_goes_away_and_comes_back_is_found_again() {
    let machine = machine().await;
    let spec = spec("bus", 8, SERVE).await;
    install(&machine, &spec).await;
    machine.start_unit(&spec.unit()).await.unwrap();
    let unit = spec.unit();
    let waits = machine.wait_unit(&unit);
    let stops = async {
        run("sh", &["-c", "pkill -x dbus-daemon; sleep 0.3; systemctl restart dbus.socket dbus.service"]).await;
        eventually("the bus is back", async || machine.unit_state(&unit).await.is_ok()).await;
        timed("stop over the new connection", machine.stop_unit(&unit)).await.0.unwrap();
    };
    let (ended, ()) = tokio::join!(timed("until the wait returns", waits), stops);
    println!("{:?}", ended.0);
    ended.0.unwrap();
    machine.remove_unit(&unit).await.unwrap();
    machine.remove_data_dir(&spec.project, &spec.slug, &spec.service).await.unwrap();
}

#[tokio::test]
async fn a_sites_link_follows_its_newest_version() {
    let machine = machine().await;
    let (one, two) = (store("one", "1").await, store("two", "2").await);
    let link =
        SiteLink { project: "my-shop".parse().unwrap(), slug: "main".parse().unwrap(), site: "web".parse().unwrap() };
    let path = "/var/lib/kennel/sites/my-shop/main/web";
    for to in [&one, &one, &two] {
        machine.ensure_site_link(&link, to).await.unwrap();
        assert_eq!(std::fs::read_link(path).unwrap().to_str(), Some(to.as_str()));
    }
    assert_eq!(machine.inventory().await.unwrap().site_links, [(link.clone(), Some(two))]);
    machine.remove_site_link(&link).await.unwrap();
    machine.remove_site_link(&link).await.unwrap();
    assert_eq!(std::fs::read_dir("/var/lib/kennel/sites").unwrap().count(), 0);
}
