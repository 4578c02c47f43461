//! Nix: its version and daemon, its sandbox, and the user that hands it what repositories ask for.

use std::ffi::CString;
use std::process::Stdio;

use ::nix::unistd::{Group, User, getgrouplist};
use serde_json::Value;
use tokio::process::Command;
use tokio::time::timeout;

use super::finding::Finding;
use super::{LOOK_MAX, Subject};

/// The first release of each series without the known ways to become root through the daemon, the last of which was
/// CVE-2026-44028; later series never had them.
const MENDED: [(u32, u32); 7] = [(28, 7), (29, 4), (30, 5), (31, 5), (32, 8), (33, 6), (34, 7)];
/// Where Nix's settings are.
const CONF: &str = "/etc/nix/nix.conf";
/// Groups whose members are as good as root, may ask kennel for anything, or read what others wrote.
const MIGHTY: [&str; 11] =
    ["root", "wheel", "sudo", "admin", "disk", "docker", "lxd", "libvirt", "shadow", "systemd-journal", "kennel"];

/// The user builds run as.
#[derive(Debug, Clone, PartialEq, Eq)]
struct BuildUser {
    name: String,
    uid: u32,
    groups: Vec<String>,
}

/// What Nix's daemon says to whoever asks.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Daemon {
    version: Option<String>,
    /// Whether whoever asked is trusted; daemons before 2.4 do not tell.
    trusted: Option<bool>,
}

/// Nix's settings, as far as they matter here.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Settings {
    sandbox: Value,
    sandbox_fallback: bool,
    trusted_users: Vec<String>,
    allowed_users: Vec<String>,
}

/// Checks Nix and the build user.
pub(super) async fn check(subject: &Subject) -> Vec<Finding> {
    let (root, settings) = tokio::join!(daemon(&[]), settings());
    let user = build_user(&subject.build_user);
    let mut findings = vec![judge_daemon(root.as_ref())];
    if let Ok(Daemon { version: Some(version), .. }) = &root {
        findings.push(judge_version(version));
    }
    findings.push(judge_sandbox(settings.as_ref()));
    findings.push(judge_build_user(&subject.build_user, user.as_ref()));
    if let Some(user) = user {
        let ids = ["setpriv", &format!("--reuid={}", user.uid), &format!("--regid={}", user.name), "--init-groups"];
        let seen = daemon(&ids).await;
        findings.push(judge_trust(&user, seen.as_ref(), settings.as_ref().ok()));
    }
    findings
}

/// Runs Nix, by way of another command where one is given. Tells what it printed, or its last words.
async fn run(by: &[&str], arguments: &[&str]) -> Result<String, String> {
    let nix = ["nix", "--extra-experimental-features", "nix-command"];
    let words = [by, &nix, arguments].concat();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).stdin(Stdio::null()).kill_on_drop(true);
    // What the person at the keyboard has set for itself is no matter to kennel.
    command
        .env_remove("NIX_CONFIG")
        .env("NIX_USER_CONF_FILES", "")
        .env("NIX_REMOTE", "daemon")
        .env("HOME", "/var/empty");
    let output = match timeout(LOOK_MAX, command.output()).await {
        Ok(output) => output.map_err(|err| format!("`{}` cannot be run: {err}", words[0]))?,
        Err(_) => return Err(format!("`nix {}` does not end", arguments.join(" "))),
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(last_words(&String::from_utf8_lossy(&output.stderr)).to_owned())
}

/// The error among what a program said, or else its last line.
fn last_words(said: &str) -> &str {
    let error = said.lines().rev().find_map(|line| line.trim().strip_prefix("error: "));
    error.or_else(|| said.trim().lines().next_back()).unwrap_or("it said nothing")
}

async fn daemon(by: &[&str]) -> Result<Daemon, String> {
    let text = run(by, &["store", "info", "--json", "--store", "daemon"]).await?;
    read_daemon(&text)
}

async fn settings() -> Result<Settings, String> {
    read_settings(&run(&[], &["config", "show", "--json"]).await?)
}

fn read_daemon(text: &str) -> Result<Daemon, String> {
    let told: Value = serde_json::from_str(text).map_err(|err| format!("it is not understood: {err}"))?;
    let trusted = match &told["trusted"] {
        // Some versions write a number.
        Value::Number(number) => Some(number.as_i64() != Some(0)),
        other => other.as_bool(),
    };
    Ok(Daemon { version: told["version"].as_str().map(str::to_owned), trusted })
}

fn read_settings(text: &str) -> Result<Settings, String> {
    let told: Value = serde_json::from_str(text).map_err(|err| format!("they are not understood: {err}"))?;
    let value = |name: &str| told[name]["value"].clone();
    let words = |name: &str| {
        let words = value(name).as_array().cloned().unwrap_or_default();
        words.iter().filter_map(|word| word.as_str().map(str::to_owned)).collect()
    };
    let sandbox_fallback = value("sandbox-fallback").as_bool().ok_or("they tell nothing of `sandbox-fallback`")?;
    Ok(Settings {
        sandbox: value("sandbox"),
        sandbox_fallback,
        trusted_users: words("trusted-users"),
        allowed_users: words("allowed-users"),
    })
}

fn build_user(name: &str) -> Option<BuildUser> {
    let user = User::from_name(name).ok().flatten()?;
    let groups = CString::new(name).ok().and_then(|name| getgrouplist(&name, user.gid).ok()).unwrap_or_default();
    let names = groups.into_iter().filter_map(|gid| Group::from_gid(gid).ok().flatten()).map(|group| group.name);
    Some(BuildUser { name: name.to_owned(), uid: user.uid.as_raw(), groups: names.collect() })
}

fn judge_daemon(daemon: Result<&Daemon, &String>) -> Finding {
    let check = "nix daemon";
    match daemon {
        Ok(_) => Finding::ok(check, "it answers"),
        Err(why) => Finding::failure(
            check,
            format!("it does not answer: {why}"),
            "start it: `systemctl start nix-daemon.socket`; `nix` must be in the PATH",
        ),
    }
}

fn judge_version(version: &str) -> Finding {
    let check = "nix version";
    let mut numbers = version.split('.').map(|part| {
        let digits: String = part.chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<u32>().ok()
    });
    let parts = (numbers.next().flatten(), numbers.next().flatten(), numbers.next().flatten().unwrap_or(0));
    let (Some(2), Some(minor), patch) = parts else {
        let advice = "make sure that it is a release with the mends of May 2026";
        return Finding::warning(check, format!("`{version}` is not one of Nix's own versions"), advice);
    };
    let mended = match MENDED.iter().find(|(series, _)| *series == minor) {
        Some((_, first)) => patch >= *first,
        None => minor > MENDED[MENDED.len() - 1].0,
    };
    if mended {
        return Finding::ok(check, version);
    }
    let better = MENDED.iter().find(|(series, _)| *series >= minor).unwrap_or(&MENDED[0]);
    // Distributions mend old versions without calling them new, so this is not known for certain.
    Finding::warning(
        check,
        format!("{version} has known holes: whoever builds with it may become root"),
        format!("upgrade Nix to 2.{}.{} or later, unless your distribution has mended this one", better.0, better.1),
    )
}

fn judge_sandbox(settings: Result<&Settings, &String>) -> Finding {
    let check = "sandbox";
    let settings = match settings {
        Ok(settings) => settings,
        Err(why) => {
            let advice = format!("see that `nix config show` works, and look at {CONF}");
            return Finding::failure(check, format!("Nix's settings cannot be read: {why}"), advice);
        }
    };
    let set = |what: &str| format!("set `{what}` in {CONF}, and restart nix-daemon");
    match &settings.sandbox {
        Value::Bool(true) => {}
        Value::String(word) if word == "true" => {}
        Value::String(word) if word == "relaxed" => {
            let found = "`sandbox` is relaxed: a repository can have its build left outside of it";
            return Finding::failure(check, found, set("sandbox = true"));
        }
        _ => {
            let found = "`sandbox` is off: builds read this machine's files";
            return Finding::failure(check, found, set("sandbox = true"));
        }
    }
    if settings.sandbox_fallback {
        let found = "`sandbox-fallback` is on: where the sandbox cannot be made, builds run without it";
        return Finding::failure(check, found, set("sandbox-fallback = false"));
    }
    Finding::ok(check, "on, without a fallback")
}

fn judge_build_user(name: &str, user: Option<&BuildUser>) -> Finding {
    let check = "build user";
    let Some(user) = user else {
        let make = format!("useradd --system --no-create-home --shell /usr/sbin/nologin {name}");
        return Finding::failure(check, format!("there is no user `{name}`, as whom builds run"), format!("`{make}`"));
    };
    if user.uid == 0 {
        return Finding::failure(check, format!("`{name}` is root"), format!("give `{name}` a uid of its own"));
    }
    if let Some(group) = user.groups.iter().find(|group| MIGHTY.contains(&group.as_str())) {
        let found = format!("`{name}` is in the group `{group}`, which may do more than build");
        return Finding::failure(check, found, format!("`gpasswd --delete {name} {group}`"));
    }
    Finding::ok(check, format!("`{name}`, unprivileged"))
}

/// What the daemon says to the build user itself counts for more than what its settings say.
fn judge_trust(user: &BuildUser, seen: Result<&Daemon, &String>, settings: Option<&Settings>) -> Finding {
    let (check, name) = ("build user's rights", &user.name);
    let listed = settings.is_some_and(|settings| is_listed(user, &settings.trusted_users));
    let trusted = seen.ok().and_then(|daemon| daemon.trusted).unwrap_or(false);
    if trusted || listed {
        return Finding::failure(
            check,
            format!("Nix trusts `{name}`: what it builds can take over this machine"),
            format!("take `{name}`, its groups and `*` out of `trusted-users` in {CONF}, and restart nix-daemon"),
        );
    }
    match seen {
        Ok(_) => Finding::ok(check, format!("`{name}` may use Nix's daemon and is not trusted by it")),
        Err(why) if settings.is_some_and(|settings| !is_listed(user, &settings.allowed_users)) => Finding::failure(
            check,
            format!("`{name}` may not use Nix's daemon: {why}"),
            format!("add `{name}` to `allowed-users` in {CONF}, and restart nix-daemon"),
        ),
        Err(why) => Finding::failure(
            check,
            format!("`{name}` does not reach Nix's daemon: {why}"),
            format!("let it use the daemon's socket: on Debian, `gpasswd --add {name} nix-users`"),
        ),
    }
}

/// Whether a list of Nix's means this user: by name, by group, or with everybody.
fn is_listed(user: &BuildUser, list: &[String]) -> bool {
    list.iter().any(|entry| match entry.strip_prefix('@') {
        Some(group) => user.groups.iter().any(|own| own == group),
        None => entry == "*" || *entry == user.name,
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::super::finding::Level;
    use super::*;

    fn user(uid: u32, groups: &[&str]) -> BuildUser {
        let groups = groups.iter().map(|&group| group.to_owned()).collect();
        BuildUser { name: "kennel-build".to_owned(), uid, groups }
    }

    fn settings(sandbox: Value, sandbox_fallback: bool, trusted: &[&str], allowed: &[&str]) -> Settings {
        let words = |list: &[&str]| list.iter().map(|&word| word.to_owned()).collect();
        Settings { sandbox, sandbox_fallback, trusted_users: words(trusted), allowed_users: words(allowed) }
    }

    #[rstest]
    #[case("2.26.3", Level::Warning)]
    #[case("2.28.6", Level::Warning)]
    #[case("2.28.7", Level::Ok)]
    #[case("2.29.3", Level::Warning)]
    #[case("2.30.4pre20260101_abc", Level::Warning)]
    #[case("2.30.5", Level::Ok)]
    #[case("2.31.4", Level::Warning)]
    #[case("2.31.5+1", Level::Ok)]
    #[case("2.34", Level::Warning)]
    #[case("2.35.0", Level::Ok)]
    #[case("2.3.16", Level::Warning)]
    #[case("3.0", Level::Warning)]
    #[case("unknown", Level::Warning)]
    fn versions_with_known_holes_are_told(#[case] version: &str, #[case] level: Level) {
        assert_eq!(judge_version(version).level, level, "{version}");
    }

    #[rstest]
    #[case(true.into(), false, Level::Ok)]
    #[case("true".into(), false, Level::Ok)]
    #[case("relaxed".into(), false, Level::Failure)]
    #[case(false.into(), false, Level::Failure)]
    #[case(Value::Null, false, Level::Failure)]
    #[case(true.into(), true, Level::Failure)]
    fn builds_need_a_sandbox_that_never_falls_away(
        #[case] sandbox: Value,
        #[case] fallback: bool,
        #[case] level: Level,
    ) {
        assert_eq!(judge_sandbox(Ok(&settings(sandbox, fallback, &[], &[]))).level, level);
        assert_eq!(judge_sandbox(Err(&"no".to_owned())).level, Level::Failure);
    }

    #[rstest]
    #[case(Some(user(999, &["kennel-build", "nix-users"])), Level::Ok)]
    #[case(Some(user(0, &[])), Level::Failure)]
    #[case(Some(user(999, &["docker"])), Level::Failure)]
    #[case(Some(user(999, &["kennel"])), Level::Failure)]
    #[case(None, Level::Failure)]
    fn the_build_user_may_do_nothing_but_build(#[case] user: Option<BuildUser>, #[case] level: Level) {
        assert_eq!(judge_build_user("kennel-build", user.as_ref()).level, level);
    }

    #[rstest]
    #[case(Ok(Some(false)), &["root"], &["*"], Level::Ok, "is not trusted")]
    #[case(Ok(Some(true)), &["root"], &["*"], Level::Failure, "trusts")]
    #[case(Ok(None), &["root", "kennel-build"], &["*"], Level::Failure, "trusts")]
    #[case(Ok(None), &["root", "@nix-users"], &["*"], Level::Failure, "trusts")]
    #[case(Ok(None), &["*"], &["*"], Level::Failure, "trusts")]
    #[case(Ok(None), &["root", "@wheel", "kennel"], &["*"], Level::Ok, "is not trusted")]
    #[case(Err("refused"), &["root"], &["@wheel"], Level::Failure, "may not use")]
    #[case(Err("refused"), &["root"], &["@nix-users"], Level::Failure, "does not reach")]
    fn the_build_user_uses_nix_untrusted(
        #[case] seen: Result<Option<bool>, &str>,
        #[case] trusted: &[&str],
        #[case] allowed: &[&str],
        #[case] level: Level,
        #[case] says: &str,
    ) {
        let seen = seen.map(|trusted| Daemon { version: None, trusted }).map_err(str::to_owned);
        let settings = settings(true.into(), false, trusted, allowed);
        let found = judge_trust(&user(999, &["kennel-build", "nix-users"]), seen.as_ref(), Some(&settings));
        assert!(found.level == level && found.found.contains(says), "{found:?}");
    }

    #[rstest]
    #[case("warning: x\nerror: syntax error in line 'a=b'\nTry 'nix --help' for more.\n", "syntax error in line 'a=b'")]
    #[case("one\ntwo\n", "two")]
    #[case("", "it said nothing")]
    fn of_what_nix_says_the_error_counts(#[case] said: &str, #[case] words: &str) {
        assert_eq!(last_words(said), words);
    }

    #[test]
    fn what_nix_prints_is_read() {
        let daemon = read_daemon(r#"{"trusted":1,"url":"daemon","version":"2.26.3"}"#).unwrap();
        assert_eq!(daemon, Daemon { version: Some("2.26.3".to_owned()), trusted: Some(true) });
        assert_eq!(read_daemon(r#"{"trusted":false}"#).unwrap().trusted, Some(false));
        let text = r#"{"sandbox":{"value":true},"sandbox-fallback":{"value":false},
            "trusted-users":{"value":["root"]},"allowed-users":{"value":["*"]}}"#;
        assert_eq!(read_settings(text).unwrap(), settings(true.into(), false, &["root"], &["*"]));
        assert!(read_settings("{}").is_err());
    }
}
