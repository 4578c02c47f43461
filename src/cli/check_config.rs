//! `kennel check-config`: is this daemon's file right?

use std::path::PathBuf;

use serde_json::json;

use super::{Answer, Output, OutputArguments, notes};
use crate::config::{self, Config, Forks, GitAccess, ProjectConfig};

/// Check the daemon's file, and show what it sets up
///
/// Reads that one file and nothing else: no secrets, no network. Exits with 64 when anything in it is wrong, after
/// naming every fault with its line.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The file to check
    #[arg(default_value = config::DEFAULT_PATH)]
    file: PathBuf,

    #[command(flatten)]
    output: OutputArguments,
}

/// Checks the file.
pub(super) fn run(arguments: &Arguments) -> Answer {
    let output = arguments.output.output();
    match config::load(&arguments.file) {
        Err(faults) => Answer::faults(&arguments.file, &faults, output),
        Ok(config) => answer(&config, output),
    }
}

fn answer(config: &Config, output: Output) -> Answer {
    let notices = config.notices();
    match output {
        Output::Json => {
            let projects = config.projects.values().map(|project| {
                json!({
                    "name": project.name,
                    "repo_url": project.repo_url,
                    "repo_type": project.repo_type.to_string(),
                    "default_branch": project.default_branch,
                    "hosts": format!("*.{}.{}", project.name, config.base_domain),
                    "webhook": webhook(config, project),
                })
            });
            let projects = projects.collect::<Vec<_>>();
            Answer::json(&json!({ "ok": true, "projects": projects, "notices": notices }), 0)
        }
        Output::Text => {
            let mut stdout = format!("ok: {}\n", summary(config));
            for project in config.projects.values() {
                let domain = format!("{}.{}", project.name, config.base_domain);
                stdout.push_str(&format!(
                    "\n{}\n  repository  {} ({})\n  deploys     {}\n  hosts       <service>-<branch>.{domain}\n  webhook     {}\n",
                    project.name,
                    project.repo_url,
                    access(project),
                    deploys(project),
                    webhook(config, project),
                ));
            }
            Answer { stdout, stderr: notes(&notices), code: 0 }
        }
    }
}

fn summary(config: &Config) -> String {
    let projects = match config.projects.len() {
        0 => "no projects yet".to_owned(),
        1 => "1 project".to_owned(),
        count => format!("{count} projects"),
    };
    format!("{projects}, visitors on {}, API on {}", config.router.http, config.api.listen)
}

/// Where the forge is to deliver to.
fn webhook(config: &Config, project: &ProjectConfig) -> String {
    match &config.control_domain {
        Some(domain) => format!("{}/webhook/{}", config.url_of(domain), project.name),
        None => format!("http://{}/webhook/{}", config.api.listen, project.name),
    }
}

fn access(project: &ProjectConfig) -> &'static str {
    match project.git_access {
        GitAccess::Public => "public",
        GitAccess::Token { .. } => "with token",
        GitAccess::Ssh { .. } => "with key",
    }
}

fn deploys(project: &ProjectConfig) -> String {
    let mut text = match &project.branches {
        None => "all branches".to_owned(),
        Some(patterns) if patterns.is_empty() => "no branches".to_owned(),
        Some(patterns) => patterns.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    };
    text.push_str(match (project.pull_requests, project.forks) {
        (false, _) => "",
        (true, Forks::Deny) => ", pull requests",
        (true, Forks::Allow) => ", pull requests (forks too)",
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "base_domain = \"example.com\"\n[router]\nhttps = \"0.0.0.0:443\"\n\
        [projects.hello]\nrepo_url = \"https://forge.example.com/me/hello.git\"\nrepo_type = \"forgejo\"\n\
        webhook_secret_file = \"/run/secrets/hello\"\n\
        [projects.shop]\nrepo_url = \"git@github.com:me/shop.git\"\nrepo_type = \"github\"\n\
        webhook_secret_file = \"/run/secrets/shop\"\nssh_key_file = \"/k\"\nknown_hosts_file = \"/h\"\n\
        branches = [\"main\", \"release/*\"]\nforks = \"allow\"\n";

    #[test]
    fn each_project_is_shown_with_what_it_will_do() {
        let answer = answer(&config::parse(TEXT).unwrap(), Output::Text);
        insta::assert_snapshot!(answer.stdout, @r#"
    ok: 2 projects, visitors on 0.0.0.0:80, API on 127.0.0.1:3000

    hello
      repository  https://forge.example.com/me/hello.git (public)
      deploys     all branches, pull requests
      hosts       <service>-<branch>.hello.example.com
      webhook     http://127.0.0.1:3000/webhook/hello

    shop
      repository  git@github.com:me/shop.git (with key)
      deploys     main, release/*, pull requests (forks too)
      hosts       <service>-<branch>.shop.example.com
      webhook     http://127.0.0.1:3000/webhook/shop
    "#);
        assert_eq!(
            answer.stderr,
            "note: `router.https` turns everybody away: add `[acme]` or `[[tls.certificates]]`\n"
        );
    }

    #[test]
    fn scripts_get_the_same_as_data() {
        let answer = answer(&config::parse(TEXT).unwrap(), Output::Json);
        let value: serde_json::Value = serde_json::from_str(&answer.stdout).unwrap();
        assert_eq!(value["ok"], true);
        assert_eq!(value["projects"][1]["hosts"], "*.shop.example.com");
        assert_eq!(value["projects"][0]["webhook"], "http://127.0.0.1:3000/webhook/hello");
    }
}
