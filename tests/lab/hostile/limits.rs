//! What a build can use up: memory, processes, time, the disk by way of its log.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::{expressions, named};
use crate::harness::{App, Lab, LabConfig, ProjectSpec, Service, api, machine};

#[tokio::test(flavor = "multi_thread")]
async fn the_units_of_a_build_have_the_limits_of_the_daemons_file() {
    let config =
        LabConfig::hello().builder("memory_max = \"768M\"").builder("tasks_max = 77").builder("timeout = \"90s\"");
    let lab = Lab::start(config).await;
    let gate = lab.gate();
    let pushed = lab.push("hello", "main", &App::default().with(Service::new("api", "one").behind(&gate))).await;
    gate.reached().await;
    let unit = format!("kennel-build-{}.service", pushed.build);
    for (name, value) in [
        ("MemoryMax", (768u64 << 20).to_string()),
        ("MemorySwapMax", "0".to_owned()),
        ("LimitDATA", (768u64 << 20).to_string()),
        ("TasksMax", "77".to_owned()),
        ("LimitFSIZE", (16u64 << 30).to_string()),
        ("LimitCORE", "0".to_owned()),
        // The time limit, that of the fetch it waits for, and half a minute.
        ("RuntimeMaxUSec", "12min".to_owned()),
        ("User", "kennel-build".to_owned()),
    ] {
        assert_eq!(machine::property(&unit, name).await, value, "{name}");
    }
    gate.open().await;
    lab.live(pushed.build, "api").await;
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evaluation_that_eats_memory_fails_and_says_so() {
    let lab = Lab::start(LabConfig::hello().builder("memory_max = \"512M\"").builder("timeout = \"20s\"")).await;
    let tried = [
        // A list of four billion bytes' worth of pointers.
        "say (toString (builtins.length (builtins.genList (n: n) 500000000)))".to_owned(),
        // A text that doubles forty times.
        "say (builtins.substring 0 9 (builtins.foldl' (text: _: text + text) \"a\" (builtins.genList (n: n) 40)))"
            .to_owned(),
        // Many small things, all of them kept.
        "say (toString (builtins.foldl' (all: n: [ n all ]) [ ] (builtins.genList (n: n) 30000000) != null))"
            .to_owned(),
    ];
    let pushed = lab.push("hello", "main", &expressions(&named(&tried), "")).await;
    let build = lab.ended_as(pushed.build, "failed").await;
    for (n, tried) in tried.iter().enumerate() {
        let reason = build.artifact(&format!("try{n}")).reason.clone().unwrap_or_default();
        println!("{tried}: {reason}");
        assert!(reason.contains("memory"), "{tried}: {reason}");
    }
    let took = build.finished_at.unwrap() - build.started_at.unwrap();
    println!("after {took} ms");

    lab.deploy_api("hello", "main", &App::api("one")).await;
    lab.finish().await;
}

/// What the files of a directory, and of those below, take on the disk.
fn bytes_below(dir: &Path) -> u64 {
    let paths = machine::names(dir).into_iter().map(|name| dir.join(name));
    let size = |path: &Path| std::fs::symlink_metadata(path).map_or(0, |found| found.blocks() * 512);
    paths.map(|path| if path.is_dir() { bytes_below(&path) } else { size(&path) }).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_without_end_is_cut_and_what_writes_it_is_ended() {
    let config = LabConfig::of([ProjectSpec::new("noisy"), ProjectSpec::new("hello")]);
    let lab = Lab::start(config.builder("log_limit_bytes = 65536").builder("max_parallel = 3")).await;
    let before = bytes_below(Path::new("/nix/var/log"));
    let tried = [
        "sh \"while :; do echo {0..999}; done\"".to_owned(),
        "let f = n: builtins.trace (toString (builtins.genList (n: n) 999)) (f (n + 1)); in say (f 0)".to_owned(),
    ];
    let pushed = lab.push("noisy", "main", &expressions(&named(&tried), "")).await;
    let live = lab.deploy_api("hello", "main", &App::api("meanwhile")).await;
    let build = lab.ended_as(pushed.build, "failed").await;

    let took = build.finished_at.unwrap() - build.started_at.unwrap();
    println!(
        "the noise was over after {took} ms, the other was live after {} ms",
        live.live_at.unwrap() - build.started_at.unwrap()
    );
    assert!(took < 20_000, "{took} ms");
    for (n, tried) in tried.iter().enumerate() {
        let name = format!("try{n}");
        let (reason, log) =
            (build.artifact(&name).reason.clone().unwrap_or_default(), api::log(pushed.build, &name).await);
        println!("{tried}: {reason}\n{} bytes: …{}", log.len(), &log[log.len().saturating_sub(300)..]);
        assert!(reason.contains("writes without end") || reason.contains("max-call-depth"), "{tried}: {reason}");
        assert!(log.len() < 65_536 + 4_096 && log.contains("[the log is cut here"), "{} bytes", log.len());
        assert!(log.trim_end().ends_with("`[builder]`") || log.contains("Failed: "), "the reason comes last: {log}");
    }
    let of_kennel = bytes_below(&Path::new("/var/lib/kennel/logs").join(pushed.build.to_string()));
    let of_nix = bytes_below(Path::new("/nix/var/log")) - before;
    println!("kennel keeps {of_kennel} bytes, Nix {of_nix}");
    assert!(of_kennel < 4 * 80_000 && of_nix < 64 << 20, "kennel {of_kennel}, Nix {of_nix}");
    lab.finish().await;
}
