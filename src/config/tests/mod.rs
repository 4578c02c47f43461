//! Both files, read as their authors would write them, and as they would get them wrong.

mod daemon;
mod granted;
mod project;

use proptest::prelude::*;

use super::{parse, project as repository};

/// The daemon's file of the design, section 5, whole.
const DAEMON: &str = r#"
base_domain = "example.com"
control_domain = "kennel.example.com"
state_dir = "/var/lib/kennel"

[api]
listen = "127.0.0.1:3000"
token_file = "/run/secrets/kennel-token"

[router]
workers = 3
trusted_proxies = ["127.0.0.1", "10.0.0.0/8"]
monitor_interval = "10s"
access_log = "errors"
http = "0.0.0.0:80"
https = "0.0.0.0:443"

[builder]
max_concurrent_builds = 3
timeout = "1h30m"
memory_max = "2G"
tasks_max = 512

[limits]
memory_max = "2G"
cpu_quota = "200%"
default.memory_max = "256M"

[systemd]
unit_dir = "/run/systemd/system"

[projects.myproject]
repo_url = "https://forge.example.com/me/myproject.git"
repo_type = "forgejo"
webhook_secret_file = "/run/secrets/myproject-webhook"
default_branch = "main"
git_token_file = "/run/secrets/myproject-git"
allowed_uris = ["github:", "https://"]
branches = ["main", "release/*"]
pull_requests = true
forks = "deny"
custom_domains = ["*.example.org"]
sandbox_allow = ["network-raw"]
limits = { memory_max = "128M", tasks_max = 99 }

[projects.myproject.secrets.prod]
JWT_SECRET = { file = "/run/secrets/myproject-jwt" }

[valkey]
url_file = "/run/secrets/kennel-valkey"

[postgres]
url_file = "/run/secrets/kennel-postgres"

[acme]
email = "ops@example.com"
directory = "https://acme-v02.api.letsencrypt.org/directory"
ca_file = "/etc/kennel/private-ca.pem"

[dns]
provider = "cloudflare"
token_file = "/run/secrets/kennel-dns"
"#;

/// The kennel.toml of the design, section 5, whole.
const MANIFEST: &str = r#"
[services.api]
flake_output = "backend"
health_check = "/health"
health_check_timeout_secs = 45
custom_domain = "api.example.org"
preview_database = true
drain_secs = 10
secrets = ["JWT_SECRET"]
memory_max = "512M"
cpu_quota = "50%"
tasks_max = 64
sandbox.allow = ["proc", "netlink"]
[services.api.env]
LOG_LEVEL = "info"
KEY = """
-----BEGIN KEY-----
\tabc
-----END KEY-----
"""

[static_sites.web]
flake_output = "frontend"
spa = true
custom_domain = "example.org"

[cachix]
cache_name = "my-cache"
"#;

proptest! {
    #[test]
    fn no_text_makes_the_readers_panic(text in "\\PC*") {
        let _ = parse(&text);
        let _ = repository::parse(&text);
    }

    #[test]
    fn no_value_in_a_files_place_makes_the_readers_panic(
        key in 0..40_usize,
        value in prop_oneof!["[0-9.e+-]{1,30}", "\"\\PC{0,40}\"", "\\[[0-9,\"a{}=]{0,20}\\]", "\\{[a-z=0-9,\" ]{0,20}\\}", "true"],
    ) {
        for whole in [DAEMON, MANIFEST] {
            let lines = whole.lines().collect::<Vec<_>>();
            let at = key % lines.len();
            let mut changed = lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
            if let Some((name, _)) = lines[at].split_once('=') {
                changed[at] = format!("{name}= {value}");
            }
            let changed = changed.join("\n");
            let _ = parse(&changed);
            let _ = repository::parse(&changed);
        }
    }
}
