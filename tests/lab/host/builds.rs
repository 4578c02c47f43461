//! Builds: their units, directories, reports and roots.

use std::path::PathBuf;
use std::time::Duration;

use kennel::host::{BuildJob, BuildPhase, BuildUnitSpec, Machine as _, UnitState};
use kennel::model::{BuildId, ServiceName};
use serde_json::Value;

use super::{eventually, machine, run, store, timed};

fn job(build: BuildId, what: &str) -> BuildJob {
    BuildJob {
        build,
        project: "p".parse().unwrap(),
        repo_url: what.to_owned(),
        remote_ref: "refs/heads/main".to_owned(),
        commit: "0123456789012345678901234567890123456789".parse().unwrap(),
        allowed_uris: Vec::new(),
        allow_ifd: false,
        max_parallel: 1,
        log_limit_bytes: 1 << 20,
        timeout_secs: 60,
    }
}

fn spec(build: BuildId, phase: BuildPhase) -> BuildUnitSpec {
    BuildUnitSpec {
        build,
        phase,
        project: "p".parse().unwrap(),
        credentials: Vec::new(),
        repo_url: String::new(),
        timeout_secs: 60,
    }
}

fn api() -> ServiceName {
    "api".parse().unwrap()
}

#[tokio::test]
async fn a_build_sees_its_own_directories_and_only_a_fetch_its_credentials() {
    let machine = machine().await;
    let (build, other) = (BuildId(101), BuildId(102));
    std::fs::create_dir_all("/run/secrets").unwrap();
    std::fs::write("/run/secrets/token", "hush").unwrap();
    machine.ensure_build_dirs(other, &job(other, "look")).await.unwrap();
    timed("directories", machine.ensure_build_dirs(build, &job(build, "look"))).await.0.unwrap();
    machine.ensure_build_dirs(build, &job(build, "look")).await.unwrap();
    let stat = run("stat", &["-c", "%a %U %G", "/var/lib/kennel/work/101", "/var/lib/kennel/logs/101"]).await;
    assert_eq!(stat, "700 kennel-build kennel-build\n750 kennel-build kennel\n");
    for phase in [BuildPhase::Fetch, BuildPhase::Build] {
        let mut spec = spec(build, phase);
        if phase == BuildPhase::Fetch {
            spec.credentials = vec![("git-token", PathBuf::from("/run/secrets/token"))];
        }
        assert_eq!(machine.build_report(build, phase).await.unwrap(), None);
        timed("start of a build unit", machine.start_build(&spec)).await.0.unwrap();
        let (ended, _) = timed("until it has ended", machine.wait_unit(&spec.unit())).await;
        assert_eq!(ended.unwrap(), UnitState::Dead { result: "success".to_owned() });
        let report = machine.build_report(build, phase).await.unwrap().expect("a report");
        let report: Value = serde_json::from_slice(&report).unwrap();
        println!("{report:#}");
        assert_eq!(report["works"], serde_json::json!(["101"]));
        assert_eq!(report["logs"], serde_json::json!(["101"]));
        assert_eq!(report["state"], serde_json::json!(["logs", "work"]));
        assert_eq!(report["env"]["NIX_REMOTE"], "daemon");
        assert_eq!(report["env"]["HOME"], "/var/lib/kennel/work/101");
        assert_eq!(report["nix"], 0);
        assert!(report["run"].as_str().is_some(), "it reads /run/kennel");
        let expected = if phase == BuildPhase::Fetch { serde_json::json!({"git-token": "hush"}) } else { Value::Null };
        assert_eq!(report["credentials"], expected);
        assert_eq!(machine.unit_state(&spec.unit()).await.unwrap(), UnitState::Absent);
        assert_eq!(machine.wait_unit(&spec.unit()).await.unwrap(), UnitState::Absent);
    }
    assert_eq!(machine.inventory().await.unwrap().work_dirs, [build, other]);
    for id in [build, other] {
        machine.remove_work_dir(id).await.unwrap();
        machine.remove_log_dir(id).await.unwrap();
    }
    assert!(machine.own_units().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_running_build_is_found_again_and_ended_within_half_a_second() {
    let first = machine().await;
    let build = BuildId(103);
    first.ensure_build_dirs(build, &job(build, "stubborn")).await.unwrap();
    let spec = spec(build, BuildPhase::Build);
    first.start_build(&spec).await.unwrap();
    eventually("it is busy", async || std::fs::exists("/var/lib/kennel/work/103/busy").unwrap()).await;
    first.start_build(&spec).await.unwrap();
    drop(first);
    let again = machine().await;
    assert_eq!(again.own_units().await.unwrap(), [spec.unit()]);
    assert!(matches!(again.unit_state(&spec.unit()).await.unwrap(), UnitState::Active { .. }));
    let unit = spec.unit();
    let waits = timed("until the wait returns", again.wait_unit(&unit));
    let stops = timed("cancel of what ignores SIGTERM", again.stop_unit(&unit));
    let ((ended, waited), (stopped, took)) = tokio::join!(waits, stops);
    stopped.unwrap();
    println!("{:?}", ended.unwrap());
    let promised = Duration::from_secs(2);
    assert!(took < promised && waited < promised, "{took:?} {waited:?}");
    assert!(run("sh", &["-c", "pgrep -u kennel-build || true"]).await.is_empty());
    again.remove_work_dir(build).await.unwrap();
    again.remove_log_dir(build).await.unwrap();
}

#[tokio::test]
async fn the_end_of_a_build_is_known_at_once_and_by_its_reason() {
    let machine = machine().await;
    let build = BuildId(104);
    machine.ensure_build_dirs(build, &job(build, "gate")).await.unwrap();
    run("mkfifo", &["-m", "0666", "/var/lib/kennel/work/104/gate"]).await;
    let unit = spec(build, BuildPhase::Build);
    machine.start_build(&unit).await.unwrap();
    let name = unit.unit();
    let wait = async {
        let ended = machine.wait_unit(&name).await.unwrap();
        (ended, std::time::Instant::now())
    };
    let open = async {
        tokio::task::spawn_blocking(|| std::fs::write("/var/lib/kennel/work/104/gate", "go")).await.unwrap().unwrap();
        eventually("it has reported", async || std::fs::exists("/var/lib/kennel/work/104/build.json").unwrap()).await;
        std::time::Instant::now()
    };
    let ((ended, end_known), reported) = tokio::join!(wait, open);
    println!("report to known end: {:?}, {ended:?}", end_known.saturating_duration_since(reported));

    for (what, timeout_secs, expected) in [("exit:7", 60, "exit-code, status 7"), ("stubborn", 1, "timeout")] {
        machine.ensure_build_dirs(build, &job(build, what)).await.unwrap();
        let spec = BuildUnitSpec { timeout_secs, ..spec(build, BuildPhase::Fetch) };
        machine.start_build(&spec).await.unwrap();
        let (ended, _) = timed(what, machine.wait_unit(&spec.unit())).await;
        match ended.unwrap() {
            UnitState::Dead { result } => assert!(result.starts_with(expected), "{result}"),
            // It may have ended before anybody could look.
            UnitState::Absent if timeout_secs == 60 => println!("{what}: not known any more"),
            other => panic!("{other:?}"),
        }
        assert_eq!(machine.build_report(build, BuildPhase::Fetch).await.unwrap(), None);
    }
    machine.remove_work_dir(build).await.unwrap();
    machine.remove_log_dir(build).await.unwrap();
}

#[tokio::test]
async fn what_a_hostile_worker_leaves_is_not_followed() {
    let machine = machine().await;
    let build = BuildId(105);
    let shadow = std::fs::read("/etc/shadow").unwrap();
    std::fs::create_dir_all("/srv/kept").unwrap();
    std::fs::write("/srv/kept/file", "kept").unwrap();
    machine.ensure_build_dirs(build, &job(build, "evil")).await.unwrap();
    let spec = spec(build, BuildPhase::Build);
    machine.start_build(&spec).await.unwrap();
    machine.wait_unit(&spec.unit()).await.unwrap();
    let error = machine.build_report(build, BuildPhase::Build).await.unwrap_err();
    println!("{error}: {}", error.source);
    let error = machine.build_output(build, &api()).await.unwrap_err();
    println!("{error}: {}", error.source);
    // Another attempt writes the job in the place of a link, and not through it.
    machine.ensure_build_dirs(build, &job(build, "look")).await.unwrap();
    let written = std::fs::symlink_metadata("/var/lib/kennel/work/105/job.json").unwrap();
    assert!(written.is_file(), "the job is a file again");
    machine.remove_work_dir(build).await.unwrap();
    machine.remove_log_dir(build).await.unwrap();
    assert_eq!(std::fs::read("/etc/shadow").unwrap(), shadow);
    assert!(std::fs::exists("/etc/passwd").unwrap());
    assert_eq!(std::fs::read_to_string("/srv/kept/file").unwrap(), "kept");
    assert!(
        !std::fs::exists("/var/lib/kennel/work/105").unwrap() && !std::fs::exists("/var/lib/kennel/logs/105").unwrap()
    );
}

#[tokio::test]
async fn an_output_is_kept_from_the_garbage_collector_until_let_go() {
    let machine = machine().await;
    let build = BuildId(106);
    let path = store("kept", "#!/bin/sh\necho kept\n").await;
    machine.ensure_build_dirs(build, &job(build, &format!("output:{path}"))).await.unwrap();
    let spec = spec(build, BuildPhase::Build);
    machine.start_build(&spec).await.unwrap();
    machine.wait_unit(&spec.unit()).await.unwrap();
    assert_eq!(machine.build_output(build, &api()).await.unwrap(), path);
    for _ in 0..2 {
        timed("root", machine.ensure_gc_root(build, &api(), &path)).await.0.unwrap();
    }
    machine.remove_work_dir(build).await.unwrap();
    machine.remove_log_dir(build).await.unwrap();
    assert_eq!(machine.inventory().await.unwrap().gc_roots, [(build, api())]);
    run("nix-store", &["--gc"]).await;
    assert!(std::fs::exists(path.as_str()).unwrap());
    machine.remove_gc_root(build, &api()).await.unwrap();
    machine.remove_gc_root(build, &api()).await.unwrap();
    run("nix-store", &["--gc"]).await;
    assert!(!std::fs::exists(path.as_str()).unwrap());
    let error = machine.ensure_gc_root(build, &api(), &path).await.unwrap_err();
    println!("{error}: {}", error.source);
    assert_eq!(machine.inventory().await.unwrap().gc_roots, []);
}
