//! What a service gets from kennel: its variables to the byte, its data, and a voice in the journal.

use std::collections::BTreeMap;
use std::fs;

use crate::harness::{App, Lab, Service, machine};

/// The environment a process was started with, undecoded.
fn environ(pid: u32) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let bytes = fs::read(format!("/proc/{pid}/environ")).expect("the process runs");
    let variables = bytes.split(|byte| *byte == 0).filter(|variable| !variable.is_empty());
    let pair = |variable: &[u8]| {
        let at = variable.iter().position(|byte| *byte == b'=').expect("a variable has a value");
        (variable[..at].to_vec(), variable[at + 1..].to_vec())
    };
    variables.map(pair).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn values_reach_the_service_byte_for_byte() {
    let values = [
        "",
        " ",
        "plain",
        "  spaces around  ",
        "\"double\" and 'single'",
        "$HOME ${HOME} $$ $(id) `id`",
        "100% %n %i %%",
        "back\\slash \\n \\",
        "ends in a backslash\\",
        "two\nlines",
        "\n",
        "\ttab\t",
        "-----BEGIN KEY-----\nYWJj\nZGVm\n-----END KEY-----\n",
        "grüße 🐶 ünïcödé",
        "# not a comment ; neither",
        "a=b=c",
        "K=\"v\"\nUser=root\n[Service]\nExecStart=/bin/sh",
        "\u{2028}\u{200b}",
        "~/x *? [a-z] {a,b} !$ & | < > ( )",
    ];
    let lab = Lab::hello().await;
    let mut service = Service::new("api", "one");
    for (n, value) in values.iter().enumerate() {
        service = service.env(&format!("VALUE_{n}"), value);
    }
    service = service.env("lower_case", "x").env("Z", &"long ".repeat(10_000));
    let live = lab.deploy_api("hello", "main", &App::default().with(service)).await;

    let environ = environ(machine::main_pid(&live.unit()).await);
    for (n, value) in values.iter().enumerate() {
        let got = environ.get(format!("VALUE_{n}").as_bytes()).unwrap_or_else(|| panic!("{value:?} is missing"));
        assert_eq!(String::from_utf8_lossy(got), *value);
    }
    assert_eq!(environ[&b"lower_case"[..]], b"x");
    assert_eq!(environ[&b"Z"[..]].len(), 50_000);
    for (name, value) in [
        ("PORT", live.port.unwrap().to_string()),
        ("HOST", "127.0.0.1".to_owned()),
        ("KENNEL_PROJECT", "hello".to_owned()),
        ("KENNEL_BRANCH", "main".to_owned()),
        ("KENNEL_SERVICE", "api".to_owned()),
        ("KENNEL_ENVIRONMENT", "prod".to_owned()),
        ("KENNEL_COMMIT", live.commit.clone()),
        ("KENNEL_DEPLOYMENT", live.id.to_string()),
        ("KENNEL_DATA_DIR", "/var/lib/kennel/services/hello/main/api".to_owned()),
    ] {
        assert_eq!(String::from_utf8_lossy(&environ[name.as_bytes()]), value, "{name}");
    }
    let url = String::from_utf8_lossy(&environ[&b"KENNEL_URL"[..]]).into_owned();
    assert!(url.contains("api-main.hello.lab.test"), "{url}");

    let file = format!("/run/kennel/secrets/hello-main-api@{}.env", live.id);
    let mode = machine::ok("stat", &["--format=%U %a", &file]).await;
    assert_eq!(mode.trim(), "root 400");
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn data_stays_from_version_to_version_and_goes_to_the_trash_with_its_target() {
    let lab = Lab::hello().await;
    let one = lab.deploy_api("hello", "topic", &App::api("one")).await;
    lab.post_data(&one.host, "kept").await;
    let two = lab.deploy_api("hello", "topic", &App::api("two")).await;
    assert_eq!(lab.visit(&two.host, "/data").await.expect(200).json::<String>(), "kept");
    lab.becomes(one.id, "retired").await;
    assert_eq!(lab.visit(&two.host, "/data").await.expect(200).json::<String>(), "kept");

    lab.delete_branch("hello", "topic").await.expect(202);
    lab.becomes(two.id, "retired").await;
    crate::harness::until("the data is in the trash", std::time::Duration::from_secs(10), async || {
        let find = ["-c", "grep -rlx kept /var/lib/kennel/trash /var/lib/private/kennel/trash 2>/dev/null"];
        let found = machine::text(&machine::run("sh", &find).await.stdout);
        (found.lines().count() == 1 && found.contains("hello.topic.api")).then_some(())
    })
    .await;

    let again = lab.deploy_api("hello", "topic", &App::api("three")).await;
    lab.visit(&again.host, "/data").await.expect(502);
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_service_writes_is_found_under_its_tag() {
    let lab = Lab::hello().await;
    let one = lab.deploy_api("hello", "main", &App::api("one")).await;
    assert_eq!(one.journal_tag, "kennel-hello-main-api");
    let two = lab.deploy_api("hello", "main", &App::api("two")).await;
    machine::ok("journalctl", &["--sync"]).await;

    let by_tag = machine::ok("journalctl", &["--output=cat", "-t", &one.journal_tag]).await;
    assert!(by_tag.contains("this is version one") && by_tag.contains("this is version two"), "{by_tag}");
    // Numbers begin anew in each test, and the journal is the machine's.
    let number = format!("KENNEL_DEPLOYMENT={}", two.id);
    let of_two = machine::ok("journalctl", &["--output=cat", "-t", &one.journal_tag, &number, &lab.after()]).await;
    assert!(!of_two.contains("this is version one"), "{of_two}");
    assert!(of_two.contains("this is version two"), "{of_two}");
    lab.finish().await;
}
