//! Exit codes, and the one line that says what went wrong.

use super::*;

#[tokio::test]
async fn exit_codes_and_one_line_tell_what_went_wrong() {
    let fixture = Fixture::busy().await;
    let mut told = String::new();
    for arguments in [
        &["status", "nope"][..],
        &["status", "No Such"],
        &["cancel", "99"],
        &["cancel", "1"],
        &["cancel", "one"],
        &["cancel", "-5"],
        &["teardown", "99"],
        &["teardown", "3"],
        &["deploy", "nope", "main"],
        &["deploy", "hello", "nope"],
        &["deploy", "hello", "main", "xyz"],
        &["logs"],
        &["logs", "--build", "99"],
        &["logs", "--build", "2", "api"],
        &["logs", "nope"],
        &["logs", "web"],
        &["frobnicate"],
    ] {
        let ran = fixture.kennel(arguments).await;
        assert_eq!(ran.out, "", "{arguments:?} has no data");
        told += &format!("$ kennel {}\n{}--- exit {}\n", arguments.join(" "), ran.talk, ran.code);
    }
    insta::assert_snapshot!(told, @r#"
    $ kennel status nope
    error: there is no project `nope`
    hint: the projects are `hello`
    --- exit 66
    $ kennel status No Such
    error: invalid value 'No Such' for '[PROJECT]': project name "No Such" may hold only `a` to `z`, `0` to `9` and `-`
    hint: `kennel help` lists the commands, `kennel help COMMAND` explains one
    --- exit 64
    $ kennel cancel 99
    error: there is no build 99
    hint: `kennel builds` lists them
    --- exit 66
    $ kennel cancel 1
    error: build 1 has ended already: it is `success`
    --- exit 1
    $ kennel cancel one
    error: invalid value 'one' for '<BUILD>': it is not a number, such as 17
    hint: `kennel help` lists the commands, `kennel help COMMAND` explains one
    --- exit 64
    $ kennel cancel -5
    error: unexpected argument '-5' found
    hint: `kennel help` lists the commands, `kennel help COMMAND` explains one
    --- exit 64
    $ kennel teardown 99
    error: there is no deployment 99
    hint: `kennel status` lists them
    --- exit 66
    $ kennel teardown 3
    error: deployment 3 has ended already
    hint: `kennel status` lists those that have not
    --- exit 1
    $ kennel deploy nope main
    error: there is no project `nope`
    hint: the projects are `hello`
    --- exit 66
    $ kennel deploy hello nope
    error: there was no push to `nope` of `hello`
    hint: push to it, or name the commit; there were pushes to `main`, `pr-7`
    --- exit 66
    $ kennel deploy hello main xyz
    error: commit "xyz" is not 40 or 64 hexadecimal digits
    hint: 7 digits or more do for one that kennel has built before
    --- exit 64
    $ kennel logs
    error: say whose logs
    hint: `kennel logs PROJECT/BRANCH/SERVICE` or `kennel logs --build ID`
    --- exit 64
    $ kennel logs --build 99
    error: there is no build 99
    hint: `kennel builds` lists them
    --- exit 66
    $ kennel logs --build 2 api
    error: build 2 has no log of `api`
    hint: it has none at all: it has not begun, or it is over 30 days old
    --- exit 66
    $ kennel logs nope
    error: there is no service `nope`
    hint: `kennel status` lists them
    --- exit 66
    $ kennel logs web
    error: hello/main/web is a static site: it has no process, and so no journal
    hint: `kennel logs --build 1 web` shows how it was built
    --- exit 66
    $ kennel frobnicate
    error: unrecognized subcommand 'frobnicate'
    hint: `kennel help` lists the commands, `kennel help COMMAND` explains one
    --- exit 64
    "#);
}

#[tokio::test]
async fn a_daemon_that_is_not_there_is_told_apart_from_one_that_says_no() {
    let fixture = Fixture::new().await;
    let nowhere = fixture.dir.path().join("nowhere");
    let ran = fixture.kennel(&["status", "--socket", nowhere.to_str().unwrap()]).await;
    let talk = ran.all().replace(fixture.dir.path().to_str().unwrap(), "DIR");
    insta::assert_snapshot!(talk, @r#"
    --- stderr
    error: cannot reach kennel at DIR/nowhere: there is no such socket
    hint: `systemctl status kennel` tells whether it runs
    --- exit 69
    "#);

    if !nix::unistd::Uid::effective().is_root() {
        return;
    }
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(fixture.dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    // Where the test's program lies may be out of an ordinary user's reach.
    let program = fixture.dir.path().join("kennel");
    std::fs::copy(env!("CARGO_BIN_EXE_kennel"), &program).unwrap();
    let mut command = tokio::process::Command::new(&program);
    command.args(["status", "--socket"]).arg(&fixture.socket).uid(65_534).gid(65_534);
    let ran = finish(command.output().await.unwrap());
    let talk = ran.all().replace(fixture.dir.path().to_str().unwrap(), "DIR");
    insta::assert_snapshot!(talk, @r#"
    --- stderr
    error: you may not use DIR/kennel.sock
    hint: run it with `sudo`, or become a member of the group `kennel` and log in again
    --- exit 77
    "#);
}
