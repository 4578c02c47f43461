//! What a delivery is answered, and what it leaves in the database.

use kennel::host::fake::Gate;
use kennel::model::BuildState as B;
use rstest::rstest;
use serde_json::json;

use crate::harness::{Harness, PROJECT, Script, commit};

#[tokio::test(flavor = "multi_thread")]
async fn a_redelivery_answers_with_the_build_it_made() {
    let harness = Harness::start().await;
    harness.script(&commit('a'), Script::api("1"));
    let (first, made) = harness.push_as("one", "main", &commit('a')).await;
    harness.until_quiet().await;
    let (again, same) = harness.push_as("one", "main", &commit('a')).await;
    assert_eq!((first, again), (202, 200));
    assert_eq!(made["build"], same["build"]);
    assert_eq!(harness.builds().await.len(), 1);
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_is_compared_only_with_the_newest_build_that_has_not_ended() {
    let mut harness = Harness::start().await;
    let gate = Gate::new();
    harness.script(&commit('a'), Script { gate: Some(gate.clone()), ..Script::api("1") });
    harness.script(&commit('b'), Script::api("2"));
    let (_, first) = harness.push("main", &commit('a')).await;
    gate.reached().await;
    let (status, same) = harness.push("main", &commit('a')).await;
    assert_eq!((status, &same["build"]), (200, &first["build"]), "A is being built");
    harness.push("main", &commit('b')).await;
    let (status, third) = harness.push("main", &commit('a')).await;
    assert_eq!(status, 202, "A, B, A while A builds: {third}");
    gate.open();
    harness.until_quiet().await;
    assert_eq!(harness.build_states().await, [B::Success, B::Superseded, B::Success]);
    assert_eq!(harness.builds().await[0].commit.as_str(), commit('a'));
    harness.deploy("other", &commit('a'), Script::api("1")).await;
    assert_eq!(harness.build_states().await.len(), 4, "the same commit on another branch builds");
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_rapid_pushes_the_first_and_the_last_are_built() {
    let mut harness = Harness::start().await;
    let gate = Gate::new();
    harness.script(&commit('f'), Script { gate: Some(gate.clone()), ..Script::api("0") });
    harness.push("main", &commit('f')).await;
    gate.reached().await;
    for digit in "123456789".chars() {
        harness.script(&commit(digit), Script::api(&digit.to_string()));
        harness.push("main", &commit(digit)).await;
    }
    gate.open();
    harness.until_quiet().await;
    let states = harness.build_states().await;
    assert_eq!((states[0], states[9]), (B::Success, B::Success));
    assert!(states[1..9].iter().all(|&state| state == B::Superseded), "{states:?}");
    let (_, body) = harness.get("api-main.shop.example.com", "/").await;
    assert!(body.contains(crate::harness::store_path("api", "9").as_str()), "{body}");
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_request_builds_and_goes_with_its_end_also_while_it_builds() {
    let harness = Harness::start().await;
    harness.script(&commit('a'), Script::api("1"));
    let (status, _) = harness.deliver("pull_request", "p1", &pull("opened", &commit('a'), "me/shop")).await;
    assert_eq!(status, 202);
    harness.until_quiet().await;
    assert_eq!(harness.get("api-pr-7.shop.example.com", "/").await.0, 200);

    let gate = Gate::new();
    harness.script(&commit('b'), Script { gate: Some(gate.clone()), ..Script::api("2") });
    harness.deliver("pull_request", "p2", &pull("synchronized", &commit('b'), "me/shop")).await;
    gate.reached().await;
    harness.deliver("pull_request", "p3", &pull("closed", &commit('b'), "me/shop")).await;
    harness.until_quiet().await;
    assert_eq!(harness.build_states().await, [B::Success, B::Cancelled]);
    assert_eq!(harness.get("api-pr-7.shop.example.com", "/").await.0, 404);
    let left = harness.machine.snapshot();
    assert!(left.units.is_empty() && left.data_dirs.is_empty(), "{left:?}");
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_request_from_a_fork_does_not_build() {
    let harness = Harness::start().await;
    let (status, answer) = harness.deliver("pull_request", "p1", &pull("opened", &commit('a'), "stranger/shop")).await;
    assert_eq!(status, 200);
    assert!(answer["message"].as_str().unwrap().contains("forks"), "{answer}");
    assert!(harness.builds().await.is_empty());
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_default_branch_is_not_torn_down_by_a_webhook() {
    let mut harness = Harness::start().await;
    harness.deploy("main", &commit('a'), Script::api("1")).await;
    let (status, answer) = harness.delete("main").await;
    assert_eq!(status, 200, "{answer}");
    harness.until_quiet().await;
    assert_eq!(harness.get("api-main.shop.example.com", "/").await.0, 200);
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_or_missing_signature_is_401_and_leaves_nothing() {
    let harness = Harness::start().await;
    let body = json!({"ref": "refs/heads/main", "after": commit('a')}).to_string();
    let path = format!("/webhook/{PROJECT}");
    let base = [("content-type", "application/json"), ("x-forgejo-event", "push"), ("x-forgejo-delivery", "d")];
    for signature in [None, Some("00"), Some(""), Some("zz"), Some(&*"0".repeat(64))] {
        let mut headers = base.to_vec();
        headers.extend(signature.map(|signature| ("x-forgejo-signature", signature)));
        let (status, answer) = harness.post(&path, &headers, body.clone().into()).await;
        assert_eq!(status, 401, "{signature:?}: {answer}");
    }
    assert!(harness.builds().await.is_empty());
    harness.finish().await;
}

#[rstest]
#[case::not_json("{", "body")]
#[case::deep(&"[".repeat(100_000), "body")]
#[case::commit(&json!({"ref": "refs/heads/main", "after": "xyz"}).to_string(), "after")]
#[case::control_character(&json!({"ref": "refs/heads/ma\u{7}in", "after": commit('a')}).to_string(), "ref")]
#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_body_is_400_and_names_the_field(#[case] body: &str, #[case] field: &str) {
    let harness = Harness::start().await;
    let (status, answer) = harness.deliver("push", "d", body).await;
    assert_eq!(status, 400, "{answer}");
    assert!(answer["detail"].as_str().unwrap().contains(&format!("`{field}`")), "{answer}");
    assert!(harness.builds().await.is_empty());
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_project_is_404_and_an_oversized_body_413() {
    let harness = Harness::start().await;
    let headers = [("content-type", "application/json"), ("x-forgejo-event", "push")];
    assert_eq!(harness.post("/webhook/nobody", &headers, "{}".into()).await.0, 404);
    let huge = vec![b' '; 25 * 1024 * 1024 + 1];
    assert_eq!(harness.post(&format!("/webhook/{PROJECT}"), &headers, huge.into()).await.0, 413);
    harness.finish().await;
}

fn pull(action: &str, head: &str, head_repository: &str) -> String {
    json!({
        "action": action,
        "number": 7,
        "pull_request": {
            "number": 7,
            "title": "A proposal",
            "head": {"sha": head, "ref": "proposal", "repo": {"full_name": head_repository, "id": head_repository.len()}},
            "base": {"ref": "main", "repo": {"full_name": "me/shop", "id": "me/shop".len()}},
        },
        "repository": {"full_name": "me/shop", "id": "me/shop".len()},
    })
    .to_string()
}
