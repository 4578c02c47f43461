//! Services are kept within limits and a sandbox, as kennel.toml asks and the operator allows; who dies of it is told
//! what to change.

use serde_json::json;

use crate::harness::{App, Deployment, Lab, LabConfig, ProjectSpec, Service, api, machine};

const OPT_OUTS: [(&str, &str); 7] = [
    ("proc", "ProcSubset="),
    ("netlink", "RestrictAddressFamilies="),
    ("resources", "SystemCallFilter="),
    ("devices", "PrivateDevices="),
    ("namespaces", "RestrictNamespaces="),
    ("network-raw", "CapabilityBoundingSet="),
    ("foreign-abi", "SystemCallArchitectures="),
];

/// Those that this machine's processor knows.
fn opt_outs() -> impl Iterator<Item = (&'static str, &'static str)> {
    OPT_OUTS.into_iter().filter(|(word, _)| *word != "foreign-abi" || cfg!(target_arch = "x86_64"))
}

/// What the service for an opt-out is called: nothing that its traceback could be taken for.
fn name(word: &str) -> String {
    format!("it{}", OPT_OUTS.iter().position(|(other, _)| *other == word).expect("it is one of them"))
}

/// A service for each opt-out, that dies unless it has it.
fn needy(version: &str, settings: impl Fn(&str) -> String) -> App {
    opt_outs().fold(App::default(), |app, (word, _)| {
        let service = Service::new(&name(word), version).mode(&format!("forbidden:{word}"));
        app.with(service.settings(&["drain_secs = 0", "health_check_timeout_secs = 20", &settings(word)]))
    })
}

fn allow(word: &str) -> String {
    format!("sandbox.allow = [\"{word}\"]")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_dies_of_the_sandbox_is_told_so_and_lives_with_the_opt_out() {
    let words: Vec<_> = OPT_OUTS.iter().map(|(word, _)| *word).collect();
    let hello = ProjectSpec::new("hello").line(&format!("sandbox_allow = {}", json!(words)));
    let lab = Lab::start(LabConfig::of([hello])).await;
    // As /dev/zero is, under a name that no sandbox knows.
    machine::run("rm", &["-f", "/dev/kennel-lab"]).await;
    machine::ok("mknod", &["--mode=666", "/dev/kennel-lab", "c", "1", "5"]).await;

    let pushed = lab.push("hello", "main", &needy("one", |_| String::new())).await;
    for (word, directive) in opt_outs() {
        let failed = lab.settled(pushed.build, &name(word)).await;
        println!("{word}: {}\n", failed.reason());
        assert_eq!(failed.state, "failed", "{word}");
        let hint = failed.reason().lines().rfind(|line| line.starts_with("hint: ")).unwrap_or_default().to_owned();
        assert!(hint.contains(&format!("`{directive}`")) && hint.contains(&allow(word)), "{}", failed.reason());
    }

    let pushed = lab.push("hello", "main", &needy("two", allow)).await;
    for (word, _) in opt_outs() {
        let live = lab.settled(pushed.build, &name(word)).await;
        assert_eq!(live.state, "live", "{word}: {:?}", live.reason);
        assert_eq!(lab.version(&live.host).await, "two");
        let score = machine::ok("systemd-analyze", &["security", "--no-pager", &live.unit()]).await;
        println!("{word}: {}", score.trim().lines().last().unwrap_or_default());
    }
    machine::ok("rm", &["/dev/kennel-lab"]).await;
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_opt_out_that_the_operator_does_not_allow_fails_by_name() {
    let careful = ProjectSpec::new("careful").line("sandbox_allow = []");
    let lab = Lab::start(LabConfig::of([ProjectSpec::new("hello"), careful])).await;
    for (project, word, allowed) in
        [("hello", "network-raw", false), ("hello", "proc", true), ("careful", "proc", false)]
    {
        let service = Service::new("api", &format!("{project}-{word}")).settings(&["drain_secs = 0", &allow(word)]);
        let pushed = lab.push(project, "main", &App::default().with(service)).await;
        let settled = lab.settled(pushed.build, "api").await;
        if allowed {
            assert_eq!(settled.state, "live", "{:?}", settled.reason);
            continue;
        }
        println!("{}", settled.reason());
        assert_eq!(settled.state, "failed");
        assert!(settled.reason().contains(&format!("`{}`, which the operator does not allow", allow(word))));
        assert!(settled.reason().contains(&format!("`sandbox_allow` of `[projects.{project}]`")));
    }
    lab.finish().await;
}

/// What systemd says of a unit's limits.
async fn limits(live: &Deployment) -> [String; 3] {
    let unit = live.unit();
    let memory = machine::property(&unit, "MemoryMax").await;
    let cpu = machine::property(&unit, "CPUQuotaPerSecUSec").await;
    [memory, cpu, machine::property(&unit, "TasksMax").await]
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_reach_systemd_and_a_change_of_them_alone_is_deployed() {
    let config = LabConfig::hello().section(
        "[limits]\nmemory_max = \"1G\"\ncpu_quota = \"200%\"\ntasks_max = 200\n\
         [limits.default]\nmemory_max = \"256M\"",
    );
    let lab = Lab::start(config).await;
    let deploy = async |lines: &[&str]| {
        let service = Service::new("api", "one").settings(&[&["drain_secs = 0"], lines].concat());
        let pushed = lab.push("hello", "main", &App::default().with(service)).await;
        lab.settled(pushed.build, "api").await
    };
    let first = deploy(&[]).await;
    assert_eq!(first.state, "live", "{:?}", first.reason);
    assert_eq!(limits(&first).await, ["268435456", "2s", "200"]);

    let asked = ["memory_max = \"512M\"", "cpu_quota = \"50%\"", "tasks_max = 64"];
    let second = deploy(&asked).await;
    assert_eq!(second.state, "live", "{:?}", second.reason);
    assert_eq!(limits(&second).await, ["536870912", "500ms", "64"]);
    // Another commit with nothing new in it.
    assert_eq!(deploy(&[&asked[..], &["# the same"]].concat()).await.state, "noop");

    let failed = deploy(&["memory_max = \"1025M\"", "cpu_quota = 300"]).await;
    println!("{}", failed.reason());
    assert_eq!(failed.state, "failed");
    for what in
        ["`memory_max` of 1025M, and the operator allows 1G", "`cpu_quota` of 300%, and the operator allows 200%"]
    {
        assert!(failed.reason().contains(what), "{}", failed.reason());
    }
    let lived = api::deployment(second.id).await;
    assert_eq!(lived.state, "live");
    lab.finish().await;
}
