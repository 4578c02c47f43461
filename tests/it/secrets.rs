//! The operator's secrets: given to whom they are meant for, told apart by fingerprints, and kept nowhere.

use kennel::deployer::Interrupt;
use kennel::host::Machine as _;
use kennel::host::fake::Op;
use kennel::model::DeploymentState as S;
use serde_json::json;

use crate::harness::{Harness, Script, commit};

/// A service that asks for secrets.
fn asking(secrets: &str, version: &str) -> Script {
    let manifest = format!("[services.api]\ndrain_secs = 1\nsecrets = {secrets}\n");
    Script { manifest, ..Script::api(version) }
}

/// A line of the project's table.
fn secret(environment: &str, name: &str, path: &std::path::Path) -> String {
    format!("secrets.{environment}.{name}.file = \"{}\"\n", path.display())
}

impl Harness {
    async fn newest_reason(&self) -> String {
        self.deployments().await[0].reason.clone().expect("it says why")
    }

    /// A variable of the newest deployment.
    async fn variable(&self, name: &str) -> Option<String> {
        let newest = self.deployments().await.remove(0);
        self.machine.env(&newest.journal_tag.unit(newest.id))?.remove(name)
    }

    /// Asks for the same commit once more, as an operator does.
    async fn deploy_again(&self, branch: &str, commit: &str) {
        let body = json!({ "branch": branch, "commit": commit }).to_string();
        let (status, answer) =
            self.post("/projects/shop/deploy", &[("content-type", "application/json")], body.into()).await;
        assert_eq!(status, 202, "{answer}");
        self.until_quiet().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_reaches_the_service_and_not_the_database() {
    let mut harness = Harness::start().await;
    let path = harness.file("token", "hush-5f1c\nsecond line\n");
    harness.reconfigure(&secret("prod", "TOKEN", &path)).await;
    harness.deploy("main", &commit('a'), asking("[\"TOKEN\"]", "1")).await;
    assert_eq!(harness.deployment_states().await, [S::Live]);
    assert_eq!(harness.variable("TOKEN").await.as_deref(), Some("hush-5f1c\nsecond line"));

    let live = harness.deployments().await.remove(0);
    let given = harness.store().given_secrets(live.id).await.unwrap();
    assert_eq!((given.len(), given[0].name.as_str(), &given[0].path), (1, "TOKEN", &path));
    assert_eq!(given[0].fingerprint.len(), 64);
    for file in std::fs::read_dir(path.parent().unwrap().join("state")).unwrap() {
        let file = file.unwrap().path();
        let content = std::fs::read(&file).unwrap();
        assert!(!content.windows(9).any(|bytes| bytes == b"hush-5f1c"), "{} holds it", file.display());
    }
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_of_another_environment_is_not_given() {
    let mut harness = Harness::start().await;
    let (prod, preview) = (harness.file("prod", "of prod"), harness.file("preview", "of preview"));
    let lines = secret("prod", "TOKEN", &prod) + &secret("prod", "KEY", &prod) + &secret("preview", "TOKEN", &preview);
    harness.reconfigure(&lines).await;
    harness.deploy("dev", &commit('a'), asking("[\"TOKEN\", \"KEY\"]", "1")).await;
    assert_eq!(harness.deployment_states().await, [S::Failed]);
    insta::assert_snapshot!(harness.newest_reason().await, @r#"
    it asks for the secrets `TOKEN`, `KEY`, not configured for dev
    hint: add them to `[projects.shop.secrets.dev]` in the daemon's file, `systemctl reload kennel`, deploy again
    "#);

    harness.script(&commit('b'), asking("[\"TOKEN\"]", "2"));
    let opened = json!({
        "action": "opened", "number": 7,
        "pull_request": {
            "number": 7, "title": "A change",
            "head": {"ref": "main", "sha": commit('b'), "repo": {"full_name": "me/shop"}},
            "base": {"ref": "main", "repo": {"full_name": "me/shop"}},
        },
        "repository": {"full_name": "me/shop"},
    });
    let (status, answer) = harness.deliver("pull_request", "pull-7", &opened.to_string()).await;
    assert_eq!(status, 202, "{answer}");
    harness.until_quiet().await;
    assert_eq!(harness.variable("TOKEN").await.as_deref(), Some("of preview"));

    harness.reconfigure(&secret("prod", "TOKEN", &prod)).await;
    harness.deploy_again("pr-7", &commit('b')).await;
    assert_eq!(harness.deployment_states().await, [S::Failed, S::Live, S::Failed]);
    let reason = harness.newest_reason().await;
    assert!(reason.contains("`TOKEN`, not configured for preview"), "{reason}");
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_cannot_be_used_fails_by_name_and_file_and_leaves_the_old_version_serving() {
    let mut harness = Harness::start().await;
    let path = harness.file("token", "fine");
    harness.reconfigure(&secret("prod", "TOKEN", &path)).await;
    harness.deploy("main", &commit('a'), asking("[\"TOKEN\"]", "1")).await;
    for (content, why) in [
        (Some(String::new()), "is empty"),
        (Some("hush\0".to_owned()), "holds a NUL (U+0000)"),
        (Some("hush\r\nhush".to_owned()), "holds a carriage return (U+000D)"),
        (Some("hush".repeat(20_000)), "is larger than 64 KiB"),
        (None, "cannot read"),
    ] {
        match content {
            Some(content) => drop(harness.file("token", &content)),
            None => std::fs::remove_file(&path).unwrap(),
        }
        harness.deploy_again("main", &commit('a')).await;
        let reason = harness.newest_reason().await;
        let named = reason.contains("the secret `TOKEN`") && reason.contains(&path.display().to_string());
        assert!(named && reason.contains(why) && !reason.contains("hush"), "{reason}");
    }
    let states = harness.deployment_states().await;
    assert!(states[0] == S::Live && states[1..].iter().all(|state| *state == S::Failed), "{states:?}");
    assert_eq!(harness.get("api-main.shop.example.com", "/").await.0, 200);
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_or_moved_secret_makes_the_same_commit_a_real_deployment() {
    let mut harness = Harness::start().await;
    let path = harness.file("token", "before");
    harness.reconfigure(&secret("prod", "TOKEN", &path)).await;
    harness.deploy("main", &commit('a'), asking("[\"TOKEN\"]", "1")).await;
    harness.deploy_again("main", &commit('a')).await;
    assert_eq!(harness.deployment_states().await, [S::Live, S::Noop]);

    harness.file("token", "after");
    harness.deploy_again("main", &commit('a')).await;
    assert_eq!(harness.deployment_states().await, [S::Retired, S::Noop, S::Live]);
    assert_eq!(harness.variable("TOKEN").await.as_deref(), Some("after"));

    let moved = harness.file("elsewhere", "after");
    harness.reconfigure(&secret("prod", "TOKEN", &moved)).await;
    harness.deploy_again("main", &commit('a')).await;
    assert_eq!(harness.deployment_states().await.last(), Some(&S::Live));
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_reboot_the_secrets_are_there_again_even_of_a_project_that_left_the_file() {
    let mut harness = Harness::start().await;
    let path = harness.file("token", "kept");
    harness.reconfigure(&secret("prod", "TOKEN", &path)).await;
    harness.deploy("main", &commit('a'), asking("[\"TOKEN\"]", "1")).await;
    let before = harness.machine.calls(Op::EnsureEnvFile);
    harness.crash();
    harness.machine.reboot().await;
    assert!(harness.machine.own_units().await.unwrap().is_empty());
    // The daemon starts with the file of the harness, which configures no secret.
    harness.boot(Interrupt::never()).await;
    harness.until("up again", async |harness| harness.get("api-main.shop.example.com", "/").await.0 == 200).await;
    assert!(harness.machine.calls(Op::EnsureEnvFile) > before);
    assert_eq!(harness.variable("TOKEN").await.as_deref(), Some("kept"));
    harness.finish().await;
}
