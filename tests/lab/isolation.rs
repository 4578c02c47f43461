//! A repository cannot hurt the host, nor another project: not while it is built, and not while it runs.

use std::process::Output;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::harness::{App, Lab, LabConfig, ProjectSpec, Service, api, app, machine, until};

/// What a process of a build's unit, as the build user, could do: its files, its processes.
pub(crate) async fn inside(build: i64, script: &str) -> Output {
    let pid = machine::main_pid(&format!("kennel-build-{build}.service")).await.to_string();
    let uid = machine::uid_of("kennel-build").await.to_string();
    let place = ["--target", &pid, "--mount", "--pid", "--ipc", "--setuid", &uid, "--setgid", &uid];
    machine::run("nsenter", &[&place[..], &["--", "sh", "-c", script]].concat()).await
}

async fn seen_inside(build: i64, script: &str) -> String {
    let output = inside(build, script).await;
    format!("{}{}", machine::text(&output.stdout), machine::text(&output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn two_builds_side_by_side_do_not_see_each_other() {
    let lab = Lab::start(LabConfig::of([ProjectSpec::new("victim"), ProjectSpec::new("curious")])).await;
    let (gate, other_gate) = (lab.gate(), lab.gate());
    let victim = lab.push("victim", "main", &App::default().with(Service::new("api", "v").behind(&gate))).await.build;
    let curious = App::default().with(Service::new("api", "c").behind(&other_gate));
    let curious = lab.push("curious", "main", &curious).await.build;
    gate.reached().await;
    other_gate.reached().await;

    // Its own things are there, so that what is refused below is refused for a reason.
    let own = inside(curious, &format!("cat /var/lib/kennel/work/{curious}/checkout/.git/HEAD")).await;
    assert!(own.status.success(), "{}", machine::text(&own.stderr));
    assert_eq!(seen_inside(curious, "ls /var/lib/kennel/work").await.trim(), curious.to_string());
    assert_eq!(seen_inside(curious, "ls /var/lib/kennel/logs").await.trim(), curious.to_string());
    assert_eq!(
        seen_inside(curious, "ls /var/lib/kennel").await.split_whitespace().collect::<Vec<_>>(),
        ["logs", "work"]
    );
    for path in [
        format!("/var/lib/kennel/work/{victim}/job.json"),
        format!("/var/lib/kennel/work/{victim}/checkout/.git/HEAD"),
        "/var/lib/kennel/kennel.db".to_owned(),
        "/run/kennel/kennel.sock".to_owned(),
        "/etc/kennel/victim-webhook".to_owned(),
    ] {
        let read = inside(curious, &format!("cat {path}")).await;
        assert!(!read.status.success() && read.stdout.is_empty(), "{path} can be read");
    }
    let through_proc =
        seen_inside(curious, "for dir in /proc/[0-9]*; do cat $dir/root/etc/hostname $dir/cmdline; done").await;
    assert!(!through_proc.contains(&format!("build {victim}")) && !through_proc.contains("/usr/bin/kennel daemon"));
    let victim_pid = machine::main_pid(&format!("kennel-build-{victim}.service")).await;
    let kill =
        inside(curious, &format!("kill -9 {victim_pid}; for dir in /proc/[0-9]*; do echo $dir; done | wc -l")).await;
    assert!(machine::text(&kill.stdout).trim().parse::<u32>().unwrap() < 12, "it sees only its own processes");
    assert_eq!(machine::main_pid(&format!("kennel-build-{victim}.service")).await, victim_pid);

    gate.open().await;
    other_gate.open().await;
    lab.live(victim, "api").await;
    lab.live(curious, "api").await;
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flake_cannot_read_the_machine() {
    let lab = Lab::start(LabConfig::of([ProjectSpec::new("marmalade"), ProjectSpec::new("hello")])).await;
    let gate = lab.gate();
    let slow = App::default().with(Service::new("api", "v").behind(&gate));
    let victim = lab.push("marmalade", "main", &slow).await.build;
    gate.reached().await;
    let job = format!("/var/lib/kennel/work/{victim}/job.json");
    assert!(std::fs::read_to_string(&job).unwrap().contains("marmalade"), "there is something to be found");
    let checkout = format!("/var/lib/kennel/work/{victim}/checkout");

    let expressions = [
        format!("builtins.readFile \"{job}\""),
        format!("builtins.readFile /. + \"{job}\""),
        format!("builtins.path {{ path = \"{job}\"; name = \"x\"; }}"),
        format!("builtins.toJSON (builtins.readDir \"/var/lib/kennel/work\") + builtins.readFile \"{job}\""),
        format!("builtins.fetchGit {{ url = \"file://{checkout}\"; allRefs = true; }}"),
        format!("(builtins.fetchTree {{ type = \"path\"; path = \"/var/lib/kennel/work/{victim}\"; }}).outPath"),
        format!("builtins.fetchurl \"file://{job}\""),
        format!("(builtins.getFlake \"path:/var/lib/kennel/work/{victim}\").outPath"),
        "builtins.readFile \"/etc/kennel/marmalade-webhook\"".to_owned(),
        "builtins.readFile \"/proc/self/environ\" + builtins.getEnv \"HOME\"".to_owned(),
    ];
    let mut manifest = String::new();
    let mut outputs = String::new();
    for (n, expression) in expressions.iter().enumerate() {
        manifest += &format!("[static_sites.try{n}]\n");
        outputs += &format!(
            "try{n} = derivation {{ name = \"try{n}\"; system = \"{}\"; builder = \"/bin/sh\"; \
            args = [ \"-c\" \"echo $found; echo $found >$out\" ]; found = {expression}; }};\n",
            app::system()
        );
    }
    // What a builder, in Nix's sandbox, finds by itself.
    manifest += "[static_sites.builder]\n";
    outputs += &format!(
        "builder = derivation {{ name = \"builder\"; system = \"{}\"; builder = \"/bin/sh\"; \
        args = [ \"-c\" \"read -r line <{job} && echo $line; echo x >$out\" ]; }};\n",
        app::system()
    );
    let flake = format!("{{ outputs = _: {{ packages.{} = {{\n{outputs}}}; }}; }}", app::system());
    let app = App::default().file("flake.nix", flake).file("kennel.toml", manifest);
    let pushed = lab.push("hello", "main", &app).await;
    let build = lab.ended_as(pushed.build, "failed").await;

    for artifact in &build.artifacts {
        assert_eq!(artifact.state, "failed", "`{}` was built", artifact.name);
        let told = format!("{:?} {}", artifact.reason, api::log(pushed.build, &artifact.name).await);
        let found = told.replace(&job, "").replace("/etc/kennel/marmalade-webhook", "");
        assert!(!found.contains("marmalade") && !found.contains("hush-"), "`{}` found out: {told}", artifact.name);
    }
    assert_eq!(build.artifacts.len(), expressions.len() + 1);

    // The same as an input that no lock file fixes.
    let flake = format!(
        "{{ inputs.x.url = \"path:/var/lib/kennel/work/{victim}\"; inputs.x.flake = false; \
        outputs = {{ x, ... }}: {{ packages.{}.api = builtins.readFile \"${{x}}/job.json\"; }}; }}",
        app::system()
    );
    let pushed = lab.push("hello", "main", &App::api("x").file("flake.nix", flake)).await;
    let build = lab.ended_as(pushed.build, "failed").await;
    let told = format!("{:?} {}", build.artifact("api").reason, api::log(pushed.build, "api").await);
    assert!(!told.contains("marmalade"), "{told}");
    let copied =
        machine::run("sh", &["-c", "grep -ls marmalade.git /nix/store/*/job.json /nix/store/*-job.json"]).await;
    assert!(copied.stdout.is_empty(), "it was copied to the store: {}", machine::text(&copied.stdout));

    gate.open().await;
    lab.live(victim, "api").await;
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_builder_with_the_network_cannot_ask_kennel_for_anything() {
    let lab = Lab::hello().await;
    let live = lab.deploy_api("hello", "topic", &App::api("one")).await;
    let answer = "exec 3<>/dev/tcp/127.0.0.1/3000; printf 'POST /deployments/1/teardown HTTP/1.1\\\\r\\\\nHost: 127.0.0.1\
        \\\\r\\\\nConnection: close\\\\r\\\\n\\\\r\\\\n' >&3; read -r line <&3; echo \\\"it said $line\\\" >&2; exit 1";
    let flake = format!(
        "{{ outputs = _: {{ packages.{system}.api = derivation {{ name = \"asks\"; system = \"{system}\"; \
         builder = \"/bin/sh\"; args = [ \"-c\" \"{answer}\" ]; outputHashMode = \"flat\"; outputHashAlgo = \"sha256\"; \
         outputHash = \"{}\"; }}; }}; }}",
        "0".repeat(64),
        system = app::system()
    );
    let pushed = lab.push("hello", "main", &App::api("x").file("flake.nix", flake)).await;
    lab.ended_as(pushed.build, "failed").await;

    let log = api::log(pushed.build, "api").await;
    assert!(log.contains("it said HTTP/1.1 403"), "{log}");
    assert_eq!(lab.version(&live.host).await, "one");
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployed_service_may_not_ask_kennel_and_root_may() {
    let lab = Lab::hello().await;
    let live = lab.deploy_api("hello", "main", &App::api("one")).await;
    let ask = async |what: &str| -> serde_json::Value {
        lab.visit(&live.host, &format!("/fetch?{what}")).await.expect(200).json()
    };
    assert_eq!(ask("POST,http://127.0.0.1:3000/builds/1/cancel").await, 403);
    assert_eq!(ask("GET,http://127.0.0.1:3000/builds").await, 403);
    assert_eq!(ask("GET,http://127.0.0.1:3000/healthz").await, 200);

    let url = "http://127.0.0.1:3000/builds/1/cancel";
    let code = machine::ok("curl", &["-s", "-o", "/dev/null", "-w", "%{http_code}", "-X", "POST", url]).await;
    assert_eq!(code, "409", "root gets an answer: the build has ended");
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployed_service_sees_its_own_data_and_nobody_elses() {
    let lab = Lab::start(LabConfig::of([ProjectSpec::new("victim"), ProjectSpec::new("hello")])).await;
    let victim = lab.deploy_api("victim", "main", &App::api("one")).await;
    lab.post_data(&victim.host, "private").await;
    let live = lab.deploy_api("hello", "main", &App::api("one")).await;
    lab.post_data(&live.host, "own").await;

    let read = async |path: &str| lab.visit(&live.host, &format!("/read?{path}")).await.expect(200).text();
    assert_eq!(read("/var/lib/kennel/services/hello/main/api/data").await, "\"own\"");
    for path in [
        "/var/lib/kennel/services/victim/main/api/data",
        "/var/lib/private/kennel/services/victim/main/api/data",
        "/var/lib/kennel/kennel.db",
        "/var/lib/kennel/logs",
        "/run/kennel/secrets",
        "/run/kennel/kennel.sock",
        "/etc/kennel/victim-webhook",
        "/nix/var/nix/daemon-socket/socket",
        "/root",
    ] {
        let said = read(path).await;
        assert!(said.contains("error: "), "{path}: {said}");
    }
    let pid = machine::main_pid(&victim.unit()).await;
    assert!(read(&format!("/proc/{pid}/environ")).await.contains("error: "), "it sees another service's processes");
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployed_unit_is_hardly_exposed() {
    let lab = Lab::hello().await;
    let live = lab.deploy_api("hello", "main", &App::api("one")).await;
    let said = machine::ok("systemd-analyze", &["security", "--no-pager", &live.unit()]).await;
    let line = said.lines().find(|line| line.contains("Overall exposure level")).expect("it sums up");
    let score: f64 = line.split_whitespace().find_map(|word| word.parse().ok()).expect("it gives a number");
    println!("{line}");
    assert!(score <= 1.2, "{said}");
    // Not enforced where the host has version 1 of control groups, so only seen to be asked for.
    let unit = machine::ok("systemctl", &["cat", &live.unit()]).await;
    assert!(unit.contains(&format!("SocketBindDeny=any\nSocketBindAllow=tcp:{}\n", live.port.unwrap())), "{unit}");
    lab.finish().await;
}

/// Somebody on the machine who answers everything with 200.
async fn squat(port: u16) -> JoinSet<()> {
    let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("the port is free");
    let mut server = JoinSet::new();
    server.spawn(async move {
        let app = Router::new().fallback(get(|| async { "I am not the service" }));
        axum::serve(listener, app).await.expect("the listener stays");
    });
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_a_neighbour_holds_is_passed_over() {
    let lab = Lab::hello().await;
    let mut neighbours = Vec::new();
    for port in 18000..18004 {
        neighbours.push(squat(port).await);
    }
    let live = lab.deploy_api("hello", "main", &App::api("one")).await;
    assert!(!(18000..18004).contains(&live.port.unwrap()));
    assert_eq!(lab.version(&live.host).await, "one");
    drop(neighbours);
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_neighbour_that_takes_a_services_port_gets_no_visitor() {
    let lab = Lab::hello().await;
    let mute = Service::new("api", "one").mode("mute").settings(&["health_check_timeout_secs = 10"]);
    let pushed = lab.push("hello", "main", &App::default().with(mute)).await;
    let starting = until("the service is being asked for its health", Duration::from_secs(20), async || {
        let deployments = api::build(pushed.build).await.deployments;
        deployments.into_iter().find(|deployment| deployment.step.as_deref() == Some("await_healthy"))
    })
    .await;
    let neighbour = squat(starting.port.unwrap()).await;

    let failed = lab.settled(pushed.build, "api").await;

    assert_eq!(failed.state, "failed");
    assert!(failed.reason().contains("another user"), "{}", failed.reason());
    lab.visit(&failed.host, "/").await.expect(404);
    drop(neighbour);
    lab.finish().await;
}
