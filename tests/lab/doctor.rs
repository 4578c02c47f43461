//! `kennel doctor` tells a machine that keeps kennel's promises from one that does not.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::Value;

use crate::harness::{Lab, LabConfig, ProjectSpec, machine, split, write_secret};

const CONF: &str = "/etc/nix/nix.conf";
/// As often as a test likes: systemd would refuse the sixth in 10 s.
const RESTART: &str = "systemctl reset-failed nix-daemon.service; systemctl restart nix-daemon.service";

/// What the doctor found: the worst of each check, its exit code, and all it said.
struct Diagnosis {
    levels: BTreeMap<String, String>,
    code: Option<i32>,
    text: String,
}

impl Diagnosis {
    async fn make() -> Self {
        let output = machine::run("kennel", &["doctor", "--json"]).await;
        let told: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|err| panic!("{err}: {}{}", machine::text(&output.stdout), machine::text(&output.stderr)));
        let mut levels = BTreeMap::<String, String>::new();
        for finding in told["findings"].as_array().expect("findings are a list") {
            let word = |key: &str| finding[key].as_str().expect("it is a word").to_owned();
            let worst = levels.entry(word("check")).or_insert_with(|| "ok".to_owned());
            let rank = |level: &str| ["ok", "warning", "failure"].iter().position(|known| *known == level);
            if rank(&word("level")) > rank(worst) {
                *worst = word("level");
            }
        }
        let text = machine::text(&machine::run("kennel", &["doctor"]).await.stdout);
        assert_eq!(told["ok"], output.status.success());
        Self { levels, code: output.status.code(), text }
    }

    #[track_caller]
    fn expect(&self, check: &str, level: &str, says: &str) {
        assert_eq!(self.levels.get(check).map(String::as_str), Some(level), "{check}:\n{}", self.text);
        assert!(self.text.contains(says), "it does not say `{says}`:\n{}", self.text);
    }
}

/// Nix's settings, put back at the end whatever happens.
struct NixConf(String);

impl NixConf {
    async fn with(lines: &str) -> Self {
        let before = Self(fs::read_to_string(CONF).unwrap());
        let kept: String = before.0.lines().filter(|line| !line.starts_with("sandbox")).collect::<Vec<_>>().join("\n");
        fs::write(CONF, format!("{kept}\n{lines}\n")).unwrap();
        machine::ok("sh", &["-c", RESTART]).await;
        before
    }
}

impl Drop for NixConf {
    #[expect(clippy::disallowed_methods, reason = "a destructor cannot wait for tokio")]
    fn drop(&mut self) {
        fs::write(CONF, &self.0).unwrap();
        if let Err(err) = std::process::Command::new("sh").args(["-c", RESTART]).status() {
            println!("nix-daemon was not restarted: {err}");
        }
    }
}

async fn lab() -> Lab {
    let spec = ProjectSpec::new("hello")
        .line("secrets.prod.JWT_SECRET.file = \"/etc/kennel/jwt\"")
        .line("secrets.preview.JWT_SECRET.file = \"/etc/kennel/jwt\"");
    let lab = Lab::start(LabConfig::of([spec])).await;
    write_secret(Path::new("/etc/kennel/jwt"), "hush-doctor");
    lab
}

#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_machine_has_warnings_at_most() {
    let lab = lab().await;
    let found = Diagnosis::make().await;
    println!("{}", found.text);
    assert_eq!(found.code, Some(0), "{}", found.text);
    for check in
        ["configuration", "kennel", "systemd", "unit directory", "nix daemon", "sandbox", "build user", "secrets"]
    {
        found.expect(check, "ok", "0 failures");
    }
    found.expect("build user's rights", "ok", "is not trusted by it");
    found.expect("forge 127.0.0.1", "ok", "answers");
    // Nobody serves names here, and Debian's Nix calls itself by an old number.
    found.expect("dns", "warning", "`kennel-doctor.hello.lab.test`");
    found.expect("nix version", "warning", "upgrade Nix to 2.28.7 or later");
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nix_that_would_let_builds_out_fails() {
    let lab = lab().await;
    let conf = NixConf::with("sandbox = true\nsandbox-fallback = true\ntrusted-users = root @nix-users").await;
    let found = Diagnosis::make().await;
    println!("{}", found.text);
    assert_eq!(found.code, Some(1));
    found.expect("sandbox", "failure", "change: set `sandbox-fallback = false` in /etc/nix/nix.conf");
    found.expect("build user's rights", "failure", "Nix trusts `kennel-build`");
    drop(conf);

    let conf = NixConf::with("sandbox = relaxed").await;
    Diagnosis::make().await.expect("sandbox", "failure", "`sandbox` is relaxed");
    drop(conf);

    let conf = NixConf::with("sandbox = true\nsandbox-fallback = false\nallowed-users = root").await;
    Diagnosis::make().await.expect("build user's rights", "failure", "add `kennel-build` to `allowed-users`");
    drop(conf);

    machine::ok("gpasswd", &["--add", "kennel-build", "systemd-journal"]).await;
    Diagnosis::make().await.expect("build user", "failure", "is in the group `systemd-journal`");
    machine::ok("gpasswd", &["--delete", "kennel-build", "systemd-journal"]).await;
    machine::ok("gpasswd", &["--delete", "kennel-build", "nix-users"]).await;
    let found = Diagnosis::make().await;
    machine::ok("gpasswd", &["--add", "kennel-build", "nix-users"]).await;
    found.expect("build user's rights", "failure", "`kennel-build` does not reach Nix's daemon");

    assert_eq!(Diagnosis::make().await.code, Some(0), "all is well again");
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_that_are_missing_or_open_and_a_kennel_that_is_away_fail() {
    let lab = lab().await;
    let jwt = Path::new("/etc/kennel/jwt");
    fs::set_permissions(jwt, fs::Permissions::from_mode(0o644)).unwrap();
    let found = Diagnosis::make().await;
    found.expect(
        "secrets",
        "failure",
        "everybody may read `/etc/kennel/jwt` (`projects.hello.secrets.prod.JWT_SECRET`)",
    );
    assert!(!found.text.contains("hush"), "{}", found.text);
    if split::is_installed() {
        let webhook = "/etc/kennel/hello-webhook";
        machine::ok("chown", &["root:", webhook]).await;
        let found = Diagnosis::make().await;
        let says = format!("`kennel` may not read `{webhook}` (`projects.hello.webhook_secret_file`)");
        found.expect("secrets", "failure", &says);
    }
    fs::remove_file(jwt).unwrap();
    fs::write("/etc/kennel/hello-webhook", "\n").unwrap();
    let found = Diagnosis::make().await;
    println!("{}", found.text);
    assert_eq!(found.code, Some(1));
    found.expect(
        "secrets",
        "failure",
        "`projects.hello.secrets.prod.JWT_SECRET` cannot be used: cannot read `/etc/kennel/jwt`",
    );
    found.expect("secrets", "failure", "`projects.hello.webhook_secret_file` cannot be used");

    machine::ok("systemctl", &["stop", "kennel.service"]).await;
    let found = Diagnosis::make().await;
    found.expect("kennel", "failure", "change: `systemctl status kennel` tells whether it runs");
    fs::write("/etc/kennel/config.toml", "base_domian = \"lab.test\"\n").unwrap();
    let found = Diagnosis::make().await;
    println!("{}", found.text);
    found.expect("configuration", "failure", "did you mean `base_domain`?");
    found.expect("systemd", "ok", "version");

    let output = machine::run("runuser", &["-u", "kennel-build", "--", "kennel", "doctor"]).await;
    assert_eq!(output.status.code(), Some(77), "{}", machine::text(&output.stderr));
    let output = machine::run("kennel", &["doctor", "--never-heard-of"]).await;
    assert_eq!(output.status.code(), Some(64));
    lab.abandon();
}
