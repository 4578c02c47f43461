//! `logs`, of builds and of services.

use super::*;

#[tokio::test]
async fn logs_of_a_build_are_printed_as_they_are() {
    let fixture = Fixture::busy().await;
    fixture.write_log(BuildId(2), "fetch", "fetched fedcba9\n");
    fixture.write_log(BuildId(2), "api", "compiling\nno end of line");
    insta::assert_snapshot!(fixture.kennel(&["logs", "--build", "2"]).await.all(), @r#"
    ==> fetch <==
    fetched fedcba9

    ==> api <==
    compiling
    no end of line
    --- exit 0
    "#);
    insta::assert_snapshot!(fixture.kennel(&["logs", "-f", "--build", "2", "fetch"]).await.all(), @r#"
    fetched fedcba9
    --- exit 0
    "#);
    let ran = fixture.kennel(&["logs", "-f", "--build", "2"]).await;
    let mut lines: Vec<&str> = ran.out.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["api   | compiling", "api   | no end of line", "fetch | fetched fedcba9"]);
    assert_eq!((ran.talk.as_str(), ran.code), ("Build 2 succeeded.\n", 0));
}

#[tokio::test]
async fn following_a_build_outlives_a_restart_of_the_daemon() {
    let mut fixture = Fixture::new().await;
    fixture.push("heads/main", FIRST, "Say hello").await;
    let build = fixture.claim().await;
    fixture.write_log(build.id, "api", "one\nhalf a ");
    let mut child = fixture.command(&["logs", "-f", "--build", "1"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("api   | one"));
    fixture.shutdown.cancel();
    while fixture.servers.join_next().await.is_some() {}
    // It asks again, and once more gets no answer.
    let _ = std::fs::remove_file(&fixture.socket);
    let deaf = tokio::net::UnixListener::bind(&fixture.socket).unwrap();
    drop(tokio::time::timeout(PATIENCE, deaf.accept()).await.expect("it asks again").unwrap());
    drop(deaf);
    fixture.shutdown = CancellationToken::new();
    fixture.serve(config(&fixture.dir));
    fixture.write_log(build.id, "api", "one\nhalf a line\ntwo\n");
    fixture.finish(&build, &[("api", Ok(()))]).await;
    let rest = async {
        assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("api   | half a line"));
        assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("api   | two"));
        assert_eq!(lines.next_line().await.unwrap(), None);
        assert!(child.wait().await.unwrap().success());
    };
    tokio::time::timeout(PATIENCE, rest).await.expect("it goes on after the restart");
}

/// A directory for `PATH` with a `journalctl` that says how it was called.
fn fake_journalctl(fixture: &Fixture) -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;

    let bin = fixture.dir.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    std::fs::write(bin.join("journalctl"), "#!/bin/sh\necho \"journalctl $*\"\nexit 7\n").unwrap();
    std::fs::set_permissions(bin.join("journalctl"), std::fs::Permissions::from_mode(0o755)).unwrap();
    bin
}

#[tokio::test]
async fn the_journal_of_a_service_is_shown_by_journalctl() {
    let fixture = Fixture::busy().await;
    let bin = fake_journalctl(&fixture);
    for arguments in [&["logs", "hello/main/api", "-f"][..], &["logs", "-f", "api", "--project", "hello"]] {
        let ran = finish(fixture.command(arguments).env("PATH", &bin).output().await.unwrap());
        assert_eq!(ran.all(), "journalctl --identifier=kennel-hello-main-api --follow\n--- exit 7");
    }
    fixture.push("heads/feature/x", FIRST, "Elsewhere").await;
    let build = fixture.claim().await;
    let other = if build.slug.as_str() == "main" { fixture.claim().await } else { build };
    fixture.finish(&other, &[("api", Ok(()))]).await;
    let ran = fixture.kennel(&["logs", "api"]).await;
    insta::assert_snapshot!(ran.all(), @r#"
    --- stderr
    error: there is more than one `api`
    hint: say `hello/feature/x/api` or `hello/main/api`
    --- exit 64
    "#);
    let ran = finish(fixture.command(&["logs", "hello/feature/x/api"]).env("PATH", &bin).output().await.unwrap());
    assert_eq!(ran.out, "journalctl --identifier=kennel-hello-feature-x-api\n");
}
