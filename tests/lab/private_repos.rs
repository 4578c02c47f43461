//! Private repositories: by a token over http, by a key over ssh with the forge's host key pinned.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use tokio::process::Child;

use crate::harness::{App, Lab, LabConfig, ProjectSpec, api, machine, ssh, write_secret};

const TOKEN: &str = "ghp_0123456789abcdefghij";
const KEYS: &str = "/srv/keys";
const SSH_PORT: u16 = 2222;

/// A token that has nothing to do in any log, row or report.
async fn expect_not_told(secret: &str) {
    let grep = format!(
        "grep -rlF -e {secret} /var/lib/kennel /run/kennel /nix/var/log 2>/dev/null; journalctl -q | grep -F -e {secret}"
    );
    let found = machine::run("sh", &["-c", &grep]).await;
    assert!(found.stdout.is_empty(), "the secret was written down: {}", machine::text(&found.stdout));
}

/// Waits until a build has failed, for a reason that says this.
async fn expect_failed(lab: &Lab, build: i64, says: &str) {
    let build = lab.ended_as(build, "failed").await;
    assert!(build.reason.as_deref().unwrap_or_default().contains(says), "{:?}", build.reason);
}

async fn lab_with_token(token: &str) -> Lab {
    let _ = fs::create_dir_all(KEYS);
    write_secret(&Path::new(KEYS).join("token"), &format!("{token}\n"));
    let spec = ProjectSpec::new("hello").line("git_token_file = \"/srv/keys/token\"");
    let lab = Lab::start(LabConfig::of([spec])).await;
    lab.forge.hide("hello", TOKEN);
    lab
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_repository_is_fetched_with_its_token() {
    let lab = lab_with_token(TOKEN).await;
    let live = lab.deploy_api("hello", "main", &App::api("one")).await;
    assert_eq!(lab.version(&live.host).await, "one");
    expect_not_told(TOKEN).await;
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_token_is_a_failed_build_that_does_not_show_it() {
    let lab = lab_with_token("wrong-0123456789").await;
    let pushed = lab.push("hello", "main", &App::api("one")).await;
    expect_failed(&lab, pushed.build, "token").await;
    expect_not_told("wrong-0123456789").await;
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_repository_without_a_token_is_a_failed_build() {
    let lab = Lab::hello().await;
    lab.forge.hide("hello", TOKEN);
    let pushed = lab.push("hello", "main", &App::api("one")).await;
    expect_failed(&lab, pushed.build, "token").await;
    lab.finish().await;
}

/// An ssh server for the user `git`, as a forge has one, with new keys on both sides.
async fn ssh_server() -> Child {
    ssh::make_keys(KEYS, &["host", "other-host", "user", "other-user"]).await;
    ssh::pin(KEYS, "known", "host", SSH_PORT);
    ssh::pin(KEYS, "wrong", "other-host", SSH_PORT);
    let _ =
        machine::run("useradd", &["--system", "--home-dir", "/srv", "--shell", "/bin/sh", "--password", "*", "git"])
            .await;
    fs::copy(format!("{KEYS}/user.pub"), format!("{KEYS}/authorized")).unwrap();
    fs::set_permissions(KEYS, fs::Permissions::from_mode(0o755)).unwrap();
    let keys = format!("AuthorizedKeysFile {KEYS}/authorized");
    let settings = [&keys, "AllowUsers git", "PasswordAuthentication no", "KbdInteractiveAuthentication no"];
    ssh::serve(KEYS, SSH_PORT, &settings).await
}

async fn lab_with_key(user_key: &str, known_hosts: &str) -> Lab {
    let spec = ProjectSpec::new("hello")
        .url(&format!("ssh://git@127.0.0.1:{SSH_PORT}/srv/git/demo/hello.git"))
        .line(&format!("ssh_key_file = \"{KEYS}/{user_key}\""))
        .line(&format!("known_hosts_file = \"{KEYS}/{known_hosts}\""));
    Lab::start(LabConfig::of([spec])).await
}

/// Commits, as the user to whom the forge's repositories belong.
async fn push(lab: &Lab) -> i64 {
    let repo = lab.repo("hello");
    let commit = repo.commit("main", &App::api("one").files(), "One");
    let delivery = lab.push_delivery("hello", "main", &commit);
    machine::ok("chown", &["-R", "git:", &repo.path().display().to_string()]).await;
    api::deliver(&delivery).await.expect(202).json::<serde_json::Value>()["build"].as_i64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_repository_is_fetched_over_ssh_from_the_pinned_host() {
    let _server = ssh_server().await;
    let lab = lab_with_key("user", "known").await;
    let build = push(&lab).await;
    let live = lab.live(build, "api").await;
    assert_eq!(lab.version(&live.host).await, "one");
    let key = fs::read_to_string(format!("{KEYS}/user")).unwrap();
    expect_not_told(key.lines().nth(2).unwrap()).await;
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_host_key_than_the_pinned_one_is_refused() {
    let _server = ssh_server().await;
    let lab = lab_with_key("user", "wrong").await;
    expect_failed(&lab, push(&lab).await, "host key").await;
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_the_forge_does_not_know_is_a_failed_build() {
    let _server = ssh_server().await;
    let lab = lab_with_key("other-user", "known").await;
    expect_failed(&lab, push(&lab).await, "key").await;
    lab.finish().await;
}
