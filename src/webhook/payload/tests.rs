//! Payloads as the forges send them, and as nobody should.

use proptest::prelude::*;
use rstest::rstest;

use super::*;

macro_rules! fixture {
    ($name:literal) => {
        include_str!(concat!("../../../tests/fixtures/webhooks/", $name, ".json"))
    };
}

const SHA: &str = "bffeb74224043ba2feb48d137756c8a9331c449a";

fn head(name: &str) -> BranchRef {
    BranchRef::head(name).unwrap()
}

fn pull(number: u32) -> BranchRef {
    BranchRef::pull(number.try_into().unwrap())
}

fn build(branch: BranchRef, commit: &str, title: &str, author: &str) -> Ask {
    Ask::Build {
        branch,
        commit: commit.parse().unwrap(),
        title: Some(title.to_owned()),
        author: Some(author.to_owned()),
        from_fork: false,
    }
}

fn why(event: &str, body: &str) -> String {
    match parse(event, body.as_bytes()) {
        Ok(Ask::Nothing { why }) => why,
        other => panic!("{event}: {other:?}"),
    }
}

fn fault_of(event: &str, body: &[u8]) -> String {
    parse(event, body).unwrap_err().to_string()
}

/// Forgejo's pull request with parts of its text replaced.
fn from_fork(changes: &[(&str, &str)]) -> bool {
    let mut body = fixture!("forgejo-pull-synchronized").to_owned();
    for (old, new) in changes {
        assert!(body.contains(old), "{old}");
        body = body.replace(old, new);
    }
    match parse("pull_request", body.as_bytes()) {
        Ok(Ask::Build { from_fork, .. }) => from_fork,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_push_builds_its_newest_commit() {
    let hub = "6113728f27ae82c7b1a177c8d03f9e96e0adf246";
    let ask = parse("push", fixture!("github-push").as_bytes());
    assert_eq!(ask, Ok(build(head("master"), hub, "Initial commit", "Codertocat")));
    let ask = parse("push", fixture!("forgejo-push").as_bytes());
    assert_eq!(ask, Ok(build(head("feature/login"), SHA, "Add a login page", "Mo")));
}

#[test]
fn a_push_needs_no_more_than_ref_and_commit() {
    let body = format!(r#"{{"ref":"refs/heads/main","after":"{SHA}","head_commit":null,"pusher":7}}"#);
    let ask = parse("push", body.as_bytes());
    let (title, author) = (None, None);
    let commit = SHA.parse().unwrap();
    assert_eq!(ask, Ok(Ask::Build { branch: head("main"), commit, title, author, from_fork: false }));
}

#[rstest]
#[case("push", r#"{"ref":"refs/heads/a/b","after":"0000000000000000000000000000000000000000"}"#)]
#[case(
    "push",
    r#"{"ref":"refs/heads/a/b","after":"0000000000000000000000000000000000000000000000000000000000000000"}"#
)]
#[case("push", r#"{"ref":"refs/heads/a/b","after":"bffeb74224043ba2feb48d137756c8a9331c449a","deleted":true}"#)]
#[case("delete", r#"{"ref":"a/b","ref_type":"branch"}"#)]
fn a_deleted_branch_is_gone(#[case] event: &str, #[case] body: &str) {
    assert_eq!(parse(event, body.as_bytes()), Ok(Ask::BranchGone { branch: head("a/b") }));
}

#[test]
fn a_deleted_branch_of_forgejo_is_gone() {
    let ask = parse("delete", fixture!("forgejo-delete").as_bytes());
    assert_eq!(ask, Ok(Ask::BranchGone { branch: head("feature/login") }));
}

#[test]
fn a_pull_request_builds_its_head_under_its_number() {
    let title = "Update the README with new information.";
    let ask = parse("pull_request", fixture!("github-pull-opened").as_bytes());
    assert_eq!(ask, Ok(build(pull(2), "ec26c3e57ca3a959ca5aad62de7213c562f8c821", title, "Codertocat")));
    let ask = parse("pull_request", fixture!("github-pull-synchronize").as_bytes());
    assert!(matches!(ask, Ok(Ask::Build { branch, .. }) if branch == pull(2)));
    let ask = parse("pull_request", fixture!("forgejo-pull-synchronized").as_bytes());
    assert_eq!(ask, Ok(build(pull(7), SHA, "Add a login page", "mo")));
    let reopened = fixture!("github-pull-opened").replacen("opened", "reopened", 1);
    assert!(matches!(parse("pull_request", reopened.as_bytes()), Ok(Ask::Build { .. })));
}

#[test]
fn a_closed_pull_request_is_closed() {
    let ask = parse("pull_request", fixture!("github-pull-closed").as_bytes());
    assert_eq!(ask, Ok(Ask::PullClosed { branch: pull(2) }));
    // Whatever became of its head.
    let ask = parse("pull_request", br#"{"action":"closed","number":2,"pull_request":{"head":null}}"#);
    assert_eq!(ask, Ok(Ask::PullClosed { branch: pull(2) }));
}

#[test]
fn what_asks_for_nothing_says_why() {
    assert_eq!(why("ping", fixture!("github-ping")), "kennel is here");
    assert_eq!(why("push", fixture!("github-push-tag")), "`refs/tags/simple-tag` is not a branch");
    assert_eq!(why("create", fixture!("github-create-tag")), "a new branch is built by its push");
    assert_eq!(why("delete", fixture!("github-delete-tag")), "a deleted tag is not a branch");
    let labeled = why("pull_request", fixture!("github-pull-labeled"));
    assert_eq!(labeled, "a pull request that is `labeled` builds nothing");
    assert_eq!(why("star", r#"{"action":"created"}"#), "kennel does not act on `star`");
    assert_eq!(why("push", r#"{"ref":"refs/notes/commits"}"#), "`refs/notes/commits` is not a branch");
}

#[rstest]
#[case::the_same_repository(&[], false)]
#[case::another_repository(&[("\"repo_id\": 140,\n      \"repo\": { \"id\": 140, \"name\": \"hello\", \"full_name\": \"me/hello\", \"fork\": false }\n    },\n    \"merge_base\"",
    "\"repo\": { \"id\": 141, \"full_name\": \"me/hello\" } }, \"merge_base\"")], true)]
#[case::a_deleted_repository(&[("\"repo_id\": 140,\n      \"repo\": { \"id\": 140, \"name\": \"hello\", \"full_name\": \"me/hello\", \"fork\": false }\n    },\n    \"merge_base\"",
    "\"repo\": null }, \"merge_base\"")], true)]
#[case::no_numbers_but_one_name(&[("\"id\": 140, ", "")], false)]
#[case::neither_numbers_nor_names(&[("\"id\": 140, ", ""), ("full_name", "x")], true)]
#[case::both_are_the_same_fork(&[("\"fork\": false", "\"fork\": true")], false)]
#[case::pushed_for_review(&[("\"flow\": 0", "\"flow\": 1")], true)]
#[case::a_head_without_a_label(&[("\"label\": \"feature/login\"", "\"label\": \"\"")], true)]
#[case::a_head_that_is_no_branch(&[("\"ref\": \"feature/login\"", "\"ref\": \"refs/pull/7/head\"")], true)]
#[case::a_head_without_a_name(&[("\"ref\": \"feature/login\"", "\"ref\": null")], true)]
fn a_pull_request_is_from_a_fork_when_in_doubt(#[case] changes: &[(&str, &str)], #[case] fork: bool) {
    assert_eq!(from_fork(changes), fork);
}

#[rstest]
#[case("push", "", "`body`: is not JSON: EOF while parsing a value at line 1 column 0")]
#[case("push", "[]", "`body`: is not an object")]
#[case("ping", "nonsense", "`body`: is not JSON: expected ident at line 1 column 2")]
#[case("star", "{", "`body`: is not JSON: EOF while parsing an object at line 1 column 1")]
#[case("push", "{} {}", "`body`: is not JSON: trailing characters at line 1 column 4")]
#[case("push", r#"{"ref": refs}"#, "`ref`: is not JSON: expected value at line 1 column 9")]
#[case("push", "{}", "`ref`: is missing")]
#[case("push", r#"{"ref":7}"#, "`ref`: is not a string")]
#[case("push", r#"{"ref":""}"#, "`ref`: is empty")]
#[case("push", r#"{"ref":"refs/heads/a\nb"}"#, "`ref`: holds a control character")]
#[case("push", r#"{"ref":"refs/tags/a\u0000b"}"#, "`ref`: holds a control character")]
#[case("push", r#"{"ref":"refs/heads/a b"}"#, "`ref`: holds a space or one of `~^:?*[\\`")]
#[case("push", r#"{"ref":"refs/heads/../x"}"#, "`ref`: holds `..` or `@{`, is `@`, or begins with `-`")]
#[case("push", r#"{"ref":"refs/heads/x"}"#, "`after`: is missing")]
#[case(
    "push",
    r#"{"ref":"refs/heads/x","after":"main"}"#,
    "`after`: commit \"main\" is not 40 or 64 hexadecimal digits"
)]
#[case("push", r#"{"ref":"refs/heads/x","after":"--upload-pack=xxxxxxxxxxxxxxxxxxxxxxxxxx"}"#, "`after`: commit")]
#[case("delete", r#"{"ref":"x"}"#, "`ref_type`: is missing")]
#[case("delete", r#"{"ref":"-x","ref_type":"branch"}"#, "`ref`: holds `..` or")]
#[case("pull_request", r#"{"action":"opened"}"#, "`number`: is missing")]
#[case("pull_request", r#"{"action":"opened","number":0}"#, "`number`: is not a pull request's number")]
#[case("pull_request", r#"{"action":"opened","number":-1}"#, "`number`: is not a pull request's number")]
#[case("pull_request", r#"{"action":"closed","number":4294967296}"#, "`number`: is not a pull request's number")]
#[case("pull_request", r#"{"action":"opened","number":1}"#, "`pull_request.head.sha`: is missing")]
#[case(
    "pull_request",
    r#"{"action":"opened","number":1,"pull_request":{"head":{"sha":"ABC"}}}"#,
    "`pull_request.head.sha`: commit \"ABC\""
)]
#[case("pull_request", r#"{"action":["opened"]}"#, "`action`: is not a string")]
fn a_fault_names_its_field(#[case] event: &str, #[case] body: &str, #[case] says: &str) {
    let fault = fault_of(event, body.as_bytes());
    assert!(fault.starts_with(says), "{fault}");
}

#[test]
fn depth_and_encoding_are_checked_where_nobody_looks_too() {
    let deep = format!(r#"{{"ref":"refs/tags/x","repository":{{"x":{}"#, "[".repeat(1_000_000));
    assert_eq!(fault_of("push", deep.as_bytes()), "`repository`: is nested too deeply");
    let deep = format!(r#"{{"head_commit":{{"author":{}"#, r#"{"a":"#.repeat(1_000_000));
    assert_eq!(fault_of("push", deep.as_bytes()), "`head_commit.author.a`: is nested too deeply");
    assert_eq!(fault_of("push", b"{\"x\":\"\xff\"}"), "`body`: is not valid UTF-8 from byte 6 on");
}

#[test]
fn what_is_shown_is_one_clean_line() {
    let message = r"  \n\n  Fix \u001b[31mit\u202e now  \n\nbecause";
    let body = format!(
        r#"{{"ref":"refs/heads/x","after":"{SHA}","head_commit":{{"message":"{message}"}},"pusher":{{"login":"{}"}}}}"#,
        "m".repeat(500)
    );
    let Ok(Ask::Build { title, author, .. }) = parse("push", body.as_bytes()) else { panic!("it is a push") };
    assert_eq!(title.as_deref(), Some("Fix [31mit now"));
    assert_eq!(author.map(|author| author.len()), Some(SHOWN_MAX));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
        for event in ["push", "delete", "pull_request", "ping", "star"] {
            let _ = parse(event, &body);
        }
    }

    /// A real payload with one of its values replaced by another, of any kind.
    #[test]
    fn no_payload_makes_it_panic(
        at in any::<proptest::sample::Index>(),
        value in prop_oneof![
            Just("null".to_owned()), Just("{}".to_owned()), Just("[[1]]".to_owned()), Just("-1.5e3".to_owned()),
            "[0-9]{1,25}", "\\PC{0,60}".prop_map(|text| serde_json::Value::from(text).to_string()),
        ],
    ) {
        for (event, body) in [
            ("push", fixture!("github-push")), ("delete", fixture!("forgejo-delete")),
            ("pull_request", fixture!("forgejo-pull-synchronized")),
        ] {
            let lines = body.lines().collect::<Vec<_>>();
            let at = at.index(lines.len());
            let mut changed = lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
            if let Some((name, old)) = lines[at].split_once(": ") {
                let comma = if old.ends_with(',') { "," } else { "" };
                changed[at] = format!("{name}: {value}{comma}");
            }
            if let Ok(Ask::Build { branch, commit, .. }) = parse(event, changed.join("\n").as_bytes()) {
                prop_assert!(branch.as_str().parse::<BranchRef>().is_ok());
                prop_assert!(matches!(commit.as_str().len(), 40 | 64));
            }
        }
    }
}
