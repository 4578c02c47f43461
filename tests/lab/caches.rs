//! What builds made is pushed to binary caches, in the background: a cache that is away holds nothing up.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::harness::{
    App, Build, Deployment, Lab, LabConfig, ProjectSpec, api, machine, split, until, write_own_secret,
};

/// Where the daemon may write.
const CACHES: &str = "/srv/caches";
const CACHE: &str = "/srv/caches/nix";
const DROP_IN: &str = "/run/systemd/system/kennel.service.d";
const KEY: &str = "/etc/kennel/cache-key";
/// How long a push may take, with the pauses before it.
const PUSH_MAX: Duration = Duration::from_secs(90);

/// kennel with a cache that it may write to, as an operator would let it.
async fn start(builder: &str, project: ProjectSpec) -> Lab {
    let _ = fs::remove_dir_all(CACHES);
    let lab = Lab::prepare(LabConfig::of([project]).section(builder)).await;
    fs::create_dir_all(CACHES).unwrap();
    machine::ok("chown", &[split::owner(), CACHES]).await;
    fs::create_dir_all(DROP_IN).unwrap();
    fs::write(Path::new(DROP_IN).join("cache.conf"), "[Service]\nReadWritePaths=/srv/caches\n").unwrap();
    machine::ok("systemctl", &["daemon-reload"]).await;
    let _ = fs::remove_file(KEY);
    write_own_secret(Path::new(KEY), &machine::ok("nix", &["key", "generate-secret", "--key-name", "lab-1"]).await);
    machine::ok("systemctl", &["start", "kennel.service"]).await;
    lab
}

async fn finish(lab: Lab) {
    lab.finish().await;
    fs::remove_file(Path::new(DROP_IN).join("cache.conf")).unwrap();
    let _ = fs::remove_dir_all(CACHES);
    machine::ok("systemctl", &["daemon-reload"]).await;
}

async fn pushes(build: i64) -> Vec<Value> {
    let detail: Value = api::get(&format!("/builds/{build}")).await;
    detail["pushes"].as_array().expect("a build tells of its pushes").clone()
}

async fn pushed(build: i64) -> Value {
    until("it is pushed", PUSH_MAX, async || pushes(build).await.into_iter().find(|push| push["pushed_at"].is_number()))
        .await
}

/// The store path of what a build made.
async fn made(build: i64) -> String {
    let detail: Value = api::get(&format!("/builds/{build}")).await;
    detail["artifacts"][0]["store_path"].as_str().expect("it made something").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_build_made_is_in_the_cache_signed_and_complete() {
    let cache = format!("[builder.cache]\nto = \"file://{CACHE}?compression=none\"\nsigning_key_file = \"{KEY}\"");
    let lab = start(&cache, ProjectSpec::new("hello")).await;
    let live = lab.deploy_api("hello", "main", &App::api("one")).await;
    let push = pushed(live.build).await;
    assert_eq!((&push["cache"], &push["attempts"]), (&"store".into(), &0.into()), "{push}");
    assert!(lab.journal().await.contains(&format!("Pushed build {} of hello to file://{CACHE}", live.build)));

    let path = made(live.build).await;
    let url = format!("file://{CACHE}");
    let info = machine::ok("nix", &["path-info", "--store", &url, "--json", "--recursive", &path]).await;
    let info: Value = serde_json::from_str(&info).unwrap();
    println!("{info:#}");
    let signatures = info[&path]["signatures"].to_string();
    assert!(signatures.contains("lab-1:"), "{signatures}");
    // Once more by hand, from the cache alone and by its key.
    let public = machine::ok("sh", &["-c", &format!("nix key convert-secret-to-public < {KEY}")]).await;
    let to =
        ["copy", "--from", &url, "--to", "/tmp/other-store", &path, "--option", "trusted-public-keys", public.trim()];
    machine::ok("nix", &to).await;
    assert!(Path::new("/tmp/other-store").join(path.trim_start_matches('/')).exists());
    machine::ok("sh", &["-c", "chmod -R u+w /tmp/other-store && rm -r /tmp/other-store"]).await;

    let key = fs::read_to_string(KEY).unwrap();
    let arguments = machine::processes().into_iter().any(|process| process.command.contains(key.trim()));
    assert!(!arguments && !lab.journal().await.contains(key.trim()));
    finish(lab).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_is_away_holds_up_nothing_and_gets_it_later_also_after_a_restart() {
    let cache = format!("[builder.cache]\nto = \"file://{CACHE}\"");
    let lab = start(&cache, ProjectSpec::new("hello")).await;
    // A file in the place of the directory: nothing can be written there.
    fs::write(CACHE, "").unwrap();
    let live = lab.deploy_api("hello", "main", &App::api("one")).await;
    assert_eq!(lab.version(&live.host).await, "one");
    let failed = until("it has failed twice", PUSH_MAX, async || {
        let push = pushes(live.build).await.pop()?;
        (push["attempts"].as_i64()? >= 2).then_some(push)
    })
    .await;
    println!("{failed:#}");
    assert!(failed["problem"].as_str().is_some_and(|problem| problem.contains("push to `file://")), "{failed}");
    assert!(lab.journal().await.contains("it is tried again in 2 s"));
    let build: Build = api::get(&format!("/builds/{}", live.build)).await;
    assert_eq!(build.state, "success", "the build has not failed by it");

    lab.kill9().await;
    fs::remove_file(CACHE).unwrap();
    machine::ok("systemctl", &["restart", "kennel.service"]).await;
    pushed(live.build).await;
    let url = format!("file://{CACHE}");
    machine::ok("nix", &["path-info", "--store", &url, &made(live.build).await]).await;
    let shown: Deployment = api::deployment(live.id).await;
    assert_eq!(shown.state, "live");
    finish(lab).await;
}

/// Writes down how it was called, as cachix's own would not.
const CACHIX: &str = "#!/bin/sh\n{ echo \"$@\"; echo \"$CACHIX_AUTH_TOKEN\"; cat; } > /srv/caches/cachix\n";

#[tokio::test(flavor = "multi_thread")]
async fn the_cachix_cache_of_a_kennel_toml_gets_it_with_the_operators_token() {
    let cachix = Path::new("/usr/local/bin/cachix");
    let _ = fs::remove_file(cachix);
    let lab = start("", ProjectSpec::new("hello").line("cachix_token_file = \"/etc/kennel/cachix\"")).await;
    write_own_secret(Path::new("/etc/kennel/cachix"), "hush-cachix");
    let live = lab.deploy_api("hello", "main", &App::api("one").manifest_end("[cachix]\ncache_name = \"mine\"")).await;
    let failed = until("it has failed", PUSH_MAX, async || {
        pushes(live.build).await.into_iter().find(|push| push["problem"].is_string())
    })
    .await;
    let problem = failed["problem"].as_str().unwrap_or_default().to_owned();
    assert!(problem.contains("there is no program `cachix` on kennel's PATH"), "{problem}");

    fs::write(cachix, CACHIX).unwrap();
    fs::set_permissions(cachix, fs::Permissions::from_mode(0o755)).unwrap();
    // The operator has mended it, and says so.
    machine::ok("systemctl", &["reload", "kennel.service"]).await;
    assert_eq!(pushed(live.build).await["name"], "mine");
    let called = fs::read_to_string("/srv/caches/cachix").unwrap();
    assert_eq!(called, format!("push mine\nhush-cachix\n{}\n", made(live.build).await));
    assert!(!lab.journal().await.contains("hush-cachix"));
    fs::remove_file(cachix).unwrap();
    finish(lab).await;
}
