//! What git can carry: names, submodules, attributes, lock files, trees without end.

use std::path::Path;
use std::time::Instant;

use git2::{ObjectType, Oid, Repository, Signature};

use super::{Canaries, HOST_DIR, expressions};
use crate::harness::app::{Entry, Files};
use crate::harness::{App, Lab, LabConfig, Service, api, machine};

/// A commit whose top directory has these entries as well, as bytes: libgit2 itself would not write them.
fn commit_raw(repo: &Path, files_commit: &str, extra: &[(&str, &[u8], Oid)]) -> String {
    let repository = Repository::open_bare(repo).unwrap();
    let base = repository.find_commit(files_commit.parse().unwrap()).unwrap().tree().unwrap();
    let mut entries: Vec<(Vec<u8>, String, Oid)> = base
        .iter()
        .map(|entry| (entry.name_bytes().to_vec(), format!("{:o}", entry.filemode()), entry.id()))
        .chain(extra.iter().map(|(mode, name, id)| (name.to_vec(), (*mode).to_owned(), *id)))
        .collect();
    entries.sort_by_key(|(name, mode, _)| [name.as_slice(), if mode == "40000" { b"/" } else { b"" }].concat());
    let mut bytes = Vec::new();
    for (name, mode, id) in entries {
        bytes.extend([mode.as_bytes(), b" ", &name, b"\0", id.as_bytes()].concat());
    }
    let tree = repository.odb().unwrap().write(ObjectType::Tree, &bytes).unwrap();
    let who = Signature::now("Mallory", "mallory@example.com").unwrap();
    let message = format!(
        "tree {tree}\nauthor {0} <{1}> 1 +0000\ncommitter {0} <{1}> 1 +0000\n\nx\n",
        who.name().unwrap(),
        who.email().unwrap()
    );
    repository.odb().unwrap().write(ObjectType::Commit, message.as_bytes()).unwrap().to_string()
}

fn blob(lab: &Lab, content: &[u8]) -> Oid {
    Repository::open_bare(lab.repo("hello").path()).unwrap().blob(content).unwrap()
}

/// Nothing that git was asked to run has run.
fn expect_nothing_ran() {
    let left = machine::names(Path::new(HOST_DIR));
    assert_eq!(left, ["dir", "readable", "secret"], "something has run");
    assert_eq!(machine::names(&Path::new(HOST_DIR).join("dir")), ["default.nix", "flake.nix"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_hooks_attributes_and_submodules_run_nothing_and_stop_nothing() {
    let lab = Lab::hello().await;
    let canaries = Canaries::place();
    machine::ok("chmod", &["-R", "a+rwX", HOST_DIR]).await;
    machine::ok("chmod", &["600", &canaries.secret.display().to_string()]).await;
    let touch = format!("touch {HOST_DIR}/ran");
    let modules = format!(
        "[submodule \"a\"]\n\tpath = sub\n\turl = ext::sh -c '{touch}'\n\tupdate = !{touch}\n\
         [submodule \"b\"]\n\tpath = other\n\turl = -u./payload\n\
         [submodule \"../../x\"]\n\tpath = third\n\turl = --upload-pack={touch}\n\
         [core]\n\tfsmonitor = {touch}\n\tsshCommand = {touch}\n"
    );
    let service = Service::new("api", "one").builds_by("echo 'the submodule is here and empty'");
    let mut files = App::default()
        .with(service)
        .file(".gitmodules", modules)
        .file(".gitattributes", "* filter=evil diff=evil merge=evil -text export-subst\n*.bin filter=lfs\n")
        .file(".gitconfig", format!("[filter \"evil\"]\n\tsmudge = {touch}\n\tclean = {touch}\n\trequired = true\n"))
        .file(".lfsconfig", format!("[lfs]\n\turl = \"file://{HOST_DIR}\"\n"))
        .program("hooks/post-checkout", &format!("#!/bin/sh\n{touch}\n"))
        .program("payload", &format!("#!/bin/sh\n{touch}\n"))
        .file("large.bin", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
        .file("$Format:%H$", "$Format:%H$")
        .files();
    for name in ["sub", "other", "third"] {
        files.insert(name.to_owned(), Entry::Submodule("1".repeat(40)));
    }
    let commit = lab.repo("hello").commit("main", &files, "Carry all sorts");
    let pushed = lab.push_commit("hello", "main", &commit).await;
    lab.ended_as(pushed.build, "success").await;
    let live = lab.live(pushed.build, "api").await;
    assert_eq!(lab.version(&live.host).await, "one");
    expect_nothing_ran();

    // What a flake sees of a submodule; and one that wants it fetched.
    let seen = [("seen".to_owned(), "say (builtins.toJSON (builtins.attrNames (builtins.readDir ./.)) + builtins.toJSON (builtins.readDir (./. + \"/sub\")))".to_owned())];
    for (branch, inputs) in [("seen", ""), ("wanted", "inputs.self.submodules = true;")] {
        let mut all = expressions(&seen, inputs).files();
        all.extend(
            files
                .iter()
                .filter(|(path, _)| !all_own(path))
                .map(|(path, entry)| (path.clone(), entry.clone()))
                .collect::<Files>(),
        );
        let commit = lab.repo("hello").commit("main", &all, "Look");
        let pushed = lab.push_commit("hello", branch, &commit).await;
        let build = lab.ended(pushed.build).await;
        println!("{branch}: {:?}\n{}", build.artifact("seen").reason, api::log(pushed.build, "seen").await);
    }
    expect_nothing_ran();
    lab.finish().await;
}

/// The files that every repository of these tests has of its own.
fn all_own(path: &str) -> bool {
    matches!(path, "flake.nix" | "kennel.toml")
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_files_are_only_names() {
    let lab = Lab::start(LabConfig::hello().builder("max_concurrent_builds = 4")).await;
    let canaries = Canaries::place();
    let files = App::api("one").files();
    let base = lab.repo("hello").commit("main", &files, "One");
    let text = blob(&lab, b"out of the tree");
    let inner = {
        let repository = Repository::open_bare(lab.repo("hello").path()).unwrap();
        let mut tree = repository.treebuilder(None).unwrap();
        tree.insert("config", text, 0o100_644).unwrap();
        tree.write().unwrap()
    };
    let long = "n".repeat(300);
    let impossible = Some("a name that no file can have");
    let cases: [(&str, &[u8], Oid, Option<&str>); 9] = [
        ("100644", b"new\nline", text, None),
        ("100644", b"\x1b]0;owned\x07\x1b[31mred", text, None),
        ("100644", b"\xff\xfe", text, None),
        ("100644", b"-rf", text, None),
        ("40000", b".git", inner, None),
        ("100644", long.as_bytes(), text, impossible),
        ("40000", b"..", inner, impossible),
        ("40000", b".", inner, impossible),
        ("100644", b"a/../../../../srv/host/dir/escaped", text, impossible),
    ];
    let mut pushed = Vec::new();
    for (n, (mode, name, object, _)) in cases.iter().enumerate() {
        let commit = commit_raw(lab.repo("hello").path(), &base, &[(*mode, *name, *object)]);
        pushed.push(lab.push_commit("hello", &format!("try{n}"), &commit).await.build);
    }
    for (build, (_, name, _, problem)) in pushed.into_iter().zip(cases) {
        let ended = lab.ended(build).await;
        let said = machine::run("kennel", &["logs", "--build", &build.to_string()]).await;
        let shown = format!("{}{}", machine::text(&said.stdout), machine::text(&said.stderr));
        println!("{:?}: {} {:?}", String::from_utf8_lossy(&name[..name.len().min(40)]), ended.state, ended.reason);
        assert!(!shown.contains(['\x1b', '\x07']), "a terminal would obey: {shown:?}");
        match problem {
            None => assert_eq!(ended.state, "success", "{:?}", ended.reason),
            Some(problem) => {
                let reason = ended.reason.unwrap_or_default();
                assert!(ended.state == "failed" && reason.contains(problem), "{reason}\n{shown}");
            }
        }
    }
    expect_nothing_ran();
    canaries.expect_unread(&lab).await;
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_escape_that_a_build_prints_reaches_a_terminal() {
    let lab = Lab::hello().await;
    let tried = [
        ("printed".to_owned(), "sh \"printf '\\\\033[2J\\\\033]0;owned\\\\007\\\\033[31mred\\\\033[0m\\\\r\\\\302\\\\233tail\\\\n'; exit 1\"".to_owned()),
        ("thrown".to_owned(), format!("throw \"{}red\"", "\u{1b}[31m\u{7}\u{9b}2J\u{202e}")),
        ("named".to_owned(), format!("say {{}}.\"{}\"", "a\u{1b}[2Jb")),
    ];
    let pushed = lab.push("hello", "main", &expressions(&tried, "")).await;
    let build = lab.ended_as(pushed.build, "failed").await;
    let id = pushed.build.to_string();
    for arguments in [&["logs", "--build", &id][..], &["builds"], &["status"], &["logs", "--build", &id, "printed"]] {
        let said = machine::run("kennel", arguments).await;
        let shown = format!("{}{}", machine::text(&said.stdout), machine::text(&said.stderr));
        assert!(!shown.contains(|c: char| c.is_control() && c != '\n' && c != '\t'), "kennel {arguments:?}: {shown:?}");
        assert!(!shown.contains('\u{202e}'), "kennel {arguments:?}: {shown:?}");
    }
    for artifact in &build.artifacts {
        println!("{}: {:?}", artifact.name, artifact.reason);
    }
    let journal = lab.journal().await;
    assert!(!journal.contains('\x1b'), "{journal:?}");
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_file_that_is_no_good_fails_with_a_reason() {
    let lab = Lab::start(LabConfig::hello().builder("max_concurrent_builds = 4")).await;
    let canaries = Canaries::place();
    let root = |inputs: &str, nodes: &str| {
        format!("{{\"nodes\":{{\"root\":{{\"inputs\":{inputs}}}{nodes}}},\"root\":\"root\",\"version\":7}}")
    };
    let original = "{\"type\":\"github\",\"owner\":\"c\",\"repo\":\"d\"}";
    let locked =
        |locked: &str| root("{\"x\":\"x\"}", &format!(",\"x\":{{\"locked\":{locked},\"original\":{original}}}"));
    let hash = format!("sha256-{}=", "A".repeat(43));
    let mut deep = "{\"nodes\":".repeat(100_000);
    deep.push_str(&"}".repeat(100_000));
    let cases = [
        ("invalid JSON", "{\"nodes\": ".to_owned()),
        ("no JSON", "\0\u{1b}[31m".to_owned()),
        ("another version", "{\"version\": 99}".to_owned()),
        ("deep", deep),
        ("huge", format!("{{\"x\":\"{}\"}}", "x".repeat(16 << 20))),
        ("itself as an input", root("{\"x\":\"root\"}", "")),
        ("a node that is not there", root("{\"x\":\"gone\"}", "")),
        (
            "another place than the flake says",
            locked(&format!(
                "{{\"type\":\"path\",\"path\":\"{HOST_DIR}/dir\",\"narHash\":\"{hash}\",\"lastModified\":1}}"
            )),
        ),
        (
            "a revision that is an option",
            locked(&format!(
                "{{\"type\":\"github\",\"owner\":\"c\",\"repo\":\"d\",\"rev\":\"--upload-pack=x\",\"narHash\":\"{hash}\"}}"
            )),
        ),
    ];
    let input = "inputs.x = { url = \"github:c/d\"; flake = false; };";
    let app = expressions(&[("web".to_owned(), "say (toString inputs.x)".to_owned())], input);
    let mut pushed = Vec::new();
    for (n, (_, lock)) in cases.iter().enumerate() {
        pushed.push(lab.push("hello", &format!("try{n}"), &app.clone().file("flake.lock", lock.clone())).await.build);
    }
    for (build, (what, _)) in pushed.into_iter().zip(cases) {
        let build = lab.ended_as(build, "failed").await;
        let reason = build.artifact("web").reason.clone().unwrap_or_default();
        println!("{what}: {reason}  ({} ms)", build.finished_at.unwrap() - build.started_at.unwrap());
        assert!(!reason.is_empty() && !reason.contains("without a word"), "{what}: {reason}");
        assert!(reason.len() < 4_000 && !reason.contains('\x1b'), "{what}: {reason:?}");
    }
    canaries.expect_unread(&lab).await;
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_would_fill_the_disk_is_not_unpacked() {
    let lab = Lab::hello().await;
    let base = lab.repo("hello").commit("main", &App::api("one").files(), "One");
    let zeros = blob(&lab, &vec![0; 4 << 20]);
    let bomb = {
        let repository = Repository::open_bare(lab.repo("hello").path()).unwrap();
        let ten = |inner: Oid, mode: i32| {
            let mut tree = repository.treebuilder(None).unwrap();
            for n in 0..10 {
                tree.insert(n.to_string(), inner, mode).unwrap();
            }
            tree.write().unwrap()
        };
        (0..9).fold(ten(zeros, 0o100_644), |inner, _| ten(inner, 0o040_000))
    };
    let commit = commit_raw(lab.repo("hello").path(), &base, &[("40000", b"bomb", bomb)]);
    let begun = Instant::now();
    let pushed = lab.push_commit("hello", "main", &commit).await;
    let build = lab.ended_as(pushed.build, "failed").await;
    println!("{:?} after {} ms", build.reason, begun.elapsed().as_millis());
    assert!(
        build.reason.as_deref().unwrap_or_default().contains("holds more than 1000000 files"),
        "{:?}",
        build.reason
    );
    lab.finish().await;
}
