//! What the operator grants: limits and opt-outs for services, and a cache for what is built.

use rstest::rstest;

use super::daemon::project_faults;
use super::*;
use crate::config::parse;
use crate::model::confinement::{Limits, OptOut};

#[rstest]
#[case("to = \"file:///srv/cache\"", "")]
#[case("to = \"s3://cache?region=eu-central-1\"\ncredentials_file = \"/s\"\nsigning_key_file = \"/k\"", "")]
#[case("to = \"ssh-ng://nix@h\"\ncredentials_file = \"/s\"\nknown_hosts_file = \"/h\"", "")]
#[case("signing_key_file = \"/k\"", "builder.cache.to: is missing")]
#[case("to = \"/srv/cache\"", "is not the URL of a store")]
#[case("to = \"daemon\"", "is not the URL of a store")]
#[case("to = \"https://me:hush@h/c\"", "builder.cache.to: holds a password")]
#[case("to = \"s3://c?secret-key=/k\"", "names a key by secret-key; name it with signing_key_file")]
#[case("to = \"file:///c\"\ncredentials_file = \"/s\"", "is of no use to a `file` store")]
#[case("to = \"ssh-ng://h\"\ncredentials_file = \"/s\"", "builder.cache.known_hosts_file: is missing")]
fn a_cache_is_a_store_and_its_secrets_are_files(#[case] lines: &str, #[case] fault: &str) {
    let text = format!("base_domain = \"a.b\"\n[builder.cache]\n{lines}\n");
    let faults = parse(&text).map_or_else(|faults| faults.to_string(), |_| String::new());
    let faults = faults.replace('`', "");
    assert!(faults.contains(&fault.replace('`', "")) && faults.is_empty() == fault.is_empty(), "{faults}");
    assert!(!faults.contains("hush"), "{faults}");
}

#[test]
fn a_project_has_its_own_limits_or_everybodys_and_opt_outs_as_the_operator_says() {
    let config = parse(DAEMON).unwrap();
    let limits = |memory, cpu, tasks| Limits { memory_max_bytes: memory, cpu_quota_percent: cpu, tasks_max: tasks };
    let own = config.limits_of(&"myproject".parse().unwrap());
    assert_eq!(own.max, limits(Some(128 << 20), Some(200), Some(99)));
    // What everybody gets is above this project's ceiling.
    assert_eq!(own.grant(Limits::default()), limits(Some(128 << 20), Some(200), Some(99)));
    assert_eq!(own.grant(limits(Some(64 << 20), Some(50), None)), limits(Some(64 << 20), Some(50), Some(99)));
    let others = config.limits_of(&"gone".parse().unwrap());
    assert_eq!(others.grant(Limits::default()), limits(Some(256 << 20), Some(200), None));
    assert_eq!(config.projects[&"myproject".parse().unwrap()].sandbox_allow, [OptOut::NetworkRaw].into());

    let plain = project_faults("repo_url = \"https://h/r\"");
    assert_eq!(plain, "");
    let faults = project_faults(
        "repo_url = \"https://h/r\"\nsandbox_allow = [\"everything\"]\n\
         limits = { memory_max = \"1G\", default = { memory_max = \"2G\" }, cpu = 3 }",
    );
    for fault in [
        "`projects.p.sandbox_allow[0]`: \"everything\" is not one of `proc`",
        "`projects.p.limits.default.memory_max`: is 2G, more than the 1G that services may ask for",
        "`projects.p.limits.cpu`: unknown key",
    ] {
        assert!(faults.contains(fault), "{faults}");
    }
}
