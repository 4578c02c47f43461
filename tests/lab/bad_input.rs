//! What is wrong is refused where it arrives, by name, and leaves nothing half-made.

use http::Method;
use serde_json::Value;

use crate::harness::http::{request, send};
use crate::harness::leftovers::rows;
use crate::harness::{App, Delivery, Lab, Style, api, delivery, machine};

const MB: usize = 1 << 20;

/// A delivery that would be accepted.
fn good(lab: &Lab) -> Delivery {
    let commit = lab.repo("hello").commit("main", &App::api("one").files(), "One");
    lab.push_delivery("hello", "main", &commit)
}

/// Bytes signed with the project's own secret.
fn signed(lab: &Lab, event: &str, body: &[u8]) -> Delivery {
    Style::Forgejo.delivery_of_bytes("hello", &lab.project("hello").secret, event, body.to_vec())
}

/// Nothing was stored, and one line of the journal tells of each delivery.
async fn expect_nothing_of(lab: &Lab, refused: &[Delivery]) {
    assert_eq!(rows("select id from deliveries").await, [""; 0]);
    assert!(api::builds().await.is_empty());
    let journal = lab.journal().await;
    for delivery in refused {
        let lines = journal.lines().filter(|line| line.contains(&delivery.id)).count();
        assert_eq!(lines, 1, "delivery {}:\n{journal}", delivery.id);
        assert!(!journal.contains(&lab.project("hello").secret), "the secret is in the journal");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signature_that_is_not_the_projects_is_refused() {
    let lab = Lab::hello().await;
    let name = "X-Forgejo-Signature";
    let good = good(&lab);
    let whole = delivery::sign(&lab.project("hello").secret, &good.body);
    let foreign = delivery::sign("hush-other", &good.body);
    let mut changed = good.clone();
    changed.body.push(b' ');
    let bad = [
        good.clone().header(name, None),
        good.clone().header(name, Some("")),
        good.clone().header(name, Some(&whole[..32])),
        good.clone().header(name, Some(&foreign)),
        good.clone().header(name, Some(&"0".repeat(64))),
        good.clone().header(name, Some(&format!("sha1={whole}"))),
        good.clone().header(name, None).header("X-Hub-Signature", Some(&whole[..40])),
        changed,
    ];
    for (n, delivery) in bad.iter().enumerate() {
        // Each under an id of its own, so that its line in the journal can be told apart.
        let id = format!("bad-signature-{n}");
        let delivery = Delivery { id: id.clone(), ..delivery.clone().header("X-Forgejo-Delivery", Some(&id)) };
        api::deliver(&delivery).await.expect(401);
        expect_nothing_of(&lab, &[delivery]).await;
    }

    // The right one is still accepted: nothing of the others has used it up.
    api::deliver(&good).await.expect(202);
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_no_payload_is_refused_with_the_field() {
    let lab = Lab::hello().await;
    let push = |change: &dyn Fn(&mut Value)| {
        let mut payload = delivery::push("hello", "main", None, &"a1".repeat(20));
        change(&mut payload);
        payload.to_string().into_bytes()
    };
    let pull = |change: &dyn Fn(&mut Value)| {
        let mut payload = delivery::pull_request("hello", "opened", 1, &"a1".repeat(20), false);
        change(&mut payload);
        payload.to_string().into_bytes()
    };
    let deep = [vec![b'['; 200_000], vec![b']'; 200_000]].concat();
    let mut not_utf8 = push(&|_| {});
    let at = not_utf8.windows(4).position(|part| part == b"main").unwrap();
    not_utf8[at] = 0xff;
    let cases: [(&str, Vec<u8>, &str); 14] = [
        ("push", b"{\"ref\": ".to_vec(), ""),
        ("push", b"".to_vec(), ""),
        ("push", b"[]".to_vec(), ""),
        ("push", deep, ""),
        ("push", not_utf8, ""),
        ("push", push(&|payload| payload["after"] = "--upload-pack=touch /tmp/x".into()), "after"),
        ("push", push(&|payload| payload["after"] = "a1b2".into()), "after"),
        ("push", push(&|payload| payload["after"] = Value::Null), "after"),
        ("push", push(&|payload| payload["ref"] = "refs/heads/a\nb".into()), "ref"),
        ("push", push(&|payload| payload["ref"] = "refs/heads/a\u{0}b".into()), "ref"),
        ("push", push(&|payload| payload["ref"] = "refs/heads/../../x".into()), "ref"),
        ("push", push(&|payload| payload["ref"] = 7.into()), "ref"),
        (
            "pull_request",
            pull(&|payload| payload["pull_request"]["head"]["sha"] = "zz".into()),
            "pull_request.head.sha",
        ),
        ("pull_request", pull(&|payload| payload["number"] = (-1).into()), "number"),
    ];
    let mut refused = Vec::new();
    for (event, body, field) in cases {
        let delivery = signed(&lab, event, &body);
        let answer = api::deliver(&delivery).await;
        let shown = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
        assert_eq!(answer.status, 400, "{shown}: {}", answer.text());
        assert!(answer.header("content-type").starts_with("application/problem+json"), "{:?}", answer.headers);
        assert!(answer.text().contains(field), "{shown}: {}", answer.text());
        refused.push(delivery);
    }
    expect_nothing_of(&lab, &refused).await;
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_larger_than_any_forge_sends_is_refused() {
    let lab = Lab::hello().await;
    let too_large = signed(&lab, "push", &vec![b' '; 25 * MB + 1]);
    api::deliver(&too_large).await.expect(413);
    expect_nothing_of(&lab, &[too_large]).await;

    // As much as is allowed is read, and is no payload.
    let largest = signed(&lab, "push", &vec![b' '; 25 * MB]);
    api::deliver(&largest).await.expect(400);
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_for_any_project_or_not_a_delivery_is_refused() {
    let lab = Lab::hello().await;
    let good = good(&lab);
    for project in ["nobody", "HELLO", "hello%2f..", "%00", "..%2fhello"] {
        let delivery = Delivery { project: project.to_owned(), ..good.clone() };
        api::deliver(&delivery).await.expect(404);
    }
    api::deliver(&good.clone().header("Content-Type", Some("text/plain"))).await.expect(415);
    api::deliver(&good.clone().header("X-Forgejo-Event", None)).await.expect(400);
    api::deliver(&good.clone().header("X-Forgejo-Delivery", None)).await.expect(400);
    let get = send(api::API, request(Method::GET, "127.0.0.1:3000", "/webhook/hello", "")).await.unwrap();
    get.expect(405);
    expect_nothing_of(&lab, &[]).await;
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_ask_for_nothing_are_acknowledged() {
    let lab = Lab::hello().await;
    let mut tag = delivery::push("hello", "main", None, &"a1".repeat(20));
    tag["ref"] = "refs/tags/v1".into();
    let mut deleted_tag = delivery::delete("hello", "v1");
    deleted_tag["ref_type"] = "tag".into();
    let labeled = delivery::pull_request("hello", "labeled", 1, &"a1".repeat(20), false);
    for (event, payload) in [
        ("ping", serde_json::json!({"zen": "Keep it logically awesome."})),
        ("push", tag),
        ("delete", deleted_tag),
        ("pull_request", labeled),
        ("issues", serde_json::json!({"action": "opened"})),
    ] {
        api::deliver(&lab.delivery("hello", event, &payload)).await.expect(200);
    }
    assert!(api::builds().await.is_empty());
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn githubs_form_encoding_is_understood() {
    let spec = crate::harness::ProjectSpec::new("hello").style(Style::Github);
    let lab = Lab::start(crate::harness::LabConfig::of([spec])).await;
    let commit = lab.repo("hello").commit("main", &App::api("one").files(), "One");
    let delivery = lab.push_delivery("hello", "main", &commit);
    let encoded: String = delivery.body.iter().map(|byte| format!("%{byte:02x}")).collect();
    let body = format!("payload={encoded}").into_bytes();
    let secret = &lab.project("hello").secret;
    let form = Style::Github.delivery_of_bytes("hello", secret, "push", body);
    let form = form.header("Content-Type", Some("application/x-www-form-urlencoded"));

    let answer: Value = api::deliver(&form).await.expect(202).json();

    lab.live(answer["build"].as_i64().unwrap(), "api").await;
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_kennel_toml_is_a_failed_build_with_key_and_line() {
    let lab = Lab::hello().await;
    let with = |text: &str| App::api("one").file("kennel.toml", text);
    let mut files = App::api("one").files();
    files.remove("kennel.toml");
    let missing = lab.repo("hello").commit("main", &files, "No kennel.toml");
    let mut builds = vec![(lab.push_commit("hello", "main", &missing).await.build, vec!["kennel.toml", "missing"])];
    lab.ended(builds[0].0).await;
    let huge = format!("[services.api]\n# {}\n", "x".repeat(256 * 1024));
    for (app, words) in [
        (with(&huge), vec!["kennel.toml"]),
        (App::api("one").link("kennel.toml", "/etc/passwd"), vec!["kennel.toml", "symbolic link"]),
        (App::api("one").link("kennel.toml", "/dev/zero"), vec!["kennel.toml", "symbolic link"]),
        (with("[services.api]\nhealthcheck = \"/\"\n"), vec!["services.api.healthcheck", "2", "health_check"]),
        (with("\n[services.\"Api!\"]\n"), vec!["Api!", "2"]),
        (with("[services.api]\n[services.api.env]\nPORT = \"1\"\n"), vec!["PORT", "3"]),
        (with("[services.api]\n[services.api.env]\nX = \"a\\u0007\"\n"), vec!["services.api.env.X", "3", "U+0007"]),
        (with("[services.api\n"), vec!["1"]),
        (with("# nothing\n"), vec!["no service"]),
        (with("[services.api]\nflake_output = \"a b\"\n"), vec!["services.api.flake_output", "2"]),
    ] {
        let pushed = lab.push("hello", "main", &app).await;
        lab.ended(pushed.build).await;
        builds.push((pushed.build, words));
    }
    for (build, words) in builds {
        let build = lab.ended_as(build, "failed").await;
        let reason = build.reason.clone().expect("a failed build has a reason");
        for word in words {
            assert!(reason.contains(word), "`{word}` is not in: {reason}");
        }
        assert!(!reason.contains("root:"), "nothing of a file it links to is shown: {reason}");
        assert!(build.artifacts.is_empty() && build.deployments.is_empty());
    }
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_whose_project_has_an_empty_secret_refuses_to_start() {
    let lab = Lab::prepare(crate::harness::LabConfig::hello()).await;
    for content in ["", "\n", "  \n"] {
        std::fs::write("/etc/kennel/hello-webhook", content).unwrap();
        let output = machine::run("kennel", &["daemon"]).await;
        let said = machine::text(&output.stderr);
        assert!(!output.status.success());
        assert!(said.contains("`hello`") && said.contains("empty"), "{said}");
    }
    std::fs::remove_file("/etc/kennel/hello-webhook").unwrap();
    let output = machine::run("kennel", &["daemon"]).await;
    assert!(!output.status.success());
    assert!(machine::text(&output.stderr).contains("hello-webhook"), "{}", machine::text(&output.stderr));
    lab.abandon();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_faulty_daemon_file_is_refused_with_every_fault() {
    let lab = Lab::prepare(crate::harness::LabConfig::hello().builder("max_concurent_builds = 1")).await;
    let path = "/etc/kennel/config.toml";
    let text = std::fs::read_to_string(path).unwrap() + "\ncolour = \"blue\"\n";
    std::fs::write(path, text).unwrap();
    for arguments in [&["daemon"][..], &["check-config", path]] {
        let output = machine::run("kennel", arguments).await;
        let said = machine::text(&output.stderr);
        assert!(!output.status.success(), "{said}");
        for word in ["max_concurent_builds", "max_concurrent_builds", "colour"] {
            assert!(said.contains(word), "`kennel {arguments:?}` does not say `{word}`: {said}");
        }
    }
    lab.abandon();
}
