//! A disk that runs full, really: builds wait, forges are told to come again, visitors notice nothing; and what
//! `kennel gc` frees is gone from the Nix store.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use ::http::Method;

use serde_json::Value;
use sqlx::Connection as _;

use crate::harness::{App, Lab, LabConfig, Service, api, delivery, machine, split, until};

const STATE: &str = "/var/lib/kennel";
const BALLAST: &str = "/var/lib/kennel/ballast";

/// A small disk of its own for the state directory.
struct SmallDisk;

impl SmallDisk {
    /// The lab is prepared already: what lies there goes out of sight.
    async fn mount(megabytes: u32) -> Self {
        let options = format!("size={megabytes}m,mode=711");
        machine::ok("mount", &["-t", "tmpfs", "-o", &options, "small", STATE]).await;
        Self
    }

    /// Takes what is free but for so many bytes.
    fn fill(&self, leave: u64) {
        let free = || {
            let found = nix::sys::statvfs::statvfs(STATE).expect("the disk is there");
            found.blocks_available() * found.fragment_size()
        };
        let mut file = File::options().create(true).append(true).open(BALLAST).expect("there is room for a name");
        let block = vec![0x5a_u8; 4096];
        while free() > leave {
            if file.write_all(&block[..(free() - leave).min(4096) as usize]).is_err() {
                break;
            }
        }
        assert!(free() <= leave);
    }

    fn make_room(&self) {
        fs::remove_file(BALLAST).expect("the disk was filled");
    }
}

impl Drop for SmallDisk {
    #[expect(clippy::disallowed_methods, reason = "a destructor cannot wait for tokio")]
    fn drop(&mut self) {
        for command in [&["systemctl", "stop", "kennel.service"][..], &["umount", "--lazy", STATE]] {
            let _ = std::process::Command::new(command[0]).args(&command[1..]).status();
        }
    }
}

async fn start() {
    machine::ok("systemctl", &["start", "kennel.service"]).await;
}

/// A push of a commit that nobody has: it is queued, and superseded by the next.
fn idle_push(lab: &Lab, n: usize) -> delivery::Delivery {
    lab.delivery("hello", "push", &delivery::push("hello", "idle", None, &format!("{n:040x}")))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_waits_for_room_and_goes_on_by_itself() {
    let lab = Lab::prepare(LabConfig::hello().builder("min_free = \"20MB\"")).await;
    let disk = SmallDisk::mount(64).await;
    start().await;
    let live = lab.deploy_api("hello", "main", &App::api("one")).await;
    disk.fill(19_000_000);

    let pushed = lab.push("hello", "main", &App::api("two")).await;
    let waiting =
        until("it is told why it waits", Duration::from_secs(5), async || api::build(pushed.build).await.reason).await;
    assert!(waiting.contains("waits for room on disk") && waiting.contains("`min_free` is 20 MB"), "{waiting}");
    for command in ["status", "builds"] {
        let shown = machine::ok("kennel", &[command]).await;
        assert!(shown.contains("What is queued does not start: it waits for room on disk"), "{shown}");
    }
    // Several looks at the disk later there is still one line.
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!(api::build(pushed.build).await.state, "queued");
    let journal = lab.journal().await;
    assert_eq!(journal.matches("Builds wait for room on disk").count(), 1, "{journal}");
    assert_eq!(lab.version(&live.host).await, "one");

    disk.make_room();
    lab.live(pushed.build, "api").await;
    assert_eq!(lab.version(&live.host).await, "two");
    assert!(lab.journal().await.contains("There is room on disk again"));
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_state_directory_refuses_pushes_serves_on_and_recovers_without_a_restart() {
    let lab = Lab::prepare(LabConfig::hello().builder("min_free = \"0\"\nmax_concurrent_builds = 1")).await;
    let disk = SmallDisk::mount(64).await;
    start().await;
    let live = lab.deploy("hello", "main", &App::api("one").site("web", "page")).await;
    let pid = machine::main_pid("kennel.service").await;
    let gate = lab.gate();
    let held = lab.push("hello", "held", &App::default().with(Service::new("api", "held").behind(&gate))).await;
    gate.reached().await;

    disk.fill(0);
    let mut accepted = 0;
    let refused = loop {
        let answer = api::deliver(&idle_push(&lab, accepted)).await;
        if answer.status != 202 {
            break answer;
        }
        accepted += 1;
        assert!(accepted < 5_000, "the disk is full, and pushes are taken for ever");
        // What SQLite had room for within its own files is used up in the end.
        disk.fill(0);
    };
    println!("{accepted} pushes went into room that SQLite had");
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert_eq!(refused.header("retry-after"), "30");
    assert!(refused.text().contains("there is no room on disk"), "{}", refused.text());
    for n in 0..20 {
        assert_eq!(api::deliver(&idle_push(&lab, 10_000 + n)).await.status, 503);
        assert_eq!(lab.version(&live["api"].host).await, "one");
        assert_eq!(lab.visit(&live["web"].host, "/").await.expect(200).text(), "page");
    }
    api::ask(Method::GET, "/healthz").await.expect(200);
    assert_eq!(api::build(held.build).await.state, "building");
    assert_eq!(api::deployment(live["api"].id).await.state, "live");
    let asked = api::ask(Method::POST, &format!("/builds/{}/cancel", held.build)).await.expect(503);
    assert_eq!(asked.header("retry-after"), "30");
    machine::ok("kennel", &["status"]).await;

    disk.make_room();
    let newest = lab.push("hello", "idle", &App::api("two")).await;
    gate.open().await;
    lab.live(held.build, "api").await;
    let two = lab.live(newest.build, "api").await;
    assert_eq!(lab.version(&two.host).await, "two");
    assert_eq!(machine::main_pid("kennel.service").await, pid, "kennel was not restarted");
    let builds = api::builds().await;
    assert_eq!(builds.len(), accepted + 3, "each push that was acknowledged has a build, and no other");
    assert!(builds.iter().all(|build| build.has_ended()));
    let journal = lab.journal().await;
    println!("{} lines of the journal say `Could not`", journal.matches("Could not").count());
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kennel_starts_on_a_full_disk_and_serves() {
    let lab = Lab::prepare(LabConfig::hello().builder("min_free = \"0\"")).await;
    let disk = SmallDisk::mount(100).await;
    start().await;
    let live = lab.deploy_api("hello", "main", &App::api("one")).await;
    let unit_pid = machine::main_pid(&live.unit()).await;
    until("there is a reserve", Duration::from_secs(10), async || {
        split::own_dir().join("reserve").exists().then_some(())
    })
    .await;
    disk.fill(0);

    lab.kill9().await;
    assert_eq!(lab.version(&live.host).await, "one", "after a kill");
    lab.restart().await;
    assert_eq!(lab.version(&live.host).await, "one", "after a restart");
    // When there is room at its end, SQLite removes its log, and needs some to make that again.
    disk.make_room();
    machine::ok("systemctl", &["stop", "kennel.service"]).await;
    assert!(!split::own_dir().join("kennel.db-wal").exists());
    disk.fill(0);
    start().await;
    assert_eq!(lab.version(&live.host).await, "one", "after a stop");
    assert_eq!(api::deployment(live.id).await.state, "live");
    assert!(lab.journal().await.contains("with the room kept in reserve"));

    disk.make_room();
    let live = lab.deploy_api("hello", "main", &App::api("two")).await;
    assert_eq!(lab.version(&live.host).await, "two");
    assert_ne!(machine::main_pid(&live.unit()).await, unit_pid);
    lab.finish().await;
}

async fn plan() -> Value {
    let said = machine::ok("kennel", &["gc", "--plan", "--json"]).await;
    serde_json::from_str(&said).expect("a plan is JSON")
}

/// What Nix says that these paths and all they refer to take, in bytes.
async fn closure_bytes(paths: &[&str]) -> u64 {
    let requisites = machine::ok("nix-store", &[&["--query", "--requisites"], paths].concat()).await;
    let requisites: Vec<_> = requisites.lines().collect();
    let sizes = machine::ok("nix-store", &[&["--query", "--size"], &requisites[..]].concat()).await;
    sizes.lines().map(|line| line.parse::<u64>().expect("a size is a number")).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn gc_frees_what_it_said_and_keeps_what_runs_is_built_or_is_not_kennels() {
    let lab = Lab::hello().await;
    fs::write("/tmp/strangers", "not kennel's").unwrap();
    let strangers = machine::ok("nix-store", &["--add", "/tmp/strangers"]).await.trim().to_owned();
    let one = lab.deploy_api("hello", "main", &App::api("one")).await;
    let two = lab.deploy_api("hello", "topic", &App::api("two")).await;
    let path = async |build| api::build(build).await.artifact("api").store_path.clone().expect("it was made");
    let (one, two) = (path(one.build).await, path(two.build).await);

    let before = plan().await;
    let kept = before["kept"].as_array().expect("a list");
    assert_eq!(kept.len(), 2, "{before:#}");
    assert!(
        kept.iter().all(|kept| kept["reason"] == "live" && kept["exclusive_bytes"].as_u64() > Some(0)),
        "{before:#}"
    );
    let exclusive: u64 = kept.iter().map(|kept| kept["exclusive_bytes"].as_u64().expect("a number")).sum();
    let told = exclusive + before["shared_bytes"].as_u64().expect("a number");
    assert_eq!(told, closure_bytes(&[&one, &two]).await, "all of it is charged once");
    let alone = closure_bytes(&[&one, &two]).await - closure_bytes(&[&one]).await;
    let of_two = kept.iter().find(|kept| kept["branch"] == "topic").expect("it is kept");
    assert_eq!(of_two["exclusive_bytes"], alone, "what would be free without it");

    lab.delete_branch("hello", "topic").await.expect(202);
    until("nothing keeps the version that is gone", Duration::from_secs(20), async || {
        (plan().await["kept"].as_array().map(Vec::len) == Some(1)).then_some(())
    })
    .await;
    let gate = lab.gate();
    let held = lab.push("hello", "busy", &App::default().with(Service::new("api", "three").behind(&gate))).await;
    gate.reached().await;
    let promised = plan().await;
    assert!(Path::new(&two).exists(), "a plan frees nothing");
    println!("{}", machine::ok("kennel", &["gc", "--plan"]).await);
    let said = machine::ok("kennel", &["gc", "--json"]).await;
    let freed: Value = serde_json::from_str(&said).expect("an answer is JSON");
    assert_eq!(freed["bytes"], promised["free"]["bytes"], "{promised:#}\n{freed:#}");
    let gone: Vec<_> = freed["paths"].as_array().expect("a list").iter().map(|path| path.as_str().unwrap()).collect();
    assert!(gone.contains(&two.as_str()), "{gone:?}");
    assert!(gone.iter().all(|path| !Path::new(path).exists()), "{gone:?}");
    assert!(freed["bytes"].as_u64() >= Some(alone), "{freed:#}");
    assert!(Path::new(&one).exists() && Path::new(&strangers).exists());
    machine::ok("nix-store", &["--verify-path", &one]).await;

    gate.open().await;
    lab.live(held.build, "api").await;
    let last = machine::ok("kennel", &["gc"]).await;
    assert_eq!(last.trim(), "There was nothing to free.");
    // Pushed again, it is built again.
    let again = lab.deploy_api("hello", "topic", &App::api("two")).await;
    assert_eq!(path(again.build).await, two);
    assert_eq!(lab.version(&again.host).await, "two");
    lab.finish().await;
}

/// Moves what the database says back in time, as if kennel had been there for so many days more.
async fn grow_older(days: i64) {
    let ms = days * 86_400_000;
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(split::database());
    let mut rows = sqlx::SqliteConnection::connect_with(&options).await.expect("kennel has a database");
    for (table, columns) in [
        ("branches", &["pushed_at", "gone_at"][..]),
        ("builds", &["queued_at", "started_at", "finished_at"]),
        ("deliveries", &["received_at"]),
        ("targets", &["created_at", "gone_at"]),
        ("deployments", &["created_at", "started_at", "live_at", "draining_at", "finished_at"]),
        ("last_requests", &["at"]),
    ] {
        for column in columns {
            let change = format!("update {table} set {column} = {column} - {ms}");
            sqlx::query(sqlx::AssertSqlSafe(change)).execute(&mut rows).await.unwrap();
        }
    }
    rows.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_uses_goes_and_comes_back_and_what_is_over_goes_with_its_logs() {
    let lab = Lab::hello().await;
    let main = lab.deploy_api("hello", "main", &App::api("one")).await;
    let topic = lab.deploy_api("hello", "topic", &App::api("one")).await;
    lab.post_data(&topic.host, "written before").await;
    let brief = lab.deploy_api("hello", "brief", &App::api("one")).await;
    lab.delete_branch("hello", "brief").await.expect(202);
    lab.becomes(brief.id, "retired").await;
    let log = |build: i64| Path::new(STATE).join("logs").join(build.to_string());
    until("nothing of `brief` is rooted", Duration::from_secs(20), async || {
        (plan().await["kept"].as_array().map(Vec::len) == Some(2)).then_some(())
    })
    .await;

    machine::ok("systemctl", &["stop", "kennel.service"]).await;
    grow_older(31).await;
    start().await;

    lab.becomes(topic.id, "retired").await;
    until("`topic` leads nowhere", Duration::from_secs(20), async || {
        (lab.visit(&topic.host, "/").await.status == 404).then_some(())
    })
    .await;
    assert_eq!(lab.version(&main.host).await, "one", "prod stays, whether it is asked for or not");
    // The target is gone a little after its last version is.
    let status = until("`status` tells of the teardown", Duration::from_secs(20), async || {
        let status = machine::ok("kennel", &["status"]).await;
        status.contains("hello/topic/api was torn down").then_some(status)
    })
    .await;
    assert!(status.contains("no request and no push for 7 days. The next push to `topic` brings it back."), "{status}");
    until("the log of `brief` is gone", Duration::from_secs(20), async || (!log(brief.build).exists()).then_some(()))
        .await;
    assert!(log(main.build).exists(), "what runs keeps its log");
    assert_eq!(api::ask(Method::GET, &format!("/builds/{}", brief.build)).await.status, 404);

    let back = lab.deploy_api("hello", "topic", &App::api("one")).await;
    assert_eq!(back.host, topic.host);
    let data = lab.visit(&back.host, "/data").await;
    assert_ne!(data.status, 200, "its data is in the trash, not with a newcomer: {}", data.text());
    let trash = machine::names(Path::new("/var/lib/private/kennel/trash"));
    let trash = [trash, machine::names(&Path::new(STATE).join("trash"))].concat();
    assert!(trash.iter().any(|name| name.ends_with("-hello.topic.api")), "{trash:?}");
    lab.finish().await;
}
