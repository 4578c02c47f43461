//! What a flake can do while it is evaluated: read, fetch, configure, never end.

use super::{Canaries, HOST_DIR, expressions, named};
use crate::harness::app::{Entry, system};
use crate::harness::{App, Lab, LabConfig, ProjectSpec, api, machine, until};

/// The hash of a file, or of a tree as Nix packs it.
async fn hash(kind: &str, path: &str) -> String {
    machine::ok("nix", &["hash", kind, path]).await.trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_expression_reads_a_file_of_the_host() {
    let lab = Lab::start(LabConfig::hello().builder("max_parallel = 4")).await;
    let canaries = Canaries::place();
    let (secret, readable) = (canaries.secret.display(), canaries.readable.display());
    let file_hash = hash("file", &readable.to_string()).await;
    let tree_hash = hash("path", &format!("{HOST_DIR}/dir")).await;
    machine::ok("tar", &["-C", HOST_DIR, "-cf", &format!("{HOST_DIR}/dir.tar"), "dir"]).await;

    let texts = [
        format!("builtins.readFile \"{secret}\""),
        format!("builtins.readFile \"{readable}\""),
        format!("builtins.readFile (/. + \"{readable}\")"),
        format!("builtins.readFile \"${{self}}/../../..{readable}\""),
        format!("builtins.hashFile \"sha256\" \"{readable}\""),
        "builtins.readFile \"/etc/shadow\"".to_owned(),
        "builtins.readFile ./link".to_owned(),
        "builtins.readFile ./dirlink/readable".to_owned(),
        format!("builtins.path {{ path = \"{readable}\"; name = \"x\"; }}"),
        format!(
            "builtins.path {{ path = \"{readable}\"; name = \"x\"; sha256 = \"{file_hash}\"; recursive = false; }}"
        ),
        format!("builtins.toJSON (builtins.readDir \"{HOST_DIR}\")"),
        format!("import {HOST_DIR}/dir"),
        format!("builtins.fetchurl \"file://{readable}\""),
        format!("builtins.fetchurl {{ url = \"file://{readable}\"; sha256 = \"{file_hash}\"; }}"),
        format!("builtins.fetchTarball \"file://{HOST_DIR}/dir.tar\""),
        format!("builtins.fetchTarball {{ url = \"file://{HOST_DIR}/dir.tar\"; sha256 = \"{tree_hash}\"; }}"),
        format!("(builtins.fetchTree {{ type = \"path\"; path = \"{HOST_DIR}/dir\"; }}).outPath"),
        format!(
            "(builtins.fetchTree {{ type = \"path\"; path = \"{HOST_DIR}/dir\"; narHash = \"{tree_hash}\"; }}).outPath"
        ),
        format!("(builtins.fetchTree \"file://{readable}\").outPath"),
        format!("(builtins.getFlake \"path:{HOST_DIR}/dir\").word"),
        format!("(builtins.getFlake \"path:{HOST_DIR}/dir?narHash={tree_hash}\").word"),
        format!("builtins.fetchGit {{ url = \"ext::sh -c 'cat {readable}'\"; }}"),
        format!("builtins.fetchGit {{ url = \"file:///srv/git/other.git\"; rev = \"{}\"; }}", "0".repeat(40)),
        "builtins.fetchurl \"http://127.0.0.1:3000/healthz\"".to_owned(),
        format!("builtins.exec [ \"cat\" \"{readable}\" ]"),
        "(import (sh \"echo '\\\"x\\\"' >$out\"))".to_owned(),
    ];
    let mut tried: Vec<String> = texts.iter().map(|text| format!("say ({text})")).collect();
    let reads = format!("read -r line <{readable} && echo $line && echo $line >$out");
    tried.extend([
        format!("sh \"{reads}\""),
        format!("derivation {{ name = \"open\"; inherit system; __noChroot = true; builder = \"/bin/sh\"; args = [ \"-c\" \"{reads}\" ]; }}"),
        // Whose hash is known beforehand: it has the network, and would be right if it could read the file.
        format!(
            "derivation {{ name = \"fixed\"; inherit system; builder = \"/bin/sh\"; args = [ \"-c\" \"read -r line <{readable}; \
             printf %s \\\"$line\\\" >$out\" ]; outputHashMode = \"flat\"; outputHash = \"{file_hash}\"; }}"
        ),
        format!(
            "derivation {{ name = \"fetched\"; system = \"builtin\"; builder = \"builtin:fetchurl\"; url = \"file://{readable}\"; \
             outputHashMode = \"flat\"; outputHash = \"{file_hash}\"; }}"
        ),
    ]);
    let mut files = expressions(&named(&tried), "").files();
    files.insert("link".to_owned(), Entry::Link(readable.to_string()));
    files.insert("dirlink".to_owned(), Entry::Link(HOST_DIR.to_owned()));
    let commit = lab.repo("hello").commit("main", &files, "Read the host");
    let pushed = lab.push_commit("hello", "main", &commit).await;

    let build = lab.ended_as(pushed.build, "failed").await;

    for (n, expression) in tried.iter().enumerate() {
        let artifact = build.artifact(&format!("try{n}"));
        let reason = artifact.reason.clone().unwrap_or_default();
        println!("{expression}\n  -> {}", reason.replace('\n', "\n     "));
        assert_eq!(artifact.state, "failed", "{expression}");
        assert!(!reason.is_empty() && !reason.contains("without a word"), "{expression}: {reason}");
    }
    canaries.expect_unread(&lab).await;
    lab.finish().await;
}

/// A repository of one service that is built, with an input besides.
fn with_input(url: &str, is_flake: bool, lock: Option<&str>) -> App {
    let flake = format!(
        "{{ inputs.host = {{ url = \"{url}\"; flake = {is_flake}; }}; outputs = {{ self, host }}: {{ \
         packages.{system}.api = derivation {{ name = \"say\"; system = \"{system}\"; builder = \"/bin/sh\"; \
         args = [ \"-c\" \"echo $found; echo $found >$out\" ]; found = builtins.toJSON host.outPath; }}; }}; }}",
        system = system()
    );
    let app = App::default().file("flake.nix", flake).file("kennel.toml", "[services.api]\n");
    match lock {
        Some(locked) => app.file("flake.lock", lock_file(locked)),
        None => app,
    }
}

/// A lock file that fixes the input `host`.
fn lock_file(locked: &str) -> String {
    format!(
        "{{\"nodes\":{{\"host\":{{\"flake\":false,\"locked\":{locked},\"original\":{locked}}},\
         \"root\":{{\"inputs\":{{\"host\":\"host\"}}}}}},\"root\":\"root\",\"version\":7}}"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn no_input_of_a_flake_is_a_file_of_the_host() {
    let lab = Lab::start(LabConfig::hello().builder("max_concurrent_builds = 4")).await;
    let canaries = Canaries::place();
    let readable = canaries.readable.display();
    machine::ok("tar", &["-C", HOST_DIR, "-cf", &format!("{HOST_DIR}/dir.tar"), "dir"]).await;
    machine::ok(
        "sh",
        &[
            "-euc",
            &format!(
                "cd {HOST_DIR}; cp -r dir git; cd git; git init -q -b main; git add .; \
             git -c user.name=x -c user.email=x@example.com commit -qm x; cd ..; chown -R kennel-build git"
            ),
        ],
    )
    .await;
    let (file_hash, tree_hash) =
        (hash("file", &readable.to_string()).await, hash("path", &format!("{HOST_DIR}/dir")).await);
    let file_tree_hash = hash("path", &readable.to_string()).await;
    println!("{file_hash} {file_tree_hash}");
    let cases = [
        (format!("path:{HOST_DIR}/dir"), None),
        (
            format!("path:{HOST_DIR}/dir"),
            Some(format!(
                "{{\"type\":\"path\",\"path\":\"{HOST_DIR}/dir\",\"narHash\":\"{tree_hash}\",\"lastModified\":1}}"
            )),
        ),
        (format!("path:{HOST_DIR}/dir"), Some(format!("{{\"type\":\"path\",\"path\":\"{HOST_DIR}/dir\"}}"))),
        (format!("file://{readable}"), None),
        (
            format!("file://{readable}"),
            Some(format!("{{\"type\":\"file\",\"url\":\"file://{readable}\",\"narHash\":\"{file_tree_hash}\"}}")),
        ),
        (format!("tarball+file://{HOST_DIR}/dir.tar"), None),
        (
            format!("tarball+file://{HOST_DIR}/dir.tar"),
            Some(format!("{{\"type\":\"tarball\",\"url\":\"file://{HOST_DIR}/dir.tar\",\"narHash\":\"{tree_hash}\"}}")),
        ),
        (format!("git+file://{HOST_DIR}/git"), None),
    ];
    let mut pushed = Vec::new();
    for (n, (url, lock)) in cases.iter().enumerate() {
        pushed.push(lab.push("hello", &format!("try{n}"), &with_input(url, false, lock.as_deref())).await.build);
    }
    for (build, case) in pushed.into_iter().zip(&cases) {
        let build = lab.ended_as(build, "failed").await;
        let reason = build.artifact("api").reason.clone().unwrap_or_default();
        println!("{case:?}\n  -> {}", reason.replace('\n', "\n     "));
        assert!(!reason.is_empty() && !reason.contains("without a word"), "{case:?}: {reason}");
    }
    canaries.expect_unread(&lab).await;
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_a_flake_brings_change_nothing() {
    let lab = Lab::hello().await;
    let canaries = Canaries::place();
    let hook = format!("{HOST_DIR}/hook");
    let (hooked, readable) = (format!("{HOST_DIR}/dir/hooked"), canaries.readable.display());
    std::fs::write(&hook, format!("#!/bin/sh\ntouch {hooked}\n")).unwrap();
    machine::ok("chmod", &["755", &hook]).await;
    machine::ok("chmod", &["777", &format!("{HOST_DIR}/dir")]).await;
    let settings = format!(
        "nixConfig = {{ sandbox = false; post-build-hook = \"{hook}\"; diff-hook = \"{hook}\"; run-diff-hook = true; \
         pre-build-hook = \"{hook}\"; build-hook = \"{hook}\"; substituters = [ \"http://127.0.0.1:3000\" ]; \
         trusted-substituters = [ \"http://127.0.0.1:3000\" ]; extra-sandbox-paths = [ \"{HOST_DIR}\" ]; \
         accept-flake-config = true; allow-import-from-derivation = true; restrict-eval = false; pure-eval = false; \
         allowed-uris = [ \"file://\" \"path:\" ]; allow-unsafe-native-code-during-evaluation = true; \
         plugin-files = [ \"{hook}\" ]; log-lines = 0; max-jobs = 0; builders = \"ssh://evil\"; }};"
    );
    let tried = [
        "say (builtins.currentTime or \"pure\")".to_owned(),
        format!("sh \"if read -r line <{readable}; then exit 1; fi; echo sandboxed >$out\""),
        "sh \"echo a >$out\"".to_owned(),
    ];
    // Each is a file, and so fails as a site: after Nix has built it.
    let pushed = lab.push("hello", "main", &expressions(&named(&tried), &settings)).await;
    let build = lab.ended_as(pushed.build, "failed").await;
    for artifact in &build.artifacts {
        let reason = artifact.reason.clone().unwrap_or_default();
        assert!(reason.contains("not a directory"), "`{}` was not built: {reason}", artifact.name);
    }
    let log = api::log(pushed.build, "try1").await;
    println!("{log}");
    assert!(log.contains("ignoring untrusted flake configuration setting"), "{log}");
    assert!(!std::path::Path::new(&hooked).exists(), "a hook of the repository ran");
    canaries.expect_unread(&lab).await;
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evaluation_without_end_ends_in_time_and_holds_up_nobody() {
    let config = LabConfig::of([ProjectSpec::new("endless"), ProjectSpec::new("hello")]);
    let lab = Lab::start(config.builder("timeout = \"4s\"").builder("max_parallel = 3")).await;
    let fib = "let fib = n: if n < 2 then n else fib (n - 1) + fib (n - 2); in fib 91";
    let tried = [
        format!("say ({fib})"),
        // Evaluated after it is built.
        format!("(sh \"echo x >$out\") // {{ meta.mainProgram = toString ({fib}); }}"),
        "let f = n: f (n + 1) + 1; in say (f 0)".to_owned(),
        "say (builtins.match \"(((((.*)*)*)*)*)*b\" (builtins.concatStringsSep \"\" (builtins.genList (_: \"a\") 100000)))".to_owned(),
    ];
    let app = expressions(&named(&tried), "");
    let app = app.file("kennel.toml", "[services.try0]\n[services.try1]\n[services.try2]\n[services.try3]\n");
    let pushed = lab.push("endless", "main", &app).await;

    let live = lab.deploy_api("hello", "main", &App::api("meanwhile")).await;
    let endless = lab.ended_as(pushed.build, "failed").await;

    let (begun, live_at) = (endless.started_at.unwrap(), live.live_at.unwrap());
    let took = endless.finished_at.unwrap() - begun;
    println!("it ended after {took} ms; the other was live after {} ms", live_at - begun);
    for (n, tried) in tried.iter().enumerate() {
        println!("{tried}: {:?}", endless.artifact(&format!("try{n}")).reason);
    }
    assert!(took < 12_000, "two rounds of 4 s: {took} ms");
    assert!(live_at < endless.finished_at.unwrap(), "the other project had to wait for it");
    lab.finish().await;
}

/// A Valkey server on this machine that wants a password.
struct Valkey(tokio::process::Child);

impl Valkey {
    async fn start(port: u16, password: &str) -> Self {
        let port_text = port.to_string();
        let mut command = tokio::process::Command::new("valkey-server");
        command.args(["--port", &port_text, "--bind", "127.0.0.1", "--requirepass", password, "--save", ""]);
        command.stdout(std::process::Stdio::null()).kill_on_drop(true);
        let server = Self(command.spawn().unwrap());
        until("Valkey answers", std::time::Duration::from_secs(10), async || {
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()
        })
        .await;
        server
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_builder_with_the_network_meets_a_password_at_valkey() {
    let lab = Lab::hello().await;
    let canaries = Canaries::place();
    let mut valkey = Valkey::start(6379, "hush").await;
    let key = ["-a", "hush", "--no-auth-warning", "set", "key", &canaries.word];
    machine::ok("valkey-cli", &key).await;
    let ask = r#"exec 3<>/dev/tcp/127.0.0.1/6379; for words in 'GET key' 'KEYS *' 'CONFIG GET dir' 'DBSIZE' 'SHUTDOWN'; do
        printf '%s\r\n' "$words" >&3; read -r line <&3; echo "$words: $line"; done; exit 1"#;
    let fixed = format!(
        "derivation {{ name = \"asks\"; inherit system; builder = \"/bin/sh\"; args = [ \"-c\" \"{}\" ]; \
         outputHashMode = \"flat\"; outputHashAlgo = \"sha256\"; outputHash = \"{}\"; }}",
        ask.replace('\\', "\\\\").replace('"', "\\\""),
        "0".repeat(64)
    );
    let pushed = lab.push("hello", "main", &expressions(&[("asks".to_owned(), fixed)], "")).await;
    lab.ended_as(pushed.build, "failed").await;

    let log = api::log(pushed.build, "asks").await;
    println!("{log}");
    let refused = log.lines().filter(|line| line.starts_with("asks> ") && line.contains(": -NOAUTH "));
    assert_eq!(refused.count(), 5, "{log}");
    canaries.expect_unread(&lab).await;
    valkey.0.kill().await.unwrap();
    lab.finish().await;
}
