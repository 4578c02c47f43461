//! `kennel check`: is this repository's kennel.toml right, and what must its flake have?

use std::path::PathBuf;

use serde_json::json;

use super::{Answer, Output, OutputArguments, notes, table};
use crate::config::project;
use crate::model::settings::Manifest;
use crate::model::{HealthCheck, Settings};

/// Check a repository's kennel.toml, and show which flake outputs it needs
///
/// Reads that one file and nothing else: no network, no Nix. Exits with 64 when anything in it is wrong, after naming
/// every fault with its line.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The file to check
    #[arg(default_value = project::FILE_NAME)]
    file: PathBuf,

    #[command(flatten)]
    output: OutputArguments,
}

/// Checks the file.
pub(super) fn run(arguments: &Arguments) -> Answer {
    let output = arguments.output.output();
    match project::load(&arguments.file) {
        Err(faults) => Answer::faults(&arguments.file, &faults, output),
        Ok(manifest) => answer(&manifest, &project::nix_system(), output),
    }
}

fn answer(manifest: &Manifest, system: &str, output: Output) -> Answer {
    let attribute = |settings: &Settings| format!("packages.{system}.{}", settings.flake_output());
    let notices = project::notices(manifest);
    match output {
        Output::Json => {
            let targets = manifest.targets.iter().map(|(name, settings)| {
                json!({ "name": name, "kind": settings.kind(), "flake_output": attribute(settings), "settings": settings })
            });
            let targets = targets.collect::<Vec<_>>();
            Answer::json(&json!({ "ok": true, "system": system, "targets": targets, "notices": notices }), 0)
        }
        Output::Text => {
            let rows = manifest.targets.iter().map(|(name, settings)| {
                [name.to_string(), settings.kind().to_string(), attribute(settings), check_of(settings)]
            });
            let rows = rows.collect::<Vec<_>>();
            let stdout = table::render(["NAME", "KIND", "FLAKE OUTPUT", "SERVED WHEN"], &rows);
            Answer { stdout, stderr: notes(&notices), code: 0 }
        }
    }
}

/// When a new version takes over from the old one.
fn check_of(settings: &Settings) -> String {
    match settings {
        Settings::Site(_) => "built".to_owned(),
        Settings::Service(service) => {
            let secs = service.health_check_timeout_secs;
            match &service.health_check {
                HealthCheck::Http(path) => format!("GET {path} answers 200 within {secs} s"),
                HealthCheck::Tcp => format!("it accepts a connection within {secs} s"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "[services.api]\n[services.worker]\nflake_output = \"jobs\"\n\
        health_check = \"tcp\"\n[static_sites.web]\nflake_output = \"frontend\"\n\
        [cachix]\ncache_name = \"mine\"\n";

    #[test]
    fn each_name_is_shown_with_the_output_it_needs() {
        let answer = answer(&project::parse(TEXT).unwrap(), "x86_64-linux", Output::Text);
        insta::assert_snapshot!(answer.stdout, @r#"
    NAME    KIND     FLAKE OUTPUT                    SERVED WHEN
    api     service  packages.x86_64-linux.api       GET /health answers 200 within 30 s
    web     site     packages.x86_64-linux.frontend  built
    worker  service  packages.x86_64-linux.jobs      it accepts a connection within 30 s
    "#);
        assert_eq!(
            answer.stderr,
            "note: `cachix` is pushed to where the daemon's file has a `cachix_token_file` for the project\n"
        );
    }

    #[test]
    fn scripts_get_the_same_as_data() {
        let answer = answer(&project::parse(TEXT).unwrap(), "x86_64-linux", Output::Json);
        let value: serde_json::Value = serde_json::from_str(&answer.stdout).unwrap();
        assert_eq!(value["ok"], true);
        assert_eq!(value["targets"][2]["flake_output"], "packages.x86_64-linux.jobs");
        assert_eq!(value["targets"][1]["kind"], "site");
    }
}
