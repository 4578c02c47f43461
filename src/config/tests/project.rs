//! A repository's kennel.toml.

use std::collections::BTreeMap;

use rstest::rstest;

use super::MANIFEST;
use crate::config::project;
use crate::model::confinement::{Confinement, Limits, OptOut};
use crate::model::settings::{ServiceSettings, SiteSettings};
use crate::model::{HealthCheck, Protocol, Settings};

fn service_faults(lines: &str) -> String {
    let text = format!("[services.api]\n{lines}\n");
    project::parse(&text).map_or_else(|faults| faults.to_string(), |_| String::new())
}

#[test]
fn the_kennel_toml_of_the_design_is_read_whole() {
    let manifest = project::parse(MANIFEST).unwrap();
    assert_eq!(manifest.cachix.as_deref(), Some("my-cache"));
    assert_eq!(
        manifest.targets,
        BTreeMap::from([
            (
                "api".parse().unwrap(),
                Settings::Service(ServiceSettings {
                    flake_output: "backend".parse().unwrap(),
                    protocol: Protocol::Http1,
                    health_check: HealthCheck::Http("/health".to_owned()),
                    health_check_timeout_secs: 45,
                    drain_secs: 10,
                    custom_domain: Some("api.example.org".parse().unwrap()),
                    preview_database: true,
                    secrets: vec!["JWT_SECRET".to_owned()],
                    env: BTreeMap::from([
                        ("KEY".to_owned(), "-----BEGIN KEY-----\n\tabc\n-----END KEY-----\n".to_owned()),
                        ("LOG_LEVEL".to_owned(), "info".to_owned()),
                    ]),
                    confinement: Confinement {
                        limits: Limits {
                            memory_max_bytes: Some(512 << 20),
                            cpu_quota_percent: Some(50),
                            tasks_max: Some(64),
                        },
                        opt_outs: [OptOut::Netlink, OptOut::Proc].into(),
                    },
                }),
            ),
            (
                "web".parse().unwrap(),
                Settings::Site(SiteSettings {
                    flake_output: "frontend".parse().unwrap(),
                    spa: true,
                    custom_domain: Some("example.org".parse().unwrap()),
                }),
            ),
        ])
    );
}

#[rstest]
#[case("memory_max = \"512M\"", "")]
#[case("memory_max = \"8M\"", "`services.api.memory_max`: \"8M\" is not between 16M and 1048576M")]
#[case("cpu_quota = 50", "")]
#[case("cpu_quota = \"0%\"", "`services.api.cpu_quota`: \"0%\" is not a share of a processor between 1% and 102400%")]
#[case("cpu_quota = \"half\"", "; write it like \"50%\", or \"200%\" for two processors")]
#[case("tasks_max = 1", "`services.api.tasks_max`: 1 is not between 4 and 1048576")]
#[case("sandbox.allow = []", "")]
#[case("sandbox.allow = [\"network_raw\"]", "; did you mean \"network-raw\"?")]
#[case("sandbox.allow = [\"jit\"]", "; every service may make memory executable")]
#[case("sandbox.alow = []", "`services.api.sandbox.alow`: unknown key")]
fn limits_and_opt_outs_are_checked(#[case] line: &str, #[case] fault: &str) {
    let faults = service_faults(line);
    assert!(faults.contains(fault) && faults.is_empty() == fault.is_empty(), "{faults}");
}

#[test]
fn a_service_that_speaks_http_2_is_asked_for_its_health_as_it_says() {
    let checked = |text: &str| {
        let manifest = project::parse(&format!("[services.api]\nprotocol = \"h2c\"\n{text}")).unwrap();
        let Settings::Service(api) = &manifest.targets[&"api".parse().unwrap()] else { panic!("api is a service") };
        assert_eq!(api.protocol, Protocol::H2c);
        api.health_check.clone()
    };
    assert_eq!(checked(""), HealthCheck::Tcp);
    assert_eq!(checked("health_check = \"/ready\""), HealthCheck::Http("/ready".to_owned()));
    let fault = project::parse("[services.api]\nprotocol = \"h2\"").unwrap_err().to_string();
    assert!(fault.contains("\"h2\" is not one of `http/1.1`"), "{fault}");
}

#[test]
fn a_service_needs_only_its_name() {
    let manifest = project::parse("[services.api]").unwrap();
    let Settings::Service(api) = &manifest.targets[&"api".parse().unwrap()] else { panic!("api is a service") };
    assert_eq!(api.flake_output.as_str(), "api");
    assert_eq!(api.health_check, HealthCheck::Http("/health".to_owned()));
    assert_eq!((api.health_check_timeout_secs, api.drain_secs), (30, 30));
    assert!(api.env.is_empty() && api.secrets.is_empty() && !api.preview_database);
}

#[test]
fn a_kennel_toml_with_many_faults_names_each_with_its_line() {
    let faults = project::parse(
        r#"[services.Api]
port = 80

[services.web]
helth_check = "/up"
health_check_timeout_secs = 601
drain_secs = "30"
custom_domain = "localhost"
secrets = ["A", "A", "b c", "LOG"]

[services.web.env]
PORT = "80"
LD_PRELOAD = "x.so"
WORKERS = 4
BELL = "a\u0007"
LOG = "x"

[services.9lives]

[static_sites.web]
spa = "yes"
env = { A = "b" }

[static_site.docs]

[cachix]
cache_name = "https://my-cache.cachix.org"
"#,
    )
    .unwrap_err();
    insta::assert_snapshot!(faults, @r#"
    line 1: `services.Api`: is not a name: it may hold only `a` to `z`, `0` to `9` and `-`; rename it, such as `my-api`
    line 2: `services.Api.port`: unknown key; known here: `flake_output`, `custom_domain`, `protocol`, `health_check`, `health_check_timeout_secs`, `drain_secs`, `preview_database`, `memory_max`, `cpu_quota`, `tasks_max`, `sandbox`, `env`, `secrets`
    line 5: `services.web.helth_check`: unknown key; did you mean `health_check`?
    line 6: `services.web.health_check_timeout_secs`: 601 is not between 1 and 600
    line 7: `services.web.drain_secs`: must be a whole number, not a string
    line 8: `services.web.custom_domain`: "localhost" is not a domain; write it like "api.example.org"
    line 9: `services.web.secrets[1]`: "A" is listed twice
    line 9: `services.web.secrets[2]`: "b c" is not a variable's name: letters, digits and `_`, not beginning with a digit
    line 12: `services.web.env.PORT`: is reserved: kennel sets it
    line 13: `services.web.env.LD_PRELOAD`: is reserved: it steers the dynamic loader; wrap the program in the flake instead
    line 14: `services.web.env.WORKERS`: must be a string: a variable has no type, and 4 is a TOML integer; write "4"
    line 15: `services.web.env.BELL`: holds the control character U+0007
    line 18: `services.9lives`: cannot be its own flake output: it does not begin with a letter or `_`; set `flake_output`
    line 21: `static_sites.web.spa`: must be `true` or `false`, not a string
    line 22: `static_sites.web.env`: unknown key; known here: `flake_output`, `custom_domain`, `spa`
    line 24: `static_site`: unknown key; did you mean `static_sites`?
    line 27: `cachix.cache_name`: "https://my-cache.cachix.org" is not a cache's name: 1 to 63 letters, digits, `-` and `_`; write only the name, such as "my-cache" for my-cache.cachix.org
    "#);
}

#[rstest]
#[case("\"/\"", "")]
#[case("\"tcp\"", "")]
#[case("\"/health?deep=1\"", "")]
#[case("\"health\"", "is neither a path")]
#[case("\"//evil/\"", "is neither a path")]
#[case("\"http://x/\"", "is neither a path")]
#[case("\"\"", "is neither a path")]
#[case("\"/a b\"", "percent-encode it")]
#[case("\"/a\\nb\"", "percent-encode it")]
#[case("\"/ä\"", "percent-encode it")]
#[case("\"/a#b\"", "percent-encode it")]
#[case("true", "must be a string, not a boolean")]
fn a_health_check_is_a_path_or_tcp(#[case] value: &str, #[case] says: &str) {
    let faults = service_faults(&format!("health_check = {value}"));
    assert!(faults.contains(says) && faults.is_empty() == says.is_empty(), "{faults}");
}

#[rstest]
#[case("health_check_timeout_secs = 0", false)]
#[case("health_check_timeout_secs = 1", true)]
#[case("health_check_timeout_secs = 600", true)]
#[case("health_check_timeout_secs = 601", false)]
#[case("health_check_timeout_secs = -1", false)]
#[case("health_check_timeout_secs = 1.5", false)]
#[case("health_check_timeout_secs = 0x10", true)]
#[case("health_check_timeout_secs = 99999999999999999999", false)]
#[case("drain_secs = 0", true)]
#[case("drain_secs = 3600", true)]
#[case("drain_secs = 3601", false)]
#[case("custom_domain = \"api.example.org\"", true)]
#[case("custom_domain = \"API.example.org\"", false)]
#[case("custom_domain = \"10.0.0.1\"", false)]
#[case("custom_domain = \"*.example.org\"", false)]
#[case("flake_output = \"a.b\"", false)]
#[case("flake_output = \"x' --impure\"", false)]
#[case("env = { DATABASE_URL = \"sqlite:x\" }", true)]
#[case("preview_database = true\nenv = { DATABASE_URL = \"sqlite:x\" }", false)]
#[case("preview_database = true\nsecrets = [\"VALKEY_URL\"]", false)]
#[case("env = { KENNEL_X = \"1\" }", false)]
#[case("env = { A = \"a\\r\\n\" }", false)]
#[case("env = { A = true }", false)]
#[case("env = [\"A=b\"]", false)]
#[case("secrets = \"A\"", false)]
fn a_service_is_checked_key_by_key(#[case] lines: &str, #[case] good: bool) {
    let faults = service_faults(lines);
    assert_eq!(faults.is_empty(), good, "{faults}");
    assert!(good || faults.starts_with("line "), "{faults}");
}

#[rstest]
#[case("", "names no service and no static site")]
#[case("[services]\n[static_sites]", "names no service and no static site")]
#[case("services = 3", "line 1: `services`: must be a table, not an integer")]
#[case(
    "[services.web]\n[static_sites.web]",
    "line 2: `static_sites.web`: is the name of a service and of a static site"
)]
#[case(
    "[static_sites.a]\ncustom_domain = \"x.org\"\n[static_sites.b]\ncustom_domain = \"x.org\"",
    "line 4: `static_sites.b.custom_domain`: \"x.org\" is asked for twice: `static_sites.a.custom_domain` has it already"
)]
#[case("[services.\"a\\nb\"]", "`services.\"a\\nb\"`: is not a name")]
#[case("[services.a]\n[services.a]", "line 2: duplicate key")]
fn a_kennel_toml_that_makes_no_sense_is_refused(#[case] text: &str, #[case] says: &str) {
    let faults = project::parse(text).unwrap_err().to_string();
    assert!(faults.contains(says), "{faults}");
}

#[test]
fn sizes_are_bounded() {
    assert!(project::parse(&"#".repeat(project::SIZE_MAX + 1)).is_err());
    let many = (0..65).map(|n| format!("[services.s{n}]\n")).collect::<String>();
    assert!(project::parse(&many).unwrap_err().to_string().contains("one too many"));
    let env = (0..257).map(|n| format!("A{n} = \"\"\n")).collect::<String>();
    assert!(service_faults(&format!("[services.api.env]\n{env}")).contains("one too many"));
    assert!(service_faults(&format!("env = {{ A = \"{}\" }}", "x".repeat(65 << 10))).contains("longer than 64 KiB"));
    // A file of nothing but faults lists a hundred of them.
    let faults = (0..5_000).map(|n| format!("x{n} = 1\n")).collect::<String>();
    assert_eq!(project::parse(&faults).unwrap_err().as_slice().len(), 101);
    // Nesting ends before the stack does.
    assert!(project::parse(&format!("a = {}", "[".repeat(100_000))).is_err());
    assert!(project::parse(&format!("[{}]", vec!["a"; 50_000].join("."))).is_err());
}

#[test]
fn only_a_small_regular_file_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kennel.toml");
    let says = |text: &str| {
        let faults = project::load(&path).unwrap_err().to_string();
        assert!(faults.contains(text), "{faults}");
    };
    says("`kennel.toml`: is missing");
    std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
    says("`kennel.toml`: is a symbolic link");
    std::fs::remove_file(&path).unwrap();
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    says("`kennel.toml`: is not a regular file");
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, " ".repeat(project::SIZE_MAX + 1)).unwrap();
    says("`kennel.toml`: is larger than 256 KB");
    std::fs::write(&path, b"[services.api]\n# \xff\n").unwrap();
    says("line 2: is not valid UTF-8");
    std::fs::write(&path, "[services.api]\n").unwrap();
    assert_eq!(project::load(&path).unwrap().targets.len(), 1);
}
