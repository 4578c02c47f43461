//! The daemon's file.

use std::time::Duration;

use rstest::rstest;

use super::{DAEMON, MANIFEST};
use crate::config::*;
use crate::model::{BranchRef, Environment};

/// The faults of a daemon's file with a project `p` and `lines` below its own.
pub(super) fn project_faults(lines: &str) -> String {
    let text = format!(
        "base_domain = \"example.com\"\n[projects.p]\nrepo_type = \"github\"\nwebhook_secret_file = \"/s\"\n{lines}\n"
    );
    parse(&text).map_or_else(|faults| faults.to_string(), |_| String::new())
}

fn head(name: &str) -> BranchRef {
    BranchRef::head(name).unwrap()
}

#[test]
fn the_daemons_file_of_the_design_is_read_whole() {
    let config = parse(DAEMON).unwrap();
    assert_eq!(config.base_domain.as_str(), "example.com");
    assert_eq!(config.control_domain.as_ref().unwrap().as_str(), "kennel.example.com");
    assert_eq!(config.builder.max_concurrent_builds, 3);
    assert_eq!(config.builder.timeout, Duration::from_secs(5_400));
    assert_eq!((config.builder.memory_max_bytes, config.builder.tasks_max), (2 << 30, 512));
    assert_eq!(config.router.https.unwrap().port(), 443);
    assert_eq!(config.router.workers.unwrap().get(), 3);
    let proxies: Vec<_> = config.router.trusted_proxies.iter().map(ToString::to_string).collect();
    assert_eq!(proxies, ["127.0.0.1/32", "10.0.0.0/8"]);
    assert_eq!(config.router.monitor_interval, Duration::from_secs(10));
    assert_eq!(config.router.access_log, AccessLog::Errors);
    let project = &config.projects[&"myproject".parse().unwrap()];
    assert_eq!(project.repo_type, RepoType::Forgejo);
    assert_eq!(project.git_access, GitAccess::Token { token_file: "/run/secrets/myproject-git".into() });
    assert_eq!(project.forks, Forks::Deny);
    let jwt = PathBuf::from("/run/secrets/myproject-jwt");
    assert_eq!(project.secret(Environment::Prod, "JWT_SECRET"), Some(&jwt));
    assert_eq!(project.secret(Environment::Dev, "JWT_SECRET"), None);
    assert!(project.may_claim(&"shop.example.org".parse().unwrap()));
    assert!(!project.may_claim(&"example.net".parse().unwrap()));
}

#[test]
fn all_but_the_base_domain_has_a_default() {
    let config = parse("base_domain = \"localhost\"").unwrap();
    assert_eq!(config.state_dir, PathBuf::from("/var/lib/kennel"));
    assert_eq!(config.systemd.unit_dir, PathBuf::from("/run/systemd/system"));
    assert_eq!(config.api.listen.to_string(), "127.0.0.1:3000");
    assert_eq!((config.router.http.to_string().as_str(), config.router.https), ("0.0.0.0:80", None));
    assert_eq!((config.router.workers, config.router.trusted_proxies.len()), (None, 0));
    assert_eq!((config.router.workers, config.router.monitor_interval), (None, Duration::from_secs(30)));
    assert_eq!(config.router.access_log, AccessLog::Off);
    assert_eq!(config.builder.max_concurrent_builds, 2);
    assert_eq!(config.builder.timeout, Duration::from_secs(3_600));
    assert_eq!((config.builder.memory_max_bytes, config.builder.tasks_max), (4 << 30, 1024));
    assert!(config.projects.is_empty() && !config.prune_projects);
    assert_eq!(config.notices(), Vec::<String>::new());
}

#[test]
fn the_proxy_protocol_is_for_trusted_proxies() {
    let read = |lines: &str| parse(&format!("base_domain = \"example.com\"\n[router]\n{lines}"));
    assert!(!read("").unwrap().router.proxy_protocol);
    assert!(read("trusted_proxies = [\"10.0.0.1\"]\nproxy_protocol = true").unwrap().router.proxy_protocol);
    insta::assert_snapshot!(read("proxy_protocol = true").unwrap_err(), @"line 2: `router.proxy_protocol`: needs `trusted_proxies`: the proxies that are to be believed");
}

#[test]
fn a_project_needs_three_keys_and_has_careful_defaults() {
    let config = parse(
        "base_domain = \"a.b\"\n[projects.p]\nrepo_url = \"https://h/r\"\nrepo_type = \"gitea\"\nwebhook_secret_file = \"/s\"",
    )
    .unwrap();
    let project = &config.projects[&"p".parse().unwrap()];
    assert_eq!((project.repo_type, project.default_branch.as_str()), (RepoType::Forgejo, "main"));
    assert_eq!((project.forks, project.allow_ifd), (Forks::Deny, false));
    assert_eq!(project.git_access, GitAccess::Public);
    assert_eq!(project.allowed_uris, ["github:", "https://"]);
    assert!(project.wants(&head("anything/at-all")));
    assert!(project.wants(&BranchRef::pull(7.try_into().unwrap())));
    assert_eq!(project.environment(&head("main")), Environment::Prod);
}

#[test]
fn a_project_wants_what_its_patterns_name() {
    let config = parse(DAEMON).unwrap();
    let mut project = config.projects[&"myproject".parse().unwrap()].clone();
    assert!(project.wants(&head("main")));
    assert!(project.wants(&head("release/1.0")));
    assert!(!project.wants(&head("feature/x")));
    // A branch that merely looks like a pull request is a branch.
    assert!(!project.wants(&head("pull/7")));
    assert!(project.wants(&BranchRef::pull(7.try_into().unwrap())));
    project.pull_requests = false;
    assert!(!project.wants(&BranchRef::pull(7.try_into().unwrap())));
    project.branches = Some(Vec::new());
    assert!(!project.wants(&head("main")));
}

#[test]
fn every_fault_of_a_file_is_reported_at_once() {
    let faults = parse(
        r#"base_domain = "Example.com"
state_dir = "kennel"
colour = "red"

[router]
htpps = "0.0.0.0:443"

[builder]
timeout = "1 hour"
max_concurrent_builds = 0

[projects.My_Project]
repo_url = "https://me:hunter2@h/r"
repo_type = "gitlab"
webhook_secret_file = "hunter2"
branches = ["main", "a b", 3]
[projects.My_Project.secrets.prod]
KEY = "hunter2"
[projects.My_Project.secrets.production]
"#,
    )
    .unwrap_err();
    insta::assert_snapshot!(faults, @r#"
    line 1: `base_domain`: host name "Example.com" may hold only `a` to `z`, `0` to `9`, `-` and `.`
    line 2: `state_dir`: is not an absolute path: it does not begin with `/`
    line 3: `colour`: unknown key; known here: `base_domain`, `control_domain`, `state_dir`, `prune_projects`, `api`, `router`, `builder`, `upkeep`, `limits`, `systemd`, `projects`, `valkey`, `postgres`, `tls`, `acme`, `dns`
    line 6: `router.htpps`: unknown key; did you mean `https`?
    line 9: `builder.timeout`: "1 hour" is not a time; write it like "1h", "30m" or "90s"
    line 10: `builder.max_concurrent_builds`: 0 is not between 1 and 64
    line 12: `projects.My_Project`: is not a name: it may hold only `a` to `z`, `0` to `9` and `-`; rename it, such as `my-project`
    line 13: `projects.My_Project.repo_url`: holds a user or password; put it into a file, and name that with `git_token_file`
    line 14: `projects.My_Project.repo_type`: "gitlab" is not one of `github`, `forgejo`, `gitea`
    line 15: `projects.My_Project.webhook_secret_file`: is not an absolute path: it does not begin with `/`; secrets are paths, never values
    line 16: `projects.My_Project.branches[1]`: "a b" is not a branch pattern: it holds a space or one of `~^:?*[\`
    line 16: `projects.My_Project.branches[2]`: must be a string, not an integer
    line 18: `projects.My_Project.secrets.prod.KEY`: must name a file: secrets are paths, never values; write { file = "/path" }
    line 19: `projects.My_Project.secrets.production`: unknown key; known here: `prod`, `staging`, `dev`, `preview`
    "#);
    assert!(!faults.to_string().contains("hunter2"), "a fault must not repeat what may be a secret");
}

#[rstest]
#[case("0", Some(0))]
#[case("2GB", Some(2_000_000_000))]
#[case("500MB", Some(500_000_000))]
#[case("64KiB", Some(65_536))]
#[case("1TiB", Some(1 << 40))]
#[case("", None)]
#[case("GB", None)]
#[case("2gb", None)]
#[case("-1B", None)]
#[case("1.5GB", None)]
#[case("99999999TB", None)]
fn a_size_has_a_number_and_a_unit(#[case] text: &str, #[case] bytes: Option<u64>) {
    let config = parse(&format!("base_domain = \"a.b\"\n[builder]\nmin_free = \"{text}\""));
    assert_eq!(config.ok().and_then(|config| config.builder.min_free), bytes);
}

#[test]
fn a_project_may_expire_later_than_others_and_prod_never_does() {
    let project = "repo_url = \"https://h/r\"\nrepo_type = \"github\"\nwebhook_secret_file = \"/s\"";
    let text = format!(
        "base_domain = \"a.b\"\n[upkeep]\nexpire_after = \"3d\"\n[projects.p]\n{project}\n\
         [projects.q]\nexpire_after = \"never\"\n{project}"
    );
    let config = parse(&text).unwrap();
    let expiry = |name: &str, environment| config.expiry(&name.parse().unwrap(), environment);
    let days = |n: u64| Expiry::After(Duration::from_secs(n * 86_400));
    assert_eq!(expiry("p", Environment::Dev), days(3));
    assert_eq!(expiry("p", Environment::Preview), days(3));
    assert_eq!(expiry("q", Environment::Preview), Expiry::Never);
    assert_eq!(expiry("no-longer-configured", Environment::Dev), Expiry::Never);
    for exempt in [Environment::Prod, Environment::Staging] {
        assert_eq!(expiry("p", exempt), Expiry::Never);
    }
    let default = parse("base_domain = \"a.b\"").unwrap().upkeep;
    assert_eq!((default.expire_after, default.keep_for), (days(7), Duration::from_secs(30 * 86_400)));
}

#[test]
fn certificates_come_from_files_and_from_an_authority() {
    let text = "base_domain = \"a.b\"\n[router]\nhttps = \"0.0.0.0:443\"\n[tls]\nhsts = \"30d\"\nredirect = false\n\
                [[tls.certificates]]\ncertificate_file = \"/var/lib/acme/a.b/fullchain.pem\"\n\
                key_file = \"/var/lib/acme/a.b/key.pem\"\n\
                [acme]\nemail = \"ops@a.b\"\nchallenge = \"tls-alpn-01\"";
    let config = parse(text).unwrap();
    assert_eq!((config.tls.redirect, config.tls.hsts), (false, Some(Duration::from_secs(30 * 86_400))));
    assert_eq!(config.tls.certificates[0].key_file, PathBuf::from("/var/lib/acme/a.b/key.pem"));
    assert_eq!(config.acme.as_ref().unwrap().challenge, AcmeChallenge::TlsAlpn01);
    assert_eq!(config.notices(), Vec::<String>::new());
    let bare = parse("base_domain = \"a.b\"").unwrap();
    assert_eq!(bare.tls, TlsConfig { redirect: true, hsts: None, certificates: Vec::new() });
}

#[test]
fn visitors_are_told_of_https_once_there_are_certificates() {
    let url =
        |lines: &str| parse(&format!("base_domain = \"a.b\"\n{lines}")).unwrap().url_of(&"x.a.b".parse().unwrap());
    let certificates = "[[tls.certificates]]\ncertificate_file = \"/c\"\nkey_file = \"/k\"";
    assert_eq!(url(""), "http://x.a.b");
    assert_eq!(url("[router]\nhttp = \"[::]:8080\"\nhttps = \"[::]:8443\""), "http://x.a.b:8080");
    assert_eq!(url("[router]\nhttps = \"[::]:443\"\n[acme]\nemail = \"o@a.b\""), "https://x.a.b");
    assert_eq!(url(&format!("[router]\nhttps = \"[::]:8443\"\n{certificates}")), "https://x.a.b:8443");
}

#[test]
fn text_that_is_not_toml_is_reported_with_its_lines() {
    let faults = parse("a = 1\na = 2\nb = \n[c\n").unwrap_err();
    let lines = faults.as_slice().iter().map(|fault| fault.line).collect::<Vec<_>>();
    assert_eq!(lines, [Some(2), Some(3), Some(4)], "{faults}");
}

#[rstest]
#[case("https://forge.example.com/me/p.git", true)]
#[case("http://127.0.0.1:8081/p.git", true)]
#[case("https://[::1]:8081/p.git", true)]
#[case("file:///srv/git/p.git", true)]
#[case("", false)]
#[case("forge.example.com/me/p", false)]
#[case("/srv/git/p.git", false)]
#[case("../p.git", false)]
#[case("git://forge/p", false)]
#[case("ext::sh -c id", false)]
#[case("https://forge", false)]
#[case("https:///p", false)]
#[case("https://token@forge/p", false)]
#[case("https://u:p@forge/p", false)]
#[case("https://-oProxyCommand=id/p", false)]
#[case("https://forge:99999/p", false)]
#[case("https://forge/a b", false)]
#[case("https://forge/a\\nb", false)]
fn a_repository_is_named_by_a_plain_url(#[case] url: &str, #[case] good: bool) {
    let faults = project_faults(&format!("repo_url = \"{url}\""));
    assert_eq!(faults.is_empty(), good, "{faults}");
}

#[rstest]
#[case("ssh://git@forge:2222/me/p.git", true)]
#[case("git@forge.example.com:me/p.git", true)]
#[case("ssh://forge/me/p.git", true)]
#[case("ssh://-oProxyCommand=id/p", false)]
#[case("-oProxyCommand=id@forge:p", false)]
#[case("git@-oProxyCommand=id:p", false)]
#[case("ssh://git:pw@forge/p", false)]
fn an_ssh_url_cannot_smuggle_in_an_option(#[case] url: &str, #[case] good: bool) {
    let lines = format!("repo_url = \"{url}\"\nssh_key_file = \"/k\"\nknown_hosts_file = \"/h\"");
    let faults = project_faults(&lines);
    assert_eq!(faults.is_empty(), good, "{faults}");
}

#[rstest]
#[case("repo_url = \"git@h:p\"", "`projects.p.ssh_key_file`: is missing")]
#[case("repo_url = \"git@h:p\"\nssh_key_file = \"/k\"", "`projects.p.known_hosts_file`: is missing")]
#[case("repo_url = \"git@h:p\"\ngit_token_file = \"/t\"", "is of no use to an ssh URL")]
#[case("repo_url = \"https://h/p\"\nssh_key_file = \"/k\"\nknown_hosts_file = \"/h\"", "not ssh")]
#[case("repo_url = \"https://h/p\"\ngit_token_file = \"/t\"\nssh_key_file = \"/k\"", "is given beside")]
#[case("repo_url = \"https://h/p\"\nknown_hosts_file = \"/h\"", "is given without")]
#[case("repo_url = \"https://h/p\"\nallowed_uris = [\"path:/\"]", "this machine's files")]
#[case("repo_url = \"https://h/p\"\nallowed_uris = [\"tarball+file:///\"]", "this machine's files")]
#[case("repo_url = \"https://h/p\"\nallowed_uris = [\"https://a https://b\"]", "is not the beginning of a URL")]
#[case("repo_url = \"https://h/p\"\nallowed_uris = [\"/etc\"]", "is not the beginning of a URL")]
#[case("repo_url = \"https://h/p\"\ncustom_domains = [\"*.example.com\"]", "lies under `base_domain`")]
#[case("repo_url = \"https://h/p\"\nforks = \"alow\"", "\"alow\" is not one of `deny`, `allow`")]
#[case("repo_url = \"https://h/p\"\ndefault_branch = \"a b\"", "holds a space")]
#[case("repo_url = \"https://h/p\"\n[projects.p.secrets.dev]\nPORT = { file = \"/p\" }", "kennel sets it")]
#[case(
    "repo_url = \"https://h/p\"\n[projects.p.secrets.dev]\nK = { path = \"/p\" }",
    "`projects.p.secrets.dev.K.file`"
)]
#[case("repo_url = \"https://h/p\"\nsecrets.dev.K.file = \"/a b\"", "`projects.p.secrets.dev.K.file`: holds a space")]
#[case("repo_url = \"https://h/p\"\ngit_token_file = \"/a\\\\b\"", "holds a space or a backslash")]
fn a_project_that_cannot_work_is_refused(#[case] lines: &str, #[case] says: &str) {
    let faults = project_faults(lines);
    assert!(faults.contains(says), "{faults}");
}

#[rstest]
#[case("base_domain = \"a.b\"\n[api]\nlisten = \"0.0.0.0:3000\"", "`api.token_file`: is missing, and needed")]
#[case("base_domain = \"a.b\"\n[router]\nhttp = \"[::]:80\"\nhttps = \"[::]:80\"", "`http` listens already")]
#[case(
    "base_domain = \"a.b\"\ncontrol_domain = \"x.p.a.b\"\n[projects.p]\nrepo_url = \"https://h/p\"\nrepo_type = \"github\"\nwebhook_secret_file = \"/s\"",
    "lies among the hostnames of project `p`"
)]
#[case("base_domain = \"a.b\"\n[tls]\nhsts = \"1d\"", "`tls`: is of no use without `router.https`")]
#[case("base_domain = \"a.b\"\n[acme]\nemail = \"o@a.b\"", "`acme`: is of no use without `router.https`")]
#[case(
    "base_domain = \"a.b\"\n[acme]\nemail = \"o@a.b\"\nchallenge = \"dns\"",
    "is not one of `http-01`, `tls-alpn-01`"
)]
#[case(
    "base_domain = \"a.b\"\n[dns]\nprovider = \"cloudflare\"\ntoken_file = \"/t\"\nzone = \"c.a.b\"",
    "`dns.zone`: \"c.a.b\" does not hold `base_domain`, which is \"a.b\""
)]
#[case(
    "base_domain = \"a.b\"\n[dns]\nprovider = \"cloudflare\"\ntoken_file = \"/t\"\napi = \"http://192.0.2.1/v4\"",
    "is neither an https URL nor one of this machine"
)]
#[case(
    "base_domain = \"a.b\"\n[dns]\nprovider = \"cloudflare\"\ntoken_file = \"/t\"\nrecords = [\"0.0.0.0\"]",
    "`dns.records[0]`: \"0.0.0.0\" is not the address of a machine"
)]
#[case(
    "base_domain = \"a.b\"\n[dns]\nprovider = \"cloudflare\"\ntoken_file = \"/t\"\nrecords = \"203.0.113.7:80\"",
    "`dns.records`: "
)]
#[case("base_domain = \"a.b\"\n[tls]\nhsts = \"9999d\"", "is not between 1 s and 63072000 s")]
#[case(
    "base_domain = \"a.b\"\n[[tls.certificates]]\ncertificate_file = \"/c\"",
    "`tls.certificates[0].key_file`: is missing"
)]
#[case("base_domain = \"a.b\"\n[acme]\nemail = \"ops\"\ndirectory = \"http://x\"", "is not an e-mail address")]
#[case("base_domain = \"a.b\"\n[builder]\ntimeout = \"99d\"", "is not between 1 s and 86400 s")]
#[case("base_domain = \"a.b\"\n[builder]\nmin_free = \"2 GB\"", "\"2 GB\" is not a size")]
#[case("base_domain = \"a.b\"\n[builder]\nmin_free = 2", "must be a string, not an integer")]
#[case("base_domain = \"a.b\"\n[upkeep]\nkeep_for = \"1h\"", "is not between 86400 s and")]
#[case("base_domain = \"a.b\"\n[upkeep]\nexpire_after = \"Never\"", "\"Never\" is not a time")]
#[case("base_domain = \"a.b\"\n[systemd]\nunit_dir = \"/run/../etc\"", "holds `..`")]
#[case("base_domain = \"a.b\"\nprojects = 3", "`projects`: must be a table, not an integer")]
fn a_file_that_contradicts_itself_is_refused(#[case] text: &str, #[case] says: &str) {
    let faults = parse(text).unwrap_err().to_string();
    assert!(faults.contains(says), "{faults}");
}

#[test]
fn a_dns_zone_is_the_base_domains_own_unless_it_is_named() {
    let head = "base_domain = \"apps.a.b\"\n[dns]\nprovider = \"cloudflare\"\ntoken_file = \"/t\"\n";
    let dns = |lines: &str| parse(&format!("{head}{lines}")).unwrap().dns.unwrap();
    let plain = dns("");
    assert_eq!((plain.zone.as_str(), plain.api.as_str()), ("apps.a.b", "https://api.cloudflare.com/client/v4"));
    assert_eq!((plain.resolver, plain.records), (None, None));
    let full = dns(
        "zone = \"a.b\"\napi = \"http://127.0.0.1:81/v4\"\nresolver = \"127.0.0.1:53\"\nrecords = [\"203.0.113.7\", \"::1\"]",
    );
    assert_eq!((full.zone.as_str(), full.api.as_str()), ("a.b", "http://127.0.0.1:81/v4"));
    let to = ["203.0.113.7", "::1"].map(|address| address.parse().unwrap()).to_vec();
    assert_eq!(full.records, Some(RecordsTo::Addresses(to)));
    assert_eq!(dns("records = \"here.c\"").records, Some(RecordsTo::Host("here.c".parse().unwrap())));
}

#[test]
fn what_this_version_does_not_act_on_is_said() {
    assert_eq!(parse(DAEMON).unwrap().notices(), Vec::<String>::new());
    let dns = "base_domain = \"a.b\"\n[dns]\nprovider = \"cloudflare\"\ntoken_file = \"/t\"";
    assert_eq!(
        parse(dns).unwrap().notices(),
        ["`dns` is of no use: add `[acme]` for certificates by it, or `dns.records`"]
    );
    assert_eq!(parse(&format!("{dns}\nrecords = []")).unwrap().notices(), Vec::<String>::new());
    insta::assert_snapshot!(project::notices(&project::parse(MANIFEST).unwrap()).join("\n"), @r#"
    `cachix` is pushed to where the daemon's file has a `cachix_token_file` for the project
    "#);
}

#[rstest]
#[case("memory_max = \"256M\"", "")]
#[case("memory_max = \"1T\"", "")]
#[case("memory_max = \"255M\"", "`builder.memory_max`: \"255M\" is not between 256M and 1048576M")]
#[case("memory_max = \"2T\"", "`builder.memory_max`: \"2T\" is not between 256M and 1048576M")]
#[case(
    "memory_max = \"99999999999T\"",
    "`builder.memory_max`: \"99999999999T\" is not a size; write it like \"512M\", \"4G\" or \"2GB\""
)]
#[case(
    "memory_max = \"+1G\"",
    "`builder.memory_max`: \"+1G\" is not a size; write it like \"512M\", \"4G\" or \"2GB\""
)]
#[case(
    "memory_max = \"infinity\"",
    "`builder.memory_max`: \"infinity\" is not a size; write it like \"512M\", \"4G\" or \"2GB\""
)]
#[case("memory_max = 4", "`builder.memory_max`: must be a string, not an integer")]
#[case("tasks_max = 10", "`builder.tasks_max`: 10 is not between 64 and 65536")]
fn the_limits_of_a_build_are_within_reason(#[case] line: &str, #[case] fault: &str) {
    let said = parse(&format!("base_domain = \"a.b\"\n[builder]\n{line}\n"));
    let said = said.map_or_else(|faults| faults.to_string(), |_| String::new());
    assert_eq!(said, if fault.is_empty() { String::new() } else { format!("line 3: {fault}") });
}
