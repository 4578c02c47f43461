//! `kennel build-worker` with the real Nix, and with a real SSH server, as the build user.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kennel::builder::worker::{BuildReport, FetchReport, TargetReport};
use kennel::host::BuildJob;
use kennel::model::{BuildId, ProgramName};
use tempfile::TempDir;
use tokio::process::{Child, Command};

/// Runs a shell script, which must succeed, and gives what it prints.
async fn sh(script: &str) -> String {
    let output = Command::new("/bin/sh").args(["-euc", script]).output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}\n{said}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A commit of these files, readable for the build user.
struct Source {
    dir: TempDir,
    commit: String,
}

impl Source {
    async fn new(files: &[(&str, &str)]) -> Self {
        let dir = TempDir::with_prefix_in("source-", "/srv").unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let at = dir.path().display();
        // A package for a flake without nixpkgs: the archive `program.tar` becomes a directory of the output.
        let commit = sh(&format!(
            "cd {at}; mkdir bin; for name in apid named; do printf '#!/bin/sh\\n' > bin/$name; done; chmod +x bin/*; \
             printf text > bin/data; tar cf program.tar bin; git init -q -b main; \
             git add .; git -c user.name=x -c user.email=x@example.com commit -qm x; \
             chown -R kennel-build: .; chmod 755 .; git -c safe.directory='*' rev-parse HEAD"
        ))
        .await;
        Self { dir, commit }
    }

    fn url(&self) -> String {
        format!("file://{}", self.dir.path().display())
    }
}

/// Build 1 in a state directory of its own.
struct Worker {
    state: TempDir,
    job: BuildJob,
    credentials: Vec<(&'static str, PathBuf)>,
}

impl Worker {
    async fn new(repo_url: &str, commit: &str) -> Self {
        let state = TempDir::with_prefix_in("state-", "/srv").unwrap();
        let job = BuildJob {
            build: BuildId(1),
            project: "p".parse().unwrap(),
            repo_url: repo_url.to_owned(),
            remote_ref: "refs/heads/main".to_owned(),
            commit: commit.parse().unwrap(),
            allowed_uris: Vec::new(),
            allow_ifd: false,
            max_parallel: 4,
            log_limit_bytes: 1 << 20,
            timeout_secs: 8,
        };
        Self { state, job, credentials: Vec::new() }
    }

    fn work(&self) -> PathBuf {
        self.state.path().join("work/1")
    }

    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.state.path().join(format!("logs/1/{name}.log"))).unwrap_or_default()
    }

    /// Runs a phase in a unit, as the daemon would; whether it exited 0.
    async fn run(&self, phase: &str) -> bool {
        let state = self.state.path().display();
        fs::create_dir_all(self.work()).unwrap();
        fs::create_dir_all(self.state.path().join("logs/1")).unwrap();
        fs::write(self.work().join("released"), "").unwrap();
        fs::write(self.work().join("job.json"), serde_json::to_vec(&self.job).unwrap()).unwrap();
        sh(&format!("chown -R kennel-build: {state}; chmod 755 {state}")).await;
        let mut unit = Command::new("systemd-run");
        unit.args(["--quiet", "--wait", "--collect", "--pipe", "-pUser=kennel-build", "-pPrivatePIDs=yes"]);
        unit.args(["-pProtectSystem=strict", "-pPrivateTmp=yes", "-pNoNewPrivileges=yes", "-pKillSignal=SIGKILL"]);
        unit.arg(format!("-pReadWritePaths={state}")).arg("-ENIX_REMOTE=daemon");
        unit.arg(format!("-EHOME={state}/work/1/home")).arg(format!("-EXDG_CACHE_HOME={state}/work/1/cache"));
        for (name, path) in &self.credentials {
            unit.arg(format!("-pLoadCredential={name}:{}", path.display()));
        }
        unit.args(["/usr/bin/kennel", "build-worker", phase, "1", "--state-dir"]).arg(self.state.path());
        unit.status().await.unwrap().success()
    }

    fn report<T: serde::de::DeserializeOwned>(&self, name: &str) -> T {
        serde_json::from_slice(&fs::read(self.work().join(name)).unwrap()).unwrap()
    }

    async fn fetch(&self) -> FetchReport {
        assert!(self.run("fetch").await, "{}", self.log("fetch"));
        self.report("fetch.json")
    }

    async fn build(&self) -> BuildReport {
        let fetched = self.fetch().await;
        assert!(matches!(fetched, FetchReport::Fetched { .. }), "{fetched:?}");
        assert!(self.run("build").await);
        self.report("build.json")
    }
}

const FLAKE: &str = r#"
{
  outputs = { self }: let
    system = "SYSTEM";
    sh = name: script: derivation { inherit name system; builder = "/bin/sh"; args = [ "-c" script ]; };
    program = name: derivation {
      inherit name system;
      builder = "builtin:unpack-channel"; src = ./program.tar; channelName = "bin";
    };
  in {
    packages.SYSTEM = {
      api = program "api" // { meta.mainProgram = "apid"; };
      named = program "named";
      web = program "web";
      noprogram = program "noprogram";
      notexecutable = program "notexecutable" // { meta.mainProgram = "data"; };
      upwards = program "upwards" // { meta.mainProgram = "../data"; };
      file = sh "file" "echo x > $out";
      failing = sh "failing" "echo one; echo two >&2; exit 3";
      dependent = sh "dependent" "echo ${self.packages.SYSTEM.failing}";
      throws = throw "broken on purpose";
      ifd = import (sh "ifd" "echo '\"x\"' > $out");
      hostfile = sh "hostfile" (builtins.readFile /etc/passwd);
      infinite = let fib = n: if n < 2 then n else fib (n - 1) + fib (n - 2); in sh "i" (toString (fib 90));
      hangs = sh "hangs" "echo waiting; while :; do :; done";
      noisy = sh "noisy" "i=0; while [ $i -lt 40000 ]; do echo 0123456789012345678901234567890123456789; i=$((i+1)); done; exit 1";
    };
  };
}
"#;

const NAMES: [&str; 15] = [
    "api",
    "named",
    "noprogram",
    "notexecutable",
    "upwards",
    "file",
    "failing",
    "dependent",
    "throws",
    "ifd",
    "hostfile",
    "infinite",
    "hangs",
    "noisy",
    "missing",
];

async fn system() -> String {
    sh("nix eval --raw --impure --extra-experimental-features 'nix-command flakes' --expr builtins.currentSystem").await
}

#[tokio::test]
async fn a_repository_is_built_and_each_failure_says_why() {
    let manifest: String = NAMES.iter().map(|name| format!("[services.{name}]\n")).collect();
    let manifest = format!("{manifest}[static_sites.web]\n[static_sites.plain]\nflake_output = 'file'\n");
    let system = system().await;
    let source = Source::new(&[("kennel.toml", &manifest), ("flake.nix", &FLAKE.replace("SYSTEM", &system))]).await;
    let worker = Worker::new(&source.url(), &source.commit).await;
    let started = Instant::now();
    let report = worker.build().await;
    println!("{:?}, nix {} ms, {:#?}", started.elapsed(), report.nix_ms, report.targets);
    let outcome = |name: &str| match &report.targets[&name.parse().unwrap()] {
        TargetReport::Built { program, .. } => Ok(program.as_ref().map(ProgramName::as_str)),
        TargetReport::Failed { reason } => Err(reason.as_str()),
    };
    for (name, program) in [("api", Some("apid")), ("named", Some("named")), ("web", None)] {
        assert_eq!(outcome(name), Ok(program), "{}", worker.log(name));
        let link = fs::read_link(worker.work().join("out").join(name)).unwrap();
        assert!(link.starts_with("/nix/store"), "{link:?}");
    }
    let missing = format!("the flake has no output `packages.{system}.missing`");
    for (name, why) in [
        ("missing", missing.as_str()),
        ("noprogram", "the package has no program `bin/noprogram`; it has `apid`, `data`, `named`"),
        ("notexecutable", "`bin/data` is not executable"),
        ("upwards", "`meta.mainProgram` is no program's name"),
        ("file", "the package has no program `bin/file`; it has no programs"),
        ("plain", "not a directory"),
        ("failing", "failed with exit code 3;\nlast 2 log lines:\n> one\n> two"),
        ("dependent", "failing.drv' failed with exit code 3"),
        ("throws", "broken on purpose"),
        ("ifd", "allow-import-from-derivation"),
        ("hostfile", "access to absolute path '/etc"),
        ("infinite", "time limit of 8 s passed"),
        ("hangs", "time limit of 8 s passed"),
        ("noisy", "failed with exit code 1"),
    ] {
        let reason = outcome(name).unwrap_err();
        assert!(reason.contains(why), "{name}: {reason}");
    }
    assert!(worker.log("failing").contains("failing> one\nfailing> two\n"), "{}", worker.log("failing"));
    let noisy = worker.log("noisy");
    assert!(noisy.len() < (1 << 20) + 4096 && noisy.contains("[the log is cut here"), "{}", noisy.len());
    assert!(noisy.trim_end().ends_with("0123456789"), "the reason is at the end");
    assert_eq!(sh("ps -eo group= | grep -c nixbld || true").await, "0", "no builder is left");
}

#[tokio::test]
async fn an_input_that_is_a_path_of_the_host_is_refused() {
    let flake = FLAKE.replace("SYSTEM", &system().await);
    let flake = flake.replacen(
        "outputs = { self }",
        "inputs.host = { url = \"path:/etc/nix\"; flake = false; }; outputs = { self, host }",
        1,
    );
    let source = Source::new(&[("kennel.toml", "[services.api]\n"), ("flake.nix", &flake)]).await;
    let worker = Worker::new(&source.url(), &source.commit).await;
    let report = worker.build().await;
    match &report.targets[&"api".parse().unwrap()] {
        TargetReport::Failed { reason } => {
            println!("{reason}");
            assert!(reason.contains("lock file"), "{reason}");
        }
        built => panic!("{built:?}"),
    }
}

/// An SSH server on the loopback that lets root in by key.
struct Sshd {
    dir: TempDir,
    port: u16,
    _server: Child,
}

impl Sshd {
    async fn new() -> Self {
        let dir = TempDir::with_prefix_in("ssh-", "/srv").unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let at = dir.path().display();
        sh(&format!(
            "cd {at}; mkdir -p /run/sshd; for type in ed25519 ecdsa; do ssh-keygen -q -t $type -N '' -f host_$type; done; \
             ssh-keygen -q -t ed25519 -N '' -f other; ssh-keygen -q -t ed25519 -N '' -f user; \
             printf '[127.0.0.1]:{port} %s\\n' \"$(cat host_ed25519.pub)\" > right; \
             printf '[127.0.0.1]:{port} %s\\n' \"$(cat other.pub)\" > wrong; \
             printf 'elsewhere %s\\n' \"$(cat host_ed25519.pub)\" > unknown; \
             cp right hashed; ssh-keygen -q -H -f hashed; chmod 755 .; chmod 600 host_*"
        ))
        .await;
        let config = dir.path().join("config");
        let text = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {at}/host_ecdsa\nHostKey {at}/host_ed25519\n\
             AuthorizedKeysFile {at}/user.pub\nStrictModes no\nPermitRootLogin yes\nUsePAM no\nPidFile none\n"
        );
        fs::write(&config, text).unwrap();
        let server = Command::new("/usr/sbin/sshd").args(["-D", "-f"]).arg(&config).kill_on_drop(true).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "sshd does not listen");
            tokio::task::yield_now().await;
        }
        Self { dir, port, _server: server }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

#[tokio::test]
async fn a_fetch_over_ssh_trusts_only_the_pinned_host_key() {
    let source = Source::new(&[("kennel.toml", "[services.api]\n")]).await;
    let at = source.dir.path().display();
    sh(&format!("chown -R root: {at}; git -C {at} config uploadpack.allowAnySHA1InWant true")).await;
    let sshd = Sshd::new().await;
    let url = format!("ssh://root@127.0.0.1:{}{at}", sshd.port);
    for (known_hosts, key, problem) in [
        ("right", "user", None),
        ("hashed", "user", None),
        ("wrong", "user", Some("is not the pinned one: it is ssh-ed25519 SHA256:")),
        ("unknown", "user", Some("is not in the known hosts")),
        ("right", "other", Some("refused the project's SSH key")),
    ] {
        let mut worker = Worker::new(&url, &source.commit).await;
        worker.credentials = vec![("known_hosts", sshd.file(known_hosts)), ("ssh_key", sshd.file(key))];
        let report = worker.fetch().await;
        println!("{known_hosts} {key}: {report:?}");
        match (report, problem) {
            (FetchReport::Fetched { .. }, None) => {}
            (FetchReport::Failed { reason }, Some(problem)) => assert!(reason.contains(problem), "{reason}"),
            (report, _) => panic!("{known_hosts} {key}: {report:?}\n{}", worker.log("fetch")),
        }
        assert_no_secret_below(&worker.work(), &fs::read_to_string(sshd.file(key)).unwrap());
    }
}

#[track_caller]
fn assert_no_secret_below(dir: &Path, secret: &str) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() {
            assert_no_secret_below(&path, secret);
        } else if let Ok(bytes) = fs::read(&path) {
            assert!(!String::from_utf8_lossy(&bytes).contains(secret), "{}", path.display());
        }
    }
    let mode = fs::metadata(dir).unwrap().permissions().mode();
    assert_eq!(mode & 0o022, 0, "{} may be written to by others", dir.display());
}
