//! `host::machine` against real systemd and Nix.

mod builds;
mod services;

use std::path::Path;
use std::time::{Duration, Instant};

use kennel::host::machine::{MachineConfig, SystemdMachine};
use kennel::model::StorePath;
use tokio::process::Command;

/// Fails instead of touching a machine that is not the lab's.
fn must_be_in_the_lab() {
    assert!(
        std::env::var_os("KENNEL_LAB").is_some(),
        "these tests change the machine they run on: use `tests/lab/lab`"
    );
}

/// The machine, whose build worker is a program of the tests' own.
async fn machine() -> SystemdMachine {
    must_be_in_the_lab();
    let exe = Path::new("/usr/local/bin/test-worker");
    write_program(exe, include_str!("worker.py"));
    SystemdMachine::connect(MachineConfig { exe: exe.to_owned(), ..MachineConfig::default() }).await.unwrap()
}

fn write_program(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;

    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// Puts a program into the Nix store, as `bin/serve` of a path called `name`.
async fn store(name: &str, program: &str) -> StorePath {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join(name);
    write_program(&tree.join("bin/serve"), program);
    run("nix-store", &["--add", tree.to_str().unwrap()]).await.trim().parse().unwrap()
}

/// What a command that has to succeed writes.
async fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// How often systemd has read all its units again.
async fn reloads() -> usize {
    run("journalctl", &["--sync"]).await;
    run("journalctl", &["_PID=1", "--output=cat"]).await.lines().filter(|line| line.starts_with("Reload")).count()
}

/// Looks until it is so.
async fn eventually(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !so().await {
        assert!(Instant::now() < deadline, "never so: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Does something and says how long it took.
async fn timed<T>(what: &str, act: impl Future<Output = T>) -> (T, Duration) {
    let begin = Instant::now();
    let done = act.await;
    let took = begin.elapsed();
    println!("{what}: {:.1} ms", took.as_secs_f64() * 1000.0);
    (done, took)
}
