//! What one branch cannot do to another, and where no password may be.

use std::fs;
use std::path::Path;

use super::{Databases, app, lab_with_servers};
use crate::harness::databases::{ADMIN_PASSWORDS, command, valkey_as};
use crate::harness::{api, machine};

#[tokio::test(flavor = "multi_thread")]
async fn one_branch_cannot_reach_the_numbers_of_another() {
    let (lab, _valkey, _postgres) = lab_with_servers().await;
    let victim = Databases::of(&lab.deploy_api("hello", "main", &app("one")).await).await;
    let curious = Databases::of(&lab.deploy_api("hello", "topic", &app("one")).await).await;
    let (theirs, own) = (victim.number().to_string(), curious.number().to_string());
    assert_ne!(theirs, own);
    victim.valkey(&["SET", "secret", "canary"]).await.unwrap();
    curious.valkey(&["SET", "mine", "1"]).await.unwrap();

    for refused in [
        &["SELECT", &theirs][..],
        &["SELECT", "0"],
        &["COPY", "mine", "yours", "DB", &theirs],
        &["MOVE", "mine", &theirs],
        &["SWAPDB", &own, &theirs],
        &["EVAL", "redis.call('SELECT', ARGV[1]); return redis.call('GET', 'secret')", "0", &theirs],
        &["EVAL", "return redis.pcall('COPY', 'mine', 'yours', 'DB', ARGV[1])", "0", &theirs],
        &["EVAL", "return redis.pcall('SWAPDB', ARGV[1], ARGV[2])", "0", &own, &theirs],
        &["FUNCTION", "LOAD", "#!lua name=evil\nredis.register_function('evil', function() return 1 end)"],
        &["FUNCTION", "LIST"],
        &["SUBSCRIBE", &format!("kennel-{theirs}:news")],
        &["PSUBSCRIBE", "*"],
        &["PUBLISH", "news", "x"],
        &["PUBSUB", "CHANNELS"],
        &["CLIENT", "TRACKING", "ON", "BCAST"],
        &["CLIENT", "LIST"],
        &["CLIENT", "KILL", "TYPE", "normal"],
        &["ACL", "LIST"],
        &["ACL", "SETUSER", &format!("kennel-{own}"), "+@all"],
        &["CONFIG", "GET", "*"],
        &["CONFIG", "SET", "databases", "3"],
        &["FLUSHALL"],
        &["SCRIPT", "FLUSH"],
        &["MIGRATE", "127.0.0.1", "6379", "mine", &theirs, "100"],
        &["REPLICAOF", "127.0.0.1", "1"],
        &["DEBUG", "SLEEP", "0"],
        &["MONITOR"],
        &["SAVE"],
        &["SHUTDOWN", "NOSAVE"],
        &["MODULE", "LIST"],
        &["SLOWLOG", "GET"],
    ] {
        let said = curious.valkey(refused).await.expect_err(&format!("{refused:?} was not refused"));
        assert!(said.contains("NOPERM") || said.contains("permission"), "{refused:?}: {said}");
    }
    let mut connection = valkey_as(&curious.valkey).await.unwrap();
    let mut together = redis::pipe();
    together.atomic().cmd("SELECT").arg(&theirs).cmd("GET").arg("secret");
    assert!(together.query_async::<redis::Value>(&mut connection).await.is_err());

    for allowed in [
        &["KEYS", "*"][..],
        &["EVAL", "return redis.call('INCR', 'mine')", "0"],
        &["INFO", "server"],
        &["PUBLISH", &format!("kennel-{own}:news"), "x"],
        &["SORT", "mine"],
        &["FLUSHDB"],
    ] {
        // SORT of a string is the wrong type: what counts is that it may ask.
        let said = curious.valkey(allowed).await.err().unwrap_or_default();
        assert!(!said.contains("NOPERM") && !said.contains("permission"), "{allowed:?}: {said}");
    }
    let kept = command(&["GET", "secret"]).query_async::<String>(&mut valkey_as(&victim.valkey).await.unwrap()).await;
    assert_eq!(kept.unwrap(), "canary", "its own number was emptied, and no other");
    let own_url = curious.valkey.replace(&format!("kennel-{own}"), &format!("kennel-{theirs}"));
    assert!(valkey_as(&own_url).await.is_err(), "the password is the branch's own");
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_branch_cannot_enter_the_database_of_another() {
    let (lab, _valkey, postgres) = lab_with_servers().await;
    let victim = Databases::of(&lab.deploy_api("hello", "main", &app("one")).await).await;
    let curious = Databases::of(&lab.deploy_api("hello", "topic", &app("one")).await).await;
    victim.postgres("create table secrets (word text)").await.unwrap();

    let err = curious.connect(Some(victim.name())).await.expect_err("the database of another was entered");
    assert!(err.to_string().contains("permission denied for database"), "{err}");
    for refused in [
        &format!("set role \"{}\"", victim.name()),
        "set role kennel",
        "create role evil",
        "create database evil",
        &format!("drop database \"{}\"", victim.name()),
        &format!("alter role \"{}\" password 'x'", victim.name()),
        &format!("grant \"{}\" to \"{}\"", victim.name(), curious.name()),
        "select rolpassword from pg_authid",
        &format!(
            "do $$ begin perform 1 / (select count(*) from pg_stat_activity where usename = '{0}' and \
                  pg_terminate_backend(pid)); end $$",
            victim.name()
        ),
        "copy (select 1) to program 'id'",
        "select pg_read_file('/etc/passwd')",
    ] {
        assert!(curious.postgres(refused).await.is_err(), "not refused: {refused}");
    }
    curious.postgres("create table mine (n int); create extension if not exists pg_trgm").await.unwrap();

    let mut open = Vec::new();
    let refused = loop {
        match curious.connect(None).await {
            Ok(connection) => open.push(connection),
            Err(err) => break err,
        }
        assert!(open.len() < 50, "there is no limit");
    };
    assert_eq!(open.len(), 20);
    assert!(refused.to_string().contains("too many connections for role"), "{refused}");
    victim.postgres("select 1").await.expect("the other branch has connections of its own");
    drop(open);
    assert_eq!(postgres.roles().await.len(), 2);
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_password_is_anywhere_but_in_environment_files() {
    let (lab, valkey, postgres) = lab_with_servers().await;
    postgres.run("alter system set log_statement = 'all'; select pg_reload_conf()").await;
    let live = lab.deploy_api("hello", "main", &app("one")).await;
    let databases = Databases::of(&live).await;
    // Both are away, and both are told of.
    valkey.stop().await;
    let pushed = lab.push("hello", "topic", &app("two")).await;
    let waiting = super::outages::waits(&lab, pushed.build, "Valkey at 127.0.0.1:6379 cannot be reached").await;
    lab.restart().await;
    let status = machine::ok("kennel", &["status", "--json"]).await;
    let detail = api::ask(http::Method::GET, &format!("/deployments/{}", live.id)).await.text()
        + &api::ask(http::Method::GET, &format!("/deployments/{}", waiting.id)).await.text();
    valkey.start_again().await;
    lab.live(pushed.build, "api").await;

    let password =
        |url: &str| url.split_once("://").unwrap().1.split_once(':').unwrap().1.split_once('@').unwrap().0.to_owned();
    let mut canaries = vec![password(&databases.valkey), password(&databases.postgres)];
    assert!(canaries.iter().all(|canary| canary.len() == 64));
    canaries.extend(ADMIN_PASSWORDS.map(str::to_owned));
    machine::ok("journalctl", &["--sync"]).await;
    let mut places = vec![
        ("`kennel status`".to_owned(), status),
        ("the API".to_owned(), detail),
        ("the journal".to_owned(), machine::ok("journalctl", &["--all", "--no-pager", "--output=export"]).await),
        (
            "process arguments".to_owned(),
            machine::processes().iter().map(|process| process.command.clone() + "\n").collect(),
        ),
    ];
    for dir in ["/var/lib/kennel", "/run/systemd", "/var/log/postgresql", "/etc/kennel"] {
        for file in files(Path::new(dir)) {
            places.push((file.clone(), machine::text(&fs::read(&file).unwrap_or_default())));
        }
    }
    assert!(places.iter().any(|(_, text)| text.contains("alter role")), "PostgreSQL logged");
    assert!(places.iter().any(|(place, _)| place.ends_with("kennel.db")));
    for (place, text) in &places {
        for canary in &canaries {
            assert!(!text.contains(canary.as_str()), "{canary} is in {place}");
        }
    }
    let env = fs::read_to_string(format!("/run/kennel/secrets/hello-main-api@{}.env", live.id)).unwrap();
    assert!(env.contains(&canaries[0]) && env.contains(&canaries[1]), "this is where they may be");
    postgres.run("alter system reset log_statement; select pg_reload_conf()").await;
    lab.finish().await;
}

/// Every file below a directory.
fn files(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for name in machine::names(dir) {
        let path = dir.join(name);
        match fs::symlink_metadata(&path) {
            Ok(entry) if entry.is_dir() => found.extend(files(&path)),
            Ok(entry) if entry.is_file() => found.push(path.display().to_string()),
            _ => {}
        }
    }
    found
}
