//! A repository's kennel.toml: what is read can be written again, what is not is told with its line.

use kennel::config::project;
use kennel::host::machine::render::env::env_file;
use kennel::model::confinement::{Confinement, Limits};
use kennel::model::settings::Manifest;
use kennel::model::{HealthCheck, Settings};
use toml::{Table, Value};

use super::expect_tame;

/// The text of a kennel.toml.
pub(crate) fn kennel_toml(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match project::parse(text) {
        Ok(manifest) => {
            for settings in manifest.targets.values() {
                if let Settings::Service(service) = settings {
                    env_file(&service.env).expect("what a kennel.toml may say reaches the service");
                }
            }
            let again = toml_of(&manifest);
            if again.len() <= project::SIZE_MAX {
                assert_eq!(project::parse(&again), Ok(manifest), "{again}");
            }
        }
        Err(faults) => {
            let lines = text.split('\n').count();
            assert!((1..=101).contains(&faults.as_slice().len()));
            for fault in faults.as_slice() {
                assert!(fault.line.is_none_or(|line| (1..=lines).contains(&line)), "{fault:?} of {lines} lines");
                expect_tame(&fault.to_string());
            }
        }
    }
}

/// Limits and opt-outs as a kennel.toml says them.
fn confinement(kept_in: &Confinement) -> Vec<(String, Value)> {
    let Limits { memory_max_bytes, cpu_quota_percent, tasks_max } = kept_in.limits;
    let allow: Vec<Value> = kept_in.opt_outs.iter().map(|opt_out| opt_out.word().into()).collect();
    let mut keys = vec![("sandbox".to_owned(), Table::from_iter([("allow".to_owned(), allow.into())]).into())];
    keys.extend(memory_max_bytes.map(|bytes| ("memory_max".to_owned(), bytes.to_string().into())));
    keys.extend(cpu_quota_percent.map(|percent| ("cpu_quota".to_owned(), format!("{percent}%").into())));
    keys.extend(tasks_max.map(|tasks| {
        ("tasks_max".to_owned(), Value::Integer(tasks.try_into().expect("as large as a kennel.toml may have it")))
    }));
    keys
}

/// A kennel.toml that says just this.
pub(crate) fn toml_of(manifest: &Manifest) -> String {
    let (mut services, mut sites) = (Table::new(), Table::new());
    for (name, settings) in &manifest.targets {
        let mut table = Table::new();
        table.insert("flake_output".to_owned(), settings.flake_output().as_str().into());
        if let Some(domain) = settings.custom_domain() {
            table.insert("custom_domain".to_owned(), domain.as_str().into());
        }
        match settings {
            Settings::Service(service) => {
                let check = match &service.health_check {
                    HealthCheck::Http(path) => path,
                    HealthCheck::Tcp => "tcp",
                };
                let env = service.env.iter().map(|(name, value)| (name.clone(), Value::from(value.as_str())));
                let secrets: Vec<Value> = service.secrets.iter().map(|name| name.as_str().into()).collect();
                table.extend([
                    ("protocol".to_owned(), service.protocol.word().into()),
                    ("health_check".to_owned(), check.into()),
                    ("health_check_timeout_secs".to_owned(), i64::from(service.health_check_timeout_secs).into()),
                    ("drain_secs".to_owned(), i64::from(service.drain_secs).into()),
                    ("preview_database".to_owned(), service.preview_database.into()),
                    ("secrets".to_owned(), secrets.into()),
                    ("env".to_owned(), env.collect::<Table>().into()),
                ]);
                table.extend(confinement(&service.confinement));
                services.insert(name.to_string(), table.into());
            }
            Settings::Site(site) => {
                table.insert("spa".to_owned(), site.spa.into());
                sites.insert(name.to_string(), table.into());
            }
        }
    }
    let mut whole = Table::new();
    for (key, tables) in [("services", services), ("static_sites", sites)] {
        if !tables.is_empty() {
            whole.insert(key.to_owned(), tables.into());
        }
    }
    if let Some(cache) = &manifest.cachix {
        whole.insert("cachix".to_owned(), Table::from_iter([("cache_name".to_owned(), cache.as_str().into())]).into());
    }
    whole.to_string()
}
